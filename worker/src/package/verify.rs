//! Whether what was written is what was planned.
//!
//! Frames, cuts and keyframes are counted, never trusted: the same verdict must hold for a range that another machine
//! encoded.

use std::time::Duration;

use millrace_wire::job::FailureCode;

use super::track::Track;
use crate::failure::Failure;
use crate::ladder::{AudioPlan, PicturePlan, Plan};
use crate::ranges::Range;

/// The share of frames that may be missing at the end.
const MISSING_MAX: f64 = 0.01;
/// Sound may differ from the source's by an encoder's frame or two without a word, …
const SOUND_OFF_SECONDS: f64 = 0.1;
/// … and by this share, or a second, with a warning.
const SOUND_OFF_SHARE_MAX: f64 = 0.02;

/// Ticks of one frame of sound.
const AAC_FRAME: f64 = 1024.0;

fn wrong(what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::VerifyFailed, "the outputs are not what was planned").log(what)
}

/// Checks all renditions of the picture against the plan and each other, and the sound against the plan.
///
/// # Errors
/// `verify_failed`, or `source_damaged` when too little could be made of the source.
pub fn check(plan: &Plan, pictures: &[Track], sound: Option<&Track>) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    if let Some(picture) = &plan.picture {
        warnings.extend(check_frames(picture, check_picture(picture, pictures)?)?);
    }
    match (&plan.audio, sound) {
        (Some(planned), Some(track)) => {
            check_sound_cuts(plan.segment, track)?;
            warnings.extend(check_sound(planned, track)?);
        }
        (None, None) => {}
        (planned, _) => return Err(wrong(format_args!("sound planned: {}", planned.is_some()))),
    }
    Ok(warnings)
}

/// All but the number of frames, which it tells.
fn check_picture(plan: &PicturePlan, tracks: &[Track]) -> Result<u64, Failure> {
    debug_assert_eq!(plan.rungs.len(), tracks.len());
    for (rung, track) in plan.rungs.iter().zip(tracks) {
        if track.size != Some((rung.width, rung.height)) {
            return Err(wrong(format_args!("{} has size {:?}", rung.name, track.size)));
        }
        check_cuts(plan, &rung.name, track)?;
    }
    let (first, rest) = tracks.split_first().ok_or_else(|| wrong("no picture at all"))?;
    if let Some(other) = rest.iter().find(|other| !aligned(first, other)) {
        return Err(wrong(format_args!("{} is cut elsewhere than {}", other.init, first.init)));
    }
    Ok(first.samples())
}

/// Checks all renditions of one range of the picture: `plan` is the range's own.
///
/// # Errors
/// `verify_failed`.
pub fn check_range(plan: &PicturePlan, range: &Range, tracks: &[Track]) -> Result<(), Failure> {
    let mut shifted = tracks.to_vec();
    for track in &mut shifted {
        let begins = ticks(plan, range.first, track)?;
        for segment in &mut track.segments {
            segment.start = segment.start.checked_sub(begins).ok_or_else(|| {
                wrong(format_args!("{} begins at {} and not {begins}", segment.name, segment.start))
            })?;
        }
    }
    match check_picture(plan, &shifted)? {
        frames if !range.last && frames != range.frames => {
            Err(wrong(format_args!("{frames} frames, not {}", range.frames)))
        }
        _ => Ok(()),
    }
}

/// When a frame is decoded in a track, in its ticks.
fn ticks(plan: &PicturePlan, frame: u64, track: &Track) -> Result<u64, Failure> {
    let scaled = u128::from(track.timescale) * u128::from(plan.fps.den);
    let each = scaled / u128::from(plan.fps.num);
    if each * u128::from(plan.fps.num) != scaled {
        return Err(wrong(format_args!("{}: a frame is no whole number of ticks", track.init)));
    }
    u64::try_from(each * u128::from(frame)).map_err(wrong)
}

/// Checks that a range has its place in the whole, in every rendition: its first frame's time, and its number of frames.
///
/// # Errors
/// `verify_failed`.
pub fn check_joint(plan: &PicturePlan, range: &Range, tracks: &[Track]) -> Result<(), Failure> {
    let first = range.first_segment(plan.segment_frames) - 1;
    let count = range.frames.div_ceil(u64::from(plan.segment_frames.max(1))) as usize;
    for track in tracks {
        let begins = ticks(plan, range.first, track)?;
        let end = if range.last { track.segments.len() } else { first + count };
        let segments = track.segments.get(first..end).filter(|segments| !segments.is_empty());
        let segments =
            segments.ok_or_else(|| wrong(format_args!("{}: no frame {}", track.init, range.first)))?;
        let frames: u64 = segments.iter().map(|segment| segment.samples).sum();
        if segments[0].start != begins || (!range.last && frames != range.frames) {
            let (start, wanted) = (segments[0].start, range.frames);
            let what =
                format_args!("{}: {frames} frames from {start}, not {wanted} from {begins}", track.init);
            return Err(wrong(what));
        }
    }
    Ok(())
}

