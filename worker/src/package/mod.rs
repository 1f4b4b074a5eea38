//! From segments on disk to something that plays: read back ([`track`]), verified against the plan ([`verify`]),
//! measured ([`bandwidth`]), and named in playlists of our own ([`playlist`]).
//!
//! Everything here blocks on the disk; call it where blocking is allowed.

pub mod bandwidth;
pub mod playlist;
pub mod track;
pub mod verify;

use std::path::Path;

use millrace_wire::job::{AudioRendition, Rendition};

use self::track::Track;
use crate::failure::Failure;
use crate::ffmpeg::args;
use crate::ladder::{AudioPlan, PicturePlan, Plan, Rung};

const PLAYLIST_TYPE: &str = "application/vnd.apple.mpegurl";
const VIDEO_TYPE: &str = "video/mp4";
const AUDIO_TYPE: &str = "audio/mp4";

/// Everything that a finished job publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Package {
    /// All of them, in `out_dir`; the multivariant playlist comes last, so that who copies in order publishes nothing
    /// that names what is not there yet.
    pub files: Vec<PackagedFile>,
    /// The highest first; `url` is the file name of its media playlist.
    pub renditions: Vec<Rendition>,
    /// Of the picture or the sound, whichever is longer.
    pub duration_s: f64,
    /// Bytes of all files.
    pub bytes: u64,
    /// The plan's warnings, and what the verification found.
    pub warnings: Vec<String>,
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

/// Verifies what ffmpeg wrote into `out_dir`, removes its manifest and writes the playlists.
///
/// # Errors
/// `verify_failed`, `source_damaged` or `scratch_unavailable`.
pub fn package(plan: &Plan, out_dir: &Path) -> Result<Package, Failure> {
    let pictures =
        (0..plan.rungs().len()).map(|index| track::read(out_dir, index)).collect::<Result<Vec<_>, _>>()?;
    let sound = plan.audio.as_ref().map(|_| track::read(out_dir, plan.rungs().len())).transpose()?;
    let mut warnings = plan.warnings.clone();
    warnings.extend(verify::check(plan, &pictures, sound.as_ref())?);
    match std::fs::remove_file(out_dir.join(args::MANIFEST)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::scratch("remove ffmpeg's manifest", &error));
        }
        _ => {}
    }
    let mut files = Vec::new();
    let write = |files: &mut Vec<PackagedFile>, name: &str, text: String| {
        let bytes = text.len() as u64;
        std::fs::write(out_dir.join(name), text)
            .map_err(|error| Failure::scratch("write a playlist", &error))?;
        files.push(PackagedFile { name: name.to_owned(), content_type: PLAYLIST_TYPE, bytes });
        Ok::<(), Failure>(())
    };
    let renditions: Vec<Rendition> = plan.picture.as_ref().map_or(Vec::new(), |plan| {
        let rungs = plan.rungs.iter().zip(&pictures);
        rungs.map(|(rung, track)| rendition(plan, rung, track, sound.as_ref())).collect()
    });
    for (one, track) in renditions.iter().zip(&pictures) {
        add_segments(&mut files, track, VIDEO_TYPE);
        write(&mut files, one.url.as_deref().unwrap_or_default(), playlist::media(track))?;
    }
    if let Some(track) = &sound {
        add_segments(&mut files, track, AUDIO_TYPE);
        write(&mut files, playlist::AUDIO, playlist::media(track))?;
    }
    let audio = plan.audio.as_ref().zip(sound.as_ref()).map(|(plan, track)| audio_rendition(plan, track));
    write(&mut files, playlist::MASTER, playlist::master(&renditions, audio.as_ref()))?;
    Ok(Package {
        duration_s: pictures.iter().chain(&sound).map(Track::duration_s).fold(0.0, f64::max),
        bytes: files.iter().map(|file| file.bytes).sum(),
        files,
        renditions,
        warnings,
    })
}

fn rendition(plan: &PicturePlan, rung: &Rung, track: &Track, sound: Option<&Track>) -> Rendition {
    let codecs = [Some(track), sound].into_iter().flatten().map(|track| track.codec.as_str());
    Rendition {
        name: rung.name.clone(),
        width: rung.width,
        height: rung.height,
        bandwidth: bandwidth::peak(track, sound),
        average_bandwidth: bandwidth::average(track, sound),
        codecs: codecs.collect::<Vec<_>>().join(","),
        frame_rate: plan.fps.as_f64(),
        url: Some(format!("{}.m3u8", rung.name)),
        mp4: None,
    }
}

fn audio_rendition(plan: &AudioPlan, track: &Track) -> AudioRendition {
    AudioRendition {
        bandwidth: bandwidth::peak(track, None),
        average_bandwidth: bandwidth::average(track, None),
        codecs: track.codec.clone(),
        channels: plan.channels,
        sample_rate: plan.sample_rate,
        url: Some(playlist::AUDIO.to_owned()),
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
