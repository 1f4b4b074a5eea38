//! An object store that stalls, refuses, or gives back other bytes than it was given; and a worker whose clock is off.

use std::time::Duration;

use millrace_bench::System;
use millrace_bench::surroundings::other_clock;
use millrace_bench::system::Builder;
use millrace_object_server::{Fault, What};
use millrace_wire::job::{FailureCode, State};
use millrace_wire::problem::Code;
use reqwest::Method;
use serde_json::json;

use crate::faults::{failed_for_now, lacks, wait_lacks};
use crate::object_store::{Store, upload};
use crate::postgres;
use crate::stage::{PATIENCE, SMALL, Stage, clip};

/// One worker on the store, which gives a request up that stands still for a second.
fn one(store: &Store) -> Builder {
    let credentials = store.write_credentials(millrace_object_server::SECRET_KEY);
    System::builder().pool("aws", 1).worker_arg("--objects", &store.places_with(&credentials, "&stall=1s"))
}

fn on(method: &Method, key: &str, what: What) -> Fault {
    Fault::new(method, key, 100_000, what)
}

#[tokio::test]
async fn a_store_that_stands_still_costs_an_attempt_and_no_worker() {
    let store = Store::start().await;
    let stage = Stage::start(one(&store).worker_arg("--lease", "4s").worker_arg("--heartbeat", "1s")).await;
    let ticket = upload(&stage, &store).await;
    let spec = |id: &str| json!({ "job_id": id, "input_path": ticket.input_path });
    // Who submits is told that there is such an upload; who runs it is not.
    let reading = Fault { skip: 1, ..on(&Method::HEAD, "/uploads/", What::Hold) };
    for (id, fault) in [("reading", reading), ("writing", on(&Method::PUT, "/jobs/", What::Hold))] {
        store.set(&[fault]).await;
        stage.client.submit(&spec(id)).await.unwrap();
        let error = failed_for_now(&stage, id).await;
        assert_eq!(error.code, FailureCode::ObjectsUnavailable, "{id}");
        // What stood still goes on now, late: it must not count.
        store.set(&[]).await;
        assert_eq!(stage.succeeded(id).await.attempt, 2, "{id}");
    }
    assert_eq!(lacks(&stage, "aws-1").await, None);
    stage.end().await;
}

#[tokio::test]
async fn a_store_that_is_only_slow_is_waited_for() {
    let store = Store::start().await;
    let stage = Stage::start(one(&store)).await;
    let ticket = upload(&stage, &store).await;
    store.set(&[on(&Method::PUT, "/jobs/", What::Slow(300)), on(&Method::GET, "", What::Slow(300))]).await;
    stage.client.submit(&json!({ "job_id": "j", "input_path": ticket.input_path })).await.unwrap();
    assert_eq!(stage.succeeded("j").await.attempt, 1);
    stage.end().await;
}

#[tokio::test]
async fn credentials_that_have_expired_are_named_and_new_ones_are_taken() {
    let store = Store::start().await;
    let stage = Stage::start(one(&store)).await;
    let ticket = upload(&stage, &store).await;
    let spec = |id: &str| json!({ "job_id": id, "input_path": ticket.input_path });
    stage.client.submit(&stage.web.held_spec("first")).await.unwrap();
    stage.client.submit(&spec("second")).await.unwrap();
    store.write_credentials("one of yesterday");
    // What was read counts for five seconds.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let refused = stage.client.process(&spec("third")).await.unwrap();
    let problem = refused.problem().unwrap();
    assert_eq!((problem.status, problem.code), (503, Code::ObjectsUnavailable));
    assert!(problem.detail.contains("credentials"), "{}", problem.detail);
    stage.web.release();
    let error = failed_for_now(&stage, "first").await;
    assert_eq!(error.code, FailureCode::ObjectsDenied);
    assert!(error.detail.contains("credentials"), "{}", error.detail);
    wait_lacks(&stage, "aws-1", Some("objects")).await;
    let waiting = stage.client.job("second").await.unwrap();
    assert_eq!((waiting.state, waiting.attempt), (State::Queued, 0), "it is not spent on what cannot be");
    store.write_credentials(millrace_object_server::SECRET_KEY);
    wait_lacks(&stage, "aws-1", None).await;
    assert_eq!(stage.succeeded("second").await.attempt, 1);
    assert_eq!(stage.succeeded("first").await.attempt, 2);
    let files = store.files("in-aws");
    assert!(files.iter().all(|file| !file.contains("/trials/")), "{files:?}");
    stage.end().await;
}

#[tokio::test]
async fn an_upload_that_was_damaged_where_it_lies_fails_the_job_and_says_so() {
    let store = Store::start().await;
    let stage = Stage::start(one(&store)).await;
    for (id, damage) in [("zeroed", 0..60), ("cut", 50..100)] {
        let ticket = upload(&stage, &store).await;
        let (_, key) = ticket.input_path.split_once('/').unwrap();
        let files = store.files("in-aws");
        let [file] = &files.iter().filter(|file| file.ends_with(key)).collect::<Vec<_>>()[..] else {
            panic!("{files:?}")
        };
        let mut bytes = std::fs::read(file).unwrap();
        let at = |percent: usize| bytes.len() * percent / 100;
        let (from, to) = (at(damage.start), at(damage.end));
        if id == "cut" {
            bytes.truncate(from)
        } else {
            bytes[from + 5000..to].fill(0)
        }
        std::fs::write(file, bytes).unwrap();
        stage.client.submit(&json!({ "job_id": id, "input_path": ticket.input_path })).await.unwrap();
        let job = stage.client.wait_final(id, PATIENCE).await.unwrap();
        let error = job.error.unwrap();
        assert_eq!(job.state, State::Failed, "{id}: another try would read the same bytes");
        let wanted = if id == "cut" { FailureCode::SourceTruncated } else { FailureCode::SourceDamaged };
        assert_eq!(error.code, wanted, "{id}: {}", error.detail);
        assert!(job.outputs.is_none());
    }
    assert!(store.files("in-aws").iter().all(|file| !file.contains("/jobs/")));
    stage.client.submit(&stage.web.small_spec("next")).await.unwrap();
    stage.succeeded("next").await;
    stage.end().await;
}

