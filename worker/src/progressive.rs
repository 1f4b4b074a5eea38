//! One plain MP4 for each rung: for who wants a file and not a stream.
//!
//! Picture and sound are copied out of the segments, so a file shows what the stream shows and costs next to nothing.
//! One rung at a time: joined, copied, verified, so that the scratch holds only one rung twice. Rejected: one ffmpeg
//! for all rungs, which saves a tenth of a second and needs them all joined at once.

use std::fs::File;
use std::io::{BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use millrace_wire::job::FailureCode;
use mp4_atom::{Atom as _, Header, Mdat, Moov, ReadAtom as _, ReadFrom as _, StszSamples, Trak};
use tokio_util::sync::CancellationToken;

use crate::failure::{Ended, Failure};
use crate::ffmpeg::{Ffmpeg, Remux};
use crate::package::PackagedFile;
use crate::package::track::Track;
use crate::workbench::Workbench;

/// The name of the file that has sound alone.
pub const AUDIO: &str = "audio.m4a";

const VIDEO_TYPE: &str = "video/mp4";
const AUDIO_TYPE: &str = "audio/mp4";

/// Makes `{rung}.mp4` of every picture, each with the sound if there is any; without a picture, [`AUDIO`]. The
/// segments lie in `out_dir`, and so do the files when all are done; `work` is a directory on the same file system
/// that is not published.
///
/// # Errors
/// Cancelled, or a failure: `verify_failed` when a file does not read back as its tracks. Either way nothing runs
/// any more, nothing is left in `work`, and no file was added to `out_dir` unless it was the last step that failed.
pub async fn make(
    ffmpeg: &Ffmpeg,
    pictures: &[(&str, &Track)],
    sound: Option<&Track>,
    out_dir: &Path,
    work: &Path,
    cancel: &CancellationToken,
) -> Result<Vec<PackagedFile>, Ended> {
    let bench = Workbench::create(work)?;
    let mut source = Source { ffmpeg, bench: &bench, out_dir, cancel, sound: None };
    if let Some(track) = sound {
        source.sound = Some((track, bench.join(out_dir, track, &track.segments, "sound.mp4", cancel).await?));
    }
    let mut done = Vec::new();
    for (rung, picture) in pictures {
        let name = format!("{rung}.mp4");
        source.copy(Some(*picture), &name).await?;
        done.push((name, VIDEO_TYPE));
    }
    if pictures.is_empty() && sound.is_some() {
        source.copy(None, AUDIO).await?;
        done.push((AUDIO.to_owned(), AUDIO_TYPE));
    }
    let hand_over = |(name, kind): &(String, &'static str)| bench.hand_over(name, out_dir, name, kind);
    Ok(done.iter().map(hand_over).collect::<Result<_, _>>()?)
}

/// Where a file comes from.
struct Source<'a> {
    ffmpeg: &'a Ffmpeg,
    bench: &'a Workbench,
    out_dir: &'a Path,
    cancel: &'a CancellationToken,
    sound: Option<(&'a Track, PathBuf)>,
}

impl Source<'_> {
    /// Makes and verifies one file on the bench.
    async fn copy(&self, picture: Option<&Track>, name: &str) -> Result<(), Ended> {
        let (mut tracks, mut inputs) = (Vec::new(), Vec::new());
        if let Some(track) = picture {
            let joined = self.bench.join(self.out_dir, track, &track.segments, "picture.mp4", self.cancel);
            inputs.push(joined.await?);
            tracks.push(track);
        }
        if let Some((track, path)) = &self.sound {
            inputs.push(path.clone());
            tracks.push(track);
        }
        let remux = Remux {
            inputs,
            directory: self.bench.path().to_owned(),
            name: name.to_owned(),
            bytes: tracks.iter().map(|track| track.init_bytes + track.media_bytes()).sum(),
            samples: tracks.iter().map(|track| track.samples()).sum(),
        };
        self.ffmpeg.remux(&remux, self.cancel).await?;
        verify(&self.bench.file(name), &tracks)?;
        if picture.is_some() {
            self.bench.remove(&remux.inputs[0])?;
        }
        Ok(())
    }
}

fn wrong(what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::VerifyFailed, "a file is not what its segments are").log(what)
}

/// Whether the file has its index in front and these tracks in this order, whole, beginning where they should.
fn verify(path: &Path, tracks: &[&Track]) -> Result<(), Failure> {
    let moov = read_index(path)?;
    if moov.trak.len() != tracks.len() {
        return Err(wrong(format_args!("{} tracks, not {}", moov.trak.len(), tracks.len())));
    }
    moov.trak.iter().zip(tracks).try_for_each(|(found, track)| verify_track(found, track))
}

fn read_index(path: &Path) -> Result<Moov, Failure> {
    let unread = |error: std::io::Error| Failure::scratch("read a finished file", &error);
    let mut from = BufReader::new(File::open(path).map_err(wrong)?);
    while let Some(header) = Option::<Header>::read_from(&mut from).map_err(wrong)? {
        match header.kind {
            Moov::KIND => return Moov::read_atom(&header, &mut from).map_err(wrong),
            Mdat::KIND => return Err(wrong("the index is not in front")),
            _ => {
                let size = header.size.and_then(|size| i64::try_from(size).ok());
                let size = size.ok_or_else(|| wrong("a box of unknown size"))?;
                from.seek(SeekFrom::Current(size)).map_err(unread)?;
            }
        }
    }
    Err(wrong("no index"))
}

fn verify_track(found: &Trak, track: &Track) -> Result<(), Failure> {
    let (media, table) = (&found.mdia.mdhd, &found.mdia.minf.stbl);
    let samples = match &table.stsz.samples {
        StszSamples::Identical { count, .. } => u64::from(*count),
        StszSamples::Different { sizes } => sizes.len() as u64,
    };
    if samples != track.samples() {
        return Err(wrong(format_args!("{}: {samples} samples, not {}", track.init, track.samples())));
    }
    let lasts: u64 =
        table.stts.entries.iter().map(|run| u64::from(run.sample_count) * u64::from(run.sample_delta)).sum();
    let seconds = |ticks: u64| ticks as f64 / f64::from(media.timescale.max(1));
    let planned = track.seconds(track.segments.iter().map(|segment| segment.duration).sum());
    if (seconds(lasts) - planned).abs() > planned / samples.max(1) as f64 {
        return Err(wrong(format_args!("{}: {} s, not {planned}", track.init, seconds(lasts))));
    }
    // The first frame to be seen is the first of the file; of the sound, the encoder's run-up is skipped.
    let reordered =
        table.ctts.as_ref().and_then(|ctts| ctts.entries.first()).map_or(0, |run| run.sample_offset);
    let begins =
        if track.size.is_some() { seconds(reordered.unsigned_abs()) } else { track.seconds(track.skip) };
    let edits = found.edts.as_ref().and_then(|edts| edts.elst.as_ref());
    let edits = edits.map_or(&[][..], |list| list.entries.as_slice());
    let starts = match edits {
        [] => Some(0),
        [one] => one.media_time,
        _ => None,
    };
    if starts.is_none_or(|starts| (seconds(starts) - begins).abs() > 1e-3) {
        return Err(wrong(format_args!("{}: begins by {edits:?}, not at {begins} s", track.init)));
    }
    Ok(())
}
