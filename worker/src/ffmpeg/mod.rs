//! ffmpeg and ffprobe as caged child processes. Nothing else in this crate starts a process.
//!
//! `ffmpeg-sidecar` builds the arguments and is not used to run them: its iterator reads the log, where a crafted
//! title can imitate progress and hang it, and a dropped child of its stays behind. In order: [`args`] says what to
//! run, [`child`] runs it inside [`cage`], [`progress`] and [`log`] read what it says, [`encode`] judges.
//! Afterwards `still` and `remux` run it over its own segments.

pub mod args;
pub mod cage;
pub mod child;
pub mod damage;
pub mod encode;
pub mod error;
pub mod fingerprint;
pub mod lines;
pub mod log;
pub mod progress;
mod remux;
mod rework;
mod still;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use millrace_wire::job::FailureCode;
use tokio_util::sync::CancellationToken;

use self::child::{Exit, Running, Spawner};
pub use self::damage::Damage;
pub use self::encode::Encoded;
pub use self::error::Error;
use self::lines::Lines;
pub use self::progress::Progress;
pub(crate) use self::remux::Remux;
pub(crate) use self::still::{ANY, BRIGHT, Stills, sheet_name};
use crate::failure::{Ended, Failure};

/// Lines of a probe's complaints that are kept.
const COMPLAINTS_MAX: usize = 40;
/// CPU time that a probe may take: it decodes a few frames and reads the rest.
const PROBE_CPU_SECONDS: u64 = 600;
/// What a probe may map.
const PROBE_MEMORY_BYTES: u64 = 3 << 30;

/// How ffmpeg is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name or path; a name is looked up in `PATH` once, at the start.
    pub ffmpeg: PathBuf,
    /// Name or path.
    pub ffprobe: PathBuf,
    /// The executable that knows `cage`: our own.
    pub cage: PathBuf,
    /// Without a sign of progress for this long, it is stopped.
    pub stall_timeout: Duration,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Duration,
    /// Most address space of one ffmpeg, whatever its plan, in bytes.
    pub memory_bytes_max: u64,
    /// CPU time allowed, as a multiple of the plan's estimate.
    pub cpu_factor: f64,
}

impl Default for Settings {
    /// ffmpeg and ffprobe from `PATH`, the cage from the running executable.
    fn default() -> Self {
        Self {
            ffmpeg: "ffmpeg".into(),
            ffprobe: "ffprobe".into(),
            cage: std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()),
            stall_timeout: Duration::from_secs(60),
            kill_grace: Duration::from_secs(3),
            memory_bytes_max: 8 << 30,
            cpu_factor: 10.0,
        }
    }
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    spawner: Spawner,
    version: String,
    sandbox: String,
    encoder: String,
}

/// ffmpeg, checked once and ready to run. Cheap to clone; when the last clone is dropped, what still runs is killed.
#[derive(Debug, Clone)]
pub struct Ffmpeg(Arc<Inner>);

/// What a process may use.
struct Limits {
    cpu_seconds: u64,
    memory_bytes: u64,
    file_bytes: u64,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    report: bool,
}

impl Limits {
    fn of_probe(read: Vec<PathBuf>) -> Self {
        let (cpu_seconds, memory_bytes) = (PROBE_CPU_SECONDS, PROBE_MEMORY_BYTES);
        Self { cpu_seconds, memory_bytes, file_bytes: 0, read, write: Vec::new(), report: false }
    }
}

/// How long a program may stay silent.
struct Patience {
    limit: Duration,
    /// For the client, when it is over.
    detail: &'static str,
}

/// How a probe ended, and what it complained about.
pub(crate) struct Probed {
    pub(crate) exit: Exit,
    pub(crate) complaints: VecDeque<String>,
}

impl Probed {
    /// For the log.
    pub(crate) fn describe(&self) -> String {
        let lines: Vec<&str> = self.complaints.iter().map(String::as_str).collect();
        format!("{}: {}", self.exit.describe(), lines.join("\n"))
    }
}

