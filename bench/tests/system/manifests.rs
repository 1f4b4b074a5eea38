//! What the manifests declare, as readers understand them that are not ours, against what the segments are.

use std::collections::BTreeMap;
use std::path::Path;

use millrace_bench::media;
use serde::Deserialize;
use serde_json::json;

use crate::browser::film;
use crate::chromium::target;
use crate::stage::{PATIENCE, Stage};

/// The time scale of a segment's own clock may not hold a second's fraction exactly.
const TICK_S: f64 = 1e-4;
/// One frame of AAC. The encoder's delay is skipped at the start and the last frame is cut at the end, and readers
/// count these two differently; every segment between has to be exact.
const AAC_FRAME_S: f64 = 1024.0 / 48_000.0;

/// What `read.py` prints.
#[derive(Debug, Deserialize)]
struct Manifests {
    hls: Hls,
    dash: Dash,
}

#[derive(Debug, Deserialize)]
struct Hls {
    independent_segments: bool,
    variants: Vec<Variant>,
    audio: Vec<Audio>,
}

#[derive(Debug, Deserialize)]
struct Variant {
    bandwidth: f64,
    average_bandwidth: f64,
    codecs: String,
    resolution: (u32, u32),
    frame_rate: f64,
    audio: String,
    playlist: Playlist,
}

#[derive(Debug, Deserialize)]
struct Audio {
    group: String,
    playlist: Playlist,
}

#[derive(Debug, Deserialize)]
struct Playlist {
    #[serde(rename = "type")]
    kind: String,
    target_duration: f64,
    ends: bool,
    init: String,
    segments: Vec<Segment>,
}

