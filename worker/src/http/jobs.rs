//! Submit, read, list, cancel.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use millrace_wire::job::{Job, JobError, JobPage, Webhook, WebhookState};
use millrace_wire::spec::{Input, SPEC_BYTES_MAX};
use millrace_wire::steal::Prices;
use millrace_wire::{Code, JobId, JobSpec, Problem, headers};
use serde::Deserialize;
use tracing::{info, warn};

use super::tenant::{Principal, Tenant};
use super::{App, Refusal, Shared, copies, media};
use crate::keys;
use crate::lease::Stop;
use crate::store::outbox::WebhookRow;
use crate::store::upkeep::Deleted;
use crate::store::{Accepted, Cancelled, Filter, JobRow, NewJob, Retried};
use crate::{objects, webhooks};

/// Longest time for a spec to arrive.
const SPEC_TIMEOUT: Duration = Duration::from_secs(10);
/// Jobs on a page when the client does not say, and at most.
const PAGE: (u32, u32) = (50, 500);

/// Stored jobs as clients read them.
async fn views(app: &App, tenant: &str, rows: Vec<JobRow>) -> Result<Vec<Job>, Refusal> {
    let finished = rows.iter().filter(|row| row.manifest.is_some()).map(|row| row.uid.clone());
    let gone = app.upkeep.outputs_gone(&finished.collect::<Vec<_>>()).await?;
    let told = rows.iter().filter(|row| row.spec.webhook_url.is_some()).map(|row| row.uid.clone());
    let mut told = app.upkeep.webhooks(&told.collect::<Vec<_>>()).await?;
    let mut lies = copies::of(app, &rows).await?;
    let seen = |row: JobRow| {
        let webhook = told.remove(&row.uid).map(webhook);
        let has_outputs = row.manifest.is_some() && !gone.contains_key(&row.uid);
        let lie = lies.remove(&row.uid).unwrap_or_default();
        let (durability, copies) = copies::seen(lie, has_outputs, time);
        Job { webhook, durability, copies, ..view(app, tenant, gone.get(&row.uid).copied(), row) }
    };
    Ok(rows.into_iter().map(seen).collect())
}

/// A job as its client reads it.
pub(crate) async fn seen_by_clients(app: &App, tenant: &str, row: JobRow) -> Result<Job, Refusal> {
    seen(app, tenant, row).await.map(|Json(job)| job)
}

fn webhook(told: WebhookRow) -> Webhook {
    let next_at = (told.state == WebhookState::Pending).then(|| webhooks::shown(told.due_at_ms));
    Webhook { state: told.state, tries: told.tries, detail: told.detail, next_at }
}

/// One of them.
async fn seen(app: &App, tenant: &str, row: JobRow) -> Result<Json<Job>, Refusal> {
    Ok(Json(views(app, tenant, vec![row]).await?.pop().expect("one row gives one view")))
}

/// How long a job's outputs are kept, from its end.
fn kept(app: &App, row: &JobRow) -> Duration {
    let days = row.spec.retention_days.map(|days| Duration::from_secs(u64::from(days) * 86_400));
    days.unwrap_or(app.outputs_kept)
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |t| t.to_string())
}

fn view(app: &App, tenant: &str, gone_at_ms: Option<i64>, row: JobRow) -> Job {
    let mut links = BTreeMap::from([
        ("self".to_owned(), format!("/jobs/{}", row.job_id)),
        ("events".to_owned(), format!("/jobs/{}/events", row.job_id)),
    ]);
    let (mut outputs, mut warnings) = (None, Vec::new());
    let kept_ms = i64::try_from(kept(app, &row).as_millis()).unwrap_or(i64::MAX / 4);
    let until_ms = row.finished_at_ms.filter(|_| row.manifest.is_some());
    let until_ms = gone_at_ms.or(until_ms.map(|end| end.saturating_add(kept_ms)));
    if let Some(manifest) = row.manifest.filter(|_| gone_at_ms.is_none()) {
        let base = media::base(app, tenant, &row.job_id, &row.uid);
        let mut seen = manifest.outputs;
        seen.paths_mut().for_each(|path| *path = format!("{base}/{path}"));
        links.insert("download".to_owned(), format!("/download/{}", row.job_id));
        (outputs, warnings) = (Some(seen), manifest.warnings);
    }
    Job {
        job_id: row.job_id,
        state: row.state,
        phase: row.phase,
        progress: row.progress,
        priority: row.priority,
        pool: row.pool,
        worker: row.worker,
        attempt: row.attempt,
        spec: row.spec,
        outputs,
        outputs_until: until_ms.map(time),
        durability: None,
        copies: Vec::new(),
        warnings,
        error: row.error.map(|(code, detail)| JobError { code, detail }),
        cancel_requested: row.cancel_requested,
        webhook: None,
        created_at: time(row.created_at_ms),
        started_at: row.started_at_ms.map(time),
        finished_at: row.finished_at_ms.map(time),
        links,
    }
}

