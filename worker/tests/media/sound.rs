//! Sound alone: every kind of it becomes a ladder of one, and damage is told or refused.

use std::path::{Path, PathBuf};

use millrace_wire::job::FailureCode;

use super::clip::{Made, code, make, probe, refused, run, spec, talking, transcode};

/// A tone of that length as a file of that name.
fn tone(directory: &Path, seconds: f64, options: &str, name: &str) -> PathBuf {
    make(directory, &format!("-f lavfi -i sine=d={seconds}:r=44100 {options}"), name)
}

/// Seconds and mean level in dB of what a player hears.
fn heard(made: &Made) -> (f64, f64) {
    let master = made.file("master.m3u8");
    let show = ["-v", "error", "-of", "csv=p=0", "-show_entries", "packet=pts_time,duration_time,flags"];
    let packets = run("ffprobe", &[&show[..], &[master.to_str().unwrap()]].concat());
    let ends = packets.lines().filter(|line| !line.contains('D')).filter_map(|line| {
        let mut fields = line.split(',').map(str::parse::<f64>);
        Some(fields.next()?.ok()? + fields.next()?.ok()?)
    });
    (ends.fold(0.0, f64::max), level(&master))
}

/// Mean level of the sound in dB, full scale being 0.
pub(crate) fn level(path: &Path) -> f64 {
    let filter = "astats=measure_perchannel=none,ametadata=print:key=lavfi.astats.Overall.RMS_level:file=-";
    let filter = filter.replace("astats=", "astats=metadata=1:");
    let arguments =
        ["-nostdin", "-v", "error", "-i", path.to_str().unwrap(), "-vn", "-af", &filter, "-f", "null", "-"];
    let said = run("ffmpeg", &arguments);
    // The last one is of the whole.
    let last = said.lines().filter_map(|line| line.split_once("RMS_level=")).next_back();
    last.unwrap_or_else(|| panic!("{said}")).1.parse().unwrap()
}

fn check(made: &Made, seconds: f64) {
    assert!(made.plan.picture.is_none() && made.encoded.frames == 0, "{:?}", made.plan);
    let (length, level) = heard(made);
    assert!((length - seconds).abs() < 0.1, "{length} s, not {seconds}");
    assert!((-25.0..-15.0).contains(&level), "ffmpeg's sine is at -21 dB: {level}");
    let master = made.read("master.m3u8");
    assert!(master.contains("CODECS=\"mp4a.40.2\"\naudio.m3u8\n"), "{master}");
    assert!(!master.contains("RESOLUTION") && !master.contains("EXT-X-MEDIA:"), "{master}");
    let last = made.progress.last().unwrap();
    assert!(last.ended && (last.media.as_secs_f64() - seconds).abs() < 0.1, "{last:?}");
    assert!(made.package.warnings.is_empty() && made.encoded.warnings.is_empty(), "{:?}", made.package);
}

