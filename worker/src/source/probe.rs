//! What an input really holds: two runs of ffprobe in the cage, one for the headers and one over all packets.
//!
//! Plan and verification stand on this, not on headers or exit codes: a truncated file exits 0.

use std::ffi::OsString;
use std::path::Path;

use millrace_wire::job::FailureCode;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::scan::{self, Packet, Seen};
use super::sniff;
use crate::failure::{Ended, Failure};
use crate::ffmpeg::{Ffmpeg, args};
use crate::ladder::Rational;

/// Longest input.
pub const SECONDS_MAX: f64 = 86_400.0;
/// The share of packets that may be missing against what the container announces.
const MISSING_MAX: f64 = 0.01;

/// What an input holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// The container, as ffmpeg names it: `mov,mp4,m4a,3gp,3g2,mj2`.
    pub container: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// How many streams it has, of any kind.
    pub streams: u32,
    /// When the file begins on its container's clock, in microseconds.
    pub start_us: i64,
    /// Length of what plays, in seconds: from the earliest start to the end of the picture or sound.
    pub duration_s: f64,
    /// The first picture stream that is no cover art; there is one where there is no sound.
    pub video: Option<Video>,
    /// The first sound stream that can be decoded.
    pub audio: Option<Audio>,
    /// What is odd, but not fatal.
    pub warnings: Vec<String>,
}

/// The picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Video {
    /// Index of the stream.
    pub stream: u32,
    /// `h264`, …
    pub codec: String,
    /// `yuv420p`, …
    pub pixel_format: String,
    /// Width as coded, in pixels.
    pub width: u32,
    /// Height as coded, in pixels.
    pub height: u32,
    /// Clockwise, as a player turns it: 0, 90, 180 or 270 degrees.
    pub rotation: u32,
    /// Width of a pixel over its height, before the rotation.
    pub pixel_aspect: Rational,
    /// The rate that the container claims (ffmpeg's `r_frame_rate`), if it does.
    pub rate_claimed: Option<Rational>,
    /// Frames per second, measured where there are some: pauses of seconds do not count.
    pub rate_measured: Option<f64>,
    /// Frames that are shown.
    pub frames: u64,
    /// Those of them at which decoding can start.
    pub keyframes: u64,
    /// When the first is shown, in seconds after the start of the file.
    pub start_s: f64,
    /// When the last ends, in seconds after the start of the file.
    pub end_s: f64,
    /// Longest time without a new frame.
    pub gap_max_s: f64,
    /// Two fields per frame.
    pub interlaced: bool,
    /// By which matrix its colours are to be read (ffmpeg's `color_space`), if it says so.
    pub matrix: Option<String>,
    /// Where decoding can start, in seconds after the start of the file, ascending; not every keyframe, where they are
    /// dense. Empty where time does not run forward in the file.
    pub entries_s: Vec<f64>,
}

/// The sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Audio {
    /// Index of the stream.
    pub stream: u32,
    /// `aac`, …
    pub codec: String,
    /// How many.
    pub channels: u32,
    /// Hertz.
    pub sample_rate: u32,
    /// Packets that are heard.
    pub packets: u64,
    /// When the last packet ends, in seconds after the start of the file.
    pub end_s: f64,
}

#[derive(Debug, Deserialize)]
struct Headers {
    #[serde(default)]
    streams: Vec<Stream>,
    format: Option<Format>,
}

#[derive(Debug, Deserialize)]
struct Format {
    format_name: String,
    nb_streams: u32,
    start_time: Option<String>,
    duration: Option<String>,
    /// The duration is ffmpeg's guess from size and bit rate; it says so in its log only.
    #[serde(skip)]
    guessed: bool,
}

#[derive(Debug, Deserialize)]
struct Stream {
    index: u32,
    codec_type: Option<String>,
    codec_name: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    pix_fmt: Option<String>,
    sample_aspect_ratio: Option<String>,
    r_frame_rate: Option<String>,
    field_order: Option<String>,
    color_space: Option<String>,
    color_transfer: Option<String>,
    nb_frames: Option<String>,
    channels: Option<u32>,
    sample_rate: Option<String>,
    #[serde(default)]
    disposition: Disposition,
    #[serde(default)]
    side_data_list: Vec<SideData>,
}

