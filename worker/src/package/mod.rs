//! From segments on disk to something that plays: read back ([`track`]), verified against the plan ([`verify`]),
//! measured ([`bandwidth`]), and named in playlists ([`playlist`]) and a manifest ([`dash`]) of our own.
//!
//! Everything here blocks on the disk; call it where blocking is allowed.

pub mod bandwidth;
pub mod dash;
pub mod playlist;
pub mod track;
pub mod verify;

use std::fs::{File, OpenOptions};
use std::path::Path;

use millrace_wire::job::{AudioRendition, Outputs, Rendition};

use self::track::Track;
use crate::failure::Failure;
use crate::ffmpeg::args;
use crate::ladder::{AudioPlan, PicturePlan, Plan, Rung};
use crate::ranges::Range;

const PLAYLIST_TYPE: &str = "application/vnd.apple.mpegurl";
const MANIFEST_TYPE: &str = "application/dash+xml";
const VIDEO_TYPE: &str = "video/mp4";
const AUDIO_TYPE: &str = "audio/mp4";
/// A last segment of sound that is shorter goes into the one before. hls.js (1.7) counts the encoder's run-up of 21 ms in
/// where a segment begins; of so short a one it then finds nothing in the buffer, and never sees the end of the sound. Of a
/// picture it counts in what reordering adds, two frames: see [`Track::reordered`].
const SLIVER_SECONDS: f64 = 0.1;

/// What a finished job publishes, and what it was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Package {
    /// The files to publish, in `out_dir`; what names other files comes after them. Segments are among them only when a
    /// stream is wanted.
    pub files: Vec<PackagedFile>,
    /// What clients see, with file names for paths. `bytes` is set when all files are there: [`Package::bytes`].
    pub outputs: Outputs,
    /// The verified renditions of the picture, the highest first, in `out_dir` whatever is wanted.
    pub pictures: Vec<Track>,
    /// The verified sound.
    pub sound: Option<Track>,
    /// The plan's warnings, and what the verification found.
    pub warnings: Vec<String>,
}

impl Package {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One file to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackagedFile {
    /// A plain file name.
    pub name: String,
    /// Its media type.
    pub content_type: &'static str,
    /// Its size.
    pub bytes: u64,
}

/// Verifies what ffmpeg wrote into `out_dir`, removes its manifests, and writes playlists and manifest if a stream is
/// wanted.
///
/// # Errors
/// `verify_failed`, `source_damaged` or `scratch_unavailable`.
pub fn package(plan: &Plan, out_dir: &Path) -> Result<Package, Failure> {
    let count = plan.rungs().len();
    let mut pictures = (0..count).map(|index| track::read(out_dir, index)).collect::<Result<Vec<_>, _>>()?;
    let mut sound = plan.audio.as_ref().map(|_| track::read(out_dir, count)).transpose()?;
    let mut warnings = plan.warnings.clone();
    warnings.extend(verify::check(plan, &pictures, sound.as_ref())?);
    join_slivers(&mut pictures, sound.as_mut(), out_dir)?;
    for manifest in args::MANIFESTS {
        match std::fs::remove_file(out_dir.join(manifest)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::scratch("remove ffmpeg's manifest", &error));
            }
            _ => {}
        }
    }
    let mut package = Package {
        outputs: outputs(plan, &pictures, sound.as_ref()),
        files: Vec::new(),
        pictures,
        sound,
        warnings,
    };
    if plan.wanted.stream {
        add_stream(plan, &mut package, out_dir)?;
    }
    Ok(package)
}

/// Verifies what ffmpeg wrote for one range, whose segments are numbered from 1 as yet. `plan` is the range's own.
///
/// # Errors
/// `verify_failed` or `scratch_unavailable`.
pub fn check_range(plan: &Plan, range: &Range, out_dir: &Path) -> Result<(), Failure> {
    let count = plan.rungs().len();
    let pictures = (0..count).map(|index| track::read(out_dir, index)).collect::<Result<Vec<_>, _>>()?;
    plan.picture.as_ref().map_or(Ok(()), |picture| verify::check_range(picture, range, &pictures))
}

/// Verifies what ffmpeg wrote for the sound alone, as the rendition of an index.
///
/// # Errors
/// `verify_failed`, `source_damaged` or `scratch_unavailable`.
pub fn check_sound(plan: &Plan, index: usize, out_dir: &Path) -> Result<(), Failure> {
    let sound = track::read(out_dir, index)?;
    verify::check(plan, &[], Some(&sound)).map(drop)
}

/// Verifies that a range has its place in the whole: its frames, and no hole before and behind them. The rest of what is
/// to be verified, [`package`] has.
///
/// # Errors
/// `verify_failed`.
pub fn check_joint(plan: Option<&PicturePlan>, range: &Range, pictures: &[Track]) -> Result<(), Failure> {
    plan.map_or(Ok(()), |plan| verify::check_joint(plan, range, pictures))
}

