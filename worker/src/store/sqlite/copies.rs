//! Copies on the embedded store: see [`super::super::copies`]. It is in one place only, so no second copy of an input is ever
//! asked of it but in tests.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::{JobId, PoolId};
use serde_json::json;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::super::copies::{Copies, CopyClaim, CopyEnd, CopyLease, CopyRow, Reach, Stale, Stranded, Wished};
use super::super::row::{copy_claim, copy_row, count, stale_copy, stranded};
use super::super::rules::{UNFIT_HOLDS, is_final, just_moved, millis};
use super::super::upkeep::{Due, Rules};
use super::super::{Error, Identity, JobRow, Lease};
use super::ending::close_attempt;
use super::{Sqlite, find, now, record};

#[async_trait]
impl Copies for Sqlite {
    async fn claim_copy(
        &self,
        by: &Identity,
        reach: &Reach,
        lease: Duration,
    ) -> Result<Option<CopyClaim>, Error> {
        let pools = reach.pools.as_ref().map(|pools| json!(pools).to_string());
        // Looked at without the writer's lock: most of the time there is none.
        let due = sqlx::query(concat!(
            "SELECT replica.job_uid, what, replica.pool FROM replica JOIN job ON job.uid = replica.job_uid \
             WHERE replica.state = 'waiting' AND not_before <= ",
            now!(),
            " \
               AND (?1 IS NULL OR replica.pool IN (SELECT value FROM json_each(?1))) \
               AND CASE what WHEN 'input' THEN ?2 ELSE job.outputs_gone_at IS NULL END \
             ORDER BY not_before LIMIT 1"
        ))
        .bind(pools)
        .bind(reach.store_replicated)
        .fetch_optional(&self.readers)
        .await?;
        let Some(due) = due else { return Ok(None) };
        let mut tx = self.begin().await?;
        let claimed = sqlx::query(concat!(
            "UPDATE replica SET epoch = epoch + 1, owner = ?, not_before = ",
            now!(),
            " + ? \
             WHERE job_uid = ? AND what = ? AND pool = ? AND state = 'waiting' AND not_before <= ",
            now!()
        ))
        .bind(by.worker.as_str())
        .bind(millis(lease))
        .bind(due.try_get::<String, _>(0)?)
        .bind(due.try_get::<String, _>(1)?)
        .bind(due.try_get::<String, _>(2)?)
        .execute(&mut *tx)
        .await?;
        if claimed.rows_affected() == 0 {
            return Ok(None);
        }
        let row = sqlx::query(
            "SELECT replica.job_uid, what, replica.pool, replica.epoch, failures, job_id, spec, manifest \
             FROM replica JOIN job ON job.uid = replica.job_uid WHERE job_uid = ? AND what = ? AND replica.pool = ?",
        )
        .bind(due.try_get::<String, _>(0)?)
        .bind(due.try_get::<String, _>(1)?)
        .bind(due.try_get::<String, _>(2)?)
        .fetch_one(&mut *tx)
        .await?;
        let claim = copy_claim(&row)?;
        tx.commit().await?;
        Ok(Some(claim))
    }

