//! Where a long video is cut into ranges that several workers encode.
//!
//! Pure: of the source and the spec alone, never of how many workers there are, so that whoever encodes a range makes the
//! same of it. A range is a span of frames of the plan's constant rate and begins with a segment, so its segments are final
//! ones with final names and nothing is joined afterwards. ffmpeg is sent to a keyframe well before the span and drops what
//! lies before its first frame by number: frames that an open GOP has lost at its start, a gap, or an odd rate make no
//! difference then. Rejected: cutting the source, which loses frames of open GOPs without a word.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cost;
use crate::ladder::Plan;
use crate::source::probe::Probe;

/// How far before its first frame ffmpeg is sent, at least.
const LEAD_SECONDS_MIN: f64 = 10.0;
/// Where keyframes are so sparse that a range would have to decode more than this before its first frame, or more than it
/// encodes, the job stays in one piece.
const LEAD_SECONDS_MAX: f64 = 60.0;
/// ffmpeg is not sent to a keyframe that is so near to the beginning.
const BEGINNING_SECONDS: f64 = 0.5;
/// Containers in which ffmpeg's seeking was found exact, and how far after a keyframe's time ffmpeg is sent to begin with
/// that one: sent earlier, it would decode a whole group of pictures more. In other containers a range may begin too late.
/// The index of an mp4 is asked for just that time. Of matroska's, ffmpeg takes 3/23 s off before, because frames may be
/// reordered. In a transport stream it finds no keyframe but a packet by its decoding time, and decodes from the next
/// keyframe on.
const CONTAINERS: [(&str, f64); 3] = [("mov", 0.01), ("matroska", 3.0 / 23.0 + 0.01), ("mpegts", -0.5)];

/// A job that is cut into ranges: what the source task commits and every other task works by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RangePlan {
    /// The plan of the whole.
    pub ladder: Plan,
    /// The ranges, in order; at least two.
    pub ranges: Vec<Range>,
    /// Where every task finds the source.
    pub source: SourceAt,
}

/// One range of the picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The first frame; a multiple of the segment.
    pub first: u64,
    /// How many, as planned; of the last range it may be a few more or less, as of the whole.
    pub frames: u64,
    /// To the end of the source, whatever the plan says.
    pub last: bool,
    /// Where ffmpeg is sent, in seconds after the start of the source; none is its beginning.
    pub seek_s: Option<f64>,
}

/// An object that holds the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceAt {
    /// Its pool's bucket.
    pub bucket: millrace_wire::PoolId,
    /// Its key.
    pub key: String,
    /// It lies there for this job alone.
    pub own: bool,
    /// SHA-256 of it, in hexadecimal: whoever finds other bytes there, or none, does not cut those. None in plans of before.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// Cuts a plan's picture into ranges of about `length`; none where it stays in one piece: shorter than two ranges, of sound
/// alone, strict (whose verdict is about one decode of the whole), or of a source in which ffmpeg cannot be sent anywhere.
pub fn cut(plan: &Plan, probe: &Probe, length: Duration) -> Option<Vec<Range>> {
    let (picture, video) = (plan.picture.as_ref()?, probe.video.as_ref()?);
    let container = probe.container.split(',').next().unwrap_or_default();
    let (_, sent_s) = CONTAINERS.into_iter().find(|(name, _)| *name == container)?;
    if plan.strict || video.entries_s.is_empty() {
        return None;
    }
    let (fps, segment) = (picture.fps.as_f64(), u64::from(picture.segment_frames));
    let segments = (length.as_secs_f64() * fps / segment as f64).round().max(1.0) as u64;
    let each = segments * segment;
    if picture.frames < 2 * each {
        return None;
    }
    // To the nearest whole number: the last range is half to one and a half of the others.
    let count = ((picture.frames as f64 / each as f64).round() as u64).max(2);
    let ranges: Vec<Range> = (0..count)
        .map(|index| {
            let (first, last) = (index * each, index + 1 == count);
            let frames = if last { picture.frames - first } else { each };
            // Past the source's own end its last frame is held: that one has to be decoded.
            let begins_s = (first as f64 / fps).min(video.end_s);
            Range { first, frames, last, seek_s: seek(&video.entries_s, sent_s, begins_s) }
        })
        .collect();
    let lead_max = LEAD_SECONDS_MAX.max(each as f64 / fps);
    ranges.iter().all(|range| range.lead_s(fps, video.end_s) <= lead_max).then_some(ranges)
}

