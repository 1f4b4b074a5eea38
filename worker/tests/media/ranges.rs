//! Ranges one after the other are the whole, frame for frame, whatever the source is made of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_worker::ffmpeg::{Damage, args};
use millrace_worker::package::{self, Package};
use millrace_worker::ranges;
use tokio_util::sync::CancellationToken;

use super::clip::{Made, ffmpeg, make, run, spec, transcode};

/// A picture whose brightness tells the number of the frame, with a tone.
const COUNTING: &str = "-f lavfi -i nullsrc=s=64x64:r=24:d=38,geq=lum='16+mod(N*7,220)':cb=128:cr=128 \
                        -f lavfi -i sine=d=38:r=44100 -c:a aac -pix_fmt yuv420p";
/// How long a range is.
const LENGTH: Duration = Duration::from_secs(12);
/// How far brightness may be off: less than half of what it changes by from frame to frame.
const OFF_MAX: u8 = 3;

/// The brightness of every frame of a track of a package in `directory`.
fn brightness(directory: &Path, package: &Package) -> Vec<u8> {
    let track = &package.pictures[0];
    let mut joined = std::fs::read(directory.join(&track.init)).unwrap();
    for segment in &track.segments {
        joined.extend(std::fs::read(directory.join(&segment.name)).unwrap());
    }
    let (file, raw) = (directory.join("joined.mp4"), directory.join("joined.raw"));
    std::fs::write(&file, joined).unwrap();
    let paths = [&file, &raw].map(|path| path.to_str().unwrap().to_owned());
    let filters = "scale=1:1:flags=area,format=gray";
    run("ffmpeg", &["-v", "error", "-y", "-i", &paths[0], "-vf", filters, "-f", "rawvideo", &paths[1]]);
    std::fs::read(raw).unwrap()
}

/// Encodes every range of a clip by itself, and the sound, and packages what they made.
async fn in_ranges(whole: &Made, input: &Path) -> (tempfile::TempDir, Package, usize) {
    let (ffmpeg, cancel) = (ffmpeg().await, CancellationToken::new());
    let together = tempfile::tempdir().unwrap();
    let cut = ranges::cut(&whole.plan, &whole.probe, LENGTH).unwrap();
    let mut damage = Damage::default();
    let mut inits: Vec<Vec<u8>> = Vec::new();
    let gather = |from: &Path, first: usize| {
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let name = match args::parse_segment_name(&name) {
                Some((index, number)) => args::segment_name(index, number + first - 1),
                None => name,
            };
            std::fs::copy(&path, together.path().join(name)).unwrap();
        }
    };
    for range in &cut {
        let (part, out) = (range.plan(&whole.plan), tempfile::tempdir().unwrap());
        let encoded = ffmpeg.encode_range((&part, range), input, out.path(), &|_| {}, &cancel).await.unwrap();
        package::check_range(&part, range, out.path()).unwrap();
        // A second more than planned: a keyframe too early would be two, or many.
        let picture = part.picture.as_ref().unwrap();
        let begins_s = range.first as f64 / picture.fps.as_f64() - range.seek_s.unwrap_or(0.0);
        let planned = (begins_s + part.duration_s + 1.0) * 24.0;
        let decoded = encoded.damage.picture.decoded.unwrap();
        assert!(decoded as f64 <= planned, "{decoded} frames of {} for {range:?}", input.display());
        damage.add(&encoded.damage);
        inits.push(std::fs::read(out.path().join("init_0.mp4")).unwrap());
        gather(out.path(), range.first_segment(part.picture.as_ref().unwrap().segment_frames));
    }
    assert!(inits.iter().all(|init| *init == inits[0]), "all begin alike");
    let (sound, out) = (ranges::sound(&whole.plan).unwrap(), tempfile::tempdir().unwrap());
    let index = whole.plan.rungs().len();
    ffmpeg.encode_sound((&sound, index), input, out.path(), &|_| {}, &cancel).await.unwrap();
    package::check_sound(&sound, index, out.path()).unwrap();
    gather(out.path(), 1);
    let package = package::package(&whole.plan, together.path()).unwrap();
    for range in &cut {
        package::check_joint(whole.plan.picture.as_ref(), range, &package.pictures).unwrap();
    }
    assert_eq!(damage.judge(&whole.plan), Ok(Vec::new()));
    (together, package, cut.len())
}