    async fn renew_copy(&self, copy: &CopyLease, lease: Duration) -> Result<bool, Error> {
        let renewed = sqlx::query(concat!(
            "UPDATE replica SET not_before = ",
            now!(),
            " + ?5 \
             WHERE job_uid = ?1 AND what = ?2 AND pool = ?3 AND epoch = ?4 AND state = 'waiting' \
               AND NOT EXISTS (SELECT 1 FROM job WHERE uid = ?1 AND outputs_gone_at IS NOT NULL)"
        ))
        .bind(&copy.job_uid)
        .bind(copy.kind.as_str())
        .bind(copy.to.as_str())
        .bind(copy.epoch as i64)
        .bind(millis(lease))
        .execute(&self.writer)
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    async fn end_copy(&self, copy: &CopyLease, reach: &Reach, end: &CopyEnd) -> Result<bool, Error> {
        let query = match end {
            // Of an earlier try the answer may have been lost.
            CopyEnd::Done { .. } => sqlx::query(concat!(
                "UPDATE replica SET state = 'done', owner = NULL, code = NULL, detail = NULL, copy = epoch, bytes = ?5, \
                   sha256 = ?6, done_at = coalesce(done_at, ",
                now!(),
                ") \
                 WHERE job_uid = ?1 AND what = ?2 AND pool = ?3 AND epoch = ?4 \
                   AND (state = 'waiting' OR state = 'done' AND copy = ?4) AND (what <> 'input' OR ?7)"
            )),
            CopyEnd::Failed { .. } => sqlx::query(concat!(
                "UPDATE replica SET owner = NULL, failures = failures + 1, code = ?5, detail = ?6, not_before = ",
                now!(),
                " + ?7 WHERE job_uid = ?1 AND what = ?2 AND pool = ?3 AND epoch = ?4 AND state = 'waiting'"
            )),
            CopyEnd::Released => sqlx::query(concat!(
                "UPDATE replica SET owner = NULL, not_before = ",
                now!(),
                " WHERE job_uid = ?1 AND what = ?2 AND pool = ?3 AND epoch = ?4 AND state = 'waiting'"
            )),
        };
        let query =
            query.bind(&copy.job_uid).bind(copy.kind.as_str()).bind(copy.to.as_str()).bind(copy.epoch as i64);
        let query = match end {
            CopyEnd::Done { bytes, sha256 } => query
                .bind(i64::try_from(*bytes).unwrap_or(i64::MAX))
                .bind(sha256)
                .bind(reach.store_replicated),
            CopyEnd::Failed { code, detail, retry_after } => {
                query.bind(code).bind(detail).bind(millis(*retry_after))
            }
            CopyEnd::Released => query,
        };
        Ok(query.execute(&self.writer).await?.rows_affected() == 1)
    }

    async fn copies(&self, job_uids: &[String]) -> Result<BTreeMap<String, Vec<CopyRow>>, Error> {
        let mut found: BTreeMap<String, Vec<CopyRow>> = BTreeMap::new();
        if job_uids.is_empty() {
            return Ok(found);
        }
        let rows = sqlx::query(concat!(
            "SELECT job_uid, what, pool, state, copy, bytes, sha256, done_at, detail, \
               owner IS NOT NULL AND not_before > ",
            now!(),
            " AS claimed FROM replica \
             WHERE job_uid IN (SELECT value FROM json_each(?)) AND what <> 'left' AND gone_at IS NULL \
             ORDER BY job_uid, what, pool"
        ))
        .bind(json!(job_uids).to_string())
        .fetch_all(&self.readers)
        .await?;
        for row in &rows {
            let (job_uid, copy) = copy_row(row)?;
            found.entry(job_uid).or_default().push(copy);
        }
        Ok(found)
    }

    async fn copies_waiting(&self) -> Result<(u32, Duration), Error> {
        let row = sqlx::query(concat!(
            "SELECT count(*), max(0, coalesce(",
            now!(),
            " - min(not_before), 0)) FROM replica WHERE state = 'waiting'"
        ))
        .fetch_one(&self.readers)
        .await?;
        let (waiting, age): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        Ok((count(waiting), Duration::from_millis(age as u64)))
    }

    async fn replicate(&self, tenant: &str, job_id: &JobId, pools: &[PoolId]) -> Result<Wished, Error> {
        let mut tx = self.begin().await?;
        let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Wished::NotFound) };
        let there: bool = sqlx::query_scalar(
            "SELECT state = 'succeeded' AND outputs_gone_at IS NULL FROM job WHERE uid = ?",
        )
        .bind(&job.uid)
        .fetch_one(&mut *tx)
        .await?;
        if !there {
            return Ok(Wished::None(Box::new(job)));
        }
        for pool in pools {
            sqlx::query(concat!(
                "INSERT INTO replica (job_uid, what, pool, state, not_before) SELECT uid, 'outputs', ?2, 'waiting', ",
                now!(),
                " FROM job WHERE uid = ?1 AND bucket <> ?2 ON CONFLICT (job_uid, what, pool) DO NOTHING"
            ))
            .bind(&job.uid)
            .bind(pool.as_str())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(Wished::Done(Box::new(job)))
    }

