//! The store for more than one machine: a PostgreSQL server, or several of which one takes writes.
//!
//! What is a single statement here is several on SQLite: a trip to a server costs more than a complicated statement, above
//! all where the server is in another cloud. READ COMMITTED, and every decision a compare-and-set on one row; advisory locks
//! keep workers from migrating at the same time and SKIP LOCKED keeps claimers from queueing for one row, but nothing that
//! is true rests on either. Every question has a deadline by this process's own clock, because a server that hangs, and a
//! network that swallows, never answer.

mod accept;
mod claim;
mod copies;
mod ending;
#[cfg(test)]
mod growth;
mod link;
mod open;
mod outbox;
mod parts;
mod read;
mod server;
mod sql;
#[cfg(test)]
pub(super) mod tests;
mod upkeep;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::Phase;
use millrace_wire::{JobId, PoolId, WorkerId};
use sqlx::postgres::PgConnection;

use super::rules::millis;
use super::{
    Accepted, AttemptEnd, Backlog, Beat, Cancelled, Claim, Committed, Done, Error, Event, Filter, Heartbeat,
    Identity, JobRow, Lease, Manifest, NewJob, NewPart, Published, Retried, Room, Store,
};
use accept::Entrance;
use link::{Link, Question};
use sql::{event, now};

/// How to speak to the servers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections at once.
    pub connections_max: u32,
    /// How long a question may take, waiting for a connection included.
    pub timeout: Duration,
    /// How long a new connection, or waiting for a free one, may take.
    pub connect_timeout: Duration,
    /// A file with the password, read again whenever the server is looked for; in place of one in a URL.
    pub password_file: Option<PathBuf>,
}

/// [`Store`] and [`super::Upkeep`] on PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    link: Arc<Link>,
    id: String,
    signing_key: Vec<u8>,
    failures_max: u32,
    entrance: Entrance,
    horizon: outbox::Horizons,
}

/// Asks a question on a connection of the link's, until it is answered or its time is up.
macro_rules! ask {
    ($link:expr, $on:ident => $question:expr) => {{
        let mut question = Question::new($link);
        loop {
            let asked = async {
                let mut held = $link.connection().await?;
                let $on: &mut PgConnection = &mut held;
                let answer = $question.await?;
                held.is_clean();
                Ok(answer)
            };
            if let Some(answer) = question.within(asked).await {
                break answer;
            }
        }
    }};
}
use ask;

#[async_trait]
impl Store for Postgres {
    fn id(&self) -> &str {
        &self.id
    }

    fn signing_key(&self) -> &[u8] {
        &self.signing_key
    }

    async fn register(&self, worker: &WorkerId, pool: &PoolId) -> Result<Identity, Error> {
        ask!(&self.link, on => register(on, worker, pool))
    }

    async fn equip(&self, worker: &Identity, encoder: &str, patience: Duration) -> Result<(), Error> {
        ask!(&self.link, on => equip(on, worker, encoder, patience))
    }

    async fn split(&self, lease: &Lease, plan: &str, parts: &[NewPart]) -> Result<bool, Error> {
        ask!(&self.link, on => parts::split(on, lease, plan, parts))
    }

    async fn commit(&self, lease: &Lease, encoder: &str, result: &str) -> Result<Committed, Error> {
        ask!(&self.link, on => parts::commit(on, lease, encoder, result))
    }

    async fn take_back(&self, lease: &Lease, lost: &[Lease], detail: &str) -> Result<bool, Error> {
        ask!(&self.link, on => parts::take_back(on, lease, (lost, detail), self.failures_max))
    }

    async fn results(&self, job_uid: &str) -> Result<Vec<Done>, Error> {
        ask!(&self.link, on => parts::results(on, job_uid))
    }

    async fn deregister(&self, worker: &Identity) -> Result<(), Error> {
        ask!(&self.link, on => deregister(on, worker))
    }

    async fn accept(&self, new: &NewJob, by: &Identity, room: Room) -> Result<Accepted, Error> {
        let ticket = self.entrance.enter();
        ask!(&self.link, on => accept::accept(on, new, by, room, &ticket))
    }

    async fn job(&self, tenant: &str, job_id: &JobId) -> Result<Option<JobRow>, Error> {
        ask!(&self.link, on => read::find(on, tenant, job_id))
    }

    async fn jobs(&self, tenant: &str, filter: &Filter) -> Result<Vec<JobRow>, Error> {
        ask!(&self.link, on => read::jobs(on, tenant, filter))
    }

    async fn cancel(&self, tenant: &str, job_id: &JobId) -> Result<Cancelled, Error> {
        ask!(&self.link, on => ending::cancel(on, tenant, job_id))
    }

