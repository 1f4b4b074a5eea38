//! One encode: run it, watch it, and judge how it ended.
//!
//! The verdict stands on what was decoded, not on the exit code: ffmpeg ends with 0 on a file that is half rubbish.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_wire::job::FailureCode;
use tokio_util::sync::CancellationToken;

use super::child::{Exit, Running};
use super::damage::Damage;
use super::lines::Lines;
use super::log::Log;
use super::progress::{Parser, Progress};
use super::{Ffmpeg, Limits, absolute, args, cage, no_cage, pipe};
use crate::failure::{Ended, Failure};
use crate::ladder::Plan;
use crate::ranges::Range;

/// Least CPU time that is allowed, whatever the estimate.
const CPU_SECONDS_MIN: f64 = 60.0;
const SIGXCPU: i32 = 24;
const SIGXFSZ: i32 = 25;
const SIGKILL: i32 = 9;

/// A finished encode.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// From start to end.
    pub wall: Duration,
    /// User and system time of ffmpeg.
    pub cpu: Duration,
    /// Frames of one rendition of the picture; zero without one.
    pub frames: u64,
    /// Frames of the source's picture that could not be decoded; of sound alone its packets.
    pub lost_frames: u64,
    /// What could not be decoded. Judged already where the run decoded the whole source.
    pub damage: Damage,
    /// What is odd, but not fatal.
    pub warnings: Vec<String>,
}

/// One run.
struct Run<'a> {
    plan: &'a Plan,
    arguments: Vec<OsString>,
    /// What it takes before it shows progress.
    patience: Duration,
    /// It decodes the whole source, so what it lost is what is lost.
    whole: bool,
}

