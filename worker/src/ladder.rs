//! What to make of a source: which renditions, at what rate, cut where.
//!
//! Pure. One constant frame rate for all rungs makes time a count of frames: a segment is ⌈rate × segment seconds⌉
//! frames, keyframes stand at fixed counts, and every rung is cut at the same instants. Rejected: forcing keyframes by
//! time, which on a source with a long gap makes a run of them.

use std::fmt;
use std::time::Duration;

use millrace_wire::job::FailureCode;
use millrace_wire::spec::{Format, JobSpec, Preset, Resolution, SEGMENT_SECONDS_DEFAULT};

use crate::cost;
use crate::failure::Failure;
use crate::source::probe::{Audio, Probe, Video};

/// Highest frame rate of a rendition.
pub const RATE_MAX: f64 = 60.0;
const CRF_DEFAULT: u32 = 22;
const AUDIO_BITRATE: u32 = 128_000;
const AUDIO_RATE: u32 = 48_000;
/// A keyframe at least about this often, so that seeking is quick and segments can be cut.
const GOP_SECONDS: f64 = 2.0;
/// Most seconds that picture and sound of a stream may end apart. A player plays what it has of both, and learns that one
/// has ended only with the end of the other; it loads so far ahead as it likes (Shaka Player: 10 s), and would wait.
const APART_SECONDS_MAX: f64 = 4.0;
/// Smallest side of a rendition; x264 takes less, players do not.
const SIDE_MIN: u32 = 16;
/// Largest side of a rendition; only a source of absurd shape comes near.
const SIDE_MAX: u32 = 8192;

/// A fraction of two positive numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rational {
    /// Above.
    pub num: u32,
    /// Below; never zero.
    pub den: u32,
}

impl Rational {
    /// Reads `30000/1001` or `16:9`; none for zero, which is how ffmpeg says unknown.
    pub fn parse(text: &str) -> Option<Self> {
        let (num, den) = text.split_once(['/', ':'])?;
        let (num, den) = (num.parse().ok()?, den.parse().ok()?);
        (num > 0 && den > 0).then_some(Self { num, den })
    }

    /// As a number.
    pub fn as_f64(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }
}

impl fmt::Display for Rational {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

/// One rendition of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// `720p`: by height, whatever the aspect ratio.
    pub name: String,
    /// Even, of square pixels.
    pub width: u32,
    /// Even.
    pub height: u32,
    /// Cap of the bit rate, in bits per second; x264's buffer is two seconds of it.
    pub bitrate_max: u64,
}

/// What becomes of the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct PicturePlan {
    /// Index of the source's stream.
    pub stream: u32,
    /// The highest first; at least one.
    pub rungs: Vec<Rung>,
    /// The constant rate of every rung.
    pub fps: Rational,
    /// Frames from keyframe to keyframe; divides `segment_frames`.
    pub gop_frames: u32,
    /// Frames of every segment but the last.
    pub segment_frames: u32,
    /// Frames that every rung must have.
    pub frames: u64,
    /// How many of them, at the end, repeat the last one, because the sound goes on.
    pub still_frames: u64,
    /// Frames that the source holds; those that are not decoded are lost.
    pub source_frames: u64,
    /// x264's speed.
    pub preset: Preset,
    /// x264's quality.
    pub crf: u32,
    /// The source has fields.
    pub deinterlace: bool,
}

/// The one rendition of the sound.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioPlan {
    /// Index of the source's stream.
    pub stream: u32,
    /// Packets that the source holds; those that are not decoded are lost.
    pub source_packets: u64,
    /// Bits per second.
    pub bitrate: u32,
    /// Hertz.
    pub sample_rate: u32,
    /// Always two: every player takes stereo.
    pub channels: u32,
    /// Length that it must have, in seconds.
    pub duration_s: f64,
    /// How many of them, at the end, are silence, because the picture goes on.
    pub silence_s: f64,
}

