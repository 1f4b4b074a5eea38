//! What comes out plays: ffprobe reads every rendition through the multivariant playlist and through the DASH manifest.

use std::collections::BTreeMap;

use serde_json::Value;

use super::clip::{FAST, Made, make, run, segments, spec, talking, transcode};

/// One stream as a player sees it through a manifest.
#[derive(Debug, Default)]
struct Seen {
    kind: String,
    size: (u64, u64),
    aspect: String,
    rotated: bool,
    frames: u64,
    keys: Vec<f64>,
    start: f64,
    end: f64,
}

fn play(made: &Made, manifest: &str) -> Vec<Seen> {
    let manifest = made.file(manifest);
    let entries = "packet=stream_index,pts_time,duration_time,flags:\
                   stream=index,codec_type,width,height,sample_aspect_ratio:stream_side_data=rotation";
    let json =
        run("ffprobe", &["-v", "error", "-of", "json", "-show_entries", entries, manifest.to_str().unwrap()]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
    for stream in json["streams"].as_array().unwrap() {
        let one = seen.entry(stream["index"].as_u64().unwrap()).or_default();
        one.kind = stream["codec_type"].as_str().unwrap().to_owned();
        one.size = (stream["width"].as_u64().unwrap_or(0), stream["height"].as_u64().unwrap_or(0));
        one.aspect = stream["sample_aspect_ratio"].as_str().unwrap_or("").to_owned();
        one.rotated = stream["side_data_list"].to_string().contains("rotation");
        (one.start, one.end) = (f64::MAX, 0.0);
    }
    for packet in json["packets"].as_array().unwrap() {
        let one = seen.get_mut(&packet["stream_index"].as_u64().unwrap()).unwrap();
        let number = |key: &str| packet[key].as_str().unwrap().parse::<f64>().unwrap();
        let (pts, flags) = (number("pts_time"), packet["flags"].as_str().unwrap());
        if flags.contains('D') {
            continue;
        }
        one.frames += 1;
        one.start = one.start.min(pts);
        one.end = one.end.max(pts + packet["duration_time"].as_str().map_or(0.0, |d| d.parse().unwrap()));
        if flags.contains('K') {
            one.keys.push(pts);
        }
    }
    let mut seen: Vec<Seen> = seen.into_values().collect();
    seen.sort_by(|a, b| b.kind.cmp(&a.kind).then(b.size.1.cmp(&a.size.1)));
    seen
}

/// The value of an attribute in a `#EXT-X-STREAM-INF` line.
fn attribute(line: &str, name: &str) -> f64 {
    let value = line.split([',', ':']).find_map(|part| part.strip_prefix(&format!("{name}=")));
    value.unwrap_or_else(|| panic!("{name} in {line}")).parse().unwrap()
}

/// Checks everything that must hold for any clip; `frames` of `rate` are what the source shows.
pub(crate) fn check(made: &Made, sizes: &[(u64, u64)], frames: u64, rate: f64, sound_s: Option<f64>) {
    check_streams(&play(made, "master.m3u8"), sizes, frames, rate, sound_s);
    // ffmpeg's reader of DASH ends with the shorter of picture and sound.
    let picture_s = frames as f64 / rate;
    if sizes.is_empty() || sound_s.is_none_or(|sound_s| (sound_s - picture_s).abs() < 0.5) {
        check_streams(&play(made, "manifest.mpd"), sizes, frames, rate, sound_s);
    }
    check_playlists(made, sound_s.is_some());
    check_manifest(made);
    assert!(made.progress.iter().any(|now| now.ended) && made.encoded.cpu.as_millis() > 0);
    let planned = made.plan.picture.as_ref().map_or(0, |picture| picture.frames);
    assert_eq!((made.encoded.frames, made.encoded.lost_frames), (planned, 0));
}

fn check_streams(seen: &[Seen], sizes: &[(u64, u64)], frames: u64, rate: f64, sound_s: Option<f64>) {
    let (pictures, sounds): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|one| one.kind == "video");
    assert_eq!(pictures.iter().map(|one| one.size).collect::<Vec<_>>(), sizes);
    for one in &pictures {
        assert!(one.frames.abs_diff(frames) <= 1, "{} frames, not {frames}", one.frames);
        let length = one.end - one.start;
        assert!((length - frames as f64 / rate).abs() <= 1.0 / rate + 1e-3, "{length} s: {one:?}");
        assert_eq!((one.aspect.as_str(), one.rotated), ("1:1", false));
        assert_eq!(one.keys, pictures[0].keys, "keyframes are aligned across rungs");
        assert!((one.start - pictures[0].start).abs() < 1e-6);
    }
    assert_eq!(sounds.len(), usize::from(sound_s.is_some()));
    for (sound, want) in sounds.iter().zip(sound_s) {
        assert!((sound.end - sound.start - want).abs() < 0.1, "{want} s: {sound:?}");
        let start = pictures.first().map_or(0.0, |picture| picture.start);
        assert!((sound.start - start).abs() < 0.05, "together: {sound:?} {pictures:?}");
    }
}

