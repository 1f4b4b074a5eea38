//! Jobs in parts: see [`super::super::parts`]. A part's own row comes first, then the job's, then the plan's; other parts'
//! rows only as far as nobody holds them.

use millrace_wire::job::FailureCode;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::super::rules::end_of;
use super::super::{Committed, Done, Error, Lease, NewPart, Part};
use super::ending::{close_attempt, finish_job, leave};
use super::read::lease as lease_in;
use super::sql::{event, now};

/// See [`super::super::Store::split`].
pub(super) async fn split(
    on: &mut PgConnection,
    lease: &Lease,
    plan: &str,
    parts: &[NewPart],
) -> Result<bool, Error> {
    let mut tx = on.begin().await?;
    if !leave(&mut tx, lease).await? {
        // The answer to an earlier try may have been lost: the job with my plan is split.
        let stored: Option<String> = sqlx::query_scalar("SELECT plan FROM plan WHERE job_uid = $1")
            .bind(&lease.job_uid)
            .fetch_optional(&mut *tx)
            .await?;
        return Ok(stored.as_deref() == Some(plan));
    }
    sqlx::query("UPDATE task SET state = 'done' WHERE uid = $1")
        .bind(&lease.task_uid)
        .execute(&mut *tx)
        .await?;
    let split = sqlx::query(concat!(
        "WITH j AS (UPDATE job SET phase = 'encoding' WHERE uid = $1 AND epoch = $2 AND state = 'running' \
           AND cancel_requested_at IS NULL RETURNING *), \
         p AS (INSERT INTO plan (job_uid, plan) SELECT uid, $3 FROM j), \
         t AS (INSERT INTO task (uid, job_uid, kind, ordinal, state, pool, class, accepted_by, work_seconds, media, \
             not_before, created_at) \
           SELECT part.uid, j.uid, part.kind, part.ordinal, 'waiting', j.pool, j.class, '', part.work, part.media, ",
        now!(),
        ", j.created_at \
           FROM j, unnest($4::text[], $5::text[], $6::bigint[], $7::float8[], $8::float8[]) \
             AS part (uid, kind, ordinal, work, media)), \
         e AS (",
        event!("'split'", "jsonb_build_object('parts', cardinality($4::text[]))"),
        ") SELECT uid FROM j"
    ))
    .bind(&lease.job_uid)
    .bind(lease.epoch as i64)
    .bind(plan)
    .bind(parts.iter().map(|_| uuid::Uuid::now_v7().to_string()).collect::<Vec<_>>())
    .bind(parts.iter().map(|new| new.part.kind().to_owned()).collect::<Vec<_>>())
    .bind(parts.iter().map(|new| new.part.ordinal()).collect::<Vec<_>>())
    .bind(parts.iter().map(|new| new.work_seconds).collect::<Vec<_>>())
    .bind(parts.iter().map(|new| new.media_s).collect::<Vec<_>>())
    .fetch_optional(&mut *tx)
    .await?;
    if split.is_none() {
        tx.rollback().await?;
        return Ok(false);
    }
    close_attempt(&mut tx, lease, "succeeded", None).await?;
    tx.commit().await?;
    Ok(true)
}

