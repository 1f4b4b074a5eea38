//! How much of the database a call touches, with few jobs and with many.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_wire::job::{Outputs, State};

use super::super::conformance::{ROOM, new_job};
use super::super::private_server::Server;
use super::super::{Filter, Manifest, Store, TENANT_DEFAULT};
use super::Postgres;
use super::tests::settings;

/// Few jobs, and many where `MILLRACE_TEST_JOBS` does not say how many: a million takes minutes.
const JOBS: (u32, u32) = (1_000, 30_000);
/// How often each call is made: often enough that its plan is one for all values in the end.
const CALLS: u32 = 12;

/// Fills an empty store: of ten jobs two wait, one runs, one waits for another try, one was cancelled and five are done.
fn fill(server: &Server, database: &str, jobs: u32) {
    let spec = serde_json::to_string(&new_job("j", "").spec).unwrap();
    let manifest = Manifest {
        bucket: "aws".parse().unwrap(),
        prefix: "jobs/1/video/a1".to_owned(),
        pieces: None,
        files: 9,
        outputs: Outputs::default(),
        warnings: Vec::new(),
    };
    let manifest = serde_json::to_string(&manifest).unwrap();
    let rows = format!(
        "CREATE TEMP TABLE old AS SELECT n, lpad(to_hex(n), 8, '0') || '-0000-7000-8000-000000000000' AS uid, \
           n % 3 AS class, CASE n % 2 WHEN 0 THEN 'aws' ELSE 'gcp' END AS pool, 1700000000000 + n AS at, \
           (ARRAY['waiting', 'waiting', 'running', 'delayed', 'cancelled', 'done', 'done', 'done', 'done', 'done']) \
             [n / 2 % 10 + 1] AS state FROM generate_series(0, {jobs} - 1) n; \
         INSERT INTO job (uid, tenant, job_id, spec, spec_hash, class, state, pool, bucket, manifest, created_at) \
           SELECT uid, 'default', 'old-' || n, '{spec}', 'hash', class, CASE state WHEN 'waiting' THEN 'queued' \
             WHEN 'delayed' THEN 'retry_wait' WHEN 'done' THEN 'succeeded' ELSE state END, pool, pool, \
             CASE state WHEN 'done' THEN '{manifest}' END, at FROM old; \
         INSERT INTO task (uid, job_uid, kind, state, pool, class, accepted_by, work_seconds, not_before, epoch, owner, \
             owner_incarnation, lease_expires_at, created_at) \
           SELECT 't' || uid, uid, 'video', state, pool, class, 'w' || n / 100, 10, \
             CASE state WHEN 'delayed' THEN 9000000000000 ELSE at END, CASE state WHEN 'waiting' THEN 0 ELSE 1 END, \
             CASE state WHEN 'running' THEN 'w' || n / 100 END, 1, CASE state WHEN 'running' THEN 9000000000000 END, at \
           FROM old; \
         INSERT INTO steal (task_uid, pool, class, at) \
           SELECT 't' || uid, thief.pool, class, thief.at + n FROM old, \
             (VALUES ('azure', 1700000000000), ('oracle', 9000000000000)) AS thief (pool, at) WHERE state = 'waiting'; \
         INSERT INTO attempt (task_uid, number, worker, pool, started_at) \
           SELECT 't' || uid, 1, 'w', pool, at FROM old WHERE state <> 'waiting'; \
         INSERT INTO event (job_uid, at, kind, body) SELECT uid, at, 'accepted', '{{}}' FROM old"
    );
    server.sql(database, &rows).unwrap();
    server.sql(database, "VACUUM ANALYZE").unwrap();
}

/// Buffers that one call touches, by the server's own count and on average, with so many jobs in the store.
async fn touched(server: &Server, jobs: u32) -> BTreeMap<&'static str, f64> {
    let database = format!("jobs_{jobs}");
    let store = Postgres::open(&server.create(&database).unwrap(), settings(), 3).await.unwrap();
    fill(server, &database, jobs);
    server.sql(&database, "CREATE EXTENSION pg_stat_statements").unwrap();
    let worker = store.register(&"new".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
    let other = store.register(&"other".parse().unwrap(), &"gcp".parse().unwrap()).await.unwrap();
    let thief = store.register(&"thief".parse().unwrap(), &"azure".parse().unwrap()).await.unwrap();
    let poor = store.register(&"poor".parse().unwrap(), &"oracle".parse().unwrap()).await.unwrap();
    let lease = Duration::from_secs(60);
    let mut touched = BTreeMap::new();
    for call in
        ["submit", "get", "page", "page of a state", "claim", "steal", "nothing to steal", "heartbeat"]
    {
        server.sql(&database, "SELECT pg_stat_statements_reset()").unwrap();
        for number in 0..CALLS {
            match call {
                "submit" => {
                    store.accept(&new_job(&format!("new-{number}"), ""), &worker, ROOM).await.unwrap();
                }
                "get" => {
                    let id = format!("old-{}", jobs / CALLS * number).parse().unwrap();
                    store.job(TENANT_DEFAULT, &id).await.unwrap().unwrap();
                }
                "page" | "page of a state" => {
                    let before = format!("{:08x}-0000-7000-8000-000000000000", jobs - jobs / 100 * number);
                    let state = (call != "page").then_some(State::Queued);
                    let filter = Filter { state, limit: 50, before: Some(before) };
                    assert_eq!(store.jobs(TENANT_DEFAULT, &filter).await.unwrap().len(), 50);
                }
                "claim" => {
                    let by = if number % 2 == 0 { &worker } else { &other };
                    store.claim(by, lease).await.unwrap().unwrap();
                }
                "steal" => {
                    assert!(store.claim(&thief, lease).await.unwrap().unwrap().stolen_from.is_some());
                }
                "nothing to steal" => assert!(store.claim(&poor, lease).await.unwrap().is_none()),
                _ => {
                    store.heartbeat(&worker, &[], lease).await.unwrap();
                }
            }
        }
        let count = "SELECT sum(shared_blks_hit + shared_blks_read) FROM pg_stat_statements \
                     JOIN pg_database ON pg_database.oid = dbid \
                     WHERE datname = current_database() AND query NOT LIKE '%pg_stat_statements%'";
        let blocks: f64 = server.sql(&database, count).unwrap().parse().unwrap();
        touched.insert(call, blocks / f64::from(CALLS));
    }
    touched
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_touches_at_most_twice_the_buffers_with_thirty_times_the_jobs() {
    let many = std::env::var("MILLRACE_TEST_JOBS").map_or(JOBS.1, |jobs| jobs.parse().unwrap());
    let settings = [("shared_preload_libraries", "pg_stat_statements"), ("autovacuum", "off")];
    let server = Server::start_with(&settings).unwrap();
    let (few, many) = (touched(&server, JOBS.0).await, touched(&server, many).await);
    println!("few:  {few:.1?}\nmany: {many:.1?}");
    for (call, few) in few {
        assert!(
            many[call] <= 2.0 * few,
            "{call} touches {few:.1} buffers with few jobs, {:.1} with many",
            many[call]
        );
    }
}
