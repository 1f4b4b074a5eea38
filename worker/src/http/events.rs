//! What happens to a job, told while it happens: Server-Sent Events.
//!
//! Every change of state is an event in the store, with a number; a stream reads them in order from where its reader
//! was, so nothing is lost or told twice, whichever worker the reader comes back to. Progress has no number: only the
//! newest counts. A stream is pulled by its connection and asks the store when it is asked itself. There is no task
//! behind it that could outlive its reader, and a slow reader costs a page of events at most. Rejected: one feed that is
//! handed to all streams, because a reader that lags behind it needs the store anyway.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use millrace_wire::job::{JobError, JobUpdate, Progress, State as JobState};
use millrace_wire::{Code, Problem};
use rand::Rng as _;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::tenant::Tenant;
use super::{App, Refusal, Shared, jobs};
use crate::metrics::Metrics;
use crate::store::{self, Event, JobRow};

/// Most streams of one worker at once. Each asks its store about twice a second.
pub const STREAMS_MAX: usize = 256;
/// How often a stream looks for changes, before jitter.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a look may take before it is given up for the next.
const PATIENCE: Duration = Duration::from_secs(5);
/// Events read at once, and so the most that are held for a slow reader.
const PAGE: u32 = 64;
/// A sign of life for whoever closes silent connections: the gateway does after 20 s.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a reader waits before it comes back after a stream ended early.
const RECONNECT: Duration = Duration::from_secs(2);
/// When to come back after there was no room.
const FULL_RETRY_S: u64 = 5;

/// How a job stood, as an event's body has it.
#[derive(Deserialize)]
struct Body {
    job: JobUpdate,
}

/// An open stream, for as long as it is.
struct Open {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Open {
    fn new(app: &App) -> Result<Self, Refusal> {
        let permit = Arc::clone(&app.streams).try_acquire_owned().map_err(|_| {
            let detail = "this worker serves as many event streams as it may; come back, or poll the job";
            Problem::new(Code::TooManyStreams, detail).retry_after(FULL_RETRY_S)
        })?;
        app.metrics.event_streams.inc();
        Ok(Self { _permit: permit, metrics: Arc::clone(&app.metrics) })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.event_streams.dec();
    }
}

/// One reader of one job.
struct Listener {
    app: Arc<App>,
    tenant: String,
    row: JobRow,
    /// The last event that was told, or is next to be.
    after: i64,
    /// How the job stood at it, with the newest progress told since.
    told: Option<JobUpdate>,
    ready: VecDeque<sse::Event>,
    /// Whether the last look left nothing behind: the next one has time.
    rests: bool,
    ended: bool,
    _open: Open,
}

/// `GET /jobs/{job_id}/events`. A `Last-Event-ID` that is none of this job's counts as none.
pub(super) async fn listen(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let row = jobs::find(&app, &tenant, &id).await?;
    let seen = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.trim().parse::<i64>().ok());
    let history = History::read(&app, &row.uid, seen).await?;
    let last = history.last.as_ref().map_or(0, |event| event.seq);
    let update = |event: &Event| update(event, &row);
    let is_over = history.last.as_ref().is_some_and(|event| update(event).state.is_final());
    if is_over && seen.is_some_and(|seen| seen >= last) {
        // To an EventSource this says: do not come back.
        return Ok((StatusCode::NO_CONTENT, [(CACHE_CONTROL, "no-store")]).into_response());
    }
    let (after, told) = match &history.seen {
        Some(seen) => (seen.seq, Some(update(seen))),
        // The last event is how the job stands, and so the first to be told.
        None => (last - 1, None),
    };
    let _open = Open::new(&app)?;
    let ready = VecDeque::new();
    let listener = Listener { app, tenant, row, after, told, ready, rests: false, ended: false, _open };
    let messages = futures::stream::unfold((listener, true), |(mut listener, first)| async move {
        let message = listener.next().await?;
        let message = if first { message.retry(RECONNECT) } else { message };
        Some((Ok::<_, Infallible>(message), (listener, false)))
    });
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("still here");
    let unbuffered = [("cache-control", "no-store"), ("x-accel-buffering", "no")];
    Ok((unbuffered, Sse::new(messages).keep_alive(heartbeat)).into_response())
}

/// Where a reader is in what has happened.
struct History {
    /// The event that the reader had last, if it is one of this job's.
    seen: Option<Event>,
    last: Option<Event>,
}

