//! How attempts and jobs end. Each takes the task's row before the job's.

use millrace_wire::JobId;
use millrace_wire::job::State;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::super::rules::{end_of, is_final, millis};
use super::super::{AttemptEnd, Cancelled, Error, Identity, Lease, Manifest, Published, Retried, Room};
use super::read::find;
use super::sql::{event, held, now};

/// See [`super::super::Store::publish`].
pub(super) async fn publish(
    on: &mut PgConnection,
    lease: &Lease,
    manifest: &Manifest,
) -> Result<Published, Error> {
    let text = serde_json::to_string(manifest).expect("a manifest is plain data");
    let committed = sqlx::query(concat!(
        "WITH mine AS (SELECT uid, job_uid, epoch FROM task WHERE uid = $1 AND epoch = $2 AND state = 'running' FOR UPDATE), \
         j AS (UPDATE job SET state = 'succeeded', phase = NULL, manifest = $3, progress = '{\"percent\":100.0}', \
           error_code = NULL, error_detail = NULL, finished_at = ", now!(), " FROM mine \
           WHERE job.uid = mine.job_uid AND job.epoch = mine.epoch AND state = 'running' AND phase = 'publishing' \
             AND cancel_requested_at IS NULL RETURNING job.*), \
         t AS (UPDATE task SET state = 'done', owner = NULL, owner_incarnation = NULL, lease_expires_at = NULL \
           FROM j WHERE task.uid = $1 AND task.job_uid = j.uid), \
         a AS (UPDATE attempt SET ended_at = ", now!(), ", outcome = 'succeeded' FROM j \
           WHERE task_uid = $1 AND number = $2 AND ended_at IS NULL), \
         e AS (", event!("'succeeded'", "jsonb_build_object('bytes', $4::bigint, 'epoch', epoch)"), ") \
         SELECT uid FROM j"
    ))
    .bind(&lease.task_uid)
    .bind(lease.epoch as i64)
    .bind(&text)
    .bind(i64::try_from(manifest.outputs.bytes).unwrap_or(i64::MAX))
    .fetch_optional(&mut *on)
    .await?;
    if committed.is_some() {
        return Ok(Published::Yes);
    }
    // The answer to an earlier try may have been lost: succeeded with my manifest is success.
    let stored: Option<Option<String>> = sqlx::query_scalar("SELECT manifest FROM job WHERE uid = $1")
        .bind(&lease.job_uid)
        .fetch_optional(on)
        .await?;
    Ok(if stored.flatten().as_deref() == Some(&text) { Published::Yes } else { Published::No })
}

/// See [`super::super::Store::end`].
pub(super) async fn end(
    on: &mut PgConnection,
    lease: &Lease,
    end: &AttemptEnd,
    failures_max: u32,
) -> Result<(), Error> {
    let mut tx = on.begin().await?;
    if leave(&mut tx, lease).await? {
        let outcome = match end {
            AttemptEnd::Failed { .. } => "failed",
            AttemptEnd::Released => "released",
            AttemptEnd::Cancelled => "cancelled",
        };
        settle(&mut tx, lease, end, outcome, failures_max).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Takes a task out of `running`, if the lease still is the latest. The first write of whatever ends an attempt.
pub(super) async fn leave(on: &mut PgConnection, lease: &Lease) -> Result<bool, Error> {
    let left = sqlx::query(concat!(
        "UPDATE task SET state = 'waiting', owner = NULL, owner_incarnation = NULL, lease_expires_at = NULL, \
         not_before = ",
        now!(),
        " WHERE uid = $1 AND epoch = $2 AND state = 'running'"
    ))
    .bind(&lease.task_uid)
    .bind(lease.epoch as i64)
    .execute(on)
    .await?;
    Ok(left.rows_affected() == 1)
}

/// Decides what the end of an attempt means for its job: inside its caller's transaction, after [`leave`].
pub(super) async fn settle(
    on: &mut PgConnection,
    lease: &Lease,
    end: &AttemptEnd,
    outcome: &str,
    failures_max: u32,
) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT cancel_requested_at IS NOT NULL, \
           (SELECT kind = 'video' AND ordinal = 0 FROM task WHERE task.uid = $2) FROM job WHERE uid = $1 FOR UPDATE",
    )
    .bind(&lease.job_uid)
    .bind(&lease.task_uid)
    .fetch_one(&mut *on)
    .await?;
    let (cancelled, whole): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    // A client's cancel that came while the attempt was ending wins over another try.
    let end = if cancelled { &AttemptEnd::Cancelled } else { end };
    // The server takes no NUL in a text.
    let error = match end {
        AttemptEnd::Failed { code, detail, .. } => Some((code.as_str(), detail.replace('\0', "\u{fffd}"))),
        _ => None,
    };
    let error = error.as_ref().map(|(code, detail)| (*code, detail.as_str()));
    let outcome = if cancelled && outcome != "lease_lost" { "cancelled" } else { outcome };
    close_attempt(on, lease, outcome, error).await?;
    match end {
        AttemptEnd::Cancelled => {
            set_task(on, lease, "cancelled").await?;
            finish_job(on, &lease.job_uid, State::Cancelled, None).await
        }
        // The other parts of the job go on.
        AttemptEnd::Released if !whole => Ok(()),
        AttemptEnd::Released => {
            sqlx::query(concat!(
                "WITH j AS (UPDATE job SET state = 'queued', phase = NULL WHERE uid = $1 RETURNING *) ",
                event!("'released'", "'{}'::jsonb")
            ))
            .bind(&lease.job_uid)
            .execute(on)
            .await?;
            Ok(())
        }
        AttemptEnd::Failed { code, retry_after, .. } => {
            let failures: i64 = sqlx::query_scalar(
                "UPDATE task SET failures = failures + 1, not_before = not_before + $2 WHERE uid = $1 RETURNING failures",
            )
            .bind(&lease.task_uid)
            .bind(millis(*retry_after))
            .fetch_one(&mut *on)
            .await?;
            if let Some(state) = end_of(*code, failures, failures_max) {
                set_task(on, lease, "failed").await?;
                return finish_job(on, &lease.job_uid, state, error).await;
            }
            if !retry_after.is_zero() {
                set_task(on, lease, "delayed").await?;
            }
            if !whole {
                return Ok(());
            }
            sqlx::query(concat!(
                "WITH j AS (UPDATE job SET state = 'retry_wait', phase = NULL, error_code = $2, error_detail = $3 \
                 WHERE uid = $1 RETURNING *) ",
                event!(
                    "'retry_wait'",
                    "jsonb_build_object('code', error_code, 'failures', $4::bigint, 'retry_after_ms', $5::bigint)"
                )
            ))
            .bind(&lease.job_uid)
            .bind(error.map(|(code, _)| code))
            .bind(error.map(|(_, detail)| detail))
            .bind(failures)
            .bind(millis(*retry_after))
            .execute(on)
            .await?;
            Ok(())
        }
    }
}

