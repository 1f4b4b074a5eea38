//! What to make of a source: which renditions, at what rate, cut where.
//!
//! Pure. One constant frame rate for all rungs makes time a count of frames: a segment is ⌈rate × segment seconds⌉
//! frames, keyframes stand at fixed counts, and every rung is cut at the same instants. Rejected: forcing keyframes by
//! time, which on a source with a long gap makes a run of them.

use std::fmt;
use std::time::Duration;

use millrace_wire::job::FailureCode;
use millrace_wire::spec::{Format, JobSpec, Preset, Resolution, SEGMENT_SECONDS_DEFAULT};
use serde::{Deserialize, Serialize};

use crate::cost;
use crate::failure::Failure;
use crate::source::probe::{Audio, Probe, Video};

/// Highest frame rate of a rendition.
pub const RATE_MAX: f64 = 60.0;
const CRF_DEFAULT: u32 = 22;
const AUDIO_BITRATE: u32 = 128_000;
const AUDIO_RATE: u32 = 48_000;
/// A keyframe at least about this often, so that seeking is quick and segments can be cut.
const GOP_SECONDS: f64 = 2.0;
/// Most seconds that picture and sound of a stream may end apart. A player plays what it has of both, and learns that one
/// has ended only with the end of the other; it loads so far ahead as it likes (Shaka Player: 10 s), and would wait.
const APART_SECONDS_MAX: f64 = 4.0;
/// From this width on, or above that height, what says nothing of its colours is BT.709 to players, and BT.601 else.
const HD_WIDTH: u32 = 1280;
const SD_HEIGHT_MAX: u32 = 576;
/// Smallest side of a rendition; x264 takes less, players do not.
const SIDE_MIN: u32 = 16;
/// Largest side of a rendition; only a source of absurd shape comes near.
const SIDE_MAX: u32 = 8192;

/// A fraction of two positive numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rational {
    /// Above.
    pub num: u32,
    /// Below; never zero.
    pub den: u32,
}

impl Rational {
    /// Reads `30000/1001` or `16:9`; none for zero, which is how ffmpeg says unknown.
    pub fn parse(text: &str) -> Option<Self> {
        let (num, den) = text.split_once(['/', ':'])?;
        let (num, den) = (num.parse().ok()?, den.parse().ok()?);
        (num > 0 && den > 0).then_some(Self { num, den })
    }

    /// As a number.
    pub fn as_f64(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }
}

impl fmt::Display for Rational {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

/// One rendition of the picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// `720p`: by the shorter side, so that a picture that stands upright has as many pixels as one that lies.
    pub name: String,
    /// Even, of square pixels.
    pub width: u32,
    /// Even.
    pub height: u32,
    /// Cap of the bit rate, in bits per second; x264's buffer is two seconds of it.
    pub bitrate_max: u64,
}

/// What becomes of the picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PicturePlan {
    /// Index of the source's stream.
    pub stream: u32,
    /// The highest first; at least one.
    pub rungs: Vec<Rung>,
    /// The constant rate of every rung.
    pub fps: Rational,
    /// Frames from keyframe to keyframe; divides `segment_frames`.
    pub gop_frames: u32,
    /// Frames of every segment but the last.
    pub segment_frames: u32,
    /// Frames that every rung must have.
    pub frames: u64,
    /// How many of them, at the end, repeat the last one, because the sound goes on.
    pub still_frames: u64,
    /// Frames that the source holds; those that are not decoded are lost.
    pub source_frames: u64,
    /// x264's speed.
    pub preset: Preset,
    /// x264's quality.
    pub crf: u32,
    /// The source has fields.
    pub deinterlace: bool,
    /// The source does not say how its colours are to be read, and is of a size that players then read as BT.709.
    #[serde(default)]
    pub assume_bt709: bool,
}

/// The one rendition of the sound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AudioPlan {
    /// Index of the source's stream.
    pub stream: u32,
    /// Packets that the source holds; those that are not decoded are lost.
    pub source_packets: u64,
    /// Bits per second.
    pub bitrate: u32,
    /// Hertz.
    pub sample_rate: u32,
    /// Always two: every player takes stereo.
    pub channels: u32,
    /// Length that it must have, in seconds.
    pub duration_s: f64,
    /// How many of them, at the end, are silence, because the picture goes on.
    pub silence_s: f64,
}