/// Where to be sent to begin at some time: so far after the last keyframe that is early enough.
fn seek(entries_s: &[f64], sent_s: f64, begins_s: f64) -> Option<f64> {
    let early = entries_s.partition_point(|at| *at <= begins_s - LEAD_SECONDS_MIN);
    let entry = entries_s.get(early.checked_sub(1)?)?;
    (*entry > BEGINNING_SECONDS).then_some(entry + sent_s)
}

impl Range {
    /// Seconds that are decoded before the first frame.
    fn lead_s(&self, fps: f64, source_end_s: f64) -> f64 {
        (self.first as f64 / fps).min(source_end_s) - self.seek_s.unwrap_or(0.0)
    }

    /// The plan of this range alone: its picture, and what it costs.
    pub fn plan(&self, whole: &Plan) -> Plan {
        let picture = whole.picture.clone().expect("only pictures are cut into ranges");
        let fps = picture.fps.as_f64();
        let lead = self.lead_s(fps, f64::MAX).max(0.0) * fps;
        let sound_s = whole.audio.as_ref().map_or(0.0, |audio| audio.duration_s);
        let per_frame = (whole.work_seconds - cost::sound_seconds(sound_s)).max(0.0) / picture.frames as f64;
        let work_seconds = per_frame * (self.frames as f64 + lead * cost::DECODE_SHARE);
        Plan {
            duration_s: self.frames as f64 / fps,
            picture: Some(crate::ladder::PicturePlan { frames: self.frames, ..picture }),
            audio: None,
            warnings: Vec::new(),
            work_seconds,
            ..whole.clone()
        }
    }

    /// What may go by before its first frame is there: what lies before is decoded at twice its length in the worst case.
    pub fn patience(&self, plan: &Plan) -> Duration {
        let fps = plan.picture.as_ref().map_or(1.0, |picture| picture.fps.as_f64());
        Duration::from_secs_f64(2.0 * self.lead_s(fps, f64::MAX).max(0.0))
    }

    /// The number of its first segment, counted from 1.
    pub fn first_segment(&self, segment_frames: u32) -> usize {
        (self.first / u64::from(segment_frames.max(1))) as usize + 1
    }
}

/// The plan of the sound alone, whole; none of a job without any.
pub fn sound(whole: &Plan) -> Option<Plan> {
    let audio = whole.audio.clone()?;
    Some(Plan {
        picture: None,
        duration_s: audio.duration_s,
        work_seconds: cost::sound_seconds(audio.duration_s),
        audio: Some(audio),
        warnings: Vec::new(),
        ..whole.clone()
    })
}

#[cfg(test)]
mod tests {
    use millrace_wire::spec::Resolution;
    use proptest::prelude::*;

    use super::*;
    use crate::ladder;
    use crate::ladder::tests::{probe, spec, video};
    use crate::source::probe::Video;

    const MINUTE: Duration = Duration::from_secs(60);

    fn source(seconds: f64, keyframe_s: f64) -> Probe {
        let entries_s = (0..).map(|n| f64::from(n) * keyframe_s).take_while(|at| *at < seconds).collect();
        let frames = (seconds * 29.97) as u64;
        probe(Some(Video { end_s: seconds, frames, entries_s, ..video(1280, 720) }), true)
    }

    fn plan(probe: &Probe) -> Plan {
        ladder::plan(&spec(&[Resolution::P360]), probe, 2).unwrap()
    }

    fn ranges(probe: &Probe) -> Option<Vec<Range>> {
        cut(&plan(probe), probe, MINUTE)
    }

