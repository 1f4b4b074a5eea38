//! Clips, and the whole way from one to a package.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use millrace_wire::JobSpec;
use millrace_wire::job::FailureCode;
use millrace_worker::failure::{Ended, Failure};
use millrace_worker::ffmpeg::{Encoded, Ffmpeg, Progress, Settings};
use millrace_worker::ladder::{self, PicturePlan, Plan};
use millrace_worker::package::{self, Package};
use millrace_worker::source::probe::{self, Probe};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) const WORKER: &str = env!("CARGO_BIN_EXE_millrace-worker");

/// Runs a program to its end; its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a clip: ffmpeg's arguments, split at spaces, and the file's name.
pub(crate) fn make(directory: &Path, arguments: &str, name: &str) -> PathBuf {
    let path = directory.join(name);
    let mut all = vec!["-nostdin", "-v", "error", "-y"];
    all.extend(arguments.split_whitespace());
    all.push(path.to_str().unwrap());
    run("ffmpeg", &all);
    path
}

pub(crate) const FAST: &str = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p";

/// A test picture of that size, rate and length, with a tone.
pub(crate) fn talking(directory: &Path, size: &str, rate: &str, seconds: &str) -> PathBuf {
    let arguments = format!(
        "-f lavfi -i testsrc2=s={size}:r={rate}:d={seconds} -f lavfi -i sine=d={seconds}:r=44100 {FAST} -c:a aac"
    );
    make(directory, &arguments, "talking.mp4")
}

pub(crate) fn settings() -> Settings {
    Settings { cage: WORKER.into(), kill_grace: Duration::from_secs(2), ..Settings::default() }
}

pub(crate) async fn ffmpeg() -> Ffmpeg {
    Ffmpeg::start(settings()).await.unwrap()
}

pub(crate) fn spec(fields: &str) -> JobSpec {
    JobSpec::parse(format!(r#"{{"input_url":"http://h/v",{fields}}}"#).as_bytes()).unwrap().0
}

pub(crate) async fn probe(input: &Path) -> Result<Probe, Ended> {
    probe::probe(&ffmpeg().await, input, &CancellationToken::new()).await
}

/// The code that an input is refused with by the probe.
pub(crate) async fn refused(input: &Path) -> Failure {
    match probe(input).await {
        Err(Ended::Failed(failure)) => failure,
        other => panic!("{}: {other:?}", input.display()),
    }
}

/// One clip's whole way.
pub(crate) struct Made {
    pub(crate) directory: TempDir,
    pub(crate) probe: Probe,
    pub(crate) plan: Plan,
    pub(crate) encoded: Encoded,
    pub(crate) package: Package,
    pub(crate) progress: Vec<Progress>,
}

impl Made {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The plan's picture; panics where there is none.
    pub(crate) fn picture(&self) -> &PicturePlan {
        self.plan.picture.as_ref().unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }
}

pub(crate) async fn transcode(input: &Path, spec: &JobSpec) -> Result<Made, Ended> {
    let (ffmpeg, cancel) = (ffmpeg().await, CancellationToken::new());
    let directory = tempfile::tempdir().unwrap();
    let probe = probe::probe(&ffmpeg, input, &cancel).await?;
    let plan = ladder::plan(spec, &probe, 2)?;
    let progress = Mutex::new(Vec::new());
    let note = |now: Progress| progress.lock().unwrap().push(now);
    let encoded = ffmpeg.encode(&plan, input, directory.path(), &note, &cancel).await?;
    let package = package::package(&plan, directory.path())?;
    let progress = progress.into_inner().unwrap();
    Ok(Made { directory, probe, plan, encoded, package, progress })
}

/// Bytes and seconds of every segment of a media playlist.
pub(crate) fn segments(made: &Made, playlist: &str) -> Vec<(u64, f64)> {
    let text = made.read(playlist);
    let lines: Vec<&str> = text.lines().collect();
    let entries =
        lines.windows(2).filter_map(|pair| pair[0].strip_prefix("#EXTINF:").map(|length| (length, pair[1])));
    let read = |(length, name): (&str, &str)| {
        let bytes = std::fs::metadata(made.file(name)).unwrap().len();
        (bytes, length.trim_end_matches(',').parse().unwrap())
    };
    entries.map(read).collect()
}

pub(crate) fn code(ended: Result<Made, Ended>) -> FailureCode {
    match ended {
        Err(Ended::Failed(failure)) => failure.code,
        Err(Ended::Cancelled) => panic!("cancelled"),
        Ok(made) => panic!("it passed: {:?}", made.package),
    }
}