impl Stream {
    fn size(&self) -> (u32, u32) {
        (self.width.unwrap_or(0), self.height.unwrap_or(0))
    }

    fn rate_claimed(&self) -> Option<Rational> {
        self.r_frame_rate.as_deref().and_then(Rational::parse)
    }
}

#[derive(Debug, Default, Deserialize)]
struct Disposition {
    #[serde(default)]
    attached_pic: u8,
}

#[derive(Debug, Deserialize)]
struct SideData {
    rotation: Option<f64>,
}

const HEADER_ENTRIES: &str = "format=format_name,nb_streams,start_time,duration:\
     stream=index,codec_type,codec_name,width,height,pix_fmt,sample_aspect_ratio,r_frame_rate,field_order,\
     color_space,color_transfer,nb_frames,channels,sample_rate:\
     stream_disposition=attached_pic:stream_side_data=rotation:stream_tags=";

/// Says what the input holds.
///
/// # Errors
/// Cancelled, or a failure that says what is wrong with the input.
pub async fn probe(ffmpeg: &Ffmpeg, input: &Path, cancel: &CancellationToken) -> Result<Probe, Ended> {
    let path = input.to_owned();
    let bytes = tokio::task::spawn_blocking(move || sniff::check(&path))
        .await
        .map_err(|error| Failure::new(FailureCode::Internal, "the source could not be read").log(error))??;
    let headers = headers(ffmpeg, input, cancel).await?;
    let chosen = choose(&headers)?;
    let mut seen = vec![Seen::default(); headers.streams.len().max(1)];
    let broken = scan(ffmpeg, input, cancel, &mut seen).await?;
    conclude(&headers, &chosen, seen, bytes, broken).map_err(Ended::from)
}

async fn headers(ffmpeg: &Ffmpeg, input: &Path, cancel: &CancellationToken) -> Result<Headers, Ended> {
    let mut json = String::new();
    let options = ["-of", "json", "-show_entries", HEADER_ENTRIES];
    let run =
        ffmpeg.ffprobe(&options.map(OsString::from), input, cancel, &mut |line| json.push_str(line)).await?;
    let mentions = |text: &str| run.complaints.iter().any(|line| line.contains(text));
    if mentions("Picture size") && mentions("is invalid") || mentions("exceeds specified max pixel") {
        return Err(over_pixels().into());
    }
    if !run.exit.status.success() {
        let detail = "the source is in no container that is read here";
        return Err(Failure::new(FailureCode::SourceNotMedia, detail).log(run.describe()).into());
    }
    let mut headers: Headers = serde_json::from_str(&json).map_err(|error| {
        let failure = Failure::new(FailureCode::Internal, "the source's headers could not be read");
        failure.log(format_args!("parse ffprobe's headers: {error}"))
    })?;
    if let Some(format) = &mut headers.format {
        format.guessed = mentions("Estimating duration from bitrate");
    }
    Ok(headers)
}

fn over_pixels() -> Failure {
    let detail = format!("the picture has more than {} pixels", args::PIXELS_MAX);
    Failure::new(FailureCode::SourceOverLimits, detail)
}

struct Chosen<'a> {
    format: &'a Format,
    video: Option<&'a Stream>,
    audio: Option<&'a Stream>,
    warnings: Vec<String>,
}

fn choose(headers: &Headers) -> Result<Chosen<'_>, Failure> {
    let not_media = |detail: &str| Failure::new(FailureCode::SourceNotMedia, detail);
    let format = headers.format.as_ref().ok_or_else(|| not_media("the source has no streams"))?;
    if format.nb_streams == 0 {
        return Err(not_media("the source has no streams"));
    }
    if format.nb_streams > args::STREAMS_MAX {
        let detail = format!("the source has more than {} streams", args::STREAMS_MAX);
        return Err(Failure::new(FailureCode::SourceOverLimits, detail));
    }
    let of =
        |kind: &'static str| headers.streams.iter().filter(move |s| s.codec_type.as_deref() == Some(kind));
    let known = |stream: &&Stream| {
        stream.codec_name.as_deref().is_some_and(|name| name != "unknown" && name != "none")
    };
    let video = of("video").find(|stream| stream.disposition.attached_pic == 0);
    if video.is_some_and(|video| !known(&video)) {
        return Err(not_media("the picture's codec is not known here"));
    }
    video.map_or(Ok(()), check_size)?;
    let audible = |stream: &&Stream| known(stream) && stream.channels.unwrap_or(0) > 0;
    let audio = of("audio").find(audible);
    let unheard = audio.is_none() && of("audio").next().is_some();
    let mut warnings = Vec::new();
    match video {
        None if unheard => return Err(not_media("the sound's codec is not known here")),
        None if audio.is_none() => {
            let detail = "the source has neither picture nor sound";
            return Err(Failure::new(FailureCode::SourceNoVideo, detail));
        }
        Some(_) if unheard => {
            warnings.push("the sound's codec is not known here; the outputs are silent".to_owned());
        }
        _ => {}
    }
    let transfer = video.and_then(|video| video.color_transfer.as_deref());
    if matches!(transfer, Some("smpte2084" | "arib-std-b67")) {
        warnings.push("the source is HDR; it is encoded as SDR without tone mapping".to_owned());
    }
    Ok(Chosen { format, video, audio, warnings })
}

