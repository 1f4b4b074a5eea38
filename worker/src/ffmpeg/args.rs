//! A plan as ffmpeg's arguments. Pure: the same plan gives the same arguments.
//!
//! One decode, `fps`, split, one scale and one encoder per rung, and the dash muxer, whose segments are right where
//! its manifests are not: [`crate::package`] throws those away and writes its own. The sound is an output by itself:
//! beside pictures the muxer cuts it when one of their keyframes comes by in decoding order, two frames early. `+dash+delay_moov+skip_sidx`
//! rather than `+cmaf`, which in 5.1 drops edit lists and leaves the video 62 ms late.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ffmpeg_sidecar::command::FfmpegCommand;

use crate::ladder::{AudioPlan, PicturePlan, Plan};
use crate::ranges::Range;

/// Containers that are read. Everything else is refused, above all those that name other files: a playlist posing as
/// a video must open neither its neighbours nor a socket.
pub const CONTAINERS: &str = "mov,matroska,mpegts,avi,flv,ogg,mpeg,mxf,asf,wav,mp3,aac,flac";
/// Most pixels of a frame: 8192×4320.
pub const PIXELS_MAX: u64 = 35_389_440;
/// Most streams of an input.
pub const STREAMS_MAX: u32 = 32;
/// Largest single allocation inside ffmpeg.
pub const ALLOCATION_BYTES_MAX: u64 = 1 << 30;
/// Sound is put back in step where it is this far out of it, in seconds: by silence, or by leaving some out. By itself the
/// filter lets 0.1 s pass; nobody notices sound that is up to 45 ms early (ITU-R BT.1359). Much less would tear sound that
/// is whole where times jitter: packets of 20 ms that came up to 10 ms early or late had 86 clicks in 20 s at 0.02.
const SOUND_GAP_SECONDS: f64 = 0.04;
/// The muxers' own manifests, of the picture and of the sound, which nobody reads.
pub const MANIFESTS: [&str; 2] = ["ffmpeg_picture.mpd", "ffmpeg_sound.mpd"];
const ID: &str = "$RepresentationID$";
/// The names of initialisation segments, as a DASH template; the id is the rendition's index.
pub const INIT_TEMPLATE: &str = "init_$RepresentationID$.mp4";
/// The names of media segments, as a DASH template.
pub const SEGMENT_TEMPLATE: &str = "seg_$RepresentationID$_$Number%05d$.m4s";

/// The name of rendition `index`'s initialisation segment.
pub fn init_name(index: usize) -> String {
    format!("init_{index}.mp4")
}

/// The name of a rendition's segment; `number` counts from 1.
pub fn segment_name(index: usize, number: usize) -> String {
    format!("seg_{index}_{number:05}.m4s")
}

/// The rendition and the number in a segment's name; none of any other name.
pub fn parse_segment_name(name: &str) -> Option<(usize, usize)> {
    let (index, number) = name.strip_prefix("seg_")?.strip_suffix(".m4s")?.split_once('_')?;
    let parsed = (index.parse().ok()?, number.parse().ok()?);
    (segment_name(parsed.0, parsed.1) == name).then_some(parsed)
}

/// What both ffmpeg and ffprobe are told about any input, before they are told its name.
pub fn input_limits() -> [String; 14] {
    [
        "-max_alloc".to_owned(),
        ALLOCATION_BYTES_MAX.to_string(),
        "-protocol_whitelist".to_owned(),
        "file".to_owned(),
        "-format_whitelist".to_owned(),
        CONTAINERS.to_owned(),
        "-max_pixels".to_owned(),
        PIXELS_MAX.to_string(),
        "-max_streams".to_owned(),
        STREAMS_MAX.to_string(),
        "-probesize".to_owned(),
        "20M".to_owned(),
        "-analyzeduration".to_owned(),
        "20M".to_owned(),
    ]
}

/// A path as an input's name: with the protocol, so that no path can look like one.
pub fn file_url(path: &Path) -> OsString {
    let mut url = OsString::from("file:");
    url.push(path);
    url
}

/// The arguments of the one ffmpeg that makes every rendition; it runs in the directory that it writes to.
pub fn encode(plan: &Plan, input: &Path) -> Vec<OsString> {
    let mut command = beginning(plan);
    command.input(file_url(input));
    if let Some(picture) = &plan.picture {
        video(&mut command, filters(picture, 0, None), picture, plan.threads);
        segments(&mut command, plan.segment, 0..picture.rungs.len(), None);
        command.output(MANIFESTS[0]);
    }
    if let Some(sound) = &plan.audio {
        audio(&mut command, sound, 0);
        let index = plan.rungs().len();
        segments(&mut command, plan.segment, index..index + 1, None);
        command.output(MANIFESTS[1]);
    }
    command.get_args().map(OsString::from).collect()
}

