//! Housekeeping on the embedded store: see [`super::super::upkeep`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::State;
use millrace_wire::{JobId, PoolId};
use sqlx::Row;

use super::super::rules::{IN_USE_AGAIN, PARTS_GRACE, SWEEPS, is_final, millis};
use super::super::upkeep::{Deleted, Due, NewUpload, Rules, Upkeep};
use super::super::{Error, Part};
use super::{Sqlite, copies, find, now};

/// Whether a job that has not ended reads the upload of this row.
macro_rules! in_use {
    () => {
        "EXISTS (SELECT 1 FROM job WHERE json_extract(job.spec, '$.input_path') = upload.bucket || '/' || upload.key \
         AND job.state IN ('queued', 'running', 'retry_wait'))"
    };
}

/// The end of the last job that read the upload of this row.
macro_rules! last_read {
    () => {
        "(SELECT max(job.finished_at) FROM job \
         WHERE json_extract(job.spec, '$.input_path') = upload.bucket || '/' || upload.key)"
    };
}

#[async_trait]
impl Upkeep for Sqlite {
    async fn enter_upload(&self, upload: &NewUpload, kept: Duration) -> Result<(), Error> {
        let after = if upload.parts.is_some() { PARTS_GRACE } else { kept };
        sqlx::query("INSERT INTO upload (bucket, key, parts, look_at) VALUES (?, ?, ?, ?)")
            .bind(upload.bucket.as_str())
            .bind(&upload.key)
            .bind(&upload.parts)
            .bind(upload.until_ms.saturating_add(millis(after)))
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn upload_complete(&self, bucket: &PoolId, key: &str, kept: Duration) -> Result<(), Error> {
        let query = concat!(
            "UPDATE upload SET parts = NULL, look_at = ",
            now!(),
            " + ? WHERE bucket = ? AND key = ? AND parts IS NOT NULL"
        );
        sqlx::query(query).bind(millis(kept)).bind(bucket.as_str()).bind(key).execute(&self.writer).await?;
        Ok(())
    }

    async fn upload_gone(&self, bucket: &PoolId, key: &str) -> Result<bool, Error> {
        let gone = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM upload WHERE bucket = ? AND key = ? AND gone_at IS NOT NULL)",
        );
        Ok(gone.bind(bucket.as_str()).bind(key).fetch_one(&self.readers).await?)
    }

    async fn outputs_gone(&self, job_uids: &[String]) -> Result<BTreeMap<String, i64>, Error> {
        if job_uids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = sqlx::query(
            "SELECT uid, outputs_gone_at FROM job \
             WHERE uid IN (SELECT value FROM json_each(?)) AND outputs_gone_at IS NOT NULL",
        )
        .bind(serde_json::to_string(job_uids).expect("names are plain text"))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    async fn delete_outputs(&self, tenant: &str, job_id: &JobId) -> Result<Deleted, Error> {
        let mut tx = self.begin().await?;
        let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Deleted::NotFound) };
        if job.state != State::Succeeded {
            return Ok(Deleted::None(job.state));
        }
        sqlx::query(concat!(
            "UPDATE job SET outputs_gone_at = COALESCE(outputs_gone_at, ",
            now!(),
            ") WHERE uid = ?"
        ))
        .bind(&job.uid)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Deleted::Done(Box::new(job)))
    }

    async fn take(&self, bucket: &PoolId, sweeper: &str, hold: Duration) -> Result<bool, Error> {
        let taken = sqlx::query(concat!(
            "INSERT INTO sweeping (bucket, sweeper, until) VALUES (?, ?, ",
            now!(),
            " + ?) ON CONFLICT (bucket) DO UPDATE SET sweeper = excluded.sweeper, until = excluded.until ",
            "WHERE sweeping.sweeper = excluded.sweeper OR sweeping.until <= ",
            now!()
        ))
        .bind(bucket.as_str())
        .bind(sweeper)
        .bind(millis(hold))
        .execute(&self.writer)
        .await?;
        Ok(taken.rows_affected() == 1)
    }

    async fn due(&self, bucket: &PoolId, rules: &Rules, limit: u32) -> Result<Vec<Due>, Error> {
        self.make_gone(bucket, rules, limit).await?;
        let text = |row: &sqlx::sqlite::SqliteRow, column| row.try_get::<String, _>(column);
        let mut due = Vec::new();
        let outputs = sqlx::query(concat!(
            "SELECT uid FROM job WHERE outputs_gone_at IS NOT NULL AND outputs_swept_at IS NULL AND bucket = ? ",
            "AND outputs_gone_at <= ",
            now!(),
            " - ? ORDER BY outputs_gone_at LIMIT ?"
        ))
        .bind(bucket.as_str())
        .bind(millis(rules.delete_after))
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        for row in &outputs {
            due.push(Due::Outputs { job_uid: text(row, 0)? });
        }
        // The epoch that may still publish is nobody's to remove, whatever its row says.
        let attempts = sqlx::query(concat!(
            "SELECT attempt.task_uid, task.job_uid, attempt.number, task.kind, task.ordinal FROM attempt ",
            "JOIN task ON task.uid = attempt.task_uid JOIN job ON job.uid = task.job_uid ",
            "WHERE attempt.ended_at IS NOT NULL AND attempt.outcome <> 'succeeded' AND attempt.swept < 2 ",
            "AND attempt.ended_at <= ",
            now!(),
            " - ?2 * (attempt.swept + 1) AND job.bucket = ?1 ",
            "AND NOT (task.state = 'running' AND task.epoch = attempt.number) ",
            "ORDER BY attempt.ended_at LIMIT ?3"
        ))
        .bind(bucket.as_str())
        .bind(millis(rules.lost_kept))
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        for row in &attempts {
            let number: i64 = row.try_get(2)?;
            let part = Part::read(&text(row, 3)?, row.try_get(4)?)?;
            let (task_uid, job_uid) = (text(row, 0)?, text(row, 1)?);
            due.push(Due::Attempt { task_uid, job_uid, part, number: number as u64 });
        }
        let pieces = sqlx::query(
            "SELECT plan.job_uid, job.state = 'succeeded' FROM plan JOIN job ON job.uid = plan.job_uid \
             WHERE plan.swept_at IS NULL AND plan.closed_at IS NOT NULL AND job.bucket = ? LIMIT ?",
        )
        .bind(bucket.as_str())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        for row in &pieces {
            due.push(Due::Pieces { job_uid: text(row, 0)?, outputs: row.try_get(1)? });
        }
        let uploads = sqlx::query(concat!(
            "SELECT key, parts FROM upload WHERE bucket = ? AND look_at <= ",
            now!(),
            " AND (parts IS NOT NULL OR gone_at IS NOT NULL AND NOT ",
            in_use!(),
            ") ORDER BY look_at LIMIT ?"
        ))
        .bind(bucket.as_str())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        for row in &uploads {
            let key = text(row, 0)?;
            due.push(match row.try_get::<Option<String>, _>(1)? {
                Some(id) => Due::Parts { key, id },
                None => Due::Upload { key },
            });
        }
        due.extend(copies::to_remove(self, bucket, rules, limit).await?);
        Ok(due)
    }

    async fn swept(&self, bucket: &PoolId, due: &Due) -> Result<(), Error> {
        let query = match due {
            Due::Outputs { job_uid } => {
                sqlx::query(concat!("UPDATE job SET outputs_swept_at = ", now!(), " WHERE uid = ?"))
                    .bind(job_uid)
            }
            Due::Attempt { task_uid, number, .. } => {
                sqlx::query("UPDATE attempt SET swept = min(swept + 1, ?) WHERE task_uid = ? AND number = ?")
                    .bind(SWEEPS)
                    .bind(task_uid)
                    .bind(*number as i64)
            }
            Due::Pieces { job_uid, .. } => {
                sqlx::query(concat!("UPDATE plan SET swept_at = ", now!(), " WHERE job_uid = ?"))
                    .bind(job_uid)
            }
            Due::Copy { job_uid, what } => return copies::swept(self, bucket, job_uid, *what).await,
            Due::Upload { key } | Due::Parts { key, .. } => {
                sqlx::query("DELETE FROM upload WHERE bucket = ? AND key = ?").bind(bucket.as_str()).bind(key)
            }
        };
        query.execute(&self.writer).await?;
        Ok(())
    }
}

