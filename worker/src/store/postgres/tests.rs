//! What is PostgreSQL's own: what every store must do is in `conformance`.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tokio::time::Instant;

use super::super::conformance::{ROOM, new_job};
use super::super::private_server::Server;
use super::super::{Accepted, Error, Filter, Room, Store, TENANT_DEFAULT, Verdict};
use super::*;

const LEASE: Duration = Duration::from_secs(60);

pub(in super::super) fn settings() -> Settings {
    Settings {
        connections_max: 4,
        timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
        password_file: None,
    }
}

async fn open(url: &str) -> (Postgres, Identity) {
    let store = Postgres::open(url, settings(), 3).await.unwrap();
    let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
    (store, worker)
}

async fn accept(store: &Postgres, by: &Identity, job: impl Into<String>) -> Result<(), Error> {
    let job = job.into();
    let accepted = store.accept(&new_job(&job, ""), by, Room { slots: 10_000, ..ROOM }).await?;
    assert!(matches!(accepted, Accepted::Created(_) | Accepted::Existing(_)), "{job}: {accepted:?}");
    Ok(())
}

/// Asks until the store answers well.
async fn until_healed<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, Error>>,
{
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_refuses_soon_and_heals_by_itself() {
    let mut server = Server::start().unwrap();
    let (store, worker) = open(&server.create("jobs").unwrap()).await;
    accept(&store, &worker, "before").await.unwrap();
    let claim = store.claim(&worker, LEASE).await.unwrap().unwrap();

    for way in ["stopped", "frozen"] {
        if way == "stopped" { server.stop() } else { server.freeze() }.unwrap();
        let asked = Instant::now();
        let refused = accept(&store, &worker, "meanwhile").await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{way}: {refused:?}");
        assert!(asked.elapsed() < Duration::from_secs(4), "{way}: the first took {:?}", asked.elapsed());
        // Once the store is known to be lost, nobody waits any more.
        let asked = Instant::now();
        loop {
            let one = Instant::now();
            let error = store.job(TENANT_DEFAULT, &"before".parse().unwrap()).await.unwrap_err();
            if error.to_string().contains("postgres://") {
                assert!(one.elapsed() < Duration::from_millis(100), "{way}: it took {:?}", one.elapsed());
                break;
            }
            assert!(asked.elapsed() < Duration::from_secs(8), "{way}: still waits: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let beats = [Beat { lease: claim.lease.clone(), progress: Default::default() }];
        assert!(store.heartbeat(&worker, &beats, LEASE).await.is_err());
        if way == "stopped" { server.restart() } else { server.thaw() }.unwrap();
        let heartbeat = until_healed(way, || store.heartbeat(&worker, &beats, LEASE)).await;
        assert_eq!(heartbeat.verdicts, [Verdict::Renewed], "{way}: the lease outlived it");
        until_healed(way, || accept(&store, &worker, format!("after-{way}"))).await;
    }
    let done = store.enter(&claim.lease, Phase::Publishing, None).await.unwrap();
    assert!(done);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_that_takes_writes_is_found_again_and_one_from_before_it_never() {
    let mut first = Server::start().unwrap();
    let database = first.create("jobs").unwrap();
    let second = first.standby().unwrap();
    let both = format!("{},{database}", second.url("jobs"));
    let (store, worker) = open(&both).await;
    accept(&store, &worker, "before").await.unwrap();

    first.stop().unwrap();
    second.promote().unwrap();
    until_healed("the standby", || accept(&store, &worker, "after")).await;
    assert_eq!(second.sql("jobs", "SELECT count(*) FROM job").unwrap(), "2");

    // Nobody told the old one. It takes writes, and gets none: not while the new one is there, and not when it is gone.
    first.restart().unwrap();
    let again = Postgres::open(&both, settings(), 3).await.unwrap();
    for store in [&store, &again] {
        accept(store, &worker, "still").await.unwrap();
    }
    assert_eq!(first.sql("jobs", "SELECT count(*) FROM job").unwrap(), "1");
    drop(second);
    let lost = Instant::now();
    while lost.elapsed() < Duration::from_secs(3) {
        let refused = accept(&store, &worker, "lost").await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(first.sql("jobs", "SELECT count(*) FROM job").unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_can_do_to_a_connection_costs_an_answer_at_most() {
    let server = Server::start().unwrap();
    let url = server.create("jobs").unwrap();
    let (store, worker) = open(&url).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE application_name = 'millrace-worker' AND pid <> pg_backend_pid()";
    for round in 0..3 {
        accept(&store, &worker, format!("j{round}")).await.unwrap();
        server.sql("jobs", kill).unwrap();
        until_healed("killed sessions", || accept(&store, &worker, format!("k{round}"))).await;
    }
    // A later version's migration, under the plans of this one.
    server
        .sql("jobs", "ALTER TABLE job ADD COLUMN novel text; ALTER TABLE task ADD COLUMN novel text")
        .unwrap();
    accept(&store, &worker, "migrated").await.unwrap();
    store.job(TENANT_DEFAULT, &"migrated".parse().unwrap()).await.unwrap().unwrap();
    // A caller that goes away in the middle, as a client that hangs up does.
    for pause in [0, 200, 400, 800, 1600, 3200] {
        let ask = accept(&store, &worker, "gone");
        let _ = tokio::time::timeout(Duration::from_micros(pause), ask).await;
    }
    for round in 0..20 {
        accept(&store, &worker, format!("still-{round}")).await.unwrap();
    }
    // Another's lock is waited for, but not for ever; and the answer to it is no doubt about the server.
    let mut other = PgConnection::connect(&url).await.unwrap();
    other.execute("BEGIN; LOCK TABLE job IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let asked = Instant::now();
    let refused = accept(&store, &worker, "locked").await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    other.execute("ROLLBACK").await.unwrap();
    until_healed("the lock", || accept(&store, &worker, "unlocked")).await;
    // What was given up here holds no locks there.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    let began = Instant::now();
    while server.sql("jobs", open).unwrap() != "0" {
        assert!(began.elapsed() < Duration::from_secs(8), "a transaction stays open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_from_many_sides_never_overfills_a_queue_and_makes_each_job_once() {
    let server = Server::start().unwrap();
    let url = server.create("jobs").unwrap();
    let (store, worker) = open(&url).await;
    let store = Arc::new(store);
    let room = Room { slots: 0, queue_max: 10 };
    let mut submits = tokio::task::JoinSet::new();
    for job in 0..60 {
        let (store, worker) = (Arc::clone(&store), worker.clone());
        // Every third is one of two names, again and again.
        let name = if job % 3 == 0 { format!("same-{}", job % 2) } else { format!("j{job}") };
        submits.spawn(async move {
            matches!(
                store.accept(&new_job(&name, r#","priority":"live""#), &worker, room).await.unwrap(),
                Accepted::Created(_)
            )
        });
    }
    let created = submits.join_all().await.into_iter().filter(|created| *created).count();
    let held: usize = server.sql("jobs", "SELECT count(*) FROM task").unwrap().parse().unwrap();
    assert_eq!(held, created, "each that was told so is there");
    assert!((1..=10).contains(&held), "{held} jobs in a queue of 10");
    let page = store.jobs(TENANT_DEFAULT, &Filter { state: None, limit: 50, before: None }).await.unwrap();
    assert_eq!(page.len(), held);
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_the_server_cannot_hold_do_not_keep_a_job_from_ending() {
    let server = Server::start().unwrap();
    let (store, worker) = open(&server.create("jobs").unwrap()).await;
    let labels = r#","labels":{"a":"\u0000 '; DROP TABLE job; --"}"#;
    store.accept(&new_job("j", labels), &worker, ROOM).await.unwrap();
    let claim = store.claim(&worker, LEASE).await.unwrap().unwrap();
    let code = millrace_wire::job::FailureCode::SourceNotFound;
    let detail = "a\0b \\u0000 'quoted' \u{1f9ea}".to_owned();
    let failed = AttemptEnd::Failed { code, detail, retry_after: Duration::ZERO };
    store.end(&claim.lease, &failed).await.unwrap();
    let job = store.job(TENANT_DEFAULT, &"j".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(job.error, Some((code, "a\u{fffd}b \\u0000 'quoted' \u{1f9ea}".to_owned())));
    let events = store.events(&job.uid, 0, 9).await.unwrap();
    assert!(events.last().unwrap().body.contains("quoted"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_later_version_waits_and_does_not_stop_those_behind_it() {
    let server = Server::start().unwrap();
    let (store, worker) = open(&server.create("jobs").unwrap()).await;
    for job in ["later", "plain"] {
        accept(&store, &worker, job).await.unwrap();
    }
    let later = r#"UPDATE job SET spec = '{"input_url":"http://h/v","novel":1}' WHERE job_id = 'later'"#;
    server.sql("jobs", later).unwrap();
    let claim = store.claim(&worker, LEASE).await.unwrap().unwrap();
    assert_eq!(claim.job_id.as_str(), "plain");
    let alone = store.claim(&worker, LEASE).await;
    assert!(matches!(alone, Err(Error::Corrupt(_))), "{alone:?}");
    assert_eq!(server.sql("jobs", "SELECT state FROM job WHERE job_id = 'later'").unwrap(), "queued");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_rises_a_class_in_ten_minutes() {
    let server = Server::start().unwrap();
    let (store, worker) = open(&server.create("jobs").unwrap()).await;
    let waits = [("live", "live", 0), ("normal", "normal", 0), ("aged", "batch", 11), ("old", "batch", 21)];
    for (job, class, minutes) in waits.into_iter().chain([("young", "batch", 9)]) {
        store.accept(&new_job(job, &format!(r#","priority":"{class}""#)), &worker, ROOM).await.unwrap();
        let age = format!(
            "UPDATE task SET created_at = created_at - {} WHERE job_uid = (SELECT uid FROM job WHERE job_id = '{job}')",
            minutes * 60_000
        );
        server.sql("jobs", &age).unwrap();
    }
    let mut order = Vec::new();
    while let Some(claim) = store.claim(&worker, LEASE).await.unwrap() {
        order.push(claim.job_id.to_string());
    }
    assert_eq!(order, ["old", "live", "aged", "normal", "young"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_opened_says_why_and_keeps_the_password() {
    let server = Server::start().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let nobody = format!("postgres://u:secret@localhost/jobs?host={}", elsewhere.path().display());
    for (url, says) in [
        (server.url("absent"), "database \"absent\" does not exist"),
        (nobody, "No such file"),
        ("postgres://u:secret@h/d?sslmod=require".to_owned(), "unknown parameter \"sslmod\""),
        (format!("{},mysql://u:secret@h/d", server.url("jobs")), "URL 2: each URL must be postgres://"),
    ] {
        let settings = Settings { timeout: Duration::from_millis(200), ..settings() };
        let error = Postgres::open(&url, settings, 3).await.unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("secret"), "{url}: {error}");
    }
    let url = server.create("jobs").unwrap();
    drop(open(&url).await);
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', true, '', 0)";
    server.sql("jobs", later).unwrap();
    let (store, worker) = open(&url).await;
    accept(&store, &worker, "j").await.expect("a later version's migrations only add");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_proves_who_it_is_before_it_is_told_anything() {
    let key = || rcgen::KeyPair::generate().unwrap();
    let (ours, others, own) = (key(), key(), key());
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ours_pem = authority.self_signed(&ours).unwrap().pem();
    let others_pem = authority.self_signed(&others).unwrap().pem();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&own, &rcgen::Issuer::from_params(&authority, &ours)).unwrap();
    let server = Server::start_tls(&certificate.pem(), &own.serialize_pem()).unwrap();
    server.create("jobs").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        format!("{}?sslmode=verify-full&sslrootcert={}", server.tcp_url("jobs"), path.display())
    };

    let (store, worker) = open(&url("ours", &ours_pem)).await;
    accept(&store, &worker, "j").await.unwrap();
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'millrace-worker'";
    assert_eq!(server.sql("jobs", encrypted).unwrap(), "t");
    for (name, url) in [
        ("another authority", url("others", &others_pem)),
        ("another name", url("named", &ours_pem).replace("127.0.0.1", "localhost")),
    ] {
        let settings = Settings { timeout: Duration::from_millis(200), ..settings() };
        let error = Postgres::open(&url, settings, 3).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{name}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_read_from_its_file_again_when_it_no_longer_holds() {
    let server = Server::start().unwrap();
    server.create("jobs").unwrap();
    let change = |password: &str| format!("ALTER ROLE app PASSWORD '{password}'");
    server.sql("jobs", "CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app").unwrap();
    server.sql("jobs", &change("first")).unwrap();
    server.demand("local all app scram-sha-256").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let url = server.url("jobs").replace("millrace@", "app@");
    let settings = Settings { password_file: Some(file.clone()), ..settings() };
    let refused = Postgres::open(&url, settings.clone(), 3).await.unwrap_err().to_string();
    assert!(refused.contains("password authentication failed") && !refused.contains("wrong"), "{refused}");

    std::fs::write(&file, "first\n").unwrap();
    let store = Postgres::open(&url, settings, 3).await.unwrap();
    let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
    server.sql("jobs", &change("second")).unwrap();
    server
        .sql("jobs", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        .unwrap();
    assert!(accept(&store, &worker, "j").await.is_err(), "nobody has told it");
    std::fs::write(&file, "second\n").unwrap();
    until_healed("the new password", || accept(&store, &worker, "j")).await;
}
