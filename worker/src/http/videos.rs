//! Videos: a job and what came of it, for who wants to post a file and show it.
//!
//! `POST /videos` takes the file in the same call: its bytes stream into the object store as an upload that nobody else
//! has a URL of, and then its job is accepted. What breaks off on the way leaves nothing: the object appears whole or not
//! at all, and where the job is not accepted it is removed again (or, if the worker dies just then, swept).

mod form;

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use millrace_wire::job::Job;
use millrace_wire::spec::{Input, SPEC_BYTES_MAX, words};
use millrace_wire::video::{Video, VideoPage};
use millrace_wire::{Code, JobId, JobSpec, Problem};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::{info, warn};

use super::tenant::{Principal, Tenant};
use super::{App, Refusal, Shared, copies, jobs};
use crate::store::library::Search;
use crate::store::upkeep::{Due, NewUpload};
use crate::store::{Filter, JobRow};
use crate::{keys, objects};

/// Longest file name.
const FILENAME_LENGTH_MAX: usize = 512;
/// Longest text to search for, in characters, and most words of it.
const QUERY_MAX: (usize, usize) = (256, 32);
/// How long an upload may take before what is left of it counts as forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What stands in the query of a `POST`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    /// The job's id, as `Idempotency-Key` says it.
    job_id: Option<String>,
    title: Option<String>,
    filename: Option<String>,
    /// Any other fields of a spec, as JSON.
    spec: Option<String>,
}

/// A video on its way in: whose it is and where its bytes go.
struct Arriving<'a> {
    app: &'a App,
    tenant: String,
    principal: Option<String>,
    headers: &'a HeaderMap,
    said: Said,
    key: String,
}

/// A spec that is whole, and the job's id where the client gave one.
struct Asked {
    spec: JobSpec,
    job_id: Option<JobId>,
}