impl Ffmpeg {
    /// Makes every rendition of the plan in `out_dir`, which must exist and be empty.
    ///
    /// # Errors
    /// Cancelled, or a failure. Either way nothing of it runs any more, but files may be left in `out_dir`.
    pub async fn encode(
        &self,
        plan: &Plan,
        input: &Path,
        out_dir: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<Encoded, Ended> {
        let arguments = args::encode(plan, &absolute(input)?);
        let run = Run { plan, arguments, patience: Duration::ZERO, whole: true };
        self.run_encode(run, input, out_dir, progress, cancel).await
    }

    /// Makes one range of the picture in `out_dir`, its segments numbered from 1. `plan` is the range's own
    /// ([`Range::plan`]). What could not be decoded is told and not judged.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub async fn encode_range(
        &self,
        (plan, range): (&Plan, &Range),
        input: &Path,
        out_dir: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<Encoded, Ended> {
        let arguments = args::encode_range(plan, range, &absolute(input)?);
        let run = Run { plan, arguments, patience: range.patience(plan), whole: false };
        self.run_encode(run, input, out_dir, progress, cancel).await
    }

    /// Makes the sound alone in `out_dir`, as the rendition of that index. What could not be decoded is told and not
    /// judged.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub async fn encode_sound(
        &self,
        (plan, index): (&Plan, usize),
        input: &Path,
        out_dir: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<Encoded, Ended> {
        let arguments = args::encode_sound(plan, index, &absolute(input)?);
        let run = Run { plan, arguments, patience: Duration::ZERO, whole: false };
        self.run_encode(run, input, out_dir, progress, cancel).await
    }

    async fn run_encode(
        &self,
        run: Run<'_>,
        input: &Path,
        out_dir: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<Encoded, Ended> {
        let Run { plan, arguments, patience, whole } = run;
        let inner = &self.0;
        let (input, out_dir) = (absolute(input)?, absolute(out_dir)?);
        let limits = Limits {
            cpu_seconds: (plan.work_seconds * inner.settings.cpu_factor).max(CPU_SECONDS_MIN).ceil() as u64,
            memory_bytes: plan.memory_bytes.saturating_mul(5) / 2,
            file_bytes: file_bytes_max(plan),
            read: vec![input.clone()],
            write: vec![out_dir.clone()],
            report: false,
        };
        let mut running = inner.spawn(&inner.settings.ffmpeg, arguments, &limits, &out_dir).await?;
        let mut watch = Watch::new(&mut running, plan, patience)?;
        let stopped = loop {
            tokio::select! {
                () = cancel.cancelled() => break Some(Stopped::Cancelled),
                () = tokio::time::sleep_until((watch.moved + inner.settings.stall_timeout).into()) => {
                    break Some(Stopped::Stalled);
                }
                more = watch.step(progress) => if !more? { break None },
            }
        };
        let exit = match stopped {
            None => running.end(inner.settings.kill_grace).await.map_err(pipe)?,
            Some(_) => running.stop(inner.settings.kill_grace).await.map_err(pipe)?,
        };
        match stopped {
            Some(Stopped::Cancelled) => Err(Ended::Cancelled),
            Some(Stopped::Stalled) => {
                let seconds = inner.settings.stall_timeout.as_secs();
                let detail = format!("ffmpeg made no progress for {seconds} s and was stopped");
                Err(Failure::new(FailureCode::EncodeStalled, detail).log(watch.log.tail()).into())
            }
            None => verdict((plan, whole), &limits, exit, &watch).map_err(Ended::from),
        }
    }
}

enum Stopped {
    Cancelled,
    Stalled,
}

/// Four times what the caps allow one segment, and room for what a cap does not foresee.
fn file_bytes_max(plan: &Plan) -> u64 {
    let segment_s = plan.segment.as_secs_f64();
    let bits = plan.rungs().iter().map(|rung| rung.bitrate_max).max().unwrap_or(0) as f64 * (segment_s + 2.0);
    (64 << 20) + (bits / 8.0 * 4.0) as u64
}

type Pipe = Lines<tokio::net::unix::pipe::Receiver>;

/// Reads both outputs of a running ffmpeg.
struct Watch {
    stdout: Pipe,
    stderr: Pipe,
    more: (bool, bool),
    parser: Parser,
    log: Log,
    streams: (Option<u32>, Option<u32>),
    last: Progress,
    /// When it last did something that counts.
    moved: Instant,
}

impl Watch {
    fn new(running: &mut Running, plan: &Plan, patience: Duration) -> Result<Self, Failure> {
        Ok(Self {
            stdout: Lines::new(running.stdout().map_err(pipe)?),
            stderr: Lines::new(running.stderr().map_err(pipe)?),
            more: (true, true),
            parser: Parser::default(),
            log: Log::default(),
            streams: (
                plan.picture.as_ref().map(|picture| picture.stream),
                plan.audio.as_ref().map(|audio| audio.stream),
            ),
            last: Progress::default(),
            moved: Instant::now() + patience,
        })
    }

    /// Takes one line of either; false when both have ended. Safe to cancel.
    async fn step(&mut self, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<bool, Failure> {
        tokio::select! {
            line = self.stdout.next(), if self.more.0 => match line.map_err(pipe)? {
                None => self.more.0 = false,
                Some(line) => {
                    if let Some(now) = self.parser.line(&line) {
                        if now.frames > self.last.frames || now.media > self.last.media || now.ended {
                            self.moved = Instant::now();
                        }
                        self.last = now;
                        progress(now);
                    }
                }
            },
            line = self.stderr.next(), if self.more.1 => match line.map_err(pipe)? {
                None => self.more.1 = false,
                Some(line) => self.log.line(&line, self.streams.0, self.streams.1),
            },
            else => {}
        }
        Ok(self.more.0 || self.more.1)
    }
}

fn verdict(
    (plan, whole): (&Plan, bool),
    limits: &Limits,
    exit: Exit,
    watch: &Watch,
) -> Result<Encoded, Failure> {
    let log = &watch.log;
    let damage = Damage::of(log);
    let fail = |code: FailureCode, detail: &str| {
        Failure::new(code, detail).log(format_args!("{}\n{}", exit.describe(), log.tail()))
    };
    if !exit.status.success() {
        return Err(bad_exit(plan, limits, exit, watch, &damage, fail));
    }
    if !watch.last.ended {
        return Err(fail(FailureCode::EncodeFailed, "ffmpeg ended without saying that it was done"));
    }
    let warnings = if whole {
        damage.judge(plan).map_err(|failure| fail(failure.code, &failure.detail))?
    } else {
        Vec::new()
    };
    Ok(Encoded {
        wall: exit.wall,
        cpu: exit.cpu,
        frames: watch.last.frames,
        lost_frames: damage.lost(plan),
        damage,
        warnings,
    })
}

fn bad_exit(
    plan: &Plan,
    limits: &Limits,
    exit: Exit,
    watch: &Watch,
    damage: &Damage,
    fail: impl Fn(FailureCode, &str) -> Failure,
) -> Failure {
    use std::os::unix::process::ExitStatusExt as _;
    let (log, signal) = (&watch.log, exit.status.signal());
    if exit.status.code() == Some(i32::from(cage::EXIT_NO_CAGE)) {
        return no_cage(&log.tail());
    }
    if log.no_space {
        return fail(FailureCode::ScratchUnavailable, "the worker's scratch directory is full");
    }
    if signal == Some(SIGXCPU) || exit.cpu.as_secs() + 1 >= limits.cpu_seconds {
        return fail(FailureCode::EncodeOverLimits, "ffmpeg took more CPU time than ten times the estimate");
    }
    if log.file_too_large || signal == Some(SIGXFSZ) {
        return fail(FailureCode::EncodeOverLimits, "ffmpeg wrote a larger file than a segment can be");
    }
    if log.no_memory {
        return fail(FailureCode::EncodeOverLimits, "ffmpeg needed more memory than planned");
    }
    if signal == Some(SIGKILL) {
        return fail(
            FailureCode::EncodeFailed,
            "ffmpeg was killed by the system, probably for want of memory",
        );
    }
    // With -xerror ffmpeg ends before it says which stream it was.
    if plan.strict && log.input_errors > 0 {
        return fail(FailureCode::SourceDamaged, "the source is damaged, and the job asked to be strict");
    }
    if let Err(failure) = damage.judge(plan) {
        return fail(failure.code, &failure.detail);
    }
    fail(FailureCode::EncodeFailed, "ffmpeg failed on an input that looked sound")
}
