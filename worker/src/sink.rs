//! Telling everything that happens to one place for all: an event sink.
//!
//! Of all workers one feeds it, by a lease in the store; where it is lives there, too. Events are read off the outbox in
//! order, and what is known to be in the sink is noted: whoever dies in between leaves it to the next, who begins there
//! again. So every event arrives at least once, under one name, and those of one job in order: none is sent before the one
//! before it is there.

pub mod nats;
#[cfg(test)]
#[path = "../../bench/src/nats.rs"]
pub mod private_server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use millrace_wire::JobId;
use millrace_wire::job::JobEvent;
use rand::Rng as _;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::store::outbox::SinkEvent;
use crate::store::{self, Upkeep};
use crate::webhooks;

/// Events read at once.
const PAGE: u32 = 256;
/// Jobs whose events are sent side by side.
const JOBS_AT_ONCE: usize = 64;
/// How long a feeder has the sink without saying so again.
const HOLD: Duration = Duration::from_secs(10);
/// When it says so again.
const RENEW_AFTER: Duration = Duration::from_secs(3);
/// How long one page may take to be sent: less than the hold lasts.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two looks of who feeds it.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Time between two looks of who would, and before another try after a failure.
const WAIT: Duration = Duration::from_secs(1);

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its name, the same however often it is sent.
    pub id: String,
    /// Whose job.
    pub tenant: String,
    /// Which job.
    pub job_id: JobId,
    /// What happened: `accepted`, `claimed`, `succeeded`, …
    pub kind: String,
    /// JSON.
    pub body: Vec<u8>,
}

/// Why a message is not in a sink.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// A place that is told.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Tells one message and waits until the sink has it for good.
    async fn publish(&self, message: Message) -> Result<(), Error>;
}

/// Feeds a sink from the store's outbox.
pub struct Feeder {
    /// The outbox.
    pub upkeep: Arc<dyn Upkeep>,
    /// Where it goes.
    pub sink: Arc<dyn Sink>,
    /// By what name the store knows how far the sink is.
    pub name: String,
    /// Who feeds; another life of the same worker is another feeder.
    pub feeder: String,
    /// By whose time an event is old.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// What a look came to.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    /// Another feeds it.
    Idle,
    /// There is nothing new.
    Rest,
    /// There was, and may be more.
    More,
}

impl Feeder {
    /// Feeds until asked to end.
    pub async fn run(self, until: CancellationToken) {
        let (mut held, mut failing) = (None, false);
        loop {
            let looked = tokio::select! {
                () = until.cancelled() => break,
                looked = self.look(&mut held) => looked,
            };
            let wait = match looked {
                Ok(Looked::More) => Duration::ZERO,
                Ok(Looked::Rest) => LOOK_EVERY,
                Ok(Looked::Idle) | Err(_) => WAIT,
            };
            if let Err(why) = &looked {
                self.metrics.sink_failures.inc();
                if !failing {
                    warn!(
                        why,
                        sink = self.name,
                        "the event sink cannot be fed; it goes on as soon as it can"
                    );
                }
            } else if failing {
                info!(sink = self.name, "the event sink is fed again");
            }
            failing = looked.is_err();
            tokio::select! {
                () = until.cancelled() => break,
                () = tokio::time::sleep(wait.mul_f64(rand::rng().random_range(0.8..1.2))) => {}
            }
        }
        if held.is_some()
            && let Err(error) = self.upkeep.leave(&self.name, &self.feeder).await
        {
            warn!(%error, "cannot give the event sink up; another feeds it in a moment");
        }
    }

    /// Sends one page, if this is who feeds. `held` is up to where the sink is and since when that is known.
    async fn look(&self, held: &mut Option<(i64, Instant)>) -> Result<Looked, String> {
        let shown = |error: store::Error| error.to_string();
        let at = match *held {
            Some((at, since)) if since.elapsed() < RENEW_AFTER => at,
            _ => {
                let asked = Instant::now();
                let at = self.upkeep.feed(&self.name, &self.feeder, HOLD).await.map_err(shown)?;
                *held = at.map(|at| (at, asked));
                let Some(at) = at else {
                    self.metrics.sink_lag_seconds.set(0.0);
                    return Ok(Looked::Idle);
                };
                at
            }
        };
        let events = self.upkeep.settled(at, PAGE).await.map_err(shown)?;
        let Some(first) = events.first() else {
            self.metrics.sink_lag_seconds.set(0.0);
            return Ok(Looked::Rest);
        };
        let age_ms = self.clock.now().as_millisecond().saturating_sub(first.at_ms);
        self.metrics.sink_lag_seconds.set((age_ms.max(0) as f64) / 1000.0);
        let (to, failed) = self.send(&events).await;
        if to > at {
            if !self.upkeep.fed(&self.name, &self.feeder, to).await.map_err(shown)? {
                *held = None;
                return Ok(Looked::Idle);
            }
            if let Some((at, _)) = held {
                *at = to;
            }
        }
        failed.map_or(Ok(Looked::More), Err)
    }

    /// Sends events: each job's one after the other, jobs side by side. Returns up to which number all are there, and why the
    /// next one is not.
    async fn send(&self, events: &[SinkEvent]) -> (i64, Option<String>) {
        let mut jobs: BTreeMap<&str, Vec<&SinkEvent>> = BTreeMap::new();
        for event in events {
            jobs.entry(&event.job_uid).or_default().push(event);
        }
        let there = Mutex::new(Vec::with_capacity(events.len()));
        let why = Mutex::new(None);
        let sending =
            futures::stream::iter(jobs.into_values()).for_each_concurrent(JOBS_AT_ONCE, |of_job| async {
                for event in of_job {
                    if let Err(error) = self.sink.publish(message(event)).await {
                        why.lock().expect("nothing panics while holding it").get_or_insert(error.to_string());
                        break;
                    }
                    self.metrics.sink_published.inc();
                    there.lock().expect("nothing panics while holding it").push(event.seq);
                }
            });
        let late = tokio::time::timeout(PAGE_TIMEOUT, sending).await.is_err();
        let mut there = there.into_inner().expect("nothing panics while holding it");
        there.sort_unstable();
        let whole = events.iter().zip(&there).take_while(|(event, seq)| event.seq == **seq).count();
        let to = whole.checked_sub(1).map_or(0, |last| events[last].seq);
        let why = why.into_inner().expect("nothing panics while holding it");
        (to, why.or_else(|| late.then(|| "it takes too long".to_owned())))
    }
}

/// An event as a message: the job as it stood then, and what else the event says.
fn message(event: &SinkEvent) -> Message {
    // What a later version wrote and this one cannot read did happen all the same.
    let data = serde_json::from_str(&event.body).unwrap_or_else(|_| Value::from(event.body.as_str()));
    let (type_, timestamp) = (format!("job.{}", event.kind), webhooks::shown(event.at_ms));
    Message {
        id: webhooks::message_id(&event.job_uid, event.seq),
        tenant: event.tenant.clone(),
        job_id: event.job_id.clone(),
        kind: event.kind.clone(),
        body: serde_json::to_vec(&JobEvent { type_, timestamp, data }).expect("an event is plain data"),
    }
}

#[cfg(test)]
mod tests;