#[derive(Debug, Deserialize)]
struct Segment {
    url: String,
    /// DASH only: HLS has none.
    start: Option<f64>,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Dash {
    #[serde(rename = "type")]
    kind: String,
    seconds: f64,
    representations: Vec<Representation>,
}

#[derive(Debug, Deserialize)]
struct Representation {
    mime_type: String,
    codecs: String,
    bandwidth: f64,
    width: Option<u32>,
    height: Option<u32>,
    frame_rate: Option<String>,
    init: String,
    segments: Vec<Segment>,
}

/// A segment as it is.
#[derive(Debug)]
struct Measured {
    start: f64,
    seconds: f64,
    bytes: f64,
    codec: String,
}

impl Measured {
    /// The bits of it that fall between two instants, as if they were spread evenly.
    fn bits_between(&self, from: f64, to: f64) -> f64 {
        let overlap = (to.min(self.start + self.seconds) - from.max(self.start)).max(0.0);
        self.bytes * 8.0 * overlap / self.seconds
    }
}

async fn read(master: &str, mpd: &str) -> Manifests {
    let python = target().join("python/bin/python3");
    assert!(python.is_file(), "{} is not there: run `scripts/setup test`", python.display());
    let mut command = tokio::process::Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/read.py")).args([master, mpd]);
    serde_json::from_slice(&media::output(command, PATIENCE).await.unwrap()).unwrap()
}

/// Fetches every segment and reads its packets.
async fn measure(stage: &Stage, init: &str, segments: &[Segment]) -> Vec<Measured> {
    let body = async |url: &str| stage.client.get(url).await.unwrap().success().unwrap().body;
    let init = body(init).await;
    let mut measured = Vec::new();
    for segment in segments {
        let bytes = body(&segment.url).await;
        let file = tempfile::Builder::new().suffix(".mp4").tempfile().unwrap();
        std::fs::write(file.path(), [init.as_slice(), &bytes].concat()).unwrap();
        let (start, end) = span(file.path()).await;
        let codec = media::inspect(file.path()).await.unwrap().streams.remove(0).codec_name;
        measured.push(Measured { start, seconds: end - start, bytes: bytes.len() as f64, codec });
    }
    measured
}

/// From when to when the packets of a file are shown.
async fn span(file: &Path) -> (f64, f64) {
    let mut ffprobe = tokio::process::Command::new("ffprobe");
    ffprobe
        .args(["-v", "error", "-show_entries", "packet=pts_time,duration_time", "-of", "csv=p=0"])
        .arg(file);
    let printed = String::from_utf8(media::output(ffprobe, PATIENCE).await.unwrap()).unwrap();
    let (mut start, mut end) = (f64::MAX, 0.0_f64);
    for line in printed.lines() {
        let (pts, duration) = line.split_once(',').unwrap();
        let pts: f64 = pts.parse().unwrap();
        // Of the first packet of a segment of sound ffprobe knows no duration; others follow it.
        let duration = duration.trim_end_matches(',').parse().unwrap_or(0.0);
        // The edit list puts what is skipped before zero.
        start = start.min(pts.max(0.0));
        end = end.max(pts + duration);
    }
    (start, end)
}

/// How far two readings of a segment's duration may be apart.
fn slack(sound: bool, place: usize, count: usize) -> f64 {
    if sound && (place == 0 || place + 1 == count) { AAC_FRAME_S + TICK_S } else { TICK_S }
}

fn check_playlist(name: &str, playlist: &Playlist, measured: &[Measured]) {
    assert!(playlist.kind.eq_ignore_ascii_case("vod") && playlist.ends, "{name}: {playlist:?}");
    let longest = playlist.segments.iter().map(|segment| segment.seconds.round()).fold(0.0, f64::max);
    assert_eq!(playlist.target_duration, longest, "{name}: TARGETDURATION is the longest EXTINF, rounded");
    for (place, (segment, is)) in playlist.segments.iter().zip(measured).enumerate() {
        let slack = slack(name == "audio", place, measured.len());
        assert!((segment.seconds - is.seconds).abs() <= slack, "{name}: {segment:?} is {is:?}");
    }
}

#[tokio::test]
async fn what_hls_and_dash_declare_is_what_the_segments_are() {
    let stage = Stage::two_pools().await;
    let clip = film().await;
    stage.client.submit(&json!({ "job_id": "film", "input_url": stage.web.url_of(&clip) })).await.unwrap();
    let outputs = stage.succeeded("film").await.outputs.unwrap();
    let url = |path: Option<String>| stage.client.url(&path.expect("a stream has both manifests")).unwrap();
    let Manifests { hls, dash } = read(url(outputs.hls).as_str(), url(outputs.dash).as_str()).await;

    assert!(hls.independent_segments);
    let [sound] = hls.audio.as_slice() else { panic!("one sound: {:?}", hls.audio) };
    let heard = measure(&stage, &sound.playlist.init, &sound.playlist.segments).await;
    check_playlist("audio", &sound.playlist, &heard);
    let mut lists = BTreeMap::from([(sound.playlist.init.clone(), &sound.playlist)]);
    let mut sizes = Vec::new();
    for variant in &hls.variants {
        let (width, height) = variant.resolution;
        let name = format!("{width}x{height}");
        let seen = measure(&stage, &variant.playlist.init, &variant.playlist.segments).await;
        check_playlist(&name, &variant.playlist, &seen);

        // The peak of a segment with the sound of the same span, and the mean of the same bits.
        let bits = |from: f64, to: f64| heard.iter().map(|sound| sound.bits_between(from, to)).sum::<f64>();
        let own = |one: &Measured| one.bytes * 8.0 + bits(one.start, one.start + one.seconds);
        let peak = seen.iter().map(|one| own(one) / one.seconds).fold(0.0, f64::max);
        let mean = seen.iter().map(own).sum::<f64>() / seen.iter().map(|one| one.seconds).sum::<f64>();
        let ratio = variant.bandwidth / peak;
        assert!((1.0..=1.05).contains(&ratio), "{name}: BANDWIDTH is {ratio:.4} of the peak {peak:.0}");
        let ratio = variant.average_bandwidth / mean;
        assert!((0.99..=1.01).contains(&ratio), "{name}: AVERAGE-BANDWIDTH is {ratio:.4} of {mean:.0}");

        assert!(variant.codecs.starts_with("avc1.") && variant.codecs.ends_with(",mp4a.40.2"), "{variant:?}");
        assert!(seen.iter().all(|one| one.codec == "h264") && heard.iter().all(|one| one.codec == "aac"));
        assert!((variant.frame_rate - 30_000.0 / 1001.0).abs() < 0.001, "{name}: {} fps", variant.frame_rate);
        assert_eq!(variant.audio, sound.group);
        sizes.push(variant.resolution);
        lists.insert(variant.playlist.init.clone(), &variant.playlist);
    }
    sizes.sort_unstable();
    assert_eq!(sizes, [(640, 360), (854, 480)]);

    // DASH: the same segments, with the same durations, at the instants where they are.
    assert_eq!(dash.kind, "static");
    let length = media::inspect(&clip).await.unwrap().duration_s;
    assert!((dash.seconds - length).abs() < 0.05, "{} s of {length} s", dash.seconds);
    assert_eq!(dash.representations.len(), lists.len(), "{dash:?}");
    for one in &dash.representations {
        let list = lists.remove(&one.init).unwrap_or_else(|| panic!("no playlist has {}", one.init));
        let urls = |segments: &[Segment]| segments.iter().map(|one| one.url.clone()).collect::<Vec<_>>();
        assert_eq!(urls(&one.segments), urls(&list.segments));
        let measured = measure(&stage, &one.init, &one.segments).await;
        let sound = one.mime_type != "video/mp4";
        for (place, (dash, is)) in one.segments.iter().zip(&measured).enumerate() {
            let hls = &list.segments[place];
            let slack = slack(sound, place, measured.len());
            assert!((dash.seconds - hls.seconds).abs() <= slack, "{dash:?} {hls:?}");
            assert!((dash.seconds - is.seconds).abs() <= slack, "{dash:?} {is:?}");
            assert!((dash.start.unwrap() - is.start).abs() <= TICK_S, "{dash:?} {is:?}");
        }
        let peak = measured.iter().map(|one| one.bytes * 8.0 / one.seconds).fold(0.0, f64::max);
        let ratio = one.bandwidth / peak;
        assert!((1.0..=1.05).contains(&ratio), "{}: bandwidth is {ratio:.4} of the peak {peak:.0}", one.init);
        if !sound {
            assert!(sizes.contains(&(one.width.unwrap(), one.height.unwrap())), "{one:?}");
            assert_eq!(one.frame_rate.as_deref(), Some("30000/1001"));
            assert!(one.codecs.starts_with("avc1."), "{one:?}");
        } else {
            assert_eq!((one.mime_type.as_str(), one.codecs.as_str()), ("audio/mp4", "mp4a.40.2"));
        }
    }
    stage.end().await;
}