/// Which files the job gives: what was asked for, as far as the source has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Segments, playlists and the DASH manifest.
    pub stream: bool,
    /// A progressive file of every rung.
    pub mp4: bool,
    /// A progressive file of the sound alone.
    pub audio: bool,
    /// A poster and sprite sheets.
    pub thumbnails: bool,
}

/// What one run of ffmpeg makes: of the picture, of the sound, or of both.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The picture, if there is one and it is asked for.
    pub picture: Option<PicturePlan>,
    /// The sound, if there is any.
    pub audio: Option<AudioPlan>,
    /// What is made of them in the end.
    pub wanted: Wanted,
    /// Every segment but the last: exactly `segment_frames` of a picture, rounded down to whole microseconds.
    pub segment: Duration,
    /// Length in seconds.
    pub duration_s: f64,
    /// End at the first error of the decoder.
    pub strict: bool,
    /// Threads of the decoder, and of each encoder.
    pub threads: u32,
    /// What is odd, but not fatal.
    pub warnings: Vec<String>,
    /// What it costs on a reference core, in seconds; for the load report and the CPU limit.
    pub work_seconds: f64,
    /// Memory that it should need at most, in bytes; for the limit of address space.
    pub memory_bytes: u64,
}

impl Plan {
    /// The renditions of the picture, the highest first; none of sound alone.
    pub fn rungs(&self) -> &[Rung] {
        self.picture.as_ref().map_or(&[], |picture| &picture.rungs)
    }
}

/// Plans the ladder.
///
/// # Errors
/// `source_over_limits`, `source_damaged` or `source_no_audio`, when nothing that was asked for can be made of it.
pub fn plan(spec: &JobSpec, probe: &Probe, threads: u32) -> Result<Plan, Failure> {
    let mut warnings = probe.warnings.clone();
    let video = probe.video.as_ref().filter(|_| spec.wants_picture());
    let segment_seconds = spec.segment_seconds.unwrap_or(SEGMENT_SECONDS_DEFAULT);
    let mut picture = video.map(|video| picture(spec, video, segment_seconds, &mut warnings)).transpose()?;
    let mut audio = probe.audio.as_ref().map(audio);
    if let (true, Some(picture), Some(audio)) = (spec.wants_stream(), &mut picture, &mut audio) {
        end_together(picture, audio, &mut warnings);
    }
    if picture.is_none() && audio.is_none() {
        return Err(Failure::new(FailureCode::SourceNoAudio, "the source has no sound"));
    }
    if spec.wants(Format::Audio) && audio.is_none() {
        warnings.push("left out the sound's own file: the source has no sound".to_owned());
    }
    let threads = threads.max(1);
    let picture_s = picture.as_ref().map_or(0.0, PicturePlan::duration_s);
    let sound_s = audio.as_ref().map_or(0.0, |audio| audio.duration_s);
    let duration_s = picture_s.max(sound_s);
    let encoded = video.zip(picture.as_ref());
    Ok(Plan {
        wanted: wanted(spec, picture.is_some(), audio.is_some()),
        segment: picture.as_ref().map_or(Duration::from_secs(segment_seconds.into()), PicturePlan::segment),
        duration_s,
        strict: spec.strict,
        threads,
        work_seconds: cost::work_seconds(encoded, sound_s),
        memory_bytes: cost::memory_bytes(encoded, threads),
        warnings,
        picture,
        audio,
    })
}

fn wanted(spec: &JobSpec, picture: bool, sound: bool) -> Wanted {
    let mp4 = spec.wants(Format::Mp4);
    Wanted {
        stream: spec.wants_stream(),
        mp4: mp4 && picture,
        // Of a source without a picture its sound is the progressive file.
        audio: sound && (spec.wants(Format::Audio) || mp4 && !picture),
        thumbnails: spec.wants_thumbnails() && picture,
    }
}

