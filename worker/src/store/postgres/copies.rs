//! Copies on a server: see [`super::super::copies`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::State;
use millrace_wire::{JobId, PoolId};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::super::copies::{Copies, CopyClaim, CopyEnd, CopyLease, CopyRow, Reach, Stale, Stranded, Wished};
use super::super::row::{copy_claim, copy_row, stale_copy, stranded};
use super::super::rules::{UNFIT_HOLDS, is_final, just_moved, millis};
use super::super::upkeep::{Due, Rules};
use super::super::{Error, Identity, JobRow, Lease};
use super::ending::close_attempt;
use super::link::Question;
use super::read::find;
use super::sql::{event, now};
use super::{Postgres, ask};

/// Whether a commit here is on another server, too, before it counts.
macro_rules! survives {
    () => {
        "(current_setting('synchronous_standby_names') <> '' \
          AND current_setting('synchronous_commit') NOT IN ('off', 'local'))"
    };
}

#[async_trait]
impl Copies for Postgres {
    async fn claim_copy(
        &self,
        by: &Identity,
        reach: &Reach,
        lease: Duration,
    ) -> Result<Option<CopyClaim>, Error> {
        ask!(&self.link, on => claim_copy(on, by, reach, lease))
    }

    async fn renew_copy(&self, copy: &CopyLease, lease: Duration) -> Result<bool, Error> {
        ask!(&self.link, on => renew_copy(on, copy, lease))
    }

    async fn end_copy(&self, copy: &CopyLease, reach: &Reach, end: &CopyEnd) -> Result<bool, Error> {
        ask!(&self.link, on => end_copy(on, copy, reach, end))
    }

    async fn copies(&self, job_uids: &[String]) -> Result<BTreeMap<String, Vec<CopyRow>>, Error> {
        if job_uids.is_empty() {
            return Ok(BTreeMap::new());
        }
        ask!(&self.link, on => copies(on, job_uids))
    }

    async fn copies_waiting(&self) -> Result<(u32, Duration), Error> {
        ask!(&self.link, on => copies_waiting(on))
    }

    async fn replicate(&self, tenant: &str, job_id: &JobId, pools: &[PoolId]) -> Result<Wished, Error> {
        ask!(&self.link, on => replicate(on, tenant, job_id, pools))
    }

    async fn relocate(&self, lease: &Lease, to: &PoolId) -> Result<bool, Error> {
        ask!(&self.link, on => relocate(on, lease, to))
    }

