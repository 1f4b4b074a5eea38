//! Picture and sound stay together: a white frame and a beep on every second, through the whole system and back.

use std::path::{Path, PathBuf};

use anyhow::Result;
use millrace_bench::media;
use serde_json::json;

use crate::chromium;
use crate::stage::{PATIENCE, Stage, made};

const FRAME_S: f64 = 1.0 / 24.0;
const SECONDS: u32 = 9;
/// A frame's mean lightness: black is 16, white 235.
const WHITE_MIN: f64 = 128.0;
/// Decibels of a beep against the silence around it, which a lossy codec fills with a little.
const BEEP_DB_MIN: f64 = -20.0;

/// The first second begins with both, and so do the segments at 4 and 8 s.
async fn flash_and_beep() -> PathBuf {
    let picture = format!(
        "color=black:size=854x480:rate=24:duration={SECONDS},drawbox=color=white:t=fill:enable='lt(mod(t+0.001,1),0.02)'"
    );
    let sound = format!("aevalsrc='0.8*sin(2*PI*1000*t)*lt(mod(t,1),0.04)':s=48000:d={SECONDS}");
    let input = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &sound];
    let coding = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-pix_fmt", "yuv420p", "-c:a", "aac"];
    made("flash-and-beep", &[&input[..], &coding].concat()).await
}

/// The instants at which a filter's measure goes above a threshold, on the stream's own clock.
async fn onsets(what: &str, map: &str, filter: (&str, String), key: &str, least: f64) -> Result<Vec<f64>> {
    let mut ffmpeg = tokio::process::Command::new("ffmpeg");
    // `-copyts`: else ffmpeg moves each stream's start to zero, and with it what is to be measured.
    ffmpeg.args(["-nostdin", "-v", "error", "-copyts", "-i", what, "-map", map, filter.0, &filter.1]);
    ffmpeg.args(["-f", "null", "-"]);
    let printed = String::from_utf8(media::output(ffmpeg, PATIENCE).await?)?;
    let (mut time, mut above, mut found) = (0.0, false, Vec::new());
    for line in printed.lines() {
        if let Some((_, pts)) = line.split_once("pts_time:") {
            time = pts.trim().parse()?;
        } else if let Some(value) = line.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')) {
            // Silence has no decibels: `-inf`, which is a number to Rust, too.
            let now = value.parse::<f64>()? > least;
            if now && !above {
                found.push(time);
            }
            above = now;
        }
    }
    Ok(found)
}

async fn flashes(what: &str, map: &str) -> Vec<f64> {
    let key = "lavfi.signalstats.YAVG";
    let filter = format!("scale=16:16,signalstats,metadata=print:key={key}:file=-");
    onsets(what, map, ("-vf", filter), key, WHITE_MIN).await.unwrap()
}

async fn beeps(what: &str, map: &str) -> Vec<f64> {
    let key = "lavfi.astats.Overall.RMS_level";
    // A millisecond each.
    let windows = "aformat=channel_layouts=mono,aresample=48000,asetnsamples=48,astats=metadata=1:reset=1";
    let filter = format!("{windows},ametadata=print:key={key}:file=-");
    onsets(what, map, ("-af", filter), key, BEEP_DB_MIN).await.unwrap()
}

/// Every second has its mark, within a frame of that second.
fn check_seconds(what: &str, marks: &[f64]) {
    assert_eq!(marks.len(), SECONDS as usize, "{what}: {marks:?}");
    for (second, mark) in marks.iter().enumerate() {
        assert!((mark - second as f64).abs() < FRAME_S, "{what}: {mark} s is not second {second}: {marks:?}");
    }
}

#[tokio::test]
async fn flash_and_beep_stay_within_a_frame_of_each_other_in_every_format() {
    let stage = Stage::two_pools().await;
    let clip = flash_and_beep().await;
    let source = clip.to_str().unwrap();
    check_seconds("the source's flashes", &flashes(source, "0:v:0").await);
    check_seconds("the source's beeps", &beeps(source, "0:a:0").await);

    let spec =
        json!({ "job_id": "sync", "input_url": stage.web.url_of(&clip), "output_format": ["hls", "mp4"] });
    stage.client.submit(&spec).await.unwrap();
    let outputs = stage.succeeded("sync").await.outputs.unwrap();
    let url = |path: &str| stage.client.url(path).unwrap().to_string();
    let hls = url(outputs.hls.as_deref().expect("HLS was asked for"));
    let dash = url(outputs.dash.as_deref().expect("DASH comes with HLS"));
    let file = download(&stage, outputs.renditions[0].mp4.as_deref().expect("files were asked for")).await;
    let sources = [("hls", hls.as_str()), ("dash", dash.as_str()), ("mp4", file.path().to_str().unwrap())];
    for (name, what) in sources {
        let heard = beeps(what, "0:a:0").await;
        check_seconds(&format!("{name}'s beeps"), &heard);
        // A file holds one rendition, a stream all of them.
        let rungs = if name == "mp4" { 1 } else { outputs.renditions.len() };
        for rung in 0..rungs {
            let seen = flashes(what, &format!("0:v:{rung}")).await;
            check_seconds(&format!("{name}'s flashes"), &seen);
            for (flash, beep) in seen.iter().zip(&heard) {
                assert!((flash - beep).abs() < FRAME_S, "{name}: flash at {flash} s, beep at {beep} s");
            }
        }
    }

    // And in a browser: the frame shown at a second is the white one, the one before it is black.
    let looks: Vec<f64> =
        (1..SECONDS).flat_map(|s| [f64::from(s) - FRAME_S / 2.0, f64::from(s) + FRAME_S / 2.0]).collect();
    let (by_hls, by_shaka) = tokio::join!(
        chromium::play("hls", &hls, "sync", &looks),
        chromium::play("shaka", &dash, "sync", &looks)
    );
    for (player, play) in [("hls.js", by_hls), ("Shaka", by_shaka)] {
        assert_eq!(play.looks.len(), looks.len(), "{player}: {play:?}");
        for (place, look) in play.looks.iter().enumerate() {
            let white = look.lightness.unwrap() > 128;
            assert_eq!(white, place % 2 == 1, "{player}: {look:?}");
            assert!((0.0..FRAME_S).contains(&(look.at - look.media_time)), "{player}: {look:?}");
        }
    }
    stage.end().await;
}

async fn download(stage: &Stage, path: &str) -> tempfile::NamedTempFile {
    let bytes = stage.client.get(path).await.unwrap().success().unwrap().body;
    let file = tempfile::Builder::new().suffix(".mp4").tempfile_in(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let file = file.unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}
