//! How attempts and jobs end: the writes that more than one call has in common. Each runs inside its caller's transaction.

use std::time::Duration;

use millrace_wire::JobId;
use millrace_wire::job::{FailureCode, State};
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::super::rules::{end_of, is_final, millis};
use super::super::{AttemptEnd, Cancelled, Error, Identity, Lease, Manifest, Published, Retried, Room};
use super::accept::held;
use super::{Sqlite, find, now, record};

/// Ends the attempt row of a claim.
pub(super) async fn close_attempt(
    on: &mut SqliteConnection,
    lease: &Lease,
    outcome: &str,
    error: Option<(&str, &str)>,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE attempt SET ended_at = ",
        now!(),
        ", outcome = ?, code = ?, detail = ? ",
        "WHERE task_uid = ? AND number = ? AND ended_at IS NULL"
    ))
    .bind(outcome)
    .bind(error.map(|(code, _)| code))
    .bind(error.map(|(_, detail)| detail))
    .bind(&lease.task_uid)
    .bind(lease.epoch as i64)
    .execute(on)
    .await?;
    Ok(())
}

/// Takes a task out of `running`, if the lease still is the latest. The first write of whatever ends an attempt.
pub(super) async fn leave(on: &mut SqliteConnection, lease: &Lease, state: &str) -> Result<bool, Error> {
    let left = sqlx::query(
        "UPDATE task SET state = ?, owner = NULL, owner_incarnation = NULL, lease_expires_at = NULL \
         WHERE uid = ? AND epoch = ? AND state = 'running'",
    )
    .bind(state)
    .bind(&lease.task_uid)
    .bind(lease.epoch as i64)
    .execute(on)
    .await?;
    Ok(left.rows_affected() == 1)
}

/// Whether a task is all of its job, so that the job stands as it does.
pub(super) async fn is_whole(on: &mut SqliteConnection, task_uid: &str) -> Result<bool, Error> {
    let whole = sqlx::query_scalar("SELECT kind = 'video' AND ordinal = 0 FROM task WHERE uid = ?");
    Ok(whole.bind(task_uid).fetch_one(on).await?)
}

/// Ends all tasks of a job that is over; whoever runs one learns it at the next heartbeat.
async fn end_tasks(on: &mut SqliteConnection, job_uid: &str) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE attempt SET outcome = 'cancelled', ended_at = ",
        now!(),
        " WHERE ended_at IS NULL AND task_uid IN (SELECT uid FROM task WHERE job_uid = ? AND state = 'running')"
    ))
    .bind(job_uid)
    .execute(&mut *on)
    .await?;
    sqlx::query(
        "UPDATE task SET state = 'cancelled', owner = NULL, owner_incarnation = NULL, lease_expires_at = NULL \
         WHERE job_uid = ? AND state IN ('waiting', 'running')",
    )
    .bind(job_uid)
    .execute(on)
    .await?;
    Ok(())
}

/// Ends a job without outputs, and all its tasks. One that is over stays as it ended.
pub(super) async fn finish_job(
    on: &mut SqliteConnection,
    job_uid: &str,
    state: State,
    error: Option<(&str, &str)>,
) -> Result<(), Error> {
    end_tasks(on, job_uid).await?;
    let ended = sqlx::query(concat!(
        "UPDATE job SET state = ?, phase = NULL, error_code = ?, error_detail = ?, finished_at = ",
        now!(),
        " WHERE uid = ? AND NOT (",
        is_final!("state"),
        ")"
    ))
    .bind(state.as_str())
    .bind(error.map(|(code, _)| code))
    .bind(error.map(|(_, detail)| detail))
    .bind(job_uid)
    .execute(&mut *on)
    .await?;
    if ended.rows_affected() == 0 {
        return Ok(());
    }
    record(on, job_uid, state.as_str(), error.map_or(json!({}), |(code, _)| json!({ "code": code }))).await
}

