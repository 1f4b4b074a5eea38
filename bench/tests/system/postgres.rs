//! Workers of two pools on one PostgreSQL server, which is not always there.

use std::time::Duration;

use millrace_bench::postgres::Server;
use millrace_bench::system::Builder;
use millrace_bench::{Answer, System};
use millrace_wire::problem::Code;
use serde_json::Value;
use tokio::time::Instant;

use crate::stage::{PATIENCE, Stage, wait_until};

/// A server with an empty job store, and the store's URL.
pub(crate) async fn server() -> (Server, String) {
    let started = tokio::task::spawn_blocking(|| {
        let server = Server::start()?;
        let url = server.create("jobs")?;
        anyhow::Ok((server, url))
    });
    started.await.unwrap().unwrap()
}

fn two_pools(store: &str) -> Builder {
    System::builder().pool("aws", 1).pool("gcp", 1).worker_arg("--store", store).worker_arg("--threads", "1")
}

/// Submits until it is accepted, as a client does that was told to come back.
async fn accepted_some_day(stage: &Stage, spec: &Value) -> Duration {
    let began = Instant::now();
    loop {
        let answer = stage.client.process(spec).await.unwrap();
        if answer.status.is_success() {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "still refused: {} {}", answer.status, answer.text());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until a job can be read again.
async fn readable_some_day(stage: &Stage, id: &str) {
    let began = Instant::now();
    while !stage.client.get(&format!("/jobs/{id}")).await.unwrap().status.is_success() {
        assert!(began.elapsed() < PATIENCE, "{id} can still not be read");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn store_is_away(answer: &Answer) {
    let problem = answer.problem().unwrap();
    assert_eq!((problem.status, problem.code), (503, Code::StoreUnavailable), "{}", answer.text());
    assert!(answer.retry_after().unwrap() >= Duration::from_secs(1), "{}", answer.text());
}

#[tokio::test]
async fn two_pools_on_one_server_do_each_job_once() {
    let (server, url) = server().await;
    let stage = Stage::start(two_pools(&url)).await;
    let jobs = ["a", "b", "c", "d"];
    for job in jobs {
        stage.client.submit(&stage.web.small_spec(job)).await.unwrap();
    }
    // Whichever worker is asked, it is the same job.
    for worker in ["aws-1", "gcp-1"] {
        let again = stage.system.worker_client(worker).unwrap();
        assert_eq!(again.process(&stage.web.small_spec("a")).await.unwrap().status, 200, "{worker}");
    }
    for job in jobs {
        let done = stage.succeeded(job).await;
        assert_eq!(done.attempt, 1);
        let hls = stage.client.get(&done.outputs.unwrap().hls.unwrap()).await.unwrap();
        assert!(hls.success().unwrap().text().starts_with("#EXTM3U"));
    }
    let attempts = server.sql("jobs", "SELECT count(*), count(DISTINCT task_uid) FROM attempt").unwrap();
    assert_eq!(attempts, "4|4");
    stage.end().await;
}

#[tokio::test]
async fn a_job_outlives_a_crash_of_its_server_and_submits_are_told_to_come_back() {
    let (mut server, url) = server().await;
    let stage = Stage::start(two_pools(&url)).await;
    let (job, worker) = stage.encoding("heavy").await;
    assert_eq!(job.attempt, 1);
    server.stop().unwrap();

    let spec = stage.web.small_spec("meanwhile");
    let refused = stage.client.process(&spec).await.unwrap();
    store_is_away(&refused);
    assert_eq!(refused.problem().unwrap().job_id.unwrap().as_str(), "meanwhile", "to post again with");
    store_is_away(&stage.client.get("/jobs/heavy").await.unwrap());
    let ready = stage.system.worker_client(&worker).unwrap().get("/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(!stage.system.ffmpegs_of(&worker).unwrap().is_empty(), "its work goes on");

    server.restart().unwrap();
    let healed = accepted_some_day(&stage, &spec).await;
    readable_some_day(&stage, "heavy").await;
    let done = stage.succeeded("heavy").await;
    assert_eq!(
        (done.attempt, done.worker.unwrap().as_str()),
        (1, worker.as_str()),
        "nobody had to start over"
    );
    stage.succeeded("meanwhile").await;
    assert!(healed < Duration::from_secs(10), "it took {healed:?} to accept again");
    stage.end().await;
}

#[tokio::test]
async fn a_server_that_is_away_for_longer_than_a_lease_costs_an_attempt_and_no_job() {
    let (mut server, url) = server().await;
    let builder = two_pools(&url).worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms");
    let stage = Stage::start(builder).await;
    let (_, worker) = stage.encoding("heavy").await;
    server.freeze().unwrap();
    wait_until("the end of an attempt that nobody renews", || {
        stage.system.ffmpegs_of(&worker).unwrap().is_empty()
    })
    .await;
    server.thaw().unwrap();
    readable_some_day(&stage, "heavy").await;
    let done = stage.succeeded("heavy").await;
    // A busy machine may take two seconds from the next attempt, too.
    assert!(done.attempt >= 2, "the first attempt's lease ran out");
    let events = "SELECT count(*) FROM event WHERE kind = 'succeeded'";
    assert_eq!(server.sql("jobs", events).unwrap(), "1");
    stage.end().await;
}