    async fn stranded(
        &self,
        by: &Identity,
        lease: Duration,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Stranded>, Error> {
        ask!(&self.link, on => with_bucket(on, by, lease, after, limit))
    }

    async fn move_waiting(&self, job_uid: &str, from: &PoolId, to: &PoolId) -> Result<bool, Error> {
        ask!(&self.link, on => move_waiting(on, job_uid, from, to))
    }

    async fn reopen(
        &self,
        tenant: &str,
        job_id: &JobId,
        from: &PoolId,
        to: &PoolId,
    ) -> Result<Option<JobRow>, Error> {
        ask!(&self.link, on => reopen(on, tenant, job_id, from, to))
    }
}

async fn claim_copy(
    on: &mut PgConnection,
    by: &Identity,
    reach: &Reach,
    lease: Duration,
) -> Result<Option<CopyClaim>, Error> {
    let pools: Option<Vec<&str>> =
        reach.pools.as_ref().map(|pools| pools.iter().map(PoolId::as_str).collect());
    let row = sqlx::query(concat!(
        "WITH due AS (SELECT replica.job_uid, replica.what, replica.pool FROM replica \
             JOIN job ON job.uid = replica.job_uid \
           WHERE replica.state = 'waiting' AND replica.not_before <= ",
        now!(),
        " \
             AND ($2::text[] IS NULL OR replica.pool = ANY ($2)) \
             AND CASE replica.what WHEN 'input' THEN $4 OR ",
        survives!(),
        " ELSE job.outputs_gone_at IS NULL END \
           ORDER BY replica.not_before LIMIT 1 FOR UPDATE OF replica SKIP LOCKED) \
         UPDATE replica SET epoch = replica.epoch + 1, owner = $1, not_before = ",
        now!(),
        " + $3 FROM due, job \
         WHERE replica.job_uid = due.job_uid AND replica.what = due.what AND replica.pool = due.pool \
           AND job.uid = due.job_uid \
         RETURNING replica.job_uid, replica.what, replica.pool, replica.epoch, replica.failures, \
           job.job_id, job.spec, job.manifest"
    ))
    .bind(by.worker.as_str())
    .bind(pools)
    .bind(millis(lease))
    .bind(reach.store_replicated)
    .fetch_optional(on)
    .await?;
    row.as_ref().map(copy_claim).transpose()
}

async fn renew_copy(on: &mut PgConnection, copy: &CopyLease, lease: Duration) -> Result<bool, Error> {
    let renewed = sqlx::query(concat!(
        "UPDATE replica SET not_before = ",
        now!(),
        " + $5 WHERE job_uid = $1 AND what = $2 AND pool = $3 AND epoch = $4 AND state = 'waiting' \
           AND NOT EXISTS (SELECT FROM job WHERE uid = $1 AND outputs_gone_at IS NOT NULL)"
    ))
    .bind(&copy.job_uid)
    .bind(copy.kind.as_str())
    .bind(copy.to.as_str())
    .bind(copy.epoch as i64)
    .bind(millis(lease))
    .execute(on)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

async fn end_copy(
    on: &mut PgConnection,
    copy: &CopyLease,
    reach: &Reach,
    end: &CopyEnd,
) -> Result<bool, Error> {
    let query = match end {
        // Of an earlier try the answer may have been lost.
        CopyEnd::Done { bytes, sha256 } => sqlx::query(concat!(
            "UPDATE replica SET state = 'done', owner = NULL, code = NULL, detail = NULL, copy = epoch, bytes = $5, \
               sha256 = $6, done_at = coalesce(done_at, ", now!(), ") \
             WHERE job_uid = $1 AND what = $2 AND pool = $3 AND epoch = $4 \
               AND (state = 'waiting' OR state = 'done' AND copy = $4) \
               AND (what <> 'input' OR $7 OR ", survives!(), ")"
        ))
        .bind(&copy.job_uid)
        .bind(copy.kind.as_str())
        .bind(copy.to.as_str())
        .bind(copy.epoch as i64)
        .bind(i64::try_from(*bytes).unwrap_or(i64::MAX))
        .bind(sha256)
        .bind(reach.store_replicated),
        CopyEnd::Failed { code, detail, retry_after } => sqlx::query(concat!(
            "UPDATE replica SET owner = NULL, failures = failures + 1, code = $5, detail = $6, not_before = ",
            now!(),
            " + $7 WHERE job_uid = $1 AND what = $2 AND pool = $3 AND epoch = $4 AND state = 'waiting'"
        ))
        .bind(&copy.job_uid)
        .bind(copy.kind.as_str())
        .bind(copy.to.as_str())
        .bind(copy.epoch as i64)
        .bind(code)
        .bind(detail.replace('\0', "\u{fffd}"))
        .bind(millis(*retry_after)),
        CopyEnd::Released => sqlx::query(concat!(
            "UPDATE replica SET owner = NULL, not_before = ",
            now!(),
            " WHERE job_uid = $1 AND what = $2 AND pool = $3 AND epoch = $4 AND state = 'waiting'"
        ))
        .bind(&copy.job_uid)
        .bind(copy.kind.as_str())
        .bind(copy.to.as_str())
        .bind(copy.epoch as i64),
    };
    Ok(query.execute(on).await?.rows_affected() == 1)
}

async fn copies(on: &mut PgConnection, job_uids: &[String]) -> Result<BTreeMap<String, Vec<CopyRow>>, Error> {
    let rows = sqlx::query(concat!(
        "SELECT job_uid, what, pool, state, copy, bytes, sha256, done_at, detail, \
           (owner IS NOT NULL AND not_before > ",
        now!(),
        ")::int::bigint AS claimed FROM replica \
         WHERE job_uid = ANY ($1) AND what <> 'left' AND gone_at IS NULL ORDER BY job_uid, what, pool"
    ))
    .bind(job_uids)
    .fetch_all(on)
    .await?;
    let mut found: BTreeMap<String, Vec<CopyRow>> = BTreeMap::new();
    for row in &rows {
        let (job_uid, copy) = copy_row(row)?;
        found.entry(job_uid).or_default().push(copy);
    }
    Ok(found)
}

async fn copies_waiting(on: &mut PgConnection) -> Result<(u32, Duration), Error> {
    let row = sqlx::query(concat!(
        "SELECT count(*), greatest(0, coalesce(",
        now!(),
        " - min(not_before), 0)) FROM replica WHERE state = 'waiting'"
    ))
    .fetch_one(on)
    .await?;
    let (count, age): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok((super::super::row::count(count), Duration::from_millis(age as u64)))
}

async fn replicate(
    on: &mut PgConnection,
    tenant: &str,
    job_id: &JobId,
    pools: &[PoolId],
) -> Result<Wished, Error> {
    let mut tx = on.begin().await?;
    let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Wished::NotFound) };
    let entered = sqlx::query(concat!(
        "WITH j AS (SELECT uid, bucket FROM job WHERE uid = $1 AND state = 'succeeded' AND outputs_gone_at IS NULL FOR UPDATE), \
         r AS (INSERT INTO replica (job_uid, what, pool, state, not_before) \
           SELECT j.uid, 'outputs', wanted.pool, 'waiting', ", now!(), " FROM j, unnest($2::text[]) AS wanted (pool) \
           WHERE wanted.pool <> j.bucket ON CONFLICT (job_uid, what, pool) DO NOTHING) SELECT FROM j"
    ))
    .bind(&job.uid)
    .bind(pools.iter().map(PoolId::as_str).collect::<Vec<_>>())
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(if entered.is_some() { Wished::Done(Box::new(job)) } else { Wished::None(Box::new(job)) })
}