    #[test]
    fn ranges_are_whole_segments_of_about_a_minute() {
        let ranges = ranges(&source(600.0, 4.0)).unwrap();
        assert_eq!(ranges.len(), 10);
        assert_eq!((ranges[1].first, ranges[1].frames), (1800, 1800), "15 segments of 120 frames");
        assert_eq!(
            (ranges[0].seek_s, ranges[1].seek_s),
            (None, Some(48.01)),
            "48 is the last one 10 s before 60.06"
        );
        assert_eq!(ranges[3].first_segment(120), 46);
        assert!(ranges[9].last && !ranges[8].last);
    }

    #[test]
    fn what_cannot_be_cut_stays_in_one_piece() {
        let pieces = |probe: &Probe| ranges(probe).map_or(1, |ranges| ranges.len());
        assert_eq!(pieces(&source(119.0, 4.0)), 1, "shorter than two ranges");
        assert_eq!(pieces(&source(121.0, 4.0)), 2);
        assert_eq!(
            pieces(&source(600.0, 1000.0)),
            1,
            "one keyframe alone: the last range would decode nine minutes"
        );
        assert_eq!(pieces(&source(120.2, 1000.0)), 2, "it decodes no more than it encodes");
        let mut odd = source(600.0, 4.0);
        odd.container = "avi".to_owned();
        assert_eq!(pieces(&odd), 1);
        let mut disordered = source(600.0, 4.0);
        disordered.video.as_mut().unwrap().entries_s.clear();
        assert_eq!(pieces(&disordered), 1);
        let mut strict = plan(&source(600.0, 4.0));
        strict.strict = true;
        assert_eq!(cut(&strict, &source(600.0, 4.0), MINUTE), None);
    }

    #[test]
    fn a_range_that_holds_the_last_frame_decodes_that_frame() {
        let mut source = source(100.0, 4.0);
        source.audio.as_mut().unwrap().end_s = 400.0;
        let ranges = ranges(&source).unwrap();
        assert_eq!(ranges.len(), 7);
        assert_eq!(ranges.last().unwrap().seek_s, Some(88.01));
    }

    #[test]
    fn the_ranges_cost_what_the_whole_does_and_what_they_decode_twice() {
        let source = source(600.0, 4.0);
        let (whole, ranges) = (plan(&source), ranges(&source).unwrap());
        let parts: f64 = ranges.iter().map(|range| range.plan(&whole).work_seconds).sum();
        let sound = sound(&whole).unwrap().work_seconds;
        let over = (parts + sound) / whole.work_seconds;
        assert!((1.0..1.08).contains(&over), "{over}");
        let one = ranges[4].plan(&whole);
        assert_eq!((one.audio, one.picture.unwrap().frames, one.threads), (None, 1800, 2));
    }

    #[test]
    fn a_plan_comes_out_of_the_store_as_it_went_in() {
        let source = source(600.0, 4.0);
        let bucket = "aws".parse().unwrap();
        let at = SourceAt { bucket, key: "uploads/1/v".to_owned(), own: false, sha256: None };
        let plan = RangePlan { ladder: plan(&source), ranges: ranges(&source).unwrap(), source: at };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<RangePlan>(&text).unwrap(), plan);
    }

    proptest! {
        #[test]
        fn ranges_are_a_partition_and_begin_early_enough(
            seconds in 1.0..20_000.0_f64,
            keyframe_s in 1.0..80.0_f64,
            length_s in 1..300_u64,
        ) {
            let source = source(seconds, keyframe_s);
            let plan = plan(&source);
            let Some(ranges) = cut(&plan, &source, Duration::from_secs(length_s)) else { return Ok(()) };
            let picture = plan.picture.unwrap();
            prop_assert!(ranges.len() >= 2);
            let mut at = 0;
            for range in &ranges {
                prop_assert_eq!(range.first, at);
                prop_assert_eq!(at % u64::from(picture.segment_frames), 0);
                prop_assert!(range.frames > 0);
                let begins_s = (range.first as f64 / picture.fps.as_f64()).min(seconds);
                let early = begins_s - LEAD_SECONDS_MIN + 0.01;
                prop_assert!(range.seek_s.is_none_or(|seek| seek > 0.0 && seek <= early));
                at += range.frames;
            }
            prop_assert_eq!(at, picture.frames);
            prop_assert!(ranges[..ranges.len() - 1].iter().all(|range| !range.last));
        }
    }
}
