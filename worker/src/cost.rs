//! What a job costs, in reference-seconds, before and after anybody has looked at it; and how fast this worker is.
//!
//! A reference-second is what one slot of the reference machine does in a second. The plan knows a job's work after
//! the probe; before it, the client's hints, the input's size, or else the recent average must do. Speed is learned:
//! reference-seconds done over seconds taken.

use std::sync::Mutex;

use millrace_wire::JobSpec;
use millrace_wire::spec::{Preset, Resolution};

use crate::ladder::PicturePlan;
use crate::source::probe::Video;

/// Work of a job about which nothing is known, until jobs have been seen.
const WORK_SECONDS_FIRST: f64 = 60.0;
/// Weight of the newest job in both averages.
const NEWEST: f64 = 0.2;
/// Bits per second assumed of an input whose length nobody told.
const INPUT_BITS_PER_SECOND: f64 = 5e6;
/// Speeds outside are measurement errors (a job of one frame, a suspended machine).
const SPEED: std::ops::RangeInclusive<f64> = 0.02..=50.0;

/// Reference-seconds of one megapixel decoded; these figures are of ffmpeg 5.1's x264 on one core of a cloud machine.
const DECODE: f64 = 0.0045;
/// Reference-seconds of one megapixel scaled and encoded at the default preset.
const ENCODE: f64 = 0.0170;
/// Reference-seconds of one second of sound.
const AUDIO: f64 = 0.012;
/// Reference-seconds of starting.
const START: f64 = 0.3;

/// The share of decoding in what a frame of a whole ladder costs, at most: what a range decodes before its first frame.
pub const DECODE_SHARE: f64 = 0.2;

/// Reference-seconds of a sound alone.
pub fn sound_seconds(sound_s: f64) -> f64 {
    START + sound_s * AUDIO
}

fn megapixels(width: u32, height: u32) -> f64 {
    f64::from(width) * f64::from(height) / 1e6
}

/// Reference-seconds: CPU seconds of one core, by pixels decoded, scaled and encoded, and seconds of sound.
pub fn work_seconds(picture: Option<(&Video, &PicturePlan)>, sound_s: f64) -> f64 {
    let picture = picture.map_or(0.0, |(video, plan)| {
        let effort = match plan.preset {
            Preset::Ultrafast => 0.4,
            Preset::Superfast => 0.6,
            Preset::Veryfast => 1.0,
            Preset::Faster => 1.6,
            Preset::Fast => 2.1,
            Preset::Medium => 2.6,
        };
        let decoded = megapixels(video.width, video.height) * video.frames as f64;
        let encoded: f64 = plan.rungs.iter().map(|rung| megapixels(rung.width, rung.height)).sum();
        decoded * DECODE + encoded * plan.frames as f64 * ENCODE * effort
    });
    picture + sound_seconds(sound_s)
}

/// Reference-seconds of a job about which only length and wanted heights are known: 16:9 at 30 frames a second, from a
/// source as high as its highest rung. Without heights it is of sound alone.
fn work_seconds_guess(duration_s: f64, heights: &[u32]) -> f64 {
    let megapixels = |height: u32| f64::from(height).powi(2) * 16.0 / 9.0 / 1e6;
    let decoded = heights.iter().copied().max().map_or(0.0, megapixels);
    let encoded: f64 = heights.iter().copied().map(megapixels).sum();
    START + duration_s * (30.0 * (decoded * DECODE + encoded * ENCODE) + AUDIO)
}

