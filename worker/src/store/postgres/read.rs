//! What only reads.

use millrace_wire::JobId;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::super::row::job_row;
use super::super::{Backlog, Error, Event, Filter, Identity, JobRow, Lease};

/// Jobs of a queue that are counted. Beyond it a pool is busy for days, and counting on would keep the database busy, too:
/// every worker asks every second.
const BACKLOG_COUNTED_MAX: i64 = 20_000;

pub(super) async fn find(
    on: &mut PgConnection,
    tenant: &str,
    job_id: &JobId,
) -> Result<Option<JobRow>, Error> {
    let row = sqlx::query("SELECT * FROM job WHERE tenant = $1 AND job_id = $2")
        .bind(tenant)
        .bind(job_id.as_str())
        .fetch_optional(on)
        .await?;
    row.as_ref().map(job_row).transpose()
}

pub(super) async fn jobs(on: &mut PgConnection, tenant: &str, filter: &Filter) -> Result<Vec<JobRow>, Error> {
    let before = filter.before.as_deref().unwrap_or("~"); // sorts after every UUID
    let limit = i64::from(filter.limit);
    let query = match filter.state {
        Some(state) => sqlx::query(
            "SELECT * FROM job WHERE tenant = $1 AND uid < $2 AND state = $4 ORDER BY uid DESC LIMIT $3",
        )
        .bind(tenant)
        .bind(before)
        .bind(limit)
        .bind(state.as_str()),
        None => sqlx::query("SELECT * FROM job WHERE tenant = $1 AND uid < $2 ORDER BY uid DESC LIMIT $3")
            .bind(tenant)
            .bind(before)
            .bind(limit),
    };
    query.fetch_all(on).await?.iter().map(job_row).collect()
}

pub(super) async fn cancellations(on: &mut PgConnection, by: &Identity) -> Result<Vec<Lease>, Error> {
    let rows = sqlx::query(
        "SELECT task.uid, task.job_uid, task.epoch FROM task JOIN job ON job.uid = task.job_uid \
         WHERE task.state = 'running' AND task.owner = $1 AND job.cancel_requested_at IS NOT NULL",
    )
    .bind(by.worker.as_str())
    .fetch_all(on)
    .await?;
    rows.iter().map(lease).collect()
}

/// Reads `uid, job_uid, epoch` of a task.
pub(super) fn lease(row: &PgRow) -> Result<Lease, Error> {
    let epoch: i64 = row.try_get("epoch")?;
    Ok(Lease { task_uid: row.try_get("uid")?, job_uid: row.try_get("job_uid")?, epoch: epoch as u64 })
}

/// Of a queue longer than [`BACKLOG_COUNTED_MAX`] only so many count.
pub(super) async fn backlog(on: &mut PgConnection, of: &Identity) -> Result<Backlog, Error> {
    let row = sqlx::query(
        "SELECT here.n, here.work, pool.n, pool.work FROM \
         (SELECT count(*) AS n, coalesce(sum(work_seconds), 0) AS work FROM (SELECT work_seconds FROM task \
            WHERE state IN ('waiting', 'delayed') AND accepted_by = $1 LIMIT $3) h) here, \
         (SELECT count(*) AS n, coalesce(sum(work_seconds), 0) AS work FROM (SELECT work_seconds FROM task \
            WHERE state IN ('waiting', 'delayed') AND pool = $2 LIMIT $3) p) pool",
    )
    .bind(of.worker.as_str())
    .bind(of.pool.as_str())
    .bind(BACKLOG_COUNTED_MAX)
    .fetch_one(on)
    .await?;
    let count = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Backlog {
        accepted_here: count(row.try_get(0)?),
        accepted_here_work: row.try_get(1)?,
        pool: count(row.try_get(2)?),
        pool_work: row.try_get(3)?,
    })
}

pub(super) async fn events(
    on: &mut PgConnection,
    job_uid: &str,
    after: i64,
    limit: u32,
) -> Result<Vec<Event>, Error> {
    let rows = sqlx::query(
        "SELECT seq, kind, body::text FROM event WHERE job_uid = $1 AND seq > $2 ORDER BY seq LIMIT $3",
    )
    .bind(job_uid)
    .bind(after)
    .bind(i64::from(limit))
    .fetch_all(on)
    .await?;
    let event =
        |row: &PgRow| Ok(Event { seq: row.try_get(0)?, kind: row.try_get(1)?, body: row.try_get(2)? });
    rows.iter().map(event).collect()
}
