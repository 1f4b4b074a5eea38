//! Long jobs on a bucket that loses what it was given, and on workers whose encoders are not equal.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use millrace_bench::clip::Picture;
use millrace_bench::postgres::Server;
use millrace_object_server::{Fault, What};
use millrace_wire::job::{FailureCode, State};
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use crate::object_store::Store;
use crate::postgres;
use crate::ranges::{frames, spec, workers};
use crate::stage::{PATIENCE, Stage, wait_until};

/// Four ranges of three segments, in one small rendition.
const LONG: Picture = Picture { width: 320, height: 180, rate: 25, seconds: 24.0 };
/// Frames of it.
const FRAMES: usize = 600;

/// Two workers with their bucket on a real S3 server and their jobs on a real PostgreSQL.
struct Long {
    store: Store,
    server: Server,
    stage: Stage,
}

impl Long {
    async fn start(more: &[(&str, &str)]) -> Self {
        let store = Store::start().await;
        let (server, url) = postgres::server().await;
        let builder = workers(2).worker_arg("--objects", &store.places()).worker_arg("--store", &url);
        let builder = more.iter().fold(builder, |builder, (flag, value)| builder.worker_arg(flag, value));
        Self { stage: Stage::start(builder).await, store, server }
    }

    /// Waits until a request of that method for something with that in its key has come, which is held.
    async fn held(&self, method: &str, key: &str) {
        let began = Instant::now();
        while !self.store.seen().await.iter().any(|seen| seen.method == method && seen.target.contains(key)) {
            assert!(began.elapsed() < PATIENCE, "nobody has sent {method} {key}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn sql(&self, query: &str) -> String {
        self.server.sql("jobs", query).unwrap()
    }

    /// Holds the last range where it is stored, until all others are done.
    async fn all_but_one_done(&self, more: serde_json::Value) {
        self.store.set(&[Fault::new(&Method::PUT, "/range-00003/", 100_000, What::Hold)]).await;
        self.stage.client.submit(&spec(&self.stage, "long", &LONG, more).await).await.unwrap();
        self.held("PUT", "/range-00003/").await;
        let began = Instant::now();
        while self.sql("SELECT count(*) FROM task WHERE state <> 'done'") != "1" {
            assert!(began.elapsed() < PATIENCE, "the other parts were never done");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Segments in the bucket of one range.
    fn segments(&self, range: &str) -> Vec<String> {
        let of_range = |file: &String| file.contains(range) && file.ends_with(".m4s");
        self.store.files("in-aws").into_iter().filter(of_range).collect()
    }

    /// How often each part was begun, by its kind and number.
    fn begun(&self) -> String {
        self.sql("SELECT string_agg(kind || ordinal || ':' || epoch, ' ' ORDER BY kind, ordinal) FROM task")
    }
}

#[tokio::test]
async fn ranges_that_the_bucket_lost_or_damaged_are_made_again_and_no_others() {
    let long = Long::start(&[]).await;
    long.all_but_one_done(json!({ "output_format": ["hls", "mp4"] })).await;
    std::fs::remove_file(&long.segments("range-00001")[0]).unwrap();
    let damaged = &long.segments("range-00002")[1];
    let mut bytes = std::fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(damaged, bytes).unwrap();
    long.store.set(&[]).await;
    let done = long.stage.succeeded("long").await;
    assert_eq!((done.attempt, done.warnings.len()), (1, 0), "{:?}", done.warnings);
    let wanted = "audio0:1 finalize0:3 video0:1 video1:1 video2:2 video3:2 video4:1";
    assert_eq!(long.begun(), wanted, "two ranges again, and then all together");
    let why = long.sql("SELECT DISTINCT code FROM attempt WHERE outcome = 'failed'");
    assert_eq!(why, FailureCode::ObjectsLost.as_str());
    // What is published is there to its last segment, and none of it is of the attempts that were lost.
    assert_eq!(frames(&long.stage, &done).await.0, FRAMES);
    let mp4 = done.outputs.unwrap().renditions[0].mp4.clone().unwrap();
    long.stage.client.get(&mp4).await.unwrap().success().unwrap();
    long.stage.end().await;
}

#[tokio::test]
async fn a_bucket_that_lost_everything_costs_all_parts_and_not_the_job() {
    let long = Long::start(&[]).await;
    long.all_but_one_done(json!({})).await;
    let lost = long.store.files("in-aws");
    assert!(lost.iter().any(|file| file.ends_with("/source")), "{lost:?}");
    lost.iter().filter(|file| file.contains("/jobs/")).for_each(|file| std::fs::remove_file(file).unwrap());
    long.store.set(&[]).await;
    let done = long.stage.succeeded("long").await;
    assert_eq!(frames(&long.stage, &done).await.0, FRAMES);
    assert_eq!(done.attempt, 1);
    let left = long.store.files("in-aws");
    assert!(!left.iter().any(|file| file.ends_with("/source")), "{left:?}");
    long.stage.end().await;
}

#[tokio::test]
async fn a_source_that_the_bucket_lost_is_fetched_once_more() {
    for damage in [false, true] {
        let long = Long::start(&[]).await;
        // Who cut the job has the source; the other one asks for it, and is held there.
        long.store.set(&[Fault::new(&Method::HEAD, "/source", 1, What::Hold)]).await;
        let spec = spec(&long.stage, "long", &LONG, json!({})).await;
        long.stage.client.submit(&spec).await.unwrap();
        long.held("HEAD", "/source").await;
        let files = long.store.files("in-aws");
        let source = files.iter().find(|file| file.ends_with("/source")).unwrap();
        if damage {
            let mut bytes = std::fs::read(source).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(source, bytes).unwrap();
        } else {
            std::fs::remove_file(source).unwrap();
        }
        long.store.set(&[]).await;
        let done = long.stage.succeeded("long").await;
        assert_eq!(frames(&long.stage, &done).await.0, FRAMES);
        assert_eq!(long.sql("SELECT count(*) FROM attempt WHERE outcome <> 'succeeded'"), "0");
        long.stage.end().await;
    }
}

#[tokio::test]
async fn a_bucket_that_loses_a_range_each_time_ends_the_job_with_a_code_that_says_so() {
    let long = Long::start(&[("--attempts-max", "2")]).await;
    long.all_but_one_done(json!({})).await;
    std::fs::remove_file(&long.segments("range-00001")[0]).unwrap();
    // It takes what is written of that range again, and has it no more when it is asked.
    let gone = What::Refuse(404, "NoSuchKey".to_owned());
    long.store.set(&[Fault::new(&Method::HEAD, "/range-00001/a2/", 100_000, gone)]).await;
    let job = long.stage.client.wait_final("long", PATIENCE).await.unwrap();
    let error = job.error.unwrap();
    assert_eq!((job.state, error.code), (State::Dead, FailureCode::ObjectsLost), "{}", error.detail);
    assert!(job.outputs.is_none());
    // Somebody mends the bucket and asks for another try: only what is missing is made.
    long.store.set(&[]).await;
    long.stage.client.post("/jobs/long/retry", &json!({})).await.unwrap().success().unwrap();
    long.stage.succeeded("long").await;
    assert!(long.begun().contains("video1:1 video2:3 video3:1"), "{}", long.begun());
    long.stage.end().await;
}

/// A program that is this machine's ffmpeg and says that it is another one.
fn another_ffmpeg(folder: &std::path::Path) -> PathBuf {
    let path = folder.join("another-ffmpeg");
    let script = "#!/bin/sh\nPATH=/usr/local/bin:/usr/bin:/bin\n\
                  [ \"$2\" = -version ] && echo 'ffmpeg version of another day Copyright'\nexec ffmpeg \"$@\"\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn ranges_are_of_one_encoder_and_of_another_when_that_one_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let other = another_ffmpeg(folder.path());
    let (server, url) = postgres::server().await;
    let sql = |query: &str| server.sql("jobs", query).unwrap();
    let builder = workers(3).worker_arg("--store", &url).worker_arg("--encoder-patience", "2s");
    let builder = builder.worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms");
    // One that is equal to nobody.
    let builder = builder.worker_arg_of("aws-3", "--ffmpeg", other.to_str().unwrap());
    let mut stage = Stage::start(builder).await;
    assert_eq!(sql("SELECT count(DISTINCT encoder) FROM worker"), "2");

    // While an equal one lives, whoever was first, only equal ones do the rest.
    stage.client.submit(&spec(&stage, "together", &LONG, json!({})).await).await.unwrap();
    stage.succeeded("together").await;
    let encoders = "SELECT count(DISTINCT encoder) FROM attempt JOIN worker ON worker.name = attempt.worker \
                    JOIN task ON task.uid = task_uid WHERE kind = 'video' AND ordinal > 0 AND outcome = 'succeeded'";
    let of_job = |id: &str| {
        format!(
            "{} AND job_uid = (SELECT uid FROM job WHERE job_id = '{id}')",
            encoders.replace("DISTINCT encoder", "DISTINCT worker.encoder")
        )
    };
    assert_eq!(sql(&of_job("together")), "1");

    // Both of one kind begin a job and are gone: the third waits its patience and then begins all ranges anew.
    stage.system.freeze_worker("aws-3").unwrap();
    let heavy = json!({ "preset": "medium", "crf": 18 });
    stage.client.submit(&spec(&stage, "handed-on", &LONG, heavy).await).await.unwrap();
    let done = "SELECT count(*) FROM task JOIN job ON job.uid = job_uid WHERE job_id = 'handed-on' \
                AND kind = 'video' AND ordinal > 0 AND task.state = 'done'";
    wait_until("two ranges", || sql(done).parse::<u32>().unwrap() >= 2).await;
    for worker in ["aws-1", "aws-2"] {
        stage.system.kill9_worker(worker).await.unwrap();
    }
    stage.system.thaw_worker("aws-3").unwrap();
    let job = stage.succeeded("handed-on").await;
    assert_eq!(frames(&stage, &job).await.0, FRAMES);
    assert_eq!(sql(&of_job("handed-on")), "1");
    let by = "SELECT string_agg(DISTINCT attempt.worker, ' ') FROM attempt JOIN task ON task.uid = task_uid \
              JOIN job ON job.uid = job_uid WHERE job_id = 'handed-on' AND kind = 'video' AND ordinal > 0 \
              AND outcome = 'succeeded'";
    assert_eq!(sql(by), "aws-3", "what the others had made is not used");
    let begun = "SELECT count(*) FROM event JOIN job ON job.uid = job_uid \
                 WHERE job_id = 'handed-on' AND kind = 'begun_anew'";
    assert_eq!(sql(begun), "1");
    stage.end().await;
}