fn check_size(video: &Stream) -> Result<(), Failure> {
    let (width, height) = video.size();
    if u64::from(width) * u64::from(height) > args::PIXELS_MAX {
        return Err(over_pixels());
    }
    if width == 0 || height == 0 {
        return Err(Failure::new(
            FailureCode::SourceDamaged,
            "the picture has no size: not a frame can be decoded",
        ));
    }
    Ok(())
}

/// Reads every packet. Gives ffprobe's own complaint when it did not come to the end.
async fn scan(
    ffmpeg: &Ffmpeg,
    input: &Path,
    cancel: &CancellationToken,
    seen: &mut [Seen],
) -> Result<Option<String>, Ended> {
    let options = ["-of", "compact=nk=1:p=0", "-show_entries", scan::ENTRIES];
    let mut add = |line: &str| {
        if let Some(packet) = Packet::parse(line)
            && let Some(seen) = seen.get_mut(packet.stream)
        {
            seen.add(packet);
        }
    };
    let run = ffmpeg.ffprobe(&options.map(OsString::from), input, cancel, &mut add).await?;
    Ok((!run.exit.status.success()).then(|| run.describe()))
}

fn conclude(
    headers: &Headers,
    chosen: &Chosen<'_>,
    mut seen: Vec<Seen>,
    bytes: u64,
    broken: Option<String>,
) -> Result<Probe, Failure> {
    let format = chosen.format;
    let mut warnings = chosen.warnings.clone();
    let at = |index: u32| headers.streams.iter().position(|stream| stream.index == index).unwrap_or(0);
    let picture = chosen.video.map(|stream| {
        let seen = &mut seen[at(stream.index)];
        let interval = seen.rate().or_else(|| stream.rate_claimed().map(Rational::as_f64));
        seen.close(interval.map_or(0.04, |rate| 1.0 / rate));
        (stream, seen.clone())
    });
    let sound = chosen.audio.map(|stream| (stream, seen[at(stream.index)].clone()));
    let sound = sound.filter(|(_, seen)| seen.frames > 0);
    // What announces its length, and whose loss the verdict is about: the picture, or the sound of sound alone.
    let main = picture.as_ref().or(sound.as_ref()).filter(|(_, seen)| seen.frames > 0);
    let (main, main_seen) = main.ok_or_else(|| {
        let what = if picture.is_some() {
            "the picture stream holds no frames"
        } else {
            "the sound stream holds nothing"
        };
        Failure::new(FailureCode::SourceDamaged, what).log(broken.as_deref().unwrap_or_default())
    })?;
    let first = [&picture, &sound].into_iter().flatten().filter_map(|(_, seen)| seen.start_s);
    let first = first.fold(f64::INFINITY, f64::min);
    let start = seconds(format.start_time.as_deref()).unwrap_or(first);
    let start = if start.is_finite() { start } else { 0.0 };
    let last_end_s = seen.iter().map(|seen| seen.end_s).fold(main_seen.end_s, f64::max);
    // The decoder's delay of an mp3 is skipped by its start time, but counts in what it announces.
    if let Some(missing) = missing(format, main, main_seen.packets, start.min(first), last_end_s) {
        if missing > MISSING_MAX {
            let detail =
                format!("the source ends early: {:.0} % of what it announces is missing", missing * 100.0);
            return Err(Failure::new(FailureCode::SourceTruncated, detail).log(broken.unwrap_or_default()));
        }
        if missing > 0.0 && main_seen.packets < announced_packets(main).unwrap_or(0) {
            warnings.push("the source ends a little before what it announces".to_owned());
        }
    }
    if broken.is_some() {
        warnings.push("the source could not be read to its very end".to_owned());
    }
    let video = picture.map(|(stream, seen)| video(stream, &seen, start));
    let audio = sound.map(|(stream, seen)| audio(stream, &seen, start));
    let ends = [video.as_ref().map(|video| video.end_s), audio.as_ref().map(|audio| audio.end_s)];
    let duration_s = ends.into_iter().flatten().fold(0.0, f64::max);
    if duration_s > SECONDS_MAX {
        let detail = format!("the source is longer than {} hours", SECONDS_MAX / 3600.0);
        return Err(Failure::new(FailureCode::SourceOverLimits, detail));
    }
    Ok(Probe {
        container: format.format_name.clone(),
        bytes,
        streams: format.nb_streams,
        start_us: (start * 1e6).round() as i64,
        duration_s,
        video,
        audio,
        warnings,
    })
}