/// Every segment begins with a keyframe where the last one ended; all but the last are of the planned length, with
/// keyframes at the planned distance.
fn check_cuts(plan: &PicturePlan, name: &str, track: &Track) -> Result<(), Failure> {
    check_continuous(name, track)?;
    let last = track.segments.len() - 1;
    for (index, segment) in track.segments.iter().enumerate() {
        let planned = u64::from(plan.segment_frames);
        if (index < last && segment.samples != planned) || segment.samples > planned {
            return Err(wrong(format_args!(
                "{name}, {}: {} frames, not {planned}",
                segment.name, segment.samples
            )));
        }
        let keyframes = (0..segment.samples).step_by(plan.gop_frames.max(1) as usize);
        if !segment.syncs.iter().copied().eq(keyframes) {
            return Err(wrong(format_args!("{name}, {}: keyframes at {:?}", segment.name, segment.syncs)));
        }
    }
    Ok(())
}

fn check_continuous(name: &str, track: &Track) -> Result<(), Failure> {
    let mut at = 0;
    for segment in &track.segments {
        if segment.start != at {
            return Err(wrong(format_args!(
                "{name}, {}: begins at {} and not {at}",
                segment.name, segment.start
            )));
        }
        at += segment.duration;
    }
    Ok(())
}

fn aligned(a: &Track, b: &Track) -> bool {
    // Cross-multiplied, so that different time scales compare exactly.
    let at = |ticks: u64, of: &Track| u128::from(ticks) * u128::from(of.timescale);
    a.segments.len() == b.segments.len()
        && a.segments.iter().zip(&b.segments).all(|(one, other)| {
            at(one.start, b) == at(other.start, a) && one.samples == other.samples && one.syncs == other.syncs
        })
}

fn check_frames(plan: &PicturePlan, frames: u64) -> Result<Option<String>, Failure> {
    let missing = plan.frames.saturating_sub(frames);
    if frames > plan.frames + 1 + plan.frames / 100 {
        return Err(wrong(format_args!("{frames} frames, not {}", plan.frames)));
    }
    // Where a second to last frame ends is a matter of rounding; two frames of a short clip are no sign of damage.
    let own = plan.frames - plan.still_frames;
    if missing > 2 && missing as f64 > own as f64 * MISSING_MAX {
        let detail = format!("only {frames} of {} frames could be made of the source", plan.frames);
        return Err(Failure::new(FailureCode::SourceDamaged, detail));
    }
    Ok((missing > 1).then(|| format!("{missing} of {} frames are missing at the end", plan.frames)))
}

/// Segments of sound begin within a frame of sound after those of the picture, however long it is: players load both by
/// number.
fn check_sound_cuts(segment: Duration, track: &Track) -> Result<(), Failure> {
    check_continuous("audio", track)?;
    for (number, one) in track.segments.iter().enumerate() {
        let planned = number as f64 * segment.as_secs_f64() * f64::from(track.timescale);
        // A tick more on both sides, for what is between whole ticks.
        if !(-1.0..=AAC_FRAME + 1.0).contains(&(one.start as f64 - planned)) {
            return Err(wrong(format_args!("{} begins at {} and not {planned}", one.name, one.start)));
        }
    }
    Ok(())
}

