//! A worker that dies or is asked to leave while it runs a job.

use std::time::Duration;

use millrace_bench::{System, media};
use millrace_wire::job::Job;
use millrace_wire::problem::Code;
use tokio::time::Instant;

use crate::stage::{HEAVY, PATIENCE, Stage, wait_until};

fn one_thread_each() -> millrace_bench::system::Builder {
    System::builder().pool("aws", 1).pool("gcp", 1).worker_arg("--threads", "1")
}

#[tokio::test]
async fn a_job_whose_worker_is_killed_finishes_once_on_another_and_leaves_no_ffmpeg() {
    let builder = one_thread_each().worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms");
    let mut stage = Stage::start(builder).await;
    let (job, victim) = stage.encoding("heavy").await;
    assert_eq!(job.attempt, 1);
    let half_written = stage.client.get("/media/heavy/master.m3u8").await.unwrap();
    assert_eq!(half_written.problem().unwrap().code, Code::JobNotReady);

    let ffmpegs = stage.system.ffmpegs_of(&victim).unwrap();
    assert!(!ffmpegs.is_empty());
    stage.system.kill9_worker(&victim).await.unwrap();
    wait_until("the end of the killed worker's ffmpeg", || ffmpegs.iter().all(|ffmpeg| !ffmpeg.is_alive()))
        .await;

    let taken_over =
        |job: &Job| job.attempt == 2 && job.worker.as_ref().is_some_and(|w| w.as_str() != victim);
    let job = stage.client.wait_for("heavy", "taken over", PATIENCE, taken_over).await.unwrap();
    if !job.state.is_final() {
        let still_hidden = stage.client.get("/media/heavy/master.m3u8").await.unwrap();
        let published_meanwhile = still_hidden.status.is_success();
        assert!(published_meanwhile || still_hidden.problem().unwrap().code == Code::JobNotReady);
    }
    let done = stage.succeeded("heavy").await;
    assert_eq!(done.attempt, 2, "one lost attempt, one success");
    assert_ne!(done.worker.unwrap().as_str(), victim);
    assert_eq!(stage.client.jobs().await.unwrap().len(), 1);
    let url = stage.client.url(&done.outputs.unwrap().hls.unwrap()).unwrap();
    let video = media::inspect(url.as_str()).await.unwrap().videos().next().unwrap().index;
    let packets = media::packets(url.as_str()).await.unwrap();
    let frames = packets.iter().filter(|packet| packet.stream_index == video).count();
    assert_eq!(frames as f64, f64::from(HEAVY.rate) * HEAVY.seconds, "the whole clip, and no frame twice");

    // It comes back and is of use again.
    stage.system.restart_worker(&victim).await.unwrap();
    stage.client.submit(&stage.web.small_spec("small")).await.unwrap();
    stage.succeeded("small").await;
    stage.end().await;
}

#[tokio::test]
async fn a_worker_that_was_frozen_wakes_up_to_a_lost_lease_and_changes_nothing() {
    let builder = one_thread_each().worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms");
    let mut stage = Stage::start(builder).await;
    let (_, frozen) = stage.encoding("heavy").await;
    stage.system.freeze_worker(&frozen).unwrap();
    let taken_over = |job: &Job| job.attempt == 2;
    stage.client.wait_for("heavy", "taken over", PATIENCE, taken_over).await.unwrap();
    stage.system.thaw_worker(&frozen).unwrap();
    wait_until("the end of the woken worker's ffmpeg", || {
        stage.system.ffmpegs_of(&frozen).unwrap().is_empty()
    })
    .await;
    let done = stage.succeeded("heavy").await;
    assert_eq!(done.attempt, 2);
    assert_ne!(done.worker.unwrap().as_str(), frozen);
    let metrics = stage.system.worker_client(&frozen).unwrap().get("/metrics").await.unwrap().text();
    let lost = metrics.lines().find(|line| line.starts_with("millrace_worker_leases_lost_total{pool="));
    assert!(lost.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
    stage.end().await;
}

#[tokio::test]
async fn a_worker_asked_to_stop_gives_its_job_back_at_once() {
    let builder = one_thread_each().worker_arg("--grace", "300ms").worker_arg("--lease", "60s");
    let mut stage = Stage::start(builder.worker_arg("--heartbeat", "1s")).await;
    let (_, leaver) = stage.encoding("heavy").await;
    let ffmpegs = stage.system.ffmpegs_of(&leaver).unwrap();
    let asked = Instant::now();
    let took = stage.system.stop_worker(&leaver).await.unwrap();
    assert!(took < Duration::from_secs(6), "it took {took:?} to stop");
    assert!(ffmpegs.iter().all(|ffmpeg| !ffmpeg.is_alive()), "it took its ffmpeg along");

    let elsewhere = |job: &Job| job.worker.as_ref().is_some_and(|worker| worker.as_str() != leaver);
    stage.client.wait_for("heavy", "taken over", Duration::from_secs(15), elsewhere).await.unwrap();
    let done = stage.succeeded("heavy").await;
    assert!(asked.elapsed() < Duration::from_secs(45), "well before the lease of 60 s would have run out");
    assert_eq!(done.attempt, 2);
    stage.end().await;
}

#[tokio::test]
async fn a_worker_asked_to_stop_finishes_within_its_grace() {
    let mut stage = Stage::two_pools().await;
    stage.client.submit(&stage.web.held_spec("held")).await.unwrap();
    let runs = |job: &Job| job.worker.is_some();
    let job = stage.client.wait_for("held", "running", PATIENCE, runs).await.unwrap();
    let worker = job.worker.unwrap().to_string();
    let direct = stage.system.worker_client(&worker).unwrap();
    let (system, web) = (&mut stage.system, &stage.web);
    let release = async {
        // Its input comes only once it says that it leaves: so the job ends within the grace, or not at all.
        while direct.get("/readyz").await.unwrap().status.is_success() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        web.release();
    };
    let (stopped, ()) = tokio::join!(system.stop_worker(&worker), release);
    stopped.unwrap();
    let done = stage.succeeded("held").await;
    assert_eq!(
        (done.attempt, done.worker.unwrap().as_str()),
        (1, worker.as_str()),
        "nobody had to start over"
    );
    stage.end().await;
}
