//! A whole system: workers of several pools on one store, a gateway in front, all real processes on loopback.

mod builder;
mod gateways;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tokio::time::Instant;

pub use self::builder::Builder;
use crate::Client;
use crate::binaries::Binaries;
use crate::data::Data;
use crate::process::{POLL, Process, Ready, Spawner, Spec};
use crate::procfs;
use crate::routing::Routing;

/// Longest time from a start to the `ready` line: the worker checks its ffmpeg first, on a machine that may be busy.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// Longest time for an orderly end, when nothing long runs.
const STOP_PATIENCE: Duration = Duration::from_secs(45);
/// Longest time from a gateway's `ready` line to its `/readyz`: it probes all workers first.
const PROBE_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Worker {
    pool: String,
    /// `HOST:PORT`; port 0 until its first start.
    address: String,
    flags: BTreeMap<String, String>,
    /// The program that starts it and that one's arguments; nothing where it starts by itself.
    by: Vec<String>,
    process: Option<Process>,
}

#[derive(Debug)]
struct Gateway {
    ready: Ready,
    process: Process,
}

/// A running system. Dropping it kills every process of it.
#[derive(Debug)]
pub struct System {
    workers: BTreeMap<String, Worker>,
    gateways: Vec<Gateway>,
    routing: Routing,
    binaries: Binaries,
    log: String,
    spawner: Spawner,
    // Dropped last: the children write into it.
    data: Data,
}

impl System {
    /// A system on loopback that may fetch from loopback, with one slot a worker.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where clients connect: the gateway that was started last.
    pub fn gateway_url(&self) -> &str {
        &self.gateway().ready.http
    }

    /// A client of [`Self::gateway_url`].
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn client(&self) -> Result<Client> {
        Client::new(self.gateway_url())
    }

