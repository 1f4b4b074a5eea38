//! Telling others, from a server: see [`super::super::outbox`].

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::WebhookState;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::super::library::{Library, Search};
use super::super::outbox::{Outbox, SinkEvent, Told, Wanted, WebhookClaim, WebhookRow};
use super::super::row::{self, job_row};
use super::super::rules::{WEBHOOKS_SEEN_MAX, millis};
use super::super::{Error, JobRow};
use super::link::Question;
use super::sql::now;
use super::{Postgres, ask};

#[async_trait]
impl Outbox for Postgres {
    async fn claim_webhooks(&self, wanted: &Wanted) -> Result<Vec<WebhookClaim>, Error> {
        ask!(&self.link, on => claim_webhooks(on, wanted))
    }

    async fn webhook_told(&self, claim: &WebhookClaim, told: &Told) -> Result<Option<WebhookState>, Error> {
        ask!(&self.link, on => webhook_told(on, claim, told))
    }

    async fn webhooks(&self, job_uids: &[String]) -> Result<BTreeMap<String, WebhookRow>, Error> {
        if job_uids.is_empty() {
            return Ok(BTreeMap::new());
        }
        ask!(&self.link, on => webhooks(on, job_uids))
    }

    async fn feed(&self, sink: &str, feeder: &str, hold: Duration) -> Result<Option<i64>, Error> {
        ask!(&self.link, on => feed(on, sink, feeder, hold))
    }

    async fn settled(&self, after: i64, limit: u32) -> Result<Vec<SinkEvent>, Error> {
        ask!(&self.link, on => settled(on, &self.horizon, after, limit))
    }

    async fn fed(&self, sink: &str, feeder: &str, to: i64) -> Result<bool, Error> {
        ask!(&self.link, on => fed(on, sink, feeder, to))
    }

    async fn leave(&self, sink: &str, feeder: &str) -> Result<(), Error> {
        ask!(&self.link, on => leave(on, sink, feeder))
    }
}

#[async_trait]
impl Library for Postgres {
    async fn search(&self, tenant: &str, wanted: &Search) -> Result<Vec<JobRow>, Error> {
        ask!(&self.link, on => search(on, tenant, wanted))
    }
}

/// One statement. What another claimer is at is left to it; the conditions of the update decide.
async fn claim_webhooks(on: &mut PgConnection, wanted: &Wanted) -> Result<Vec<WebhookClaim>, Error> {
    let rows = sqlx::query(concat!(
        "WITH due AS (SELECT seq, receiver, due_at FROM webhook w WHERE state = 'pending' AND due_at <= ",
        now!(),
        " AND receiver <> ALL ($2) AND NOT EXISTS (SELECT FROM webhook earlier \
             WHERE earlier.job_uid = w.job_uid AND earlier.seq < w.seq AND earlier.state = 'pending') \
           ORDER BY due_at LIMIT $5), \
         placed AS (SELECT seq, due_at, row_number() OVER (PARTITION BY receiver ORDER BY due_at, seq) AS place FROM due), \
         mine AS (SELECT w.seq FROM webhook w JOIN placed ON placed.seq = w.seq WHERE place <= $3 \
           ORDER BY placed.due_at LIMIT $4 FOR UPDATE OF w SKIP LOCKED), \
         t AS (UPDATE webhook SET tries = tries + 1, due_at = ",
        now!(),
        " + $1 FROM mine WHERE webhook.seq = mine.seq AND state = 'pending' AND due_at <= ",
        now!(),
        " RETURNING webhook.*) \
         SELECT t.seq AS webhook_seq, t.tries AS webhook_tries, t.kind AS webhook_kind, t.receiver AS webhook_receiver, \
           t.created_at AS webhook_at, job.* FROM t JOIN job ON job.uid = t.job_uid"
    ))
    .bind(millis(wanted.hold))
    .bind(&wanted.busy)
    .bind(i64::from(wanted.per_receiver))
    .bind(i64::from(wanted.limit))
    .bind(WEBHOOKS_SEEN_MAX)
    .fetch_all(on)
    .await?;
    let mut claims = Vec::with_capacity(rows.len());
    for row in &rows {
        // A job of a later version is its own workers' to tell: the claim runs out, and they have it.
        let Ok(job) = job_row(row) else { continue };
        claims.push(WebhookClaim {
            seq: row.try_get("webhook_seq")?,
            tries: row::count(row.try_get("webhook_tries")?),
            kind: row.try_get("webhook_kind")?,
            receiver: row.try_get("webhook_receiver")?,
            at_ms: row.try_get("webhook_at")?,
            tenant: row.try_get("tenant")?,
            job,
        });
    }
    Ok(claims)
}

