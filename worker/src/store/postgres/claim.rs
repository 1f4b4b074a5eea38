//! Who gets what: claiming a task, keeping it, and giving back what a dead worker held.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::super::row::{Wanted, pool_named};
use super::super::rules::{CLASS_AGES_EVERY, HEAD_MAX, HEAD_START, SILENT, millis};
use super::super::{AttemptEnd, Beat, Claim, Error, Heartbeat, Identity, Lease, Verdict};
use super::ending::{leave, settle};
use super::read::lease as lease_in;
use super::sql::{event, now};

/// How often a claim looks again where others took all that it saw.
const LOOKS_MAX: u32 = 4;
/// Leases that one claim ends, and delayed tasks that it lets go on, before it takes its own.
const DUE_MAX: i64 = 32;

/// What a look at the queues found.
struct Look {
    /// A lease has run out, or a delayed task's time has come.
    due: bool,
    /// Tasks to try to take, the best first.
    heads: Vec<String>,
    /// They are of other pools, and have waited for their price.
    steals: bool,
}

/// Claims for a worker: see [`super::super::Store::claim`].
///
/// Correct by compare-and-set alone; SKIP LOCKED only keeps many claimers from waiting for each other's first choice.
pub(super) async fn claim(
    on: &mut PgConnection,
    by: &Identity,
    lease: Duration,
    failures_max: u32,
) -> Result<Option<Claim>, Error> {
    for _ in 0..LOOKS_MAX {
        let mut look = self::look(on, by, lease).await?;
        if look.due {
            reap(on, failures_max).await?;
            look = self::look(on, by, lease).await?;
        }
        if look.heads.is_empty() {
            return Ok(None);
        }
        // A job that this version cannot read (a later one accepted it) must not stop those behind it.
        let mut unreadable = None;
        while !look.heads.is_empty() {
            match take(on, by, lease, &look).await? {
                Taken::Nothing => break,
                Taken::Claimed(claim) => return Ok(Some(*claim)),
                Taken::Unreadable { task_uid, error } => {
                    look.heads.retain(|uid| *uid != task_uid);
                    unreadable = Some(error);
                }
            }
        }
        if let Some(error) = unreadable {
            return Err(error);
        }
    }
    Ok(None)
}

/// Looks at the heads of the queues that a worker may take from, three classes each.
///
/// Its own pool's, of course, and those where no worker of the pool has shown itself for a lease: the pool is gone, and what
/// waits in it is anybody's. Besides, work that lost its worker, once its own pool has had its head start. A job rises a
/// class with time, so within a class the oldest is always the best, and the heads of each queue are enough to see, however
/// many wait behind them.
///
/// Where that is nothing, it looks at what it may steal: of each class what is longest past its price. A class rises with
/// time, but counted from the price on, so that here, too, the heads are enough to see.
async fn look(on: &mut PgConnection, by: &Identity, lease: Duration) -> Result<Look, Error> {
    let row = sqlx::query(concat!(
        "WITH RECURSIVE clock AS MATERIALIZED (SELECT ", now!(), " AS now), \
         pools (name) AS ( \
           (SELECT pool FROM task WHERE state = 'waiting' ORDER BY pool LIMIT 1) \
           UNION ALL \
           SELECT (SELECT pool FROM task WHERE state = 'waiting' AND pool > pools.name ORDER BY pool LIMIT 1) \
             FROM pools WHERE pools.name IS NOT NULL), \
         open AS (SELECT name FROM pools WHERE name IS NOT NULL AND (name = $1 OR NOT EXISTS \
           (SELECT FROM worker WHERE worker.pool = pools.name AND seen_at > (SELECT now FROM clock) - $2))), \
         head AS ( \
           SELECT task.* FROM open, generate_series(0, 2) AS classes (class), LATERAL ( \
             SELECT uid, pool, class, created_at FROM task \
             WHERE state = 'waiting' AND task.pool = open.name AND task.class = classes.class \
             ORDER BY created_at, uid LIMIT $4) task \
           UNION \
           SELECT task.* FROM generate_series(0, 2) AS classes (class), LATERAL ( \
             SELECT uid, pool, class, created_at FROM task \
             WHERE state = 'waiting' AND epoch > 0 AND task.class = classes.class \
               AND not_before + $3 <= (SELECT now FROM clock) \
             ORDER BY created_at, uid LIMIT $4) task), \
         steals AS ( \
           SELECT stolen.* FROM generate_series(0, 2) AS classes (class), LATERAL ( \
             SELECT steal.task_uid, steal.class, steal.at FROM steal JOIN task ON task.uid = steal.task_uid \
             WHERE steal.pool = $1 AND steal.class = classes.class AND steal.at <= (SELECT now FROM clock) \
               AND task.state = 'waiting' AND task.epoch = 0 \
             ORDER BY steal.at, steal.task_uid LIMIT $4) stolen \
           WHERE NOT EXISTS (SELECT FROM head)) \
         SELECT \
           EXISTS (SELECT FROM task WHERE state = 'running' AND lease_expires_at <= (SELECT now FROM clock)) OR \
           EXISTS (SELECT FROM task WHERE state = 'delayed' AND not_before <= (SELECT now FROM clock)) AS due, \
           ARRAY(SELECT uid FROM head ORDER BY \
             greatest(0, class - ((SELECT now FROM clock) - created_at) / $5), pool <> $1, created_at, uid LIMIT $4) AS heads, \
           ARRAY(SELECT task_uid FROM steals ORDER BY \
             greatest(0, class - ((SELECT now FROM clock) - at) / $5), at, task_uid LIMIT $4) AS steals"
    ))
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .bind(millis(HEAD_START))
    .bind(i64::from(HEAD_MAX))
    .bind(millis(CLASS_AGES_EVERY))
    .fetch_one(on)
    .await?;
    let (own, stolen): (Vec<String>, Vec<String>) = (row.try_get("heads")?, row.try_get("steals")?);
    let steals = own.is_empty();
    Ok(Look { due: row.try_get("due")?, heads: if steals { stolen } else { own }, steals })
}