async fn check(input: &Path, fewest: usize) {
    let whole = transcode(input, &spec(r#""segment_seconds":2"#)).await.unwrap();
    let (together, package, count) = in_ranges(&whole, input).await;
    assert!(count >= fewest, "{count} ranges");
    let bytes = |directory: &Path, name: &str| std::fs::read(directory.join(name)).unwrap();
    for name in
        ["init_0.mp4", "init_1.mp4", "seg_0_00001.m4s", "seg_1_00001.m4s", "seg_1_00019.m4s", "audio.m3u8"]
    {
        let (one, other) = (bytes(whole.directory.path(), name), bytes(together.path(), name));
        let lengths = (one.len(), other.len());
        assert!(one == other, "{name} of {}: {lengths:?}", input.display());
    }
    let samples = |package: &Package| -> Vec<u64> {
        package.pictures[0].segments.iter().map(|segment| segment.samples).collect()
    };
    assert_eq!(samples(&package), samples(&whole.package));
    let (one, other) =
        (brightness(whole.directory.path(), &whole.package), brightness(together.path(), &package));
    assert_eq!(one.len(), other.len());
    let off = one.iter().zip(&other).position(|(one, other)| one.abs_diff(*other) > OFF_MAX);
    assert_eq!(off, None, "the first frame that is another");
}

fn clip(directory: &Path, codec: &str, name: &str) -> PathBuf {
    make(directory, &format!("{COUNTING} {codec}"), name)
}

#[tokio::test]
async fn ranges_of_a_plain_source_are_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    check(&clip(directory.path(), "-c:v libx264 -g 50", "plain.mp4"), 3).await;
}

#[tokio::test]
async fn ranges_of_open_gops_are_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    let codec = "-c:v libx264 -x264-params open-gop=1:keyint=48:min-keyint=48:scenecut=0:bframes=3:b-adapt=0";
    check(&clip(directory.path(), codec, "open.mkv"), 3).await;
    check(&clip(directory.path(), codec, "open.mp4"), 3).await;
    check(&clip(directory.path(), codec, "open.ts"), 3).await;
    check(&clip(directory.path(), "-c:v mpeg2video -q:v 2 -g 15 -bf 2", "open-mpeg2.ts"), 3).await;
}

#[tokio::test]
async fn ranges_between_sparse_keyframes_are_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    let codec = "-c:v libx264 -x264-params keyint=600:min-keyint=600:scenecut=0";
    check(&clip(directory.path(), codec, "sparse.mp4"), 3).await;
    check(&clip(directory.path(), codec, "sparse.ts"), 3).await;
}

#[tokio::test]
async fn ranges_of_a_variable_rate_with_gaps_are_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    // Gaps of two seconds and of fourteen, one of them over a joint.
    let codec = "-vf select='not(between(mod(n\\,240)\\,20\\,70)+between(n\\,500\\,840))' -fps_mode vfr -c:v libx264 -g 100";
    check(&clip(directory.path(), codec, "uneven.mkv"), 3).await;
}

#[tokio::test]
async fn ranges_in_which_the_last_frame_is_held_are_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    let codec = "-filter:v trim=end=20 -c:v libx264 -g 48";
    check(&clip(directory.path(), codec, "held.mp4"), 3).await;
}

#[tokio::test]
async fn ranges_that_end_with_one_frame_of_a_segment_are_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    let codec = "-filter:v trim=end_frame=865 -c:v libx264 -g 48";
    check(&clip(directory.path(), codec, "sliver.mp4"), 3).await;
}