/// Counts a failure and decides what it means: another try later, or the end.
pub(super) async fn count_failure(
    on: &mut SqliteConnection,
    lease: &Lease,
    (code, detail): (FailureCode, &str),
    retry_after: Duration,
    failures_max: u32,
) -> Result<(), Error> {
    let failures: i64 = sqlx::query_scalar(concat!(
        "UPDATE task SET failures = failures + 1, not_before = ",
        now!(),
        " + ? WHERE uid = ? RETURNING failures"
    ))
    .bind(millis(retry_after))
    .bind(&lease.task_uid)
    .fetch_one(&mut *on)
    .await?;
    if let Some(end) = end_of(code, failures, failures_max) {
        sqlx::query("UPDATE task SET state = 'failed' WHERE uid = ?")
            .bind(&lease.task_uid)
            .execute(&mut *on)
            .await?;
        return finish_job(on, &lease.job_uid, end, Some((code.as_str(), detail))).await;
    }
    // The other parts of the job go on.
    if !is_whole(on, &lease.task_uid).await? {
        return Ok(());
    }
    sqlx::query(
        "UPDATE job SET state = 'retry_wait', phase = NULL, error_code = ?, error_detail = ? WHERE uid = ?",
    )
    .bind(code.as_str())
    .bind(detail)
    .bind(&lease.job_uid)
    .execute(&mut *on)
    .await?;
    let body = json!({ "code": code.as_str(), "failures": failures, "retry_after_ms": millis(retry_after) });
    record(on, &lease.job_uid, "retry_wait", body).await
}

/// See [`super::super::Store::publish`].
pub(super) async fn publish(store: &Sqlite, lease: &Lease, manifest: &Manifest) -> Result<Published, Error> {
    let text = serde_json::to_string(manifest).expect("a manifest is plain data");
    let mut tx = store.begin().await?;
    let committed = sqlx::query(concat!(
        "UPDATE job SET state = 'succeeded', phase = NULL, manifest = ?, progress = '{\"percent\":100.0}', ",
        "error_code = NULL, error_detail = NULL, finished_at = ", now!(),
        " WHERE uid = ? AND state = 'running' AND phase = 'publishing' AND epoch = ? AND cancel_requested_at IS NULL ",
        "AND EXISTS (SELECT 1 FROM task WHERE uid = ? AND task.epoch = job.epoch AND task.state = 'running')"
    ))
    .bind(&text)
    .bind(&lease.job_uid)
    .bind(lease.epoch as i64)
    .bind(&lease.task_uid)
    .execute(&mut *tx)
    .await?;
    if committed.rows_affected() == 0 {
        // The answer to an earlier try may have been lost: succeeded with my manifest is success.
        let stored: Option<Option<String>> = sqlx::query_scalar("SELECT manifest FROM job WHERE uid = ?")
            .bind(&lease.job_uid)
            .fetch_optional(&mut *tx)
            .await?;
        return Ok(if stored.flatten().as_deref() == Some(&text) { Published::Yes } else { Published::No });
    }
    leave(&mut tx, lease, "done").await?;
    close_attempt(&mut tx, lease, "succeeded", None).await?;
    record(
        &mut tx,
        &lease.job_uid,
        "succeeded",
        json!({ "bytes": manifest.outputs.bytes, "epoch": lease.epoch }),
    )
    .await?;
    tx.commit().await?;
    Ok(Published::Yes)
}