/// The arguments of the ffmpeg that makes one range of the picture.
///
/// Times are the source's own, counted from its beginning, so a frame has the number that it has in one run over all. Frames go to
/// the encoder as the filters number them: ffmpeg's own way to keep a constant rate would fill up from zero.
pub fn encode_range(plan: &Plan, range: &Range, input: &Path) -> Vec<OsString> {
    let mut command = beginning(plan);
    command.arg("-copyts");
    if let Some(seek_s) = range.seek_s {
        // Not cut at that time: the frame before a gap may be the one that is shown first.
        command.args(["-noaccurate_seek".to_owned(), "-ss".to_owned(), format!("{seek_s:.6}")]);
    }
    command.input(file_url(input));
    if let Some(picture) = &plan.picture {
        video(&mut command, filters(picture, plan.start_us, Some(range)), picture, plan.threads);
        command.args(["-fps_mode", "passthrough"]);
        let first = range.first_segment(picture.segment_frames);
        segments(&mut command, plan.segment, 0..picture.rungs.len(), Some(first));
        command.output(MANIFESTS[0]);
    }
    command.get_args().map(OsString::from).collect()
}

/// The arguments of the ffmpeg that makes the sound alone, as the rendition of an index.
pub fn encode_sound(plan: &Plan, index: usize, input: &Path) -> Vec<OsString> {
    let mut command = beginning(plan);
    command.arg("-copyts");
    command.input(file_url(input));
    if let Some(sound) = &plan.audio {
        audio(&mut command, sound, plan.start_us);
        segments(&mut command, plan.segment, index..index + 1, None);
        command.output(MANIFESTS[1]);
    }
    command.get_args().map(OsString::from).collect()
}

/// A filter that counts time from the beginning of the source, whichever of its streams are used. By itself, and with
/// `-start_at_zero`, ffmpeg counts in a transport stream from the first of those that are: picture and sound apart would come
/// apart. Rounded as ffmpeg rounds its own offset.
fn from_the_beginning(filter: &str, start_us: i64) -> String {
    if start_us == 0 {
        return String::new();
    }
    let (sign, us) = (if start_us > 0 { "-" } else { "+" }, start_us.unsigned_abs());
    format!("{filter}=PTS{sign}round({}.{:06}/TB),", us / 1_000_000, us % 1_000_000)
}

/// Everything before the input and what says where in it to begin.
fn beginning(plan: &Plan) -> FfmpegCommand {
    // The program's name is the caller's business; this command is never started itself.
    let mut command = FfmpegCommand::from(Command::new("ffmpeg"));
    let threads = plan.threads.to_string();
    command.hide_banner().overwrite();
    // Verbose, for the count of decoded frames at the end; it is read line by line and only its tail is kept.
    command.args(["-nostdin", "-nostats", "-loglevel", "level+verbose"]);
    command.args(["-progress", "pipe:1", "-stats_period", "0.5"]);
    command.args(input_limits()).args(["-threads", &threads, "-filter_complex_threads", &threads]);
    if plan.strict {
        command.arg("-xerror");
    }
    command
}

fn filters(plan: &PicturePlan, start_us: i64, range: Option<&Range>) -> String {
    let mut graph = format!("[0:{}]{}", plan.stream, from_the_beginning("setpts", start_us));
    if plan.deinterlace {
        graph.push_str("yadif=deint=interlaced,");
    }
    // From zero on there is a frame for every moment; sent elsewhere, the first one is the one that is found there.
    let from_zero = range.is_none_or(|range| range.seek_s.is_none());
    let _ = write!(graph, "fps={}{},", plan.fps, if from_zero { ":start_time=0" } else { "" });
    if plan.still_frames > 0 {
        let _ = write!(graph, "tpad=stop_mode=clone:stop={},", plan.still_frames);
    }
    if let Some(range) = range {
        let _ = write!(graph, "trim=start_pts={}", range.first);
        if !range.last {
            let _ = write!(graph, ":end_pts={}", range.first + range.frames);
        }
        graph.push(',');
    }
    let _ = write!(graph, "split={}", plan.rungs.len());
    (0..plan.rungs.len()).for_each(|index| {
        let _ = write!(graph, "[s{index}]");
    });
    // Without a word ffmpeg reads every picture as BT.601.
    let read_as = if plan.assume_bt709 { ":in_color_matrix=bt709" } else { "" };
    for (index, rung) in plan.rungs.iter().enumerate() {
        let (width, height) = (rung.width, rung.height);
        let _ = write!(
            graph,
            ";[s{index}]scale={width}:{height}:flags=bicubic{read_as}:out_color_matrix=bt709:out_range=tv,setsar=1,\
             format=yuv420p[v{index}]"
        );
    }
    graph
}

