//! Who gets what: claiming a task, and giving back what a dead worker held.

use std::time::Duration;

use millrace_wire::job::State;
use serde_json::json;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::row::{Wanted, pool_named};
use super::super::rules::{CLASS_AGES_EVERY, HEAD_MAX, HEAD_START, SILENT, millis};
use super::super::{Claim, Error, Identity, Lease, Part};
use super::ending::{close_attempt, count_failure, finish_job, leave};
use super::parts::begin_anew;
use super::{Sqlite, now, record};

/// Whether a task's pool is worker `?4`'s own `?1`, or gone: no worker of it has shown itself for a lease of `?2` milliseconds,
/// and what waits in it is anybody's.
macro_rules! own_or_gone {
    () => {
        concat!(
            "(task.pool = ?1 OR NOT EXISTS (SELECT 1 FROM worker WHERE worker.pool = task.pool AND worker.seen_at > ",
            now!(),
            " - ?2))"
        )
    };
}

/// Whether worker `?4` of pool `?1` may claim a waiting task now, where a lease is `?2` milliseconds.
///
/// Its own pool's, of course, and a gone pool's. A whole job that lost its worker is left to its own pool for `?3`
/// milliseconds before another pool takes it. What an encoder began is for equal ones.
macro_rules! claimable {
    () => {
        concat!(
            "task.state = 'waiting' AND task.not_before <= ",
            now!(),
            " AND (task.encoder = '' OR task.encoder = (SELECT encoder FROM worker WHERE name = ?4))",
            " AND (",
            own_or_gone!(),
            " OR (task.epoch > 0 AND task.kind = 'video' AND task.ordinal = 0 AND task.not_before + ?3 <= ",
            now!(),
            "))"
        )
    };
}

/// Whether a waiting task is for an encoder that is not heard of any more, and worker `?4` may begin it anew.
macro_rules! abandoned {
    () => {
        concat!(
            "task.state = 'waiting' AND task.encoder <> '' AND ",
            own_or_gone!(),
            " AND EXISTS (SELECT 1 FROM worker me WHERE me.name = ?4 AND me.encoder NOT IN ('', task.encoder) \
              AND task.not_before + me.patience <= ",
            now!(),
            " AND NOT EXISTS (SELECT 1 FROM worker WHERE worker.pool = task.pool \
              AND worker.encoder = task.encoder AND worker.beat_at > ",
            now!(),
            " - me.patience))"
        )
    };
}