    async fn retry(&self, tenant: &str, job_id: &JobId, by: &Identity, room: Room) -> Result<Retried, Error> {
        ask!(&self.link, on => ending::retry(on, tenant, job_id, by, room))
    }

    async fn claim(&self, by: &Identity, lease: Duration) -> Result<Option<Claim>, Error> {
        ask!(&self.link, on => claim::claim(on, by, lease, self.failures_max))
    }

    async fn heartbeat(&self, by: &Identity, beats: &[Beat], lease: Duration) -> Result<Heartbeat, Error> {
        ask!(&self.link, on => claim::heartbeat(on, by, beats, lease))
    }

    async fn cancellations(&self, by: &Identity) -> Result<Vec<Lease>, Error> {
        ask!(&self.link, on => read::cancellations(on, by))
    }

    async fn enter(&self, lease: &Lease, phase: Phase, work_seconds: Option<f64>) -> Result<bool, Error> {
        ask!(&self.link, on => enter(on, lease, phase, work_seconds))
    }

    async fn publish(&self, lease: &Lease, manifest: &Manifest) -> Result<Published, Error> {
        ask!(&self.link, on => ending::publish(on, lease, manifest))
    }

    async fn end(&self, lease: &Lease, end: &AttemptEnd) -> Result<(), Error> {
        ask!(&self.link, on => ending::end(on, lease, end, self.failures_max))
    }

    async fn backlog(&self, of: &Identity) -> Result<Backlog, Error> {
        ask!(&self.link, on => read::backlog(on, of))
    }

    async fn events(&self, job_uid: &str, after: i64, limit: u32) -> Result<Vec<Event>, Error> {
        ask!(&self.link, on => read::events(on, job_uid, after, limit))
    }

    async fn ping(&self) -> Result<i64, Error> {
        ask!(&self.link, on => ping(on))
    }
}

async fn register(on: &mut PgConnection, worker: &WorkerId, pool: &PoolId) -> Result<Identity, Error> {
    let incarnation: i64 = sqlx::query_scalar(concat!(
        "WITH w AS (INSERT INTO worker (name, pool, incarnation, registered_at, seen_at) \
           SELECT $1, $2, 1, now, now FROM (SELECT ",
        now!(),
        " AS now) clock ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, incarnation = worker.incarnation + 1, \
           registered_at = excluded.registered_at, seen_at = excluded.seen_at, unfit_at = 0 RETURNING incarnation), \
         t AS (UPDATE task SET lease_expires_at = ",
        now!(),
        " WHERE owner = $1 AND state = 'running') SELECT incarnation FROM w"
    ))
    .bind(worker.as_str())
    .bind(pool.as_str())
    .fetch_one(on)
    .await?;
    Ok(Identity { worker: worker.clone(), pool: pool.clone(), incarnation: incarnation as u64 })
}

async fn equip(
    on: &mut PgConnection,
    worker: &Identity,
    encoder: &str,
    patience: Duration,
) -> Result<(), Error> {
    sqlx::query(concat!(
        "UPDATE worker SET encoder = $3, patience = $4, beat_at = ",
        now!(),
        " WHERE name = $1 AND incarnation = $2"
    ))
    .bind(worker.worker.as_str())
    .bind(worker.incarnation as i64)
    .bind(encoder)
    .bind(millis(patience))
    .execute(on)
    .await?;
    Ok(())
}

async fn deregister(on: &mut PgConnection, worker: &Identity) -> Result<(), Error> {
    sqlx::query("UPDATE worker SET seen_at = 0 WHERE name = $1 AND incarnation = $2")
        .bind(worker.worker.as_str())
        .bind(worker.incarnation as i64)
        .execute(on)
        .await?;
    Ok(())
}

async fn enter(
    on: &mut PgConnection,
    lease: &Lease,
    phase: Phase,
    work_seconds: Option<f64>,
) -> Result<bool, Error> {
    let mine = sqlx::query(concat!(
        "WITH t AS (UPDATE task SET work_seconds = coalesce($3, work_seconds) \
           WHERE uid = $1 AND epoch = $2 AND state = 'running' RETURNING job_uid), \
         j AS (UPDATE job SET phase = $4 FROM t WHERE job.uid = t.job_uid RETURNING job.*), \
         e AS (",
        event!("'phase'", "jsonb_build_object('phase', phase)"),
        ") SELECT uid FROM j"
    ))
    .bind(&lease.task_uid)
    .bind(lease.epoch as i64)
    .bind(work_seconds)
    .bind(phase.as_str())
    .fetch_optional(on)
    .await?;
    Ok(mine.is_some())
}

async fn ping(on: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar(concat!("SELECT ", now!())).fetch_one(on).await?)
}