fn video(command: &mut FfmpegCommand, filters: String, plan: &PicturePlan, threads: u32) {
    command.filter_complex(filters);
    for index in 0..plan.rungs.len() {
        command.map(format!("[v{index}]"));
    }
    let gop = plan.gop_frames.to_string();
    command.codec_video("libx264").preset(plan.preset.as_str()).crf(plan.crf).pix_fmt("yuv420p");
    command.args(["-profile:v", "high", "-threads", &threads.to_string()]);
    command.args(["-g", &gop, "-keyint_min", &gop, "-sc_threshold", "0", "-flags", "+cgop"]);
    command.args([
        "-colorspace",
        "bt709",
        "-color_primaries",
        "bt709",
        "-color_trc",
        "bt709",
        "-color_range",
        "tv",
    ]);
    for (index, rung) in plan.rungs.iter().enumerate() {
        command.args([format!("-maxrate:v:{index}"), rung.bitrate_max.to_string()]);
        command.args([format!("-bufsize:v:{index}"), (rung.bitrate_max * 2).to_string()]);
    }
}

fn audio(command: &mut FfmpegCommand, plan: &AudioPlan, start_us: i64) {
    command.map(format!("0:{}", plan.stream));
    // Silence fills a late start and gaps, so that sound and picture begin together and stay together.
    let mut filter = from_the_beginning("asetpts", start_us);
    let _ = write!(filter, "aresample=async=1:min_hard_comp={SOUND_GAP_SECONDS}:first_pts=0");
    if plan.silence_s > 0.0 {
        let _ = write!(filter, ",apad=pad_dur={:.6}", plan.silence_s);
    }
    command.args(["-af", &filter, "-c:a", "aac"]);
    command.args(["-b:a".to_owned(), plan.bitrate.to_string()]);
    command.args([
        "-ac".to_owned(),
        plan.channels.to_string(),
        "-ar".to_owned(),
        plan.sample_rate.to_string(),
    ]);
}

