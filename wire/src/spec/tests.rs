use proptest::prelude::*;

use super::*;

fn parse(body: &str) -> Result<(JobSpec, Option<JobId>), Problem> {
    JobSpec::parse(body.as_bytes())
}

fn refused(body: &str) -> (Code, Option<String>) {
    let problem = parse(body).unwrap_err();
    (problem.code, problem.field)
}

#[test]
fn the_seeds_exact_body_is_a_spec() {
    let body =
        r#"{"input_url":"http://h/v.mp4","resolutions":["1080p","720p","480p"],"job_id":"test-job-1"}"#;
    let (spec, job_id) = parse(body).unwrap();
    assert_eq!(job_id.unwrap().as_str(), "test-job-1");
    assert_eq!(spec.resolutions, [Resolution::P1080, Resolution::P720, Resolution::P480]);
    assert_eq!(spec.priority(), Priority::Normal);
}

#[test]
fn a_spec_is_the_same_whatever_its_order_and_id() {
    let a =
        r#"{"input_url":"http://h/v","resolutions":["480p","720p"],"labels":{"b":"2","a":"1"},"job_id":"x"}"#;
    let b = r#"{"labels":{"a":"1","b":"2"},"resolutions":["720p","480p","480p"],"input_url":"http://h/v"}"#;
    let c = r#"{"input_url":"http://h/v","resolutions":["720p"]}"#;
    assert_eq!(parse(a).unwrap().0.hash(), parse(b).unwrap().0.hash());
    assert_ne!(parse(a).unwrap().0.hash(), parse(c).unwrap().0.hash());
}