/// `start` is when the file begins, on the container's clock.
fn video(stream: &Stream, seen: &Seen, start: f64) -> Video {
    let (width, height) = stream.size();
    Video {
        stream: stream.index,
        codec: stream.codec_name.clone().unwrap_or_default(),
        pixel_format: stream.pix_fmt.clone().unwrap_or_default(),
        width,
        height,
        rotation: rotation(stream),
        pixel_aspect: pixel_aspect(stream),
        rate_claimed: stream.rate_claimed(),
        rate_measured: seen.rate(),
        frames: seen.frames,
        keyframes: seen.keyframes,
        start_s: (seen.start_s.unwrap_or(start) - start).max(0.0),
        end_s: (seen.end_s - start).max(0.0),
        gap_max_s: seen.gap_max_s(),
        interlaced: matches!(stream.field_order.as_deref(), Some("tt" | "bb" | "tb" | "bt")),
        matrix: stream.color_space.clone().filter(|matrix| matrix != "unknown"),
        entries_s: if seen.disordered {
            Vec::new()
        } else {
            seen.keyframes_s.iter().map(|at| at - start).collect()
        },
    }
}

fn audio(stream: &Stream, seen: &Seen, start: f64) -> Audio {
    Audio {
        stream: stream.index,
        codec: stream.codec_name.clone().unwrap_or_default(),
        channels: stream.channels.unwrap_or(0),
        sample_rate: stream.sample_rate.as_deref().and_then(|rate| rate.parse().ok()).unwrap_or(0),
        packets: seen.frames,
        end_s: (seen.end_s - start).max(0.0),
    }
}

fn seconds(text: Option<&str>) -> Option<f64> {
    text?.parse::<f64>().ok().filter(|seconds| seconds.is_finite())
}

fn announced_packets(stream: &Stream) -> Option<u64> {
    stream.nb_frames.as_deref()?.parse::<u64>().ok().filter(|packets| *packets > 0)
}

/// The share of the picture, or of sound alone, that the container announces and does not hold; `end_s` is of the longest
/// stream, since a picture may well end before its sound. None where it announces nothing: for streams like MPEG-TS, and
/// for an mp3 without a header, ffmpeg's "duration" is a guess of its own.
///
/// In a Matroska or FLV file whose time does not begin at zero (a recorded live stream), some programs announce how long
/// it is, and others, ffmpeg among them, when it ends. It is whole if either is true.
fn missing(format: &Format, stream: &Stream, packets: u64, start_s: f64, end_s: f64) -> Option<f64> {
    let family = format.format_name.split(',').next().unwrap_or_default();
    let by_packets = announced_packets(stream)
        .filter(|_| matches!(family, "mov" | "avi"))
        .map(|announced| 1.0 - packets as f64 / announced as f64);
    let announces = match family {
        "mov" | "matroska" | "flv" => true,
        "wav" | "flac" | "mp3" => !format.guessed,
        _ => false,
    };
    let by_time =
        seconds(format.duration.as_deref()).filter(|duration| announces && *duration > 0.0).map(|duration| {
            let as_length = 1.0 - (end_s - start_s) / duration;
            let is_end = matches!(family, "matroska" | "flv") && (0.0..duration).contains(&start_s);
            if is_end { as_length.min((duration - end_s) / (duration - start_s)) } else { as_length }
        });
    by_packets.or(by_time).map(|missing| missing.max(0.0))
}