fn picture(
    spec: &JobSpec,
    video: &Video,
    segment_seconds: u32,
    warnings: &mut Vec<String>,
) -> Result<PicturePlan, Failure> {
    let rungs = rungs(&spec.resolutions, video, warnings);
    let fps = frame_rate(video);
    let frames = (video.end_s * fps.as_f64()).round().max(1.0);
    if !frames.is_finite() {
        return Err(Failure::new(FailureCode::SourceDamaged, "the source's timestamps make no sense"));
    }
    let segment_frames = segment_frames(fps, segment_seconds);
    let gap_s = video.gap_max_s;
    if gap_s > 2.0 {
        warnings
            .push(format!("the picture stands still for up to {gap_s:.1} s: the source has no frames there"));
    }
    Ok(PicturePlan {
        stream: video.stream,
        rungs,
        gop_frames: gop_frames(fps, segment_frames),
        fps,
        segment_frames,
        frames: frames as u64,
        still_frames: 0,
        source_frames: video.frames,
        preset: spec.preset.unwrap_or_default(),
        crf: spec.crf.unwrap_or(CRF_DEFAULT),
        deinterlace: video.interlaced,
    })
}

/// Lets the shorter of the two go on to the end of the longer when they end too far apart.
fn end_together(picture: &mut PicturePlan, audio: &mut AudioPlan, warnings: &mut Vec<String>) {
    let apart_s = audio.duration_s - picture.duration_s();
    if apart_s > APART_SECONDS_MAX {
        picture.still_frames = (apart_s * picture.fps.as_f64()).round() as u64;
        picture.frames += picture.still_frames;
        warnings.push(format!("the picture ends {apart_s:.1} s before the sound; its last frame is held"));
    } else if -apart_s > APART_SECONDS_MAX {
        audio.silence_s = -apart_s;
        audio.duration_s += audio.silence_s;
        warnings.push(format!("the sound ends {:.1} s before the picture; silence follows it", -apart_s));
    }
}

impl PicturePlan {
    /// Length of all frames, in seconds.
    fn duration_s(&self) -> f64 {
        self.frames as f64 / self.fps.as_f64()
    }

    /// Length of `segment_frames`, rounded down to whole microseconds.
    fn segment(&self) -> Duration {
        let ticks = u64::from(self.segment_frames) * u64::from(self.fps.den) * 1_000_000;
        Duration::from_micros(ticks / u64::from(self.fps.num))
    }
}

fn audio(audio: &Audio) -> AudioPlan {
    AudioPlan {
        stream: audio.stream,
        source_packets: audio.packets,
        bitrate: AUDIO_BITRATE,
        sample_rate: AUDIO_RATE,
        channels: 2,
        duration_s: audio.end_s,
        silence_s: 0.0,
    }
}

/// The picture as it is shown: turned, and of square pixels. Not yet even.
fn shown_size(video: &Video) -> (f64, f64) {
    let width = f64::from(video.width) * video.pixel_aspect.as_f64();
    let height = f64::from(video.height);
    if video.rotation % 180 == 90 { (height, width) } else { (width, height) }
}

/// The nearest even number within [`SIDE_MIN`] and [`SIDE_MAX`].
fn even(side: f64) -> u32 {
    (((side / 2.0).round() * 2.0) as u32).clamp(SIDE_MIN, SIDE_MAX)
}