async fn set_task(on: &mut PgConnection, lease: &Lease, state: &str) -> Result<(), Error> {
    sqlx::query("UPDATE task SET state = $2 WHERE uid = $1")
        .bind(&lease.task_uid)
        .bind(state)
        .execute(on)
        .await?;
    Ok(())
}

pub(super) async fn close_attempt(
    on: &mut PgConnection,
    lease: &Lease,
    outcome: &str,
    error: Option<(&str, &str)>,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE attempt SET ended_at = ",
        now!(),
        ", outcome = $3, code = $4, detail = $5 WHERE task_uid = $1 AND number = $2 AND ended_at IS NULL"
    ))
    .bind(&lease.task_uid)
    .bind(lease.epoch as i64)
    .bind(outcome)
    .bind(error.map(|(code, _)| code))
    .bind(error.map(|(_, detail)| detail))
    .execute(on)
    .await?;
    Ok(())
}

/// Ends a job without outputs, and all its tasks but those that somebody is at just now; they find it over. One that is over
/// stays as it ended.
pub(super) async fn finish_job(
    on: &mut PgConnection,
    job_uid: &str,
    state: State,
    error: Option<(&str, &str)>,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "WITH j AS (UPDATE job SET state = $2, phase = NULL, error_code = $3, error_detail = $4, finished_at = ",
        now!(),
        " WHERE uid = $1 AND NOT (",
        is_final!("state"),
        ") RETURNING *), \
         t AS (UPDATE task SET state = 'cancelled', owner = NULL, owner_incarnation = NULL, lease_expires_at = NULL \
           FROM (SELECT uid FROM task WHERE job_uid = $1 AND state IN ('waiting', 'delayed', 'running') \
             FOR UPDATE SKIP LOCKED) other WHERE task.uid = other.uid RETURNING task.uid), \
         a AS (UPDATE attempt SET ended_at = ",
        now!(),
        ", outcome = 'cancelled' FROM t WHERE task_uid = t.uid AND ended_at IS NULL) ",
        event!("state", "jsonb_strip_nulls(jsonb_build_object('code', error_code))")
    ))
    .bind(job_uid)
    .bind(state.as_str())
    .bind(error.map(|(code, _)| code))
    .bind(error.map(|(_, detail)| detail))
    .execute(on)
    .await?;
    Ok(())
}

