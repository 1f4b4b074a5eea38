//! Who gets what: claiming a task, and giving back what a dead worker held.

use std::time::Duration;

use millrace_wire::job::{FailureCode, State};
use millrace_wire::{JobId, JobSpec, PoolId};
use serde_json::json;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::{Claim, Error, Identity, Lease};
use super::ending::{close_attempt, count_failure, finish_job, leave};
use super::row::corrupt;
use super::{Sqlite, millis, now, record};

/// Whether a worker of pool `?1` may claim a waiting task now, where a lease is `?2` milliseconds.
///
/// Its own pool's, of course. Work that lost its worker is left to its own pool for two seconds before another pool takes
/// it: an idle neighbour beside the input comes first, and looks every second. And where no worker of the task's pool has
/// shown itself for a lease, the pool is gone, and what waits in it is anybody's.
macro_rules! claimable {
    () => {
        concat!(
            "task.state = 'waiting' AND task.not_before <= ",
            now!(),
            " AND (task.pool = ?1 OR (task.epoch > 0 AND task.not_before + 2000 <= ",
            now!(),
            ") OR NOT EXISTS (SELECT 1 FROM worker WHERE worker.pool = task.pool AND worker.seen_at > ",
            now!(),
            " - ?2))"
        )
    };
}
/// How long a job waits for each class that it rises: strict classes alone would let the lowest wait for ever.
const CLASS_AGES_EVERY: Duration = Duration::from_secs(600);
/// How far down the queue a claim looks for a job that it can read.
const HEAD_MAX: u32 = 32;
/// A waiting task and what its job needs to be readable for.
struct Head {
    task_uid: String,
    job_uid: String,
    epoch: i64,
    job_id: JobId,
    spec: JobSpec,
    bucket: PoolId,
}