impl Sqlite {
    /// Makes gone what is past its time. One transaction: a job that is accepted names an upload before it or after it.
    async fn make_gone(&self, bucket: &PoolId, rules: &Rules, limit: u32) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        // Each by an index of its own: what is not due is not looked at.
        let by_default = concat!(
            "UPDATE job SET outputs_gone_at = ",
            now!(),
            " WHERE uid IN (SELECT uid FROM job ",
            "WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND json_extract(spec, '$.retention_days') IS NULL ",
            "AND finished_at <= ",
            now!(),
            " - ? AND bucket = ? ORDER BY finished_at LIMIT ?)"
        );
        sqlx::query(by_default)
            .bind(millis(rules.outputs_kept))
            .bind(bucket.as_str())
            .bind(limit)
            .execute(&mut *tx)
            .await?;
        let by_spec = concat!(
            "UPDATE job SET outputs_gone_at = ",
            now!(),
            " WHERE uid IN (SELECT uid FROM job ",
            "WHERE state = 'succeeded' AND outputs_gone_at IS NULL AND json_extract(spec, '$.retention_days') IS NOT NULL ",
            "AND finished_at + json_extract(spec, '$.retention_days') * 86400000 <= ",
            now!(),
            " AND bucket = ? LIMIT ?)"
        );
        sqlx::query(by_spec).bind(bucket.as_str()).bind(limit).execute(&mut *tx).await?;
        // From now on nobody goes on with it.
        let closed = concat!(
            "UPDATE plan SET closed_at = ",
            now!(),
            " WHERE closed_at IS NULL AND swept_at IS NULL AND job_uid IN (SELECT uid FROM job ",
            "WHERE bucket = ? AND ",
            is_final!("state"),
            " AND finished_at <= ",
            now!(),
            " - ?)"
        );
        sqlx::query(closed).bind(bucket.as_str()).bind(millis(rules.lost_kept)).execute(&mut *tx).await?;
        // Uploads: those that a job reads, and those that one read lately, are looked at later; the rest is gone.
        let in_use = concat!(
            "UPDATE upload SET gone_at = NULL, look_at = ",
            now!(),
            " + ?2 WHERE rowid IN (SELECT rowid FROM upload ",
            "WHERE bucket = ?1 AND look_at <= ",
            now!(),
            " AND parts IS NULL AND ",
            in_use!(),
            " LIMIT ?3)"
        );
        sqlx::query(in_use)
            .bind(bucket.as_str())
            .bind(millis(IN_USE_AGAIN))
            .bind(limit)
            .execute(&mut *tx)
            .await?;
        let lately = concat!(
            "UPDATE upload SET look_at = ",
            last_read!(),
            " + ?2 WHERE rowid IN (SELECT rowid FROM upload ",
            "WHERE bucket = ?1 AND look_at <= ",
            now!(),
            " AND parts IS NULL AND gone_at IS NULL AND ",
            last_read!(),
            " + ?2 > ",
            now!(),
            " LIMIT ?3)"
        );
        sqlx::query(lately)
            .bind(bucket.as_str())
            .bind(millis(rules.uploads_kept))
            .bind(limit)
            .execute(&mut *tx)
            .await?;
        let gone = concat!(
            "UPDATE upload SET gone_at = ",
            now!(),
            ", look_at = ",
            now!(),
            " + ?2 WHERE rowid IN (SELECT rowid FROM upload ",
            "WHERE bucket = ?1 AND look_at <= ",
            now!(),
            " AND parts IS NULL AND gone_at IS NULL AND NOT ",
            in_use!(),
            " AND COALESCE(",
            last_read!(),
            " + ?4, 0) <= ",
            now!(),
            " ORDER BY look_at LIMIT ?3)"
        );
        sqlx::query(gone)
            .bind(bucket.as_str())
            .bind(millis(rules.delete_after))
            .bind(limit)
            .bind(millis(rules.uploads_kept))
            .execute(&mut *tx)
            .await?;
        copies::past_their_time(&mut tx, bucket, rules, limit).await?;
        tx.commit().await?;
        Ok(())
    }
}
