//! Long pictures, cut into ranges that the workers of a pool encode together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use millrace_bench::clip::Picture;
use millrace_bench::system::Builder;
use millrace_bench::{System, media};
use millrace_wire::job::{FailureCode, Job, State};
use serde_json::{Value, json};

use crate::chromium::{self, Wanted};
use crate::postgres;
use crate::stage::{PATIENCE, Stage, clip, made, wait_until};

/// Seven ranges of three segments, in two renditions.
const LONG: Picture = Picture { width: 854, height: 480, rate: 25, seconds: 42.0 };
/// Each of its ranges keeps one thread of x264 busy for a while.
const LONG_HEAVY: Picture = Picture { width: 640, height: 360, rate: 60, seconds: 40.0 };

pub(crate) fn workers(count: usize) -> Builder {
    System::builder().pool("aws", count).worker_arg("--threads", "1").worker_arg("--range", "5s")
}

pub(crate) async fn spec(stage: &Stage, id: &str, picture: &Picture, more: Value) -> Value {
    let mut spec =
        json!({ "job_id": id, "input_url": stage.web.url_of(&clip(picture).await), "segment_seconds": 2 });
    spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    spec
}

/// Every object of the one job, by its name below the job's.
fn objects(stage: &Stage) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, root: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let jobs = stage.system.objects().join("aws/jobs");
    let jobs: Vec<_> = std::fs::read_dir(jobs).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [job] = &jobs[..] else { panic!("{jobs:?}") };
    let mut found = BTreeMap::new();
    walk(job, job, &mut found);
    found
}

/// Parts that each worker has done.
async fn parts_done(stage: &Stage) -> Vec<u32> {
    let mut done = Vec::new();
    for worker in stage.system.workers() {
        let metrics = stage.system.worker_client(worker).unwrap().get("/metrics").await.unwrap().text();
        let line = metrics.lines().find_map(|line| {
            let (labels, count) = line.strip_prefix("millrace_worker_attempts_total{")?.rsplit_once(' ')?;
            labels.contains("outcome=\"succeeded\"").then(|| count.parse().ok())?
        });
        done.push(line.unwrap_or(0));
    }
    done
}

/// Frames of a job's best rendition, one after the other, and how far each is from the one before, at most.
pub(crate) async fn frames(stage: &Stage, done: &Job) -> (usize, f64) {
    let url = stage.client.url(done.outputs.as_ref().unwrap().hls.as_ref().unwrap()).unwrap();
    let video = media::inspect(url.as_str()).await.unwrap().videos().next().unwrap().index;
    let packets = media::packets(url.as_str()).await.unwrap();
    let mut times: Vec<f64> =
        packets.iter().filter(|packet| packet.stream_index == video).map(|packet| packet.pts_s).collect();
    times.sort_by(f64::total_cmp);
    let apart = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    (times.len(), apart)
}

#[tokio::test]
async fn one_two_and_four_workers_make_the_same_bytes() {
    let mut made = Vec::new();
    for count in [1, 2, 4] {
        let stage = Stage::start(workers(count)).await;
        let formats = json!({ "output_format": ["hls", "mp4"] });
        stage.client.submit(&spec(&stage, "long", &LONG, formats).await).await.unwrap();
        let done = stage.succeeded("long").await;
        assert_eq!((done.attempt, done.warnings.len()), (1, 0), "{:?}", done.warnings);
        let parts = parts_done(&stage).await;
        assert_eq!(
            parts.iter().sum::<u32>(),
            10,
            "the source, the sound, seven ranges, all together: {parts:?}"
        );
        assert!(parts.iter().filter(|parts| **parts > 0).count() >= count.min(2), "{parts:?}");
        assert_eq!(frames(&stage, &done).await.0, 1050);
        let objects = objects(&stage);
        let folders: BTreeSet<&str> = objects.keys().filter_map(|name| name.split('/').next()).collect();
        assert_eq!(folders.len(), 9, "the source is gone: {folders:?}");
        made.push((objects, done.outputs.unwrap().renditions.len()));
        stage.end().await;
    }
    assert!(made[0].0.len() > 60 && made[0].1 == 2);
    for (objects, _) in &made[1..] {
        let other = objects.iter().filter(|(name, bytes)| made[0].0.get(*name) != Some(bytes));
        assert_eq!(other.map(|(name, _)| name).collect::<Vec<_>>(), Vec::<&String>::new());
        assert_eq!(objects.len(), made[0].0.len());
    }
}