enum Taken {
    Claimed(Box<Claim>),
    Unreadable {
        task_uid: String,
        error: Error,
    },
    /// Others were faster.
    Nothing,
}

async fn take(on: &mut PgConnection, by: &Identity, lease: Duration, look: &Look) -> Result<Taken, Error> {
    let mut tx = on.begin().await?;
    let taken = sqlx::query(concat!(
        "WITH head AS (SELECT uid, pool FROM task WHERE uid = ANY ($1) AND state = 'waiting' AND (epoch = 0 OR NOT $6) \
           ORDER BY array_position($1, uid) LIMIT 1 FOR UPDATE SKIP LOCKED), \
         t AS (UPDATE task SET state = 'running', epoch = epoch + 1, owner = $2, owner_incarnation = $3, pool = $4, \
           lease_expires_at = ", now!(), " + $5 FROM head WHERE task.uid = head.uid AND state = 'waiting' \
           RETURNING task.uid, job_uid, epoch, work_seconds, accepted_by, CASE WHEN $6 THEN head.pool END AS stolen_from, \
             greatest(0, ", now!(), " - not_before) AS waited), \
         j AS (UPDATE job SET state = 'running', phase = 'source', worker = $2, pool = $4, attempt = attempt + 1, \
           epoch = t.epoch, progress = '{\"percent\":0.0}', started_at = coalesce(started_at, ", now!(), ") \
           FROM t WHERE job.uid = t.job_uid RETURNING job.*, t.stolen_from), \
         s AS (DELETE FROM steal USING t WHERE steal.task_uid = t.uid), \
         a AS (INSERT INTO attempt (task_uid, number, worker, pool, started_at) SELECT uid, epoch, $2, $4, ", now!(),
        " FROM t), \
         e AS (", event!(
            "'claimed'",
            "jsonb_strip_nulls(jsonb_build_object('pool', pool, 'worker', worker, 'attempt', attempt, \
             'stolen_from', stolen_from))"
        ), ") \
         SELECT t.*, j.job_id, j.spec, j.bucket FROM t JOIN j ON j.uid = t.job_uid"
    ))
    .bind(&look.heads)
    .bind(by.worker.as_str())
    .bind(by.incarnation as i64)
    .bind(by.pool.as_str())
    .bind(millis(lease))
    .bind(look.steals)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = taken else { return Ok(Taken::Nothing) };
    let Wanted { job_id, spec, bucket } = match Wanted::read(&row) {
        Ok(wanted) => wanted,
        Err(error) => {
            tx.rollback().await?;
            return Ok(Taken::Unreadable { task_uid: row.try_get("uid")?, error });
        }
    };
    let stolen_from: Option<String> = row.try_get("stolen_from")?;
    let claim = Claim {
        lease: lease_in(&row)?,
        job_id,
        spec,
        bucket,
        work_seconds: row.try_get("work_seconds")?,
        accepted_by: row.try_get("accepted_by")?,
        waited: Duration::from_millis(row.try_get::<i64, _>("waited")? as u64),
        stolen_from: stolen_from.map(|pool| pool_named(&pool)).transpose()?,
    };
    tx.commit().await?;
    Ok(Taken::Claimed(Box::new(claim)))
}

