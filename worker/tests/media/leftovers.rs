//! ffmpeg never outlives those who wait for it. A stopped ffmpeg (SIGSTOP) cannot end on its own, so what ends it
//! here is what should.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millrace_wire::job::FailureCode;
use millrace_worker::failure::Ended;
use millrace_worker::ffmpeg::{Ffmpeg, Settings};
use millrace_worker::ladder;
use millrace_worker::source::probe;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::clip::{make, settings, spec, talking};

const INPUT: &str = "MILLRACE_TEST_INPUT";

/// Processes that run ffmpeg on that file.
pub(super) fn encoders(input: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let program = line.split('\0').next().unwrap_or_default();
        if program.ends_with("ffmpeg") && line.contains(input.to_str().unwrap()) {
            found.extend(id);
        }
    }
    found
}

pub(super) async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = condition() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn gone(input: &Path) {
    until("ffmpeg is gone", || encoders(input).is_empty().then_some(())).await;
}

/// Whether it handles SIGTERM by now; before that, SIGTERM ends even a stopped process.
fn handles_term(pid: Pid) -> bool {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught & 1 << (Signal::TERM.as_raw() - 1) != 0
}

/// Waits for the ffmpeg on that file and stops it in its tracks.
async fn freeze(input: &Path) {
    let running = || encoders(input).into_iter().find(|pid| handles_term(*pid));
    let pid = until("ffmpeg runs", running).await;
    kill_process(pid, Signal::STOP).unwrap();
}

fn long_clip() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "640x360", "50", "12");
    (directory, clip)
}

async fn encode(settings: Settings, input: PathBuf, cancel: CancellationToken) -> Result<(), Ended> {
    let ffmpeg = Ffmpeg::start(settings).await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let probe = probe::probe(&ffmpeg, &input, &cancel).await?;
    let plan = ladder::plan(&spec(r#""preset":"medium""#), &probe, 1)?;
    ffmpeg.encode(&plan, &input, out.path(), &|_| {}, &cancel).await.map(|_| ())
}

#[tokio::test]
async fn a_cancelled_encode_ends_at_once() {
    let (_directory, clip) = long_clip();
    let cancel = CancellationToken::new();
    let settings = Settings { kill_grace: Duration::from_secs(10), ..settings() };
    let task = tokio::spawn(encode(settings, clip.clone(), cancel.clone()));
    until("ffmpeg runs", || encoders(&clip).first().copied()).await;
    let asked = Instant::now();
    cancel.cancel();
    assert_eq!(task.await.unwrap(), Err(Ended::Cancelled));
    assert!(asked.elapsed() < Duration::from_secs(5), "SIGTERM is enough: {:?}", asked.elapsed());
    assert_eq!(encoders(&clip), [], "it is gone when the call returns");
}

#[tokio::test]
async fn one_that_does_not_listen_is_killed_after_the_grace() {
    let (_directory, clip) = long_clip();
    let cancel = CancellationToken::new();
    let settings = Settings { kill_grace: Duration::from_millis(500), ..settings() };
    let task = tokio::spawn(encode(settings, clip.clone(), cancel.clone()));
    freeze(&clip).await;
    let asked = Instant::now();
    cancel.cancel();
    assert_eq!(task.await.unwrap(), Err(Ended::Cancelled));
    let took = asked.elapsed();
    assert!((500..3000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(encoders(&clip), []);
}

#[tokio::test]
async fn one_that_stalls_is_stopped() {
    let (_directory, clip) = long_clip();
    stall(clip).await;
}

#[tokio::test]
async fn sound_alone_that_stalls_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    stall(make(directory.path(), "-f lavfi -i anullsrc=r=48000:d=3600 -c:a flac", "long.flac")).await;
}

async fn stall(clip: PathBuf) {
    let timeouts = Settings {
        stall_timeout: Duration::from_secs(2),
        kill_grace: Duration::from_millis(200),
        ..settings()
    };
    let task = tokio::spawn(encode(timeouts, clip.clone(), CancellationToken::new()));
    freeze(&clip).await;
    match task.await.unwrap() {
        Err(Ended::Failed(failure)) => assert_eq!(failure.code, FailureCode::EncodeStalled, "{failure}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(encoders(&clip), []);
}

#[tokio::test]
async fn a_dropped_encode_leaves_nothing() {
    let (_directory, clip) = long_clip();
    let task = tokio::spawn(encode(settings(), clip.clone(), CancellationToken::new()));
    freeze(&clip).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    gone(&clip).await;
}

/// The process that [`a_killed_worker_leaves_nothing`] kills; it does nothing unless that test starts it.
#[tokio::test]
#[ignore = "run by a_killed_worker_leaves_nothing in a process of its own"]
async fn worker_to_be_killed() {
    let input = std::env::var_os(INPUT).expect("started by a_killed_worker_leaves_nothing");
    let ended = encode(settings(), input.into(), CancellationToken::new()).await;
    panic!("it should have been killed: {ended:?}");
}

struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // Gone already unless the test failed before it killed it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_killed_worker_leaves_nothing() {
    let (_directory, clip) = long_clip();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "media::leftovers::worker_to_be_killed"]).env(INPUT, &clip);
    let mut helper = Helper(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    freeze(&clip).await;
    helper.0.kill().unwrap();
    helper.0.wait().unwrap();
    gone(&clip).await;
}
