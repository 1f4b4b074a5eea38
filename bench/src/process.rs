//! Child processes: started on a leash in a group of their own, logged to files, never left behind.
//!
//! Output goes to files and not through pipes: a child never blocks on or dies of a pipe, and the log is there after
//! a crash of either side.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::time::Instant;

/// How often a condition is looked at while somebody waits for it.
pub const POLL: Duration = Duration::from_millis(20);

/// How much of a log is shown with an error.
const TAIL_BYTES: u64 = 4096;

/// What to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The name of its log files, and in messages.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where the log files go.
    pub logs: PathBuf,
}

/// Starts children from one thread that lives as long as it does: the kernel takes the end of the *thread* that
/// started a leashed child for the death of its parent.
#[derive(Debug)]
pub struct Spawner {
    bench: PathBuf,
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Request = (Command, mpsc::Sender<io::Result<Child>>);

impl Spawner {
    /// A spawner that starts programs through `bench leash`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(bench: PathBuf) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let thread = thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for (mut command, reply) in inbox {
                // Who asked may have given up; the child is then killed by nobody, so do it here.
                if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        })?;
        Ok(Self { bench, requests: Some(requests), thread: Some(thread) })
    }

    /// Starts a child. Its logs are appended to when it is started again under the same name.
    ///
    /// # Errors
    /// The log files or the program cannot be opened.
    pub fn start(&self, spec: Spec) -> Result<Process> {
        let append = |suffix: &str| {
            let path = spec.logs.join(format!("{}.{suffix}", spec.name));
            let file = File::options().create(true).append(true).open(&path);
            file.with_context(|| format!("open {}", path.display())).map(|file| (path, file))
        };
        let ((out_path, out), (log_path, log)) = (append("out")?, append("log")?);
        let out_start = out.metadata().context("measure the output file")?.len();
        let mut command = Command::new(&self.bench);
        command.arg("leash").arg(std::process::id().to_string()).arg("--");
        command.arg(&spec.program).args(&spec.args);
        command.stdin(Stdio::null()).stdout(out).stderr(log);
        // A Ctrl-C at the terminal reaches us only; we end the children in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        // Settings of whoever runs us are not settings of the system under test.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MILLRACE_") {
                command.env_remove(name);
            }
        }
        let (reply, answer) = mpsc::channel();
        let requests = self.requests.as_ref().expect("present until dropped");
        requests.send((command, reply)).map_err(|_| anyhow!("the spawner thread has ended"))?;
        let child = answer.recv().context("the spawner thread has ended")?;
        let child = child.with_context(|| format!("start {}", spec.name))?;
        Ok(Process { name: spec.name, child, exit: None, out_path, out_start, log_path })
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running (or ended) child. Dropping it kills it and its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    exit: Option<ExitStatus>,
    out_path: PathBuf,
    out_start: u64,
    log_path: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its log is.
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// Its last log lines and where the rest is, for an error message.
    pub fn tail(&self) -> String {
        format!("--- the end of {} ---\n{}", self.log_path.display(), tail(&self.log_path))
    }

    /// Waits for its `ready …` line on standard output.
    ///
    /// # Errors
    /// It ended first, or `patience` was not enough; with the end of its log.
    pub async fn ready(&mut self, patience: Duration) -> Result<Ready> {
        let deadline = Instant::now() + patience;
        loop {
            let output = std::fs::read(&self.out_path).context("read the output file")?;
            let output = String::from_utf8_lossy(&output[self.out_start.min(output.len() as u64) as usize..])
                .into_owned();
            let whole_lines = output.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(line) = whole_lines.lines().find(|line| line.starts_with("ready")) {
                return Ready::parse(line).with_context(|| format!("{} printed {line:?}", self.name));
            }
            if let Some(status) = self.exited() {
                bail!("{} ended ({status}) before it was ready\n{}", self.name, self.tail());
            }
            if Instant::now() > deadline {
                bail!("{} was not ready after {patience:?}\n{}", self.name, self.tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `kill -9`, and nobody but itself; returns when it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10)).await.map(drop)
    }

    /// Asks it to stop (SIGTERM) and does not wait.
    ///
    /// # Errors
    /// It had ended before.
    pub fn ask_to_stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.exited() {
            bail!("{} had already ended ({status})\n{}", self.name, self.tail());
        }
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `patience`; with the end of its log.
    pub async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {patience:?}\n{}", self.name, self.tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            // The leash may not have left our group's side yet when it was started this very moment.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a `ready` line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Where it serves: `http://HOST:PORT`, or `https://HOST:PORT` of a worker with TLS.
    pub http: String,
    /// Where operators connect; the gateway only.
    pub admin: Option<String>,
}

impl Ready {
    /// Reads `ready http://HOST:PORT` or `ready http://HOST:PORT admin http://HOST:PORT`.
    ///
    /// # Errors
    /// It says something else.
    pub fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (http, admin) = match *words {
            ["ready", http] => (http, None),
            ["ready", http, "admin", admin] => (http, Some(admin)),
            _ => bail!("wanted `ready http://HOST:PORT`, perhaps with `admin http://HOST:PORT`"),
        };
        for url in [Some(http), admin].into_iter().flatten() {
            address(url)?;
        }
        Ok(Self { http: http.to_owned(), admin: admin.map(str::to_owned) })
    }

    /// `HOST:PORT` of [`Self::http`].
    pub fn address(&self) -> &str {
        address(&self.http).expect("checked when parsed")
    }
}

fn address(url: &str) -> Result<&str> {
    let address = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let address = address.with_context(|| format!("{url} starts with neither http:// nor https://"))?;
    address.parse::<std::net::SocketAddr>().with_context(|| format!("{url} names no address and port"))?;
    Ok(address)
}

/// The last few KiB of a text file, starting at a whole line.
pub fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole =
            if length > TAIL_BYTES { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
        Ok(whole.trim_end().to_owned())
    };
    read().unwrap_or_else(|error| format!("({} cannot be read: {error})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_names_one_address_or_two() {
        let worker = Ready::parse("ready http://127.0.0.1:9001").unwrap();
        assert_eq!((worker.address(), &worker.admin), ("127.0.0.1:9001", &None));
        assert_eq!(Ready::parse("ready https://127.0.0.1:9002").unwrap().address(), "127.0.0.1:9002");
        let gateway = Ready::parse("ready http://127.0.0.1:80 admin http://[::1]:81").unwrap();
        assert_eq!(gateway.admin.as_deref(), Some("http://[::1]:81"));
        for bad in [
            "ready",
            "ready 127.0.0.1:9001",
            "ready http://127.0.0.1",
            "ready http://h:1 x",
            "ready http://127.0.0.1:9 admin",
            "ready http://127.0.0.1:9 admin http://nowhere",
        ] {
            assert!(Ready::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tail_starts_at_a_whole_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(file.path(), &text).unwrap();
        let tail = tail(file.path());
        assert!(tail.len() <= TAIL_BYTES as usize && tail.starts_with("line ") && tail.ends_with("line 999"));
    }
}
