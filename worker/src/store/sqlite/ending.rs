//! How attempts and jobs end: the writes that more than one call has in common. Each runs inside its caller's transaction.

use std::time::Duration;

use millrace_wire::job::{FailureCode, State};
use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::super::{Error, Lease};
use super::{millis, now, record};

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

pub(super) async fn finish_job(
    on: &mut SqliteConnection,
    job_uid: &str,
    state: State,
    error: Option<(&str, &str)>,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE job SET state = ?, phase = NULL, error_code = ?, error_detail = ?, finished_at = ",
        now!(),
        " WHERE uid = ?"
    ))
    .bind(state.as_str())
    .bind(error.map(|(code, _)| code))
    .bind(error.map(|(_, detail)| detail))
    .bind(job_uid)
    .execute(&mut *on)
    .await?;
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
    let error = Some((code.as_str(), detail));
    if code.is_permanent() {
        sqlx::query("UPDATE task SET state = 'failed' WHERE uid = ?")
            .bind(&lease.task_uid)
            .execute(&mut *on)
            .await?;
        return finish_job(on, &lease.job_uid, State::Failed, error).await;
    }
    let failures: i64 = sqlx::query_scalar(concat!(
        "UPDATE task SET failures = failures + 1, not_before = ",
        now!(),
        " + ? WHERE uid = ? RETURNING failures"
    ))
    .bind(millis(retry_after))
    .bind(&lease.task_uid)
    .fetch_one(&mut *on)
    .await?;
    if failures >= i64::from(failures_max) {
        sqlx::query("UPDATE task SET state = 'failed' WHERE uid = ?")
            .bind(&lease.task_uid)
            .execute(&mut *on)
            .await?;
        return finish_job(on, &lease.job_uid, State::Dead, error).await;
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
