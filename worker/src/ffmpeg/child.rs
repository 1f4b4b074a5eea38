//! One running process: started from one permanent thread, always reaped, never left behind.
//!
//! Three ways lead to its end, and each is covered: the worker dies (the parent death signal; it fires when the
//! *thread* ends that started the child, so that thread lives as long as the [`Spawner`]), the future that waits is
//! dropped ([`Running`] kills), or it is asked to stop ([`Running::stop`]: SIGTERM, then SIGKILL). A thread per child
//! waits for it: it learns the CPU time before the process is reaped, and reaps whether or not anybody still listens.
//! Rejected: tokio's own child, which reaps late or never once the runtime is gone and knows no CPU time.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// Its status.
    pub status: ExitStatus,
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// From start to end.
    pub wall: Duration,
}

impl Exit {
    /// For the log: `exit code 1`, `signal 9`.
    pub fn describe(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit status".to_owned(),
        }
    }
}

struct Request {
    command: Command,
    reply: oneshot::Sender<std::io::Result<Running>>,
}

/// The one thread that starts processes. It ends, and every child with it, when the last handle is dropped.
#[derive(Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start() -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        std::thread::Builder::new().name("ffmpeg-spawner".to_owned()).spawn(move || {
            while let Ok(Request { command, reply }) = inbox.recv() {
                // Nobody there any more: dropping what was started kills it.
                let _ = reply.send(start(command));
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts a process in its own group, its outputs piped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(&self, command: Command) -> std::io::Result<Running> {
        let gone = || std::io::Error::other("the spawner thread is gone");
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { command, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The process id while it is ours to signal: none once reaped, since then it may be somebody else's.
#[derive(Debug, Clone)]
struct Group(Arc<Mutex<Option<Pid>>>);

impl Group {
    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.lock() {
            // It fails only when the group is gone, which is what a signal is for.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }
}

/// A running process. Dropping it kills it and its group at once.
#[derive(Debug)]
pub struct Running {
    group: Group,
    exit: oneshot::Receiver<Exit>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

fn start(mut command: Command) -> std::io::Result<Running> {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::other("a process id that is none"))?;
    let group = Group(Arc::new(Mutex::new(Some(pid))));
    let (ended, exit) = oneshot::channel();
    let running = Running { group: group.clone(), exit, stdout, stderr };
    std::thread::Builder::new().name("ffmpeg-reaper".to_owned()).stack_size(128 * 1024).spawn(move || {
        if let Ok(exit) = reap(child, pid, &group, started) {
            // Nobody there any more: it was reaped, that is what counts.
            let _ = ended.send(exit);
        }
    })?;
    Ok(running)
}

fn reap(mut child: Child, pid: Pid, group: &Group, started: Instant) -> std::io::Result<Exit> {
    let waited = loop {
        match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    waited?;
    let wall = started.elapsed();
    // Dead but not reaped: its record is still there, and its id cannot be somebody else's yet.
    let cpu = cpu_time(pid).unwrap_or_default();
    group.signal(Signal::KILL);
    let mut held = group.lock();
    *held = None;
    let status = child.wait()?;
    Ok(Exit { status, cpu, wall })
}

/// User and system time from `/proc/PID/stat`, fields 14 and 15.
fn cpu_time(pid: Pid) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    cpu_ticks(&stat).map(|ticks| {
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64)
    })
}

fn cpu_ticks(stat: &str) -> Option<u64> {
    // Field 2 is the program's name in parentheses and may hold anything, so count from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

impl Running {
    /// Its standard output; once.
    ///
    /// # Errors
    /// When the pipe cannot be read asynchronously, or was taken already.
    pub fn stdout(&mut self) -> std::io::Result<tokio::net::unix::pipe::Receiver> {
        let pipe = self.stdout.take().ok_or_else(|| std::io::Error::other("standard output is taken"))?;
        tokio::net::unix::pipe::Receiver::from_owned_fd(pipe.into())
    }

    /// Its standard error; once.
    ///
    /// # Errors
    /// When the pipe cannot be read asynchronously, or was taken already.
    pub fn stderr(&mut self) -> std::io::Result<tokio::net::unix::pipe::Receiver> {
        let pipe = self.stderr.take().ok_or_else(|| std::io::Error::other("standard error is taken"))?;
        tokio::net::unix::pipe::Receiver::from_owned_fd(pipe.into())
    }

    /// Waits for its end. Safe to cancel, but not to call again after it answered.
    ///
    /// # Errors
    /// When the system lost track of it.
    pub async fn exit(&mut self) -> std::io::Result<Exit> {
        (&mut self.exit).await.map_err(|_| std::io::Error::other("the process could not be waited for"))
    }

    /// Waits for the end of one that has closed its outputs, and kills it after `grace`: only a process that somebody
    /// took over stays without them, and it would hold its slot for ever.
    ///
    /// # Errors
    /// When the system lost track of it.
    pub async fn end(&mut self, grace: Duration) -> std::io::Result<Exit> {
        if let Ok(exit) = tokio::time::timeout(grace, self.exit()).await {
            return exit;
        }
        self.group.signal(Signal::KILL);
        self.exit().await
    }

    /// Asks it to end, kills it after `grace`, and returns when it is reaped.
    ///
    /// # Errors
    /// When the system lost track of it.
    pub async fn stop(&mut self, grace: Duration) -> std::io::Result<Exit> {
        self.group.signal(Signal::TERM);
        self.end(grace).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.group.signal(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// Whether any process of that group is left, zombies included.
    fn group_exists(pid: Pid) -> bool {
        rustix::process::test_kill_process_group(pid).is_ok()
    }

    async fn gone(pid: Pid) {
        let wait = async {
            while group_exists(pid) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), wait).await.expect("the group is gone");
    }

    #[test]
    fn cpu_time_is_read_past_a_hostile_name() {
        let stat = "12 (a) b (c) 9) S 1 2 3 4 5 6 7 8 9 10 70 30 1 1 20 0";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("12 (a) S"), None);
    }

    #[tokio::test]
    async fn it_learns_status_and_cpu_time() {
        let spawner = Spawner::start().unwrap();
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 3";
        let exit = spawner.spawn(shell(script)).await.unwrap().exit().await.unwrap();
        assert_eq!(exit.status.code(), Some(3));
        assert!(exit.cpu > Duration::ZERO && exit.cpu <= exit.wall * 2, "{exit:?}");
    }

    #[tokio::test]
    async fn dropping_it_kills_the_whole_group() {
        let spawner = Spawner::start().unwrap();
        let running = spawner.spawn(shell("sleep 600 & sleep 600")).await.unwrap();
        let pid = running.group.lock().unwrap();
        assert!(group_exists(pid));
        drop(running);
        gone(pid).await;
    }

    #[tokio::test]
    async fn one_that_stays_without_its_outputs_is_killed_after_the_grace() {
        let spawner = Spawner::start().unwrap();
        let mut running = spawner.spawn(shell("exec >&- 2>&-; exec sleep 600")).await.unwrap();
        let mut lines = crate::ffmpeg::lines::Lines::new(running.stdout().unwrap());
        assert_eq!(lines.next().await.unwrap(), None);
        let pid = running.group.lock().unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), running.end(Duration::from_millis(100)));
        assert_eq!(ended.await.expect("it ends").unwrap().status.signal(), Some(9));
        gone(pid).await;
    }

    #[tokio::test]
    async fn one_that_ignores_sigterm_is_killed_after_the_grace() {
        let spawner = Spawner::start().unwrap();
        let mut running =
            spawner.spawn(shell("trap '' TERM; echo ready; while :; do sleep 0.05; done")).await.unwrap();
        let mut lines = crate::ffmpeg::lines::Lines::new(running.stdout().unwrap());
        assert_eq!(lines.next().await.unwrap().as_deref(), Some("ready"));
        let pid = running.group.lock().unwrap();
        let exit = running.stop(Duration::from_millis(100)).await.unwrap();
        assert_eq!(exit.status.signal(), Some(9));
        gone(pid).await;
    }
}