/// Which files the job gives: what was asked for, as far as the source has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Segments, playlists and the DASH manifest.
    pub stream: bool,
    /// A progressive file of every rung.
    pub mp4: bool,
    /// A progressive file of the sound alone.
    pub audio: bool,
    /// A poster and sprite sheets.
    pub thumbnails: bool,
}

/// What one run of ffmpeg makes: of the picture, of the sound, or of both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The picture, if there is one and it is asked for.
    pub picture: Option<PicturePlan>,
    /// The sound, if there is any.
    pub audio: Option<AudioPlan>,
    /// What is made of them in the end.
    pub wanted: Wanted,
    /// Every segment but the last: exactly `segment_frames` of a picture, rounded down to whole microseconds.
    pub segment: Duration,
    /// When the source begins on its container's clock, in microseconds.
    pub start_us: i64,
    /// Length in seconds.
    pub duration_s: f64,
    /// End at the first error of the decoder.
    pub strict: bool,
    /// Threads of the decoder, and of each encoder.
    pub threads: u32,
    /// What is odd, but not fatal.
    pub warnings: Vec<String>,
    /// What it costs on a reference core, in seconds; for the load report and the CPU limit.
    pub work_seconds: f64,
    /// Memory that it should need at most, in bytes; for the limit of address space.
    pub memory_bytes: u64,
}

impl Plan {
    /// The renditions of the picture, the highest first; none of sound alone.
    pub fn rungs(&self) -> &[Rung] {
        self.picture.as_ref().map_or(&[], |picture| &picture.rungs)
    }
}

/// Plans the ladder.
///
/// # Errors
/// `source_over_limits`, `source_damaged` or `source_no_audio`, when nothing that was asked for can be made of it.
pub fn plan(spec: &JobSpec, probe: &Probe, threads: u32) -> Result<Plan, Failure> {
    let mut warnings = probe.warnings.clone();
    let video = probe.video.as_ref().filter(|_| spec.wants_picture());
    let segment_seconds = spec.segment_seconds.unwrap_or(SEGMENT_SECONDS_DEFAULT);
    let mut picture = video.map(|video| picture(spec, video, segment_seconds, &mut warnings)).transpose()?;
    let mut audio = probe.audio.as_ref().map(audio);
    if let (true, Some(picture), Some(audio)) = (spec.wants_stream(), &mut picture, &mut audio) {
        end_together(picture, audio, &mut warnings);
    }
    if picture.is_none() && audio.is_none() {
        return Err(Failure::new(FailureCode::SourceNoAudio, "the source has no sound"));
    }
    if spec.wants(Format::Audio) && audio.is_none() {
        warnings.push("left out the sound's own file: the source has no sound".to_owned());
    }
    let threads = threads.max(1);
    let picture_s = picture.as_ref().map_or(0.0, PicturePlan::duration_s);
    let sound_s = audio.as_ref().map_or(0.0, |audio| audio.duration_s);
    let duration_s = picture_s.max(sound_s);
    let encoded = video.zip(picture.as_ref());
    Ok(Plan {
        wanted: wanted(spec, picture.is_some(), audio.is_some()),
        segment: picture.as_ref().map_or(Duration::from_secs(segment_seconds.into()), PicturePlan::segment),
        start_us: probe.start_us,
        duration_s,
        strict: spec.strict,
        threads,
        work_seconds: cost::work_seconds(encoded, sound_s),
        memory_bytes: cost::memory_bytes(encoded, threads),
        warnings,
        picture,
        audio,
    })
}

fn wanted(spec: &JobSpec, picture: bool, sound: bool) -> Wanted {
    let mp4 = spec.wants(Format::Mp4);
    Wanted {
        stream: spec.wants_stream(),
        mp4: mp4 && picture,
        // Of a source without a picture its sound is the progressive file.
        audio: sound && (spec.wants(Format::Audio) || mp4 && !picture),
        thumbnails: spec.wants_thumbnails() && picture,
    }
}

