use proptest::prelude::*;

use super::*;

pub(crate) fn spec(resolutions: &[Resolution]) -> JobSpec {
    let (mut spec, _) = JobSpec::parse(br#"{"input_url":"http://h/v"}"#).unwrap();
    spec.resolutions = resolutions.to_vec();
    spec
}

pub(crate) fn video(width: u32, height: u32) -> Video {
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
        matrix: None,
        entries_s: vec![0.0, 5.0],
    }
}

pub(crate) fn probe(video: Option<Video>, sound: bool) -> Probe {
    let audio =
        Audio { stream: 1, codec: "aac".into(), channels: 6, sample_rate: 44_100, packets: 431, end_s: 10.0 };
    Probe {
        container: "mov".into(),
        bytes: 1,
        streams: 2,
        start_us: 1_400_000,
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
        ("upright", video(1080, 1920), &[P720], &["720p 720x1280"], 0),
        ("turned", Video { rotation: 90, ..video(1920, 1080) }, &[P1080], &["1080p 1080x1920"], 0),
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
        frame_rate(&Video { rate_claimed: claimed, rate_measured: measured, ..video(640, 360) }).to_string()
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
        let (one, other) = shown_size(&source);
        let upright = one < other;
        let spec = JobSpec { segment_seconds: Some(seconds), ..spec(&asked) };
        let plan = plan(&spec, &probe(Some(source), true), 2).unwrap();
        let picture = plan.picture.as_ref().unwrap();
        prop_assert!(!picture.rungs.is_empty());
        for rung in &picture.rungs {
            let (shorter, longer) = if upright { (rung.width, rung.height) } else { (rung.height, rung.width) };
            prop_assert!(shorter <= longer && shorter >= SIDE_MIN && longer <= SIDE_MAX, "{rung:?}");
            prop_assert!(rung.width % 2 == 0 && rung.height % 2 == 0, "{rung:?}");
            prop_assert!(f64::from(shorter) <= one.min(other).max(f64::from(SIDE_MIN)), "{rung:?}");
            prop_assert!(f64::from(longer) <= one.max(other).max(f64::from(SIDE_MIN)) + 1.0, "{rung:?}");
            prop_assert!(rung.bitrate_max > 0);
        }
        let shorter = |rung: &Rung| rung.width.min(rung.height);
        prop_assert!(picture.rungs.windows(2).all(|pair| shorter(&pair[0]) > shorter(&pair[1])));
        prop_assert!(picture.fps.as_f64() <= RATE_MAX + 1e-9 && picture.fps.as_f64() > 0.0);
        prop_assert_eq!(picture.segment_frames % picture.gop_frames, 0);
        let exact = f64::from(picture.segment_frames) / picture.fps.as_f64();
        prop_assert!((exact - plan.segment.as_secs_f64()).abs() <= 1e-6 + exact * 1e-12);
        prop_assert!(picture.frames >= 1 && plan.work_seconds.is_finite() && plan.memory_bytes > 1 << 28);
    }
}
