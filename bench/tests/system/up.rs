//! `millrace-bench up`, as an operator runs it.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use millrace_bench::{Client, procfs};
use millrace_wire::job::State;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::stage::{PATIENCE, SMALL, clip, wait_until};

const BENCH: &str = env!("CARGO_BIN_EXE_millrace-bench");

/// Two neighbouring ports that are free now. Rejected: fixed ones, which somebody else may use.
fn two_free_ports() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

fn up(port: u16, data: &Path) -> (Child, String) {
    let mut child = Command::new(BENCH)
        .args(["up", "--port", &port.to_string(), "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn it_serves_revives_a_dead_worker_ends_when_asked_and_keeps_its_jobs() {
    let _turn = crate::stage::turn().await;
    let data = tempfile::tempdir().unwrap();
    let port = two_free_ports();
    let (mut child, line) = up(port, data.path());
    assert_eq!(line, format!("ready http://127.0.0.1:{port}\n"));
    let client = Client::new(&format!("http://127.0.0.1:{port}")).unwrap();
    let ticket = client.upload_ticket("clip.mp4", "video/mp4").await.unwrap();
    client.put_file(&ticket, "video/mp4", &clip(&SMALL).await, |_| {}).await.unwrap().success().unwrap();
    client.submit(&json!({ "job_id": "kept", "input_path": ticket.input_path })).await.unwrap();
    assert_eq!(client.wait_final("kept", PATIENCE).await.unwrap().state, State::Succeeded);

    let workers = |pid| {
        let mut family = procfs::descendants(pid);
        family.retain(|process| process.name.starts_with("millrace-worker"));
        family
    };
    let before = workers(child.id());
    assert_eq!(before.len(), 4, "two pools of two: {before:?}");
    signal(before[0].pid, Signal::KILL);
    wait_until("a worker in the dead one's place", || {
        let now = workers(child.id());
        now.len() == 4 && !now.contains(&before[0])
    })
    .await;

    let family = procfs::descendants(child.id());
    signal(child.id(), Signal::TERM);
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(family.iter().all(|process| !process.is_alive()), "it left a child behind");

    let (mut child, _) = up(port, data.path());
    assert_eq!(client.job("kept").await.unwrap().state, State::Succeeded, "jobs outlive it");
    let taken =
        Command::new(BENCH).args(["up", "--port", &port.to_string()]).arg("--data").arg(data.path()).output();
    let taken = taken.unwrap();
    let said = String::from_utf8_lossy(&taken.stderr);
    assert_eq!(taken.status.code(), Some(1), "{said}");
    assert!(taken.stdout.is_empty() && said.contains(&format!("port {port} cannot be used")), "{said}");

    // Not even a kill -9 leaves anything running.
    let family = procfs::descendants(child.id());
    assert!(family.len() >= 5, "{family:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the end of every child", || family.iter().all(|process| !process.is_alive())).await;
}
