//! Jobs in parts: see [`super::super::parts`].

use millrace_wire::job::{FailureCode, Progress};
use serde_json::json;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::super::rules::end_of;
use super::super::{Committed, Done, Error, Lease, NewPart, Part};
use super::ending::{close_attempt, finish_job, leave};
use super::{Sqlite, now, record};

/// See [`super::super::Store::split`].
pub(super) async fn split(
    store: &Sqlite,
    lease: &Lease,
    plan: &str,
    parts: &[NewPart],
) -> Result<bool, Error> {
    let mut tx = store.begin().await?;
    if !leave(&mut tx, lease, "done").await? {
        // The answer to an earlier try may have been lost: the job with my plan is split.
        let stored: Option<String> = sqlx::query_scalar("SELECT plan FROM plan WHERE job_uid = ?")
            .bind(&lease.job_uid)
            .fetch_optional(&mut *tx)
            .await?;
        return Ok(stored.as_deref() == Some(plan));
    }
    let job = sqlx::query(
        "UPDATE job SET phase = 'encoding' WHERE uid = ? AND epoch = ? AND state = 'running' \
         AND cancel_requested_at IS NULL RETURNING pool, class, created_at",
    )
    .bind(&lease.job_uid)
    .bind(lease.epoch as i64)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(job) = job else { return Ok(false) };
    let (pool, class, created_at): (String, i64, i64) = (job.try_get(0)?, job.try_get(1)?, job.try_get(2)?);
    sqlx::query("INSERT INTO plan (job_uid, plan) VALUES (?, ?)")
        .bind(&lease.job_uid)
        .bind(plan)
        .execute(&mut *tx)
        .await?;
    for new in parts {
        // Nobody's to accept: they take no room in a worker's queue. In the pool's they have the job's own place.
        sqlx::query(concat!(
            "INSERT INTO task (uid, job_uid, kind, ordinal, state, pool, class, accepted_by, work_seconds, media, \
             not_before, created_at) VALUES (?, ?, ?, ?, 'waiting', ?, ?, '', ?, ?, ",
            now!(),
            ", ?)"
        ))
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(&lease.job_uid)
        .bind(new.part.kind())
        .bind(new.part.ordinal())
        .bind(&pool)
        .bind(class)
        .bind(new.work_seconds)
        .bind(new.media_s)
        .bind(created_at)
        .execute(&mut *tx)
        .await?;
    }
    close_attempt(&mut tx, lease, "succeeded", None).await?;
    record(&mut tx, &lease.job_uid, "split", json!({ "parts": parts.len() })).await?;
    tx.commit().await?;
    Ok(true)
}