/// See [`super::super::Store::commit`].
pub(super) async fn commit(
    on: &mut PgConnection,
    lease: &Lease,
    encoder: &str,
    result: &str,
) -> Result<Committed, Error> {
    let mut tx = on.begin().await?;
    let task = sqlx::query("SELECT kind, ordinal, state, epoch, result FROM task WHERE uid = $1 FOR UPDATE")
        .bind(&lease.task_uid)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(task) = task else { return Ok(Committed::No) };
    let part = Part::read(&task.try_get::<String, _>("kind")?, task.try_get("ordinal")?)?;
    let (state, epoch): (String, i64) = (task.try_get("state")?, task.try_get("epoch")?);
    if epoch != lease.epoch as i64 || state != "running" {
        // The answer to an earlier try may have been lost.
        let stored: Option<String> = task.try_get("result")?;
        let mine = epoch == lease.epoch as i64 && state == "done" && stored.as_deref() == Some(result);
        return Ok(if mine { Committed::Yes } else { Committed::No });
    }
    // From here on the parts of this job commit one after the other, and each sees what those before it did.
    let alive = sqlx::query(
        "SELECT FROM job WHERE uid = $1 AND state = 'running' AND cancel_requested_at IS NULL FOR UPDATE",
    )
    .bind(&lease.job_uid)
    .fetch_optional(&mut *tx)
    .await?;
    if alive.is_none() {
        return Ok(Committed::No);
    }
    let mut again = false;
    if let Part::Range(_) = part {
        let pinned: String = sqlx::query_scalar(
            "UPDATE plan SET encoder = coalesce(encoder, $2) WHERE job_uid = $1 RETURNING encoder",
        )
        .bind(&lease.job_uid)
        .bind(encoder)
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE task SET encoder = $2 FROM (SELECT uid FROM task WHERE job_uid = $1 AND kind = 'video' \
             AND ordinal > 0 AND encoder <> $2 FOR UPDATE SKIP LOCKED) other WHERE task.uid = other.uid",
        )
        .bind(&lease.job_uid)
        .bind(&pinned)
        .execute(&mut *tx)
        .await?;
        again = pinned != encoder;
    }
    leave(&mut tx, lease).await?;
    if again {
        close_attempt(&mut tx, lease, "released", None).await?;
        tx.commit().await?;
        return Ok(Committed::Again);
    }
    sqlx::query("UPDATE task SET state = 'done', result = $2, media_done = media WHERE uid = $1")
        .bind(&lease.task_uid)
        .bind(result)
        .execute(&mut *tx)
        .await?;
    close_attempt(&mut tx, lease, "succeeded", None).await?;
    advance(&mut tx, &lease.job_uid).await?;
    // A claim of the finalizer's is the job's next one that may publish, so its number follows theirs. One whose parts were
    // taken back is there already.
    sqlx::query(concat!(
        "INSERT INTO task (uid, job_uid, kind, state, pool, class, accepted_by, work_seconds, not_before, epoch, \
         created_at) SELECT $2, uid, 'finalize', 'waiting', pool, class, '', 1, ",
        now!(),
        ", epoch, created_at FROM job \
         WHERE uid = $1 AND NOT EXISTS (SELECT FROM task WHERE job_uid = $1 AND task.state <> 'done') \
         ON CONFLICT (job_uid, kind, ordinal) DO UPDATE SET state = 'waiting', not_before = excluded.not_before \
         WHERE task.state = 'done'"
    ))
    .bind(&lease.job_uid)
    .bind(uuid::Uuid::now_v7().to_string())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Committed::Yes)
}