/// The options of one output, which makes the renditions of those indices; from the middle on, beginning with the segment
/// of that number.
fn segments(
    command: &mut FfmpegCommand,
    segment: Duration,
    indices: std::ops::Range<usize>,
    first: Option<usize>,
) {
    command.args(["-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1"]);
    // With `-use_timeline 0` the muxer cuts at the first keyframe at or after number × this. With 1 it measures from the
    // start of the segment before, and the sound, which has no keyframe just there, falls behind for ever.
    let (seconds, us) = (segment.as_secs(), segment.subsec_micros());
    command.format("dash").args(["-seg_duration".to_owned(), format!("{seconds}.{us:06}")]);
    command.args(["-use_template", "1", "-use_timeline", "0", "-dash_segment_type", "mp4"]);
    // One set per rendition: within a set the muxer wants equal aspect ratios, which even widths cannot have.
    let sets: Vec<String> =
        (0..indices.len()).map(|stream| format!("id={stream},streams={stream}")).collect();
    command.args(["-adaptation_sets".to_owned(), sets.join(" ")]);
    // A fragment from the middle says so, and then has the time and the number that it has there; the initialisation
    // segment is that of the whole.
    let mut options = "movflags=+dash+delay_moov+skip_sidx+skip_trailer".to_owned();
    if let Some(first) = first {
        let _ = write!(options, "+frag_discont:fragment_index={first}");
    }
    command.args(["-format_options", &options]);
    // The muxer counts its own streams from 0: a lone one gets its index written out.
    let name = |template: &str| match indices.len() {
        1 => template.replace(ID, &indices.start.to_string()),
        _ => template.to_owned(),
    };
    command.args(["-init_seg_name", &name(INIT_TEMPLATE), "-media_seg_name", &name(SEGMENT_TEMPLATE)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::tests::{plan_of, plan_of_sound};

    fn text(plan: &Plan) -> String {
        let arguments = encode(plan, Path::new("/scratch/in put"));
        arguments.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_follow_their_templates() {
        let init = INIT_TEMPLATE.replace("$RepresentationID$", "3");
        let segment = SEGMENT_TEMPLATE.replace("$RepresentationID$", "3").replace("$Number%05d$", "00042");
        assert_eq!((init_name(3), segment_name(3, 42)), (init, segment));
        assert_eq!(segment_name(0, 123_456), "seg_0_123456.m4s", "a day of short segments has more digits");
    }

    #[test]
    fn limits_stand_before_the_input() {
        let text = text(&plan_of(1280, 720, true));
        let input = text.find("-i file:/scratch/in put").expect("the input is named with its protocol");
        for flag in
            ["-nostdin", "-protocol_whitelist file", "-format_whitelist mov,", "-max_pixels", "-max_alloc"]
        {
            assert!(text.find(flag).is_some_and(|at| at < input), "{flag} in {text}");
        }
    }

    #[test]
    fn every_rung_has_its_own_branch_and_cap() {
        let plan = plan_of(1280, 720, true);
        let text = text(&plan);
        assert!(
            text.contains("fps=30000/1001:start_time=0,split=3[s0][s1][s2];[s0]scale=1280:720:"),
            "{text}"
        );
        assert!(text.contains("-map [v0] -map [v1] -map [v2] -c:v libx264"), "{text}");
        assert!(text.contains("-maxrate:v:0 2800000 -bufsize:v:0 5600000 -maxrate:v:1 1400000"), "{text}");
        assert!(text.contains("-g 60 -keyint_min 60 -sc_threshold 0 -flags +cgop"), "{text}");
        assert!(text.contains("id=0,streams=0 id=1,streams=1 id=2,streams=2 -format_options"), "{text}");
        assert!(text.contains("-seg_duration 4.004000 "), "120 frames at 29.97: {text}");
        assert!(text.contains(" ffmpeg_picture.mpd -map 0:1 -af "), "{text}");
        assert!(text.contains("-media_seg_name seg_3_$Number%05d$.m4s ffmpeg_sound.mpd"), "{text}");
    }

    #[test]
    fn sound_alone_has_no_picture_arguments() {
        let text = text(&plan_of_sound());
        assert!(
            text.contains("-map 0:1 -af aresample=async=1:min_hard_comp=0.04:first_pts=0 -c:a aac"),
            "{text}"
        );
        assert!(!text.contains("x264") && !text.contains("filter_complex ["), "{text}");
        assert!(text.contains("-adaptation_sets id=0,streams=0 -format_options"), "{text}");
    }

    #[test]
    fn a_range_is_sought_early_and_cut_by_the_number_of_its_frames() {
        let plan = plan_of(1280, 720, true);
        let range = Range { first: 240, frames: 120, last: false, seek_s: Some(1.5) };
        let text = |range: &Range| {
            let arguments = encode_range(&range.plan(&plan), range, Path::new("/in"));
            arguments.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        let middle = text(&range);
        assert!(middle.contains("-copyts -noaccurate_seek -ss 1.500000 -i file:/in"), "{middle}");
        assert!(
            middle.contains(
                "[0:0]setpts=PTS-round(1.400000/TB),fps=30000/1001,trim=start_pts=240:end_pts=360,split=3"
            ),
            "{middle}"
        );
        assert!(
            middle.contains("-fps_mode passthrough") && middle.contains("+frag_discont:fragment_index=3 ")
        );
        assert!(!middle.contains("aac -b:a"), "{middle}");
        let end = text(&Range { last: true, ..range });
        assert!(end.contains("trim=start_pts=240,split=3"), "whatever there is: {end}");
        let first = text(&Range { first: 0, seek_s: None, ..range });
        assert!(first.contains("fps=30000/1001:start_time=0,trim=start_pts=0:end_pts=120"), "{first}");
        assert!(!first.contains("-ss"), "{first}");
    }

    #[test]
    fn sound_by_itself_is_what_it_is_beside_a_picture() {
        let plan = plan_of(1280, 720, true);
        let sound = Plan { start_us: 0, ..crate::ranges::sound(&plan).unwrap() };
        let alone = encode_sound(&sound, 3, Path::new("/in"));
        let together = encode(&plan, Path::new("/in"));
        let of_sound = |all: &[OsString]| {
            let begins = all.windows(2).position(|two| two[0] == "-map" && two[1] == "0:1").unwrap();
            all[begins..].to_vec()
        };
        assert_eq!(of_sound(&alone), of_sound(&together));
    }

    #[test]
    fn silence_has_no_audio_arguments_and_strict_is_strict() {
        let mut plan = plan_of(640, 360, false);
        assert!(!text(&plan).contains("aac -b:a") && !text(&plan).contains("-xerror"));
        plan.strict = true;
        assert!(text(&plan).contains("-xerror"));
    }
}