async fn webhook_told(
    on: &mut PgConnection,
    claim: &WebhookClaim,
    told: &Told,
) -> Result<Option<WebhookState>, Error> {
    let query = match told {
        // Taken is taken, whoever holds the claim by now.
        Told::Delivered => sqlx::query_scalar(concat!(
            "UPDATE webhook SET state = 'delivered', detail = NULL, ended_at = ",
            now!(),
            " WHERE seq = $1 AND state = 'pending' RETURNING state"
        ))
        .bind(claim.seq),
        Told::Gone { detail } => sqlx::query_scalar(concat!(
            "UPDATE webhook SET state = 'given_up', detail = $3, ended_at = ",
            now!(),
            " WHERE seq = $1 AND tries = $2 AND state = 'pending' RETURNING state"
        ))
        .bind(claim.seq)
        .bind(i64::from(claim.tries))
        .bind(detail),
        Told::Failed { detail, retry_after, window } => sqlx::query_scalar(concat!(
            "UPDATE webhook SET detail = $3, due_at = least(clock.now + $4, created_at + $5), \
               state = CASE WHEN clock.now >= created_at + $5 THEN 'given_up' ELSE 'pending' END, \
               ended_at = CASE WHEN clock.now >= created_at + $5 THEN clock.now END \
             FROM (SELECT ",
            now!(),
            " AS now) clock WHERE seq = $1 AND tries = $2 AND state = 'pending' RETURNING state"
        ))
        .bind(claim.seq)
        .bind(i64::from(claim.tries))
        .bind(detail)
        .bind(millis(*retry_after))
        .bind(millis(*window)),
    };
    let state: Option<String> = query.fetch_optional(on).await?;
    state.map(|state| row::webhook_state(&state)).transpose()
}

async fn webhooks(on: &mut PgConnection, job_uids: &[String]) -> Result<BTreeMap<String, WebhookRow>, Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT ON (job_uid) job_uid, state, tries, detail, due_at FROM webhook WHERE job_uid = ANY ($1) \
         ORDER BY job_uid, seq DESC",
    )
    .bind(job_uids)
    .fetch_all(on)
    .await?;
    rows.iter().map(row::webhook).collect()
}

/// Who only would feed it asks every second, and writes nothing.
async fn feed(on: &mut PgConnection, sink: &str, feeder: &str, hold: Duration) -> Result<Option<i64>, Error> {
    let sent = sqlx::query_scalar(concat!(
        "INSERT INTO sink (name, sent, feeder, until) SELECT $1, (SELECT coalesce(max(seq), 0) FROM event), $2, ",
        now!(),
        " + $3 WHERE NOT EXISTS (SELECT FROM sink WHERE name = $1 AND feeder <> $2 AND until > ",
        now!(),
        ") ON CONFLICT (name) DO UPDATE SET feeder = excluded.feeder, until = excluded.until \
         WHERE sink.feeder = excluded.feeder OR sink.until <= ",
        now!(),
        " RETURNING sent"
    ));
    Ok(sent.bind(sink).bind(feeder).bind(millis(hold)).fetch_optional(on).await?)
}

/// A number and a transaction of which it is known: once every transaction before that one has ended, no event with a number
/// up to that one can appear any more.
#[derive(Debug, Clone, Copy)]
struct Horizon {
    seq: i64,
    xact: i64,
}

/// What is waited for.
#[derive(Debug, Default)]
pub(super) struct Horizons(Mutex<Option<Horizon>>);

impl Horizons {
    fn waited_for(&self) -> std::sync::MutexGuard<'_, Option<Horizon>> {
        self.0.lock().expect("nothing panics while holding the horizon")
    }
}

/// Up to which number all events are here that will ever be.
///
/// Numbers are drawn before their transactions commit, so a lower one may appear after a higher one. But whoever draws one
/// has written its job's row before, and so has a transaction number already: one below that of a transaction that begins
/// after the last number was read.
async fn horizon(on: &mut PgConnection, horizons: &Horizons, after: i64) -> Result<i64, Error> {
    let drawn: i64 = sqlx::query_scalar("SELECT last_value FROM event_seq_seq").fetch_one(&mut *on).await?;
    // A number above the last is of a server that is gone.
    let waited_for =
        horizons.waited_for().filter(|waited_for| waited_for.seq <= drawn && waited_for.seq > after);
    let waited_for = match waited_for {
        Some(waited_for) => waited_for,
        None if drawn <= after => return Ok(after),
        None => {
            let xact =
                sqlx::query_scalar("SELECT pg_current_xact_id()::text::bigint").fetch_one(&mut *on).await?;
            Horizon { seq: drawn, xact }
        }
    };
    let oldest: i64 = sqlx::query_scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        .fetch_one(on)
        .await?;
    let is_reached = oldest >= waited_for.xact;
    *horizons.waited_for() = (!is_reached).then_some(waited_for);
    Ok(if is_reached { waited_for.seq } else { after })
}

