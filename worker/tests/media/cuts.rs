//! Segments are as long as was asked, and those of the sound stay with the picture's however long it is.

use std::path::Path;

use super::clip::{Made, make, segments, spec, transcode};

/// Seconds from a cut of the picture to that of the sound, as presented: the first frame at or after it, less the 21 ms
/// of the encoder's run-up.
const BEFORE: std::ops::RangeInclusive<f64> = -0.0225..=0.001;

/// A tiny picture with a quiet tone.
async fn made(directory: &Path, rate: &str, segment_seconds: u32, seconds: u32) -> Made {
    let arguments = format!(
        "-f lavfi -i color=s=16x16:r={rate}:d={seconds} -f lavfi -i anullsrc=r=48000:cl=mono:d={seconds} \
         -c:v libx264 -preset ultrafast -g 600 -c:a pcm_s16le"
    );
    let clip = make(directory, &arguments, "long.mkv");
    let fields = format!(r#""segment_seconds":{segment_seconds}"#);
    transcode(&clip, &spec(&fields)).await.unwrap()
}

/// When each segment of a playlist begins, in seconds.
fn starts(made: &Made, playlist: &str) -> Vec<f64> {
    let mut at = 0.0;
    let mut begin = |(_, length): (u64, f64)| {
        at += length;
        at - length
    };
    segments(made, playlist).into_iter().map(&mut begin).collect()
}

/// Makes clips of these rates, segment lengths, lengths and frames per segment, and compares their cuts.
async fn check(clips: &[(&str, u32, u32, u64)]) {
    for (rate, segment_seconds, seconds, frames) in clips.iter().copied() {
        let directory = tempfile::tempdir().unwrap();
        let made = made(directory.path(), rate, segment_seconds, seconds).await;
        let picture = made.package.pictures.first().unwrap();
        let (last, whole) = picture.segments.split_last().unwrap();
        assert!(whole.iter().all(|segment| segment.samples == frames), "{rate}");
        assert!((1..=frames).contains(&last.samples), "{rate}");
        let name = format!("{}.m3u8", made.package.outputs.renditions[0].name);
        let (picture, sound) = (starts(&made, &name), starts(&made, "audio.m3u8"));
        assert_eq!(picture.len(), sound.len(), "{rate}: no segment of the last frame alone");
        let off = picture.iter().zip(&sound).map(|(picture, sound)| sound - picture);
        for off in off {
            assert!(BEFORE.contains(&off), "{rate}: {off} s");
        }
    }
}

#[tokio::test]
async fn sound_is_cut_where_the_picture_is_at_whole_rates() {
    check(&[("10", 2, 600, 20), ("24", 4, 120, 96), ("25", 10, 120, 250), ("60", 4, 60, 240)]).await;
}

#[tokio::test]
async fn sound_is_cut_where_the_picture_is_at_broken_rates() {
    check(&[("30000/1001", 2, 120, 60), ("24000/1001", 4, 120, 96), ("17/3", 2, 600, 12)]).await;
}

#[tokio::test]
async fn sound_alone_is_cut_as_asked() {
    let directory = tempfile::tempdir().unwrap();
    for segment_seconds in [2_u32, 3, 10] {
        let clip = make(directory.path(), "-f lavfi -i anullsrc=r=44100:d=300 -c:a pcm_s16le", "quiet.wav");
        let made = transcode(&clip, &spec(&format!(r#""segment_seconds":{segment_seconds}"#))).await.unwrap();
        // What the watchdog sees, where no frames are counted.
        let moves = made.progress.windows(2).all(|pair| pair[0].media < pair[1].media || pair[1].ended);
        assert!(moves && made.progress.len() > 1, "{:?}", made.progress);
        let starts = starts(&made, "audio.m3u8");
        for (number, start) in starts.iter().enumerate() {
            let off = start - number as f64 * f64::from(segment_seconds);
            assert!(BEFORE.contains(&off), "{segment_seconds}, {number}: {off} s");
        }
        assert!(starts.len().abs_diff(300 / segment_seconds as usize) <= 1, "{}", starts.len());
    }
}
