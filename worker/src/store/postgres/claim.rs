//! Who gets what: claiming a task, keeping it, and giving back what a dead worker held.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::super::row::{Wanted, pool_named};
use super::super::rules::{CLASS_AGES_EVERY, HEAD_MAX, HEAD_START, SILENT, is_final, millis};
use super::super::{AttemptEnd, Beat, Claim, Error, Heartbeat, Identity, Lease, Verdict};
use super::ending::{leave, settle};
use super::parts::{advance, begin_anew};
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
    /// A job whose ranges wait for an encoder that is not heard of any more.
    abandoned: Option<String>,
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
        }
        if let Some(job_uid) = &look.abandoned {
            begin_anew(on, job_uid).await?;
        }
        if look.due || look.abandoned.is_some() {
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
                Taken::Over { task_uid } => look.heads.retain(|uid| *uid != task_uid),
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
         me AS MATERIALIZED (SELECT encoder, patience FROM worker WHERE name = $6), \
         queues (pool, encoder) AS ( \
           (SELECT pool, encoder FROM task WHERE state = 'waiting' ORDER BY pool, encoder LIMIT 1) \
           UNION ALL \
           SELECT next.* FROM queues, LATERAL (SELECT pool, encoder FROM task WHERE state = 'waiting' \
             AND (pool, encoder) > (queues.pool, queues.encoder) ORDER BY pool, encoder LIMIT 1) next), \
         open AS (SELECT pool, encoder FROM queues WHERE pool = $1 OR NOT EXISTS \
           (SELECT FROM worker WHERE worker.pool = queues.pool AND seen_at > (SELECT now FROM clock) - $2)), \
         head AS ( \
           SELECT task.* FROM open, generate_series(0, 2) AS classes (class), LATERAL ( \
             SELECT uid, pool, class, created_at FROM task \
             WHERE state = 'waiting' AND task.pool = open.pool AND task.encoder = open.encoder \
               AND task.class = classes.class \
             ORDER BY created_at, uid LIMIT $4) task \
             WHERE open.encoder = '' OR open.encoder = (SELECT encoder FROM me) \
           UNION \
           SELECT task.* FROM generate_series(0, 2) AS classes (class), LATERAL ( \
             SELECT uid, pool, class, created_at FROM task \
             WHERE state = 'waiting' AND epoch > 0 AND kind = 'video' AND ordinal = 0 \
               AND task.class = classes.class \
               AND not_before + $3 <= (SELECT now FROM clock) \
             ORDER BY created_at, uid LIMIT $4) task), \
         steals AS ( \
           SELECT stolen.* FROM generate_series(0, 2) AS classes (class), LATERAL ( \
             SELECT task_uid, class, at FROM steal \
             WHERE steal.pool = $1 AND steal.class = classes.class AND at <= (SELECT now FROM clock) \
             ORDER BY at, task_uid LIMIT $4) stolen \
           WHERE NOT EXISTS (SELECT FROM head)) \
         SELECT \
           EXISTS (SELECT FROM task WHERE state = 'running' AND lease_expires_at <= (SELECT now FROM clock)) OR \
           EXISTS (SELECT FROM task WHERE state = 'delayed' AND not_before <= (SELECT now FROM clock)) AS due, \
           (SELECT task.job_uid FROM open, me, LATERAL (SELECT job_uid, not_before FROM task \
               WHERE state = 'waiting' AND task.pool = open.pool AND task.encoder = open.encoder \
               ORDER BY class, created_at, uid LIMIT 1) task \
             WHERE open.encoder <> '' AND me.encoder NOT IN ('', open.encoder) \
               AND task.not_before + me.patience <= (SELECT now FROM clock) \
               AND NOT EXISTS (SELECT FROM worker WHERE worker.pool = open.pool \
                 AND worker.encoder = open.encoder AND beat_at > (SELECT now FROM clock) - me.patience) \
             LIMIT 1) AS abandoned, \
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
    .bind(by.worker.as_str())
    .fetch_one(on)
    .await?;
    let (own, stolen): (Vec<String>, Vec<String>) = (row.try_get("heads")?, row.try_get("steals")?);
    let steals = own.is_empty();
    let (due, abandoned) = (row.try_get("due")?, row.try_get("abandoned")?);
    Ok(Look { due, abandoned, heads: if steals { stolen } else { own }, steals })
}

enum Taken {
    Claimed(Box<Claim>),
    Unreadable {
        task_uid: String,
        error: Error,
    },
    /// Its job is over: nobody's work.
    Over {
        task_uid: String,
    },
    /// Others were faster.
    Nothing,
}

/// Ends a waiting part of a job that is over, which was in somebody's hands when the job ended.
async fn set_aside(on: &mut PgConnection, task_uid: &str) -> Result<(), Error> {
    sqlx::query("UPDATE task SET state = 'cancelled' WHERE uid = $1 AND state = 'waiting'")
        .bind(task_uid)
        .execute(on)
        .await?;
    Ok(())
}