/// Lets a job's progress follow that of its parts: never back, and never to the end. See [`super::super::parts`] for its speed.
pub(super) async fn advance(on: &mut PgConnection, job_uid: &str) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE job SET progress = jsonb_strip_nulls(jsonb_build_object( \
           'percent', greatest(coalesce((progress::jsonb->>'percent')::float8, 0), \
             CASE WHEN media > 0 THEN least(99, 100 * done / media) ELSE 0 END), \
           'media_seconds', greatest(coalesce((progress::jsonb->>'media_seconds')::float8, 0), done), \
           'speed', CASE WHEN done < media THEN coalesce(speed, (progress::jsonb->>'speed')::float8) END, \
           'eta_seconds', CASE WHEN done < media \
             THEN (media - done) / coalesce(speed, (progress::jsonb->>'speed')::float8) END))::text \
         FROM (SELECT sum(media) AS media, sum(least(media, media_done)) AS done, \
             nullif(sum(least(media, media_done)) FILTER (WHERE state IN ('running', 'done')) \
               * count(*) FILTER (WHERE state = 'running') \
               / nullif(sum(coalesce(ended_at, ",
        now!(),
        ") - started_at) FILTER (WHERE state IN ('running', 'done'))::float8 / 1000, 0), 0) AS speed \
           FROM task LEFT JOIN attempt ON task_uid = uid AND number = epoch WHERE job_uid = $1 AND media > 0) part \
         WHERE job.uid = $1 AND state = 'running'"
    ))
    .bind(job_uid)
    .execute(on)
    .await?;
    Ok(())
}

/// See [`super::super::Store::take_back`].
pub(super) async fn take_back(
    on: &mut PgConnection,
    lease: &Lease,
    (lost, detail): (&[Lease], &str),
    failures_max: u32,
) -> Result<bool, Error> {
    let code = FailureCode::ObjectsLost;
    let mut tx = on.begin().await?;
    let uids: Vec<&str> = lost.iter().chain([lease]).map(|lease| lease.task_uid.as_str()).collect();
    sqlx::query("SELECT FROM task WHERE uid = ANY ($1) ORDER BY uid FOR UPDATE")
        .bind(&uids)
        .execute(&mut *tx)
        .await?;
    let alive = sqlx::query(
        "SELECT FROM job WHERE uid = $1 AND state = 'running' AND cancel_requested_at IS NULL FOR UPDATE",
    );
    if alive.bind(&lease.job_uid).fetch_optional(&mut *tx).await?.is_none() || !leave(&mut tx, lease).await? {
        return Ok(false);
    }
    // There is nothing to put together until the last of them is done again, whose commit lets it wait once more.
    sqlx::query("UPDATE task SET state = 'done' WHERE uid = $1")
        .bind(&lease.task_uid)
        .execute(&mut *tx)
        .await?;
    close_attempt(&mut tx, lease, "released", None).await?;
    let mut failures = 0;
    for lost in lost {
        let counted: Option<i64> = sqlx::query_scalar(concat!(
            "WITH t AS (UPDATE task SET state = 'waiting', result = NULL, media_done = 0, failures = failures + 1, \
               not_before = ",
            now!(),
            " WHERE uid = $1 AND epoch = $2 AND state = 'done' RETURNING uid, failures), \
             a AS (UPDATE attempt SET outcome = 'failed', code = $3, detail = $4 FROM t \
               WHERE task_uid = t.uid AND number = $2) \
             SELECT failures FROM t"
        ))
        .bind(&lost.task_uid)
        .bind(lost.epoch as i64)
        .bind(code.as_str())
        .bind(detail)
        .fetch_optional(&mut *tx)
        .await?;
        failures = failures.max(counted.unwrap_or(0));
    }
    sqlx::query(concat!(
        "WITH j AS (UPDATE job SET phase = 'encoding' WHERE uid = $1 RETURNING *) ",
        event!("'taken_back'", "jsonb_build_object('code', $2::text, 'parts', $3::bigint)")
    ))
    .bind(&lease.job_uid)
    .bind(code.as_str())
    .bind(i64::try_from(lost.len()).unwrap_or(i64::MAX))
    .execute(&mut *tx)
    .await?;
    if let Some(state) = end_of(code, failures, failures_max) {
        finish_job(&mut tx, &lease.job_uid, state, Some((code.as_str(), detail))).await?;
    }
    tx.commit().await?;
    Ok(true)
}

/// See [`super::super::Store::results`].
pub(super) async fn results(on: &mut PgConnection, job_uid: &str) -> Result<Vec<Done>, Error> {
    let rows = sqlx::query(
        "SELECT uid, job_uid, kind, ordinal, epoch, result FROM task \
         WHERE job_uid = $1 AND state = 'done' AND result IS NOT NULL ORDER BY kind, ordinal",
    )
    .bind(job_uid)
    .fetch_all(on)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Done {
                part: Part::read(&row.try_get::<String, _>("kind")?, row.try_get("ordinal")?)?,
                lease: lease_in(row)?,
                result: row.try_get("result")?,
            })
        })
        .collect()
}

/// Lets the ranges of a job begin anew whose encoder is gone: what is done of them was made by it.
pub(super) async fn begin_anew(on: &mut PgConnection, job_uid: &str) -> Result<(), Error> {
    let mut tx = on.begin().await?;
    let rows = sqlx::query(
        "SELECT uid, state FROM task WHERE job_uid = $1 AND kind = 'video' AND ordinal > 0 ORDER BY uid FOR UPDATE",
    )
    .bind(job_uid)
    .fetch_all(&mut *tx)
    .await?;
    let states = rows.iter().map(|row| row.try_get::<String, _>("state")).collect::<Result<Vec<_>, _>>()?;
    // Somebody else may have been faster, and runs one by now; or all is done.
    let waits = |state: &String| state == "waiting" || state == "delayed";
    if states.iter().any(|state| state == "running") || !states.iter().any(waits) {
        return Ok(());
    }
    sqlx::query(concat!(
        "WITH t AS (UPDATE task SET state = CASE state WHEN 'done' THEN 'waiting' ELSE state END, encoder = '', \
           result = NULL, media_done = 0 WHERE job_uid = $1 AND kind = 'video' AND ordinal > 0 \
           AND state IN ('waiting', 'delayed', 'done') RETURNING task.uid), \
         a AS (UPDATE attempt SET outcome = 'released' FROM t WHERE task_uid = t.uid AND outcome = 'succeeded'), \
         p AS (UPDATE plan SET encoder = NULL WHERE job_uid = $1), \
         j AS (SELECT * FROM job WHERE uid = $1) ",
        event!("'begun_anew'", "'{}'::jsonb")
    ))
    .bind(job_uid)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}