/// See [`super::super::Store::cancel`].
pub(super) async fn cancel(on: &mut PgConnection, tenant: &str, job_id: &JobId) -> Result<Cancelled, Error> {
    let mut tx = on.begin().await?;
    lock_tasks(&mut tx, tenant, job_id).await?;
    let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Cancelled::NotFound) };
    match job.state {
        State::Cancelled => return Ok(Cancelled::Done(job)),
        state if state.is_final() => return Ok(Cancelled::TooLate(job)),
        State::Running => {
            sqlx::query(concat!(
                "WITH j AS (UPDATE job SET cancel_requested_at = ",
                now!(),
                " WHERE uid = $1 AND cancel_requested_at IS NULL RETURNING *) ",
                event!("'cancel_requested'", "'{}'::jsonb")
            ))
            .bind(&job.uid)
            .execute(&mut *tx)
            .await?;
            // Of a job in parts perhaps none runs just now, and what waits shall not begin.
            sqlx::query(
                "UPDATE task SET state = 'cancelled' WHERE job_uid = $1 AND state IN ('waiting', 'delayed')",
            )
            .bind(&job.uid)
            .execute(&mut *tx)
            .await?;
            let running: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM task WHERE job_uid = $1 AND state = 'running')",
            )
            .bind(&job.uid)
            .fetch_one(&mut *tx)
            .await?;
            if !running {
                finish_job(&mut tx, &job.uid, State::Cancelled, None).await?;
            }
        }
        _ => {
            sqlx::query(
                "UPDATE task SET state = 'cancelled' WHERE job_uid = $1 AND state IN ('waiting', 'delayed')",
            )
            .bind(&job.uid)
            .execute(&mut *tx)
            .await?;
            sqlx::query("DELETE FROM steal USING task WHERE steal.task_uid = task.uid AND task.job_uid = $1")
                .bind(&job.uid)
                .execute(&mut *tx)
                .await?;
            finish_job(&mut tx, &job.uid, State::Cancelled, None).await?;
        }
    }
    let job = find(&mut tx, tenant, job_id).await?.expect("the row was there in this transaction");
    tx.commit().await?;
    Ok(if job.state == State::Cancelled { Cancelled::Done(job) } else { Cancelled::Requested(job) })
}

/// See [`super::super::Store::retry`].
pub(super) async fn retry(
    on: &mut PgConnection,
    tenant: &str,
    job_id: &JobId,
    by: &Identity,
    room: Room,
) -> Result<Retried, Error> {
    let mut tx = on.begin().await?;
    lock_tasks(&mut tx, tenant, job_id).await?;
    let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Retried::NotFound) };
    // What the parts of a job left is gone some time after its end, and nobody can go on with it. And a verdict on the source
    // is one on their copy of it, which is the same tomorrow.
    let closed: Option<bool> =
        sqlx::query_scalar("SELECT closed_at IS NOT NULL FROM plan WHERE job_uid = $1 FOR UPDATE")
            .bind(&job.uid)
            .fetch_optional(&mut *tx)
            .await?;
    if closed.is_some_and(|closed| closed || job.state == State::Failed) || !job.may_be_retried() {
        return Ok(Retried::Refused(job));
    }
    let held: i64 = sqlx::query_scalar(held!())
        .bind(by.worker.as_str())
        .bind(room.limit(job.priority))
        .fetch_one(&mut *tx)
        .await?;
    if held >= room.limit(job.priority) {
        return Ok(Retried::Full);
    }
    // What is done stays done; the rest begins again, and stands in its queue as if it were new.
    sqlx::query(concat!(
        "UPDATE task SET state = 'waiting', failures = 0, pool = $2, \
           accepted_by = CASE WHEN kind = 'video' AND ordinal = 0 THEN $3 ELSE '' END, \
           not_before = clock.now, created_at = clock.now FROM (SELECT ",
        now!(),
        " AS now) clock WHERE job_uid = $1 AND state IN ('failed', 'cancelled')"
    ))
    .bind(&job.uid)
    .bind(by.pool.as_str())
    .bind(by.worker.as_str())
    .execute(&mut *tx)
    .await?;
    sqlx::query(concat!(
        "WITH j AS (UPDATE job SET state = 'queued', phase = NULL, pool = $2, progress = '{\"percent\":0.0}', \
           error_code = NULL, error_detail = NULL, finished_at = NULL WHERE uid = $1 RETURNING *) ",
        event!("'retried'", "jsonb_build_object('pool', pool, 'worker', $3::text)")
    ))
    .bind(&job.uid)
    .bind(by.pool.as_str())
    .bind(by.worker.as_str())
    .execute(&mut *tx)
    .await?;
    let job = find(&mut tx, tenant, job_id).await?.expect("the row was there in this transaction");
    tx.commit().await?;
    Ok(Retried::Done(job))
}

/// Takes the rows of a job's tasks: before the job's own, as everybody does.
pub(super) async fn lock_tasks(on: &mut PgConnection, tenant: &str, job_id: &JobId) -> Result<(), Error> {
    sqlx::query(
        "SELECT FROM task WHERE job_uid = (SELECT uid FROM job WHERE tenant = $1 AND job_id = $2) \
         ORDER BY uid FOR UPDATE",
    )
    .bind(tenant)
    .bind(job_id.as_str())
    .execute(on)
    .await?;
    Ok(())
}
