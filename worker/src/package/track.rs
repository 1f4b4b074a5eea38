//! What the muxer wrote for one rendition, read back from its bytes.
//!
//! Nothing here believes a manifest: durations, sizes, keyframes and codec strings come from the boxes themselves.

use std::fs::File;
use std::io::{BufReader, Seek as _, SeekFrom};
use std::path::Path;

use millrace_wire::job::FailureCode;
use mp4_atom::{
    Atom as _, Codec, FourCC, Ftyp, Header, Mdat, Moof, Moov, ReadAtom as _, ReadFrom as _, Trex, Trun,
};

use crate::failure::Failure;
use crate::ffmpeg::args;

/// A sample that cannot be decoded on its own has this bit (`sample_is_non_sync_sample`).
const NON_SYNC: u32 = 0x1_0000;
/// Largest box that is read whole; a segment's index is far smaller.
const INDEX_BYTES_MAX: usize = 16 << 20;

/// One rendition: its initialisation segment and its media segments in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Track {
    /// The initialisation segment's file name.
    pub init: String,
    /// Its size.
    pub init_bytes: u64,
    /// Ticks per second.
    pub timescale: u32,
    /// RFC 6381.
    pub codec: String,
    /// Pixels, of a picture.
    pub size: Option<(u32, u32)>,
    /// Ticks of sound before what is to be heard (the edit list's start). Zero for a picture: there the edit list only
    /// takes back what reordering added, and every frame is seen.
    pub skip: u64,
    /// Ticks that the edit list takes back of a picture: how much later than decoded its first frame is shown by the
    /// segments alone. Zero where no frame is reordered.
    pub reordered: u64,
    /// In order, at least one.
    pub segments: Vec<Segment>,
}

/// One media segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its file name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Decoding time of its first sample, in ticks.
    pub start: u64,
    /// In ticks.
    pub duration: u64,
    /// How many.
    pub samples: u64,
    /// Which of its samples, counted from 0, can be decoded on their own.
    pub syncs: Vec<u64>,
}

impl Segment {
    /// Adds what was the next one.
    pub fn append(&mut self, next: &Self) {
        self.syncs.extend(next.syncs.iter().map(|sync| self.samples + sync));
        self.bytes += next.bytes;
        self.duration += next.duration;
        self.samples += next.samples;
    }
}

impl Track {
    /// Ticks as seconds.
    pub fn seconds(&self, ticks: u64) -> f64 {
        ticks as f64 / f64::from(self.timescale)
    }

    /// When a segment begins in the presentation and how long it lasts there, in ticks: without what is skipped. Every
    /// manifest and every rate counts so, for players' clocks do.
    pub fn presented(&self, segment: &Segment) -> (u64, u64) {
        let after_skip = |ticks: u64| ticks.saturating_sub(self.skip);
        let start = after_skip(segment.start);
        (start, after_skip(segment.start + segment.duration) - start)
    }

    /// Seconds that a segment lasts in the presentation.
    pub fn presented_s(&self, segment: &Segment) -> f64 {
        self.seconds(self.presented(segment).1)
    }

    /// All of it, in seconds of the presentation.
    pub fn duration_s(&self) -> f64 {
        self.seconds(self.segments.iter().map(|segment| self.presented(segment).1).sum())
    }

    /// All samples.
    pub fn samples(&self) -> u64 {
        self.segments.iter().map(|segment| segment.samples).sum()
    }

