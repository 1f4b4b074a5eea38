//! Disks that are full: the worker's scratch space, the directory of objects, the job store's. Each is a real one, small, of
//! one worker's own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_bench::System;
use millrace_bench::surroundings::{inside, small_disk};
use millrace_bench::system::Builder;
use millrace_wire::job::{FailureCode, Job, JobError, State};
use millrace_wire::problem::Code;
use tokio::time::Instant;

use crate::stage::{PATIENCE, SMALL, Stage, clip};

/// Of every small disk here.
const DISK_BYTES: u64 = 4 << 20;

/// A system whose worker `aws-1` has a disk of its own at a path below the data directory, which lives as long as the
/// first of the two.
fn on_small_disk(below: &str) -> (tempfile::TempDir, PathBuf, Builder) {
    let data = tempfile::tempdir().unwrap();
    let at = data.path().canonicalize().unwrap().join(below);
    let builder = System::builder().pool("aws", 1).data(data.path());
    let builder = builder.worker_started_by("aws-1", small_disk(&at, DISK_BYTES));
    (data, at, builder)
}

/// Takes all that is left of a disk but so many bytes; dropped, it gives them back.
struct Filler(PathBuf);

impl Filler {
    fn fill(disk: &Path, all_but: u64) -> Self {
        let path = disk.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        let bytes = file.metadata().unwrap().len();
        file.set_len(bytes.saturating_sub(all_but)).unwrap();
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Blocks of a disk that are taken, by whatever still stands there or is only held open.
fn used(disk: &Path) -> u64 {
    let disk = rustix::fs::statvfs(disk).unwrap();
    disk.f_blocks - disk.f_bfree
}

/// Every file below a directory.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { left.push(path) } else { found.push(path) }
        }
    }
    found
}

/// Waits for a job's first failure and returns how it stands then: it waits for another try, and shows nothing.
pub(crate) async fn failed_for_now(stage: &Stage, id: &str) -> JobError {
    let waits = |job: &Job| job.state == State::RetryWait;
    let job = stage.client.wait_for(id, "waiting for another try", PATIENCE, waits).await.unwrap();
    assert!(job.outputs.is_none());
    assert_eq!(stage.client.get(&format!("/media/{id}/master.m3u8")).await.unwrap().status, 409);
    job.error.unwrap()
}

/// What a worker says that it lacks.
pub(crate) async fn lacks(stage: &Stage, worker: &str) -> Option<String> {
    let said = stage.system.worker_client(worker).unwrap().get("/readyz").await.unwrap();
    let said: serde_json::Value = said.success().unwrap().json().unwrap();
    said["lacks"].as_str().map(str::to_owned)
}