impl History {
    async fn read(app: &App, job_uid: &str, seen: Option<i64>) -> Result<Self, store::Error> {
        let (mut after, mut history) = (0, Self { seen: None, last: None });
        loop {
            let page = app.store.events(job_uid, after, PAGE).await?;
            let complete = page.len() < PAGE as usize;
            for event in page {
                after = event.seq;
                if Some(event.seq) == seen {
                    history.seen = Some(event.clone());
                }
                history.last = Some(event);
            }
            if complete {
                return Ok(history);
            }
        }
    }
}

/// How the job stood at an event. One that this version cannot read is told as the job stands now.
fn update(event: &Event, row: &JobRow) -> JobUpdate {
    serde_json::from_str(&event.body).map_or_else(
        |error| {
            debug!(seq = event.seq, kind = event.kind, %error, "an event that cannot be read");
            present(row)
        },
        |body: Body| body.job,
    )
}

fn present(row: &JobRow) -> JobUpdate {
    JobUpdate {
        job_id: row.job_id.clone(),
        state: row.state,
        phase: row.phase,
        progress: row.progress,
        pool: row.pool.clone(),
        worker: row.worker.clone(),
        attempt: row.attempt,
        error: row.error.clone().map(|(code, detail)| JobError { code, detail }),
    }
}

fn message(kind: &str, update: &JobUpdate) -> sse::Event {
    sse::Event::default().event(kind).json_data(update).expect("an update is plain data")
}

impl Listener {
    /// The next message; `None` when the stream is over, or this worker is about to be.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.ended {
                return None;
            }
            if self.rests {
                let jittered = LOOK_EVERY.mul_f64(rand::rng().random_range(0.8..1.0));
                tokio::time::sleep(jittered).await;
                if self.app.load.is_draining() {
                    return None;
                }
            }
            self.rests = match tokio::time::timeout(PATIENCE, self.look()).await {
                Ok(Ok(complete)) => complete,
                Ok(Err(error)) => {
                    self.app.metrics.store_errors.with_label_values(&[error.kind()]).inc();
                    debug!(%error, job_id = %self.row.job_id, "an event stream waits for the store");
                    true
                }
                Err(_) => {
                    self.app.metrics.store_errors.with_label_values(&["timeout"]).inc();
                    true
                }
            };
        }
    }

    /// Makes messages ready of what is new. Answers whether that is all there is.
    async fn look(&mut self) -> Result<bool, store::Error> {
        // In this order: what the row says was an event by then, so no progress runs ahead of its state.
        let row = self.app.store.job(&self.tenant, &self.row.job_id).await?;
        let events = self.app.store.events(&self.row.uid, self.after, PAGE).await?;
        let Some(row) = row.filter(|row| row.uid == self.row.uid) else {
            // Removed, and its name perhaps somebody else's: nothing more will happen to it.
            self.ended = true;
            return Ok(true);
        };
        self.row = row;
        let complete = events.len() < PAGE as usize;
        for event in events {
            let mut update = update(&event, &self.row);
            // What the event says is as old as the heartbeat before it.
            if let Some(told) = self.told.as_ref().filter(|told| told.attempt == update.attempt)
                && told.progress.percent > update.progress.percent
            {
                update.progress = told.progress;
            }
            self.ready.push_back(message("state", &update).id(event.seq.to_string()));
            self.after = event.seq;
            self.told = Some(update);
        }
        let told = self.told.get_or_insert_with(|| present(&self.row));
        if !complete {
            return Ok(false);
        }
        if told.state.is_final() {
            self.ready.push_back(message("end", told));
            self.ended = true;
        } else if let Some(progress) = newer(told, &self.row, &self.app) {
            told.progress = progress;
            self.ready.push_back(message("progress", told));
        }
        Ok(true)
    }
}

/// How far the attempt is that was told of last, where that is news: from here if it runs here, else from its row, where
/// heartbeats put it.
fn newer(told: &JobUpdate, row: &JobRow, app: &App) -> Option<Progress> {
    if told.state != JobState::Running {
        return None;
    }
    let here = app.leases.progress_of(&row.uid, u64::from(told.attempt));
    let same = row.state == JobState::Running && row.attempt == told.attempt;
    let progress = here.or(same.then_some(row.progress))?;
    (progress.percent >= told.progress.percent && progress != told.progress).then_some(progress)
}

#[cfg(test)]
mod tests;