    /// Bytes of all media segments.
    pub fn media_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

fn wrong(name: &str, what: impl std::fmt::Display) -> Failure {
    let failure = Failure::new(FailureCode::VerifyFailed, "ffmpeg wrote a file that cannot be read back");
    failure.log(format_args!("{name}: {what}"))
}

/// Reads rendition `index` of `directory`.
///
/// # Errors
/// `verify_failed` when a file is missing or is not what a segment should be; `scratch_unavailable`.
pub fn read(directory: &Path, index: usize) -> Result<Track, Failure> {
    let init = args::init_name(index);
    let (moov, init_bytes) = read_init(&directory.join(&init), &init)?;
    let track = moov.trak.first().ok_or_else(|| wrong(&init, "no track"))?;
    let trex = moov.mvex.as_ref().and_then(|mvex| mvex.trex.first());
    let trex = trex.cloned().unwrap_or_default();
    let sample = track.mdia.minf.stbl.stsd.codecs.first().ok_or_else(|| wrong(&init, "no sample entry"))?;
    let (codec, size) = describe(sample).ok_or_else(|| wrong(&init, "neither H.264 nor AAC"))?;
    let edits = track.edts.as_ref().and_then(|edts| edts.elst.as_ref());
    let begins = edits.and_then(|list| list.entries.iter().find_map(|entry| entry.media_time)).unwrap_or(0);
    let (skip, reordered) = if size.is_some() { (0, begins) } else { (begins, 0) };
    let timescale = track.mdia.mdhd.timescale;
    if timescale == 0 {
        return Err(wrong(&init, "a time scale of zero"));
    }
    let mut segments = Vec::new();
    loop {
        let name = args::segment_name(index, segments.len() + 1);
        match File::open(directory.join(&name)) {
            Ok(file) => segments.push(read_segment(file, name, &trex)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            Err(error) => return Err(Failure::scratch("open a segment", &error)),
        }
    }
    let track = Track { init, init_bytes, timescale, codec, size, skip, reordered, segments };
    match track.segments.first() {
        None => Err(wrong(&track.init, "no segments")),
        Some(first) if track.presented(first).1 == 0 => Err(wrong(&first.name, "all of it is skipped")),
        Some(_) => Ok(track),
    }
}

/// The RFC 6381 string, and the size of a picture.
fn describe(sample: &Codec) -> Option<(String, Option<(u32, u32)>)> {
    match sample {
        Codec::Avc1(avc1) => {
            let c = &avc1.avcc;
            let (profile, flags, level) =
                (c.avc_profile_indication, c.profile_compatibility, c.avc_level_indication);
            let size = (u32::from(avc1.visual.width), u32::from(avc1.visual.height));
            Some((format!("avc1.{profile:02x}{flags:02x}{level:02x}"), Some(size)))
        }
        Codec::Mp4a(mp4a) => {
            let profile = mp4a.esds.es_desc.dec_config.dec_specific.as_ref()?.profile;
            Some((format!("mp4a.40.{profile}"), None))
        }
        _ => None,
    }
}

fn read_init(path: &Path, name: &str) -> Result<(Moov, u64), Failure> {
    let file = File::open(path).map_err(|error| wrong(name, error))?;
    let bytes = file.metadata().map_err(|error| Failure::scratch("read a segment's size", &error))?.len();
    let mut from = BufReader::new(file);
    let mut moov = None;
    while let Some(header) = next_header(&mut from, name)? {
        match header.kind {
            Moov::KIND => {
                moov = Some(Moov::read_atom(&header, &mut from).map_err(|error| wrong(name, error))?)
            }
            _ => skip(&mut from, &header, name)?,
        }
    }
    moov.map(|moov| (moov, bytes)).ok_or_else(|| wrong(name, "no moov"))
}

fn next_header(from: &mut BufReader<File>, name: &str) -> Result<Option<Header>, Failure> {
    Option::<Header>::read_from(from).map_err(|error| wrong(name, error))
}

fn skip(from: &mut BufReader<File>, header: &Header, name: &str) -> Result<(), Failure> {
    let size = header.size.ok_or_else(|| wrong(name, "a box of unknown size"))?;
    let size = i64::try_from(size).map_err(|error| wrong(name, error))?;
    from.seek(SeekFrom::Current(size)).map(|_| ()).map_err(|error| Failure::scratch("read a segment", &error))
}

fn read_segment(file: File, name: String, trex: &Trex) -> Result<Segment, Failure> {
    const STYP: FourCC = FourCC::new(b"styp");
    let bytes = file.metadata().map_err(|error| Failure::scratch("read a segment's size", &error))?.len();
    let mut from = BufReader::new(file);
    let mut segment = Segment { name, bytes, start: 0, duration: 0, samples: 0, syncs: Vec::new() };
    let (mut first, mut promised, mut held) = (true, 0_u64, 0_u64);
    while let Some(header) = next_header(&mut from, &segment.name)? {
        match header.kind {
            Moof::KIND => {
                if header.size.is_none_or(|size| size > INDEX_BYTES_MAX) {
                    return Err(wrong(&segment.name, "an index of absurd size"));
                }
                let moof =
                    Moof::read_atom(&header, &mut from).map_err(|error| wrong(&segment.name, error))?;
                promised += add_fragment(&mut segment, &moof, trex, first)?;
                first = false;
            }
            Mdat::KIND => {
                held += header.size.unwrap_or(0) as u64;
                skip(&mut from, &header, &segment.name)?;
            }
            STYP | Ftyp::KIND => skip(&mut from, &header, &segment.name)?,
            other => return Err(wrong(&segment.name, format_args!("an unexpected box {other:?}"))),
        }
    }
    let end = from.stream_position().map_err(|error| Failure::scratch("read a segment", &error))?;
    if first || end != bytes || promised != held {
        let what = format!("{bytes} bytes, boxes to {end}, samples of {promised} in {held}");
        return Err(wrong(&segment.name, what));
    }
    if segment.samples == 0 || segment.duration == 0 {
        return Err(wrong(&segment.name, "no samples"));
    }
    Ok(segment)
}

/// Adds one fragment; gives the bytes that its samples say they have.
fn add_fragment(segment: &mut Segment, moof: &Moof, trex: &Trex, first: bool) -> Result<u64, Failure> {
    let [track] = moof.traf.as_slice() else {
        return Err(wrong(&segment.name, "not exactly one track in a fragment"));
    };
    let start = track.tfdt.as_ref().map(|tfdt| tfdt.base_media_decode_time);
    let start = start.ok_or_else(|| wrong(&segment.name, "no decoding time"))?;
    if first {
        segment.start = start;
    } else if start != segment.start + segment.duration {
        return Err(wrong(&segment.name, "a fragment does not begin where the last one ends"));
    }
    let defaults = (
        track.tfhd.default_sample_duration.unwrap_or(trex.default_sample_duration),
        track.tfhd.default_sample_size.unwrap_or(trex.default_sample_size),
        track.tfhd.default_sample_flags.unwrap_or(trex.default_sample_flags),
    );
    Ok(track.trun.iter().map(|run| add_run(segment, run, defaults)).sum())
}

fn add_run(segment: &mut Segment, run: &Trun, (duration, size, flags): (u32, u32, u32)) -> u64 {
    let mut bytes = 0;
    for sample in &run.samples {
        if sample.flags.unwrap_or(flags) & NON_SYNC == 0 {
            segment.syncs.push(segment.samples);
        }
        segment.samples += 1;
        segment.duration += u64::from(sample.duration.unwrap_or(duration));
        bytes += u64::from(sample.size.unwrap_or(size));
    }
    bytes
}
