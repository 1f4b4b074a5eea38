//! Telling others, from the embedded store: see [`super::super::outbox`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::WebhookState;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::super::outbox::{Outbox, SinkEvent, Told, Wanted, WebhookClaim, WebhookRow};
use super::super::row::{self, job_row};
use super::super::rules::{WEBHOOKS_SEEN_MAX, millis};
use super::super::{Error, library};
use super::{Sqlite, now};

/// Whether a webhook may be told now.
macro_rules! due {
    () => {
        concat!("state = 'pending' AND due_at <= ", now!())
    };
}

#[async_trait]
impl Outbox for Sqlite {
    async fn claim_webhooks(&self, wanted: &Wanted) -> Result<Vec<WebhookClaim>, Error> {
        // Asked every second: look without the write lock first.
        let any = concat!("SELECT EXISTS (SELECT 1 FROM webhook WHERE ", due!(), ")");
        if !sqlx::query_scalar::<_, bool>(any).fetch_one(&self.readers).await? {
            return Ok(Vec::new());
        }
        let mut tx = self.begin().await?;
        let claimed = sqlx::query(concat!(
            "UPDATE webhook SET tries = tries + 1, due_at = ",
            now!(),
            " + ?1 WHERE seq IN (SELECT seq FROM ( ",
            "SELECT seq, due_at, row_number() OVER (PARTITION BY receiver ORDER BY due_at, seq) AS place FROM ( ",
            "SELECT seq, receiver, due_at FROM webhook w WHERE ",
            due!(),
            " AND receiver NOT IN (SELECT value FROM json_each(?2)) AND NOT EXISTS (SELECT 1 FROM webhook earlier ",
            "WHERE earlier.job_uid = w.job_uid AND earlier.seq < w.seq AND earlier.state = 'pending') ",
            "ORDER BY due_at LIMIT ?5)) WHERE place <= ?3 ORDER BY due_at LIMIT ?4) ",
            "RETURNING seq, tries, kind, receiver, created_at, job_uid"
        ))
        .bind(millis(wanted.hold))
        .bind(serde_json::to_string(&wanted.busy).expect("names are plain text"))
        .bind(wanted.per_receiver)
        .bind(wanted.limit)
        .bind(WEBHOOKS_SEEN_MAX)
        .fetch_all(&mut *tx)
        .await?;
        let mut claims = Vec::with_capacity(claimed.len());
        for row in claimed {
            let job = sqlx::query("SELECT * FROM job WHERE uid = ?")
                .bind(row.try_get::<String, _>("job_uid")?)
                .fetch_one(&mut *tx)
                .await?;
            claims.push(WebhookClaim {
                seq: row.try_get("seq")?,
                tries: row::count(row.try_get("tries")?),
                kind: row.try_get("kind")?,
                receiver: row.try_get("receiver")?,
                at_ms: row.try_get("created_at")?,
                tenant: job.try_get("tenant")?,
                // A job of a later version is its own workers' to tell: the claim runs out, and they have it.
                job: match job_row(&job) {
                    Ok(job) => job,
                    Err(_) => continue,
                },
            });
        }
        tx.commit().await?;
        Ok(claims)
    }

    async fn webhook_told(&self, claim: &WebhookClaim, told: &Told) -> Result<Option<WebhookState>, Error> {
        let query = match told {
            // Taken is taken, whoever holds the claim by now.
            Told::Delivered => sqlx::query_scalar(concat!(
                "UPDATE webhook SET state = 'delivered', detail = NULL, ended_at = ",
                now!(),
                " WHERE seq = ? AND state = 'pending' RETURNING state"
            ))
            .bind(claim.seq),
            Told::Gone { detail } => sqlx::query_scalar(concat!(
                "UPDATE webhook SET state = 'given_up', detail = ?3, ended_at = ",
                now!(),
                " WHERE seq = ?1 AND tries = ?2 AND state = 'pending' RETURNING state"
            ))
            .bind(claim.seq)
            .bind(claim.tries)
            .bind(detail),
            Told::Failed { detail, retry_after, window } => sqlx::query_scalar(concat!(
                "UPDATE webhook SET detail = ?3, due_at = min(clock.now + ?4, created_at + ?5), ",
                "state = CASE WHEN clock.now >= created_at + ?5 THEN 'given_up' ELSE 'pending' END, ",
                "ended_at = CASE WHEN clock.now >= created_at + ?5 THEN clock.now END ",
                "FROM (SELECT ",
                now!(),
                " AS now) clock WHERE seq = ?1 AND tries = ?2 AND state = 'pending' RETURNING state"
            ))
            .bind(claim.seq)
            .bind(claim.tries)
            .bind(detail)
            .bind(millis(*retry_after))
            .bind(millis(*window)),
        };
        let state: Option<String> = query.fetch_optional(&self.writer).await?;
        state.map(|state| row::webhook_state(&state)).transpose()
    }

