//! Housekeeping on a server: see [`super::super::upkeep`].
//!
//! It touches only rows of jobs and attempts that ended and of uploads, and never waits for one that another holds: what is
//! skipped is due the next time.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::State;
use millrace_wire::{JobId, PoolId};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::super::rules::{IN_USE_AGAIN, PARTS_GRACE, SWEEPS, is_final, millis};
use super::super::upkeep::{Deleted, Due, NewUpload, Rules, Upkeep};
use super::super::{Error, Part};
use super::copies;
use super::link::Question;
use super::read::find;
use super::sql::now;
use super::{Postgres, ask};

/// Whether a job that has not ended reads the upload of this row.
macro_rules! in_use {
    () => {
        "EXISTS (SELECT FROM job WHERE job.input_path = upload.bucket || '/' || upload.key \
         AND job.state IN ('queued', 'running', 'retry_wait'))"
    };
}

/// The end of the last job that read the upload of this row.
macro_rules! last_read {
    () => {
        "(SELECT max(job.finished_at) FROM job WHERE job.input_path = upload.bucket || '/' || upload.key)"
    };
}

#[async_trait]
impl Upkeep for Postgres {
    async fn enter_upload(&self, upload: &NewUpload, kept: Duration) -> Result<(), Error> {
        ask!(&self.link, on => enter_upload(on, upload, kept))
    }

    async fn upload_complete(&self, bucket: &PoolId, key: &str, kept: Duration) -> Result<(), Error> {
        ask!(&self.link, on => upload_complete(on, bucket, key, kept))
    }

    async fn upload_gone(&self, bucket: &PoolId, key: &str) -> Result<bool, Error> {
        ask!(&self.link, on => upload_gone(on, bucket, key))
    }

    async fn outputs_gone(&self, job_uids: &[String]) -> Result<BTreeMap<String, i64>, Error> {
        if job_uids.is_empty() {
            return Ok(BTreeMap::new());
        }
        ask!(&self.link, on => outputs_gone(on, job_uids))
    }

    async fn delete_outputs(&self, tenant: &str, job_id: &JobId) -> Result<Deleted, Error> {
        ask!(&self.link, on => delete_outputs(on, tenant, job_id))
    }

    async fn take(&self, bucket: &PoolId, sweeper: &str, hold: Duration) -> Result<bool, Error> {
        ask!(&self.link, on => take(on, bucket, sweeper, hold))
    }

    async fn due(&self, bucket: &PoolId, rules: &Rules, limit: u32) -> Result<Vec<Due>, Error> {
        ask!(&self.link, on => due(on, bucket, rules, i64::from(limit)))
    }

    async fn swept(&self, bucket: &PoolId, due: &Due) -> Result<(), Error> {
        ask!(&self.link, on => swept(on, bucket, due))
    }
}

async fn enter_upload(on: &mut PgConnection, upload: &NewUpload, kept: Duration) -> Result<(), Error> {
    let after = if upload.parts.is_some() { PARTS_GRACE } else { kept };
    sqlx::query("INSERT INTO upload (bucket, key, parts, look_at) VALUES ($1, $2, $3, $4)")
        .bind(upload.bucket.as_str())
        .bind(&upload.key)
        .bind(&upload.parts)
        .bind(upload.until_ms.saturating_add(millis(after)))
        .execute(on)
        .await?;
    Ok(())
}

async fn upload_complete(
    on: &mut PgConnection,
    bucket: &PoolId,
    key: &str,
    kept: Duration,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE upload SET parts = NULL, look_at = ",
        now!(),
        " + $3 WHERE bucket = $1 AND key = $2 AND parts IS NOT NULL"
    ))
    .bind(bucket.as_str())
    .bind(key)
    .bind(millis(kept))
    .execute(on)
    .await?;
    Ok(())
}

async fn upload_gone(on: &mut PgConnection, bucket: &PoolId, key: &str) -> Result<bool, Error> {
    let gone = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM upload WHERE bucket = $1 AND key = $2 AND gone_at IS NOT NULL)",
    );
    Ok(gone.bind(bucket.as_str()).bind(key).fetch_one(on).await?)
}