#[tokio::test]
async fn a_worker_whose_clock_is_an_hour_off_works_as_well_as_the_others() {
    let (server, url) = postgres::server().await;
    let builder = System::builder().pool("aws", 3).worker_arg("--store", &url);
    let builder = builder.worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms");
    // Shorter than they are off: by their own clocks nobody would take what another gave out.
    let builder = builder.worker_arg("--media-expiry", "10m").worker_arg("--upload-expiry", "10m");
    let builder = builder.worker_started_by("aws-2", other_clock(3600).unwrap());
    let stage = Stage::start(builder.worker_started_by("aws-3", other_clock(-3600).unwrap())).await;
    let workers = ["aws-1", "aws-2", "aws-3"].map(|name| stage.system.worker_client(name).unwrap());
    for (worker, ahead) in workers.iter().zip([0.0_f64, 3600.0, -3600.0]) {
        let metrics = worker.get("/metrics").await.unwrap().text();
        let line = metrics.lines().find(|line| line.starts_with("millrace_worker_clock_ahead_seconds{"));
        let seen: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert!((seen - ahead).abs() < 2.0, "{seen} and not {ahead}");
    }
    // Each takes uploads that each of the others gave out.
    let bytes = std::fs::read(clip(&SMALL).await).unwrap();
    for (giver, taker) in [(0, 1), (1, 2), (2, 0)] {
        let ticket = workers[giver].upload_ticket("clip.mp4", "video/mp4").await.unwrap();
        let target = reqwest::Url::parse(&ticket.upload_url).unwrap();
        let target = format!("{}?{}", target.path(), target.query().unwrap());
        let put = workers[taker].send(Method::PUT, &target, Default::default(), bytes.clone()).await.unwrap();
        put.success().unwrap();
        let id = format!("u{giver}");
        stage.client.submit(&json!({ "job_id": id, "input_path": ticket.input_path })).await.unwrap();
    }
    // They hold their leases for many heartbeats, and nobody takes another's work.
    for id in ["h0", "h1", "h2"] {
        stage.client.submit(&stage.web.heavy_spec(id)).await.unwrap();
    }
    for id in ["u0", "u1", "u2", "h0", "h1", "h2"] {
        assert_eq!(stage.succeeded(id).await.attempt, 1, "{id}");
    }
    let by: u32 = server.sql("jobs", "SELECT count(DISTINCT worker) FROM attempt").unwrap().parse().unwrap();
    assert_eq!(by, 3, "each has run something");
    // And each serves media by URLs of each.
    for giver in &workers {
        let hls = giver.job("h0").await.unwrap().outputs.unwrap().hls.unwrap();
        for taker in &workers {
            let playlist = taker.get(&hls).await.unwrap();
            assert!(playlist.success().unwrap().text().starts_with("#EXTM3U"));
        }
    }
    stage.end().await;
}

#[tokio::test]
async fn a_cloud_that_refuses_a_clock_an_hour_off_costs_that_worker_its_work_alone() {
    let ((server, url), store) = (postgres::server().await, Store::start().await);
    for ahead in [3600, -3600] {
        server.sql("jobs", "DROP SCHEMA public CASCADE; CREATE SCHEMA public").unwrap();
        let builder =
            one(&store).pool("gcp", 1).worker_arg("--store", &url).worker_arg("--attempts-max", "2");
        let stage = Stage::start(builder.worker_started_by("aws-1", other_clock(ahead).unwrap())).await;
        // Only the one that is off is asked, and has it for itself: the other is busy.
        let held = stage.system.worker_client("gcp-1").unwrap();
        held.submit(&stage.web.held_spec("held")).await.unwrap();
        let runs = |job: &millrace_wire::job::Job| job.state == State::Running;
        stage.client.wait_for("held", "running", PATIENCE, runs).await.unwrap();
        let off = stage.system.worker_client("aws-1").unwrap();
        off.submit(&stage.web.small_spec("first")).await.unwrap();
        let error = failed_for_now(&stage, "first").await;
        assert_eq!(error.code, FailureCode::ObjectsDenied);
        assert!(error.detail.contains("clock is off"), "{}", error.detail);
        wait_lacks(&stage, "aws-1", Some("objects")).await;
        stage.web.release();
        for id in ["a", "b", "c"] {
            stage.client.submit(&stage.web.small_spec(id)).await.unwrap();
        }
        for (id, attempts) in [("first", 2), ("a", 1), ("b", 1), ("c", 1), ("held", 1)] {
            let done = stage.succeeded(id).await;
            assert_eq!((done.attempt, done.worker.unwrap().as_str()), (attempts, "gcp-1"), "{id}");
        }
        stage.end().await;
    }
}