/// See [`super::super::Store::commit`].
pub(super) async fn commit(
    store: &Sqlite,
    lease: &Lease,
    encoder: &str,
    result: &str,
) -> Result<Committed, Error> {
    let mut tx = store.begin().await?;
    let row = sqlx::query("SELECT kind, ordinal, state, epoch, result FROM task WHERE uid = ?")
        .bind(&lease.task_uid)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(row) = row else { return Ok(Committed::No) };
    let part = Part::read(&row.try_get::<String, _>(0)?, row.try_get(1)?)?;
    let (state, epoch, stored): (String, i64, Option<String>) =
        (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    if epoch != lease.epoch as i64 || state != "running" {
        // The answer to an earlier try may have been lost.
        let mine = epoch == lease.epoch as i64 && state == "done" && stored.as_deref() == Some(result);
        return Ok(if mine { Committed::Yes } else { Committed::No });
    }
    let alive: bool =
        sqlx::query_scalar("SELECT state = 'running' AND cancel_requested_at IS NULL FROM job WHERE uid = ?")
            .bind(&lease.job_uid)
            .fetch_one(&mut *tx)
            .await?;
    if !alive {
        return Ok(Committed::No);
    }
    if let Part::Range(_) = part {
        let pinned: String = sqlx::query_scalar(
            "UPDATE plan SET encoder = COALESCE(encoder, ?) WHERE job_uid = ? RETURNING encoder",
        )
        .bind(encoder)
        .bind(&lease.job_uid)
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query("UPDATE task SET encoder = ? WHERE job_uid = ? AND kind = 'video' AND ordinal > 0")
            .bind(&pinned)
            .bind(&lease.job_uid)
            .execute(&mut *tx)
            .await?;
        if pinned != encoder {
            leave(&mut tx, lease, "waiting").await?;
            close_attempt(&mut tx, lease, "released", None).await?;
            tx.commit().await?;
            return Ok(Committed::Again);
        }
    }
    leave(&mut tx, lease, "done").await?;
    sqlx::query("UPDATE task SET result = ?, media_done = media WHERE uid = ?")
        .bind(result)
        .bind(&lease.task_uid)
        .execute(&mut *tx)
        .await?;
    close_attempt(&mut tx, lease, "succeeded", None).await?;
    advance(&mut tx, &lease.job_uid).await?;
    // A claim of the finalizer's is the job's next one that may publish, so its number follows theirs. One whose parts were
    // taken back is there already.
    sqlx::query(concat!(
        "INSERT INTO task (uid, job_uid, kind, state, pool, class, accepted_by, work_seconds, not_before, epoch, \
         created_at) SELECT ?2, uid, 'finalize', 'waiting', pool, class, '', 1, ", now!(), ", epoch, created_at FROM job \
         WHERE uid = ?1 AND NOT EXISTS (SELECT 1 FROM task WHERE job_uid = ?1 AND task.state <> 'done') \
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
pub(super) async fn advance(on: &mut SqliteConnection, job_uid: &str) -> Result<(), Error> {
    let row = sqlx::query(concat!(
        "SELECT (SELECT progress FROM job WHERE uid = ?1) AS progress, total(media) AS media, \
         total(min(media, media_done)) AS done, \
         total(min(media, media_done)) FILTER (WHERE state IN ('running', 'done')) \
           * count(*) FILTER (WHERE state = 'running') \
           / nullif(total(COALESCE(ended_at, ",
        now!(),
        ") - started_at) FILTER (WHERE state IN ('running', 'done')) / 1000, 0) \
           AS speed \
         FROM task LEFT JOIN attempt ON task_uid = uid AND number = epoch WHERE job_uid = ?1 AND media > 0"
    ))
    .bind(job_uid)
    .fetch_one(&mut *on)
    .await?;
    let (media, done): (f64, f64) = (row.try_get("media")?, row.try_get("done")?);
    let speed = row.try_get::<Option<f64>, _>("speed")?.filter(|speed| *speed > 0.0);
    let before: Progress = serde_json::from_str(&row.try_get::<String, _>("progress")?).unwrap_or_default();
    let speed = speed.or(before.speed).filter(|_| done < media);
    let percent = if media > 0.0 { (100.0 * done / media).min(99.0) } else { 0.0 };
    let progress = Progress {
        percent: percent.max(before.percent),
        media_seconds: Some(done.max(before.media_seconds.unwrap_or(0.0))),
        speed,
        eta_seconds: speed.map(|speed| (media - done) / speed),
        ..Progress::default()
    };
    sqlx::query("UPDATE job SET progress = ? WHERE uid = ?")
        .bind(serde_json::to_string(&progress).expect("progress is plain data"))
        .bind(job_uid)
        .execute(on)
        .await?;
    Ok(())
}

/// See [`super::super::Store::take_back`].
pub(super) async fn take_back(
    store: &Sqlite,
    lease: &Lease,
    lost: &[Lease],
    detail: &str,
) -> Result<bool, Error> {
    let code = FailureCode::ObjectsLost;
    let mut tx = store.begin().await?;
    // There is nothing to put together until the last of them is done again, whose commit lets it wait once more.
    let left = leave(&mut tx, lease, "done").await?;
    let phase = sqlx::query(
        "UPDATE job SET phase = 'encoding' WHERE uid = ? AND state = 'running' AND cancel_requested_at IS NULL",
    );
    if !left || phase.bind(&lease.job_uid).execute(&mut *tx).await?.rows_affected() == 0 {
        return Ok(false);
    }
    close_attempt(&mut tx, lease, "released", None).await?;
    let mut failures = 0;
    for lost in lost {
        let counted: Option<i64> = sqlx::query_scalar(concat!(
            "UPDATE task SET state = 'waiting', result = NULL, media_done = 0, failures = failures + 1, not_before = ",
            now!(),
            " WHERE uid = ? AND epoch = ? AND state = 'done' RETURNING failures"
        ))
        .bind(&lost.task_uid)
        .bind(lost.epoch as i64)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(counted) = counted else { continue };
        failures = failures.max(counted);
        sqlx::query(
            "UPDATE attempt SET outcome = 'failed', code = ?, detail = ? WHERE task_uid = ? AND number = ?",
        )
        .bind(code.as_str())
        .bind(detail)
        .bind(&lost.task_uid)
        .bind(lost.epoch as i64)
        .execute(&mut *tx)
        .await?;
    }
    let body = json!({ "code": code.as_str(), "parts": lost.len() });
    record(&mut tx, &lease.job_uid, "taken_back", body).await?;
    if let Some(state) = end_of(code, failures, store.failures_max) {
        finish_job(&mut tx, &lease.job_uid, state, Some((code.as_str(), detail))).await?;
    }
    tx.commit().await?;
    Ok(true)
}

/// See [`super::super::Store::results`].
pub(super) async fn results(store: &Sqlite, job_uid: &str) -> Result<Vec<Done>, Error> {
    let rows = sqlx::query(
        "SELECT uid, kind, ordinal, epoch, result FROM task \
         WHERE job_uid = ? AND state = 'done' AND result IS NOT NULL ORDER BY kind, ordinal",
    )
    .bind(job_uid)
    .fetch_all(&store.readers)
    .await?;
    rows.iter()
        .map(|row| {
            let epoch: i64 = row.try_get("epoch")?;
            let (task_uid, job_uid) = (row.try_get("uid")?, job_uid.to_owned());
            Ok(Done {
                part: Part::read(&row.try_get::<String, _>("kind")?, row.try_get("ordinal")?)?,
                lease: Lease { task_uid, job_uid, epoch: epoch as u64 },
                result: row.try_get("result")?,
            })
        })
        .collect()
}

/// Lets the ranges of a job begin anew whose encoder is gone: what is done of them was made by it.
pub(super) async fn begin_anew(on: &mut SqliteConnection, job_uid: &str) -> Result<(), Error> {
    let running: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM task WHERE job_uid = ? AND kind = 'video' AND ordinal > 0 AND state = 'running')",
    )
    .bind(job_uid)
    .fetch_one(&mut *on)
    .await?;
    if running {
        return Ok(());
    }
    sqlx::query(
        "UPDATE attempt SET outcome = 'released' WHERE outcome = 'succeeded' AND task_uid IN \
         (SELECT uid FROM task WHERE job_uid = ? AND kind = 'video' AND ordinal > 0)",
    )
    .bind(job_uid)
    .execute(&mut *on)
    .await?;
    sqlx::query(
        "UPDATE task SET state = 'waiting', encoder = '', result = NULL, media_done = 0 \
         WHERE job_uid = ? AND kind = 'video' AND ordinal > 0 AND state IN ('waiting', 'done')",
    )
    .bind(job_uid)
    .execute(&mut *on)
    .await?;
    sqlx::query("UPDATE plan SET encoder = NULL WHERE job_uid = ?").bind(job_uid).execute(&mut *on).await?;
    record(on, job_uid, "begun_anew", json!({})).await
}