fn rungs(asked: &[Resolution], video: &Video, warnings: &mut Vec<String>) -> Vec<Rung> {
    let (width, height) = shown_size(video);
    // Rounded down, so that an odd line is cut and never invented.
    let own = ((height / 2.0).floor() * 2.0) as u32;
    let own = own.max(SIDE_MIN);
    let rung = |lines: u32| Rung {
        name: format!("{lines}p"),
        width: even(width * f64::from(lines) / height),
        height: lines,
        bitrate_max: bitrate_max(lines),
    };
    let wanted = if asked.is_empty() { &Resolution::ALL[..] } else { asked };
    let mut lines: Vec<u32> = wanted.iter().map(|resolution| resolution.height()).collect();
    lines.sort_unstable_by(|a, b| b.cmp(a));
    lines.dedup();
    let (above, fitting): (Vec<u32>, Vec<u32>) = lines.into_iter().partition(|lines| *lines > own);
    if !asked.is_empty() && !above.is_empty() {
        let names: Vec<String> = above.iter().map(|lines| format!("{lines}p")).collect();
        let names = names.join(", ");
        warnings.push(format!("left out {names}: the source has {own} lines, and nothing is scaled up"));
    }
    if fitting.is_empty() { vec![rung(own)] } else { fitting.into_iter().map(rung).collect() }
}

/// The cap of a rung, in bits per second: through four points, straight between them.
fn bitrate_max(lines: u32) -> u64 {
    const POINTS: [(u32, u64); 6] =
        [(0, 100_000), (240, 450_000), (360, 800_000), (480, 1_400_000), (720, 2_800_000), (1080, 5_000_000)];
    let pair = POINTS.windows(2).find(|pair| lines <= pair[1].0);
    pair.map_or(POINTS[5].1 * u64::from(lines) / 1080, |pair| {
        let ((low, from), (high, to)) = (pair[0], pair[1]);
        from + (to - from) * u64::from(lines.saturating_sub(low)) / u64::from(high - low)
    })
}

/// The constant rate: the one that the container claims when the frames agree with it, else the usual one at
/// the measured average, or the next above it; halved, or cut in three, … until it is at most [`RATE_MAX`].
fn frame_rate(video: &Video) -> Rational {
    const USUAL: [(u32, u32); 11] = [
        (10, 1),
        (12, 1),
        (15, 1),
        (20, 1),
        (24_000, 1001),
        (24, 1),
        (25, 1),
        (30_000, 1001),
        (30, 1),
        (50, 1),
        (60, 1),
    ];
    let claimed = video.rate_claimed.filter(|rate| (1.0 / 60.0..=1000.0).contains(&rate.as_f64()));
    let rate = match (claimed, video.rate_measured) {
        (Some(claimed), None) if claimed.as_f64() <= RATE_MAX => claimed,
        (Some(claimed), Some(measured)) if (measured / claimed.as_f64() - 1.0).abs() < 0.02 => claimed,
        (_, None) => Rational { num: 25, den: 1 },
        (_, Some(measured)) => {
            let usual = USUAL.map(|(num, den)| Rational { num, den });
            let off = |rate: &Rational| (rate.as_f64() / measured - 1.0).abs();
            let nearest =
                usual.into_iter().filter(|rate| off(rate) < 0.01).min_by(|a, b| off(a).total_cmp(&off(b)));
            let above = usual.into_iter().find(|rate| rate.as_f64() >= measured);
            nearest.or(above).unwrap_or(usual[10])
        }
    };
    let parts = (rate.as_f64() / RATE_MAX).ceil().max(1.0) as u32;
    Rational { num: rate.num, den: rate.den * parts }
}

fn segment_frames(fps: Rational, seconds: u32) -> u32 {
    let frames = u64::from(fps.num) * u64::from(seconds);
    u32::try_from(frames.div_ceil(u64::from(fps.den))).unwrap_or(u32::MAX).max(1)
}