/// Waits until a worker says that it lacks something, or nothing.
pub(crate) async fn wait_lacks(stage: &Stage, worker: &str, what: Option<&str>) {
    let began = Instant::now();
    while lacks(stage, worker).await.as_deref() != what {
        assert!(began.elapsed() < PATIENCE, "{worker} never lacked {what:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the gateway sends the only worker of a pool no jobs, by what that one says.
async fn wait_rejected(stage: &Stage, pool: &str) {
    let began = Instant::now();
    loop {
        let status: serde_json::Value =
            stage.system.admin().unwrap().get("/status").await.unwrap().json().unwrap();
        let pools = status["pools"].as_array().unwrap();
        let pool = pools.iter().find(|one| one["name"] == pool).unwrap();
        if pool["workers"][0]["rejected"] == "draining" {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{pool}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_full_scratch_space_costs_an_attempt_and_is_left_empty() {
    let (_data, scratch, builder) = on_small_disk("scratch/aws-1");
    let stage = Stage::start(builder).await;
    let disk = inside(stage.system.worker_pid("aws-1").unwrap(), &scratch);
    let jobs = stage.system.objects().join("aws/jobs");
    let unused = used(&disk);

    // Full while the source arrives, and full while ffmpeg writes.
    let mut fine = stage.web.small_spec("encode");
    fine["crf"] = 18.into();
    for (id, all_but, spec) in [("source", 4096, stage.web.small_spec("source")), ("encode", 180_000, fine)] {
        let before = files(&jobs).len();
        // What the job before worked with goes a moment after its end, and some of it only when the last one who has it
        // open closes it: that would be room that was not counted.
        let began = Instant::now();
        while used(&disk) > unused {
            assert!(began.elapsed() < PATIENCE, "{id}: the worker never cleaned up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let filler = Filler::fill(&disk, all_but);
        stage.client.submit(&spec).await.unwrap();
        let error = failed_for_now(&stage, id).await;
        assert_eq!(error.code, FailureCode::ScratchUnavailable, "{id}");
        assert_eq!(files(&jobs).len(), before, "{id}: nothing of it is stored");
        wait_lacks(&stage, "aws-1", Some("scratch")).await;
        assert_eq!(files(&disk.join("aws-1")), Vec::<PathBuf>::new(), "{id}: nothing of it is left");
        drop(filler);
        wait_lacks(&stage, "aws-1", None).await;
        assert_eq!(stage.succeeded(id).await.attempt, 2, "{id}");
    }
    stage.end().await;
}

#[tokio::test]
async fn a_worker_without_room_to_work_in_leaves_the_jobs_to_the_others() {
    let (_data, scratch, builder) = on_small_disk("scratch/aws-1");
    // Two failures would be the end of a job.
    let stage = Stage::start(builder.worker_arg("--attempts-max", "2").pool("gcp", 1)).await;
    let disk = inside(stage.system.worker_pid("aws-1").unwrap(), &scratch);
    let _filler = Filler::fill(&disk, 4096);
    stage.system.worker_client("aws-1").unwrap().submit(&stage.web.small_spec("first")).await.unwrap();
    wait_lacks(&stage, "aws-1", Some("scratch")).await;
    wait_rejected(&stage, "aws").await;
    for job in 0..6 {
        stage.client.submit(&stage.web.small_spec(&format!("j{job}"))).await.unwrap();
    }
    for job in 0..6 {
        let done = stage.succeeded(&format!("j{job}")).await;
        assert_eq!((done.attempt, done.pool.as_str()), (1, "gcp"));
    }
    assert_eq!(stage.succeeded("first").await.attempt, 2);
    stage.end().await;
}

#[tokio::test]
async fn a_full_directory_of_objects_shows_nothing_by_halves() {
    let (_data, objects, builder) = on_small_disk("objects");
    let stage = Stage::start(builder).await;
    let disk = inside(stage.system.worker_pid("aws-1").unwrap(), &objects);
    let filler = Filler::fill(&disk, 60_000);

    let ticket = stage.client.upload_ticket("clip.mp4", "video/mp4").await.unwrap();
    let clip = clip(&SMALL).await;
    let refused = stage.client.put_file(&ticket, "video/mp4", &clip, |_| {}).await.unwrap();
    let problem = refused.problem().unwrap();
    assert_eq!((problem.status, problem.code), (503, Code::ObjectsUnavailable));
    assert!(refused.retry_after().is_some());

    stage.client.submit(&stage.web.small_spec("j")).await.unwrap();
    assert_eq!(failed_for_now(&stage, "j").await.code, FailureCode::ObjectsUnavailable);
    wait_lacks(&stage, "aws-1", Some("objects")).await;
    assert_eq!(files(&disk), [disk.join("filler")], "neither the upload nor an output, and nothing staged");

    drop(filler);
    wait_lacks(&stage, "aws-1", None).await;
    stage.client.put_file(&ticket, "video/mp4", &clip, |_| {}).await.unwrap().success().unwrap();
    assert_eq!(stage.succeeded("j").await.attempt, 2);
    stage.end().await;
}

#[tokio::test]
async fn a_job_store_whose_disk_is_full_refuses_and_loses_nothing() {
    let (data, folder, builder) = on_small_disk("store");
    let store = format!("sqlite:{}", data.path().canonicalize().unwrap().join("store/jobs.db").display());
    let stage = Stage::start(builder.worker_arg("--store", &store)).await;
    let disk = inside(stage.system.worker_pid("aws-1").unwrap(), &folder);
    stage.client.submit(&stage.web.held_spec("running")).await.unwrap();
    let runs = |job: &Job| job.state == State::Running;
    stage.client.wait_for("running", "running", PATIENCE, runs).await.unwrap();

    let filler = Filler::fill(&disk, 0);
    let mut accepted = Vec::new();
    let refused = loop {
        // What fits into pages that it has already is taken.
        let id = format!("j{}", accepted.len());
        let answer = stage.client.process(&stage.web.small_spec(&id)).await.unwrap();
        match answer.status.as_u16() {
            202 => accepted.push(id),
            429 => panic!("its queue was full before its disk"),
            _ => break answer,
        }
    };
    let problem = refused.problem().unwrap();
    assert_eq!((problem.status, problem.code), (503, Code::StoreUnavailable), "{}", refused.text());
    assert!(refused.retry_after().is_some());
    // What is there can be read, and work goes on.
    assert_eq!(stage.client.job("running").await.unwrap().state, State::Running);
    stage.web.release();
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(filler);
    for id in accepted.iter().map(String::as_str).chain(["running"]) {
        assert_eq!(stage.succeeded(id).await.attempt, 1, "{id}");
    }
    assert_eq!(stage.client.jobs().await.unwrap().len(), accepted.len() + 1);
    stage.end().await;
}
