//! Odd sources, each with its right answer. Those of sound alone are in `sound`, those that are broken in `damaged`,
//! turned and odd-sized ones in `played`.

use std::path::Path;

use super::clip::{FAST, make, run, spec, transcode};
use super::played::check;
use super::sound::level;

#[tokio::test]
async fn digital_silence_is_sound_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = format!(
        "-f lavfi -i testsrc2=s=320x180:r=25:d=4 -f lavfi -i anullsrc=r=44100:cl=stereo:d=4 {FAST} -c:a aac"
    );
    let made =
        transcode(&make(directory.path(), &arguments, "quiet.mp4"), &spec(r#""crf":30"#)).await.unwrap();
    check(&made, &[(320, 180)], 100, 25.0, Some(4.0));
    assert!(made.package.warnings.is_empty(), "{:?}", made.package.warnings);
    assert!(level(&made.file("audio.m3u8")) < -80.0);
}

#[tokio::test]
async fn a_gap_of_ten_seconds_is_a_picture_that_stands_still() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = format!(
        "-f lavfi -i testsrc2=s=320x180:r=25:d=20 -f lavfi -i sine=d=20 -vf select='not(between(t,5,15))' \
         -fps_mode vfr {FAST} -c:a aac"
    );
    let clip = make(directory.path(), &arguments, "gap.mkv");
    let made = transcode(&clip, &spec(r#""segment_seconds":2,"crf":30"#)).await.unwrap();
    // Keyframes and cuts are at their frames, or the verification would not have passed it. Where the picture moves, no
    // frame of it is lost: the gap makes the rate no lower.
    check(&made, &[(320, 180)], 500, 25.0, Some(20.0));
    let still = made.package.warnings.iter().any(|warning| warning.contains("stands still for up to 10."));
    assert!(still, "{:?}", made.package.warnings);
}

#[tokio::test]
async fn one_frame_with_sound_is_as_long_as_its_sound() {
    let directory = tempfile::tempdir().unwrap();
    let arguments =
        format!("-f lavfi -i testsrc2=s=320x180:r=25:d=0.04 -f lavfi -i sine=d=3 {FAST} -c:a aac");
    let made = transcode(&make(directory.path(), &arguments, "one.mp4"), &spec(r#""crf":30"#)).await.unwrap();
    check(&made, &[(320, 180)], 1, 25.0, Some(3.0));
    assert!((made.package.outputs.duration_s - 3.0).abs() < 0.1, "{:?}", made.package.outputs);
}

/// A picture and a sound of their own lengths, and how long the stream has them.
async fn of_lengths(directory: &Path, (picture_s, sound_s): (u32, u32), expected: (u32, u32)) {
    let arguments = format!(
        "-f lavfi -i testsrc2=s=320x180:r=25:d={picture_s} -f lavfi -i sine=d={sound_s} {FAST} -c:a aac"
    );
    let clip = make(directory, &arguments, "lengths.mp4");
    let made = transcode(&clip, &spec(r#""segment_seconds":2"#)).await.unwrap();
    check(&made, &[(320, 180)], u64::from(expected.0) * 25, 25.0, Some(f64::from(expected.1)));
    let longer = f64::from(picture_s.max(sound_s));
    assert!((made.package.outputs.duration_s - longer).abs() < 0.1, "{:?}", made.package.outputs);
}

#[tokio::test]
async fn picture_and_sound_keep_their_own_lengths() {
    let directory = tempfile::tempdir().unwrap();
    of_lengths(directory.path(), (3, 6), (3, 6)).await;
    of_lengths(directory.path(), (6, 3), (6, 3)).await;
}

/// No player comes further than to the end of the shorter one, else.
#[tokio::test]
async fn a_stream_goes_on_with_a_still_or_silence_where_one_ends_long_before_the_other() {
    let directory = tempfile::tempdir().unwrap();
    of_lengths(directory.path(), (2, 9), (9, 9)).await;
    of_lengths(directory.path(), (9, 2), (9, 9)).await;
    let arguments =
        format!("-f lavfi -i testsrc2=s=320x180:r=25:d=0.04 -f lavfi -i sine=d=9 {FAST} -c:a aac");
    let clip = make(directory.path(), &arguments, "one.mp4");
    let made = transcode(&clip, &spec(r#""crf":30"#)).await.unwrap();
    check(&made, &[(320, 180)], 225, 25.0, Some(9.0));
    let file = transcode(&clip, &spec(r#""output_format":"mp4""#)).await.unwrap();
    assert_eq!(file.encoded.frames, 1, "a file plays as it is");
}

#[tokio::test]
async fn six_channels_become_two_and_none_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let tone = |amplitude: f64, hertz: u32| format!("{amplitude}*sin(2*PI*{hertz}*t)");
    let all: Vec<String> = (0..6).map(|channel| tone(0.4, 300 + 100 * channel)).collect();
    let voice: Vec<String> = (0..6).map(|channel| tone(if channel == 2 { 0.4 } else { 0.0 }, 440)).collect();
    for (name, channels, loud) in [("all.mp4", all, -25.0..-6.0), ("voice.mp4", voice, -25.0..-8.0)] {
        let sound = format!("aevalsrc={}:c=5.1:s=48000:d=4", channels.join("|"));
        let arguments =
            format!("-f lavfi -i testsrc2=s=320x180:r=25:d=4 -f lavfi -i {sound} {FAST} -c:a aac");
        let made = transcode(&make(directory.path(), &arguments, name), &spec(r#""crf":30"#)).await.unwrap();
        assert_eq!(made.probe.audio.as_ref().unwrap().channels, 6);
        check(&made, &[(320, 180)], 100, 25.0, Some(4.0));
        assert!(made.read("master.m3u8").contains("CHANNELS=\"2\""));
        let level = level(&made.file("audio.m3u8"));
        assert!(loud.contains(&level), "{name}: {level} dB");
    }
}

#[tokio::test]
async fn any_rate_and_number_of_channels_becomes_stereo_at_48_khz() {
    let directory = tempfile::tempdir().unwrap();
    for (name, sound) in [
        ("8khz.wav", "sine=r=8000:d=4"),
        ("96khz.flac", "sine=r=96000:d=4 -ac 2"),
        ("mono.mp3", "sine=r=44100:d=4 -ac 1"),
    ] {
        let clip = make(directory.path(), &format!("-f lavfi -i {sound}"), name);
        let made =
            transcode(&clip, &spec(r#""crf":30"#)).await.unwrap_or_else(|ended| panic!("{name}: {ended}"));
        let audio = made.package.outputs.audio.as_ref().unwrap();
        assert_eq!((audio.channels, audio.sample_rate), (2, 48_000), "{name}");
        assert_eq!(made.package.sound.as_ref().unwrap().timescale, 48_000, "{name}");
        check(&made, &[], 0, 25.0, Some(4.0));
        let level = level(&made.file("audio.m3u8"));
        assert!((-25.0..-15.0).contains(&level), "{name}: {level} dB");
    }
}

/// hls.js misses the end of a sound whose last segment is hardly there, and never comes to the end.
#[tokio::test]
async fn sound_that_ends_a_hair_after_a_cut_has_no_segment_of_a_hair() {
    let directory = tempfile::tempdir().unwrap();
    for seconds in ["4.001", "4.03", "4"] {
        let arguments = format!(
            "-f lavfi -i testsrc2=s=320x180:r=25:d=4 -f lavfi -i sine=d={seconds}:r=48000 {FAST} -c:a pcm_s16le"
        );
        let clip = make(directory.path(), &arguments, &format!("{seconds}.mkv"));
        let made = transcode(&clip, &spec(r#""segment_seconds":2"#)).await.unwrap();
        let sound = made.package.sound.as_ref().unwrap();
        assert_eq!(sound.segments.len(), 2, "{seconds}: {:?}", sound.segments);
        assert!(!made.file("seg_1_00003.m4s").exists());
        let kept = std::fs::metadata(made.file("seg_1_00002.m4s")).unwrap().len();
        assert_eq!(kept, sound.segments[1].bytes);
        let end = seconds.parse::<f64>().unwrap();
        assert!((sound.duration_s() - end).abs() < 0.022, "{seconds}: {}", sound.duration_s());
        check(&made, &[(320, 180)], 100, 25.0, Some(end));
        let reread = millrace_worker::package::track::read(made.directory.path(), 1).unwrap();
        assert_eq!(&reread, sound, "what is said of it is what it is");
    }
}

/// hls.js misses the end of a picture, too, whose last segment is no longer than what reordering adds: two frames.
#[tokio::test]
async fn a_picture_that_ends_a_hair_after_a_cut_has_no_segment_of_a_hair() {
    let directory = tempfile::tempdir().unwrap();
    for (frames, preset, segments) in
        [(101_u32, "veryfast", 2), (102, "veryfast", 2), (103, "veryfast", 3), (101, "ultrafast", 3)]
    {
        let seconds = f64::from(frames) / 25.0;
        let arguments = format!("-f lavfi -i testsrc2=s=854x480:r=25:d={seconds} {FAST}");
        let clip = make(directory.path(), &arguments, "hair.mp4");
        let fields = format!(r#""segment_seconds":2,"resolutions":["480p","360p"],"preset":"{preset}""#);
        let made = transcode(&clip, &spec(&fields)).await.unwrap();
        let name = format!("{frames} frames, {preset}");
        let pictures = &made.package.pictures;
        assert!(pictures.iter().all(|track| track.segments.len() == segments), "{name}: {pictures:?}");
        assert_eq!(made.file("seg_1_00003.m4s").exists(), segments == 3, "{name}");
        check(&made, &[(854, 480), (640, 360)], frames.into(), 25.0, None);
        for (index, track) in pictures.iter().enumerate() {
            let reread = millrace_worker::package::track::read(made.directory.path(), index).unwrap();
            assert_eq!(&reread, track, "{name}: what is said of it is what it is");
        }
    }
}

/// The means of a picture's three planes.
fn planes(input: &Path) -> Vec<f64> {
    let filter = "signalstats,metadata=print:file=-";
    let arguments =
        ["-nostdin", "-v", "error", "-i", input.to_str().unwrap(), "-map", "0:v:0", "-frames:v", "1"];
    let said = run("ffmpeg", &[&arguments[..], &["-vf", filter, "-f", "null", "-"]].concat());
    let of = |plane: &str| {
        let found =
            said.lines().find_map(|line| line.strip_prefix("lavfi.signalstats.")?.strip_prefix(plane));
        found.unwrap_or_else(|| panic!("{plane} in {said}")).parse().unwrap()
    };
    ["YAVG=", "UAVG=", "VAVG="].map(of).to_vec()
}

/// Players read it as BT.709 where it is HD, which the renditions say that they are, and as BT.601 else.
#[tokio::test]
async fn colours_without_a_name_are_read_as_players_read_them() {
    let directory = tempfile::tempdir().unwrap();
    for (size, kept) in [("1280x720", true), ("640x360", false)] {
        let arguments = format!(
            "-f lavfi -i color=0x1ea050:s={size}:r=25:d=1,format=yuv420p,setparams=colorspace=unknown {FAST}"
        );
        let clip = make(directory.path(), &arguments, "green.mp4");
        let made = transcode(&clip, &spec(r#""crf":18,"thumbnails":false"#)).await.unwrap();
        assert_eq!(made.probe.video.as_ref().unwrap().matrix, None);
        let (source, ours) = (planes(&clip), planes(&made.file("master.m3u8")));
        let off = source.iter().zip(&ours).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max);
        assert_eq!(off < 2.0, kept, "{size}: {source:?} became {ours:?}");
    }
}