/// The divisor of a segment whose length is nearest to [`GOP_SECONDS`].
fn gop_frames(fps: Rational, segment: u32) -> u32 {
    let wanted = fps.as_f64() * GOP_SECONDS;
    let divisors =
        (1..=segment.min(600)).filter(|parts| segment.is_multiple_of(*parts)).map(|parts| segment / parts);
    let off = |gop: u32| (f64::from(gop) / wanted).ln().abs();
    divisors.min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap_or(segment)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn spec(resolutions: &[Resolution]) -> JobSpec {
        let (mut spec, _) = JobSpec::parse(br#"{"input_url":"http://h/v"}"#).unwrap();
        spec.resolutions = resolutions.to_vec();
        spec
    }

    fn video(width: u32, height: u32) -> Video {
        Video {
            stream: 0,
            codec: "h264".into(),
            pixel_format: "yuv420p".into(),
            width,
            height,
            rotation: 0,
            pixel_aspect: Rational { num: 1, den: 1 },
            rate_claimed: Rational::parse("30000/1001"),
            rate_measured: Some(29.97),
            frames: 300,
            keyframes: 2,
            start_s: 0.0,
            end_s: 10.01,
            gap_max_s: 0.034,
            interlaced: false,
        }
    }

    fn probe(video: Option<Video>, sound: bool) -> Probe {
        let audio = Audio {
            stream: 1,
            codec: "aac".into(),
            channels: 6,
            sample_rate: 44_100,
            packets: 431,
            end_s: 10.0,
        };
        Probe {
            container: "mov".into(),
            bytes: 1,
            streams: 2,
            duration_s: 10.01,
            video,
            audio: sound.then_some(audio),
            warnings: Vec::new(),
        }
    }

    pub(crate) fn plan_of(width: u32, height: u32, sound: bool) -> Plan {
        plan(&spec(&[]), &probe(Some(video(width, height)), sound), 2).unwrap()
    }

    #[test]
    fn a_stream_ends_as_one_and_a_file_as_it_is() {
        let ends = |format: &str, picture_s: f64, sound_s: f64| {
            let mut probe = probe(Some(Video { end_s: picture_s, ..video(640, 360) }), true);
            probe.audio.as_mut().unwrap().end_s = sound_s;
            let body = format!(r#"{{"input_url":"http://h/v","output_format":{format}}}"#);
            let plan = plan(&JobSpec::parse(body.as_bytes()).unwrap().0, &probe, 2).unwrap();
            let (picture, audio) = (plan.picture.unwrap(), plan.audio.unwrap());
            (picture.frames, picture.still_frames, audio.duration_s, audio.silence_s, plan.warnings.len())
        };
        assert_eq!(ends(r#""hls""#, 1001.0, 1005.0), (30_000, 0, 1005.0, 0.0, 0));
        assert_eq!(ends(r#""hls""#, 1001.0, 2002.0), (60_000, 30_000, 2002.0, 0.0, 1));
        assert_eq!(ends(r#"["mp4","dash"]"#, 1001.0, 1.0), (30_000, 0, 1001.0, 1000.0, 1));
        assert_eq!(ends(r#""mp4""#, 1001.0, 2002.0), (30_000, 0, 2002.0, 0.0, 0));
    }

    /// The plan of a source of ten seconds without a picture.
    pub(crate) fn plan_of_sound() -> Plan {
        plan(&spec(&[]), &probe(None, true), 2).unwrap()
    }

    fn shown(plan: &Plan) -> Vec<String> {
        plan.rungs().iter().map(|r| format!("{} {}x{}", r.name, r.width, r.height)).collect()
    }

    #[test]
    fn rungs_fit_under_the_source() {
        use Resolution::{P360, P480, P720, P1080};
        type Case<'a> = (&'a str, Video, &'a [Resolution], &'a [&'a str], usize);
        let cases: [Case<'_>; 12] = [
            (
                "default",
                video(1920, 1080),
                &[],
                &["1080p 1920x1080", "720p 1280x720", "480p 854x480", "360p 640x360"],
                0,
            ),
            ("default in between", video(960, 540), &[], &["480p 854x480", "360p 640x360"], 0),
            ("default below all", video(640, 272), &[], &["272p 640x272"], 0),
            ("asked", video(1920, 1080), &[P720, P360], &["720p 1280x720", "360p 640x360"], 0),
            ("one above", video(1280, 720), &[P1080, P720, P480], &["720p 1280x720", "480p 854x480"], 1),
            ("all above", video(640, 272), &[P1080, P720], &["272p 640x272"], 1),
            ("odd size", video(641, 271), &[P360], &["270p 638x270"], 1),
            ("one line short", video(638, 359), &[P360], &["358p 636x358"], 1),
            ("upright", video(1080, 1920), &[P720], &["720p 406x720"], 0),
            ("turned", Video { rotation: 90, ..video(1920, 1080) }, &[P1080], &["1080p 608x1080"], 0),
            (
                "wide pixels",
                Video { pixel_aspect: Rational { num: 16, den: 11 }, ..video(720, 576) },
                &[P480],
                &["480p 872x480"],
                0,
            ),
            ("a dot", video(2, 2), &[P360], &["16p 16x16"], 1),
        ];
        for (name, video, asked, want, warnings) in cases {
            let plan = plan(&spec(asked), &probe(Some(video), true), 2).unwrap();
            assert_eq!(shown(&plan), want, "{name}");
            assert_eq!(plan.warnings.len(), warnings, "{name}: {:?}", plan.warnings);
        }
    }

    #[test]
    fn rates_are_constant_usual_and_at_most_sixty() {
        let rate = |claimed: &str, measured: Option<f64>| {
            let claimed = Rational::parse(claimed);
            frame_rate(&Video { rate_claimed: claimed, rate_measured: measured, ..video(640, 360) })
                .to_string()
        };
        assert_eq!(rate("30000/1001", Some(29.97)), "30000/1001");
        assert_eq!(rate("5/1", Some(5.0)), "5/1", "a slide show stays one");
        assert_eq!(rate("120/1", Some(120.0)), "120/2");
        assert_eq!(rate("144/1", Some(144.0)), "144/3");
        assert_eq!(rate("1000/1", Some(28.7)), "30000/1001", "a browser's recorder claims milliseconds");
        assert_eq!(rate("90000/1", Some(29.99)), "30/1");
        assert_eq!(rate("60/1", Some(41.0)), "50/1");
        assert_eq!(rate("0/0", Some(3.0)), "10/1");
        assert_eq!(rate("0/0", None), "25/1");
        assert_eq!(rate("24/1", None), "24/1", "one frame");
        assert_eq!(rate("1000/1", Some(400.0)), "60/1");
    }

    #[test]
    fn keyframes_divide_segments() {
        let cut = |rate: &str, seconds: u32| {
            let fps = Rational::parse(rate).unwrap();
            let segment = segment_frames(fps, seconds);
            (segment, gop_frames(fps, segment))
        };
        assert_eq!(cut("30000/1001", 4), (120, 60));
        assert_eq!(cut("24/1", 4), (96, 48));
        assert_eq!(cut("25/1", 5), (125, 25), "62.5 is no divisor; a second is nearer than five");
        assert_eq!(cut("24000/1001", 6), (144, 48));
        assert_eq!(cut("60/1", 2), (120, 120));
        assert_eq!(cut("1/1", 4), (4, 2));
        assert_eq!(cut("1/10", 4), (1, 1));
    }

    #[test]
    fn caps_pass_through_the_known_points() {
        for (lines, kbit) in
            [(1080, 5000), (720, 2800), (480, 1400), (360, 800), (240, 450), (540, 1750), (2160, 10_000)]
        {
            assert_eq!(bitrate_max(lines), kbit * 1000, "{lines}");
        }
    }

    #[test]
    fn the_expected_length_is_the_pictures_own() {
        let plan = plan_of(640, 360, true);
        let picture = plan.picture.as_ref().unwrap();
        assert_eq!((picture.frames, picture.source_frames), (300, 300));
        assert!((plan.duration_s - 10.01).abs() < 0.001);
        assert!((1.0..20.0).contains(&plan.work_seconds), "{}", plan.work_seconds);
    }

    #[test]
    fn sound_alone_is_planned_without_a_picture() {
        use Format::{Audio, Hls, Mp4};
        let of = |formats: &[Format], picture: bool, sound: bool| {
            let spec = JobSpec { formats: formats.to_vec(), ..spec(&[]) };
            let plan = plan(&spec, &probe(picture.then(|| video(640, 360)), sound), 2);
            plan.map(|plan| (plan.picture.is_some(), plan.wanted, plan.warnings.len())).map_err(|f| f.code)
        };
        let wanted = |stream, mp4, audio, thumbnails| Wanted { stream, mp4, audio, thumbnails };
        assert_eq!(of(&[], true, true), Ok((true, wanted(true, false, false, true), 0)));
        assert_eq!(of(&[], false, true), Ok((false, wanted(true, false, false, false), 0)));
        assert_eq!(of(&[Audio], true, true), Ok((false, wanted(false, false, true, false), 0)));
        assert_eq!(of(&[Audio], true, false), Err(FailureCode::SourceNoAudio));
        assert_eq!(of(&[Hls, Audio], true, false), Ok((true, wanted(true, false, false, true), 1)));
        assert_eq!(of(&[Mp4], true, false), Ok((true, wanted(false, true, false, true), 0)));
        assert_eq!(of(&[Mp4], false, true), Ok((false, wanted(false, false, true, false), 0)));
        let plan = plan_of_sound();
        assert_eq!((plan.segment, plan.rungs().len()), (Duration::from_secs(4), 0));
        assert!(plan.work_seconds < 1.0 && plan.memory_bytes > 1 << 28, "{plan:?}");
    }

    proptest! {
        #[test]
        fn every_plan_is_one_that_ffmpeg_takes(
            width in 1_u32..9000, height in 1_u32..5000, turn in 0_u32..4, (an, ad) in (1_u32..20, 1_u32..20),
            (rn, rd) in (1_u32..200_000, 1_u32..2000), measured in proptest::option::of(0.01..500.0_f64),
            asked in proptest::sample::subsequence(Resolution::ALL.to_vec(), 0..=4), seconds in 2_u32..=10,
        ) {
            let aspect = Rational { num: an, den: ad };
            prop_assume!((0.1..=10.0).contains(&aspect.as_f64()));
            let source = Video {
                rotation: turn * 90,
                pixel_aspect: aspect,
                rate_claimed: Some(Rational { num: rn, den: rd }),
                rate_measured: measured,
                ..video(width, height)
            };
            let (_, lines) = shown_size(&source);
            let spec = JobSpec { segment_seconds: Some(seconds), ..spec(&asked) };
            let plan = plan(&spec, &probe(Some(source), true), 2).unwrap();
            let picture = plan.picture.as_ref().unwrap();
            prop_assert!(!picture.rungs.is_empty());
            for rung in &picture.rungs {
                prop_assert!(rung.width % 2 == 0 && rung.height % 2 == 0 && (SIDE_MIN..=SIDE_MAX).contains(&rung.width));
                prop_assert!(f64::from(rung.height) <= lines.max(f64::from(SIDE_MIN)));
                prop_assert!(rung.bitrate_max > 0);
            }
            prop_assert!(picture.rungs.windows(2).all(|pair| pair[0].height > pair[1].height));
            prop_assert!(picture.fps.as_f64() <= RATE_MAX + 1e-9 && picture.fps.as_f64() > 0.0);
            prop_assert_eq!(picture.segment_frames % picture.gop_frames, 0);
            let exact = f64::from(picture.segment_frames) / picture.fps.as_f64();
            prop_assert!((exact - plan.segment.as_secs_f64()).abs() <= 1e-6 + exact * 1e-12);
            prop_assert!(picture.frames >= 1 && plan.work_seconds.is_finite() && plan.memory_bytes > 1 << 28);
        }
    }
}
