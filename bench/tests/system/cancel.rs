//! Jobs that a client does not want any more.

use std::time::Duration;

use millrace_bench::System;
use millrace_wire::job::{Job, State};
use millrace_wire::problem::Code;

use crate::stage::{PATIENCE, Stage, wait_until};

#[tokio::test]
async fn a_cancelled_job_ends_wherever_it_was_and_takes_its_ffmpeg_along() {
    let stage = Stage::start(System::builder().pool("aws", 1).worker_arg("--threads", "1")).await;
    let (_, worker) = stage.encoding("running").await;
    stage.client.submit(&stage.web.small_spec("queued")).await.unwrap();
    stage.client.submit(&stage.web.small_spec("wanted")).await.unwrap();

    let answer = stage.client.cancel("queued").await.unwrap().success().unwrap();
    assert_eq!(answer.job().unwrap().state, State::Cancelled, "nobody had begun it");
    assert!(stage.client.job("queued").await.unwrap().worker.is_none());

    let ffmpegs = stage.system.ffmpegs_of(&worker).unwrap();
    stage.client.cancel("running").await.unwrap().success().unwrap();
    let ended = |job: &Job| job.state == State::Cancelled;
    // A heartbeat brings the news at the latest.
    stage.client.wait_for("running", "cancelled", Duration::from_secs(10), ended).await.unwrap();
    wait_until("the end of its ffmpeg", || ffmpegs.iter().all(|ffmpeg| !ffmpeg.is_alive())).await;
    let media = stage.client.get("/media/running/master.m3u8").await.unwrap();
    assert_eq!(media.problem().unwrap().code, Code::JobWithoutOutputs);

    // The slot is free again, and an end is an end.
    stage.succeeded("wanted").await;
    let late = stage.client.cancel("wanted").await.unwrap();
    assert_eq!(late.problem().unwrap().code, Code::JobFinished);
    let unknown = stage.client.cancel("nobody").await.unwrap();
    assert_eq!(unknown.problem().unwrap().code, Code::JobNotFound);
    let cancelled = stage.client.wait_final("queued", PATIENCE).await.unwrap();
    assert_eq!(cancelled.state, State::Cancelled);
    stage.end().await;
}
