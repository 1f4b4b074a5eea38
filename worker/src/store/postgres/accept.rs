//! Accepting a job: one statement, and the commit after which a client may be told so.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use millrace_wire::spec::Input;
use sqlx::postgres::PgConnection;

use super::super::copies::asked;
use super::super::outbox::receiver;
use super::super::row::job_row;
use super::super::rules::{class_of, steal_after};
use super::super::{Accepted, Error, Identity, NewJob, Room};
use super::outbox::tenant_word;
use super::read::find;
use super::sql::{event, held, now};

/// The submits that are on their way into the database from here. The database does not show them to each other, so each
/// counts those that came before it as accepted: a burst never overfills a queue.
#[derive(Debug, Default)]
pub(super) struct Entrance(Mutex<Inside>);

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    tickets: BTreeSet<u64>,
}

/// A submit on its way, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    entrance: &'a Entrance,
    number: u64,
    ahead: usize,
}

impl Entrance {
    pub(super) fn enter(&self) -> Ticket<'_> {
        let mut inside = self.inside();
        let (number, ahead) = (inside.next, inside.tickets.len());
        inside.next += 1;
        inside.tickets.insert(number);
        Ticket { entrance: self, number, ahead }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().expect("nothing panics while holding the entrance")
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.entrance.inside().tickets.remove(&self.number);
    }
}

/// Accepts for a worker: see [`super::super::Store::accept`].
pub(super) async fn accept(
    on: &mut PgConnection,
    new: &NewJob,
    by: &Identity,
    room: Room,
    ticket: &Ticket<'_>,
) -> Result<Accepted, Error> {
    let class = new.spec.priority();
    let room = room.limit(class) - i64::try_from(ticket.ahead).unwrap_or(i64::MAX);
    let hash = new.spec.hash();
    let input_path = match &new.spec.input {
        Input::Path(path) => Some(path),
        Input::Url(_) => None,
    };
    let copies = asked(&new.spec, new.second.as_ref(), &by.pool);
    let words = Some(new.spec.words()).filter(|words| !words.is_empty());
    let words = words.map(|words| words.into_iter().chain([tenant_word(&new.tenant)]).collect::<Vec<_>>());
    let created = sqlx::query(concat!(
        "WITH held AS (",
        held!(),
        "), \
         j AS (INSERT INTO job (uid, tenant, job_id, spec, spec_hash, class, state, pool, bucket, \
             retention_days, input_path, created_at) \
           SELECT $3, $4, $5, $6, $7, $8, 'queued', $9, $9, $12, $13, ",
        now!(),
        " FROM held WHERE jobs < $2 ON CONFLICT (tenant, job_id) DO NOTHING RETURNING *), \
         t AS (INSERT INTO task (uid, job_uid, kind, state, pool, class, accepted_by, work_seconds, not_before, created_at) \
           SELECT $10, uid, 'video', 'waiting', pool, class, $1, $11, created_at, created_at FROM j), \
         s AS (INSERT INTO steal (task_uid, pool, class, at) SELECT $10, price.pool, j.class, j.created_at + price.after \
           FROM j, unnest($14::text[], $15::bigint[]) AS price (pool, after) WHERE price.pool <> j.pool), \
         w AS (INSERT INTO job_words (job_uid, words) SELECT uid, array_to_tsvector($16::text[]) FROM j \
           WHERE $16::text[] IS NOT NULL), \
         h AS (INSERT INTO job_webhook (job_uid, receiver) SELECT uid, $17 FROM j WHERE $17::text IS NOT NULL), \
         r AS (INSERT INTO replica (job_uid, what, pool, state, not_before) \
           SELECT j.uid, copy.what, copy.pool, CASE copy.what WHEN 'input' THEN 'waiting' ELSE 'later' END, j.created_at \
           FROM j, unnest($18::text[], $19::text[]) AS copy (what, pool)), \
         e AS (",
        event!("'accepted'", "jsonb_build_object('pool', pool, 'worker', $1)"),
        ") SELECT * FROM j"
    ))
    .bind(by.worker.as_str())
    .bind(room.max(0))
    .bind(uuid::Uuid::now_v7().to_string())
    .bind(&new.tenant)
    .bind(new.job_id.as_str())
    .bind(serde_json::to_string(&new.spec).expect("a spec is plain data"))
    .bind(&hash)
    .bind(class_of(class))
    .bind(by.pool.as_str())
    .bind(uuid::Uuid::now_v7().to_string())
    .bind(new.work_seconds)
    .bind(new.spec.retention_days.map(i64::from))
    .bind(input_path)
    .bind(new.steal.iter().map(|(pool, _)| pool.as_str()).collect::<Vec<_>>())
    .bind(new.steal.iter().map(|(_, price)| steal_after(price)).collect::<Vec<_>>())
    .bind(words)
    .bind(new.spec.webhook_url.as_deref().and_then(receiver))
    .bind(copies.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>())
    .bind(copies.iter().map(|(_, pool)| pool.as_str()).collect::<Vec<_>>())
    .fetch_optional(&mut *on)
    .await?;
    if let Some(row) = created {
        return Ok(Accepted::Created(job_row(&row)?));
    }
    Ok(match find(on, &new.tenant, &new.job_id).await? {
        None => Accepted::Full,
        Some(existing) if existing.spec_hash == hash => Accepted::Existing(existing),
        Some(_) => Accepted::Conflict,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submit_counts_those_that_came_before_it_and_are_still_on_their_way() {
        let entrance = Entrance::default();
        let first = entrance.enter();
        let second = entrance.enter();
        assert_eq!((first.ahead, second.ahead), (0, 1));
        drop(first);
        let third = entrance.enter();
        assert_eq!(third.ahead, 1, "the first is in the database by now, or will never be");
        drop((second, third));
        assert_eq!(entrance.enter().ahead, 0);
    }
}