fn picture(
    spec: &JobSpec,
    video: &Video,
    segment_seconds: u32,
    warnings: &mut Vec<String>,
) -> Result<PicturePlan, Failure> {
    let rungs = rungs(&spec.resolutions, video, warnings);
    let fps = frame_rate(video);
    let frames = (video.end_s * fps.as_f64()).round().max(1.0);
    if !frames.is_finite() {
        return Err(Failure::new(FailureCode::SourceDamaged, "the source's timestamps make no sense"));
    }
    let segment_frames = segment_frames(fps, segment_seconds);
    let gap_s = video.gap_max_s;
    if gap_s > 2.0 {
        warnings
            .push(format!("the picture stands still for up to {gap_s:.1} s: the source has no frames there"));
    }
    Ok(PicturePlan {
        stream: video.stream,
        rungs,
        gop_frames: gop_frames(fps, segment_frames),
        fps,
        segment_frames,
        frames: frames as u64,
        still_frames: 0,
        source_frames: video.frames,
        preset: spec.preset.unwrap_or_default(),
        crf: spec.crf.unwrap_or(CRF_DEFAULT),
        deinterlace: video.interlaced,
        assume_bt709: video.matrix.is_none()
            && video.pixel_format.starts_with("yuv")
            && (video.width >= HD_WIDTH || video.height > SD_HEIGHT_MAX),
    })
}

/// Lets the shorter of the two go on to the end of the longer when they end too far apart.
fn end_together(picture: &mut PicturePlan, audio: &mut AudioPlan, warnings: &mut Vec<String>) {
    let apart_s = audio.duration_s - picture.duration_s();
    if apart_s > APART_SECONDS_MAX {
        picture.still_frames = (apart_s * picture.fps.as_f64()).round() as u64;
        picture.frames += picture.still_frames;
        warnings.push(format!("the picture ends {apart_s:.1} s before the sound; its last frame is held"));
    } else if -apart_s > APART_SECONDS_MAX {
        audio.silence_s = -apart_s;
        audio.duration_s += audio.silence_s;
        warnings.push(format!("the sound ends {:.1} s before the picture; silence follows it", -apart_s));
    }
}

impl PicturePlan {
    /// Length of all frames, in seconds.
    fn duration_s(&self) -> f64 {
        self.frames as f64 / self.fps.as_f64()
    }

    /// Length of `segment_frames`, rounded down to whole microseconds.
    fn segment(&self) -> Duration {
        let ticks = u64::from(self.segment_frames) * u64::from(self.fps.den) * 1_000_000;
        Duration::from_micros(ticks / u64::from(self.fps.num))
    }
}

fn audio(audio: &Audio) -> AudioPlan {
    AudioPlan {
        stream: audio.stream,
        source_packets: audio.packets,
        bitrate: AUDIO_BITRATE,
        sample_rate: AUDIO_RATE,
        channels: 2,
        duration_s: audio.end_s,
        silence_s: 0.0,
    }
}

/// The picture as it is shown: turned, and of square pixels. Not yet even.
fn shown_size(video: &Video) -> (f64, f64) {
    let width = f64::from(video.width) * video.pixel_aspect.as_f64();
    let height = f64::from(video.height);
    if video.rotation % 180 == 90 { (height, width) } else { (width, height) }
}

/// The nearest even number within [`SIDE_MIN`] and [`SIDE_MAX`].
fn even(side: f64) -> u32 {
    (((side / 2.0).round() * 2.0) as u32).clamp(SIDE_MIN, SIDE_MAX)
}