    async fn relocate(&self, lease: &Lease, to: &PoolId) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let from: Option<String> = sqlx::query_scalar(
            "SELECT bucket FROM job WHERE uid = ? AND state = 'running' AND cancel_requested_at IS NULL AND bucket <> ? \
             AND EXISTS (SELECT 1 FROM task WHERE uid = ? AND epoch = ? AND task.state = 'running')",
        )
        .bind(&lease.job_uid)
        .bind(to.as_str())
        .bind(&lease.task_uid)
        .bind(lease.epoch as i64)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(from) = from else { return Ok(false) };
        close_attempt(&mut tx, lease, "released", None).await?;
        move_to(&mut tx, &lease.job_uid, &from, to).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn stranded(
        &self,
        by: &Identity,
        lease: Duration,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Stranded>, Error> {
        let mut tx = self.begin().await?;
        sqlx::query(concat!("UPDATE worker SET unfit_at = ", now!(), " WHERE name = ? AND incarnation = ?"))
            .bind(by.worker.as_str())
            .bind(by.incarnation as i64)
            .execute(&mut *tx)
            .await?;
        let rows = sqlx::query(concat!(
            "SELECT job.uid, job.job_id, job.spec FROM replica JOIN job ON job.uid = replica.job_uid \
             WHERE replica.swept < 2 AND replica.gone_at IS NULL AND replica.state <> 'later' AND replica.what = 'input' \
               AND job.bucket = ?1 AND NOT (", is_final!("job.state"), ") AND job.cancel_requested_at IS NULL \
               AND job.uid > ?2 \
               AND NOT EXISTS (SELECT 1 FROM worker WHERE worker.pool = ?1 AND (name <> ?3 OR incarnation <> ?7) \
                 AND seen_at > ", now!(), " - ?4 AND unfit_at <= ", now!(), " - ?5) \
               AND NOT EXISTS (SELECT 1 FROM task WHERE task.job_uid = job.uid AND task.state = 'running') \
               AND NOT ", just_moved!(), " ORDER BY job.uid LIMIT ?6"
        ))
        .bind(by.pool.as_str())
        .bind(after)
        .bind(by.worker.as_str())
        .bind(millis(lease))
        .bind(millis(UNFIT_HOLDS))
        .bind(limit)
        .bind(by.incarnation as i64)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        // A job that this version cannot read (a later one accepted it) must not hold back those behind it.
        Ok(rows.iter().filter_map(|row| stranded(row).ok()).collect())
    }

    async fn move_waiting(&self, job_uid: &str, from: &PoolId, to: &PoolId) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let there = sqlx::query(concat!(
            "SELECT 1 FROM job WHERE uid = ? AND bucket = ? AND bucket <> ? AND NOT (",
            is_final!("state"),
            ") AND cancel_requested_at IS NULL \
               AND NOT EXISTS (SELECT 1 FROM task WHERE task.job_uid = job.uid AND task.state = 'running') AND NOT ",
            just_moved!()
        ))
        .bind(job_uid)
        .bind(from.as_str())
        .bind(to.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        if there.is_none() {
            return Ok(false);
        }
        move_to(&mut tx, job_uid, from.as_str(), to).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn reopen(
        &self,
        tenant: &str,
        job_id: &JobId,
        from: &PoolId,
        to: &PoolId,
    ) -> Result<Option<JobRow>, Error> {
        let mut tx = self.begin().await?;
        let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(None) };
        let there: bool = sqlx::query_scalar(
            "SELECT state = 'succeeded' AND bucket = ? AND outputs_gone_at IS NULL FROM job WHERE uid = ?",
        )
        .bind(from.as_str())
        .bind(&job.uid)
        .fetch_one(&mut *tx)
        .await?;
        if !there {
            return Ok(None);
        }
        move_to(&mut tx, &job.uid, from.as_str(), to).await?;
        let job = find(&mut tx, tenant, job_id).await?;
        tx.commit().await?;
        Ok(job)
    }
}

/// Makes a job one task again, in another bucket.
async fn move_to(on: &mut SqliteConnection, job_uid: &str, from: &str, to: &PoolId) -> Result<(), Error> {
    sqlx::query("DELETE FROM task WHERE job_uid = ? AND NOT (kind = 'video' AND ordinal = 0)")
        .bind(job_uid)
        .execute(&mut *on)
        .await?;
    // Whatever the job's last claim was, of the whole or of the finalizer, the next one is later.
    sqlx::query(concat!(
        "UPDATE task SET state = 'waiting', owner = NULL, owner_incarnation = NULL, lease_expires_at = NULL, \
           result = NULL, failures = 0, pool = ?2, not_before = ",
        now!(),
        ", epoch = max(epoch, (SELECT epoch FROM job WHERE uid = ?1)) WHERE job_uid = ?1"
    ))
    .bind(job_uid)
    .bind(to.as_str())
    .execute(&mut *on)
    .await?;
    sqlx::query(
        "UPDATE job SET state = 'queued', phase = NULL, bucket = ?2, pool = ?2, manifest = NULL, finished_at = NULL, \
         error_code = NULL, error_detail = NULL, progress = '{\"percent\":0.0}' WHERE uid = ?1",
    )
    .bind(job_uid)
    .bind(to.as_str())
    .execute(&mut *on)
    .await?;
    sqlx::query("DELETE FROM plan WHERE job_uid = ?").bind(job_uid).execute(&mut *on).await?;
    sqlx::query(concat!(
        "INSERT INTO replica (job_uid, what, pool, state, not_before, epoch) SELECT ?1, 'left', ?2, 'done', ",
        now!(),
        ", epoch FROM task WHERE job_uid = ?1 \
         ON CONFLICT (job_uid, what, pool) DO UPDATE SET gone_at = NULL, swept = 0, \
           not_before = excluded.not_before, epoch = excluded.epoch"
    ))
    .bind(job_uid)
    .bind(from)
    .execute(&mut *on)
    .await?;
    record(on, job_uid, "moved", json!({ "from": from, "to": to })).await
}

/// Makes gone, in a pool's bucket, what no job needs any more.
pub(super) async fn past_their_time(
    on: &mut SqliteConnection,
    bucket: &PoolId,
    rules: &Rules,
    limit: u32,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE replica SET gone_at = ",
        now!(),
        " WHERE rowid IN (SELECT replica.rowid FROM replica \
           JOIN job ON job.uid = replica.job_uid \
           WHERE replica.pool = ?1 AND swept < 2 AND replica.state <> 'later' AND gone_at IS NULL \
             AND CASE what WHEN 'outputs' THEN job.outputs_gone_at IS NOT NULL \
               ELSE ",
        is_final!("job.state"),
        " AND job.finished_at <= ",
        now!(),
        " - ?2 END \
           LIMIT ?3)"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.lost_kept))
    .bind(limit)
    .execute(on)
    .await?;
    Ok(())
}