pub(super) fn job_id(text: &str) -> Result<JobId, Refusal> {
    text.parse().map_err(|error: millrace_wire::id::BadName| {
        Refusal(Problem::new(Code::BadJobId, error.to_string()).field("job_id"))
    })
}

/// The id of a submit: as it was given, or assigned here when no gateway did it before.
fn resolve_id(in_body: Option<JobId>, headers: &HeaderMap) -> Result<JobId, Refusal> {
    Ok(given_id(in_body, headers)?.unwrap_or_else(JobId::assign))
}

/// The id that a submit was given: in the body, or by `Idempotency-Key`.
pub(super) fn given_id(in_body: Option<JobId>, headers: &HeaderMap) -> Result<Option<JobId>, Refusal> {
    let in_header = match headers.get(headers::IDEMPOTENCY_KEY) {
        None => None,
        Some(value) => Some(job_id(value.to_str().unwrap_or("?"))?),
    };
    match (in_body, in_header) {
        (Some(body), Some(header)) if body != header => {
            let detail =
                format!("job_id is {body} and Idempotency-Key is {header}; they mean the same, give one");
            Err(Problem::new(Code::JobIdMismatch, detail).field("job_id").into())
        }
        (body, header) => Ok(body.or(header)),
    }
}

/// What the gateway says of other pools. A job is worth more than its prices: those that cannot be read are none, and then
/// nobody steals it.
pub(super) fn steal_prices(headers: &HeaderMap) -> Prices {
    let mut said = headers.get_all(headers::STEAL).iter();
    let (Some(prices), None) = (said.next(), said.next()) else { return Prices::default() };
    prices.to_str().unwrap_or("?").parse().unwrap_or_else(|error| {
        warn!(%error, header = headers::STEAL, "prices that cannot be read");
        Prices::default()
    })
}

/// A body that is as large as a job spec at most.
pub(super) async fn small_body(body: Body) -> Result<axum::body::Bytes, Refusal> {
    let read = tokio::time::timeout(SPEC_TIMEOUT, axum::body::to_bytes(body, SPEC_BYTES_MAX)).await;
    let read =
        read.map_err(|_| Problem::new(Code::BodyTimeout, "the job spec did not arrive within 10 seconds"))?;
    Ok(read.map_err(|_| {
        Problem::new(Code::SpecTooLarge, format!("a job spec has at most {SPEC_BYTES_MAX} bytes"))
    })?)
}

pub(super) async fn submit(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Principal(principal): Principal,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let body = small_body(body).await?;
    let (spec, in_body) = JobSpec::parse(&body)?;
    let job_id = resolve_id(in_body, &headers)?;
    let answer = accept(&app, tenant, principal.as_deref(), spec, &job_id, steal_prices(&headers)).await;
    // Whatever went wrong, the client can post again with this id and it is the same job.
    answer.map_err(|Refusal(problem)| Refusal(problem.job(&job_id)))
}

async fn accept(
    app: &App,
    tenant: String,
    principal: Option<&str>,
    spec: JobSpec,
    job_id: &JobId,
    steal: Prices,
) -> Result<Response, Refusal> {
    let (status, row) = admit(app, &tenant, principal, spec, job_id, steal).await?;
    let location = format!("/jobs/{job_id}");
    Ok((status, [(header::LOCATION, location)], seen(app, &tenant, row).await?).into_response())
}

/// Commits a job, or finds that it was committed before.
pub(super) async fn admit(
    app: &App,
    tenant: &str,
    principal: Option<&str>,
    spec: JobSpec,
    job_id: &JobId,
    steal: Prices,
) -> Result<(StatusCode, JobRow), Refusal> {
    let outcome = |label: &str| app.metrics.submits.with_label_values(&[label]).inc();
    takes_jobs(app)?;
    check_webhook(app, &spec)?;
    copies::check(app, &spec)?;
    let input_bytes = match &spec.input {
        Input::Url(_) => None,
        Input::Path(path) => Some(uploaded_bytes(app, tenant, path).await?),
    };
    let work_seconds = app.cost.estimate(&spec, input_bytes);
    let second = app.second_pool.clone();
    let tenant = tenant.to_owned();
    let new = NewJob { tenant, job_id: job_id.clone(), spec, work_seconds, steal, second };
    match app.store.accept(&new, &app.identity, app.room).await? {
        Accepted::Created(row) => {
            outcome("created");
            info!(%job_id, tenant = new.tenant, principal, work_seconds, "accepted");
            app.load.accepted(work_seconds);
            app.nudge.notify_one();
            if new.spec.is_dual() {
                app.copy_nudge.notify_one();
            }
            Ok((StatusCode::ACCEPTED, row))
        }
        Accepted::Existing(row) => {
            outcome("existing");
            Ok((StatusCode::OK, row))
        }
        Accepted::Conflict => {
            outcome("conflict");
            let detail = format!("job {job_id} was submitted with another spec; use another job_id");
            Err(Problem::new(Code::JobConflict, detail).field("job_id").into())
        }
        Accepted::Full => Err(full(app)),
    }
}

