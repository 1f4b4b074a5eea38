//! What is SQLite's own: what every store must do is in `conformance`.

use std::path::Path;
use std::time::Duration;

use super::super::conformance::{ROOM, new_job};
use super::*;

async fn open(folder: &Path) -> (Sqlite, Identity) {
    let store = Sqlite::open(&format!("sqlite:{}", folder.join("jobs.db").display()), 3).await.unwrap();
    let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
    (store, worker)
}

#[tokio::test]
async fn a_job_of_a_later_version_waits_and_does_not_stop_those_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, worker) = open(folder.path()).await;
    for job in ["later", "plain"] {
        store.accept(&new_job(job, ""), &worker, ROOM).await.unwrap();
    }
    sqlx::query("UPDATE job SET spec = '{\"input_url\":\"http://h/v\",\"novel\":1}' WHERE job_id = 'later'")
        .execute(&store.writer)
        .await
        .unwrap();
    let claim = store.claim(&worker, Duration::from_secs(60)).await.unwrap().unwrap();
    assert_eq!(claim.job_id.as_str(), "plain");
    let alone = store.claim(&worker, Duration::from_secs(60)).await;
    assert!(matches!(alone, Err(Error::Corrupt(_))), "{alone:?}");
    let state: String = sqlx::query_scalar("SELECT state FROM job WHERE job_id = 'later'")
        .fetch_one(&store.readers)
        .await
        .unwrap();
    assert_eq!(state, "queued");
}

#[tokio::test]
async fn a_worker_of_before_follows_one_that_migrated_further() {
    let folder = tempfile::tempdir().unwrap();
    let (store, worker) = open(folder.path()).await;
    store.accept(&new_job("kept", ""), &worker, ROOM).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (999999, 'of a later version', TRUE, x'00', 1)",
    )
    .execute(&store.writer)
    .await
    .unwrap();
    drop(store);
    let (store, worker) = open(folder.path()).await;
    let claim = store.claim(&worker, Duration::from_secs(60)).await.unwrap().unwrap();
    assert_eq!(claim.job_id.as_str(), "kept");
}

#[tokio::test]
async fn a_job_rises_a_class_in_ten_minutes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, worker) = open(folder.path()).await;
    let waits = [("live", "live", 0), ("normal", "normal", 0), ("aged", "batch", 11), ("old", "batch", 21)];
    for (job, class, minutes) in waits.into_iter().chain([("young", "batch", 9)]) {
        store.accept(&new_job(job, &format!(r#","priority":"{class}""#)), &worker, ROOM).await.unwrap();
        sqlx::query(
            "UPDATE task SET created_at = created_at - ? \
             WHERE job_uid = (SELECT uid FROM job WHERE job_id = ?)",
        )
        .bind(minutes * 60_000)
        .bind(job)
        .execute(&store.writer)
        .await
        .unwrap();
    }
    let mut order = Vec::new();
    while let Some(claim) = store.claim(&worker, Duration::from_secs(60)).await.unwrap() {
        order.push(claim.job_id.to_string());
    }
    assert_eq!(order, ["old", "live", "aged", "normal", "young"]);
}

#[tokio::test]
async fn an_answer_without_a_write_keeps_the_writers_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (store, worker) = open(folder.path()).await;
    sqlx::query("CREATE TEMP TABLE mark (n)").execute(&store.writer).await.unwrap();
    store.accept(&new_job("j", ""), &worker, ROOM).await.unwrap();
    for _ in 0..50 {
        store.accept(&new_job("j", ""), &worker, ROOM).await.unwrap();
    }
    let marked = sqlx::query("SELECT * FROM mark").fetch_all(&store.writer).await;
    assert!(marked.is_ok(), "it was closed and opened again: {marked:?}");
}

#[tokio::test]
async fn a_full_disk_refuses_and_heals_when_there_is_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        Sqlite::open(&format!("sqlite:{}", folder.path().join("jobs.db").display()), 3).await.unwrap();
    let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
    // Where in a transaction the disk fills up decides who rolls back, so fill it in many places.
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..30 {
        // SQLite answers as on a full disk: the limit becomes the size that the file has now, plus a little.
        let pages: i64 = sqlx::query_scalar("SELECT page_count + ? FROM pragma_page_count")
            .bind(round % 4)
            .fetch_one(&store.writer)
            .await
            .unwrap();
        let limit = |pages: i64| sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}")));
        limit(pages).execute(&store.writer).await.unwrap();
        for _ in 0..20 {
            match store
                .accept(&new_job(&format!("j{accepted}"), ""), &worker, Room { slots: 10_000, ..ROOM })
                .await
            {
                Ok(_) => accepted += 1,
                Err(Error::Unavailable(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        limit(1 << 30).execute(&store.writer).await.unwrap();
        let after = store
            .accept(&new_job(&format!("after-{round}"), ""), &worker, Room { slots: 10_000, ..ROOM })
            .await;
        assert!(matches!(after.unwrap(), Accepted::Created(_)));
    }
    assert!(refused >= 30, "the disk was never full: {accepted} accepted, {refused} refused");
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_says_why() {
    for (url, says) in [
        ("postgres://localhost/x", "must be sqlite:PATH"),
        ("sqlite:", "must be sqlite:PATH"),
        ("sqlite:/proc/nowhere/jobs.db", "cannot create"),
    ] {
        let error = Sqlite::open(url, 3).await.unwrap_err().to_string();
        assert!(error.contains(says), "{url}: {error}");
    }
}
