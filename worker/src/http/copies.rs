//! What clients ask and read of copies in other pools.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use millrace_wire::copies::{CopyState, Durability, JobDurability, OutputCopy};
use millrace_wire::spec::Input;
use millrace_wire::{Code, JobSpec, PoolId, Problem};
use tracing::info;

use super::tenant::Tenant;
use super::{App, Refusal, Shared, jobs};
use crate::keys;
use crate::store::JobRow;
use crate::store::copies::{CopyRow, Kind, Wished};

/// How long a bucket may take to say that it is there.
const BUCKET_PATIENCE: Duration = Duration::from_secs(5);

/// Refuses what this deployment cannot keep: `dual` without a second cloud, copies in pools that nobody knows.
pub(super) fn check(app: &App, spec: &JobSpec) -> Result<(), Refusal> {
    if spec.is_dual() && app.second_pool.is_none() {
        let detail = "this deployment keeps jobs in one cloud: dual needs workers with --second-pool, and a job store that \
                      survives a cloud, too; use single";
        return Err(Problem::new(Code::BadField, detail).field("durability").into());
    }
    known(app, &spec.replicate, "replicate")
}

fn known(app: &App, pools: &[PoolId], field: &str) -> Result<(), Refusal> {
    match pools.iter().find(|pool| !app.objects.knows(pool)) {
        None => Ok(()),
        Some(pool) => {
            let detail = format!("{field} names {pool}, and no pool of that name has a bucket here");
            Err(Problem::new(Code::BadField, detail).field(field).into())
        }
    }
}

/// Of these jobs where their copies stand.
pub(super) async fn of(app: &App, rows: &[JobRow]) -> Result<BTreeMap<String, Vec<CopyRow>>, Refusal> {
    let with = rows.iter().filter(|row| row.spec.is_dual() || row.manifest.is_some());
    Ok(app.upkeep.copies(&with.map(|row| row.uid.clone()).collect::<Vec<_>>()).await?)
}

/// The copies of one job as its client reads them.
pub(super) fn seen(
    copies: Vec<CopyRow>,
    has_outputs: bool,
    time: impl Fn(i64) -> String,
) -> (Option<JobDurability>, Vec<OutputCopy>) {
    let mut durability = None;
    let mut outputs = Vec::new();
    for copy in copies {
        let done_at = copy.done.map(|(_, at)| time(at));
        let detail = copy.detail.filter(|_| done_at.is_none());
        match copy.kind {
            Kind::Input => {
                let (wanted, pool) = (Durability::Dual, copy.pool);
                durability = Some(JobDurability { wanted, pool, reached_at: done_at, detail });
            }
            Kind::Outputs if has_outputs => {
                let state = match done_at {
                    Some(_) => CopyState::Done,
                    None if copy.claimed => CopyState::Copying,
                    None => CopyState::Waiting,
                };
                outputs.push(OutputCopy { pool: copy.pool, state, bytes: copy.bytes, done_at, detail });
            }
            Kind::Outputs => {}
        }
    }
    (durability, outputs)
}

/// Enters copies of a finished job's outputs.
pub(super) async fn replicate(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let id = jobs::job_id(&id)?;
    let body = jobs::small_body(body).await?;
    let pools = millrace_wire::spec::pools_of(&body)?;
    known(&app, &pools, "pools")?;
    match app.upkeep.replicate(&tenant, &id, &pools).await? {
        Wished::Done(row) => {
            info!(job_id = %id, tenant, pools = pools.len(), "outputs to be copied");
            app.copy_nudge.notify_waiters();
            let seen = jobs::seen_by_clients(&app, &tenant, *row).await?;
            Ok((StatusCode::ACCEPTED, Json(seen)).into_response())
        }
        Wished::None(row) if row.manifest.is_some() => {
            let detail = format!("the outputs of job {id} were deleted, or kept no longer");
            Err(Problem::new(Code::OutputsGone, detail).job(&id).into())
        }
        Wished::None(row) if row.state.is_final() => {
            let detail = format!("job {id} is {} and has no outputs", row.state.as_str());
            Err(Problem::new(Code::JobWithoutOutputs, detail).job(&id).into())
        }
        Wished::None(row) => {
            let detail =
                format!("job {id} is {}; its outputs appear when it has succeeded", row.state.as_str());
            Err(Problem::new(Code::JobNotReady, detail).job(&id).into())
        }
        Wished::NotFound => Err(Problem::new(Code::JobNotFound, format!("there is no job {id}")).into()),
    }
}