async fn outputs_gone(on: &mut PgConnection, job_uids: &[String]) -> Result<BTreeMap<String, i64>, Error> {
    let rows = sqlx::query(
        "SELECT uid, outputs_gone_at FROM job WHERE uid = ANY ($1) AND outputs_gone_at IS NOT NULL",
    )
    .bind(job_uids)
    .fetch_all(on)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

async fn delete_outputs(on: &mut PgConnection, tenant: &str, job_id: &JobId) -> Result<Deleted, Error> {
    let Some(job) = find(on, tenant, job_id).await? else { return Ok(Deleted::NotFound) };
    if job.state != State::Succeeded {
        return Ok(Deleted::None(job.state));
    }
    // Who succeeded stays so: between the two nothing can happen that matters.
    sqlx::query(concat!(
        "UPDATE job SET outputs_gone_at = ",
        now!(),
        " WHERE uid = $1 AND outputs_gone_at IS NULL"
    ))
    .bind(&job.uid)
    .execute(on)
    .await?;
    Ok(Deleted::Done(Box::new(job)))
}

async fn take(on: &mut PgConnection, bucket: &PoolId, sweeper: &str, hold: Duration) -> Result<bool, Error> {
    let taken = sqlx::query(concat!(
        "INSERT INTO sweeping (bucket, sweeper, until) VALUES ($1, $2, ",
        now!(),
        " + $3) ON CONFLICT (bucket) DO UPDATE SET sweeper = excluded.sweeper, until = excluded.until \
         WHERE sweeping.sweeper = excluded.sweeper OR sweeping.until <= ",
        now!()
    ))
    .bind(bucket.as_str())
    .bind(sweeper)
    .bind(millis(hold))
    .execute(on)
    .await?;
    Ok(taken.rows_affected() == 1)
}

async fn due(on: &mut PgConnection, bucket: &PoolId, rules: &Rules, limit: i64) -> Result<Vec<Due>, Error> {
    let mut tx = on.begin().await?;
    outputs_past_their_time(&mut tx, bucket, rules, limit).await?;
    pieces_past_their_time(&mut tx, bucket, rules, limit).await?;
    uploads_past_their_time(&mut tx, bucket, rules, limit).await?;
    copies::past_their_time(&mut tx, bucket, rules, limit).await?;
    let mut due = to_remove(&mut tx, bucket, rules, limit).await?;
    due.extend(copies::to_remove(&mut tx, bucket, rules, limit).await?);
    tx.commit().await?;
    Ok(due)
}

/// Makes gone what jobs gave long enough ago. By an index for each: what is not due is not looked at.
async fn outputs_past_their_time(
    on: &mut PgConnection,
    bucket: &PoolId,
    rules: &Rules,
    limit: i64,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE job SET outputs_gone_at = ",
        now!(),
        " FROM (SELECT uid FROM job \
           WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND retention_days IS NULL AND finished_at <= ",
        now!(),
        " - $2 AND bucket = $1 ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED) due WHERE job.uid = due.uid"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.outputs_kept))
    .bind(limit)
    .execute(&mut *on)
    .await?;
    sqlx::query(concat!(
        "UPDATE job SET outputs_gone_at = ",
        now!(),
        " FROM (SELECT uid FROM job \
           WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND retention_days IS NOT NULL \
             AND finished_at + retention_days * 86400000 <= ",
        now!(),
        " AND bucket = $1 ORDER BY finished_at + retention_days * 86400000 LIMIT $2 FOR UPDATE SKIP LOCKED) due \
         WHERE job.uid = due.uid"
    ))
    .bind(bucket.as_str())
    .bind(limit)
    .execute(on)
    .await?;
    Ok(())
}

/// From then on nobody goes on with what the parts of a job left that ended.
async fn pieces_past_their_time(
    on: &mut PgConnection,
    bucket: &PoolId,
    rules: &Rules,
    limit: i64,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE plan SET closed_at = ",
        now!(),
        " FROM (SELECT plan.job_uid FROM plan JOIN job ON job.uid = plan.job_uid \
           WHERE plan.closed_at IS NULL AND plan.swept_at IS NULL AND job.bucket = $1 AND ",
        is_final!("job.state"),
        " AND job.finished_at <= ",
        now!(),
        " - $2 LIMIT $3 FOR UPDATE OF plan SKIP LOCKED) due WHERE plan.job_uid = due.job_uid"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.lost_kept))
    .bind(limit)
    .execute(on)
    .await?;
    Ok(())
}

/// Uploads: those that a job reads, and those that one read lately, are looked at later; the rest is gone. A job that is
/// accepted while this runs is not seen, and so the bytes go only after another look.
async fn uploads_past_their_time(
    on: &mut PgConnection,
    bucket: &PoolId,
    rules: &Rules,
    limit: i64,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE upload SET gone_at = NULL, look_at = ",
        now!(),
        " + $2 FROM (SELECT bucket, key FROM upload WHERE bucket = $1 AND look_at <= ",
        now!(),
        " AND parts IS NULL AND ",
        in_use!(),
        " ORDER BY look_at LIMIT $3 FOR UPDATE SKIP LOCKED) due \
         WHERE upload.bucket = due.bucket AND upload.key = due.key"
    ))
    .bind(bucket.as_str())
    .bind(millis(IN_USE_AGAIN))
    .bind(limit)
    .execute(&mut *on)
    .await?;
    sqlx::query(concat!(
        "UPDATE upload SET look_at = due.last_read + $2 FROM (SELECT bucket, key, ",
        last_read!(),
        " AS last_read FROM upload WHERE bucket = $1 AND look_at <= ",
        now!(),
        " AND parts IS NULL AND gone_at IS NULL AND ",
        last_read!(),
        " + $2 > ",
        now!(),
        " ORDER BY look_at LIMIT $3 FOR UPDATE SKIP LOCKED) due \
         WHERE upload.bucket = due.bucket AND upload.key = due.key"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.uploads_kept))
    .bind(limit)
    .execute(&mut *on)
    .await?;
    sqlx::query(concat!(
        "UPDATE upload SET gone_at = ",
        now!(),
        ", look_at = ",
        now!(),
        " + $2 FROM (SELECT bucket, key FROM upload WHERE bucket = $1 AND look_at <= ",
        now!(),
        " AND parts IS NULL AND gone_at IS NULL AND NOT ",
        in_use!(),
        " AND coalesce(",
        last_read!(),
        " + $4, 0) <= ",
        now!(),
        " ORDER BY look_at LIMIT $3 FOR UPDATE SKIP LOCKED) due \
         WHERE upload.bucket = due.bucket AND upload.key = due.key"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.delete_after))
    .bind(limit)
    .bind(millis(rules.uploads_kept))
    .execute(on)
    .await?;
    Ok(())
}

