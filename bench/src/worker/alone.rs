//! One real worker with a store and objects of its own, and what one job of it costs, seen from outside.
//!
//! The kernel keeps the books: what a process used itself, and what its children used that it waited for. No cage,
//! probe or copy can hide from that. The encode's part is what the worker's children had used just after its process
//! was reaped, less what they had used just before; the worker's own counter of it is shown beside, as a check.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use millrace_wire::LoadReport;
use millrace_wire::job::{Job, State};
use serde_json::Value;

use super::figures::JobCost;
use crate::Client;
use crate::data::Data;
use crate::process::{Process, Spawner, Spec};
use crate::procfs::{self, Cpu};
use crate::table::Row;

/// From a start to the `ready` line, on a machine that may be busy.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// For an orderly end.
const STOP_PATIENCE: Duration = Duration::from_secs(45);
/// For one job.
const JOB_PATIENCE: Duration = Duration::from_secs(3600);
/// From a job's end to a worker that does nothing any more.
const IDLE_PATIENCE: Duration = Duration::from_secs(30);
/// How often the processes are looked at. It costs the worker nothing.
const LOOK: Duration = Duration::from_millis(20);
/// How often the worker is asked. That does cost it something, as any client's question does.
const ASK: Duration = Duration::from_millis(500);
/// Only the encode's command line has this.
const ENCODE_MARK: &str = "-init_seg_name";
/// The worker's own word on what its encodes used.
const ENCODE_METRIC: &str = "millrace_worker_encode_cpu_seconds_total";

/// The worker. Dropping it kills it.
#[derive(Debug)]
pub struct Alone {
    process: Process,
    client: Client,
    _spawner: Spawner,
    // Dropped last: the worker writes into it.
    _data: Data,
}

/// A job that succeeded.
#[derive(Debug)]
pub struct Done {
    /// What it cost.
    pub cost: JobCost,
    /// As a client sees it.
    pub job: Job,
    /// The encode's command line, program first.
    pub command_line: Vec<String>,
}

impl Alone {
    /// Starts `program` with everything of its own below `directory`, which is emptied first.
    ///
    /// # Errors
    /// The directory is in use, or the worker does not come up.
    pub async fn start(program: PathBuf, directory: &Path) -> Result<Self> {
        let data = Data::open(Some(directory), true)?;
        let at = |name: &str| data.path().join(name);
        let mut store = OsString::from("sqlite:");
        store.push(at("jobs.db"));
        let mut args: Vec<OsString> = vec!["run".into()];
        let mut put = |flag: &str, value: OsString| args.extend([flag.into(), value]);
        put("--listen", "127.0.0.1:0".into());
        put("--name", "bench-1".into());
        put("--store", store);
        put("--objects", at("objects").into());
        put("--scratch", at("scratch").into());
        put("--allow-private-sources", "127.0.0.0/8".into());
        let this = std::env::current_exe().context("find this program's own path")?;
        let spawner = Spawner::new(this).context("start the spawner thread")?;
        let spec = Spec { name: "worker".to_owned(), program, args, logs: at("logs") };
        let mut process = spawner.start(spec)?;
        let ready = process.ready(READY_PATIENCE).await?;
        let client = Client::new(&ready.http)?;
        Ok(Self { process, client, _spawner: spawner, _data: data })
    }

    /// Speaks to it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// CPU seconds that it uses in a second without work.
    ///
    /// # Errors
    /// It has ended.
    pub async fn idle_cpu_per_s(&self, time: Duration) -> Result<f64> {
        let (before, started) = (self.cpu()?, Instant::now());
        tokio::time::sleep(time).await;
        let used = self.cpu()?.total().saturating_sub(before.total());
        Ok(used.as_secs_f64() / started.elapsed().as_secs_f64())
    }

    /// Runs one job to its end.
    ///
    /// # Errors
    /// It does not succeed at its first attempt, or its encode was not seen.
    pub async fn measure(&self, spec: &Value) -> Result<Done> {
        let said_before = self.encode_said().await?;
        let before = self.cpu()?;
        let id = self.client.submit(spec).await?.job_id.to_string();
        let (job, encode, estimate_s) =
            self.watch(&id).await.with_context(|| format!("job {id}\n{}", self.process.tail()))?;
        self.wait_idle().await?;
        let after = self.cpu()?;
        let own = after.own.saturating_sub(before.own);
        let children = after.children.saturating_sub(before.children);
        let row = Row::of(&job)?;
        let said = self.encode_said().await?;
        let cost = JobCost {
            cpu_s: (own + children).as_secs_f64(),
            wall_s: row.waited_s + row.wall_s,
            worker_cpu_s: own.as_secs_f64(),
            encode_cpu_s: encode.cpu.as_secs_f64(),
            encode_said_cpu_s: said.zip(said_before).map(|(after, before)| after - before),
            other_cpu_s: children.saturating_sub(encode.cpu).as_secs_f64(),
            estimate_s,
        };
        Ok(Done { cost, job, command_line: encode.command_line })
    }

