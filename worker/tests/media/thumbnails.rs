//! Posters and tiles: of the right moment, the right colour and the right size, whatever the shape of the source.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_wire::job::FailureCode;
use millrace_worker::failure::Ended;
use millrace_worker::ffmpeg::{Ffmpeg, Settings};
use millrace_worker::package::track::{self, Track};
use millrace_worker::thumbnails::{self, Thumbnails};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::clip::{FAST, Made, ffmpeg, make, run, settings, spec, talking, transcode};
use super::leftovers::{encoders, until};

/// A clip's finished segments, and a place to work.
pub(super) struct Segments {
    pub(super) made: Made,
    /// Names and tracks, the highest first.
    pub(super) pictures: Vec<(String, Track)>,
    pub(super) sound: Option<Track>,
    pub(super) work: TempDir,
}

impl Segments {
    /// Encodes a clip with the crate's own ladder.
    pub(super) async fn of(clip: &Path, fields: &str) -> Self {
        let made = transcode(clip, &spec(fields)).await.unwrap();
        let read = |index| track::read(made.directory.path(), index).unwrap();
        let names = made.plan.rungs().iter().map(|rung| rung.name.clone());
        let pictures: Vec<_> = names.enumerate().map(|(index, name)| (name, read(index))).collect();
        let sound = made.plan.audio.as_ref().map(|_| read(pictures.len()));
        Self { made, pictures, sound, work: tempfile::tempdir().unwrap() }
    }

    pub(super) fn out(&self) -> &Path {
        self.made.directory.path()
    }

    /// Everything in `out`, sorted.
    pub(super) fn published(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.out()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(super) fn is_tidy(&self) -> bool {
        std::fs::read_dir(self.work.path()).unwrap().next().is_none()
    }

    async fn stills(&self, ffmpeg: &Ffmpeg, cancel: &CancellationToken) -> Result<Thumbnails, Ended> {
        let pictures: Vec<&Track> = self.pictures.iter().map(|(_, track)| track).collect();
        thumbnails::make(ffmpeg, &pictures, self.out(), self.work.path(), cancel).await
    }

    async fn thumbnails(&self) -> Thumbnails {
        let before = self.published();
        let made = self.stills(&ffmpeg().await, &CancellationToken::new()).await.unwrap();
        let mut all = before;
        all.extend(made.files.iter().map(|file| file.name.clone()));
        all.sort();
        assert_eq!(self.published(), all, "what is listed is there, and nothing else was added");
        assert!(self.is_tidy(), "nothing is left where it worked");
        for file in &made.files {
            let bytes = std::fs::metadata(self.made.file(&file.name)).unwrap().len();
            assert_eq!(bytes, file.bytes, "{}", file.name);
            let image = file.name.ends_with(".jpg");
            assert_eq!(file.content_type, if image { "image/jpeg" } else { "text/vtt" });
        }
        made
    }

    fn cues(&self) -> Vec<Cue> {
        let text = self.made.read("thumbnails.vtt");
        let mut blocks = text.split("\n\n");
        assert_eq!(blocks.next(), Some("WEBVTT"));
        let cues: Vec<Cue> = blocks.map(Cue::read).collect();
        assert_eq!(cues[0].start, 0.0);
        assert!(cues.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].start < pair[0].end));
        let ends = self.pictures[0].1.duration_s();
        assert!((cues.last().unwrap().end - ends).abs() < 0.001, "the last ends with the picture, at {ends}");
        cues
    }

    /// The colour in the middle of a cue's tile.
    fn tile(&self, cue: &Cue) -> [u8; 3] {
        let (x, y, width, height) = cue.area;
        middle(&self.made.file(&cue.sheet), &format!("crop={width}:{height}:{x}:{y}:exact=1,"))
    }
}

#[derive(Debug)]
struct Cue {
    start: f64,
    end: f64,
    sheet: String,
    area: (u32, u32, u32, u32),
}

impl Cue {
    fn read(block: &str) -> Self {
        let (times, target) = block.trim_end().split_once('\n').unwrap();
        let seconds = |text: &str| {
            assert_eq!(text.len(), 12, "{text}");
            text.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
        };
        let (start, end) = times.split_once(" --> ").unwrap();
        let (sheet, area) = target.split_once("#xywh=").unwrap();
        let area: Vec<u32> = area.split(',').map(|side| side.parse().unwrap()).collect();
        let area = (area[0], area[1], area[2], area[3]);
        Self { start: seconds(start), end: seconds(end), sheet: sheet.to_owned(), area }
    }
}