/// Ends leases that ran out, and lets delayed tasks go on whose time has come. What another claimer is at is left to it.
async fn reap(on: &mut PgConnection, failures_max: u32) -> Result<(), Error> {
    let mut tx = on.begin().await?;
    sqlx::query(concat!(
        "UPDATE task SET state = 'waiting' FROM (SELECT uid FROM task WHERE state = 'delayed' AND not_before <= ",
        now!(),
        " ORDER BY not_before LIMIT $1 FOR UPDATE SKIP LOCKED) due WHERE task.uid = due.uid"
    ))
    .bind(DUE_MAX)
    .execute(&mut *tx)
    .await?;
    let expired = sqlx::query(concat!(
        "SELECT uid, job_uid, epoch FROM task WHERE state = 'running' AND lease_expires_at <= ",
        now!(),
        " ORDER BY lease_expires_at LIMIT $1 FOR UPDATE SKIP LOCKED"
    ))
    .bind(DUE_MAX)
    .fetch_all(&mut *tx)
    .await?;
    for row in &expired {
        let lease = lease_in(row)?;
        if leave(&mut tx, &lease).await? {
            // No back-off: the work is sound as far as anybody knows, and its client has already waited a lease.
            let (code, detail) = (SILENT.0, SILENT.1.to_owned());
            let silent = AttemptEnd::Failed { code, detail, retry_after: Duration::ZERO };
            settle(&mut tx, &lease, &silent, "lease_lost", failures_max).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

/// Renews for a worker: see [`super::super::Store::heartbeat`]. One statement, and so one trip for all leases.
pub(super) async fn heartbeat(
    on: &mut PgConnection,
    by: &Identity,
    beats: &[Beat],
    lease: Duration,
) -> Result<Heartbeat, Error> {
    let progress = |beat: &Beat| serde_json::to_string(&beat.progress).expect("progress is plain data");
    let row = sqlx::query(concat!(
        "WITH w AS (UPDATE worker SET seen_at = ", now!(), " WHERE name = $1 AND incarnation = $2 RETURNING name), \
         beat AS (SELECT * FROM unnest($3::text[], $4::bigint[], $5::text[]) AS beat (uid, epoch, progress)), \
         t AS (UPDATE task SET lease_expires_at = ", now!(), " + $6 FROM beat \
           WHERE task.uid = beat.uid AND task.epoch = beat.epoch AND state = 'running' \
             AND owner = $1 AND owner_incarnation = $2 RETURNING task.uid, task.job_uid, beat.progress), \
         j AS (UPDATE job SET progress = t.progress FROM t WHERE job.uid = t.job_uid \
           RETURNING t.uid, cancel_requested_at IS NOT NULL AS cancelled) \
         SELECT EXISTS (SELECT FROM w) AS current, ARRAY(SELECT uid FROM j WHERE NOT cancelled) AS renewed, \
           ARRAY(SELECT uid FROM j WHERE cancelled) AS cancelled"
    ))
    .bind(by.worker.as_str())
    .bind(by.incarnation as i64)
    .bind(beats.iter().map(|beat| beat.lease.task_uid.clone()).collect::<Vec<_>>())
    .bind(beats.iter().map(|beat| beat.lease.epoch as i64).collect::<Vec<_>>())
    .bind(beats.iter().map(progress).collect::<Vec<_>>())
    .bind(millis(lease))
    .fetch_one(on)
    .await?;
    let (renewed, cancelled): (Vec<String>, Vec<String>) =
        (row.try_get("renewed")?, row.try_get("cancelled")?);
    let verdict = |Lease { task_uid, .. }: &Lease| match () {
        () if renewed.contains(task_uid) => Verdict::Renewed,
        () if cancelled.contains(task_uid) => Verdict::CancelRequested,
        () => Verdict::Lost,
    };
    let verdicts = beats.iter().map(|beat| verdict(&beat.lease)).collect();
    Ok(Heartbeat { verdicts, superseded: !row.try_get::<bool, _>("current")? })
}
