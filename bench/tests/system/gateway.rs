//! The gateway's own life: its death, and its reloads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millrace_bench::{Client, System, procfs};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::stage::{Stage, wait_until};

/// Longest time until a change of the file is in force.
const RELOAD: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_second_gateway_on_the_same_file_serves_every_job_of_a_killed_one() {
    let mut stage = Stage::start(System::builder().pool("aws", 2).pool("gcp", 2)).await;
    stage.client.submit(&stage.web.small_spec("done")).await.unwrap();
    stage.succeeded("done").await;
    let held: Vec<String> = (1..=6).map(|number| format!("held-{number}")).collect();
    for id in &held {
        stage.client.submit(&stage.web.held_spec(id)).await.unwrap();
    }
    let first = stage.system.gateway_url().to_owned();
    stage.system.kill9_gateway().await.unwrap();
    assert!(stage.client.job("done").await.is_err(), "it is dead indeed");

    stage.system.start_second_gateway().await.unwrap();
    stage.client = stage.system.client().unwrap();
    assert_ne!(stage.system.gateway_url(), first);
    let again = stage.client.process(&stage.web.small_spec("done")).await.unwrap();
    assert_eq!(again.status, 200, "a submit that is posted again is still the same job");
    stage.client.get("/media/done/master.m3u8").await.unwrap().success().unwrap();
    for id in &held {
        stage.client.job(id).await.unwrap();
    }
    stage.web.release();
    for id in &held {
        stage.succeeded(id).await;
    }
    stage.end().await;
}

#[tokio::test]
async fn a_bad_file_keeps_the_old_one_and_is_named_with_line_and_key() {
    let mut stage = Stage::two_pools().await;
    let generation = stage.system.generation().await.unwrap();
    stage.system.break_routing("[listen]\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\n[[pools]]\nname = \"aws\"\nweight = \"heavy\"\n").unwrap();
    stage.system.hang_up_gateway().unwrap();
    let system = &stage.system;
    wait_until("the error in the gateway's log", || {
        let log = system.gateway_log().unwrap();
        log.lines().any(|line| line.contains("routing.toml:7") && line.contains("weight"))
    })
    .await;
    assert_eq!(stage.system.generation().await.unwrap(), generation);
    stage.client.submit(&stage.web.small_spec("meanwhile")).await.unwrap();
    stage.succeeded("meanwhile").await;

    stage.system.rewrite_routing(|routing| routing.pool("aws").weight = 0.5).unwrap();
    stage.system.wait_reloaded(generation, RELOAD).await.unwrap();
    stage.client.submit(&stage.web.small_spec("after")).await.unwrap();
    stage.succeeded("after").await;
    stage.end().await;
}

#[tokio::test]
async fn a_pool_taken_from_the_file_gets_no_new_jobs() {
    let mut stage = Stage::two_pools().await;
    let generation = stage.system.generation().await.unwrap();
    let mut gcp = None;
    stage.system.rewrite_routing(|routing| gcp = routing.pools.pop()).unwrap();
    assert_eq!(gcp.unwrap().name, "gcp");
    // The gateway notices by itself: no signal is sent here.
    stage.system.wait_reloaded(generation, RELOAD).await.unwrap();
    for number in 1..=6 {
        let answer = stage.client.process(&stage.web.small_spec(&format!("job-{number}"))).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.pool()), (202, Some("aws")));
    }
    for number in 1..=6 {
        stage.succeeded(&format!("job-{number}")).await;
    }
    stage.end().await;
}

#[tokio::test]
async fn fifty_reloads_under_load_fail_no_request_and_leave_nothing_behind() {
    let mut stage = Stage::start(System::builder().pool("aws", 2).pool("gcp", 2)).await;
    stage.client.submit(&stage.web.small_spec("job")).await.unwrap();
    stage.succeeded("job").await;
    let pid = stage.system.gateway_pid();

    // The first load opens what a gateway keeps open: that is the measure.
    Load::start(&stage).run_until(200).await;
    wait_until("the clients' connections to close", || settled(pid)).await;
    let (files, threads) = (procfs::open_files(pid).unwrap(), procfs::threads(pid).unwrap());

    let load = Load::start(&stage);
    for number in 0..50 {
        let generation = stage.system.generation().await.unwrap();
        let weight = if number % 2 == 0 { 0.5 } else { 1.0 };
        stage.system.rewrite_routing(|routing| routing.pool("aws").weight = weight).unwrap();
        stage.system.hang_up_gateway().unwrap();
        stage.system.wait_reloaded(generation, RELOAD).await.unwrap();
    }
    let answered = load.run_until(500).await;
    assert!(answered >= 500);

    wait_until("files and threads as they were", || {
        procfs::open_files(pid).unwrap() <= files + 8 && procfs::threads(pid).unwrap() <= threads + 2
    })
    .await;
    stage.end().await;
}

/// Whether nothing was opened or closed for a moment.
fn settled(pid: u32) -> bool {
    let before = procfs::open_files(pid).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    procfs::open_files(pid).unwrap() == before
}

/// Readers and submitters, each on connections of its own, that fail the test at the first bad answer.
struct Load {
    tasks: JoinSet<Result<(), String>>,
    answered: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(stage: &Stage) -> Self {
        let (answered, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for number in 0..6 {
            let client = Client::new(stage.system.gateway_url()).unwrap();
            let spec = stage.web.small_spec("job");
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    one(&client, number, &spec).await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            });
        }
        Self { tasks, answered, stop }
    }

    /// Ends the load once so many requests were answered; returns how many were.
    async fn run_until(mut self, wanted: usize) -> usize {
        let (answered, tasks) = (Arc::clone(&self.answered), &self.tasks);
        let enough = || answered.load(Ordering::Relaxed) >= wanted || tasks.is_empty();
        wait_until("enough answers", enough).await;
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
        self.answered.load(Ordering::Relaxed)
    }
}

async fn one(client: &Client, number: usize, spec: &Value) -> Result<(), String> {
    let answer = match number % 3 {
        0 => client.process(spec).await,
        1 => client.get("/jobs/job").await,
        _ => client.get("/media/job/master.m3u8").await,
    };
    let answer = answer.map_err(|error| format!("{error:#}"))?;
    if answer.status == 200 { Ok(()) } else { Err(format!("{}: {}", answer.status, answer.text())) }
}