    /// A client of the gateway's admin side.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn admin(&self) -> Result<Client> {
        Client::new(self.gateway().ready.admin.as_deref().expect("checked when it started"))
    }

    /// `HOST:PORT` of a worker.
    ///
    /// # Errors
    /// No such worker.
    pub fn worker_address(&self, name: &str) -> Result<&str> {
        Ok(&self.worker(name)?.address)
    }

    /// A client of one worker, past the gateway, without TLS.
    ///
    /// # Errors
    /// No such worker.
    pub fn worker_client(&self, name: &str) -> Result<Client> {
        Client::new(&format!("http://{}", self.worker(name)?.address))
    }

    /// All workers' names.
    pub fn workers(&self) -> impl Iterator<Item = &str> {
        self.workers.keys().map(String::as_str)
    }

    /// The data directory: store, objects, scratch directories, logs, routing file.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Where the processes' logs are.
    pub fn logs(&self) -> PathBuf {
        self.data.path().join("logs")
    }

    /// Where published objects are.
    pub fn objects(&self) -> PathBuf {
        self.data.path().join("objects")
    }

    /// The gateway's process id.
    pub fn gateway_pid(&self) -> u32 {
        self.gateway().process.pid()
    }

    /// All that the gateway has logged so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn gateway_log(&self) -> Result<String> {
        let path = self.gateway().process.log_path();
        let log = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// A worker's process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn worker_pid(&self, name: &str) -> Result<u32> {
        let process = self.worker(name)?.process.as_ref();
        Ok(process.with_context(|| format!("worker {name} does not run"))?.pid())
    }

    /// The ffmpeg processes below a worker, now.
    ///
    /// # Errors
    /// It does not run.
    pub fn ffmpegs_of(&self, worker: &str) -> Result<Vec<procfs::Process>> {
        let mut family = procfs::descendants(self.worker_pid(worker)?);
        family.retain(|process| process.name == "ffmpeg");
        Ok(family)
    }

    /// `kill -9` of a worker; returns when it is gone.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill9_worker(&mut self, name: &str) -> Result<()> {
        self.worker_process(name)?.kill9().await?;
        self.worker_mut(name)?.process = None;
        Ok(())
    }

    /// SIGSTOP to a worker, as a host that hangs: its sockets stay open and nothing of it answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze_worker(&mut self, name: &str) -> Result<()> {
        self.worker_process(name)?.signal(Signal::STOP)
    }

    /// SIGCONT to a worker that was frozen.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw_worker(&mut self, name: &str) -> Result<()> {
        self.worker_process(name)?.signal(Signal::CONT)
    }

    /// SIGTERM to a worker; returns how long its end took.
    ///
    /// # Errors
    /// It does not run, does not end, or ends with another code than 0.
    pub async fn stop_worker(&mut self, name: &str) -> Result<Duration> {
        let asked = Instant::now();
        let process = self.worker_process(name)?;
        process.ask_to_stop()?;
        let status = process.wait(STOP_PATIENCE).await?;
        if !status.success() {
            bail!("worker {name} ended with {status}\n{}", process.tail());
        }
        self.worker_mut(name)?.process = None;
        Ok(asked.elapsed())
    }

    /// Starts a worker that ended, where it was before.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart_worker(&mut self, name: &str) -> Result<()> {
        let worker = self.worker(name)?;
        let spec = self.worker_spec(name, worker);
        let mut process = self.spawner.start(spec)?;
        process.ready(READY_PATIENCE).await?;
        self.worker_mut(name)?.process = Some(process);
        Ok(())
    }

    /// Forgets the processes of workers that have ended by themselves; returns their names, each with the end of its log.
    pub fn bury_dead_workers(&mut self) -> Vec<(String, String)> {
        let mut dead = Vec::new();
        for (name, worker) in &mut self.workers {
            if let Some(mut process) = worker.process.take_if(|process| process.exited().is_some()) {
                let status = process.exited().map_or(String::new(), |status| status.to_string());
                dead.push((name.clone(), format!("{status}\n{}", process.tail())));
            }
        }
        dead
    }

    /// `kill -9` of the gateway that was started last; returns when it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn kill9_gateway(&mut self) -> Result<()> {
        self.gateway_mut().process.kill9().await
    }

    /// How the gateway ended, if it has, with the end of its log.
    pub fn gateway_exited(&mut self) -> Option<String> {
        let process = &mut self.gateway_mut().process;
        process.exited().map(|status| format!("the gateway ended ({status})\n{}", process.tail()))
    }

    /// Starts one more gateway on the same file; it is the one that all calls mean from then on.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_second_gateway(&mut self) -> Result<()> {
        self.start_gateway().await
    }

    /// Changes the routing file; the gateway notices by itself.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn rewrite_routing(&mut self, change: impl FnOnce(&mut Routing)) -> Result<()> {
        change(&mut self.routing);
        self.write_routing()
    }

    /// Puts any text in the routing file's place, for files that must be refused.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn break_routing(&self, text: &str) -> Result<()> {
        crate::routing::replace(&self.routing_path(), text).context("write the routing file")
    }

    /// Sends SIGHUP to the gateway: reload now.
    ///
    /// # Errors
    /// It has ended.
    pub fn hang_up_gateway(&mut self) -> Result<()> {
        self.gateway_mut().process.signal(Signal::HUP)
    }

    /// The generation of the routing file that the gateway works with: it counts up with every reload that took.
    ///
    /// # Errors
    /// The admin side does not answer, or shows none.
    pub async fn generation(&self) -> Result<u64> {
        let metrics =
            self.admin()?.get("/metrics").await?.success().context("read the gateway's metrics")?.text();
        generation_in(&metrics).context("the gateway's metrics show no reload generation")
    }

    /// Waits until the gateway works with a later generation than `before`.
    ///
    /// # Errors
    /// It does not within `patience`.
    pub async fn wait_reloaded(&self, before: u64, patience: Duration) -> Result<u64> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.generation().await?;
            if now > before {
                return Ok(now);
            }
            if Instant::now() > deadline {
                bail!("the gateway did not reload in {patience:?}\n{}", self.gateway().process.tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends everything in order: the gateway first, then all workers at once. Then nothing of it may run any more.
    ///
    /// # Errors
    /// A process that does not end, had ended by itself, ends with another code than 0, or leaves another one behind.
    pub async fn stop(&mut self) -> Result<()> {
        for gateway in &mut self.gateways {
            end_in_order(&mut gateway.process, false).await?;
        }
        let mut running: Vec<&mut Process> =
            self.workers.values_mut().filter_map(|w| w.process.as_mut()).collect();
        let asked: Vec<bool> = running.iter_mut().map(|process| process.ask_to_stop().is_ok()).collect();
        for (process, asked) in running.into_iter().zip(asked) {
            end_in_order(process, asked).await?;
        }
        self.wait_nothing_left(Duration::from_secs(5)).await
    }

    /// Waits until no process works in the data directory any more.
    ///
    /// # Errors
    /// Lists those that still do.
    pub async fn wait_nothing_left(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let mut left = procfs::at_work_in(self.data.path());
            // Whoever reads a log there, or started us with the directory's name, is none of ours.
            left.retain(|p| ["millrace-", "ffmpeg", "ffprobe"].iter().any(|name| p.name.starts_with(name)));
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let list: Vec<String> =
                    left.iter().map(|p| format!("{} {}", p.pid, p.command_line())).collect();
                bail!("left running:\n{}", list.join("\n"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Refuses a log that shows a panic, of whatever process.
    ///
    /// # Errors
    /// With the end of that log.
    pub fn check_logs(&self) -> Result<()> {
        for entry in fs::read_dir(self.logs()).context("list the logs")? {
            let path = entry.context("list the logs")?.path();
            let log = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            if let Some(line) =
                String::from_utf8_lossy(&log).lines().find(|line| line.contains("panicked at"))
            {
                bail!("{} shows a panic: {line}\n{}", path.display(), crate::process::tail(&path));
            }
        }
        Ok(())
    }

    fn gateway(&self) -> &Gateway {
        self.gateways.last().expect("a system has a gateway from its start on")
    }

    fn gateway_mut(&mut self) -> &mut Gateway {
        self.gateways.last_mut().expect("a system has a gateway from its start on")
    }

    fn worker(&self, name: &str) -> Result<&Worker> {
        self.workers.get(name).with_context(|| format!("there is no worker {name}"))
    }

    fn worker_mut(&mut self, name: &str) -> Result<&mut Worker> {
        self.workers.get_mut(name).with_context(|| format!("there is no worker {name}"))
    }

    fn worker_process(&mut self, name: &str) -> Result<&mut Process> {
        self.worker_mut(name)?.process.as_mut().with_context(|| format!("worker {name} does not run"))
    }

    fn routing_path(&self) -> PathBuf {
        self.data.path().join("routing.toml")
    }

    fn write_routing(&self) -> Result<()> {
        self.routing.write(&self.routing_path()).context("write the routing file")
    }

    fn add_worker(
        &mut self,
        name: &str,
        pool: &str,
        flags: BTreeMap<String, String>,
        by: Vec<String>,
    ) -> Result<()> {
        let address = "127.0.0.1:0".to_owned();
        let mut worker = Worker { pool: pool.to_owned(), address, flags, by, process: None };
        let spec = self.worker_spec(name, &worker);
        fs::create_dir_all(self.scratch(name)).context("make the scratch directory")?;
        worker.process = Some(self.spawner.start(spec)?);
        self.workers.insert(name.to_owned(), worker);
        Ok(())
    }

    fn scratch(&self, worker: &str) -> PathBuf {
        self.data.path().join("scratch").join(worker)
    }

    fn worker_spec(&self, name: &str, worker: &Worker) -> Spec {
        let mut store = OsString::from("sqlite:");
        store.push(self.data.path().join("jobs.db"));
        let mut args: Vec<OsString> = vec!["run".into()];
        let mut put = |flag: &str, value: OsString| {
            if !worker.flags.contains_key(flag) {
                args.extend([flag.into(), value]);
            }
        };
        put("--listen", worker.address.clone().into());
        put("--pool", worker.pool.clone().into());
        put("--name", name.into());
        put("--store", store);
        put("--objects", self.objects().into());
        put("--scratch", self.scratch(name).into());
        put("--log-format", "text".into());
        put("--log", self.log.clone().into());
        for (flag, value) in &worker.flags {
            args.extend([flag.into(), value.into()]);
        }
        let program = self.binaries.worker.clone();
        let (program, args) = match worker.by.split_first() {
            None => (program, args),
            Some((first, rest)) => {
                let own = rest.iter().map(OsString::from).chain([program.into()]);
                (first.into(), own.chain(args).collect())
            }
        };
        Spec { name: name.to_owned(), program, args, logs: self.logs() }
    }

    fn spawn_gateway(&self, number: usize) -> Result<Process> {
        let mut args: Vec<OsString> = vec!["run".into(), "--config".into(), self.routing_path().into()];
        args.extend(
            ["--log-format", "text", "--log", &self.log, "--drain-timeout", "30s"].map(OsString::from),
        );
        let name = format!("gateway-{number}");
        let program = self.binaries.gateway.clone();
        self.spawner.start(Spec { name, program, args, logs: self.logs() })
    }

    async fn start_gateway(&mut self) -> Result<()> {
        let mut process = self.spawn_gateway(self.gateways.len() + 1)?;
        let ready = process.ready(READY_PATIENCE).await?;
        if ready.admin.is_none() {
            bail!("the gateway's ready line names no admin address");
        }
        self.gateways.push(Gateway { ready, process });
        self.wait_gateway_ready().await
    }

    /// Its `ready` line says that it listens; `/readyz` says that it has probed the workers.
    async fn wait_gateway_ready(&self) -> Result<()> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PROBE_PATIENCE;
        loop {
            let answer = admin.get("/readyz").await?;
            if answer.status.is_success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let tail = self.gateway().process.tail();
                bail!("the gateway is not ready after {PROBE_PATIENCE:?}: {}\n{tail}", answer.text());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn end_in_order(process: &mut Process, asked: bool) -> Result<()> {
    if let Some(status) = process.exited().filter(|_| !asked) {
        // A kill -9 is a test's own doing; any other end that nobody asked for is a failure.
        if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) {
            return Ok(());
        }
        bail!("a process had ended by itself ({status})\n{}", process.tail());
    }
    if !asked {
        process.ask_to_stop()?;
    }
    let status = process.wait(STOP_PATIENCE).await?;
    if !status.success() {
        bail!("a process ended with {status} when asked to stop\n{}", process.tail());
    }
    Ok(())
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.data.keep();
            eprintln!("the system's data and logs are kept in {}", self.data.path().display());
            let gateways = self.gateways.iter().map(|gateway| &gateway.process);
            let workers = self.workers.values().filter_map(|worker| worker.process.as_ref());
            for process in gateways.chain(workers) {
                eprintln!("{}", process.tail());
            }
        }
    }
}

/// The value of the one gauge or counter whose name says that it is the reload generation.
fn generation_in(metrics: &str) -> Option<u64> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    let mut found = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        let value: f64 = value.parse().ok()?;
        (name.starts_with("millrace_gateway_") && name.contains("generation")).then_some(value as u64)
    });
    found.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_read_from_the_metrics() {
        let metrics = "# HELP millrace_gateway_reload_generation x\n# TYPE millrace_gateway_reload_generation gauge\n\
                       millrace_gateway_reloads_total{result=\"ok\"} 9\nmillrace_gateway_reload_generation 4\n";
        assert_eq!(generation_in(metrics), Some(4));
        assert_eq!(generation_in("other_generation 4\n"), None);
    }
}
