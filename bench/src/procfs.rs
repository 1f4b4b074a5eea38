//! What runs, read from `/proc`: to prove that nothing was left behind, and to measure what it cost. Linux only;
//! elsewhere every list is empty, and [`AVAILABLE`] says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Whether this system has a `/proc` to read.
pub const AVAILABLE: bool = cfg!(target_os = "linux");

/// One process, told apart from a later one with the same id by the time it started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// Its parent's id when it was looked at.
    pub parent: u32,
    /// Clock ticks after boot.
    pub started: u64,
    /// The program's name, at most 15 bytes, as the kernel keeps it.
    pub name: String,
}

impl Process {
    /// Looks at one process; `None` when it is gone or only waits for its parent to notice its end.
    pub fn look(pid: u32) -> Option<Self> {
        Self::from_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads `/proc/PID/stat`. The name stands in parentheses and may itself contain both.
    fn from_stat(stat: &str) -> Option<Self> {
        let (head, rest) = stat.rsplit_once(')')?;
        let (pid, name) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        Some(Self {
            pid: pid.trim().parse().ok()?,
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Self::look(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Its command line, with spaces between the arguments.
    pub fn command_line(&self) -> String {
        self.arguments().join(" ").trim().to_owned()
    }

    /// Its arguments, the program first; none when it is gone.
    pub fn arguments(&self) -> Vec<String> {
        let raw = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let text = String::from_utf8_lossy(&raw);
        if text.is_empty() {
            return Vec::new();
        }
        // A program that renames itself may leave the last end out.
        text.strip_suffix('\0').unwrap_or(&text).split('\0').map(str::to_owned).collect()
    }

    fn belongs_below(&self, directory: &Path) -> bool {
        let works_there =
            fs::read_link(format!("/proc/{}/cwd", self.pid)).is_ok_and(|cwd| cwd.starts_with(directory));
        works_there || self.command_line().contains(&*directory.to_string_lossy())
    }
}

/// CPU time of a process, user and system together, in the kernel's ticks of usually 10 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpu {
    /// Its own, all threads that it ever had included.
    pub own: Duration,
    /// That of its children which have ended and were waited for, and of theirs.
    pub children: Duration,
}

impl Cpu {
    /// Looks at a process that runs, or that ended and was not waited for yet; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Self::from_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, ticks)
    }

    /// Fields 14 to 17 of `/proc/PID/stat`.
    fn from_stat(stat: &str, ticks_per_second: u64) -> Option<Self> {
        let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).take(4);
        let ticks: Vec<u64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let [user, system, children_user, children_system] = ticks[..] else { return None };
        let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64);
        Some(Self { own: time(user + system), children: time(children_user + children_system) })
    }

    /// Both together.
    pub fn total(self) -> Duration {
        self.own + self.children
    }
}

/// CPU time of several processes' threads, to the nanosecond, by the scheduler's own account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spent(BTreeMap<String, Duration>);

impl Spent {
    /// Looks at all threads of these processes; `None` when the first is gone or the kernel keeps no such account.
    pub fn of(pids: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut threads = BTreeMap::new();
        for pid in pids {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
                let on_core = text.split_ascii_whitespace().next().and_then(|first| first.parse().ok());
                threads
                    .insert(format!("{pid}/{}", task.file_name().display()), Duration::from_nanos(on_core?));
            }
        }
        (!threads.is_empty()).then_some(Self(threads))
    }

    /// What was spent since `before`. Of a thread that has ended in between nothing is known any more, and nothing counts.
    pub fn since(&self, before: &Self) -> Duration {
        let earlier = |thread| before.0.get(thread).copied().unwrap_or_default();
        self.0.iter().map(|(thread, spent)| spent.saturating_sub(earlier(thread))).sum()
    }
}

/// Every process of this machine that can be seen.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::look).collect()
}

/// The children of `root`, their children, and so on.
pub fn descendants(root: u32) -> Vec<Process> {
    let all = all();
    let mut family = BTreeSet::from([root]);
    let mut found: Vec<Process> = Vec::new();
    loop {
        let next: Vec<&Process> =
            all.iter().filter(|p| family.contains(&p.parent) && !family.contains(&p.pid)).collect();
        if next.is_empty() {
            return found;
        }
        for process in next {
            family.insert(process.pid);
            found.push(process.clone());
        }
    }
}

/// Processes other than this one that name `directory` on their command line or work below it: whoever their parent
/// is by now, so that orphans are seen as well.
pub fn at_work_in(directory: &Path) -> Vec<Process> {
    let this = std::process::id();
    all().into_iter().filter(|process| process.pid != this && process.belongs_below(directory)).collect()
}

/// How many files, sockets and pipes a process holds open.
///
/// # Errors
/// The process is gone, or belongs to somebody else.
pub fn open_files(pid: u32) -> std::io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// How many threads a process has.
///
/// # Errors
/// The process is gone.
pub fn threads(pid: u32) -> std::io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_it() {
        let stat = "7 (a) (b)) S 3 7 7 0 -1 4 1 0 0 0 1 2 0 0 20 0 1 0 4711 1 1";
        let process = Process::from_stat(stat).unwrap();
        assert_eq!((process.pid, process.parent, process.started), (7, 3, 4711));
        assert_eq!(process.name, "a) (b)");
        assert_eq!(Process::from_stat(&stat.replace(" S ", " Z ")), None);
    }

    #[test]
    fn cpu_time_is_told_apart_from_that_of_the_children() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4 1 0 0 0 150 25 300 5 20 0 1 0 4711 1 1";
        let cpu = Cpu::from_stat(stat, 100).unwrap();
        assert_eq!((cpu.own, cpu.children), (Duration::from_millis(1750), Duration::from_millis(3050)));
        assert_eq!(Cpu::from_stat("7 (a) S 3", 100), None);

        let before = Cpu::of(std::process::id()).unwrap();
        let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", burn]).status().unwrap().success());
        assert!(Cpu::of(std::process::id()).unwrap().children > before.children);
    }

    #[test]
    fn time_on_a_core_is_that_of_all_threads() {
        let before = Spent::of([std::process::id()]).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        let (held, hold) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::spawn(move || {
            let started = Cpu::of(std::process::id()).unwrap().own;
            while Cpu::of(std::process::id()).unwrap().own < started + Duration::from_millis(50) {}
            done.send(()).unwrap();
            let _ = hold.recv();
        });
        ended.recv().unwrap();
        let spent = Spent::of([std::process::id()]).unwrap().since(&before);
        assert!(spent >= Duration::from_millis(20), "{spent:?}");
        drop(held);
        busy.join().unwrap();
        assert_eq!(Spent::of([u32::MAX]), None);
    }

    #[test]
    fn a_grandchild_is_found_and_seen_to_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let sleep = loop {
            if let Some(sleep) = descendants(shell.id()).into_iter().find(|p| p.name == "sleep") {
                break sleep;
            }
            assert!(std::time::Instant::now() < deadline, "the shell started no sleep");
            std::thread::yield_now();
        };
        assert!(sleep.is_alive() && sleep.command_line() == "sleep 60");
        assert!(at_work_in(directory.path()).contains(&sleep));
        assert!(descendants(std::process::id()).contains(&sleep));
        assert!(open_files(shell.id()).unwrap() >= 3 && threads(shell.id()).unwrap() == 1);

        let pid = rustix::process::Pid::from_raw(sleep.pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        shell.wait().unwrap();
        while sleep.is_alive() {
            assert!(std::time::Instant::now() < deadline, "the killed sleep still runs");
            std::thread::yield_now();
        }
    }
}
