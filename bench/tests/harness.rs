//! The harness itself, with plain programs as children: what it promises about processes must hold before any system
//! test can be believed.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, too: that is the verdict")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_bench::process::{Process, Spawner, Spec};
use millrace_bench::procfs;

const BENCH: &str = env!("CARGO_BIN_EXE_millrace-bench");
const PATIENCE: Duration = Duration::from_secs(10);

fn spawner() -> Spawner {
    Spawner::new(BENCH.into()).unwrap()
}

fn start(spawner: &Spawner, logs: &Path, script: &str) -> Process {
    let args = ["-c", script].map(Into::into).to_vec();
    spawner
        .start(Spec { name: "child".to_owned(), program: "/bin/sh".into(), args, logs: logs.to_owned() })
        .unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never saw: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_child_says_ready_and_stops_when_asked() {
    let logs = tempfile::tempdir().unwrap();
    let spawner = spawner();
    let script =
        "echo noise >&2; trap 'exit 0' TERM; echo ready http://127.0.0.1:9; while :; do sleep 0.05; done";
    let mut child = start(&spawner, logs.path(), script);
    assert_eq!(child.ready(PATIENCE).await.unwrap().address(), "127.0.0.1:9");
    child.ask_to_stop().unwrap();
    assert!(child.wait(PATIENCE).await.unwrap().success());
    assert!(child.tail().contains("noise"), "{}", child.tail());
    assert!(child.ask_to_stop().is_err(), "an ended child cannot be asked");
}

#[tokio::test]
async fn a_second_start_does_not_read_the_first_ones_ready_line() {
    let logs = tempfile::tempdir().unwrap();
    let spawner = spawner();
    let mut first = start(&spawner, logs.path(), "echo ready http://127.0.0.1:1; exec sleep 60");
    first.ready(PATIENCE).await.unwrap();
    first.kill9().await.unwrap();
    let mut second = start(&spawner, logs.path(), "echo ready http://127.0.0.1:2; exec sleep 60");
    assert_eq!(second.ready(PATIENCE).await.unwrap().address(), "127.0.0.1:2");
}

#[tokio::test]
async fn a_child_that_dies_or_dawdles_is_an_error_with_the_end_of_its_log() {
    let logs = tempfile::tempdir().unwrap();
    let spawner = spawner();
    let mut dead = start(&spawner, logs.path(), "echo no such port >&2; exit 3");
    let error = dead.ready(PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("no such port"), "{error}");
    let mut slow = start(&spawner, logs.path(), "echo thinking >&2; exec sleep 60");
    wait_until("its log", || slow.tail().contains("thinking"));
    let error = slow.ready(Duration::from_millis(50)).await.unwrap_err().to_string();
    assert!(error.contains("not ready") && error.contains("thinking"), "{error}");
}

#[tokio::test]
async fn a_dropped_child_takes_its_group_along() {
    let logs = tempfile::tempdir().unwrap();
    let spawner = spawner();
    let mut child = start(&spawner, logs.path(), "sleep 60 & echo ready http://127.0.0.1:1; wait");
    child.ready(PATIENCE).await.unwrap();
    let family = procfs::descendants(child.pid());
    assert_eq!(family.len(), 1, "{family:?}");
    drop(child);
    wait_until("the end of its sleep", || !family[0].is_alive());
}

#[test]
fn a_leashed_program_dies_with_its_parent_even_by_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("parent.sh");
    let pid_file = directory.path().join("pid");
    let mut file = std::fs::File::create(&script).unwrap();
    writeln!(file, "#!/bin/sh\n{BENCH} leash $$ -- sleep 60 &\necho $! >{}\nwait", pid_file.display())
        .unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(file);
    let mut parent = Command::new("sh").arg(&script).stdin(Stdio::null()).spawn().unwrap();
    let mut leashed = None;
    wait_until("the leashed sleep", || {
        let pid = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        leashed = pid.and_then(procfs::Process::look).filter(|process| process.name == "sleep");
        leashed.is_some()
    });
    parent.kill().unwrap();
    parent.wait().unwrap();
    let leashed = leashed.unwrap();
    wait_until("its end", || !leashed.is_alive());
}

#[test]
fn a_leash_without_its_parent_starts_nothing() {
    let run = Command::new(BENCH).args(["leash", "1", "--", "echo", "started"]).output().unwrap();
    assert!(!run.status.success() && run.stdout.is_empty(), "{run:?}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("not the parent"), "{run:?}");
}
