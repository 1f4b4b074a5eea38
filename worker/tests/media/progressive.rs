//! Plain files: picture and sound in step, the index in front, nothing of the source's own words.

use std::path::Path;
use std::time::Duration;

use millrace_wire::job::FailureCode;
use millrace_worker::failure::{Ended, Failure};
use millrace_worker::ffmpeg::{Ffmpeg, Settings};
use millrace_worker::package::PackagedFile;
use millrace_worker::package::track::Track;
use millrace_worker::progressive;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::clip::{FAST, ffmpeg, make, run, settings, talking};
use super::leftovers::{encoders, until};
use super::thumbnails::{Segments, stuck};

async fn copy(
    segments: &Segments,
    ffmpeg: &Ffmpeg,
    cancel: &CancellationToken,
) -> Result<Vec<PackagedFile>, Ended> {
    let pictures: Vec<(&str, &Track)> =
        segments.pictures.iter().map(|(name, track)| (name.as_str(), track)).collect();
    let (out, work) = (segments.out(), segments.work.path());
    progressive::make(ffmpeg, &pictures, segments.sound.as_ref(), out, work, cancel).await
}

async fn copied(segments: &Segments) -> Vec<PackagedFile> {
    let mut all = segments.published();
    let files = copy(segments, &ffmpeg().await, &CancellationToken::new()).await.unwrap();
    all.extend(files.iter().map(|file| file.name.clone()));
    all.sort();
    assert_eq!(segments.published(), all, "what is listed is there, and nothing else was added");
    assert!(segments.is_tidy(), "nothing is left where it worked");
    for file in &files {
        assert_eq!(std::fs::metadata(segments.made.file(&file.name)).unwrap().len(), file.bytes);
    }
    files
}

async fn failure(segments: &Segments) -> Failure {
    let before = segments.published();
    match copy(segments, &ffmpeg().await, &CancellationToken::new()).await {
        Err(Ended::Failed(failure)) => {
            assert!(segments.is_tidy());
            assert_eq!(segments.published(), before);
            failure
        }
        other => panic!("{other:?}"),
    }
}

/// What ffprobe says of a file.
fn seen(file: &Path) -> Value {
    let entries = "format:format_tags:stream:stream_tags:packet=stream_index,pts_time,flags";
    let path = file.to_str().unwrap();
    let json = run("ffprobe", &["-v", "error", "-of", "json", "-show_entries", entries, path]);
    serde_json::from_str(&json).unwrap()
}

/// Bytes before the first box of that kind.
fn position(file: &Path, kind: &[u8; 4]) -> usize {
    let bytes = std::fs::read(file).unwrap();
    let mut at = 0;
    while &bytes[at + 4..at + 8] != kind {
        at += u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    }
    at
}

/// Seconds at which each flash and each beep of a file begins.
fn flashes_and_beeps(file: &Path, rate: f64) -> (Vec<f64>, Vec<f64>) {
    const HERTZ: usize = 48_000;
    let directory = tempfile::tempdir().unwrap();
    let path = file.display();
    // No frame is added or dropped to fit the clock: the first one is at the first time, which is 0.
    let picture = format!(
        "-i {path} -an -fps_mode passthrough -vf scale=16:16:flags=area,format=gray,crop=1:1 -f rawvideo"
    );
    let picture = std::fs::read(make(directory.path(), &picture, "picture")).unwrap();
    let sound = format!("-i {path} -vn -ac 1 -ar {HERTZ} -f s16le");
    let sound = std::fs::read(make(directory.path(), &sound, "sound")).unwrap();
    let begins = |loud: Vec<bool>, quiet: usize, per_second: f64| {
        let mut last = None;
        let mut starts = Vec::new();
        for (index, _) in loud.iter().enumerate().filter(|(_, loud)| **loud) {
            if last.is_none_or(|last| index - last > quiet) {
                starts.push(index as f64 / per_second);
            }
            last = Some(index);
        }
        starts
    };
    let bright = picture.iter().map(|luma| *luma > 128).collect();
    let loud =
        sound.chunks_exact(2).map(|s| i16::from_le_bytes([s[0], s[1]]).unsigned_abs() > 4000).collect();
    (begins(bright, 2, rate), begins(loud, HERTZ / 2, HERTZ as f64))
}

