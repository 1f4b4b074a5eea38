//! What a page shows before and beside the player: a poster, and small tiles for every moment of the seek bar.
//!
//! They are made of the finished renditions, not of the source: those are sound, small and have a keyframe every two
//! seconds or so, and decoding nothing else costs half a percent of the encode. The tiles come from the lowest
//! rendition, the poster from the lowest that is large enough. Tiles stand at keyframes only, and segments without a
//! wanted keyframe are not even read, so a film of three hours costs little more than one of ten minutes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use millrace_wire::job::FailureCode;
use tokio_util::sync::CancellationToken;

use crate::failure::{Ended, Failure};
use crate::ffmpeg::{self, Ffmpeg, Stills};
use crate::package::PackagedFile;
use crate::package::track::{Segment, Track};
use crate::workbench::Workbench;

/// The poster's file name.
pub const POSTER: &str = "poster.jpg";
/// The tiles' index, in WebVTT.
pub const INDEX: &str = "thumbnails.vtt";

const IMAGE_TYPE: &str = "image/jpeg";
const INDEX_TYPE: &str = "text/vtt";
/// Longer side of a tile, in pixels.
const TILE_SIDE: u32 = 160;
/// Tiles of a row, and rows of a sheet.
const SHEET_SIDE: usize = 10;
/// Longer side of the poster, at most.
const POSTER_SIDE_MAX: u32 = 1280;
/// Tiles are at least this far apart, …
const APART_SECONDS: f64 = 2.0;
/// … and about this many at most.
const TILES: f64 = 200.0;
/// How much nearer a keyframe may be: a rate like 29.97 makes no two whole seconds.
const APART_SLACK: f64 = 0.9;
/// Segments, spread over the whole, of which the poster is chosen.
const POSTER_SEGMENTS: usize = 8;

/// What was made, in `out_dir`.
#[derive(Debug, Clone, PartialEq)]
pub struct Thumbnails {
    /// [`POSTER`], [`INDEX`] and the sheets `sprite_001.jpg`, …
    pub files: Vec<PackagedFile>,
    /// Tiles on all sheets.
    pub tiles: usize,
    /// CPU time of ffmpeg.
    pub cpu: Duration,
}

/// Makes poster, sheets and index of a picture's renditions, whose segments lie in `out_dir`; any order, at least
/// one. `work` is a directory on the same file system that is not published.
///
/// # Errors
/// Cancelled, or a failure. Either way nothing runs any more and nothing is left in `work`.
pub async fn make(
    ffmpeg: &Ffmpeg,
    pictures: &[&Track],
    out_dir: &Path,
    work: &Path,
    cancel: &CancellationToken,
) -> Result<Thumbnails, Ended> {
    let (small, large) = choose(pictures).ok_or_else(|| no_picture("no rendition"))?;
    let (small_size, large_size) = (size(small)?, size(large)?);
    let tiles = Tiles::of(small).ok_or_else(|| no_picture("no keyframe"))?;
    let candidates = spread(&large.segments);
    let bench = Workbench::create(work)?;
    let wanted = tiles.segments.iter().map(|index| &small.segments[*index]);
    let keyframes = wanted.clone().chain(candidates.iter().copied()).map(|one| one.syncs.len() as u64).sum();
    let sheet = tiles.starts.len().min(SHEET_SIDE);
    let stills = Stills {
        tiles_from: bench.join(out_dir, small, wanted, "tiles.mp4", cancel).await?,
        apart_s: tiles.apart_s,
        tile: fit(small_size, TILE_SIDE),
        grid: (sheet as u32, tiles.starts.len().div_ceil(SHEET_SIDE).min(SHEET_SIDE) as u32),
        poster_from: bench.join(out_dir, large, candidates, "poster.mp4", cancel).await?,
        poster: fit(large_size, POSTER_SIDE_MAX),
        keyframes,
        directory: bench.path().to_owned(),
    };
    let cpu = ffmpeg.stills(&stills, cancel).await?;

    let bright = bench.file(ffmpeg::BRIGHT).exists();
    let poster = if bright { ffmpeg::BRIGHT } else { ffmpeg::ANY };
    let mut files = vec![bench.hand_over(poster, out_dir, POSTER, IMAGE_TYPE)?];
    let sheets = tiles.starts.len().div_ceil(SHEET_SIDE * SHEET_SIDE);
    if bench.file(&ffmpeg::sheet_name(sheets + 1)).exists() {
        return Err(Failure::new(FailureCode::VerifyFailed, "ffmpeg made more tiles than it should").into());
    }
    for name in (1..=sheets).map(ffmpeg::sheet_name) {
        files.push(bench.hand_over(&name, out_dir, &name, IMAGE_TYPE)?);
    }
    let index = index(&tiles.starts, small.duration_s(), stills.tile);
    std::fs::write(bench.file(INDEX), index)
        .map_err(|error| Failure::scratch("write the tiles' index", &error))?;
    files.push(bench.hand_over(INDEX, out_dir, INDEX, INDEX_TYPE)?);
    Ok(Thumbnails { files, tiles: tiles.starts.len(), cpu })
}