/// What of that shall lose its bytes now: see [`Due::Copy`].
pub(super) async fn to_remove(
    store: &Sqlite,
    bucket: &PoolId,
    rules: &Rules,
    limit: u32,
) -> Result<Vec<Due>, Error> {
    let rows = sqlx::query(concat!(
        "SELECT replica.job_uid, replica.what, replica.epoch FROM replica JOIN job ON job.uid = replica.job_uid \
         WHERE replica.pool = ?1 AND swept < 2 AND gone_at IS NOT NULL AND replica.state <> 'later' \
           AND gone_at + CASE what WHEN 'outputs' THEN ?2 ELSE 0 END + swept * ?3 <= ", now!(), " \
           AND ", is_final!("job.state"), " AND (what <> 'left' OR job.bucket <> replica.pool AND NOT EXISTS \
             (SELECT 1 FROM replica AS other WHERE other.job_uid = replica.job_uid AND other.pool = replica.pool \
                AND other.what = 'outputs' AND other.swept < 2)) \
         ORDER BY gone_at LIMIT ?4"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.delete_after))
    .bind(millis(rules.lost_kept))
    .bind(limit)
    .fetch_all(&store.readers)
    .await?;
    rows.iter().map(stale_copy).collect()
}

/// Says that the bytes are gone.
pub(super) async fn swept(store: &Sqlite, bucket: &PoolId, job_uid: &str, what: Stale) -> Result<(), Error> {
    sqlx::query(
        "UPDATE replica SET swept = swept + 1 WHERE job_uid = ? AND what = ? AND pool = ? AND gone_at IS NOT NULL",
    )
    .bind(job_uid)
    .bind(what.as_str())
    .bind(bucket.as_str())
    .execute(&store.writer)
    .await?;
    Ok(())
}
