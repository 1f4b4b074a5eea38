//! The embedded store: one SQLite file, shared by the workers of one host.
//!
//! WAL with full sync, so that a commit survives the machine; `BEGIN IMMEDIATE`, so that a transaction that will
//! write waits for its turn at the start and never fails in the middle. SQLite has one writer at a time, which makes
//! claims serial: unlike on a server database there is nothing to gain from picking at random among the head of the
//! queue, so the oldest is taken and the order is strict. It survives a process, not its disk.

mod accept;
mod claim;
mod copies;
mod ending;
mod open;
mod outbox;
mod parts;
mod upkeep;

use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::Phase;
use millrace_wire::{JobId, PoolId, WorkerId};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Row, Sqlite as Db, Transaction};

use super::row::job_row;
use super::rules::millis;
use super::{
    Accepted, AttemptEnd, Backlog, Beat, Cancelled, Claim, Committed, Done, Error, Event, Filter, Heartbeat,
    Identity, JobRow, Lease, Manifest, NewJob, NewPart, Published, Retried, Room, Store, Verdict,
};

/// Milliseconds since 1970 by the database's clock.
macro_rules! now {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}
use now;

/// [`Store`] on one SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    id: String,
    signing_key: Vec<u8>,
    failures_max: u32,
}

impl Sqlite {
    async fn begin(&self) -> Result<Transaction<'static, Db>, Error> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

async fn find(on: &mut SqliteConnection, tenant: &str, job_id: &JobId) -> Result<Option<JobRow>, Error> {
    let row = sqlx::query("SELECT * FROM job WHERE tenant = ? AND job_id = ?")
        .bind(tenant)
        .bind(job_id.as_str())
        .fetch_optional(on)
        .await?;
    row.as_ref().map(job_row).transpose()
}

/// A job's row as a [`millrace_wire::job::JobUpdate`] is written, without reading its words.
fn update(row: &SqliteRow) -> Result<Value, Error> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let maybe = |column: &str| row.try_get::<Option<String>, _>(column);
    let progress: Value =
        serde_json::from_str(&text("progress")?).unwrap_or_else(|_| json!({ "percent": 0.0 }));
    let mut update = json!({
        "job_id": text("job_id")?,
        "state": text("state")?,
        "progress": progress,
        "pool": text("pool")?,
        "attempt": row.try_get::<i64, _>("attempt")?,
    });
    if let Some(phase) = maybe("phase")? {
        update["phase"] = phase.into();
    }
    if let Some(worker) = maybe("worker")? {
        update["worker"] = worker.into();
    }
    if let Some(code) = maybe("error_code")? {
        update["error"] = json!({ "code": code, "detail": maybe("error_detail")?.unwrap_or_default() });
    }
    Ok(update)
}

/// Enters an event: last in what changes a job, for the body also says how the job stands after it.
///
/// The row's words go in as they are: one of a later version must not keep this one from writing.
async fn record(on: &mut SqliteConnection, job_uid: &str, kind: &str, mut body: Value) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT job_id, state, phase, progress, pool, worker, attempt, error_code, error_detail FROM job WHERE uid = ?",
    )
    .bind(job_uid)
    .fetch_one(&mut *on)
    .await?;
    body["job"] = update(&row)?;
    sqlx::query(concat!("INSERT INTO event (job_uid, at, kind, body) VALUES (?, ", now!(), ", ?, ?)"))
        .bind(job_uid)
        .bind(kind)
        .bind(body.to_string())
        .execute(on)
        .await?;
    Ok(())
}

#[async_trait]
impl Store for Sqlite {
    fn id(&self) -> &str {
        &self.id
    }

    fn signing_key(&self) -> &[u8] {
        &self.signing_key
    }

    async fn register(&self, worker: &WorkerId, pool: &PoolId) -> Result<Identity, Error> {
        let mut tx = self.begin().await?;
        let incarnation: i64 = sqlx::query_scalar(concat!(
            "INSERT INTO worker (name, pool, incarnation, registered_at, seen_at) VALUES (?, ?, 1, ",
            now!(),
            ", ",
            now!(),
            ") ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, incarnation = incarnation + 1, ",
            "registered_at = excluded.registered_at, seen_at = excluded.seen_at, unfit_at = 0 RETURNING incarnation"
        ))
        .bind(worker.as_str())
        .bind(pool.as_str())
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query(concat!(
            "UPDATE task SET lease_expires_at = ",
            now!(),
            " WHERE owner = ? AND state = 'running'"
        ))
        .bind(worker.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Identity { worker: worker.clone(), pool: pool.clone(), incarnation: incarnation as u64 })
    }