/// Whether a `dual` job's input can be had although its upload's bucket may be gone.
pub(super) async fn has_second_input(app: &App, row: &JobRow) -> Result<bool, Refusal> {
    if !row.spec.is_dual() {
        return Ok(false);
    }
    let mut copies = app.upkeep.copies(std::slice::from_ref(&row.uid)).await?;
    let copies = copies.remove(&row.uid).unwrap_or_default();
    Ok(copies.iter().any(|copy| copy.kind == Kind::Input && copy.done.is_some()))
}

async fn answers(app: &App, pool: &PoolId) -> bool {
    matches!(tokio::time::timeout(BUCKET_PATIENCE, app.objects.check(pool)).await, Ok(Ok(())))
}

async fn holds(app: &App, pool: &PoolId, key: &str) -> bool {
    matches!(tokio::time::timeout(BUCKET_PATIENCE, app.objects.head(pool, key)).await, Ok(Ok(_)))
}

/// Makes a `dual` job again that has succeeded, and whose outputs lie in a bucket that does not answer: from its input's
/// other copy, in that copy's bucket. Only a client can know that it will not wait for the bucket to come back, so nobody
/// does this unasked.
pub(super) async fn make_again(app: &App, tenant: &str, row: JobRow) -> Result<Response, Refusal> {
    let id = row.job_id.clone();
    let refuse = |detail: String| Refusal(Problem::new(Code::JobNotRetryable, detail).job(&id));
    let Some(bucket) = row.manifest.as_ref().map(|manifest| manifest.bucket.clone()) else {
        return Err(refuse(format!("job {id} has succeeded")));
    };
    let mut copies = app.upkeep.copies(std::slice::from_ref(&row.uid)).await?;
    let copies = copies.remove(&row.uid).unwrap_or_default();
    if let Some(copy) = copies.iter().find(|copy| copy.kind == Kind::Outputs && copy.done.is_some()) {
        return Err(refuse(format!(
            "job {id} has succeeded, and pool {} has a copy of its outputs",
            copy.pool
        )));
    }
    if answers(app, &bucket).await {
        return Err(refuse(format!("job {id} has succeeded, and its outputs are where they were published")));
    }
    let second = copies.into_iter().filter(|copy| copy.kind == Kind::Input);
    let second = second
        .filter_map(|copy| copy.done.map(|(claim, _)| (copy.pool, keys::second_input(&row.uid, claim))));
    let first = match &row.spec.input {
        Input::Path(path) => keys::split_input_path(path).map(|(pool, key)| (pool, key.to_owned())),
        Input::Url(_) => None,
    };
    for (pool, key) in first.into_iter().chain(second).filter(|(pool, _)| *pool != bucket) {
        if !holds(app, &pool, &key).await {
            continue;
        }
        let Some(row) = app.upkeep.reopen(tenant, &id, &bucket, &pool).await? else { continue };
        info!(job_id = %id, tenant, from = %bucket, to = %pool, "its outputs are lost; to be made again");
        app.load.stale();
        app.nudge.notify_one();
        let location = [(header::LOCATION, format!("/jobs/{id}"))];
        let seen = jobs::seen_by_clients(app, tenant, row).await?;
        return Ok((StatusCode::ACCEPTED, location, Json(seen)).into_response());
    }
    let detail = format!("the bucket with the outputs of job {id} does not answer, and none with its input");
    Err(Problem::new(Code::ObjectsUnavailable, detail).retry_after(10).job(&id).into())
}