fn no_picture(what: &str) -> Failure {
    Failure::new(FailureCode::Internal, "there is no picture to make thumbnails of").log(what)
}

fn size(track: &Track) -> Result<(u32, u32), Failure> {
    let sound = || no_picture(&format!("{} has no size", track.init));
    track.size.filter(|(width, height)| *width > 0 && *height > 0).ok_or_else(sound)
}

/// The smallest rendition, and the smallest that need not be scaled up to be a poster, or else the largest.
fn choose<'a>(pictures: &[&'a Track]) -> Option<(&'a Track, &'a Track)> {
    let mut pictures = pictures.to_vec();
    pictures.sort_by_key(|track| track.size);
    let is_large =
        |track: &&Track| track.size.is_some_and(|(width, height)| width.max(height) >= POSTER_SIDE_MAX);
    let large = pictures.iter().copied().find(is_large).or(pictures.last().copied());
    Some((*pictures.first()?, large?))
}

/// Even, of the same shape as far as that can be, not larger than the picture, and no side longer than given.
fn fit((width, height): (u32, u32), side_max: u32) -> (u32, u32) {
    let scale = (f64::from(side_max) / f64::from(width.max(height))).min(1.0);
    let even = |side: u32| ((f64::from(side) * scale / 2.0).round() as u32 * 2).max(2);
    (even(width), even(height))
}

/// Which keyframes become tiles.
#[derive(Debug, PartialEq)]
struct Tiles {
    /// Seconds at which each is shown; the first is 0.
    starts: Vec<f64>,
    /// Positions of the segments that hold them.
    segments: BTreeSet<usize>,
    /// A distance that tells a wanted keyframe from those left out.
    apart_s: f64,
}

impl Tiles {
    /// From the first keyframe, always the next that is far enough. ffmpeg chooses by the same rule with `apart_s`,
    /// which lies half a frame below the shortest distance of two tiles: what is nearer was left out here, too.
    fn of(track: &Track) -> Option<Self> {
        let apart = (track.duration_s() / TILES).max(APART_SECONDS) * APART_SLACK;
        let (mut starts, mut segments) = (Vec::<f64>::new(), BTreeSet::new());
        let mut shortest = f64::MAX;
        let ticks = track.segments.iter().map(|segment| segment.duration).sum();
        let frame = track.seconds(ticks) / track.samples().max(1) as f64;
        // In whole frames: of two distances that are the same but for rounding, one may else be far enough and one not.
        let is_far = |distance: f64| (distance / frame).round() * frame >= apart;
        for (position, segment) in track.segments.iter().enumerate() {
            let each = track.seconds(segment.duration) / segment.samples.max(1) as f64;
            for sync in &segment.syncs {
                let at = track.seconds(segment.start) + *sync as f64 * each;
                let distance = starts.last().map(|last| at - last);
                if distance.is_none_or(is_far) {
                    shortest = distance.unwrap_or(f64::MAX).min(shortest);
                    starts.push(at);
                    segments.insert(position);
                }
            }
        }
        // With one tile alone, nothing is far enough.
        let apart_s = if shortest == f64::MAX { 1e9 } else { shortest - frame / 2.0 };
        *starts.first_mut()? = 0.0;
        Some(Self { starts, segments, apart_s })
    }
}

/// A few, from the first on, evenly spread.
fn spread(segments: &[Segment]) -> Vec<&Segment> {
    let step = segments.len().div_ceil(POSTER_SEGMENTS).max(1);
    segments.iter().step_by(step).collect()
}

