//! The result, as a player sees it: read through the gateway by ffprobe and by hand.

use std::collections::BTreeMap;

use millrace_bench::{Answer, media};
use millrace_wire::problem::Code;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use crate::playlist::{Master, Media};
use crate::stage::{LADDER, Stage, clip};

/// Keyframe times are compared in milliseconds.
fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}

#[tokio::test]
async fn every_rendition_is_read_through_the_master_playlist_and_is_what_it_says() {
    let stage = Stage::two_pools().await;
    stage
        .client
        .submit(&json!({ "job_id": "ladder", "input_url": stage.web.url("/ladder.mp4") }))
        .await
        .unwrap();
    let job = stage.succeeded("ladder").await;
    let outputs = job.outputs.unwrap();
    let hls = outputs.hls.as_deref().unwrap();
    assert!(hls.starts_with("/media/ladder/") && hls.ends_with("/master.m3u8"), "{hls}");
    let master_url = stage.client.url(hls).unwrap();

    // Sizes: the standard rungs that are not above the source, at its aspect ratio.
    let stream = media::inspect(master_url.as_str()).await.unwrap();
    let mut sizes: Vec<_> = stream.videos().map(|video| (video.width, video.height)).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [(640, 360), (854, 480)]);
    assert!(stream.audios().count() >= 1 && stream.videos().all(|video| video.codec_name == "h264"));

    // Length: within one frame of the source's.
    let source = media::packets(clip(&LADDER).await).await.unwrap();
    let source_s: f64 = source.iter().filter(|p| p.stream_index == 0).map(|p| p.duration_s).sum();
    let packets = media::packets(master_url.as_str()).await.unwrap();
    let mut keyframes = BTreeMap::new();
    for video in stream.videos() {
        let frames: Vec<_> = packets.iter().filter(|p| p.stream_index == video.index).collect();
        let start = frames.iter().map(|p| p.pts_s).fold(f64::MAX, f64::min);
        let end = frames.iter().map(|p| p.pts_s + p.duration_s).fold(0.0, f64::max);
        let frame_s = 1.0 / f64::from(LADDER.rate) + 0.001;
        assert!(
            (end - start - source_s).abs() <= frame_s,
            "{}: {} s, not {source_s} s",
            video.height,
            end - start
        );
        let mut keys: Vec<i64> =
            frames.iter().filter(|p| p.key).map(|p| milliseconds(p.pts_s - start)).collect();
        keys.sort_unstable();
        keyframes.insert(video.height, keys);
    }

    // Keyframes: at the same instants in every rung, and at the start of every segment.
    assert_eq!(keyframes[&360], keyframes[&480]);
    assert!(keyframes[&480].len() >= 3, "{keyframes:?}");
    let master = Master::parse(&text(&stage, hls).await);
    assert_eq!(master.variants.len(), 2);
    let audio = media_playlist(&stage, master.audio.as_deref().unwrap()).await;
    let audio_bytes = segment_bytes(&stage, &audio).await;
    for variant in &master.variants {
        let playlist = media_playlist(&stage, &variant.uri).await;
        let mut start = 0.0;
        for (seconds, name) in &playlist.segments {
            assert!(
                keyframes[&480].contains(&milliseconds(start)),
                "{name} starts at {start} s, not at a keyframe"
            );
            start += seconds;
        }
        assert!(
            (start - source_s).abs() <= 1.0 / f64::from(LADDER.rate) + 0.001,
            "the EXTINFs add up to {start} s"
        );

        // BANDWIDTH: 1.00 to 1.05 times the measured peak of a segment with its sound.
        let bytes = segment_bytes(&stage, &playlist).await;
        let rates =
            playlist.segments.iter().zip(&bytes).enumerate().map(|(number, ((seconds, _), bytes))| {
                let sound = audio_bytes[number] as f64 / audio.segments[number].0;
                (*bytes as f64 / seconds + sound) * 8.0
            });
        let peak = rates.fold(0.0, f64::max);
        let ratio = variant.number("BANDWIDTH") / peak;
        assert!(
            (1.0..=1.05).contains(&ratio),
            "{}: BANDWIDTH is {ratio:.4} × the peak {peak:.0}",
            variant.uri
        );
        let average = (bytes.iter().sum::<u64>() + audio_bytes.iter().sum::<u64>()) as f64 * 8.0 / source_s;
        let ratio = variant.number("AVERAGE-BANDWIDTH") / average;
        assert!(
            (0.97..=1.05).contains(&ratio),
            "{}: AVERAGE-BANDWIDTH is {ratio:.4} × {average:.0}",
            variant.uri
        );
        assert_eq!(variant.number("FRAME-RATE"), f64::from(LADDER.rate));
        assert!(
            variant.attributes["CODECS"].starts_with("avc1.")
                && variant.attributes["CODECS"].contains("mp4a")
        );
    }
    stage.end().await;
}