impl Ffmpeg {
    /// Starts the spawner thread and checks that ffmpeg and ffprobe run in the cage and have what a ladder needs.
    ///
    /// # Errors
    /// When they do not; above all where seccomp cannot be applied.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        let settings = Settings {
            ffmpeg: find(&settings.ffmpeg)?,
            ffprobe: find(&settings.ffprobe)?,
            cage: find(&settings.cage)?,
            ..settings
        };
        let system = |what| move |error| Error::System { what, error };
        let spawner = Spawner::start().map_err(system("start the spawner thread"))?;
        let nothing = String::new;
        let mut inner =
            Inner { settings, spawner, version: nothing(), sandbox: nothing(), encoder: nothing() };
        let (version, sandbox, _) = inner.ask(&inner.settings.ffmpeg, &["-version"]).await?;
        let (encoders, ..) = inner.ask(&inner.settings.ffmpeg, &["-encoders"]).await?;
        inner.ask(&inner.settings.ffprobe, &["-version"]).await?;
        for encoder in ["libx264", "aac"] {
            if !encoders.iter().any(|line| line.split_whitespace().nth(1) == Some(encoder)) {
                return Err(Error::NoEncoder(encoder));
            }
        }
        let first = version.first().map(String::as_str).unwrap_or_default();
        inner.version = first.split(" Copyright").next().unwrap_or_default().to_owned();
        inner.sandbox = sandbox;
        let (stream, _, said) = inner.ask(&inner.settings.ffmpeg, &fingerprint::ENCODE).await?;
        inner.encoder = fingerprint::of(&inner.version, &stream, &said);
        Ok(Self(Arc::new(inner)))
    }

    /// `ffmpeg version 5.1.9-0+deb12u1`.
    pub fn version(&self) -> &str {
        &self.0.version
    }

    /// What decides the bytes of an encode besides its arguments: program, encoder, instruction set. Equal ones make equal
    /// bytes of equal plans.
    pub fn encoder(&self) -> &str {
        &self.0.encoder
    }

    /// What the cage achieved: `seccomp; landlock abi 6`, `seccomp; no landlock in this kernel`.
    pub fn sandbox(&self) -> &str {
        &self.0.sandbox
    }

    /// Runs ffprobe over a file and hands out its lines.
    pub(crate) async fn ffprobe(
        &self,
        options: &[OsString],
        input: &Path,
        cancel: &CancellationToken,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Probed, Ended> {
        let inner = &self.0;
        let input = absolute(input)?;
        let mut arguments: Vec<OsString> =
            ["-hide_banner", "-loglevel", "level+warning"].map(Into::into).to_vec();
        arguments.extend(args::input_limits().map(OsString::from));
        arguments.extend(options.iter().cloned());
        arguments.extend(["-i".into(), args::file_url(&input)]);
        let limits = Limits::of_probe(vec![input]);
        let running = inner.spawn(&inner.settings.ffprobe, arguments, &limits, Path::new("/")).await?;
        let probed = inner.collect(running, cancel, line).await?;
        if probed.exit.status.code() == Some(i32::from(cage::EXIT_NO_CAGE)) {
            return Err(no_cage(&probed.describe()).into());
        }
        Ok(probed)
    }
}

impl Inner {
    /// Runs a program on itself: its lines, what the cage says it achieved, and what else it said.
    async fn ask(
        &self,
        program: &Path,
        question: &[&str],
    ) -> Result<(Vec<String>, String, VecDeque<String>), Error> {
        let broken = |reason: String| Error::Broken { program: program.to_owned(), reason };
        let limits = Limits { report: true, ..Limits::of_probe(Vec::new()) };
        let arguments = std::iter::once("-hide_banner").chain(question.iter().copied());
        let arguments = arguments.map(OsString::from).collect();
        let running = self.spawn(program, arguments, &limits, Path::new("/")).await;
        let running = running.map_err(|failure| broken(failure.to_string()))?;
        let mut lines = Vec::new();
        let mut keep = |line: &str| lines.push(line.to_owned());
        let probed = self.collect(running, &CancellationToken::new(), &mut keep).await;
        let probed = probed.map_err(|ended| broken(ended.to_string()))?;
        let said = probed.complaints.iter().find_map(|line| line.strip_prefix(cage::LINE_PREFIX));
        match (probed.exit.status.code(), said) {
            (Some(0), Some(achieved)) => {
                let achieved = achieved.to_owned();
                Ok((lines, achieved, probed.complaints))
            }
            (code, Some(reason)) if code == Some(i32::from(cage::EXIT_NO_CAGE)) => {
                Err(Error::Cage { reason: reason.to_owned() })
            }
            _ => Err(broken(probed.describe())),
        }
    }