fn check_playlists(made: &Made, sound: bool) {
    let master = made.read("master.m3u8");
    assert!(master.starts_with("#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n"), "{master}");
    assert_eq!(master.contains("audio.m3u8"), sound);
    let sound: Vec<(u64, f64)> = if sound { segments(made, "audio.m3u8") } else { Vec::new() };
    let lines: Vec<&str> = master.lines().collect();
    let variants = lines.windows(2).filter(|pair| pair[0].starts_with("#EXT-X-STREAM-INF:"));
    let variants: Vec<(&str, &str)> = variants.map(|pair| (pair[0], pair[1])).collect();
    assert_eq!(variants.len(), made.package.outputs.renditions.len().max(1));
    for (line, playlist) in variants {
        let video = segments(made, playlist);
        // Measured the plain way: each segment with what it covers of the sound's segment of that number.
        let with = |index: usize, length: f64| match sound.get(index) {
            Some((bytes, sound_s)) if playlist != "audio.m3u8" => *bytes as f64 * (length / sound_s).min(1.0),
            _ => 0.0,
        };
        let both = |(index, (bytes, length)): (usize, &(u64, f64))| {
            ((*bytes as f64 + with(index, *length)) as u64, *length)
        };
        let peak = peak(&video.iter().enumerate().map(both).collect::<Vec<_>>());
        let declared = attribute(line, "BANDWIDTH") / peak;
        assert!((1.0..=1.05).contains(&declared), "{playlist}: BANDWIDTH is {declared} of the peak");
        assert!(attribute(line, "AVERAGE-BANDWIDTH") <= attribute(line, "BANDWIDTH"));
        let target: f64 = made
            .read(playlist)
            .lines()
            .find_map(|l| l.strip_prefix("#EXT-X-TARGETDURATION:"))
            .unwrap()
            .parse()
            .unwrap();
        assert!(video.iter().all(|(_, length)| length.round() <= target));
    }
    let mut listed: Vec<String> = made.package.files.iter().map(|file| file.name.clone()).collect();
    let mut present: Vec<String> = std::fs::read_dir(made.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    listed.sort();
    present.sort();
    assert_eq!(listed, present, "every file is in the package, and nothing else lies about");
    for file in &made.package.files {
        assert_eq!(std::fs::metadata(made.file(&file.name)).unwrap().len(), file.bytes, "{}", file.name);
    }
    assert_eq!(made.package.bytes(), made.package.files.iter().map(|file| file.bytes).sum::<u64>());
}

/// The highest rate of any segment, of bytes and seconds. A last segment of a moment is a rate that nobody needs (RFC
/// 8216 measures half a target duration and more), so it counts with the one before.
fn peak(segments: &[(u64, f64)]) -> f64 {
    let longest = segments.iter().map(|(_, length)| *length).fold(0.0, f64::max);
    let rates = segments.iter().enumerate().map(|(index, (bytes, length))| {
        let before = segments[..index].last().filter(|_| *length < longest / 4.0);
        let (more, longer) = before.copied().unwrap_or((0, 0.0));
        (bytes + more) as f64 * 8.0 / (length + longer)
    });
    rates.fold(0.0, f64::max)
}

/// Every representation's files are there, under the names that its template gives, and its bandwidth is their peak.
fn check_manifest(made: &Made) {
    let text = made.read("manifest.mpd");
    let representations: Vec<&str> = text.split("<Representation ").skip(1).collect();
    let tracks: Vec<_> = made.package.pictures.iter().chain(&made.package.sound).collect();
    assert_eq!(representations.len(), tracks.len(), "{text}");
    for (index, (one, track)) in representations.iter().zip(tracks).enumerate() {
        assert!(one.starts_with(&format!("id=\"{index}\" ")), "{one}");
        assert_eq!(track.init, format!("init_{index}.mp4"));
        let seconds = |ticks: u64| ticks as f64 / f64::from(track.timescale);
        let segments = track.segments.iter().map(|one| (one.bytes, seconds(one.duration)));
        let declared: f64 = one.split('"').nth(3).unwrap().parse().unwrap();
        let share = declared / peak(&segments.collect::<Vec<_>>());
        assert!((1.0..=1.05).contains(&share), "{index}: bandwidth is {share} of the peak");
    }
}

#[tokio::test]
async fn a_clip_with_sound_becomes_a_ladder() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "640x360", "24", "10");
    let made = transcode(&clip, &spec(r#""resolutions":["720p","360p"],"segment_seconds":4"#)).await.unwrap();
    check(&made, &[(640, 360)], 240, 24.0, Some(10.0));
    assert_eq!(
        made.package.outputs.renditions[0].codecs.split(',').map(|c| &c[..5]).collect::<Vec<_>>(),
        ["avc1.", "mp4a."]
    );
    assert_eq!(made.package.outputs.renditions[0].name, "360p");
    assert!(made.package.warnings[0].contains("left out 720p"), "{:?}", made.package.warnings);
    let lengths: Vec<f64> = segments(&made, "360p.m3u8").into_iter().map(|(_, length)| length).collect();
    assert_eq!(lengths, [4.0, 4.0, 2.0]);
}

#[tokio::test]
async fn two_rungs_at_an_ntsc_rate_are_cut_at_the_same_frames() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "854x480", "30000/1001", "9");
    let made = transcode(&clip, &spec(r#""segment_seconds":4,"preset":"ultrafast""#)).await.unwrap();
    check(&made, &[(854, 480), (640, 360)], 270, 30_000.0 / 1001.0, Some(9.0));
    let lengths: Vec<f64> = segments(&made, "480p.m3u8").into_iter().map(|(_, length)| length).collect();
    assert_eq!(lengths, [4.004, 4.004, 1.001]);
    assert_eq!(
        lengths,
        segments(&made, "360p.m3u8").into_iter().map(|(_, length)| length).collect::<Vec<_>>()
    );
    assert!(made.read("master.m3u8").contains("FRAME-RATE=29.970"));
}

#[tokio::test]
async fn a_silent_odd_sized_clip_plays() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = "-f lavfi -i testsrc2=s=321x181:r=25:d=5 -c:v libx264 -preset ultrafast -pix_fmt yuv444p";
    let clip = make(directory.path(), arguments, "odd.mkv");
    let made = transcode(&clip, &spec(r#""resolutions":["360p"]"#)).await.unwrap();
    check(&made, &[(320, 180)], 125, 25.0, None);
    assert_eq!(made.package.outputs.renditions[0].name, "180p");
}

#[tokio::test]
async fn a_turned_clip_stands_upright() {
    let directory = tempfile::tempdir().unwrap();
    let flat = talking(directory.path(), "320x180", "25", "3");
    let arguments = format!("-display_rotation 90 -i {} -c copy", flat.display());
    let old = format!("-i {} -c copy -metadata:s:v rotate=90", flat.display());
    // The option came with ffmpeg 6; before it, the mp4 muxer wrote the matrix from this tag.
    let newer = run("ffmpeg", &["-hide_banner", "-h", "full"]).contains("-display_rotation");
    let clip = make(directory.path(), if newer { &arguments } else { &old }, "turned.mp4");
    let made = transcode(&clip, &spec(r#""resolutions":["1080p"]"#)).await.unwrap();
    let rotation = made.probe.video.as_ref().unwrap().rotation;
    assert!([90, 270].contains(&rotation), "{rotation}");
    check(&made, &[(180, 320)], 75, 25.0, Some(3.0));
}

#[tokio::test]
async fn a_single_frame_is_a_stream_too() {
    let directory = tempfile::tempdir().unwrap();
    let clip =
        make(directory.path(), &format!("-f lavfi -i testsrc2=s=320x180:r=25:d=0.04 {FAST}"), "one.mp4");
    let made = transcode(&clip, &spec(r#""crf":30"#)).await.unwrap();
    check(&made, &[(320, 180)], 1, 25.0, None);
}

#[tokio::test]
async fn late_sound_and_wide_pixels_come_out_right() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = format!(
        "-f lavfi -i testsrc2=s=320x240:r=25:d=4 -itsoffset 1 -f lavfi -i sine=d=3:r=48000 -vf setsar=4/3 {FAST} -c:a aac"
    );
    let clip = make(directory.path(), &arguments, "late.mp4");
    let made = transcode(&clip, &spec(r#""segment_seconds":2"#)).await.unwrap();
    // Silence fills the first second, so that both begin together; 320 pixels of 4:3 are 426 lines wide.
    check(&made, &[(426, 240)], 100, 25.0, Some(4.0));
}

#[tokio::test]
async fn a_recording_with_a_gap_and_no_duration_keeps_its_length() {
    let directory = tempfile::tempdir().unwrap();
    // Frames between 2 and 4 seconds are missing, as when a tab sleeps; live muxing writes no duration.
    let arguments = "-f lavfi -i testsrc2=s=320x180:r=25:d=6 -vf select='not(between(t,2,4))' -fps_mode vfr \
                     -c:v libvpx -deadline realtime -cpu-used 8 -b:v 300k -f webm -live 1";
    let clip = make(directory.path(), arguments, "live.webm");
    let made = transcode(&clip, &spec(r#""segment_seconds":2"#)).await.unwrap();
    assert!((made.probe.duration_s - 6.0).abs() < 0.1, "{:?}", made.probe);
    let rate = made.picture().fps.as_f64();
    check(&made, &[(320, 180)], (6.0 * rate).round() as u64, rate, None);
    assert!(
        made.package.warnings.iter().any(|warning| warning.contains("stands still")),
        "{:?}",
        made.package.warnings
    );
}

#[tokio::test]
async fn without_a_stream_the_segments_are_verified_and_not_published() {
    let directory = tempfile::tempdir().unwrap();
    let clip = talking(directory.path(), "320x180", "25", "3");
    let made = transcode(&clip, &spec(r#""output_format":"mp4""#)).await.unwrap();
    let package = &made.package;
    assert_eq!((package.files.len(), package.pictures.len(), package.sound.is_some()), (0, 1, true));
    assert_eq!((&package.outputs.hls, &package.outputs.dash), (&None, &None));
    assert_eq!(package.outputs.renditions[0].url, None);
    assert_eq!(package.outputs.audio.as_ref().unwrap().url, None);
    let left = std::fs::read_dir(made.directory.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.ends_with(".mpd") || name.ends_with(".m3u8")), "{left:?}");
    assert!(made.file(&package.pictures[0].init).exists());
}