fn check_sound(planned: &AudioPlan, track: &Track) -> Result<Option<String>, Failure> {
    let off = track.duration_s() - planned.duration_s;
    let own_s = planned.duration_s - planned.silence_s;
    if off.abs() > (own_s * SOUND_OFF_SHARE_MAX).max(1.0) {
        let detail =
            format!("the sound came out {off:+.1} s off its length: too much of it cannot be decoded");
        return Err(Failure::new(FailureCode::SourceDamaged, detail));
    }
    Ok((off.abs() > SOUND_OFF_SECONDS).then(|| format!("the sound is {off:+.2} s off its length")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ladder::tests::plan_of;
    use crate::package::track::Segment;

    /// A track as it should be: `frames` at 29.97, cut by the plan.
    pub(crate) fn picture(plan: &Plan, index: usize, frames: u64, bytes: u64) -> Track {
        let plan = plan.picture.as_ref().unwrap();
        let (step, segment) = (u64::from(plan.gop_frames), u64::from(plan.segment_frames));
        let mut segments = Vec::new();
        let mut done = 0;
        while done < frames {
            let samples = segment.min(frames - done);
            segments.push(Segment {
                name: crate::ffmpeg::args::segment_name(index, segments.len() + 1),
                bytes: bytes * samples,
                start: done * 1001,
                duration: samples * 1001,
                samples,
                syncs: (0..samples).step_by(step as usize).collect(),
            });
            done += samples;
        }
        let rung = &plan.rungs[index];
        Track {
            init: crate::ffmpeg::args::init_name(index),
            init_bytes: 800,
            timescale: 30_000,
            codec: "avc1.64001e".into(),
            size: Some((rung.width, rung.height)),
            skip: 0,
            reordered: 0,
            segments,
        }
    }

    fn verdict(change: impl Fn(&mut Vec<Track>)) -> Result<Vec<String>, FailureCode> {
        let plan = plan_of(854, 480, false);
        let mut tracks: Vec<Track> = (0..2).map(|index| picture(&plan, index, 300, 100)).collect();
        change(&mut tracks);
        check(&plan, &tracks, None).map_err(|failure| failure.code)
    }

    #[test]
    fn what_was_planned_passes() {
        assert_eq!(verdict(|_| {}), Ok(Vec::new()));
    }

    #[test]
    fn what_was_not_planned_does_not() {
        let wrong = Err(FailureCode::VerifyFailed);
        assert_eq!(verdict(|t| t[0].size = Some((1, 1))), wrong);
        assert_eq!(verdict(|t| t[1].segments[1].start += 1), wrong, "a hole in time");
        assert_eq!(verdict(|t| t[1].segments[1].syncs = vec![0, 61]), wrong, "a keyframe elsewhere");
        assert_eq!(verdict(|t| t[0].segments[0].syncs.clear()), wrong, "no keyframe at the start");
        assert_eq!(verdict(|t| t[1].segments.truncate(2)), wrong, "one rung is shorter");
        assert_eq!(verdict(|t| t.iter_mut().for_each(|t| t.segments[0].samples = 119)), wrong);
    }

    /// Sound in frames of 1024 ticks at 48 kHz, cut as by ffmpeg: at the first frame at or after number × `segment`.
    pub(crate) fn sound(segment: Duration, seconds: u64, bytes: u64) -> Track {
        let mut segments: Vec<Segment> = Vec::new();
        for start in (0..seconds * 48_000 + 1024).step_by(1024) {
            let due = segments.len() as f64 * segment.as_secs_f64() * 48_000.0;
            if start as f64 >= due {
                let name = crate::ffmpeg::args::segment_name(0, segments.len() + 1);
                segments.push(Segment { name, bytes: 0, start, duration: 0, samples: 0, syncs: Vec::new() });
            }
            let one = segments.last_mut().unwrap();
            one.syncs.push(one.samples);
            one.samples += 1;
            one.duration += 1024;
            one.bytes += bytes;
        }
        Track {
            init: crate::ffmpeg::args::init_name(0),
            init_bytes: 700,
            timescale: 48_000,
            codec: "mp4a.40.2".into(),
            size: None,
            skip: 1024,
            reordered: 0,
            segments,
        }
    }

    #[test]
    fn sound_that_drifts_is_refused() {
        let segment = Duration::from_micros(4_004_000);
        let cut = |track: &Track| check_sound_cuts(segment, track).map_err(|failure| failure.code);
        let mut track = sound(segment, 7200, 300);
        assert_eq!(cut(&track), Ok(()));
        assert_eq!(
            cut(&sound(segment - Duration::from_millis(50), 7200, 300)),
            Err(FailureCode::VerifyFailed)
        );
        track.segments.remove(1);
        assert_eq!(cut(&track), Err(FailureCode::VerifyFailed), "a hole");
    }

    #[test]
    fn missing_frames_are_told_and_many_are_refused() {
        let plan = plan_of(640, 360, false).picture.unwrap();
        let frames = |n| check_frames(&plan, n).map_err(|failure| failure.code);
        assert_eq!((frames(300), frames(299), frames(301)), (Ok(None), Ok(None), Ok(None)));
        assert!(frames(298).unwrap().is_some() && frames(297).unwrap().is_some());
        assert_eq!(frames(296), Err(FailureCode::SourceDamaged));
        assert_eq!(frames(305), Err(FailureCode::VerifyFailed));
    }
}