/// ffmpeg's angle is counter-clockwise.
fn rotation(video: &Stream) -> u32 {
    let degrees =
        video.side_data_list.iter().find_map(|data| data.rotation).filter(|angle| angle.is_finite());
    let quarter = (-degrees.unwrap_or(0.0) / 90.0).round().rem_euclid(4.0);
    quarter as u32 * 90
}

fn pixel_aspect(video: &Stream) -> Rational {
    let square = Rational { num: 1, den: 1 };
    let aspect = video.sample_aspect_ratio.as_deref().and_then(Rational::parse).unwrap_or(square);
    // What no display has is a damaged header.
    if (0.1..=10.0).contains(&aspect.as_f64()) { aspect } else { square }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(json: &str) -> Stream {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn rotation_is_clockwise_and_in_quarters() {
        for (angle, want) in [("-90", 90), ("90", 270), ("180", 180), ("-180", 180), ("0", 0), ("-90.4", 90)]
        {
            let video = stream(&format!(r#"{{"index":0,"side_data_list":[{{}},{{"rotation":{angle}}}]}}"#));
            assert_eq!(rotation(&video), want, "{angle}");
        }
        assert_eq!(rotation(&stream(r#"{"index":0}"#)), 0);
    }

    #[test]
    fn a_cover_is_no_picture() {
        let of = |sound: &str| {
            let text = format!(
                r#"{{"streams":[{sound}{{"index":1,"codec_type":"video","codec_name":"mjpeg","width":9,"height":9,
                "disposition":{{"attached_pic":1}}}}],"format":{{"format_name":"mp3","nb_streams":2}}}}"#
            );
            let headers = serde_json::from_str::<Headers>(&text).unwrap();
            choose(&headers)
                .map(|chosen| (chosen.video.is_some(), chosen.audio.is_some()))
                .map_err(|f| f.code)
        };
        let sound = |codec: &str| {
            format!(r#"{{"index":0,"codec_type":"audio","codec_name":"{codec}","channels":2}},"#)
        };
        assert_eq!(of(&sound("mp3")), Ok((false, true)));
        assert_eq!(of(&sound("unknown")), Err(FailureCode::SourceNotMedia));
        assert_eq!(of(""), Err(FailureCode::SourceNoVideo));
    }

    #[test]
    fn what_is_missing_is_known_only_where_something_was_announced() {
        let sound = stream(r#"{"index":0,"nb_frames":"400"}"#);
        let of = |name: &str, guessed: bool| {
            let (start_time, duration) = (None, Some("10".to_owned()));
            let format = Format { format_name: name.into(), nb_streams: 1, start_time, duration, guessed };
            missing(&format, &sound, 300, 0.0, 5.0)
        };
        assert_eq!(of("mov,mp4", false), Some(0.25), "by packets");
        assert_eq!((of("mp3", false), of("mp3", true)), (Some(0.5), None));
        assert_eq!((of("flac", false), of("matroska,webm", false)), (Some(0.5), Some(0.5)));
        assert_eq!((of("ogg", false), of("aac", true)), (None, None));
    }

    #[test]
    fn limits_are_checked_before_a_packet_is_read() {
        let of = |video: &str, streams: u32| {
            let text =
                format!(r#"{{"streams":[{video}],"format":{{"format_name":"mov","nb_streams":{streams}}}}}"#);
            let headers = serde_json::from_str::<Headers>(&text).unwrap();
            choose(&headers).err().map(|failure| failure.code)
        };
        let video = |w: u32, h: u32| {
            format!(r#"{{"index":0,"codec_type":"video","codec_name":"h264","width":{w},"height":{h}}}"#)
        };
        assert_eq!(of(&video(8192, 4320), 1), None);
        assert_eq!(of(&video(15_360, 8640), 1), Some(FailureCode::SourceOverLimits));
        assert_eq!(of(&video(640, 360), 33), Some(FailureCode::SourceOverLimits));
        assert_eq!(of(&video(0, 0), 1), Some(FailureCode::SourceDamaged));
        assert_eq!(of("", 0), Some(FailureCode::SourceNotMedia));
    }
}