fn rungs(asked: &[Resolution], video: &Video, warnings: &mut Vec<String>) -> Vec<Rung> {
    let (width, height) = shown_size(video);
    let (shorter, longer) = (width.min(height), width.max(height));
    // Rounded down, so that an odd line is cut and never invented.
    let own = (((shorter / 2.0).floor() * 2.0) as u32).max(SIDE_MIN);
    let rung = |lines: u32| {
        // What is narrower than the least side is made wider, and no longer.
        let other = even((longer * f64::from(lines) / shorter).min(longer));
        let (width, height) = if width < height { (lines, other) } else { (other, lines) };
        Rung { name: format!("{lines}p"), width, height, bitrate_max: bitrate_max(lines) }
    };
    let wanted = if asked.is_empty() { &Resolution::ALL[..] } else { asked };
    let mut lines: Vec<u32> = wanted.iter().map(|resolution| resolution.height()).collect();
    lines.sort_unstable_by(|a, b| b.cmp(a));
    lines.dedup();
    let (above, fitting): (Vec<u32>, Vec<u32>) = lines.into_iter().partition(|lines| *lines > own);
    if !asked.is_empty() && !above.is_empty() {
        let names: Vec<String> = above.iter().map(|lines| format!("{lines}p")).collect();
        let names = names.join(", ");
        warnings.push(format!("left out {names}: the source is {own}p, and nothing is scaled up"));
    }
    if fitting.is_empty() { vec![rung(own)] } else { fitting.into_iter().map(rung).collect() }
}

/// The cap of a rung, in bits per second: through four points, straight between them.
fn bitrate_max(lines: u32) -> u64 {
    const POINTS: [(u32, u64); 6] =
        [(0, 100_000), (240, 450_000), (360, 800_000), (480, 1_400_000), (720, 2_800_000), (1080, 5_000_000)];
    let pair = POINTS.windows(2).find(|pair| lines <= pair[1].0);
    pair.map_or(POINTS[5].1 * u64::from(lines) / 1080, |pair| {
        let ((low, from), (high, to)) = (pair[0], pair[1]);
        from + (to - from) * u64::from(lines.saturating_sub(low)) / u64::from(high - low)
    })
}

/// The constant rate: the one that the container claims when the frames agree with it, else the usual one at
/// the measured average, or the next above it; halved, or cut in three, … until it is at most [`RATE_MAX`].
fn frame_rate(video: &Video) -> Rational {
    const USUAL: [(u32, u32); 11] = [
        (10, 1),
        (12, 1),
        (15, 1),
        (20, 1),
        (24_000, 1001),
        (24, 1),
        (25, 1),
        (30_000, 1001),
        (30, 1),
        (50, 1),
        (60, 1),
    ];
    let claimed = video.rate_claimed.filter(|rate| (1.0 / 60.0..=1000.0).contains(&rate.as_f64()));
    let rate = match (claimed, video.rate_measured) {
        (Some(claimed), None) if claimed.as_f64() <= RATE_MAX => claimed,
        (Some(claimed), Some(measured)) if (measured / claimed.as_f64() - 1.0).abs() < 0.02 => claimed,
        (_, None) => Rational { num: 25, den: 1 },
        (_, Some(measured)) => {
            let usual = USUAL.map(|(num, den)| Rational { num, den });
            let off = |rate: &Rational| (rate.as_f64() / measured - 1.0).abs();
            let nearest =
                usual.into_iter().filter(|rate| off(rate) < 0.01).min_by(|a, b| off(a).total_cmp(&off(b)));
            let above = usual.into_iter().find(|rate| rate.as_f64() >= measured);
            nearest.or(above).unwrap_or(usual[10])
        }
    };
    let parts = (rate.as_f64() / RATE_MAX).ceil().max(1.0) as u32;
    Rational { num: rate.num, den: rate.den * parts }
}

fn segment_frames(fps: Rational, seconds: u32) -> u32 {
    let frames = u64::from(fps.num) * u64::from(seconds);
    u32::try_from(frames.div_ceil(u64::from(fps.den))).unwrap_or(u32::MAX).max(1)
}

/// The divisor of a segment whose length is nearest to [`GOP_SECONDS`].
fn gop_frames(fps: Rational, segment: u32) -> u32 {
    let wanted = fps.as_f64() * GOP_SECONDS;
    let divisors =
        (1..=segment.min(600)).filter(|parts| segment.is_multiple_of(*parts)).map(|parts| segment / parts);
    let off = |gop: u32| (f64::from(gop) / wanted).ln().abs();
    divisors.min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap_or(segment)
}

#[cfg(test)]
pub(crate) mod tests;
