//! Runs of ffmpeg over what it has encoded here itself: stills ([`super::still`]) and copies ([`super::remux`]).
//!
//! The files are ours, but what is in them descends from a stranger's bytes: the cage and the limits of an input
//! are the same. Such a run takes seconds and at its end (moving the index to the front) says nothing for a while,
//! so it is not watched for progress: it has a time by which it must be done, by the amount of its work.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;

use millrace_wire::job::FailureCode;
use tokio_util::sync::CancellationToken;

use super::child::Exit;
use super::log::Log;
use super::{Inner, Limits, Patience, Probed, args, cage, no_cage};
use crate::failure::{Ended, Failure};

const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;
const SIGXFSZ: i32 = 25;

/// One such run.
pub(super) struct Rework {
    pub(super) arguments: Vec<OsString>,
    pub(super) limits: Limits,
    /// It works there, and writes nowhere else.
    pub(super) directory: PathBuf,
    /// What its work may take beyond the stall timeout.
    pub(super) patience: Duration,
}

/// What every such run is told first.
pub(super) fn beginning() -> Vec<OsString> {
    // Times stay as they are: without `-copyts` each input is moved to begin at 0, and sound whose encoder needs a
    // run-up begins before that.
    ["-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+warning", "-y", "-copyts"]
        .map(OsString::from)
        .to_vec()
}

/// An input and what must stand before it, every time.
pub(super) fn input(path: &std::path::Path, options: &[&str]) -> Vec<OsString> {
    let limits = args::input_limits().into_iter().map(OsString::from);
    let options = options.iter().map(OsString::from);
    limits.chain(options).chain(["-i".into(), args::file_url(path)]).collect()
}

impl Inner {
    /// Runs it to its end.
    pub(super) async fn rework(&self, work: Rework, cancel: &CancellationToken) -> Result<Exit, Ended> {
        if cancel.is_cancelled() {
            return Err(Ended::Cancelled);
        }
        let Rework { arguments, limits, directory, patience } = work;
        let running = self.spawn(&self.settings.ffmpeg, arguments, &limits, &directory).await?;
        let patience = Patience {
            limit: self.settings.stall_timeout + patience,
            detail: "ffmpeg was not done with its own segments in time and was stopped",
        };
        let probed = self.collect_within(running, cancel, patience, &mut |_| {}).await?;
        if probed.exit.status.success() { Ok(probed.exit) } else { Err(bad_exit(&limits, &probed).into()) }
    }
}

fn bad_exit(limits: &Limits, probed: &Probed) -> Failure {
    let (status, mut log) = (probed.exit.status, Log::default());
    probed.complaints.iter().for_each(|line| log.line(line, Some(0), None));
    let fail = |code, detail: &str| Failure::new(code, detail).log(probed.describe());
    if status.code() == Some(i32::from(cage::EXIT_NO_CAGE)) {
        no_cage(&probed.describe())
    } else if log.no_space {
        fail(FailureCode::ScratchUnavailable, "the worker's scratch directory is full")
    } else if status.signal() == Some(SIGXCPU) || probed.exit.cpu.as_secs() + 1 >= limits.cpu_seconds {
        fail(FailureCode::EncodeOverLimits, "ffmpeg took more CPU time than its own segments can need")
    } else if log.file_too_large || status.signal() == Some(SIGXFSZ) {
        fail(FailureCode::EncodeOverLimits, "ffmpeg wrote a larger file than its own segments can fill")
    } else if log.no_memory {
        fail(FailureCode::EncodeOverLimits, "ffmpeg needed more memory than planned")
    } else if status.signal() == Some(SIGKILL) {
        fail(FailureCode::EncodeFailed, "ffmpeg was killed by the system, probably for want of memory")
    } else {
        fail(FailureCode::EncodeFailed, "ffmpeg failed on its own segments")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::process::ExitStatus;

    use super::*;

    fn code(raw_status: i32, complaint: &str) -> FailureCode {
        let exit = Exit {
            status: ExitStatus::from_raw(raw_status),
            cpu: Duration::from_secs(1),
            wall: Duration::from_secs(1),
        };
        let limits = Limits { cpu_seconds: 60, ..Limits::of_probe(Vec::new()) };
        bad_exit(&limits, &Probed { exit, complaints: VecDeque::from([complaint.to_owned()]) }).code
    }

    #[test]
    fn a_bad_end_is_named_by_its_cause() {
        const EXIT_1: i32 = 1 << 8;
        let full = "[error] av_interleaved_write_frame(): No space left on device";
        assert_eq!(code(EXIT_1, full), FailureCode::ScratchUnavailable);
        assert_eq!(code(SIGXCPU, ""), FailureCode::EncodeOverLimits);
        assert_eq!(code(SIGXFSZ, ""), FailureCode::EncodeOverLimits);
        assert_eq!(code(EXIT_1, "[fatal] Cannot allocate memory"), FailureCode::EncodeOverLimits);
        assert_eq!(code(SIGKILL, ""), FailureCode::EncodeFailed);
        assert_eq!(code(EXIT_1, "[error] Invalid data found"), FailureCode::EncodeFailed);
        assert_eq!(code(125 << 8, "millrace-cage: no"), FailureCode::Internal);
    }
}