    /// Starts a program inside the cage, in a directory.
    async fn spawn(
        &self,
        program: &Path,
        arguments: Vec<OsString>,
        limits: &Limits,
        directory: &Path,
    ) -> Result<Running, Failure> {
        let mut line: Vec<OsString> = vec![program.into()];
        line.extend(arguments);
        let own_id = i32::try_from(std::process::id()).expect("a process id is positive");
        let cage = cage::Arguments {
            parent: own_id,
            cpu_seconds: limits.cpu_seconds,
            memory: limits.memory_bytes.min(self.settings.memory_bytes_max),
            file: limits.file_bytes,
            read: limits.read.clone(),
            write: limits.write.clone(),
            report: limits.report,
            program: line,
        };
        let mut command = Command::new(&self.settings.cage);
        command.args(cage.to_command_line()).current_dir(directory);
        // Nothing of the worker's environment: it holds secrets, and settings that change what ffmpeg does.
        command.env_clear().env("MALLOC_ARENA_MAX", "2").env("LC_ALL", "C");
        self.spawner.spawn(command).await.map_err(|error| {
            let failure = Failure::new(FailureCode::Internal, "the worker could not start a process");
            failure.log(format_args!("start {}: {error}", self.settings.cage.display()))
        })
    }

    /// Reads a probe to its end.
    async fn collect(
        &self,
        running: Running,
        cancel: &CancellationToken,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Probed, Ended> {
        let detail = "the source could not be probed in time";
        let patience = Patience { limit: self.settings.stall_timeout, detail };
        self.collect_within(running, cancel, patience, line).await
    }

    /// Reads a short program to its end.
    async fn collect_within(
        &self,
        mut running: Running,
        cancel: &CancellationToken,
        patience: Patience,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Probed, Ended> {
        let (stdout, stderr) = (running.stdout().map_err(pipe)?, running.stderr().map_err(pipe)?);
        let (mut stdout, mut stderr) = (Lines::new(stdout), Lines::new(stderr));
        let mut complaints = VecDeque::new();
        let (mut more_out, mut more_err) = (true, true);
        while more_out || more_err {
            tokio::select! {
                () = cancel.cancelled() => {
                    running.stop(self.settings.kill_grace).await.map_err(pipe)?;
                    return Err(Ended::Cancelled);
                }
                () = tokio::time::sleep(patience.limit) => {
                    running.stop(self.settings.kill_grace).await.map_err(pipe)?;
                    return Err(Failure::new(FailureCode::EncodeStalled, patience.detail).into());
                }
                next = stdout.next(), if more_out => match next.map_err(pipe)? {
                    Some(text) => line(&text),
                    None => more_out = false,
                },
                next = stderr.next(), if more_err => match next.map_err(pipe)? {
                    Some(text) => {
                        if complaints.len() == COMPLAINTS_MAX {
                            complaints.pop_front();
                        }
                        complaints.push_back(text);
                    }
                    None => more_err = false,
                },
            }
        }
        let exit = running.end(self.settings.kill_grace).await.map_err(pipe)?;
        Ok(Probed { exit, complaints })
    }
}

/// A path that the cage, which works in another directory, means the same file by.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|error| Failure::scratch("find the job's files", &error))
}

fn pipe(error: std::io::Error) -> Failure {
    Failure::new(FailureCode::Internal, "the worker lost track of ffmpeg").log(error)
}

fn no_cage(reason: &str) -> Failure {
    Failure::new(FailureCode::Internal, "the worker could not confine ffmpeg").log(reason)
}

/// The program's absolute path.
fn find(program: &Path) -> Result<PathBuf, Error> {
    let executable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = if program.components().count() > 1 {
        std::path::absolute(program).ok().filter(|path| executable(path))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| executable(path))
    };
    found.ok_or_else(|| Error::NotFound { program: program.to_owned() })
}