/// Claims for a worker: see [`super::super::Store::claim`].
pub(super) async fn claim(store: &Sqlite, by: &Identity, lease: Duration) -> Result<Option<Claim>, Error> {
    // An idle worker asks every second: look without the write lock first.
    let work: bool = sqlx::query_scalar(concat!(
        "SELECT EXISTS (SELECT 1 FROM task WHERE state = 'running' AND lease_expires_at <= ",
        now!(),
        ") OR EXISTS (SELECT 1 FROM task WHERE ",
        claimable!(),
        ") OR EXISTS (SELECT 1 FROM task WHERE ",
        abandoned!(),
        ") OR EXISTS (SELECT 1 FROM steal WHERE pool = ?1 AND at <= ",
        now!(),
        ")"
    ))
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .bind(millis(HEAD_START))
    .bind(by.worker.as_str())
    .fetch_one(&store.readers)
    .await?;
    if !work {
        return Ok(None);
    }
    let mut tx = store.begin().await?;
    reap(&mut tx, store.failures_max).await?;
    let abandoned: Option<String> = sqlx::query_scalar(concat!(
        "SELECT task.job_uid FROM task WHERE ",
        abandoned!(),
        " ORDER BY task.created_at LIMIT 1"
    ))
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .bind(millis(HEAD_START))
    .bind(by.worker.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(job_uid) = abandoned {
        begin_anew(&mut tx, &job_uid).await?;
    }
    let mut head = sqlx::query(concat!(
        "SELECT task.uid, task.job_uid, task.epoch, task.pool, task.kind, task.ordinal, job.job_id, job.spec, job.bucket, ",
        "plan.plan FROM task JOIN job ON job.uid = task.job_uid LEFT JOIN plan ON plan.job_uid = job.uid WHERE ",
        claimable!(),
        " ORDER BY max(0, task.class - (",
        now!(),
        " - task.created_at) / ?6), task.pool <> ?1, task.created_at, task.uid LIMIT ?5"
    ))
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .bind(millis(HEAD_START))
    .bind(by.worker.as_str())
    .bind(HEAD_MAX)
    .bind(millis(CLASS_AGES_EVERY))
    .fetch_all(&mut *tx)
    .await?;
    let steals = head.is_empty();
    if steals {
        head = stealable(&mut tx, by).await?;
    }
    // A job that this version cannot read (a later one accepted it) must not stop those behind it.
    let mut unreadable = None;
    let readable = head.iter().find_map(|row| match Wanted::read(row) {
        Ok(wanted) => Some((row, wanted)),
        Err(error) => {
            unreadable = Some(error);
            None
        }
    });
    let Some((row, Wanted { job_id, spec, bucket, part, plan })) = readable else {
        tx.commit().await?;
        return unreadable.map_or(Ok(None), Err);
    };
    let (task_uid, job_uid, epoch): (String, String, i64) =
        (row.try_get("uid")?, row.try_get("job_uid")?, row.try_get("epoch")?);
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
    let stolen_from: Option<String> = if steals { Some(row.try_get("pool")?) } else { None };
    let epoch: i64 = task.try_get(0)?;
    sqlx::query("DELETE FROM steal WHERE task_uid = ?").bind(&task_uid).execute(&mut *tx).await?;
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
    if part == Part::Whole {
        begin(&mut tx, by, &job_uid, epoch, stolen_from.as_deref()).await?;
    } else {
        go_on(&mut tx, by, &job_uid, (part == Part::Finish).then_some(epoch)).await?;
    }
    let claim = Claim {
        lease: Lease { task_uid, job_uid, epoch: epoch as u64 },
        job_id,
        spec,
        bucket,
        work_seconds: task.try_get(1)?,
        accepted_by: task.try_get(3)?,
        waited: Duration::from_millis(task.try_get::<i64, _>(2)? as u64),
        stolen_from: stolen_from.map(|pool| pool_named(&pool)).transpose()?,
        part,
        plan,
    };
    tx.commit().await?;
    Ok(Some(claim))
}

/// Lets a job begin with the claim of its first task.
async fn begin(
    on: &mut SqliteConnection,
    by: &Identity,
    job_uid: &str,
    epoch: i64,
    stolen_from: Option<&str>,
) -> Result<(), Error> {
    let attempt: i64 = sqlx::query_scalar(concat!(
        "UPDATE job SET state = 'running', phase = 'source', worker = ?, pool = ?, attempt = attempt + 1, epoch = ?, ",
        "progress = '{\"percent\":0.0}', started_at = COALESCE(started_at, ", now!(), ") WHERE uid = ? ",
        "RETURNING attempt"
    ))
    .bind(by.worker.as_str())
    .bind(by.pool.as_str())
    .bind(epoch)
    .bind(job_uid)
    .fetch_one(&mut *on)
    .await?;
    let mut body = json!({ "pool": by.pool, "worker": by.worker, "attempt": attempt });
    if let Some(from) = stolen_from {
        body["stolen_from"] = from.into();
    }
    record(on, job_uid, "claimed", body).await
}

/// Lets a job go on with the claim of a part; `publisher` is the claim that may publish from now on.
async fn go_on(
    on: &mut SqliteConnection,
    by: &Identity,
    job_uid: &str,
    publisher: Option<i64>,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE job SET state = 'running', phase = COALESCE(phase, 'encoding'), epoch = COALESCE(?2, epoch), \
         worker = ?3 WHERE uid = ?1",
    )
    .bind(job_uid)
    .bind(publisher)
    .bind(by.worker.as_str())
    .execute(on)
    .await?;
    Ok(())
}

/// What a worker may steal: of the highest class what is longest past its price. A class rises with time, as in a queue, but
/// counted from the price on.
async fn stealable(on: &mut SqliteConnection, by: &Identity) -> Result<Vec<SqliteRow>, Error> {
    let head = sqlx::query(concat!(
        "SELECT task.uid, task.job_uid, task.epoch, task.pool, task.kind, task.ordinal, job.job_id, job.spec, job.bucket, ",
        "NULL AS plan FROM steal JOIN task ON task.uid = steal.task_uid JOIN job ON job.uid = task.job_uid ",
        "WHERE steal.pool = ?1 AND steal.at <= ",
        now!(),
        " AND task.state = 'waiting' AND task.epoch = 0 ORDER BY max(0, steal.class - (",
        now!(),
        " - steal.at) / ?3), steal.at, steal.task_uid LIMIT ?2"
    ))
    .bind(by.pool.as_str())
    .bind(HEAD_MAX)
    .bind(millis(CLASS_AGES_EVERY))
    .fetch_all(on)
    .await?;
    Ok(head)
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
        close_attempt(on, &lease, "lease_lost", Some((SILENT.0.as_str(), SILENT.1))).await?;
        if cancelled {
            finish_job(on, &lease.job_uid, State::Cancelled, None).await?;
        } else {
            // No back-off: the work is sound as far as anybody knows, and its client has already waited a lease.
            count_failure(on, &lease, SILENT, Duration::ZERO, failures_max).await?;
        }
    }
    Ok(())
}