/// Refuses a receiver that may not be told.
pub(super) fn check_webhook(app: &App, spec: &JobSpec) -> Result<(), Refusal> {
    let refused = spec.webhook_url.as_deref().and_then(|url| app.receivers.check(url).err());
    refused.map_or(Ok(()), |why| Err(Problem::new(Code::BadField, why).field("webhook_url").into()))
}

/// Refuses where this worker shuts down.
pub(super) fn takes_jobs(app: &App) -> Result<(), Refusal> {
    if app.load.is_draining() {
        app.metrics.submits.with_label_values(&["draining"]).inc();
        return Err(Problem::new(Code::Draining, "this worker shuts down; post again").retry_after(1).into());
    }
    Ok(())
}

/// Refuses what there is no room for.
pub(super) fn full(app: &App) -> Refusal {
    app.metrics.submits.with_label_values(&["full"]).inc();
    app.load.stale();
    let wait = app.load.wait_seconds();
    Problem::new(Code::Saturated, "this worker's queue is full").retry_after(wait).into()
}

/// Lets a job that ended without outputs be tried again.
pub(super) async fn retry(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Principal(principal): Principal,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let row = find(&app, &tenant, &id).await?;
    let id = row.job_id.clone();
    let refused = |row: &JobRow| {
        let detail = match row.state {
            state if !state.is_final() => format!("job {id} is {}: it has not ended", state.as_str()),
            state => format!("job {id} is {}: another try would end as this one", state.as_str()),
        };
        Refusal(Problem::new(Code::JobNotRetryable, detail).job(&id))
    };
    if row.state == millrace_wire::job::State::Succeeded && row.spec.is_dual() {
        takes_jobs(&app)?;
        return copies::make_again(&app, &tenant, row).await;
    }
    if !row.may_be_retried() {
        return Err(refused(&row));
    }
    takes_jobs(&app)?;
    if let Input::Path(path) = &row.spec.input
        && !copies::has_second_input(&app, &row).await?
    {
        // Whose upload it is was looked at when the job was accepted, and the answer has not changed.
        let there = uploaded_bytes(&app, &tenant, path).await;
        there.map_err(|Refusal(problem)| match problem.code {
            Code::BadInputPath => {
                let detail = "the job's upload was kept no longer; upload it again, for a job of another id";
                Refusal(Problem::new(Code::InputGone, detail).job(&id))
            }
            _ => Refusal(problem.job(&id)),
        })?;
    }
    match app.store.retry(&tenant, &id, &app.identity, app.room).await? {
        Retried::Done(row) => {
            app.metrics.submits.with_label_values(&["retried"]).inc();
            info!(job_id = %id, tenant, principal, "to be tried again");
            app.load.stale();
            app.nudge.notify_one();
            let location = [(header::LOCATION, format!("/jobs/{id}"))];
            Ok((StatusCode::ACCEPTED, location, seen(&app, &tenant, row).await?).into_response())
        }
        Retried::Refused(row) => Err(refused(&row)),
        Retried::Full => Err(full(&app)),
        Retried::NotFound => Err(Problem::new(Code::JobNotFound, format!("there is no job {id}")).into()),
    }
}