/// Makes a job one task again, in another bucket: its rows are taken already, the tasks' before the job's.
async fn move_to(
    on: &mut PgConnection,
    job_uid: &str,
    from: &str,
    to: &PoolId,
    kind: &'static str,
) -> Result<(), Error> {
    sqlx::query("DELETE FROM task WHERE job_uid = $1 AND NOT (kind = 'video' AND ordinal = 0)")
        .bind(job_uid)
        .execute(&mut *on)
        .await?;
    // Whatever the job's last claim was, of the whole or of the finalizer, the next one is later.
    sqlx::query(concat!(
        "UPDATE task SET state = 'waiting', owner = NULL, owner_incarnation = NULL, lease_expires_at = NULL, \
           result = NULL, failures = 0, pool = $2, not_before = ",
        now!(),
        ", epoch = greatest(task.epoch, job.epoch) FROM job WHERE job.uid = $1 AND task.job_uid = $1"
    ))
    .bind(job_uid)
    .bind(to.as_str())
    .execute(&mut *on)
    .await?;
    sqlx::query(concat!(
        "WITH j AS (UPDATE job SET state = 'queued', phase = NULL, bucket = $2, pool = $2, manifest = NULL, \
             finished_at = NULL, error_code = NULL, error_detail = NULL, progress = '{\"percent\":0.0}' \
           WHERE uid = $1 RETURNING *), \
         p AS (DELETE FROM plan WHERE job_uid = $1), \
         l AS (INSERT INTO replica (job_uid, what, pool, state, not_before, epoch) \
           SELECT $1, 'left', $3, 'done', ",
        now!(),
        ", epoch FROM task WHERE job_uid = $1 \
           ON CONFLICT (job_uid, what, pool) DO UPDATE SET gone_at = NULL, swept = 0, \
             not_before = excluded.not_before, epoch = excluded.epoch), \
         e AS (",
        event!("$4::text", "jsonb_build_object('from', $3::text, 'to', $2::text)"),
        ") SELECT FROM j"
    ))
    .bind(job_uid)
    .bind(to.as_str())
    .bind(from)
    .bind(kind)
    .execute(on)
    .await?;
    Ok(())
}