/// See [`super::super::Store::end`].
pub(super) async fn end(store: &Sqlite, lease: &Lease, end: &AttemptEnd) -> Result<(), Error> {
    let mut tx = store.begin().await?;
    let to = if matches!(end, AttemptEnd::Cancelled) { "cancelled" } else { "waiting" };
    if !leave(&mut tx, lease, to).await? {
        return Ok(());
    }
    // A client's cancel that came while the attempt was ending wins over another try.
    let cancelled: bool = sqlx::query_scalar("SELECT cancel_requested_at IS NOT NULL FROM job WHERE uid = ?")
        .bind(&lease.job_uid)
        .fetch_one(&mut *tx)
        .await?;
    match end {
        _ if cancelled => {
            sqlx::query("UPDATE task SET state = 'cancelled' WHERE uid = ?")
                .bind(&lease.task_uid)
                .execute(&mut *tx)
                .await?;
            close_attempt(&mut tx, lease, "cancelled", None).await?;
            finish_job(&mut tx, &lease.job_uid, State::Cancelled, None).await?;
        }
        AttemptEnd::Cancelled => {
            close_attempt(&mut tx, lease, "cancelled", None).await?;
            finish_job(&mut tx, &lease.job_uid, State::Cancelled, None).await?;
        }
        AttemptEnd::Released => {
            close_attempt(&mut tx, lease, "released", None).await?;
            sqlx::query(concat!("UPDATE task SET not_before = ", now!(), " WHERE uid = ?"))
                .bind(&lease.task_uid)
                .execute(&mut *tx)
                .await?;
            if is_whole(&mut tx, &lease.task_uid).await? {
                sqlx::query("UPDATE job SET state = 'queued', phase = NULL WHERE uid = ?")
                    .bind(&lease.job_uid)
                    .execute(&mut *tx)
                    .await?;
                record(&mut tx, &lease.job_uid, "released", json!({})).await?;
            }
        }
        AttemptEnd::Failed { code, detail, retry_after } => {
            close_attempt(&mut tx, lease, "failed", Some((code.as_str(), detail))).await?;
            count_failure(&mut tx, lease, (*code, detail), *retry_after, store.failures_max).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

/// See [`super::super::Store::cancel`].
pub(super) async fn cancel(store: &Sqlite, tenant: &str, job_id: &JobId) -> Result<Cancelled, Error> {
    let mut tx = store.begin().await?;
    let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Cancelled::NotFound) };
    match job.state {
        State::Cancelled => return Ok(Cancelled::Done(job)),
        state if state.is_final() => return Ok(Cancelled::TooLate(job)),
        State::Running => {
            sqlx::query(concat!(
                "UPDATE job SET cancel_requested_at = COALESCE(cancel_requested_at, ",
                now!(),
                ") WHERE uid = ?"
            ))
            .bind(&job.uid)
            .execute(&mut *tx)
            .await?;
            if !job.cancel_requested {
                record(&mut tx, &job.uid, "cancel_requested", json!({})).await?;
            }
            // Of a job in parts perhaps none runs just now, and what waits shall not begin.
            sqlx::query("UPDATE task SET state = 'cancelled' WHERE job_uid = ? AND state = 'waiting'")
                .bind(&job.uid)
                .execute(&mut *tx)
                .await?;
            let running: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM task WHERE job_uid = ? AND state = 'running')",
            )
            .bind(&job.uid)
            .fetch_one(&mut *tx)
            .await?;
            if !running {
                finish_job(&mut tx, &job.uid, State::Cancelled, None).await?;
            }
        }
        _ => {
            sqlx::query("UPDATE task SET state = 'cancelled' WHERE job_uid = ? AND state = 'waiting'")
                .bind(&job.uid)
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM steal WHERE task_uid IN (SELECT uid FROM task WHERE job_uid = ?)")
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
    store: &Sqlite,
    tenant: &str,
    job_id: &JobId,
    by: &Identity,
    room: Room,
) -> Result<Retried, Error> {
    let mut tx = store.begin().await?;
    let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Retried::NotFound) };
    // What the parts of a job left is gone some time after its end, and nobody can go on with it. And a verdict on the source
    // is one on their copy of it, which is the same tomorrow.
    let closed: Option<bool> = sqlx::query_scalar("SELECT closed_at IS NOT NULL FROM plan WHERE job_uid = ?")
        .bind(&job.uid)
        .fetch_optional(&mut *tx)
        .await?;
    if closed.is_some_and(|closed| closed || job.state == State::Failed) || !job.may_be_retried() {
        return Ok(Retried::Refused(job));
    }
    if held(&mut tx, by).await? >= room.limit(job.priority) {
        return Ok(Retried::Full);
    }
    // What is done stays done; the rest begins again, and stands in its queue as if it were new.
    sqlx::query(concat!(
        "UPDATE task SET state = 'waiting', failures = 0, pool = ?2, \
         accepted_by = CASE WHEN kind = 'video' AND ordinal = 0 THEN ?3 ELSE '' END, not_before = ",
        now!(),
        ", created_at = ",
        now!(),
        " WHERE job_uid = ?1 AND state IN ('failed', 'cancelled')"
    ))
    .bind(&job.uid)
    .bind(by.pool.as_str())
    .bind(by.worker.as_str())
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "UPDATE job SET state = 'queued', phase = NULL, pool = ?2, progress = '{\"percent\":0.0}', error_code = NULL, \
         error_detail = NULL, finished_at = NULL WHERE uid = ?1",
    )
    .bind(&job.uid)
    .bind(by.pool.as_str())
    .execute(&mut *tx)
    .await?;
    record(&mut tx, &job.uid, "retried", json!({ "pool": by.pool, "worker": by.worker })).await?;
    let job = find(&mut tx, tenant, job_id).await?.expect("the row was there in this transaction");
    tx.commit().await?;
    Ok(Retried::Done(job))
}
