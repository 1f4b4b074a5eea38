//! The demo's system without the demo: it serves until it is asked to stop, and its jobs outlive it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use millrace_runtime::shutdown::Shutdown;
use serde_json::Value;
use tokio::time::Instant;

use crate::{Client, System};

/// How often the children are looked at.
const WATCH: Duration = Duration::from_millis(500);
/// Wait before a dead worker's first restart; doubles with every death.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait before a restart.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A worker that lived so long starts again with the shortest wait.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What it may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The gateway's port; its admin side has the next one.
    pub port: u16,
    /// The system's directory is `up` below this one.
    pub data: PathBuf,
}

/// Starts the system, prints its one `ready` line on standard output, and serves until `shutdown`.
///
/// # Errors
/// A port in use, a system that does not come up, or a gateway that dies.
pub async fn run(options: &Options, shutdown: &Shutdown) -> Result<()> {
    let admin = options.port.checked_add(1).context("the admin side needs PORT+1, and 65535 has none")?;
    if options.port == 0 {
        bail!("PORT must be a real port: the admin side is on the next one");
    }
    for port in [options.port, admin] {
        free(port)?;
    }
    eprintln!("starting one gateway and two pools (aws, gcp) of two workers each …");
    let builder = System::builder().pool("aws", 2).pool("gcp", 2).gateway_ports(options.port, admin);
    let mut system = tokio::select! {
        system = builder.data(&options.data.join("up")).start() => system?,
        () = shutdown.graceful.cancelled() => bail!("asked to stop before it was ready"),
    };
    eprintln!("routing file: {}; edit it while it runs", system.data().join("routing.toml").display());
    eprintln!("admin at http://127.0.0.1:{admin}; logs in {}; Ctrl-C stops", system.logs().display());
    println!("ready {}", system.gateway_url());

    serve(&mut system, shutdown).await?;
    eprintln!("stopping: running jobs get 30 s to finish; a second Ctrl-C ends them at once …");
    tokio::select! {
        stopped = system.stop() => stopped?,
        // Dropping the system kills what still runs; leases run out and the jobs go on at the next start.
        () = shutdown.immediate.cancelled() => eprintln!("ended at once, as asked"),
    }
    eprintln!("stopped; the jobs are kept in {}", options.data.display());
    Ok(())
}

fn free(port: u16) -> Result<()> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) => {
            bail!("port {port} cannot be used ({error}): stop what uses it, or choose another with PORT=…")
        }
    }
}

/// Watches the children: a dead worker is started again after a while, a dead gateway is the end.
async fn serve(system: &mut System, shutdown: &Shutdown) -> Result<()> {
    let mut restarts: BTreeMap<String, Restart> = BTreeMap::new();
    let mut edits = Edits { admin: system.admin()?, seen: Value::Null };
    loop {
        tokio::select! {
            () = shutdown.graceful.cancelled() => return Ok(()),
            () = tokio::time::sleep(WATCH) => {}
        }
        if let Some(end) = system.gateway_exited() {
            bail!("{end}");
        }
        if let Some(news) = edits.news().await {
            eprintln!("{news}");
        }
        let now = Instant::now();
        for (name, end) in system.bury_dead_workers() {
            let wait = restarts.entry(name.clone()).or_default().died(now);
            eprintln!("worker {name} has died; it is started again in {} s: {end}", wait.as_secs());
        }
        for (name, restart) in &mut restarts {
            if restart.due.take_if(|due| *due <= now).is_none() {
                continue;
            }
            restart.started = Some(now);
            let restarted = tokio::select! {
                restarted = system.restart_worker(name) => restarted,
                () = shutdown.graceful.cancelled() => return Ok(()),
            };
            match restarted {
                Ok(()) => eprintln!("worker {name} runs again"),
                Err(error) => {
                    let wait = restart.died(Instant::now());
                    eprintln!("worker {name} cannot be started, next try in {} s: {error:#}", wait.as_secs());
                }
            }
        }
    }
}

/// What becomes of edits of the routing file: said where the system was started, not in a log only.
struct Edits {
    admin: Client,
    /// What the gateway last said of its file.
    seen: Value,
}

impl Edits {
    /// What is new since the last call, if anything.
    async fn news(&mut self) -> Option<String> {
        let answer = tokio::time::timeout(WATCH, self.admin.get("/readyz")).await.ok()?.ok()?;
        let config = serde_json::from_str::<Value>(&answer.text()).ok()?.get("config")?.clone();
        self.compare(config)
    }

    fn compare(&mut self, config: Value) -> Option<String> {
        let before = std::mem::replace(&mut self.seen, config);
        if before.is_null() || before == self.seen {
            return None;
        }
        Some(match self.seen["error"].as_str() {
            Some(error) => format!("routing file not taken, the one in force stays: {error}"),
            None => format!("routing file taken: generation {} is in force", self.seen["generation"]),
        })
    }
}

/// When a worker is to be started again.
#[derive(Debug, Default)]
struct Restart {
    due: Option<Instant>,
    started: Option<Instant>,
    wait: Duration,
}

impl Restart {
    /// Plans the restart of a worker that was found dead `now`; returns how long that is away.
    fn died(&mut self, now: Instant) -> Duration {
        let lived = self.started.map_or(HEALTHY_AFTER, |started| now - started);
        self.wait = if lived >= HEALTHY_AFTER { BACK_OFF_MIN } else { (self.wait * 2).min(BACK_OFF_MAX) };
        self.due = Some(now + self.wait);
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_worker_that_keeps_dying_is_started_ever_more_slowly() {
        let mut restart = Restart::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..7 {
            let wait = restart.died(now);
            waits.push(wait.as_secs());
            now += wait;
            restart.started = Some(now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(restart.died(now + HEALTHY_AFTER), BACK_OFF_MIN);
    }

    #[tokio::test]
    async fn an_edit_is_told_once() {
        let mut edits = Edits { admin: Client::new("http://127.0.0.1:1").unwrap(), seen: Value::Null };
        let config =
            |generation: u64, error: Option<&str>| json!({ "generation": generation, "error": error });
        assert_eq!(edits.compare(config(1, None)), None, "the file it began with is no edit");
        assert_eq!(edits.compare(config(1, None)), None);
        assert!(
            edits.compare(config(1, Some("routing.toml:8:1: …"))).unwrap().ends_with("routing.toml:8:1: …")
        );
        assert_eq!(edits.compare(config(1, Some("routing.toml:8:1: …"))), None);
        assert!(edits.compare(config(2, None)).unwrap().contains("generation 2"));
        assert_eq!(edits.news().await, None, "nobody answers");
    }

    #[tokio::test]
    async fn a_port_in_use_is_a_clear_error() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let options = Options { port, data: directory.path().to_owned() };
        let error = run(&options, &Shutdown::new()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("port {port}")) && error.contains("PORT="), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was started");
    }
}