#[tokio::test]
async fn a_killed_worker_costs_its_range_alone() {
    let (server, url) = postgres::server().await;
    let builder = workers(2).worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms");
    let mut stage = Stage::start(builder.worker_arg("--store", &url)).await;
    let heavy = json!({ "preset": "medium", "crf": 18 });
    stage.client.submit(&spec(&stage, "long", &LONG_HEAVY, heavy).await).await.unwrap();
    let sql = async |query: &str| server.sql("jobs", query).unwrap();
    let ranges = "FROM task WHERE kind = 'video' AND ordinal > 0";
    let began = tokio::time::Instant::now();
    let running = loop {
        assert!(began.elapsed() < PATIENCE, "two ranges were never done");
        let done: u32 = sql(&format!("SELECT count(*) {ranges} AND state = 'done'")).await.parse().unwrap();
        let running =
            sql(&format!("SELECT ordinal {ranges} AND state = 'running' AND owner = 'aws-2'")).await;
        if done >= 2 && !running.is_empty() && !stage.system.ffmpegs_of("aws-2").unwrap().is_empty() {
            break running;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let before = stage.client.job("long").await.unwrap().progress;
    stage.system.kill9_worker("aws-2").await.unwrap();
    let done = stage.succeeded("long").await;
    assert_eq!(done.attempt, 1);
    assert!(before.percent > 10.0 && before.speed.is_some() && before.eta_seconds.is_some(), "{before:?}");
    let again = sql(&format!("SELECT ordinal {ranges} AND epoch > 1")).await;
    assert_eq!(again, running, "that range and no other");
    let lost = sql("SELECT count(*) FROM attempt WHERE outcome <> 'succeeded'").await;
    assert_eq!(lost, "1");
    assert_eq!(frames(&stage, &done).await.0, 2400);
    stage.end().await;
}

#[tokio::test]
async fn a_cancelled_job_in_ranges_ends_on_every_worker() {
    let stage = Stage::start(workers(2)).await;
    let heavy = json!({ "preset": "medium", "crf": 18 });
    stage.client.submit(&spec(&stage, "long", &LONG_HEAVY, heavy).await).await.unwrap();
    let at_it = |worker: &str| !stage.system.ffmpegs_of(worker).unwrap().is_empty();
    stage.client.wait_for("long", "somewhere", PATIENCE, |job| job.progress.percent > 5.0).await.unwrap();
    wait_until("both at it", || at_it("aws-1") && at_it("aws-2")).await;
    stage.client.cancel("long").await.unwrap().success().unwrap();
    let ended = |job: &Job| job.state == State::Cancelled;
    stage.client.wait_for("long", "cancelled", Duration::from_secs(10), ended).await.unwrap();
    wait_until("the end of all ffmpeg", || !at_it("aws-1") && !at_it("aws-2")).await;
    stage.client.submit(&stage.web.small_spec("next")).await.unwrap();
    stage.succeeded("next").await;
    stage.end().await;
}

#[tokio::test]
async fn a_source_that_is_damaged_in_one_range_fails_the_job_for_good() {
    let stage = Stage::start(workers(2)).await;
    let mut bytes = std::fs::read(clip(&LONG).await).unwrap();
    // A tenth of it, in the middle: packets that are there, and cannot be decoded.
    let (from, to) = (bytes.len() / 2, bytes.len() * 6 / 10);
    bytes[from..to].fill(0);
    let damaged = Path::new(env!("CARGO_TARGET_TMPDIR")).join("damaged-long.mp4");
    std::fs::write(&damaged, bytes).unwrap();
    let spec = json!({ "job_id": "long", "input_url": stage.web.url_of(&damaged), "segment_seconds": 2 });
    stage.client.submit(&spec).await.unwrap();
    let job = stage.client.wait_final("long", PATIENCE).await.unwrap();
    assert_eq!((job.state, job.error.unwrap().code), (State::Failed, FailureCode::SourceDamaged));
    stage.client.submit(&stage.web.small_spec("next")).await.unwrap();
    stage.succeeded("next").await;
    stage.end().await;
}

#[tokio::test]
async fn sources_of_any_kind_come_out_whole_from_two_workers() {
    let stage = Stage::start(workers(2)).await;
    let picture = "testsrc2=s=320x180:r=25:d=36";
    let beginning =
        ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", "sine=d=36", "-c:a", "aac", "-c:v", "libx264"];
    let sparse = ["-preset", "ultrafast", "-x264-params", "keyint=500:min-keyint=500:scenecut=0"];
    let open = ["-preset", "veryfast", "-x264-params", "open-gop=1:keyint=50:min-keyint=50:bframes=3"];
    let uneven =
        ["-vf", "select=not(between(mod(n\\,200)\\,20\\,70))", "-fps_mode", "vfr", "-preset", "ultrafast"];
    for (name, more) in [("sparse", &sparse[..]), ("open", &open[..]), ("uneven", &uneven[..])] {
        let source = made(name, &[&beginning[..], more].concat()).await;
        let spec = json!({ "job_id": name, "input_url": stage.web.url_of(&source), "segment_seconds": 2 });
        stage.client.submit(&spec).await.unwrap();
    }
    for name in ["sparse", "open", "uneven"] {
        let done = stage.succeeded(name).await;
        let rate = done.outputs.as_ref().unwrap().renditions[0].frame_rate;
        let (count, apart) = frames(&stage, &done).await;
        assert!((count as f64 - 36.0 * rate).abs() <= 2.0, "{name}: {count} frames at {rate}");
        assert!(apart < 1.01 / rate, "{name}: {apart} s without a frame");
    }
    assert!(parts_done(&stage).await.iter().sum::<u32>() > 20, "they were cut");
    stage.end().await;
}

#[tokio::test]
async fn a_browser_plays_over_the_joints_without_a_gap() {
    let stage = Stage::start(workers(2)).await;
    // A frame more than whole segments: the last two are one in the end, which is in no range.
    let long = Picture { seconds: 42.04, ..LONG };
    stage.client.submit(&spec(&stage, "long", &long, json!({})).await).await.unwrap();
    let done = stage.succeeded("long").await;
    assert_eq!(frames(&stage, &done).await.0, 1051);
    let outputs = done.outputs.unwrap();
    let wanted = Wanted {
        picture_s: Some(long.seconds),
        sound_s: Some(long.seconds),
        sizes: outputs.renditions.iter().map(|one| (one.width, one.height)).collect(),
        frame_rate: f64::from(LONG.rate),
    };
    // The stills are of the whole as well.
    let stills = stage.client.get(&outputs.thumbnails.unwrap()).await.unwrap().success().unwrap().text();
    assert!(stills.contains("\n00:00:00.000 --> ") && stills.contains(" --> 00:00:42.040\n"), "{stills}");
    assert!(!stage.client.get(&outputs.poster.unwrap()).await.unwrap().success().unwrap().body.is_empty());
    let url = |path: Option<String>| stage.client.url(&path.unwrap()).unwrap();
    let (hls, dash) = (url(outputs.hls), url(outputs.dash));
    let (by_hls, by_shaka) = tokio::join!(
        chromium::play("hls", hls.as_str(), "ranges", &[]),
        chromium::play("shaka", dash.as_str(), "ranges", &[])
    );
    let faults: Vec<String> = by_hls.faults(&wanted).into_iter().chain(by_shaka.faults(&wanted)).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    stage.end().await;
}