async fn uploaded_bytes(app: &App, tenant: &str, path: &str) -> Result<u64, Refusal> {
    let bad = |detail: &str| Refusal(Problem::new(Code::BadInputPath, detail).field("input_path"));
    let (bucket, key) = keys::split_input_path(path)
        .ok_or_else(|| bad("input_path must be POOL/uploads/… as an upload's answer names it"))?;
    let nothing = || bad("nothing was uploaded there; PUT the bytes to the upload URL first");
    if keys::uploader(key) != tenant {
        // Another tenant's, of which nothing is told.
        return Err(nothing());
    }
    if !app.objects.knows(&bucket) {
        return Err(bad("no pool of that name has uploads here"));
    }
    if app.upkeep.upload_gone(&bucket, key).await? {
        return Err(bad("the upload was kept no longer; upload it again"));
    }
    match app.objects.head(&bucket, key).await {
        // A URL of the object store's own cannot bound what is sent there.
        Ok(meta) if meta.bytes > app.upload_bytes_max => {
            let detail = format!(
                "the upload has {} bytes, and at most {} are taken",
                meta.bytes, app.upload_bytes_max
            );
            Err(Problem::new(Code::UploadTooLarge, detail).field("input_path").into())
        }
        Ok(meta) => Ok(meta.bytes),
        Err(objects::Error::NotFound) => Err(nothing()),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn read(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
) -> Result<Json<Job>, Refusal> {
    seen(&app, &tenant, find(&app, &tenant, &id).await?).await
}

pub(super) async fn find(app: &App, tenant: &str, id: &str) -> Result<JobRow, Refusal> {
    let id = job_id(id)?;
    let found = app.store.job(tenant, &id).await?;
    found.ok_or_else(|| Problem::new(Code::JobNotFound, format!("there is no job {id}")).into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    status: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(app): Shared,
    Tenant(tenant): Tenant,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<JobPage>, Refusal> {
    let bad = |field: &str, detail: String| Refusal(Problem::new(Code::BadQuery, detail).field(field));
    let Query(query) = query.map_err(|error| bad("query", error.body_text()))?;
    let state = query.status.map(|name| {
        let known = millrace_wire::job::State::ALL.map(millrace_wire::job::State::as_str).join(", ");
        millrace_wire::job::State::parse(&name)
            .ok_or_else(|| bad("status", format!("status must be one of {known}")))
    });
    let (limit, before) = page(query.limit.as_deref(), query.cursor)?;
    let filter = Filter { state: state.transpose()?, limit: limit + 1, before };
    let rows = app.store.jobs(&tenant, &filter).await?;
    let (jobs, next_cursor) = paged(&app, &tenant, rows, limit).await?;
    Ok(Json(JobPage { jobs, next_cursor }))
}

/// How many a page has, and which job it begins behind.
pub(super) fn page(limit: Option<&str>, cursor: Option<String>) -> Result<(u32, Option<String>), Refusal> {
    let bad = |field: &str, detail: String| Refusal(Problem::new(Code::BadQuery, detail).field(field));
    let limit = match limit {
        None => PAGE.0,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=PAGE.1).contains(n))
            .ok_or_else(|| bad("limit", format!("limit must be from 1 to {}", PAGE.1)))?,
    };
    if cursor.as_ref().is_some_and(|cursor| uuid::Uuid::parse_str(cursor).is_err()) {
        return Err(bad("cursor", "cursor must be next_cursor of an earlier page".to_owned()));
    }
    Ok((limit, cursor))
}

/// A page as clients read it, of rows of which one more was asked for, and where the next one begins.
pub(super) async fn paged(
    app: &App,
    tenant: &str,
    mut rows: Vec<JobRow>,
    limit: u32,
) -> Result<(Vec<Job>, Option<String>), Refusal> {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| row.uid.clone());
    Ok((views(app, tenant, rows).await?, next_cursor))
}

/// Deletes what a job gave. Never what `DELETE` of a job does by itself: a cancel that came too late would take away
/// what its sender would rather have kept.
async fn delete_outputs(app: &App, tenant: &str, id: &JobId) -> Result<Response, Refusal> {
    match app.upkeep.delete_outputs(tenant, id).await? {
        Deleted::Done(row) => {
            info!(%id, tenant, "outputs deleted");
            Ok(seen(app, tenant, *row).await?.into_response())
        }
        Deleted::None(state) if state.is_final() => {
            let detail = format!("job {id} is {} and has no outputs", state.as_str());
            Err(Problem::new(Code::JobWithoutOutputs, detail).job(id).into())
        }
        Deleted::None(state) => {
            let detail = format!("job {id} is {}; cancel it, and it will have none", state.as_str());
            Err(Problem::new(Code::JobNotReady, detail).job(id).into())
        }
        Deleted::NotFound => Err(Problem::new(Code::JobNotFound, format!("there is no job {id}")).into()),
    }
}

pub(super) async fn cancel(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let id = job_id(&id)?;
    let words = query.as_deref().unwrap_or_default().split('&');
    if words.map(|pair| pair.split('=').next()).any(|word| word == Some("outputs")) {
        return delete_outputs(&app, &tenant, &id).await;
    }
    match app.store.cancel(&tenant, &id).await? {
        Cancelled::Done(row) => {
            app.load.stale();
            Ok((StatusCode::OK, seen(&app, &tenant, row).await?).into_response())
        }
        Cancelled::Requested(row) => {
            app.leases.stop_one(&row.uid, Stop::Cancelled);
            Ok((StatusCode::ACCEPTED, seen(&app, &tenant, row).await?).into_response())
        }
        Cancelled::TooLate(row) => {
            let detail = format!("job {id} has already ended: it {}", row.state.as_str());
            Err(Problem::new(Code::JobFinished, detail).job(&id).into())
        }
        Cancelled::NotFound => Err(Problem::new(Code::JobNotFound, format!("there is no job {id}")).into()),
    }
}