async fn relocate(on: &mut PgConnection, lease: &Lease, to: &PoolId) -> Result<bool, Error> {
    let mut tx = on.begin().await?;
    let tasks = sqlx::query("SELECT uid, epoch, state FROM task WHERE job_uid = $1 ORDER BY uid FOR UPDATE")
        .bind(&lease.job_uid)
        .fetch_all(&mut *tx)
        .await?;
    let mut mine = false;
    for task in &tasks {
        let (uid, epoch, state): (String, i64, String) =
            (task.try_get("uid")?, task.try_get("epoch")?, task.try_get("state")?);
        mine |= uid == lease.task_uid && epoch == lease.epoch as i64 && state == "running";
    }
    let from: Option<String> = sqlx::query_scalar(
        "SELECT bucket FROM job WHERE uid = $1 AND state = 'running' AND cancel_requested_at IS NULL \
         AND bucket <> $2 FOR UPDATE",
    )
    .bind(&lease.job_uid)
    .bind(to.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let (true, Some(from)) = (mine, from) else { return Ok(false) };
    close_attempt(&mut tx, lease, "released", None).await?;
    move_to(&mut tx, &lease.job_uid, &from, to, "moved").await?;
    tx.commit().await?;
    Ok(true)
}

/// See [`Copies::stranded`].
async fn with_bucket(
    on: &mut PgConnection,
    by: &Identity,
    lease: Duration,
    after: &str,
    limit: u32,
) -> Result<Vec<Stranded>, Error> {
    let rows = sqlx::query(concat!(
        "WITH me AS (UPDATE worker SET unfit_at = ", now!(), " WHERE name = $1 AND incarnation = $2) \
         SELECT job.uid, job.job_id, job.spec FROM replica JOIN job ON job.uid = replica.job_uid \
         WHERE replica.swept < 2 AND replica.gone_at IS NULL AND replica.what <> 'outputs' AND replica.what = 'input' \
           AND job.bucket = $3 AND NOT (", is_final!("job.state"), ") AND job.cancel_requested_at IS NULL \
           AND job.uid > $4 \
           AND NOT EXISTS (SELECT FROM worker WHERE worker.pool = $3 AND (name <> $1 OR incarnation <> $2) \
             AND seen_at > ", now!(), " - $5 AND unfit_at <= ", now!(), " - $6) \
           AND NOT EXISTS (SELECT FROM task WHERE task.job_uid = job.uid AND task.state = 'running') \
           AND NOT ", just_moved!(), " ORDER BY job.uid LIMIT $7"
    ))
    .bind(by.worker.as_str())
    .bind(by.incarnation as i64)
    .bind(by.pool.as_str())
    .bind(after)
    .bind(millis(lease))
    .bind(millis(UNFIT_HOLDS))
    .bind(i64::from(limit))
    .fetch_all(on)
    .await?;
    // A job that this version cannot read (a later one accepted it) must not hold back those behind it.
    Ok(rows.iter().filter_map(|row| stranded(row).ok()).collect())
}

async fn move_waiting(
    on: &mut PgConnection,
    job_uid: &str,
    from: &PoolId,
    to: &PoolId,
) -> Result<bool, Error> {
    let mut tx = on.begin().await?;
    let states: Vec<String> =
        sqlx::query_scalar("SELECT state FROM task WHERE job_uid = $1 ORDER BY uid FOR UPDATE")
            .bind(job_uid)
            .fetch_all(&mut *tx)
            .await?;
    let there = sqlx::query(concat!(
        "SELECT FROM job WHERE uid = $1 AND bucket = $2 AND bucket <> $3 AND NOT (",
        is_final!("state"),
        ") AND cancel_requested_at IS NULL \
           AND NOT EXISTS (SELECT FROM task WHERE task.job_uid = job.uid AND task.state = 'running') AND NOT ",
        just_moved!(),
        " FOR UPDATE OF job"
    ))
    .bind(job_uid)
    .bind(from.as_str())
    .bind(to.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    if there.is_none() || states.iter().any(|state| state == "running") {
        return Ok(false);
    }
    move_to(&mut tx, job_uid, from.as_str(), to, "moved").await?;
    tx.commit().await?;
    Ok(true)
}

async fn reopen(
    on: &mut PgConnection,
    tenant: &str,
    job_id: &JobId,
    from: &PoolId,
    to: &PoolId,
) -> Result<Option<JobRow>, Error> {
    let mut tx = on.begin().await?;
    super::ending::lock_tasks(&mut tx, tenant, job_id).await?;
    let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(None) };
    let there = sqlx::query(
        "SELECT FROM job WHERE uid = $1 AND state = 'succeeded' AND bucket = $2 AND outputs_gone_at IS NULL FOR UPDATE",
    )
    .bind(&job.uid)
    .bind(from.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    if there.is_none() || job.state != State::Succeeded {
        return Ok(None);
    }
    move_to(&mut tx, &job.uid, from.as_str(), to, "moved").await?;
    let job = find(&mut tx, tenant, job_id).await?;
    tx.commit().await?;
    Ok(job)
}

/// Makes gone, in a pool's bucket, what no job needs any more.
pub(super) async fn past_their_time(
    on: &mut PgConnection,
    bucket: &PoolId,
    rules: &Rules,
    limit: i64,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE replica SET gone_at = ",
        now!(),
        " FROM (SELECT replica.job_uid, replica.what, replica.pool FROM replica \
             JOIN job ON job.uid = replica.job_uid \
           WHERE replica.pool = $1 AND swept < 2 AND gone_at IS NULL AND what <> 'outputs' \
             AND ",
        is_final!("job.state"),
        " AND job.finished_at <= ",
        now!(),
        " - $2 \
           LIMIT $3 FOR UPDATE OF replica SKIP LOCKED) due \
         WHERE replica.job_uid = due.job_uid AND replica.what = due.what AND replica.pool = due.pool"
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
    on: &mut PgConnection,
    bucket: &PoolId,
    rules: &Rules,
    limit: i64,
) -> Result<Vec<Due>, Error> {
    let rows = sqlx::query(concat!(
        "SELECT replica.job_uid, replica.what, replica.epoch FROM replica JOIN job ON job.uid = replica.job_uid \
         WHERE replica.pool = $1 AND swept < 2 AND gone_at IS NOT NULL AND replica.state <> 'later' \
           AND gone_at + CASE what WHEN 'outputs' THEN $2::bigint ELSE 0 END + swept * $3 <= ", now!(), " \
           AND ", is_final!("job.state"), " AND (what <> 'left' OR job.bucket <> replica.pool AND NOT EXISTS \
             (SELECT FROM replica AS other WHERE other.job_uid = replica.job_uid AND other.pool = replica.pool \
                AND other.what = 'outputs' AND other.swept < 2)) \
         ORDER BY gone_at LIMIT $4"
    ))
    .bind(bucket.as_str())
    .bind(millis(rules.delete_after))
    .bind(millis(rules.lost_kept))
    .bind(limit)
    .fetch_all(on)
    .await?;
    rows.iter().map(stale_copy).collect()
}

/// Says that the bytes are gone.
pub(super) async fn swept(
    on: &mut PgConnection,
    bucket: &PoolId,
    job_uid: &str,
    what: Stale,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE replica SET swept = swept + 1 WHERE job_uid = $1 AND what = $2 AND pool = $3 AND gone_at IS NOT NULL",
    )
    .bind(job_uid)
    .bind(what.as_str())
    .bind(bucket.as_str())
    .execute(on)
    .await?;
    Ok(())
}