/// The colour in the middle of a picture, after a filter.
fn middle(image: &Path, filter: &str) -> [u8; 3] {
    let directory = tempfile::tempdir().unwrap();
    let filter = format!("{filter}format=rgb24,crop=1:1:iw/2:ih/2");
    let arguments = format!("-i {} -vf {filter} -frames:v 1 -f rawvideo", image.display());
    std::fs::read(make(directory.path(), &arguments, "pixel")).unwrap().try_into().unwrap()
}

fn near(found: [u8; 3], wanted: [u8; 3], levels: u8) -> bool {
    found.iter().zip(wanted).all(|(one, other)| one.abs_diff(other) <= levels)
}

fn size(image: &Path) -> String {
    let entries = ["-v", "error", "-show_entries", "stream=width,height,pix_fmt,sample_aspect_ratio"];
    let image = image.to_str().unwrap();
    run("ffprobe", &[&entries[..], &["-of", "csv=p=0", image]].concat()).trim().to_owned()
}

/// An ffmpeg that never ends once it is asked for what `when` names; before that it is the real one.
pub(super) async fn stuck(when: &str, settings: Settings) -> (TempDir, Ffmpeg) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("ffmpeg");
    let script = format!(
        "#!/bin/bash\ncase \"$*\" in *{when}*) exec -a ffmpeg /usr/bin/perl -e 'sleep 600' -- \"$@\";; esac\n\
         exec /usr/bin/env ffmpeg \"$@\"\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ffmpeg = Ffmpeg::start(Settings { ffmpeg: path, ..settings }).await.unwrap();
    (directory, ffmpeg)
}

#[tokio::test]
async fn a_ladder_gets_a_poster_tiles_and_their_index() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "854x480", "30000/1001", "9");
    let segments = Segments::of(&clip, r#""preset":"ultrafast""#).await;
    assert_eq!(segments.pictures.len(), 2);
    let made = segments.thumbnails().await;
    let names: Vec<&str> = made.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["poster.jpg", "sprite_001.jpg", "thumbnails.vtt"]);
    assert_eq!(size(&segments.made.file("poster.jpg")), "854,480,1:1,yuvj420p", "the highest below 1280");
    assert_eq!(size(&segments.made.file("sprite_001.jpg")), "800,90,1:1,yuvj420p");
    let starts: Vec<f64> = segments.cues().iter().map(|cue| cue.start).collect();
    assert_eq!(starts, [0.0, 2.002, 4.004, 6.006, 8.008]);
    assert!(made.cpu > Duration::ZERO);
}