#[test]
fn formats_are_one_name_or_several() {
    let of = |value: &str| {
        let body = format!(r#"{{"input_url":"http://h/v","output_format":{value}}}"#);
        parse(&body).unwrap().0
    };
    assert_eq!(of(r#""mp4""#).formats, [Format::Mp4]);
    assert_eq!(of(r#"["mp4","hls","mp4"]"#).formats, [Format::Hls, Format::Mp4]);
    assert_eq!(of(r#""hls""#).hash(), of("null").hash(), "as it was when there was nothing else");
    assert_eq!(of(r#"["hls"]"#), of("null"));
    let asked = |spec: &JobSpec| (spec.wants_stream(), spec.wants_picture(), spec.wants(Format::Audio));
    assert_eq!(asked(&of("null")), (true, true, false));
    assert_eq!(asked(&of(r#""dash""#)), (true, true, false));
    assert_eq!(asked(&of(r#""mp4""#)), (false, true, false));
    assert_eq!(asked(&of(r#""audio""#)), (false, false, true));
}

#[test]
fn single_is_what_was_never_said_and_pools_are_a_set() {
    let of = |fields: &str| parse(&format!(r#"{{"input_url":"http://h/v"{fields}}}"#)).unwrap().0;
    assert_eq!(
        of(r#","durability":"single""#).hash(),
        of("").hash(),
        "as it was when there was nothing else"
    );
    assert!(of(r#","durability":"dual""#).is_dual() && !of("").is_dual());
    let pools = of(r#","replicate":["gcp","aws","gcp"]"#).replicate;
    assert_eq!(pools, ["aws", "gcp"].map(|pool| pool.parse().unwrap()));
    for (field, value) in [
        ("durability", r#""triple""#),
        ("durability", "2"),
        ("replicate", r#""gcp""#),
        ("replicate", "[]"),
        ("replicate", r#"["a b"]"#),
        ("replicate", r#"["1","2","3","4","5","6","7","8","9"]"#),
    ] {
        let body = format!(r#"{{"input_url":"http://h/v","{field}":{value}}}"#);
        assert_eq!(refused(&body), (Code::BadField, Some(field.to_owned())), "{value}");
    }
    assert_eq!(pools_of(br#"{"pools":["b","a"]}"#).unwrap().len(), 2);
}

#[test]
fn the_words_of_a_title_and_of_labels_are_letters_and_digits() {
    let body =
        r#"{"input_url":"http://h/v","title":"The Dog's 2nd Übung: \"x\" AND y*","labels":{"Team":"red-7"}}"#;
    let words: Vec<String> = parse(body).unwrap().0.words().into_iter().collect();
    assert_eq!(words, ["2nd", "7", "and", "dog", "red", "s", "team", "the", "x", "y", "übung"]);
    assert!(parse(r#"{"input_url":"http://h/v"}"#).unwrap().0.words().is_empty());
    let title = |text: &str| parse(&format!(r#"{{"input_url":"http://h/v","title":"{text}"}}"#)).unwrap().0;
    assert_eq!(title(&"ä".repeat(256)).title.unwrap().chars().count(), 256, "characters, not bytes");
}

#[test]
fn a_stored_spec_reads_back() {
    for body in [
        r#"{"input_url":"http://h/v","crf":20,"strict":true}"#,
        r#"{"input_path":"aws/uploads/k/v.mp4"}"#,
        r#"{"input_url":"http://h/v","output_format":["mp4","hls"],"thumbnails":false}"#,
        r#"{"input_url":"http://h/v","title":"t","webhook_url":"https://h/x"}"#,
    ] {
        let spec = parse(body).unwrap().0;
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), spec, "{text}");
    }
}

#[test]
fn every_refusal_names_its_field() {
    let with = |rest: &str| format!(r#"{{"input_url":"http://h/v",{rest}}}"#);
    let cases = [
        (with(r#""colour":"red""#), Code::UnknownField, "colour"),
        (with(r#""resolutions":["8k"]"#), Code::BadResolution, "resolutions"),
        (with(r#""resolutions":[]"#), Code::BadField, "resolutions"),
        (with(r#""job_id":"../etc""#), Code::BadJobId, "job_id"),
        (with(r#""job_id":7"#), Code::BadJobId, "job_id"),
        (with(r#""crf":4"#), Code::BadField, "crf"),
        (with(r#""crf":"20""#), Code::BadField, "crf"),
        (with(r#""segment_seconds":1"#), Code::BadField, "segment_seconds"),
        (with(r#""priority":"urgent""#), Code::BadField, "priority"),
        (with(r#""output_format":"gif""#), Code::BadField, "output_format"),
        (with(r#""output_format":[]"#), Code::BadField, "output_format"),
        (with(r#""output_format":["mp4",1]"#), Code::BadField, "output_format"),
        (with(r#""thumbnails":1"#), Code::BadField, "thumbnails"),
        (with(r#""labels":{"a":1}"#), Code::BadField, "labels"),
        (with(r#""title":"""#), Code::BadField, "title"),
        (with(&format!(r#""title":"{}""#, "\u{e4}".repeat(257))), Code::BadField, "title"),
        (with(r#""webhook_url":"ftp://h/x""#), Code::BadField, "webhook_url"),
        (with(&format!(r#""webhook_url":"https://h/{}""#, "x".repeat(2048))), Code::BadField, "webhook_url"),
        (with(r#""input_path":"aws/uploads/x""#), Code::BadField, "input_path"),
        (r#"{"input_url":"file:///etc/passwd"}"#.to_owned(), Code::BadField, "input_url"),
        (r#"{"resolutions":["720p"]}"#.to_owned(), Code::BadField, "input_url"),
    ];
    for (body, code, field) in cases {
        assert_eq!(refused(&body), (code, Some(field.to_owned())), "{body}");
    }
    assert_eq!(refused("[1]").0, Code::BadJson);
    assert_eq!(refused("{").0, Code::BadJson);
    assert_eq!(refused(&format!("{{\"input_url\":\"{}\"}}", "x".repeat(70_000))).0, Code::SpecTooLarge);
}

#[test]
fn an_input_path_cannot_leave_the_store() {
    for path in [
        "../x",
        "aws/../../etc/passwd",
        "/etc/passwd",
        "aws//x",
        "aws/.hidden",
        "aws",
        "aws/a\\b",
        "aws/%2e%2e/x",
    ] {
        let body = serde_json::json!({ "input_path": path }).to_string();
        assert_eq!(refused(&body), (Code::BadInputPath, Some("input_path".to_owned())), "{path}");
    }
}

#[test]
fn the_head_reads_what_routing_needs_and_passes_over_the_rest() {
    let body = br#"{"input_path":"gcp/uploads/k/v.mp4","priority":"live","resolutions":["360p"],"from_the_future":1}"#;
    let head = SpecHead::peek(body).unwrap();
    assert_eq!(head.input_pool.as_deref(), Some("gcp"));
    assert_eq!((head.priority, head.heights), (Priority::Live, vec![360]));
    assert!(SpecHead::peek(b"nope").is_err());
}

proptest! {
    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = JobSpec::parse(&body);
        let _ = SpecHead::peek(&body);
    }
}