    async fn webhooks(&self, job_uids: &[String]) -> Result<BTreeMap<String, WebhookRow>, Error> {
        if job_uids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = sqlx::query(
            "SELECT job_uid, state, tries, detail, due_at, max(seq) FROM webhook \
             WHERE job_uid IN (SELECT value FROM json_each(?)) GROUP BY job_uid",
        )
        .bind(serde_json::to_string(job_uids).expect("names are plain text"))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(row::webhook).collect()
    }

    async fn feed(&self, sink: &str, feeder: &str, hold: Duration) -> Result<Option<i64>, Error> {
        // Who only would feed it asks every second: look without the write lock first.
        let others = concat!(
            "SELECT EXISTS (SELECT 1 FROM sink WHERE name = ? AND feeder <> ? AND until > ",
            now!(),
            ")"
        );
        if sqlx::query_scalar(others).bind(sink).bind(feeder).fetch_one(&self.readers).await? {
            return Ok(None);
        }
        let sent = sqlx::query_scalar(concat!(
            "INSERT INTO sink (name, sent, feeder, until) ",
            "VALUES (?1, (SELECT coalesce(max(seq), 0) FROM event), ?2, ",
            now!(),
            " + ?3) ON CONFLICT (name) DO UPDATE SET feeder = excluded.feeder, until = excluded.until ",
            "WHERE sink.feeder = excluded.feeder OR sink.until <= ",
            now!(),
            " RETURNING sent"
        ));
        Ok(sent.bind(sink).bind(feeder).bind(millis(hold)).fetch_optional(&self.writer).await?)
    }

    /// One writer at a time: numbers are given in the order of commits.
    async fn settled(&self, after: i64, limit: u32) -> Result<Vec<SinkEvent>, Error> {
        let rows = sqlx::query(
            "SELECT seq, tenant, job_id, job_uid, kind, at, body FROM event JOIN job ON job.uid = event.job_uid \
             WHERE seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(row::sink_event).collect()
    }

    async fn fed(&self, sink: &str, feeder: &str, to: i64) -> Result<bool, Error> {
        let mine = sqlx::query("UPDATE sink SET sent = max(sent, ?3) WHERE name = ?1 AND feeder = ?2");
        Ok(mine.bind(sink).bind(feeder).bind(to).execute(&self.writer).await?.rows_affected() == 1)
    }

    async fn leave(&self, sink: &str, feeder: &str) -> Result<(), Error> {
        let left = sqlx::query("UPDATE sink SET until = 0 WHERE name = ? AND feeder = ?");
        left.bind(sink).bind(feeder).execute(&self.writer).await?;
        Ok(())
    }
}

/// A tenant's name as one word.
pub(super) fn tenant_word(tenant: &str) -> String {
    format!("t{}", hex::encode(tenant))
}

#[async_trait]
impl library::Library for Sqlite {
    async fn search(
        &self,
        tenant: &str,
        search: &library::Search,
    ) -> Result<Vec<super::super::JobRow>, Error> {
        // Words are letters and digits: in quotes there is nothing in them that means something here.
        let words = search.words.iter().map(|word| format!("words : \"{word}\""));
        let words = words.collect::<Vec<_>>().join(" AND ");
        let wanted = format!("tenant : \"{}\" AND {words} *", tenant_word(tenant));
        let rows: Vec<SqliteRow> = sqlx::query(
            "SELECT job.* FROM job_words JOIN job ON job.uid = job_words.job_uid \
             WHERE job_words MATCH ? AND job.tenant = ? AND job.uid < ? ORDER BY job.uid DESC LIMIT ?",
        )
        .bind(wanted)
        .bind(tenant)
        .bind(search.before.as_deref().unwrap_or("~"))
        .bind(search.limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(job_row).collect()
    }
}
