//! What a rendition takes of a line: measured, with its sound, over every segment.

use super::track::Track;

/// Declared over measured: RFC 8216 wants an upper bound, and a meter that pairs sound with picture a little
/// differently must not find more.
const MARGIN: f64 = 1.02;

/// `BANDWIDTH`: the largest bits ÷ seconds of any segment of the picture, with the sound of the same span.
pub fn peak(picture: &Track, sound: Option<&Track>) -> u64 {
    let rates = picture.segments.iter().map(|segment| {
        let (from, length) = (picture.seconds(segment.start), picture.seconds(segment.duration));
        let bytes =
            segment.bytes as f64 + sound.map_or(0.0, |sound| bytes_between(sound, from, from + length));
        bytes * 8.0 / length
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
        // What is skipped comes before zero.
        let start = track.seconds(segment.start) - track.seconds(track.skip);
        let length = track.seconds(segment.duration);
        let overlap = (to.min(start + length) - from.max(start)).max(0.0);
        segment.bytes as f64 * overlap / length
    };
    track.segments.iter().map(inside).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ladder::tests::plan_of;
    use crate::package::verify::tests::picture;

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