async fn to_remove(
    on: &mut PgConnection,
    bucket: &PoolId,
    rules: &Rules,
    limit: i64,
) -> Result<Vec<Due>, Error> {
    let mut due = Vec::new();
    let outputs = sqlx::query(concat!(
        "SELECT uid FROM job WHERE outputs_gone_at IS NOT NULL AND outputs_swept_at IS NULL AND bucket = $1 \
         AND outputs_gone_at <= ",
        now!(),
        " - $2 ORDER BY outputs_gone_at LIMIT $3"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.delete_after))
    .bind(limit)
    .fetch_all(&mut *on)
    .await?;
    for row in &outputs {
        due.push(Due::Outputs { job_uid: row.try_get(0)? });
    }
    // The epoch that may still publish is nobody's to remove, whatever its row says.
    let attempts = sqlx::query(concat!(
        "SELECT attempt.task_uid, task.job_uid, attempt.number, task.kind, task.ordinal FROM attempt \
         JOIN task ON task.uid = attempt.task_uid JOIN job ON job.uid = task.job_uid \
         WHERE attempt.ended_at IS NOT NULL AND attempt.outcome <> 'succeeded' AND attempt.swept < 2 \
           AND attempt.ended_at <= ",
        now!(),
        " - $2 * (attempt.swept + 1) AND job.bucket = $1 \
           AND NOT (task.state = 'running' AND task.epoch = attempt.number) \
         ORDER BY attempt.ended_at LIMIT $3"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.lost_kept))
    .bind(limit)
    .fetch_all(&mut *on)
    .await?;
    for row in &attempts {
        let number: i64 = row.try_get(2)?;
        let part = Part::read(&row.try_get::<String, _>(3)?, row.try_get(4)?)?;
        let (task_uid, job_uid) = (row.try_get(0)?, row.try_get(1)?);
        due.push(Due::Attempt { task_uid, job_uid, part, number: number as u64 });
    }
    let pieces = sqlx::query(
        "SELECT plan.job_uid, job.state = 'succeeded' FROM plan JOIN job ON job.uid = plan.job_uid \
         WHERE plan.swept_at IS NULL AND plan.closed_at IS NOT NULL AND job.bucket = $1 LIMIT $2",
    )
    .bind(bucket.as_str())
    .bind(limit)
    .fetch_all(&mut *on)
    .await?;
    for row in &pieces {
        due.push(Due::Pieces { job_uid: row.try_get(0)?, outputs: row.try_get(1)? });
    }
    let uploads = sqlx::query(concat!(
        "SELECT key, parts FROM upload WHERE bucket = $1 AND look_at <= ",
        now!(),
        " AND (parts IS NOT NULL OR gone_at IS NOT NULL AND NOT ",
        in_use!(),
        ") ORDER BY look_at LIMIT $2"
    ))
    .bind(bucket.as_str())
    .bind(limit)
    .fetch_all(on)
    .await?;
    for row in &uploads {
        let key = row.try_get(0)?;
        due.push(match row.try_get(1)? {
            Some(id) => Due::Parts { key, id },
            None => Due::Upload { key },
        });
    }
    Ok(due)
}

async fn swept(on: &mut PgConnection, bucket: &PoolId, due: &Due) -> Result<(), Error> {
    let query = match due {
        Due::Outputs { job_uid } => {
            sqlx::query(concat!("UPDATE job SET outputs_swept_at = ", now!(), " WHERE uid = $1"))
                .bind(job_uid)
        }
        Due::Attempt { task_uid, number, .. } => {
            sqlx::query("UPDATE attempt SET swept = least(swept + 1, $3) WHERE task_uid = $1 AND number = $2")
                .bind(task_uid)
                .bind(*number as i64)
                .bind(SWEEPS)
        }
        Due::Pieces { job_uid, .. } => {
            sqlx::query(concat!("UPDATE plan SET swept_at = ", now!(), " WHERE job_uid = $1")).bind(job_uid)
        }
        Due::Copy { job_uid, what } => return copies::swept(on, bucket, job_uid, *what).await,
        Due::Upload { key } | Due::Parts { key, .. } => {
            sqlx::query("DELETE FROM upload WHERE bucket = $1 AND key = $2").bind(bucket.as_str()).bind(key)
        }
    };
    query.execute(on).await?;
    Ok(())
}
