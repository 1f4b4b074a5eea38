//! Accepting a job: the commit after which a client may be told so.

use serde_json::json;
use sqlx::sqlite::SqliteConnection;

use super::super::copies::{Kind, asked};
use super::super::outbox::receiver;
use super::super::row::job_row;
use super::super::rules::{class_of, steal_after};
use super::super::{Accepted, Error, Identity, NewJob, Room};
use super::outbox::tenant_word;
use super::{Sqlite, find, now, record};

/// Accepts for a worker: see [`super::super::Store::accept`].
pub(super) async fn accept(
    store: &Sqlite,
    new: &NewJob,
    by: &Identity,
    room: Room,
) -> Result<Accepted, Error> {
    let hash = new.spec.hash();
    let mut tx = store.begin().await?;
    if let Some(existing) = find(&mut tx, &new.tenant, &new.job_id).await? {
        return Ok(if existing.spec_hash == hash {
            Accepted::Existing(existing)
        } else {
            Accepted::Conflict
        });
    }
    let priority = new.spec.priority();
    if held(&mut tx, by).await? >= room.limit(priority) {
        return Ok(Accepted::Full);
    }
    let (uid, task_uid) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
    let spec = serde_json::to_string(&new.spec).expect("a spec is plain data");
    let row = sqlx::query(concat!(
        "INSERT INTO job (uid, tenant, job_id, spec, spec_hash, class, state, pool, bucket, created_at) ",
        "VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ",
        now!(),
        ") RETURNING *"
    ))
    .bind(&uid)
    .bind(&new.tenant)
    .bind(new.job_id.as_str())
    .bind(spec)
    .bind(&hash)
    .bind(class_of(priority))
    .bind(by.pool.as_str())
    .bind(by.pool.as_str())
    .fetch_one(&mut *tx)
    .await?;
    let job = job_row(&row)?;
    sqlx::query(concat!(
        "INSERT INTO task (uid, job_uid, kind, state, pool, class, accepted_by, work_seconds, not_before, created_at) ",
        "VALUES (?, ?, 'video', 'waiting', ?, ?, ?, ?, ", now!(), ", ", now!(), ")"
    ))
    .bind(&task_uid)
    .bind(&uid)
    .bind(by.pool.as_str())
    .bind(class_of(priority))
    .bind(by.worker.as_str())
    .bind(new.work_seconds)
    .execute(&mut *tx)
    .await?;
    let words = new.spec.words();
    if !words.is_empty() {
        sqlx::query("INSERT INTO job_words (job_uid, tenant, words) VALUES (?, ?, ?)")
            .bind(&uid)
            .bind(tenant_word(&new.tenant))
            .bind(Vec::from_iter(words).join(" "))
            .execute(&mut *tx)
            .await?;
    }
    if let Some(receiver) = new.spec.webhook_url.as_deref().and_then(receiver) {
        sqlx::query("INSERT INTO job_webhook (job_uid, receiver) VALUES (?, ?)")
            .bind(&uid)
            .bind(receiver)
            .execute(&mut *tx)
            .await?;
    }
    for (pool, price) in new.steal.iter().filter(|(pool, _)| **pool != by.pool) {
        sqlx::query(
            "INSERT INTO steal (task_uid, pool, class, at) \
             SELECT uid, ?, class, created_at + ? FROM task WHERE uid = ?",
        )
        .bind(pool.as_str())
        .bind(steal_after(price))
        .bind(&task_uid)
        .execute(&mut *tx)
        .await?;
    }
    for (kind, pool) in asked(&new.spec, new.second.as_ref(), &by.pool) {
        let state = if kind == Kind::Input { "waiting" } else { "later" };
        sqlx::query(concat!(
            "INSERT INTO replica (job_uid, what, pool, state, not_before) VALUES (?, ?, ?, ?, ",
            now!(),
            ")"
        ))
        .bind(&uid)
        .bind(kind.as_str())
        .bind(pool.as_str())
        .bind(state)
        .execute(&mut *tx)
        .await?;
    }
    record(&mut tx, &uid, "accepted", json!({ "pool": by.pool, "worker": by.worker })).await?;
    tx.commit().await?;
    Ok(Accepted::Created(job))
}

/// How many jobs a worker holds: running ones, and those that it accepted and nobody claimed.
pub(super) async fn held(on: &mut SqliteConnection, by: &Identity) -> Result<i64, Error> {
    let held = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM task WHERE state = 'waiting' AND accepted_by = ?1) \
              + (SELECT count(*) FROM task WHERE state = 'running' AND owner = ?1)",
    );
    Ok(held.bind(by.worker.as_str()).fetch_one(on).await?)
}