    /// Asks it to stop, and waits.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub async fn stop(mut self) -> Result<()> {
        self.process.ask_to_stop()?;
        let status = self.process.wait(STOP_PATIENCE).await?;
        if !status.success() {
            bail!("the worker ended with {status}\n{}", self.process.tail());
        }
        Ok(())
    }

    fn cpu(&self) -> Result<Cpu> {
        Cpu::of(self.process.pid()).with_context(|| format!("the worker has ended\n{}", self.process.tail()))
    }

    async fn load(&self) -> Result<LoadReport> {
        self.client.get("/load").await?.success().context("read the load report")?.json()
    }

    /// CPU seconds of all its encodes so far, by its own account; none where it gives none.
    async fn encode_said(&self) -> Result<Option<f64>> {
        let metrics = self.client.get("/metrics").await?.success().context("read the metrics")?.text();
        // Whatever labels it has.
        let line = metrics.lines().find(|line| line.split([' ', '{']).next() == Some(ENCODE_METRIC));
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()))
    }

    async fn watch(&self, id: &str) -> Result<(Job, Encode, f64)> {
        let deadline = Instant::now() + JOB_PATIENCE;
        let (mut watch, mut estimate_s) = (Watch::Waiting, None);
        let mut asked = Instant::now();
        loop {
            watch = watch.look(self.process.pid(), |process| {
                process.name == "ffmpeg" && process.arguments().iter().any(|word| word == ENCODE_MARK)
            });
            // At the encode's start, what the plan says of its work is known and none of it is done.
            if estimate_s.is_none() && matches!(watch, Watch::Running { .. }) {
                estimate_s = Some(self.load().await?.work_seconds);
            }
            if asked.elapsed() >= ASK {
                asked = Instant::now();
                let job = self.client.job(id).await?;
                if job.state.is_final() {
                    return finished(job, watch, estimate_s);
                }
                if Instant::now() > deadline {
                    bail!("still {} after {JOB_PATIENCE:?}", job.state.as_str());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn wait_idle(&self) -> Result<()> {
        let deadline = Instant::now() + IDLE_PATIENCE;
        while self.load().await?.running > 0 || !procfs::descendants(self.process.pid()).is_empty() {
            if Instant::now() > deadline {
                bail!("the worker is still at work {IDLE_PATIENCE:?} after its job's end");
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn finished(job: Job, watch: Watch, estimate_s: Option<f64>) -> Result<(Job, Encode, f64)> {
    if job.state != State::Succeeded || job.attempt != 1 {
        let error = job.error.as_ref().map_or("", |error| &error.detail);
        bail!("it ended as {} at attempt {}: {error}", job.state.as_str(), job.attempt);
    }
    match (watch, estimate_s) {
        (Watch::Ended(encode), Some(estimate_s)) => Ok((job, encode, estimate_s)),
        _ => bail!("its encode was not seen from start to end"),
    }
}

/// What one child used.
#[derive(Debug)]
struct Encode {
    cpu: Duration,
    command_line: Vec<String>,
}

/// Waits for one child of a process to come and go.
#[derive(Debug)]
enum Watch {
    Waiting,
    Running {
        pid: u32,
        command_line: Vec<String>,
        /// What all children had used that were waited for when this one was not yet.
        children: Duration,
    },
    Ended(Encode),
}

impl Watch {
    fn look(self, parent: u32, wanted: impl Fn(&procfs::Process) -> bool) -> Self {
        // Read before the child is looked at: if that is still there, this is without it.
        let Some(now) = Cpu::of(parent) else { return self };
        match self {
            Self::Waiting => match procfs::descendants(parent).into_iter().find(wanted) {
                None => Self::Waiting,
                Some(child) => {
                    let command_line = child.arguments();
                    Self::Running { pid: child.pid, command_line, children: now.children }
                }
            },
            // It is there until it was waited for.
            Self::Running { pid, command_line, .. } if Cpu::of(pid).is_some() => {
                Self::Running { pid, command_line, children: now.children }
            }
            Self::Running { command_line, children, .. } => {
                let after = Cpu::of(parent).map_or(now.children, |cpu| cpu.children);
                Self::Ended(Encode { cpu: after.saturating_sub(children), command_line })
            }
            Self::Ended(_) => self,
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn one_child_is_told_apart_from_those_before_and_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let done = directory.path().join("done");
        // Each `sh` burns about as much; only the second is wanted.
        let burn = |mark: &str| {
            format!(
                "sh -c 'sleep 0.2; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done' {mark}; sleep 0.2; "
            )
        };
        let script =
            [burn("first"), burn("wanted"), burn("last"), format!("touch {}; read end", done.display())]
                .concat();
        let mut shell = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut watch = Watch::Waiting;
        while !done.exists() {
            assert!(Instant::now() < deadline, "the shell is not done: {watch:?}");
            watch = watch.look(shell.id(), |child| child.arguments().last().is_some_and(|w| w == "wanted"));
            std::thread::sleep(Duration::from_millis(5));
        }
        let all = Cpu::of(shell.id()).unwrap().children;
        // This closes its input, for which it waits.
        shell.wait().unwrap();
        let Watch::Ended(encode) = watch else { panic!("{watch:?}") };
        let share = encode.cpu.as_secs_f64() / all.as_secs_f64();
        assert!((0.15..0.6).contains(&share), "{:?} of {all:?}", encode.cpu);
        assert!(encode.command_line.iter().any(|word| word == "wanted"));
    }
}