#[tokio::test]
async fn flash_and_beep_stay_together_in_every_file() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = format!(
        "-f lavfi -i color=black:s=854x480:r=24:d=8,drawbox=c=white:t=fill:enable=lt(mod(n\\,24)\\,1) \
         -f lavfi -i aevalsrc=lt(mod(t\\,1)\\,0.05)*0.8*sin(2*PI*1000*t):s=44100:d=8 {FAST} -c:a aac \
         -metadata title=secret -metadata:s:v handler_name=secret -metadata:s:a language=deu"
    );
    let clip = make(directory.path(), &arguments, "flash.mp4");
    let segments = Segments::of(&clip, r#""segment_seconds":3"#).await;
    let files = copied(&segments).await;
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["480p.mp4", "360p.mp4"]);
    for file in &files {
        assert_eq!(file.content_type, "video/mp4");
        let path = segments.made.file(&file.name);
        assert!(position(&path, b"moov") < position(&path, b"mdat"));
        let (flashes, beeps) = flashes_and_beeps(&path, 24.0);
        assert_eq!(flashes, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "{}", file.name);
        assert_eq!(beeps.len(), 8, "{beeps:?}");
        for (flash, beep) in flashes.iter().zip(&beeps) {
            assert!((flash - beep).abs() < 0.005, "{}: {flash} {beep}", file.name);
        }
        let seen = seen(&path);
        assert!(!seen.to_string().contains("secret") && !seen.to_string().contains("Lavf"), "{seen}");
        let starts: Vec<&str> =
            seen["streams"].as_array().unwrap().iter().map(|s| s["start_time"].as_str().unwrap()).collect();
        assert_eq!(starts, ["0.000000", "0.000000"]);
        let pictures = seen["packets"].as_array().unwrap().iter().filter(|p| p["stream_index"] == 0);
        assert_eq!(pictures.count(), 192);
    }
}