/// Joins last segments that are too short for players: of all pictures, which are cut alike, and of the sound.
fn join_slivers(pictures: &mut [Track], sound: Option<&mut Track>, out_dir: &Path) -> Result<(), Failure> {
    let is_hidden =
        |track: &Track| track.segments.last().is_some_and(|last| last.duration <= track.reordered);
    if pictures.iter().any(is_hidden) {
        pictures.iter_mut().try_for_each(|track| join_last(track, out_dir))?;
    }
    let is_short = |sound: &&mut Track| {
        sound.segments.last().is_some_and(|last| sound.presented_s(last) < SLIVER_SECONDS)
    };
    sound.filter(is_short).map_or(Ok(()), |sound| join_last(sound, out_dir))
}

/// Appends the last segment to the one before, if there is one: two fragments in one segment are as good as one.
fn join_last(track: &mut Track, out_dir: &Path) -> Result<(), Failure> {
    let [.., before, last] = track.segments.as_mut_slice() else { return Ok(()) };
    append(&out_dir.join(&last.name), &out_dir.join(&before.name))
        .map_err(|error| Failure::scratch("join the last segments", &error))?;
    before.append(last);
    track.segments.pop();
    Ok(())
}

/// Moves all bytes of one file to the end of another.
fn append(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut into = OpenOptions::new().append(true).open(to)?;
    std::io::copy(&mut File::open(from)?, &mut into)?;
    std::fs::remove_file(from)
}

fn outputs(plan: &Plan, pictures: &[Track], sound: Option<&Track>) -> Outputs {
    let stream = plan.wanted.stream;
    let renditions = plan.picture.as_ref().map_or(Vec::new(), |picture| {
        let rungs = picture.rungs.iter().zip(pictures);
        rungs.map(|(rung, track)| rendition(picture, rung, track, sound, stream)).collect()
    });
    Outputs {
        hls: stream.then(|| playlist::MASTER.to_owned()),
        dash: stream.then(|| dash::MANIFEST.to_owned()),
        duration_s: pictures.iter().chain(sound).map(Track::duration_s).fold(0.0, f64::max),
        renditions,
        audio: plan.audio.as_ref().zip(sound).map(|(audio, track)| audio_rendition(audio, track, stream)),
        ..Outputs::default()
    }
}

/// Writes playlists and manifest, the multivariant ones last, and lists them and all segments.
fn add_stream(plan: &Plan, package: &mut Package, out_dir: &Path) -> Result<(), Failure> {
    let Package { files, outputs, pictures, sound, .. } = package;
    let write = |name: &str, content_type: &'static str, text: &str| {
        std::fs::write(out_dir.join(name), text)
            .map_err(|error| Failure::scratch("write a playlist", &error))?;
        Ok::<_, Failure>(PackagedFile { name: name.to_owned(), content_type, bytes: text.len() as u64 })
    };
    for (one, track) in outputs.renditions.iter().zip(&*pictures) {
        add_segments(files, track, VIDEO_TYPE);
        files.push(write(one.url.as_deref().unwrap_or_default(), PLAYLIST_TYPE, &playlist::media(track))?);
    }
    if let Some(track) = sound {
        add_segments(files, track, AUDIO_TYPE);
        files.push(write(playlist::AUDIO, PLAYLIST_TYPE, &playlist::media(track))?);
    }
    let picture = plan.picture.as_ref().map(|plan| (plan, pictures.as_slice()));
    let manifest = dash::manifest(picture, plan.audio.as_ref().zip(sound.as_ref()), outputs.duration_s);
    files.push(write(dash::MANIFEST, MANIFEST_TYPE, &manifest)?);
    let master = playlist::master(&outputs.renditions, outputs.audio.as_ref());
    files.push(write(playlist::MASTER, PLAYLIST_TYPE, &master)?);
    Ok(())
}

fn rendition(
    plan: &PicturePlan,
    rung: &Rung,
    track: &Track,
    sound: Option<&Track>,
    stream: bool,
) -> Rendition {
    let codecs = [Some(track), sound].into_iter().flatten().map(|track| track.codec.as_str());
    Rendition {
        name: rung.name.clone(),
        width: rung.width,
        height: rung.height,
        bandwidth: bandwidth::peak(track, sound),
        average_bandwidth: bandwidth::average(track, sound),
        codecs: codecs.collect::<Vec<_>>().join(","),
        frame_rate: plan.fps.as_f64(),
        url: stream.then(|| format!("{}.m3u8", rung.name)),
        mp4: None,
    }
}

fn audio_rendition(plan: &AudioPlan, track: &Track, stream: bool) -> AudioRendition {
    AudioRendition {
        bandwidth: bandwidth::peak(track, None),
        average_bandwidth: bandwidth::average(track, None),
        codecs: track.codec.clone(),
        channels: plan.channels,
        sample_rate: plan.sample_rate,
        url: stream.then(|| playlist::AUDIO.to_owned()),
        mp4: None,
    }
}

fn add_segments(files: &mut Vec<PackagedFile>, track: &Track, content_type: &'static str) {
    files.push(PackagedFile { name: track.init.clone(), content_type, bytes: track.init_bytes });
    files.extend(track.segments.iter().map(|segment| PackagedFile {
        name: segment.name.clone(),
        content_type,
        bytes: segment.bytes,
    }));
}
