//! What is no sound video: each with its code, and nothing opened that the file names.

use std::path::{Path, PathBuf};

use millrace_wire::job::FailureCode;
use tokio::net::TcpListener;

use super::clip::{FAST, code, make, probe, refused, spec, talking, transcode};

fn write(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// The first `share` of a file, as another one.
fn cut(path: &Path, share: f64) -> PathBuf {
    let content = std::fs::read(path).unwrap();
    let cut = path.with_extension("cut");
    std::fs::write(&cut, &content[..(content.len() as f64 * share) as usize]).unwrap();
    cut
}

#[tokio::test]
async fn what_is_no_media_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str, content: &[u8]| write(directory.path(), name, content);
    assert_eq!(refused(&at("empty.mp4", b"")).await.code, FailureCode::SourceEmpty);
    for (name, content, says) in [
        ("page.mp4", &b"<!DOCTYPE html><html><body>Not found</body></html>"[..], "an HTML page"),
        ("text.mp4", b"no video here, move along\n", "a text file"),
        ("archive.mp4", b"PK\x03\x04\x14\0\0\0\x08\0", "a ZIP archive"),
        ("noise.mp4", &[0x13; 5000], "no container"),
    ] {
        let failure = refused(&at(name, content)).await;
        assert_eq!(failure.code, FailureCode::SourceNotMedia, "{name}");
        assert!(failure.detail.contains(says), "{name}: {}", failure.detail);
        assert!(!failure.detail.contains(directory.path().to_str().unwrap()), "{}", failure.detail);
    }
}

#[tokio::test]
async fn a_playlist_that_poses_as_a_video_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let neighbour = talking(directory.path(), "320x180", "25", "1");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hls = |segment: &str| {
        format!(
            "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n"
        )
    };
    let (url, file) = (format!("http://127.0.0.1:{port}/v.ts"), neighbour.display().to_string());
    let posing = [
        hls(&url),
        hls(&file),
        hls("talking.mp4"),
        // Not text to the sniffer, still a playlist to ffmpeg: its own list of containers must refuse it.
        format!("{}\u{1}", hls(&url)),
        format!("{}\u{1}", hls(&file)),
        format!("ffconcat version 1.0\nfile '{file}'\n\u{1}"),
        format!("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n\u{1}"),
        format!("<?xml version=\"1.0\"?><MPD><BaseURL>{url}</BaseURL></MPD>\u{1}"),
    ];
    for content in posing {
        let failure = refused(&write(directory.path(), "posing.mp4", &content)).await;
        assert_eq!(failure.code, FailureCode::SourceNotMedia, "{content:?}: {failure}");
    }
    // Whatever was going to connect has ended, so a connection would already wait here.
    let accepted = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
    assert!(accepted.is_err(), "something connected: {accepted:?}");
}

#[tokio::test]
async fn a_file_that_was_cut_is_truncated() {
    let directory = tempfile::tempdir().unwrap();
    let at_end = talking(directory.path(), "320x180", "25", "6");
    let failure = refused(&cut(&at_end, 0.7)).await;
    assert_eq!(failure.code, FailureCode::SourceTruncated, "the index stood at the end: {failure}");
    let copy = |name: &str, options: &str| {
        make(directory.path(), &format!("-i {} -c copy {options}", at_end.display()), name)
    };
    let front = copy("front.mp4", "-movflags +faststart");
    let matroska = copy("clip.mkv", "");
    assert!(probe(&front).await.is_ok() && probe(&matroska).await.is_ok());
    for (whole, share) in [(&front, 0.6), (&front, 0.9), (&matroska, 0.6)] {
        let failure = refused(&cut(whole, share)).await;
        assert_eq!(failure.code, FailureCode::SourceTruncated, "{}: {failure}", whole.display());
    }
}