/// Frames in flight times their size, plus what the program and its threads take. ffmpeg 5.1 took 1.17 GB of address
/// space for 8K with four rungs and two threads.
pub fn memory_bytes(picture: Option<(&Video, &PicturePlan)>, threads: u32) -> u64 {
    const PROGRAM: u64 = 256 << 20;
    const PER_THREAD: u64 = 16 << 20;
    let threads = u64::from(threads);
    let rungs = picture.map_or(&[][..], |(_, plan)| &plan.rungs);
    let picture = picture.map_or(0, |(video, _)| {
        let frame = |width: u32, height: u32| u64::from(width) * u64::from(height) * 3 / 2;
        // Up to 4:4:4 at 16 bits: four times the usual.
        let source = frame(video.width, video.height) * 2 * (20 + 2 * threads);
        let encoders: u64 =
            rungs.iter().map(|rung| frame(rung.width, rung.height) * (60 + 4 * threads)).sum();
        source + encoders
    });
    PROGRAM + PER_THREAD * threads * (2 + rungs.len() as u64) + picture
}

#[derive(Debug, Clone, Copy)]
struct Averages {
    work_seconds: f64,
    speed: f64,
}

/// Estimates and what was learned.
#[derive(Debug)]
pub struct CostModel(Mutex<Averages>);

impl Default for CostModel {
    fn default() -> Self {
        Self(Mutex::new(Averages { work_seconds: WORK_SECONDS_FIRST, speed: 1.0 }))
    }
}

impl CostModel {
    fn averages(&self) -> std::sync::MutexGuard<'_, Averages> {
        self.0.lock().expect("nothing panics while holding the averages")
    }

    /// Reference-seconds done per slot and second, measured.
    pub fn speed(&self) -> f64 {
        self.averages().speed
    }

    /// Estimate at accept. `input_bytes` is the size of an input in our own store.
    pub fn estimate(&self, spec: &JobSpec, input_bytes: Option<u64>) -> f64 {
        let seconds = spec.duration_hint_s.map(f64::from).or_else(|| {
            let bytes = input_bytes.or(spec.size_hint_bytes)?;
            Some(bytes as f64 * 8.0 / INPUT_BITS_PER_SECOND)
        });
        let Some(seconds) = seconds else { return self.averages().work_seconds };
        let rungs = match spec.resolutions.as_slice() {
            _ if !spec.wants_picture() => &[],
            [] => &Resolution::ALL[..],
            asked => asked,
        };
        let heights: Vec<u32> = rungs.iter().map(|r| r.height()).collect();
        work_seconds_guess(seconds, &heights)
    }

    /// Learns from a finished encode: its planned work and the wall seconds it took.
    pub fn learn(&self, work_seconds: f64, wall_seconds: f64) {
        let speed = work_seconds / wall_seconds.max(1e-3);
        let mut averages = self.averages();
        averages.work_seconds += NEWEST * (work_seconds - averages.work_seconds);
        if SPEED.contains(&speed) {
            averages.speed += NEWEST * (speed - averages.speed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(body: &str) -> JobSpec {
        JobSpec::parse(body.as_bytes()).unwrap().0
    }

    #[test]
    fn hints_beat_sizes_beat_the_average() {
        let model = CostModel::default();
        let nothing = model.estimate(&spec(r#"{"input_url":"http://h/v"}"#), None);
        assert_eq!(nothing, WORK_SECONDS_FIRST);
        let hinted = spec(r#"{"input_url":"http://h/v","duration_hint_s":3600,"size_hint_bytes":1}"#);
        assert!(model.estimate(&hinted, Some(1)) > 100.0);
        assert!(model.estimate(&spec(r#"{"input_url":"http://h/v"}"#), Some(1_000_000)) < 20.0);
        let sound = spec(r#"{"input_url":"http://h/v","duration_hint_s":3600,"output_format":"audio"}"#);
        assert!(model.estimate(&sound, None) < 60.0, "an hour of sound is no hour of pictures");
    }

    #[test]
    fn speed_follows_what_was_measured_and_ignores_nonsense() {
        let model = CostModel::default();
        for _ in 0..50 {
            model.learn(30.0, 60.0);
        }
        assert!((model.speed() - 0.5).abs() < 0.01, "{}", model.speed());
        model.learn(30.0, 0.0);
        assert!((model.speed() - 0.5).abs() < 0.01, "{}", model.speed());
    }
}