/// `00:00:04.000`.
fn time(seconds: f64) -> String {
    let ms = (seconds * 1000.0).round() as u64;
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

/// One cue for each tile, without a gap to the end of the picture.
fn index(starts: &[f64], duration_s: f64, (width, height): (u32, u32)) -> String {
    let mut text = "WEBVTT\n".to_owned();
    let ends = starts.iter().skip(1).copied().chain([duration_s]);
    for (number, (start, end)) in starts.iter().zip(ends).enumerate() {
        let (sheet, cell) = (number / SHEET_SIDE.pow(2), number % SHEET_SIDE.pow(2));
        let (x, y) = (cell % SHEET_SIDE * width as usize, cell / SHEET_SIDE * height as usize);
        let (start, end, sheet) = (time(*start), time(end), ffmpeg::sheet_name(sheet + 1));
        let _ = write!(text, "\n{start} --> {end}\n{sheet}#xywh={x},{y},{width},{height}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `frames` of `rate.0 / rate.1` a second, cut and with keyframes as said.
    fn track(size: (u32, u32), rate: (u32, u64), frames: u64, segment: u64, gop: usize) -> Track {
        let cut = |first: u64| {
            let samples = segment.min(frames - first);
            Segment {
                name: format!("seg_0_{:05}.m4s", first / segment + 1),
                bytes: 1,
                start: first * rate.1,
                duration: samples * rate.1,
                samples,
                syncs: (0..samples).step_by(gop).collect(),
            }
        };
        Track {
            init: "init_0.mp4".to_owned(),
            init_bytes: 1,
            timescale: rate.0,
            codec: "avc1.64001e".to_owned(),
            size: Some(size),
            skip: 0,
            reordered: 0,
            segments: (0..frames).step_by(segment as usize).map(cut).collect(),
        }
    }

    #[test]
    fn tiles_come_from_the_smallest_and_the_poster_from_the_smallest_that_is_wide() {
        let of = |width, height| track((width, height), (25, 1), 100, 100, 50);
        let (a, b, c) = (of(1920, 1080), of(1280, 720), of(640, 360));
        assert_eq!(choose(&[&a, &b, &c]), Some((&c, &b)));
        assert_eq!(choose(&[&c]), Some((&c, &c)));
        let (upright, low) = (of(608, 1080), of(202, 360));
        assert_eq!(choose(&[&upright, &low]), Some((&low, &upright)));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn sizes_keep_the_shape_and_are_even_and_never_larger() {
        let tile = |width, height| fit((width, height), TILE_SIDE);
        assert_eq!(tile(640, 360), (160, 90));
        assert_eq!(tile(854, 480), (160, 90));
        assert_eq!(tile(202, 360), (90, 160));
        assert_eq!(tile(16, 16), (16, 16));
        assert_eq!(tile(8192, 16), (160, 2));
        assert_eq!(tile(16, 1080), (2, 160));
        assert_eq!(fit((1920, 1080), POSTER_SIDE_MAX), (1280, 720));
        assert_eq!(fit((1080, 1920), POSTER_SIDE_MAX), (720, 1280));
    }

    #[test]
    fn a_tile_stands_at_every_second_keyframe_where_they_are_dense_and_at_each_where_not() {
        let starts = |track: &Track| Tiles::of(track).unwrap().starts;
        assert_eq!(starts(&track((64, 36), (24, 1), 240, 96, 48)), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(starts(&track((64, 36), (25, 1), 200, 125, 25)), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(starts(&track((64, 36), (10, 100), 4, 1, 1)), [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(starts(&track((64, 36), (25, 1), 1, 100, 50)), [0.0]);
    }

    #[test]
    fn keyframes_that_are_just_far_enough_all_are() {
        let tiles = Tiles::of(&track((64, 36), (350, 70), 42, 42, 9)).unwrap();
        assert_eq!(tiles.starts, [0.0, 1.8, 3.6, 5.4, 7.2]);
    }

    #[test]
    fn three_hours_are_two_hundred_tiles_of_as_many_segments() {
        let long = track((64, 36), (30_000, 1001), 3 * 3600 * 30, 120, 60);
        let tiles = Tiles::of(&long).unwrap();
        assert!((180..=230).contains(&tiles.starts.len()), "{}", tiles.starts.len());
        assert_eq!(tiles.starts.len(), tiles.segments.len());
        assert!(tiles.segments.len() * 10 < long.segments.len());
        assert_eq!(spread(&long.segments).len(), POSTER_SEGMENTS);
    }

    #[test]
    fn the_index_has_no_gap_and_turns_to_the_next_sheet() {
        let starts: Vec<f64> = (0..101).map(|tile| f64::from(tile) * 36.036).collect();
        let text = index(&starts, 3650.5, (160, 90));
        let head =
            "WEBVTT\n\n00:00:00.000 --> 00:00:36.036\nsprite_001.jpg#xywh=0,0,160,90\n\n00:00:36.036 --> ";
        assert!(text.starts_with(head), "{text}");
        assert!(
            text.contains("\n00:59:27.564 --> 01:00:03.600\nsprite_001.jpg#xywh=1440,810,160,90\n"),
            "{text}"
        );
        let last = "\n01:00:03.600 --> 01:00:50.500\nsprite_002.jpg#xywh=0,0,160,90\n";
        assert!(text.ends_with(last), "{text}");
    }

    proptest! {
        /// What ffmpeg's filter does with the keyframes of the chosen segments, and what was planned.
        #[test]
        fn ffmpeg_chooses_the_same_keyframes(
            frames in 1_u64..200_000, seconds in 2_u64..=10, gop_divisor in 1_u64..6, rate in 1_u64..=60,
            per in 1_u64..=12,
        ) {
            let segment = (rate * seconds).div_ceil(per).max(1);
            let gop = if segment % gop_divisor == 0 { segment / gop_divisor } else { segment };
            let long = track((64, 36), (rate as u32 * 10, per * 10), frames, segment, gop as usize);
            let tiles = Tiles::of(&long).unwrap();
            let mut selected: Vec<f64> = Vec::new();
            for (position, one) in long.segments.iter().enumerate() {
                for sync in one.syncs.iter().filter(|_| tiles.segments.contains(&position)) {
                    let at = long.seconds(one.start + sync * one.duration / one.samples);
                    if selected.last().is_none_or(|last| at - last >= tiles.apart_s) {
                        selected.push(at);
                    }
                }
            }
            prop_assert_eq!(selected.len(), tiles.starts.len());
            prop_assert!(selected.iter().zip(&tiles.starts).all(|(one, other)| (one - other).abs() < 1e-6));
            prop_assert!(tiles.starts.len() <= 230);
        }
    }
}