#[tokio::test]
async fn every_tile_shows_its_moment_in_its_colour() {
    let directory = tempfile::tempdir().unwrap();
    let colours = [0xc8_3c28_u32, 0x1e_a050, 0x28_46d2, 0xe6_d232, 0x82_8282, 0xff_ffff, 0x10_1010];
    let sources: Vec<String> =
        colours.iter().map(|c| format!("-f lavfi -i color=0x{c:06x}:s=320x180:r=24:d=2 ")).collect();
    let arguments = format!("{} -filter_complex concat=n={} {FAST}", sources.concat(), colours.len());
    let clip = make(directory.path(), &arguments, "colours.mp4");
    let segments = Segments::of(&clip, r#""crf":18"#).await;
    segments.thumbnails().await;
    let cues = segments.cues();
    assert_eq!(cues.len(), colours.len());
    for (cue, colour) in cues.iter().zip(colours) {
        let [_, red, green, blue] = colour.to_be_bytes();
        let found = segments.tile(cue);
        assert!(near(found, [red, green, blue], 6), "{cue:?}: {found:?}, not {colour:06x}");
    }
    let poster = middle(&segments.made.file("poster.jpg"), "");
    let of = |colour: u32| near(poster, colour.to_be_bytes()[1..].try_into().unwrap(), 6);
    assert!(colours.into_iter().any(of), "the poster is one of them: {poster:?}");
}

#[tokio::test]
async fn three_hours_fit_on_three_sheets_and_stay_in_step() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = format!("-f lavfi -i color=white:s=64x36:r=1:d=10800,fade=t=in:st=0:d=10800 {FAST}");
    let clip = make(directory.path(), &arguments, "dawn.mp4");
    let segments = Segments::of(&clip, r#""preset":"ultrafast","crf":18"#).await;
    let made = segments.thumbnails().await;
    let cues = segments.cues();
    assert_eq!(cues.len(), made.tiles);
    assert!((150..=230).contains(&cues.len()), "{}", cues.len());
    assert_eq!(made.files.len(), 2 + cues.len().div_ceil(100));
    for cue in cues.iter().step_by(23).chain(cues.last()) {
        let want = (cue.start / 10_800.0 * 255.0) as u8;
        let found = segments.tile(cue);
        assert!(near(found, [want; 3], 6), "{cue:?}: {found:?}, not {want}");
    }
}

#[tokio::test]
async fn a_poster_is_black_only_when_everything_is() {
    let directory = tempfile::tempdir().unwrap();
    let dark = "-f lavfi -i color=black:s=320x180:r=24:d=7";
    let arguments =
        format!("{dark} -f lavfi -i color=0x3c8cc8:s=320x180:r=24:d=3 -filter_complex concat=n=2 {FAST}");
    let clip = make(directory.path(), &arguments, "late.mp4");
    let segments = Segments::of(&clip, r#""segment_seconds":2"#).await;
    segments.thumbnails().await;
    let found = middle(&segments.made.file("poster.jpg"), "");
    assert!(near(found, [0x3c, 0x8c, 0xc8], 6), "{found:?}");
    let black = make(directory.path(), &format!("{dark} {FAST}"), "black.mp4");
    let segments = Segments::of(&black, r#""segment_seconds":2"#).await;
    segments.thumbnails().await;
    assert!(near(middle(&segments.made.file("poster.jpg"), ""), [0; 3], 3));
}

#[tokio::test]
async fn any_shape_and_length_has_tiles() {
    let cases = [
        ("one frame", "320x180:r=25:d=0.04", "320,180", "160,90", 1),
        ("a dot", "16x16:r=10:d=1", "16,16", "16,16", 1),
        ("a tower", "16x2000:r=5:d=3", "10,1280", "4,160", 2),
        ("a ribbon", "4000x16:r=5:d=1", "1280,6", "160,2", 1),
        ("upright", "180x320:r=25:d=1", "180,320", "90,160", 1),
        ("a frame in ten seconds", "320x180:r=1/10:d=40", "320,180", "640,90", 4),
    ];
    for (name, source, poster, sheet, tiles) in cases {
        let directory = tempfile::tempdir().unwrap();
        let clip = make(directory.path(), &format!("-f lavfi -i testsrc2=s={source} {FAST}"), "clip.mkv");
        let segments = Segments::of(&clip, r#""preset":"ultrafast","resolutions":["1080p"]"#).await;
        let made = segments.thumbnails().await;
        assert_eq!((made.tiles, segments.cues().len()), (tiles, tiles), "{name}");
        let size = |file| size(&segments.made.file(file));
        assert!(
            size("poster.jpg").starts_with(&format!("{poster},1:1,yuvj420p")),
            "{name}: {}",
            size("poster.jpg")
        );
        let found = size("sprite_001.jpg");
        assert!(found.starts_with(&format!("{sheet},1:1,yuvj420p")), "{name}: {found}");
    }
}

#[tokio::test]
async fn thumbnails_end_when_told_or_when_ffmpeg_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "2");
    let segments = Segments::of(&clip, r#""preset":"ultrafast""#).await;
    let before = segments.published();

    let (_script, ffmpeg) = stuck("skip_frame", settings()).await;
    let cancel = CancellationToken::new();
    let (ended, ()) = tokio::join!(segments.stills(&ffmpeg, &cancel), async {
        until("ffmpeg runs", || encoders(segments.work.path()).first().copied()).await;
        cancel.cancel();
    });
    assert_eq!(ended, Err(Ended::Cancelled));
    assert!(encoders(segments.work.path()).is_empty() && segments.is_tidy());

    let timeouts = Settings { stall_timeout: Duration::from_secs(1), ..settings() };
    let (_script, ffmpeg) = stuck("skip_frame", timeouts).await;
    let Err(Ended::Failed(failure)) = segments.stills(&ffmpeg, &CancellationToken::new()).await else {
        panic!("it ended")
    };
    assert_eq!(failure.code, FailureCode::EncodeStalled, "{failure}");
    assert!(encoders(segments.work.path()).is_empty() && segments.is_tidy());
    assert_eq!(segments.published(), before);
}

#[tokio::test]
async fn segments_that_hold_no_picture_fail() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "2");
    let segments = Segments::of(&clip, r#""preset":"ultrafast""#).await;
    for segment in &segments.pictures[0].1.segments {
        std::fs::write(segments.made.file(&segment.name), vec![7; segment.bytes as usize]).unwrap();
    }
    let Err(Ended::Failed(failure)) = segments.stills(&ffmpeg().await, &CancellationToken::new()).await
    else {
        panic!("it passed")
    };
    let codes = [FailureCode::EncodeFailed, FailureCode::VerifyFailed];
    assert!(codes.contains(&failure.code), "{failure}");
    assert!(segments.is_tidy());
}
