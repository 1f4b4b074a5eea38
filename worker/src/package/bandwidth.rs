//! What a rendition takes of a line: measured, with its sound, over every segment.

use super::playlist::target_duration;
use super::track::Track;

/// Declared over measured: RFC 8216 wants an upper bound, and a meter that pairs sound with picture a little
/// differently must not find more.
const MARGIN: f64 = 1.02;

/// The share of a target duration below which a segment is measured together with the one before it.
const SHORT_SHARE: f64 = 0.25;

/// `BANDWIDTH`: the largest bits ÷ seconds of any segment of the picture, with the sound of the same span.
///
/// A last segment of a few frames is nearly all keyframe: by itself it would declare a rate that no player ever needs
/// (9.3 Mbit/s of an 8.17 s clip capped at 5). RFC 8216 measures spans of half a target duration and more; the share
/// here is lower, so that a last segment of a second, which a player does wait for, still counts by itself.
pub fn peak(picture: &Track, sound: Option<&Track>) -> u64 {
    let short = SHORT_SHARE * target_duration(picture) as f64;
    let rates = picture.segments.iter().enumerate().map(|(place, segment)| {
        let before = place.checked_sub(1).filter(|_| picture.presented_s(segment) < short);
        let span = &picture.segments[before.unwrap_or(place)..=place];
        let from = picture.seconds(picture.presented(&span[0]).0);
        let length: f64 = span.iter().map(|segment| picture.presented_s(segment)).sum();
        let bytes: u64 = span.iter().map(|segment| segment.bytes).sum();
        let sound = sound.map_or(0.0, |sound| bytes_between(sound, from, from + length));
        (bytes as f64 + sound) * 8.0 / length
    });
    (rates.fold(0.0, f64::max) * MARGIN).ceil() as u64
}

/// `AVERAGE-BANDWIDTH`: all bits ÷ all seconds of the picture; a mean of what [`peak`] takes the largest of.
pub fn average(picture: &Track, sound: Option<&Track>) -> u64 {
    let length = picture.duration_s().max(1e-3);
    let bytes = picture.media_bytes() as f64 + sound.map_or(0.0, |sound| bytes_between(sound, 0.0, length));
    (bytes * 8.0 / length).ceil() as u64
}

/// Bytes of the segments within a span, those on its edges by the share that lies inside.
fn bytes_between(track: &Track, from: f64, to: f64) -> f64 {
    let inside = |segment: &super::track::Segment| {
        let (start, length) = track.presented(segment);
        let (start, length) = (track.seconds(start), track.seconds(length));
        let overlap = (to.min(start + length) - from.max(start)).max(0.0);
        segment.bytes as f64 * overlap / length
    };
    track.segments.iter().map(inside).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::ladder::tests::plan_of;
    use crate::package::verify::tests::{picture, sound};

    #[test]
    fn the_peak_is_the_dearest_segment_with_its_sound() {
        let plan = plan_of(640, 360, false);
        let mut video = picture(&plan, 0, 300, 1000);
        video.segments[1].bytes = 500_500;
        let mut sound = picture(&plan, 0, 300, 500);
        // 4.004 s: a million bits a second of picture, and 500 bytes a frame of sound.
        assert!(peak(&video, None).abs_diff(1_020_000) <= 1);
        let with = peak(&video, Some(&sound)) as f64 / MARGIN;
        assert!((with - (1_000_000.0 + 500.0 * 8.0 * 30_000.0 / 1001.0)).abs() < 1.0, "{with}");
        sound.segments.clear();
        assert_eq!(peak(&video, Some(&sound)), peak(&video, None));
    }

    #[test]
    fn a_last_segment_of_a_few_frames_counts_only_with_the_one_before() {
        let plan = plan_of(640, 360, false);
        let mut video = picture(&plan, 0, 245, 1000); // 4.004 s, 4.004 s and five frames
        video.segments.last_mut().unwrap().bytes = 100_000;
        let together = 220_000.0 * 8.0 / (125.0 * 1001.0 / 30_000.0) * MARGIN;
        assert!(peak(&video, None).abs_diff(together as u64) <= 1);
        let mut alone = picture(&plan, 0, 5, 1000);
        alone.segments[0].bytes = 1001;
        let all = 1001.0 * 8.0 / (5.0 * 1001.0 / 30_000.0) * MARGIN;
        assert!(peak(&alone, None).abs_diff(all as u64) <= 1, "a clip of five frames has no other rate");
    }

    #[test]
    fn a_short_sound_is_rated_by_what_is_heard_of_it() {
        let mut sound = sound(Duration::from_secs(4), 1, 300);
        sound.segments[0].duration = sound.skip + 480; // ten milliseconds
        sound.segments[0].bytes = 740;
        assert_eq!(peak(&sound, None), 603_840);
        assert_eq!(average(&sound, None), 592_000, "never above the peak");
    }

    proptest! {
        #[test]
        fn average_is_at_most_peak(sizes in proptest::collection::vec(1_u64..1_000_000, 3), frames in 241_u64..360) {
            let plan = plan_of(640, 360, false);
            let mut video = picture(&plan, 0, frames, 1);
            video.segments.iter_mut().zip(sizes).for_each(|(segment, bytes)| segment.bytes = bytes);
            prop_assert!(average(&video, None) <= peak(&video, None) + 1);
        }
    }
}