async fn check_kinds(kinds: &[(&str, &str)]) {
    let directory = tempfile::tempdir().unwrap();
    for (name, options) in kinds {
        let clip = tone(directory.path(), 5.0, options, name);
        let made = transcode(&clip, &spec(r#""segment_seconds":2"#)).await;
        check(&made.unwrap_or_else(|ended| panic!("{name}: {ended}")), 5.0);
    }
}

#[tokio::test]
async fn bare_sound_becomes_a_stream() {
    check_kinds(&[
        ("a.mp3", "-c:a libmp3lame"),
        ("bare.mp3", "-c:a libmp3lame -write_xing 0 -id3v2_version 0"),
        ("a.aac", "-c:a aac"),
        ("a.wav", "-c:a pcm_s16le"),
        ("a.flac", "-c:a flac"),
    ])
    .await;
}

#[tokio::test]
async fn sound_in_a_container_becomes_a_stream() {
    check_kinds(&[
        ("a.m4a", "-c:a aac"),
        ("a.ogg", "-c:a libvorbis"),
        ("a.opus", "-c:a libopus"),
        ("a.mka", "-c:a libopus"),
    ])
    .await;
}

#[tokio::test]
async fn a_very_short_sound_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["short.mp3", "short.m4a", "short.ogg", "short.flac"] {
        let made = transcode(&tone(directory.path(), 0.5, "", name), &spec(r#""crf":30"#)).await;
        check(&made.unwrap_or_else(|ended| panic!("{name}: {ended}")), 0.5);
    }
}

#[tokio::test]
async fn a_cover_is_no_picture() {
    let directory = tempfile::tempdir().unwrap();
    let cover =
        "-f lavfi -i color=s=64x64:d=0.04 -map 0 -map 1 -c:v mjpeg -frames:v 1 -disposition:v:0 attached_pic";
    for (name, codec) in [("cover.m4a", "aac"), ("cover.mp3", "libmp3lame"), ("cover.flac", "flac")] {
        let clip = tone(directory.path(), 3.0, &format!("{cover} -c:a {codec}"), name);
        let made = transcode(&clip, &spec(r#""crf":30"#)).await;
        check(&made.unwrap_or_else(|ended| panic!("{name}: {ended}")), 3.0);
    }
}

#[tokio::test]
async fn sound_alone_can_be_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "3");
    let made = transcode(&clip, &spec(r#""output_format":"audio""#)).await.unwrap();
    assert!(made.probe.video.is_some() && made.plan.picture.is_none(), "{:?}", made.plan);
    assert!(made.encoded.cpu.as_secs_f64() < 2.0, "not a frame is decoded: {:?}", made.encoded);
    let silent = make(directory.path(), "-f lavfi -i testsrc2=s=320x180:d=1", "silent.mp4");
    let failure = code(transcode(&silent, &spec(r#""output_format":"audio""#)).await);
    assert_eq!(failure, FailureCode::SourceNoAudio);
}

#[tokio::test]
async fn sound_that_was_cut_is_truncated() {
    let directory = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("cut.mp3", "-c:a libmp3lame"),
        ("cut.m4a", "-c:a aac -movflags +faststart"),
        ("cut.flac", "-c:a flac"),
        ("cut.mka", "-c:a libopus"),
    ] {
        let whole = tone(directory.path(), 20.0, options, name);
        assert!(probe(&whole).await.is_ok(), "{name}");
        let content = std::fs::read(&whole).unwrap();
        std::fs::write(&whole, &content[..content.len() * 6 / 10]).unwrap();
        let failure = refused(&whole).await;
        assert_eq!(failure.code, FailureCode::SourceTruncated, "{name}: {failure}");
    }
}

/// Twenty seconds of sound whose bytes from `from` to `to` (shares of the file) are overwritten.
fn damage(directory: &Path, from: f64, to: f64) -> PathBuf {
    let path = tone(directory, 20.0, "-c:a aac", "damaged.m4a");
    let mut content = std::fs::read(&path).unwrap();
    let length = content.len() as f64;
    content[(length * from) as usize..(length * to) as usize].fill(0xff);
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn much_damage_fails_and_a_little_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let much = damage(directory.path(), 0.4, 0.6);
    assert_eq!(code(transcode(&much, &spec(r#""crf":30"#)).await), FailureCode::SourceDamaged);
    let little = damage(directory.path(), 0.5, 0.502);
    let made = transcode(&little, &spec(r#""crf":30"#)).await.unwrap();
    assert!((1..=4).contains(&made.encoded.lost_frames), "{:?}", made.encoded);
    assert!(made.encoded.warnings[0].contains("packets of sound could not be decoded"), "{:?}", made.encoded);
    assert!((heard(&made).0 - 20.0).abs() < 0.2, "silence stands where it was");
    let strict = transcode(&little, &spec(r#""strict":true"#)).await;
    assert_eq!(code(strict), FailureCode::SourceDamaged);
}
