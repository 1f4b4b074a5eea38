//! What a real browser makes of our streams: runs `bench/browser/*.mjs` and judges what they saw.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longer than the programs give themselves.
const PATIENCE: Duration = Duration::from_secs(100);
/// Latest start of a buffer. Both players begin at the first sample; what may come before it is the encoder's delay
/// of one AAC frame, 23 ms at 44.1 kHz, where a browser does not follow the file's edit list.
const START_S_MAX: f64 = 0.024;
/// How far the end may be from the source's: a picture's last frame at 24 a second, which fills up an AAC frame.
const END_S_OFF_MAX: f64 = 0.066;
/// The share of the frames that a browser decodes when it plays at four times the speed on a busy machine.
const DECODED_MIN: f64 = 0.9;

/// Seconds from and to, of what is buffered.
type Range = (f64, f64);

/// What `play.mjs` prints.
#[derive(Debug, Deserialize)]
pub(crate) struct Play {
    player: String,
    finished: bool,
    failure: Option<String>,
    /// Of the player, the video element and the SourceBuffers, fatal or not.
    errors: Vec<Value>,
    requests: Requests,
    /// None when it never came to the end.
    played: Option<Played>,
    levels: Vec<Level>,
    pub(crate) looks: Vec<Look>,
}

/// What a page said and asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct Requests {
    pub(crate) console: Vec<String>,
    pub(crate) failed: Vec<String>,
    pub(crate) origins: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Played {
    ended: bool,
    decoded_frames: f64,
    decoded_audio_bytes: u64,
    buffered: Buffered,
}

/// One quality, played alone.
#[derive(Debug, Deserialize)]
struct Level {
    frame: Option<Look>,
    buffered: Buffered,
}

#[derive(Debug, Deserialize)]
struct Buffered {
    /// The video element's: where picture and sound are both there.
    video: Vec<Range>,
    sources: Vec<Source>,
}

/// One SourceBuffer.
#[derive(Debug, Deserialize)]
struct Source {
    #[serde(rename = "type")]
    mime_type: String,
    ranges: Vec<Range>,
}

/// The frame that is shown at an instant.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Look {
    /// The instant that was asked for.
    pub(crate) at: f64,
    /// When the frame begins.
    pub(crate) media_time: f64,
    width: u32,
    height: u32,
    /// 0 black, 255 white; only of frames that were asked for.
    pub(crate) lightness: Option<u32>,
}

/// What a stream must be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// When the source's picture ends; none when there is none.
    pub(crate) picture_s: Option<f64>,
    /// When its sound ends; none when there is none.
    pub(crate) sound_s: Option<f64>,
    /// Every rendition's size; none when there is no picture.
    pub(crate) sizes: Vec<(u32, u32)>,
    /// Frames a second.
    pub(crate) frame_rate: f64,
}

impl Play {
    /// All that is wrong with it, in words; empty when nothing is.
    pub(crate) fn faults(&self, wanted: &Wanted) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(failure) = &self.failure {
            faults.push(failure.clone());
        }
        faults.extend(self.errors.iter().map(|error| format!("an error event: {error}")));
        faults.extend(self.requests.console.iter().map(|line| format!("on the console: {line}")));
        faults.extend(self.requests.failed.iter().map(|request| format!("a failed request: {request}")));
        match &self.played {
            Some(played) if played.ended => {
                faults.extend(played.buffered.faults("played", wanted));
                let frames = wanted.frame_rate * wanted.picture_s.unwrap_or(0.0);
                if played.decoded_frames < frames * DECODED_MIN {
                    faults.push(format!("{} of {frames:.0} frames decoded", played.decoded_frames));
                }
                if wanted.sound_s.is_some() != (played.decoded_audio_bytes > 0) {
                    faults.push(format!("{} bytes of sound decoded", played.decoded_audio_bytes));
                }
            }
            _ => faults.push("not played to its end".to_owned()),
        }
        let sizes = |level: &Level| level.frame.as_ref().map(|frame| (frame.width, frame.height));
        let mut shown: Vec<_> = self.levels.iter().filter_map(sizes).collect();
        let mut sizes = wanted.sizes.clone();
        shown.sort_unstable();
        sizes.sort_unstable();
        if shown != sizes {
            faults.push(format!("qualities of {shown:?} were shown, not {sizes:?}"));
        }
        for (place, level) in self.levels.iter().enumerate() {
            faults.extend(level.buffered.faults(&format!("quality {place}"), wanted));
        }
        if faults.is_empty() && !self.finished {
            faults.push("it did not finish".to_owned());
        }
        faults.into_iter().map(|fault| format!("{}: {fault}", self.player)).collect()
    }
}

impl Buffered {
    fn faults(&self, what: &str, wanted: &Wanted) -> Vec<String> {
        let mut faults = Vec::new();
        let kinds = |kind: &str| self.sources.iter().filter(|s| s.mime_type.starts_with(kind)).count();
        let has = (kinds("video/"), kinds("audio/"));
        if has != (usize::from(wanted.picture_s.is_some()), usize::from(wanted.sound_s.is_some())) {
            faults.push(format!("{what}: {} buffers of pictures, {} of sound", has.0, has.1));
        }
        let mut check = |name: &str, ranges: &[Range], end_s: f64| {
            let whole = matches!(ranges, [(start, end)]
                if *start <= START_S_MAX && (end - end_s).abs() <= END_S_OFF_MAX);
            if !whole {
                faults.push(format!("{what}: {name} has {ranges:?}, not [0, {end_s}]"));
            }
        };
        for one in &self.sources {
            let end_s = if one.mime_type.starts_with("video/") { wanted.picture_s } else { wanted.sound_s };
            check(&one.mime_type, &one.ranges, end_s.unwrap_or(0.0));
        }
        // At the end of a stream its buffer reaches as far as the longest.
        let end_s = wanted.picture_s.into_iter().chain(wanted.sound_s).fold(0.0, f64::max);
        check("the video element", &self.video, end_s);
        faults
    }
}

/// Where screenshots and what was seen are kept.
pub(crate) fn artifacts() -> PathBuf {
    target().join("test-artifacts/browser")
}

/// Cargo's target directory, wherever it is.
pub(crate) fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// Plays a stream by `hls` or `shaka`, and looks at the frames at some instants; kept under `name`.
pub(crate) async fn play(player: &str, url: &str, name: &str, looks: &[f64]) -> Play {
    let looks: Vec<String> = looks.iter().map(f64::to_string).collect();
    let name = format!("{name}-{player}");
    node("play.mjs", &["--player", player, "--url", url, "--name", &name, "--look", &looks.join(",")]).await
}

/// Runs one of the programs and reads the JSON that it prints; it prints it when it fails, too.
pub(crate) async fn node<T: DeserializeOwned>(program: &str, args: &[&str]) -> T {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
    assert!(
        directory.join("node_modules/.package-lock.json").is_file(),
        "bench/browser has no node_modules: run `scripts/setup test`"
    );
    // Neither node nor its browser may outlive this process, even when that is killed with SIGKILL.
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millrace-bench"));
    command.args(["leash", &std::process::id().to_string(), "--", "node"]);
    command.arg(directory.join(program)).args(args).arg("--out").arg(artifacts());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{program} still runs after {PATIENCE:?}"));
    let output = output.expect("node is missing: run `scripts/setup test`");
    println!("{program}: what it saw is in {}", artifacts().display());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("{program} ended with {} and printed no result ({error}): {said}", output.status)
    })
}