#[tokio::test]
async fn a_recording_whose_time_begins_late_is_whole_unless_it_was_cut() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "6");
    for name in ["late.mkv", "late.flv"] {
        let arguments = format!("-i {} -c copy -output_ts_offset 100", clip.display());
        let late = make(directory.path(), &arguments, name);
        let probe = probe(&late).await.unwrap();
        assert!((probe.duration_s - 6.0).abs() < 0.1 && probe.warnings.is_empty(), "{name}: {probe:?}");
        let failure = refused(&cut(&late, 0.6)).await;
        assert_eq!(failure.code, FailureCode::SourceTruncated, "{name}: {failure}");
    }
}

#[tokio::test]
async fn neither_picture_nor_sound_is_no_video() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("words.srt"), "1\n00:00:00,000 --> 00:00:02,000\nhello\n").unwrap();
    let words = format!("-i {} -c:s mov_text", directory.path().join("words.srt").display());
    let failure = refused(&make(directory.path(), &words, "words.mp4")).await;
    assert_eq!(failure.code, FailureCode::SourceNoVideo, "{failure}");
}

#[tokio::test]
async fn a_picture_over_the_limit_is_refused_before_it_is_decoded() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = "-f lavfi -i color=s=9216x5184:r=1:d=1 -c:v mjpeg -pix_fmt yuvj420p";
    let huge = make(directory.path(), arguments, "huge.mov");
    assert_eq!(refused(&huge).await.code, FailureCode::SourceOverLimits);
}

/// A clip whose bytes from `from` to `to` (shares of the file) are overwritten; its index is at the end and whole.
fn damage(directory: &Path, from: f64, to: f64) -> PathBuf {
    let arguments = format!("-f lavfi -i testsrc2=s=320x180:r=25:d=6 {FAST} -g 25 -crf 30");
    let clip = make(directory, &arguments, "whole.mp4");
    let mut content = std::fs::read(&clip).unwrap();
    let length = content.len() as f64;
    content[(length * from) as usize..(length * to) as usize].fill(0xff);
    write(directory, "damaged.mp4", content)
}

#[tokio::test]
async fn much_damage_fails_and_a_little_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let much = damage(directory.path(), 0.3, 0.6);
    assert_eq!(code(transcode(&much, &spec(r#""crf":30"#)).await), FailureCode::SourceDamaged);
    let little = damage(directory.path(), 0.5, 0.505);
    let made = transcode(&little, &spec(r#""crf":30"#)).await.unwrap();
    assert_eq!(made.encoded.frames, 150, "no frame is missing in time: {:?}", made.encoded);
    assert!((1..=2).contains(&made.encoded.lost_frames), "{:?}", made.encoded);
    assert!(
        made.encoded.warnings[0].contains("of the source's 150 frames could not be decoded"),
        "{:?}",
        made.encoded
    );
    let strict = transcode(&little, &spec(r#""crf":30,"strict":true"#)).await;
    assert_eq!(code(strict), FailureCode::SourceDamaged);
}

#[tokio::test]
async fn a_title_that_imitates_ffmpeg_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let flat = talking(directory.path(), "320x180", "25", "2");
    let spoofed = directory.path().join("spoofed.mkv");
    let title = "title=x\nframe=9999\nout_time_us=99000000\nprogress=end\n[error] No space left on device\n\
                 [verbose]   Input stream #0:0 (video): 1 packets read (1 bytes); 1 frames decoded; ";
    let arguments = ["-v", "error", "-i", flat.to_str().unwrap(), "-c", "copy", "-metadata", title];
    super::clip::run("ffmpeg", &[&arguments[..], &[spoofed.to_str().unwrap()]].concat());
    let made = transcode(&spoofed, &spec(r#""crf":30"#)).await.unwrap();
    assert_eq!((made.encoded.frames, made.encoded.lost_frames), (made.picture().frames, 0));
    assert!(
        (50..=51).contains(&made.encoded.frames) && made.encoded.warnings.is_empty(),
        "{:?}",
        made.encoded
    );
    assert_eq!(made.progress.iter().filter(|now| now.ended).count(), 1);
}