#[tokio::test]
async fn sound_alone_is_a_file_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = format!(
        "-f lavfi -i testsrc2=s=320x180:r=25:d=5 -f lavfi -i \
         aevalsrc=lt(mod(t\\,1)\\,0.05)*0.8*sin(2*PI*1000*t):s=48000:d=5 {FAST} -c:a aac"
    );
    let clip = make(directory.path(), &arguments, "beeps.mp4");
    let mut segments = Segments::of(&clip, r#""preset":"ultrafast""#).await;
    segments.pictures.clear();
    let files = copied(&segments).await;
    let [file] = files.as_slice() else { panic!("{files:?}") };
    assert_eq!((file.name.as_str(), file.content_type), ("audio.m4a", "audio/mp4"));
    let path = segments.made.file(&file.name);
    assert!(position(&path, b"moov") < position(&path, b"mdat"));
    let directory = tempfile::tempdir().unwrap();
    let pcm = make(directory.path(), &format!("-i {} -ac 1 -f s16le", path.display()), "sound");
    let seconds = std::fs::metadata(pcm).unwrap().len() as f64 / 2.0 / 48_000.0;
    assert!((seconds - 5.0).abs() < 0.03, "the run-up is not heard: {seconds}");
    assert_eq!(seen(&path)["streams"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_silent_frame_a_slide_show_and_sound_that_ends_early_are_files() {
    let cases = [
        ("-f lavfi -i testsrc2=s=320x180:r=25:d=0.04", 1, 1),
        ("-f lavfi -i testsrc2=s=16x16:r=1/10:d=40", 4, 1),
        ("-f lavfi -i testsrc2=s=320x180:r=30000/1001:d=6 -f lavfi -i sine=d=1.5:r=44100", 180, 2),
        ("-f lavfi -i testsrc2=s=320x180:r=25:d=2 -f lavfi -i sine=d=9:r=48000", 225, 2),
    ];
    for (source, frames, streams) in cases {
        let directory = tempfile::tempdir().unwrap();
        let clip = make(directory.path(), &format!("{source} {FAST} -c:a aac"), "clip.mkv");
        let segments = Segments::of(&clip, r#""preset":"ultrafast""#).await;
        let files = copied(&segments).await;
        let seen = seen(&segments.made.file(&files[0].name));
        assert_eq!(seen["streams"].as_array().unwrap().len(), streams, "{source}");
        let pictures = seen["packets"].as_array().unwrap().iter().filter(|p| p["stream_index"] == 0);
        let found = pictures.count() as u64;
        assert!(
            found.abs_diff(frames) <= 1 && found == segments.pictures[0].1.samples(),
            "{source}: {found}"
        );
    }
}

#[tokio::test]
async fn a_file_that_is_not_its_tracks_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "5");
    let mut segments = Segments::of(&clip, r#""preset":"ultrafast","segment_seconds":2"#).await;
    segments.pictures[0].1.segments[1].samples += 1;
    let failed = failure(&segments).await;
    assert_eq!(failed.code, FailureCode::VerifyFailed);
    assert!(failed.log.contains("125 samples, not 126"), "{failed}");
    segments.pictures[0].1.segments[1].samples -= 1;
    segments.sound.as_mut().unwrap().skip = 0;
    let failed = failure(&segments).await;
    assert!(failed.code == FailureCode::VerifyFailed && failed.log.contains("begins by"), "{failed}");
    segments.sound = None;
    std::fs::remove_file(segments.made.file("seg_0_00002.m4s")).unwrap();
    assert_eq!(failure(&segments).await.code, FailureCode::ScratchUnavailable);
    std::fs::write(segments.made.file("seg_0_00002.m4s"), vec![0; 50_000]).unwrap();
    let failed = failure(&segments).await;
    let codes = [FailureCode::EncodeFailed, FailureCode::VerifyFailed];
    assert!(codes.contains(&failed.code), "{failed}");
}

#[tokio::test]
async fn a_copy_ends_when_told_or_when_ffmpeg_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "2");
    let segments = Segments::of(&clip, r#""preset":"ultrafast""#).await;
    let before = segments.published();

    let (_script, ffmpeg) = stuck("faststart", settings()).await;
    let cancel = CancellationToken::new();
    let (ended, ()) = tokio::join!(copy(&segments, &ffmpeg, &cancel), async {
        until("ffmpeg runs", || encoders(segments.work.path()).first().copied()).await;
        assert!(!segments.is_tidy(), "it was at work");
        cancel.cancel();
    });
    assert_eq!(ended, Err(Ended::Cancelled));
    assert!(encoders(segments.work.path()).is_empty() && segments.is_tidy());
    assert_eq!(copy(&segments, &ffmpeg, &cancel).await, Err(Ended::Cancelled), "and does not begin after");

    let timeouts = Settings { stall_timeout: Duration::from_secs(1), ..settings() };
    let (_script, ffmpeg) = stuck("faststart", timeouts).await;
    let Err(Ended::Failed(failure)) = copy(&segments, &ffmpeg, &CancellationToken::new()).await else {
        panic!("it ended")
    };
    assert_eq!(failure.code, FailureCode::EncodeStalled, "{failure}");
    assert!(encoders(segments.work.path()).is_empty() && segments.is_tidy());
    assert_eq!(segments.published(), before);
}

#[tokio::test]
async fn a_dropped_copy_leaves_neither_process_nor_file() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "2");
    let segments = Segments::of(&clip, r#""preset":"ultrafast""#).await;
    let (_script, ffmpeg) = stuck("faststart", settings()).await;
    let never = CancellationToken::new();
    tokio::select! {
        ended = copy(&segments, &ffmpeg, &never) => panic!("{ended:?}"),
        _ = until("ffmpeg runs", || encoders(segments.work.path()).first().copied()) => {}
    }
    assert!(segments.is_tidy());
    until("ffmpeg is gone", || encoders(segments.work.path()).is_empty().then_some(())).await;
}