impl Head {
    fn read(row: &SqliteRow) -> Result<Self, Error> {
        let (job_id, spec, bucket): (String, String, String) =
            (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
        Ok(Self {
            task_uid: row.try_get(0)?,
            job_uid: row.try_get(1)?,
            epoch: row.try_get(2)?,
            spec: serde_json::from_str(&spec).map_err(|_| corrupt("spec", &spec))?,
            bucket: bucket.parse().map_err(|_| corrupt("bucket", &bucket))?,
            job_id: job_id.parse().map_err(|_| corrupt("job_id", &job_id))?,
        })
    }
}

/// Claims for a worker: see [`super::super::Store::claim`].
pub(super) async fn claim(store: &Sqlite, by: &Identity, lease: Duration) -> Result<Option<Claim>, Error> {
    // An idle worker asks every second: look without the write lock first.
    let work: bool = sqlx::query_scalar(concat!(
        "SELECT EXISTS (SELECT 1 FROM task WHERE state = 'running' AND lease_expires_at <= ",
        now!(),
        ") OR EXISTS (SELECT 1 FROM task WHERE ",
        claimable!(),
        ")"
    ))
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .fetch_one(&store.readers)
    .await?;
    if !work {
        return Ok(None);
    }
    let mut tx = store.begin().await?;
    reap(&mut tx, store.failures_max).await?;
    let head = sqlx::query(concat!(
        "SELECT task.uid, task.job_uid, task.epoch, job.job_id, job.spec, job.bucket ",
        "FROM task JOIN job ON job.uid = task.job_uid WHERE ",
        claimable!(),
        " ORDER BY max(0, task.class - (",
        now!(),
        " - task.created_at) / ?4), task.pool <> ?1, task.created_at, task.uid LIMIT ?3"
    ))
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .bind(HEAD_MAX)
    .bind(millis(CLASS_AGES_EVERY))
    .fetch_all(&mut *tx)
    .await?;
    // A job that this version cannot read (a later one accepted it) must not stop those behind it.
    let mut unreadable = None;
    let head = head.iter().find_map(|row| Head::read(row).map_err(|error| unreadable = Some(error)).ok());
    let Some(Head { task_uid, job_uid, epoch, job_id, spec, bucket }) = head else {
        tx.commit().await?;
        return unreadable.map_or(Ok(None), Err);
    };
    let task = sqlx::query(concat!(
        "UPDATE task SET state = 'running', epoch = epoch + 1, owner = ?, owner_incarnation = ?, pool = ?, ",
        "lease_expires_at = ",
        now!(),
        " + ? WHERE uid = ? AND epoch = ? AND state = 'waiting' ",
        "RETURNING epoch, work_seconds, max(0, ",
        now!(),
        " - not_before), accepted_by"
    ))
    .bind(by.worker.as_str())
    .bind(by.incarnation as i64)
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .bind(&task_uid)
    .bind(epoch)
    .fetch_one(&mut *tx)
    .await?;
    let epoch: i64 = task.try_get(0)?;
    let row = sqlx::query(concat!(
        "UPDATE job SET state = 'running', phase = 'source', worker = ?, pool = ?, attempt = attempt + 1, epoch = ?, ",
        "progress = '{\"percent\":0.0}', started_at = COALESCE(started_at, ", now!(), ") WHERE uid = ? ",
        "RETURNING attempt"
    ))
    .bind(by.worker.as_str())
    .bind(by.pool.as_str())
    .bind(epoch)
    .bind(&job_uid)
    .fetch_one(&mut *tx)
    .await?;
    sqlx::query(concat!(
        "INSERT INTO attempt (task_uid, number, worker, pool, started_at) VALUES (?, ?, ?, ?, ",
        now!(),
        ")"
    ))
    .bind(&task_uid)
    .bind(epoch)
    .bind(by.worker.as_str())
    .bind(by.pool.as_str())
    .execute(&mut *tx)
    .await?;
    let body = json!({ "pool": by.pool, "worker": by.worker, "attempt": row.try_get::<i64, _>(0)? });
    record(&mut tx, &job_uid, "claimed", body).await?;
    let claim = Claim {
        lease: Lease { task_uid, job_uid, epoch: epoch as u64 },
        job_id,
        spec,
        bucket,
        work_seconds: task.try_get(1)?,
        accepted_by: task.try_get(3)?,
        waited: Duration::from_millis(task.try_get::<i64, _>(2)? as u64),
    };
    tx.commit().await?;
    Ok(Some(claim))
}

/// Ends leases that ran out: back to the queue, or over where a client asked or the tries are used up.
async fn reap(on: &mut SqliteConnection, failures_max: u32) -> Result<(), Error> {
    let expired = sqlx::query(concat!(
        "SELECT task.uid, task.job_uid, task.epoch, job.cancel_requested_at IS NOT NULL AS cancelled ",
        "FROM task JOIN job ON job.uid = task.job_uid ",
        "WHERE task.state = 'running' AND task.lease_expires_at <= ",
        now!(),
        " LIMIT 32"
    ))
    .fetch_all(&mut *on)
    .await?;
    for row in expired {
        let lease = Lease {
            task_uid: row.try_get(0)?,
            job_uid: row.try_get(1)?,
            epoch: row.try_get::<i64, _>(2)? as u64,
        };
        let cancelled: bool = row.try_get(3)?;
        leave(on, &lease, if cancelled { "cancelled" } else { "waiting" }).await?;
        let detail = "the worker that ran it stopped answering";
        close_attempt(on, &lease, "lease_lost", Some((FailureCode::LeaseLost.as_str(), detail))).await?;
        if cancelled {
            finish_job(on, &lease.job_uid, State::Cancelled, None).await?;
        } else {
            // No back-off: the work is sound as far as anybody knows, and its client has already waited a lease.
            count_failure(on, &lease, (FailureCode::LeaseLost, detail), Duration::ZERO, failures_max).await?;
        }
    }
    Ok(())
}