    async fn equip(&self, worker: &Identity, encoder: &str, patience: Duration) -> Result<(), Error> {
        sqlx::query(concat!(
            "UPDATE worker SET encoder = ?, patience = ?, beat_at = ",
            now!(),
            " WHERE name = ? AND incarnation = ?"
        ))
        .bind(encoder)
        .bind(millis(patience))
        .bind(worker.worker.as_str())
        .bind(worker.incarnation as i64)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn split(&self, lease: &Lease, plan: &str, parts: &[NewPart]) -> Result<bool, Error> {
        parts::split(self, lease, plan, parts).await
    }

    async fn commit(&self, lease: &Lease, encoder: &str, result: &str) -> Result<Committed, Error> {
        parts::commit(self, lease, encoder, result).await
    }

    async fn take_back(&self, lease: &Lease, lost: &[Lease], detail: &str) -> Result<bool, Error> {
        parts::take_back(self, lease, lost, detail).await
    }

    async fn results(&self, job_uid: &str) -> Result<Vec<Done>, Error> {
        parts::results(self, job_uid).await
    }

    async fn deregister(&self, worker: &Identity) -> Result<(), Error> {
        sqlx::query("UPDATE worker SET seen_at = 0 WHERE name = ? AND incarnation = ?")
            .bind(worker.worker.as_str())
            .bind(worker.incarnation as i64)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn accept(&self, new: &NewJob, by: &Identity, room: Room) -> Result<Accepted, Error> {
        accept::accept(self, new, by, room).await
    }

    async fn job(&self, tenant: &str, job_id: &JobId) -> Result<Option<JobRow>, Error> {
        let mut connection = self.readers.acquire().await?;
        find(&mut connection, tenant, job_id).await
    }

    async fn jobs(&self, tenant: &str, filter: &Filter) -> Result<Vec<JobRow>, Error> {
        let before = filter.before.as_deref().unwrap_or("~"); // sorts after every UUID
        let query = match filter.state {
            Some(state) => sqlx::query(
                "SELECT * FROM job WHERE tenant = ? AND state = ? AND uid < ? ORDER BY uid DESC LIMIT ?",
            )
            .bind(tenant)
            .bind(state.as_str()),
            None => sqlx::query("SELECT * FROM job WHERE tenant = ? AND uid < ? ORDER BY uid DESC LIMIT ?")
                .bind(tenant),
        };
        let rows = query.bind(before).bind(filter.limit).fetch_all(&self.readers).await?;
        rows.iter().map(job_row).collect()
    }

    async fn cancel(&self, tenant: &str, job_id: &JobId) -> Result<Cancelled, Error> {
        ending::cancel(self, tenant, job_id).await
    }

    async fn retry(&self, tenant: &str, job_id: &JobId, by: &Identity, room: Room) -> Result<Retried, Error> {
        ending::retry(self, tenant, job_id, by, room).await
    }

    async fn claim(&self, by: &Identity, lease: Duration) -> Result<Option<Claim>, Error> {
        claim::claim(self, by, lease).await
    }

    async fn heartbeat(&self, by: &Identity, beats: &[Beat], lease: Duration) -> Result<Heartbeat, Error> {
        let mut tx = self.begin().await?;
        let current = sqlx::query(concat!(
            "UPDATE worker SET seen_at = ",
            now!(),
            ", beat_at = ",
            now!(),
            " WHERE name = ? AND incarnation = ?"
        ))
        .bind(by.worker.as_str())
        .bind(by.incarnation as i64)
        .execute(&mut *tx)
        .await?;
        let mut verdicts = Vec::with_capacity(beats.len());
        for beat in beats {
            let renewed = sqlx::query(concat!(
                "UPDATE task SET lease_expires_at = ",
                now!(),
                " + ?, media_done = ? ",
                "WHERE uid = ? AND epoch = ? AND state = 'running' AND owner = ? AND owner_incarnation = ? ",
                "RETURNING kind = 'video' AND ordinal = 0"
            ))
            .bind(millis(lease))
            .bind(beat.progress.media_seconds.unwrap_or(0.0))
            .bind(&beat.lease.task_uid)
            .bind(beat.lease.epoch as i64)
            .bind(by.worker.as_str())
            .bind(by.incarnation as i64)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = renewed else {
                verdicts.push(Verdict::Lost);
                continue;
            };
            if row.try_get(0)? {
                sqlx::query("UPDATE job SET progress = ? WHERE uid = ?")
                    .bind(serde_json::to_string(&beat.progress).expect("progress is plain data"))
                    .bind(&beat.lease.job_uid)
                    .execute(&mut *tx)
                    .await?;
            } else {
                parts::advance(&mut tx, &beat.lease.job_uid).await?;
            }
            let cancelled: bool =
                sqlx::query_scalar("SELECT cancel_requested_at IS NOT NULL FROM job WHERE uid = ?")
                    .bind(&beat.lease.job_uid)
                    .fetch_one(&mut *tx)
                    .await?;
            verdicts.push(if cancelled { Verdict::CancelRequested } else { Verdict::Renewed });
        }
        tx.commit().await?;
        Ok(Heartbeat { verdicts, superseded: current.rows_affected() == 0 })
    }

    async fn cancellations(&self, by: &Identity) -> Result<Vec<Lease>, Error> {
        let rows = sqlx::query(
            "SELECT task.uid, task.job_uid, task.epoch FROM task JOIN job ON job.uid = task.job_uid \
             WHERE task.state = 'running' AND task.owner = ? AND job.cancel_requested_at IS NOT NULL",
        )
        .bind(by.worker.as_str())
        .fetch_all(&self.readers)
        .await?;
        let lease = |row: SqliteRow| {
            let epoch: i64 = row.try_get(2)?;
            Ok(Lease { task_uid: row.try_get(0)?, job_uid: row.try_get(1)?, epoch: epoch as u64 })
        };
        rows.into_iter().map(lease).collect()
    }

    async fn enter(&self, lease: &Lease, phase: Phase, work_seconds: Option<f64>) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let mine = sqlx::query(
            "UPDATE task SET work_seconds = COALESCE(?, work_seconds) WHERE uid = ? AND epoch = ? AND state = 'running'",
        )
        .bind(work_seconds)
        .bind(&lease.task_uid)
        .bind(lease.epoch as i64)
        .execute(&mut *tx)
        .await?;
        if mine.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("UPDATE job SET phase = ? WHERE uid = ?")
            .bind(phase.as_str())
            .bind(&lease.job_uid)
            .execute(&mut *tx)
            .await?;
        record(&mut tx, &lease.job_uid, "phase", json!({ "phase": phase })).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn publish(&self, lease: &Lease, manifest: &Manifest) -> Result<Published, Error> {
        ending::publish(self, lease, manifest).await
    }

    async fn end(&self, lease: &Lease, end: &AttemptEnd) -> Result<(), Error> {
        ending::end(self, lease, end).await
    }

    async fn backlog(&self, of: &Identity) -> Result<Backlog, Error> {
        let row = sqlx::query(
            "SELECT count(*) FILTER (WHERE accepted_by = ?1), \
                    total(work_seconds) FILTER (WHERE accepted_by = ?1), \
                    count(*) FILTER (WHERE pool = ?2), total(work_seconds) FILTER (WHERE pool = ?2) \
             FROM task WHERE state = 'waiting' AND (accepted_by = ?1 OR pool = ?2)",
        )
        .bind(of.worker.as_str())
        .bind(of.pool.as_str())
        .fetch_one(&self.readers)
        .await?;
        let count = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Backlog {
            accepted_here: count(row.try_get(0)?),
            accepted_here_work: row.try_get(1)?,
            pool: count(row.try_get(2)?),
            pool_work: row.try_get(3)?,
        })
    }

    async fn events(&self, job_uid: &str, after: i64, limit: u32) -> Result<Vec<Event>, Error> {
        let rows = sqlx::query(
            "SELECT seq, kind, body FROM event WHERE job_uid = ? AND seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(job_uid)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let event =
            |row: SqliteRow| Ok(Event { seq: row.try_get(0)?, kind: row.try_get(1)?, body: row.try_get(2)? });
        rows.into_iter().map(event).collect()
    }

    async fn ping(&self) -> Result<i64, Error> {
        Ok(sqlx::query_scalar(concat!("SELECT ", now!())).fetch_one(&self.readers).await?)
    }
}

#[cfg(test)]
mod tests;