#[tokio::test]
async fn media_has_ranges_and_versions() {
    let stage = Stage::two_pools().await;
    stage.client.submit(&stage.web.small_spec("small")).await.unwrap();
    let hls = stage.succeeded("small").await.outputs.unwrap().hls.unwrap();
    let master = Master::parse(&text(&stage, &hls).await);
    let playlist = media_playlist(&stage, &master.variants[0].uri).await;
    let path = hls.replace("master.m3u8", &playlist.segments[0].1);

    let whole = stage.client.get(&path).await.unwrap().success().unwrap();
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    let length = whole.body.len();
    let etag = whole.header("etag").unwrap().to_owned();
    let cases = [
        ("bytes=10-19".to_owned(), 10..20),
        (format!("bytes={}-", length - 7), length - 7..length),
        ("bytes=-5".to_owned(), length - 5..length),
        (format!("bytes=0-{}", length + 99), 0..length),
    ];
    for (range, wanted) in cases {
        let part = get_with(&stage, &path, "range", &range).await;
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.body, whole.body[wanted.clone()], "{range}");
        let said = format!("bytes {}-{}/{length}", wanted.start, wanted.end - 1);
        assert_eq!(part.header("content-range"), Some(said.as_str()));
        assert_eq!(part.header("etag"), Some(etag.as_str()));
    }
    let beyond = get_with(&stage, &path, "range", &format!("bytes={length}-")).await;
    assert_eq!(beyond.problem().unwrap().code, Code::BadRange);
    let known = get_with(&stage, &path, "if-none-match", &etag).await;
    assert_eq!((known.status.as_u16(), known.body.len()), (304, 0));
    let unknown = get_with(&stage, &path, "if-none-match", "\"other\"").await;
    assert_eq!((unknown.status.as_u16(), unknown.body.len()), (200, length));

    let missing = stage.client.get("/media/small/none.m4s").await.unwrap();
    assert_eq!(missing.problem().unwrap().code, Code::NotFound);
    let nobody = stage.client.get("/media/nobody/master.m3u8").await.unwrap();
    assert_eq!(nobody.problem().unwrap().code, Code::JobNotFound);
    stage.end().await;
}

async fn get_with(stage: &Stage, path: &str, name: &'static str, value: &str) -> Answer {
    let value = HeaderValue::from_str(value).unwrap();
    let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value)]);
    stage.client.send(Method::GET, path, headers, Vec::new()).await.unwrap()
}

async fn text(stage: &Stage, path: &str) -> String {
    stage.client.get(path).await.unwrap().success().unwrap().text()
}

/// A playlist beside the master of the one job of this test.
async fn media_playlist(stage: &Stage, uri: &str) -> Media {
    let job = stage.client.jobs().await.unwrap().remove(0);
    let playlist = Media::parse(&text(stage, &format!("/media/{}/{uri}", job.job_id)).await);
    stage.client.get(&format!("/media/{}/{}", job.job_id, playlist.init)).await.unwrap().success().unwrap();
    playlist
}

async fn segment_bytes(stage: &Stage, playlist: &Media) -> Vec<u64> {
    let job = stage.client.jobs().await.unwrap().remove(0);
    let mut bytes = Vec::new();
    for (_, name) in &playlist.segments {
        let segment =
            stage.client.get(&format!("/media/{}/{name}", job.job_id)).await.unwrap().success().unwrap();
        bytes.push(segment.body.len() as u64);
    }
    bytes
}