async fn take(on: &mut PgConnection, by: &Identity, lease: Duration, look: &Look) -> Result<Taken, Error> {
    let mut tx = on.begin().await?;
    let taken = sqlx::query(concat!(
        "WITH head AS (SELECT uid, pool FROM task WHERE uid = ANY ($1) AND state = 'waiting' AND (epoch = 0 OR NOT $6) \
           ORDER BY array_position($1, uid) LIMIT 1 FOR UPDATE SKIP LOCKED), \
         t AS (UPDATE task SET state = 'running', epoch = epoch + 1, owner = $2, owner_incarnation = $3, pool = $4, \
           lease_expires_at = ", now!(), " + $5 FROM head WHERE task.uid = head.uid AND state = 'waiting' \
           RETURNING task.uid, job_uid, kind, ordinal, epoch, work_seconds, accepted_by, \
             kind = 'video' AND ordinal = 0 AS whole, CASE WHEN $6 THEN head.pool END AS stolen_from, \
             greatest(0, ", now!(), " - not_before) AS waited), \
         j AS (UPDATE job SET state = 'running', phase = 'source', worker = $2, pool = $4, attempt = attempt + 1, \
           epoch = t.epoch, progress = '{\"percent\":0.0}', started_at = coalesce(started_at, ", now!(), ") \
           FROM t WHERE job.uid = t.job_uid AND t.whole RETURNING job.*, t.stolen_from), \
         g AS (UPDATE job SET state = 'running', phase = coalesce(phase, 'encoding'), worker = $2, \
           epoch = CASE t.kind WHEN 'finalize' THEN t.epoch ELSE job.epoch END \
           FROM t WHERE job.uid = t.job_uid AND NOT t.whole AND cancel_requested_at IS NULL \
             AND NOT (", is_final!("state"), ") RETURNING job.*), \
         s AS (DELETE FROM steal USING t WHERE steal.task_uid = t.uid), \
         a AS (INSERT INTO attempt (task_uid, number, worker, pool, started_at) SELECT uid, epoch, $2, $4, ", now!(),
        " FROM t), \
         e AS (", event!(
            "'claimed'",
            "jsonb_strip_nulls(jsonb_build_object('pool', pool, 'worker', worker, 'attempt', attempt, \
             'stolen_from', stolen_from))"
        ), ") \
         SELECT t.*, mine.job_id, mine.spec, mine.bucket, plan.plan FROM t \
           LEFT JOIN (SELECT uid, job_id, spec, bucket FROM j UNION ALL SELECT uid, job_id, spec, bucket FROM g) mine \
             ON mine.uid = t.job_uid \
           LEFT JOIN plan ON plan.job_uid = t.job_uid"
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
    let task_uid: String = row.try_get("uid")?;
    if row.try_get::<Option<String>, _>("job_id")?.is_none() {
        tx.rollback().await?;
        set_aside(on, &task_uid).await?;
        return Ok(Taken::Over { task_uid });
    }
    let Wanted { job_id, spec, bucket, part, plan } = match Wanted::read(&row) {
        Ok(wanted) => wanted,
        Err(error) => {
            tx.rollback().await?;
            return Ok(Taken::Unreadable { task_uid, error });
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
        part,
        plan,
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
    // Whoever takes the rows of several jobs takes them in this order.
    let mut expired = expired.iter().map(lease_in).collect::<Result<Vec<_>, _>>()?;
    expired.sort_by(|one, other| one.job_uid.cmp(&other.job_uid));
    for lease in expired {
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

/// Renews for a worker: see [`super::super::Store::heartbeat`]. One statement, and so one trip for all leases; and another
/// where parts of jobs are among them.
pub(super) async fn heartbeat(
    on: &mut PgConnection,
    by: &Identity,
    beats: &[Beat],
    lease: Duration,
) -> Result<Heartbeat, Error> {
    let progress = |beat: &Beat| serde_json::to_string(&beat.progress).expect("progress is plain data");
    let row = sqlx::query(concat!(
        "WITH w AS (UPDATE worker SET seen_at = ",
        now!(),
        ", beat_at = ",
        now!(),
        " WHERE name = $1 AND incarnation = $2 RETURNING name), \
         beat AS (SELECT * FROM unnest($3::text[], $4::bigint[], $5::text[], $7::float8[]) \
           AS beat (uid, epoch, progress, media)), \
         t AS (UPDATE task SET lease_expires_at = ",
        now!(),
        " + $6, media_done = beat.media FROM beat \
           WHERE task.uid = beat.uid AND task.epoch = beat.epoch AND state = 'running' \
             AND owner = $1 AND owner_incarnation = $2 \
           RETURNING task.uid, task.job_uid, kind = 'video' AND ordinal = 0 AS whole, beat.progress), \
         j AS (UPDATE job SET progress = t.progress FROM t WHERE job.uid = t.job_uid AND t.whole \
           RETURNING t.uid, cancel_requested_at IS NOT NULL AS cancelled), \
         v AS (SELECT * FROM j UNION ALL \
           SELECT t.uid, cancel_requested_at IS NOT NULL FROM t JOIN job ON job.uid = t.job_uid \
             WHERE NOT t.whole AND NOT (",
        is_final!("job.state"),
        ")) \
         SELECT EXISTS (SELECT FROM w) AS current, ARRAY(SELECT uid FROM v WHERE NOT cancelled) AS renewed, \
           ARRAY(SELECT uid FROM v WHERE cancelled) AS cancelled, \
           ARRAY(SELECT DISTINCT job_uid FROM t WHERE NOT whole) AS in_parts"
    ))
    .bind(by.worker.as_str())
    .bind(by.incarnation as i64)
    .bind(beats.iter().map(|beat| beat.lease.task_uid.clone()).collect::<Vec<_>>())
    .bind(beats.iter().map(|beat| beat.lease.epoch as i64).collect::<Vec<_>>())
    .bind(beats.iter().map(progress).collect::<Vec<_>>())
    .bind(millis(lease))
    .bind(beats.iter().map(|beat| beat.progress.media_seconds.unwrap_or(0.0)).collect::<Vec<_>>())
    .fetch_one(&mut *on)
    .await?;
    let in_parts: Vec<String> = row.try_get("in_parts")?;
    for job_uid in &in_parts {
        advance(on, job_uid).await?;
    }
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