async fn settled(
    on: &mut PgConnection,
    horizons: &Horizons,
    after: i64,
    limit: u32,
) -> Result<Vec<SinkEvent>, Error> {
    let to = horizon(&mut *on, horizons, after).await?;
    if to <= after {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT seq, tenant, job_id, job_uid, kind, at, body::text FROM event JOIN job ON job.uid = event.job_uid \
         WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3",
    )
    .bind(after)
    .bind(to)
    .bind(i64::from(limit))
    .fetch_all(on)
    .await?;
    rows.iter().map(row::sink_event).collect()
}

async fn fed(on: &mut PgConnection, sink: &str, feeder: &str, to: i64) -> Result<bool, Error> {
    let mine = sqlx::query("UPDATE sink SET sent = greatest(sent, $3) WHERE name = $1 AND feeder = $2");
    Ok(mine.bind(sink).bind(feeder).bind(to).execute(on).await?.rows_affected() == 1)
}

async fn leave(on: &mut PgConnection, sink: &str, feeder: &str) -> Result<(), Error> {
    let left = sqlx::query("UPDATE sink SET until = 0 WHERE name = $1 AND feeder = $2");
    left.bind(sink).bind(feeder).execute(on).await?;
    Ok(())
}

/// A tenant's name as what no word can be, nor the beginning of one.
pub(super) fn tenant_word(tenant: &str) -> String {
    format!(":{tenant}")
}

async fn search(on: &mut PgConnection, tenant: &str, wanted: &Search) -> Result<Vec<JobRow>, Error> {
    // Words are letters and digits: in quotes there is nothing in them that means something here.
    let words = wanted.words.iter().map(|word| format!(" & '{word}'")).collect::<String>();
    let rows = sqlx::query(
        "SELECT job.* FROM job_words JOIN job ON job.uid = job_words.job_uid \
         WHERE job_words.words @@ $1::text::tsquery AND job.tenant = $2 AND job.uid < $3 ORDER BY job.uid DESC LIMIT $4",
    )
    .bind(format!("'{}'{words}:*", tenant_word(tenant)))
    .bind(tenant)
    .bind(wanted.before.as_deref().unwrap_or("~"))
    .bind(i64::from(wanted.limit))
    .fetch_all(on)
    .await?;
    rows.iter().map(job_row).collect()
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, Executor as _};

    use super::super::super::conformance::{ROOM, new_job};
    use super::super::super::private_server::Server;
    use super::super::super::{Store as _, TENANT_DEFAULT};
    use super::super::tests::settings;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_event_that_commits_late_is_not_passed_over() {
        let server = Server::start().unwrap();
        let url = server.create("jobs").unwrap();
        let store = Postgres::open(&url, settings(), 3).await.unwrap();
        let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
        for job in ["slow", "quick"] {
            store.accept(&new_job(job, ""), &worker, ROOM).await.unwrap();
        }
        let start = store.feed("nats", "f", Duration::from_secs(60)).await.unwrap().unwrap();
        let kinds = async || {
            let seen = store.settled(start, 100).await.unwrap();
            seen.into_iter().map(|event| event.kind).collect::<Vec<_>>()
        };
        // It has drawn its number, and another draws the next one and is done.
        let mut late = PgConnection::connect(&url).await.unwrap();
        let enter = "BEGIN; UPDATE job SET attempt = attempt WHERE job_id = 'slow'; \
                     INSERT INTO event (job_uid, at, kind, body) SELECT uid, 0, 'late', '{}' FROM job WHERE job_id = 'slow'";
        late.execute(enter).await.unwrap();
        store.cancel(TENANT_DEFAULT, &"quick".parse().unwrap()).await.unwrap();
        for _ in 0..5 {
            assert_eq!(kinds().await, [""; 0], "whoever went on from there would never see the other");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        late.execute("COMMIT").await.unwrap();
        let mut seen = kinds().await;
        for _ in 0..500 {
            if !seen.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            seen = kinds().await;
        }
        assert_eq!(seen, ["late", "cancelled"]);
        // A number that was drawn for nothing holds nobody up.
        late.execute(
            "BEGIN; INSERT INTO event (job_uid, at, kind, body) SELECT uid, 0, 'x', '{}' FROM job; ROLLBACK",
        )
        .await
        .unwrap();
        assert_eq!(kinds().await, ["late", "cancelled"]);
    }
}