pub(super) async fn create(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Principal(principal): Principal,
    said: Result<Query<Said>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let bad = |field: &str, detail: String| Refusal(Problem::new(Code::BadQuery, detail).field(field));
    let Query(said) = said.map_err(|error| bad("query", error.body_text()))?;
    if said.filename.as_ref().is_some_and(|name| name.is_empty() || name.len() > FILENAME_LENGTH_MAX) {
        return Err(bad("filename", format!("filename must have 1 to {FILENAME_LENGTH_MAX} bytes")));
    }
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?").to_ascii_lowercase());
    let is_form = kind.as_ref().is_some_and(|kind| kind.starts_with("multipart/form-data"));
    let is_file = kind.as_ref().is_none_or(|kind| {
        kind.starts_with("video/")
            || kind.starts_with("audio/")
            || kind.starts_with("application/octet-stream")
    });
    if !is_form && !is_file {
        let detail =
            "the body must be the file (video/…, audio/…, application/octet-stream) or multipart/form-data";
        return Err(Problem::new(Code::UnsupportedMediaType, detail).into());
    }
    // Before its bytes come: they may be many.
    jobs::takes_jobs(&app)?;
    let load = app.load.report();
    if load.queued + load.running >= app.room.slots + app.room.queue_max {
        return Err(jobs::full(&app));
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // A form has something around the file.
    if announced.is_some_and(|bytes| bytes > app.upload_bytes_max && !is_form) {
        return Err(too_large(&app));
    }
    let key = keys::upload(&tenant, said.filename.as_deref().unwrap_or("video"));
    let arriving = Arriving { app: &app, tenant, principal, headers: &headers, said, key };
    match kind.filter(|_| is_form) {
        Some(_) => form::receive(arriving, body).await,
        None => {
            let asked = arriving.asked(None)?;
            if let Some(known) = arriving.known(&asked).await? {
                return arriving.answer(StatusCode::OK, known).await;
            }
            arriving.store(body.into_data_stream()).await?;
            arriving.accept(asked).await
        }
    }
}

fn too_large(app: &App) -> Refusal {
    let detail = format!("a video has at most {} bytes here", app.upload_bytes_max);
    Problem::new(Code::UploadTooLarge, detail).into()
}

impl Arriving<'_> {
    /// The spec of query and form together; `part` is the form's.
    fn asked(&self, part: Option<&[u8]>) -> Result<Asked, Refusal> {
        let twice = |field: &str| {
            let detail = format!("{field} is there twice: say it once");
            Refusal(Problem::new(Code::BadField, detail).field(field))
        };
        let text = match (&self.said.spec, part) {
            (Some(_), Some(_)) => return Err(twice("spec")),
            (Some(text), None) => Some(text.as_bytes()),
            (None, part) => part,
        };
        let mut fields = match text {
            None => Map::new(),
            Some(text) if text.len() > SPEC_BYTES_MAX => {
                let detail = format!("a spec has at most {SPEC_BYTES_MAX} bytes");
                return Err(Problem::new(Code::SpecTooLarge, detail).field("spec").into());
            }
            Some(text) => serde_json::from_slice::<Map<String, Value>>(text).map_err(|error| {
                let detail =
                    format!("spec must be a JSON object like {{\"resolutions\": [\"720p\"]}}: {error}");
                Problem::new(Code::BadJson, detail).field("spec")
            })?,
        };
        for field in ["input_url", "input_path"] {
            if fields.contains_key(field) {
                let detail = format!("{field} has no place here: the input comes with the request");
                return Err(Problem::new(Code::BadField, detail).field(field).into());
            }
        }
        for (field, value) in [("title", &self.said.title), ("job_id", &self.said.job_id)] {
            let Some(value) = value else { continue };
            if fields.insert(field.to_owned(), Value::from(value.as_str())).is_some() {
                return Err(twice(field));
            }
        }
        let input = format!("{}/{}", self.app.identity.pool, self.key);
        fields.insert("input_path".to_owned(), Value::from(input));
        let (spec, in_spec) = JobSpec::parse(Value::Object(fields).to_string().as_bytes())?;
        jobs::check_webhook(self.app, &spec)?;
        copies::check(self.app, &spec)?;
        Ok(Asked { spec, job_id: jobs::given_id(in_spec, self.headers)? })
    }

    /// The job that this is already, when the client posts again.
    async fn known(&self, asked: &Asked) -> Result<Option<JobRow>, Refusal> {
        let Some(job_id) = &asked.job_id else { return Ok(None) };
        let Some(row) = self.app.store.job(&self.tenant, job_id).await? else { return Ok(None) };
        let same = JobSpec { input: row.spec.input.clone(), ..asked.spec.clone() };
        if same == row.spec && matches!(row.spec.input, Input::Path(_)) {
            return Ok(Some(row));
        }
        let detail = format!("job {job_id} was submitted with another spec; use another job_id");
        Err(Problem::new(Code::JobConflict, detail).field("job_id").job(job_id).into())
    }

    /// Writes the bytes as an upload.
    async fn store<S, E>(&self, bytes: S) -> Result<(), Refusal>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let (app, pool) = (self.app, &self.app.identity.pool);
        // Entered before it is there: what nobody knows of, nobody would ever remove.
        let until_ms = (app.clock.now() + FORGOTTEN_AFTER).as_millisecond();
        let upload = NewUpload { bucket: pool.clone(), key: self.key.clone(), parts: None, until_ms };
        app.upkeep.enter_upload(&upload, Duration::ZERO).await?;
        let stored = app.objects.create(pool, &self.key, bytes, app.upload_bytes_max).await;
        let refused = match stored {
            Ok(meta) if meta.bytes > 0 => {
                info!(%pool, key = self.key, bytes = meta.bytes, "video stored");
                return Ok(());
            }
            Ok(_) => Problem::new(Code::UploadIncomplete, "the file has no bytes").into(),
            Err(objects::Error::TooLarge { .. }) => too_large(app),
            Err(objects::Error::Interrupted(reason)) => {
                info!(reason, "a video broke off");
                Problem::new(Code::UploadIncomplete, "the body ended early; post it again").into()
            }
            Err(error) => error.into(),
        };
        self.forget().await;
        Err(refused)
    }

    /// Removes what was stored for a job that there will not be.
    async fn forget(&self) {
        let pool = &self.app.identity.pool;
        if let Err(error) = self.app.objects.delete(pool, &self.key).await {
            // Its row stays, and so the sweeper finds it.
            warn!(%error, key = self.key, "cannot remove a video that no job is of; it is swept later");
            return;
        }
        let gone = Due::Upload { key: self.key.clone() };
        if let Err(error) = self.app.upkeep.swept(pool, &gone).await {
            warn!(%error, key = self.key, "cannot note that a video is removed");
        }
    }

    /// Accepts the job of bytes that are stored.
    async fn accept(&self, asked: Asked) -> Result<Response, Refusal> {
        let job_id = asked.job_id.clone().unwrap_or_else(JobId::assign);
        let prices = jobs::steal_prices(self.headers);
        let accepted = jobs::admit(
            self.app,
            &self.tenant,
            self.principal.as_deref(),
            asked.spec.clone(),
            &job_id,
            prices,
        );
        let refused = match accepted.await {
            Ok((status, row)) => return self.answer(status, row).await,
            Err(refused) => refused,
        };
        if refused.0.code == Code::StoreUnavailable {
            // Nobody knows whether it was accepted: if not, its bytes are swept.
            return Err(Refusal(refused.0.job(&job_id)));
        }
        self.forget().await;
        // Somebody may have posted the same at the same time.
        match self.known(&asked).await? {
            Some(known) => self.answer(StatusCode::OK, known).await,
            None => Err(Refusal(refused.0.job(&job_id))),
        }
    }

    async fn answer(&self, status: StatusCode, row: JobRow) -> Result<Response, Refusal> {
        let location = [(LOCATION, format!("/videos/{}", row.job_id))];
        let job: Job = jobs::seen_by_clients(self.app, &self.tenant, row).await?;
        Ok((status, location, Json(Video::from(job))).into_response())
    }
}

pub(super) async fn read(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
) -> Result<Json<Video>, Refusal> {
    let row = jobs::find(&app, &tenant, &id).await?;
    Ok(Json(jobs::seen_by_clients(&app, &tenant, row).await?.into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    q: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(app): Shared,
    Tenant(tenant): Tenant,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<VideoPage>, Refusal> {
    let bad = |field: &str, detail: String| Refusal(Problem::new(Code::BadQuery, detail).field(field));
    let Query(query) = query.map_err(|error| bad("query", error.body_text()))?;
    let (limit, before) = jobs::page(query.limit.as_deref(), query.cursor)?;
    let rows = match query.q.filter(|text| !text.is_empty()) {
        None => app.store.jobs(&tenant, &Filter { state: None, limit: limit + 1, before }).await?,
        Some(text) => {
            let words: Vec<String> = words(&text).collect();
            if text.chars().count() > QUERY_MAX.0 || words.len() > QUERY_MAX.1 {
                let detail = format!("q has at most {} characters and {} words", QUERY_MAX.0, QUERY_MAX.1);
                return Err(bad("q", detail));
            }
            // Signs alone are no word, and so of no video.
            if words.is_empty() {
                Vec::new()
            } else {
                app.upkeep.search(&tenant, &Search { words, limit: limit + 1, before }).await?
            }
        }
    };
    let (jobs, next_cursor) = jobs::paged(&app, &tenant, rows, limit).await?;
    Ok(Json(VideoPage { videos: jobs.into_iter().map(Video::from).collect(), next_cursor }))
}

#[cfg(test)]
mod tests;
