//! Sound and picture in step: a white frame and a beep each second, found again in what players get.

use std::path::Path;

use super::clip::{FAST, make, run, spec, transcode};

const FRAME_S: f64 = 0.04;
const SECONDS: usize = 9;

/// A black picture with one white frame 0.4 s into each second, and a beep as long as that frame.
fn flash_and_beep(directory: &Path, inputs: (&str, &str), codecs: &str, name: &str) -> std::path::PathBuf {
    let flash = format!(
        "color=black:s=320x180:r=25:d={SECONDS},drawbox=c=white:t=fill:enable='eq(mod(n\\,25)\\,10)'"
    );
    let beep = format!(
        "aevalsrc='0.5*sin(2*PI*1000*t)*gte(mod(t\\,1)\\,0.4)*lt(mod(t\\,1)\\,0.44)':s=48000:d={SECONDS}"
    );
    let (before_picture, before_sound) = inputs;
    let arguments =
        format!("{before_picture} -f lavfi -i {flash} {before_sound} -f lavfi -i {beep} {FAST} {codecs}");
    make(directory, &arguments, name)
}

/// Runs filters that print one measure per frame; when it first crosses `level`, each time, on the file's own clock.
fn crossings(input: &Path, options: &[&str], key: &str, level: f64) -> Vec<f64> {
    let before = ["-nostdin", "-v", "error", "-copyts", "-i", input.to_str().unwrap()];
    let said = run("ffmpeg", &[&before[..], options, &["-f", "null", "-"]].concat());
    let (mut time, mut above, mut found) = (0.0, false, Vec::new());
    for line in said.lines() {
        if let Some((_, at)) = line.split_once("pts_time:") {
            time = at.trim().parse().unwrap();
        } else if let Some(value) = line.strip_prefix(key) {
            let now = value[1..].parse::<f64>().is_ok_and(|value| value > level);
            if now && !above {
                found.push(time);
            }
            above = now;
        }
    }
    found
}

fn flashes(input: &Path) -> Vec<f64> {
    let key = "lavfi.signalstats.YAVG";
    let filter = format!("scale=16:16,signalstats,metadata=print:key={key}:file=-");
    crossings(input, &["-map", "0:v:0", "-vf", &filter], key, 120.0)
}

fn beeps(input: &Path) -> Vec<f64> {
    let key = "lavfi.astats.Overall.RMS_level";
    let filter = format!(
        "aresample=48000,asetnsamples=96:p=0,astats=metadata=1:reset=1,ametadata=print:key={key}:file=-"
    );
    crossings(input, &["-map", "0:a:0", "-af", &filter], key, -20.0)
}

/// Encodes a clip and finds its flashes and beeps again, `late_s` after where they were drawn.
async fn check(clip: &Path, flash_late_s: f64, beep_late_s: f64) {
    let made = transcode(clip, &spec(r#""segment_seconds":2,"thumbnails":false"#)).await.unwrap();
    for manifest in ["master.m3u8", "manifest.mpd"] {
        let (flashes, beeps) = (flashes(&made.file(manifest)), beeps(&made.file(manifest)));
        for (found, late_s) in [(&flashes, flash_late_s), (&beeps, beep_late_s)] {
            assert_eq!(found.len(), SECONDS, "{manifest}: {found:?}");
            for (second, at) in found.iter().enumerate() {
                let off = at - (second as f64 + 0.4 + late_s);
                assert!(off.abs() < FRAME_S, "{manifest}: {off} s in {found:?}");
            }
        }
        let apart = flashes.iter().zip(&beeps).map(|(flash, beep)| flash - flash_late_s - beep + beep_late_s);
        for off in apart {
            assert!(off.abs() < FRAME_S, "{manifest}: {off} s apart: {flashes:?} {beeps:?}");
        }
    }
}

#[tokio::test]
async fn flash_and_beep_stay_together() {
    let directory = tempfile::tempdir().unwrap();
    let clip = flash_and_beep(directory.path(), ("", ""), "-c:a pcm_s16le", "plain.mkv");
    assert_eq!((flashes(&clip).len(), beeps(&clip).len()), (SECONDS, SECONDS), "the clip is as it should be");
    check(&clip, 0.0, 0.0).await;
}

#[tokio::test]
async fn the_priming_of_the_sources_sound_is_no_delay() {
    let directory = tempfile::tempdir().unwrap();
    check(&flash_and_beep(directory.path(), ("", ""), "-bf 2 -c:a aac", "primed.mp4"), 0.0, 0.0).await;
}

#[tokio::test]
async fn a_picture_that_begins_late_stays_late() {
    let directory = tempfile::tempdir().unwrap();
    let clip = flash_and_beep(directory.path(), ("-itsoffset 0.5", ""), "-c:a aac", "late_picture.mp4");
    check(&clip, 0.5, 0.0).await;
}

#[tokio::test]
async fn sound_that_begins_late_stays_late() {
    let directory = tempfile::tempdir().unwrap();
    let clip = flash_and_beep(directory.path(), ("", "-itsoffset 0.3"), "-c:a aac", "late_sound.mp4");
    check(&clip, 0.0, 0.3).await;
}

/// Three packets of AAC are 64 ms: more than a frame, and less than what ffmpeg's resampler lets pass by itself.
#[tokio::test]
async fn sound_that_lost_a_few_packets_stays_with_its_picture() {
    let directory = tempfile::tempdir().unwrap();
    let lossy = "-c:a aac -bsf:a noise=drop='between(n,70,72)'";
    check(&flash_and_beep(directory.path(), ("", ""), lossy, "lossy.mp4"), 0.0, 0.0).await;
}
