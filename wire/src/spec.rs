//! What a client asks for.
//!
//! [`JobSpec`] is the whole, validated spec: the worker reads it. [`SpecHead`] is the little that routing needs: the
//! gateway reads that and leaves every other field alone, so that an old gateway never refuses what a new worker knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::id::JobId;
use crate::problem::{Code, Problem};

/// Largest body of a submit: it must fit the gateway's retry buffer whole.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;
/// Longest `input_url` or `input_path`.
pub const INPUT_LENGTH_MAX: usize = 4096;
/// Most labels of one job.
pub const LABELS_MAX: usize = 32;
/// Longest label name or value.
pub const LABEL_LENGTH_MAX: usize = 256;
/// Most rungs of one ladder.
pub const RUNGS_MAX: usize = 8;
/// `segment_seconds` when the client does not say.
pub const SEGMENT_SECONDS_DEFAULT: u32 = 4;

/// Where the input lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// An `http` or `https` URL that the worker fetches.
    #[serde(rename = "input_url")]
    Url(String),
    /// `POOL/KEY` in the project's own object store, as an upload's answer names it.
    #[serde(rename = "input_path")]
    Path(String),
}

/// A standard rung of the ladder, named by its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Resolution {
    /// 640×360 at 16:9.
    #[serde(rename = "360p")]
    P360,
    /// 854×480 at 16:9.
    #[serde(rename = "480p")]
    P480,
    /// 1280×720 at 16:9.
    #[serde(rename = "720p")]
    P720,
    /// 1920×1080 at 16:9.
    #[serde(rename = "1080p")]
    P1080,
}

impl Resolution {
    /// Every standard rung, the highest first.
    pub const ALL: [Self; 4] = [Self::P1080, Self::P720, Self::P480, Self::P360];

    /// Lines of the picture.
    pub fn height(self) -> u32 {
        match self {
            Self::P360 => 360,
            Self::P480 => 480,
            Self::P720 => 720,
            Self::P1080 => 1080,
        }
    }

    /// The name in the API: `720p`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::P360 => "360p",
            Self::P480 => "480p",
            Self::P720 => "720p",
            Self::P1080 => "1080p",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == name)
    }
}

/// What a job's outputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A segmented stream. Its fMP4 segments serve HLS and DASH alike, so both manifests are always written.
    Hls,
    /// The same as [`Format::Hls`].
    Dash,
    /// One progressive file per rung, its index in front.
    Mp4,
    /// The sound alone, as one progressive file.
    Audio,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Hls, Self::Dash, Self::Mp4, Self::Audio];

    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hls => "hls",
            Self::Dash => "dash",
            Self::Mp4 => "mp4",
            Self::Audio => "audio",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == name)
    }
}

/// Who goes first: strictly in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody waits for it now.
    Live,
    /// The default.
    #[default]
    Normal,
    /// Whenever there is room.
    Batch,
}

impl Priority {
    /// All classes, the highest first.
    pub const ALL: [Self; 3] = [Self::Live, Self::Normal, Self::Batch];

    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Normal => "normal",
            Self::Batch => "batch",
        }
    }

    /// The share of a queue's limit that this class may fill: a queue never fills up with work that can wait.
    pub fn queue_share(self) -> f64 {
        match self {
            Self::Live => 1.0,
            Self::Normal => 0.8,
            Self::Batch => 0.5,
        }
    }
}

/// x264's speed presets that a client may ask for; slower ones would let one job hold a slot for hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The cheapest.
    Ultrafast,
    /// Cheaper.
    Superfast,
    /// The default.
    #[default]
    Veryfast,
    /// Dearer.
    Faster,
    /// Dearer still.
    Fast,
    /// The dearest that is allowed.
    Medium,
}

impl Preset {
    const ALL: [Self; 6] =
        [Self::Ultrafast, Self::Superfast, Self::Veryfast, Self::Faster, Self::Fast, Self::Medium];

    /// x264's own name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ultrafast => "ultrafast",
            Self::Superfast => "superfast",
            Self::Veryfast => "veryfast",
            Self::Faster => "faster",
            Self::Fast => "fast",
            Self::Medium => "medium",
        }
    }
}

/// What a client asked for, validated, without its id: the same asking is the same spec.
///
/// Optional fields stay empty here when the client left them out; their defaults belong to the worker that plans,
/// and [`JobSpec::hash`] is of the asking, never of resolved defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Where the input lies.
    #[serde(flatten)]
    pub input: Input,
    /// Wanted rungs, the highest first, none twice. Empty: every standard rung not above the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolutions: Vec<Resolution>,
    /// Wanted formats, in order, none twice. Empty: the segmented stream, also when `hls` alone was asked for. In JSON
    /// one name or a list of them.
    #[serde(default, rename = "output_format", skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<Format>,
    /// Who goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// x264 preset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// x264 constant rate factor, 18–35 (lower is better and larger).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crf: Option<u32>,
    /// Length of a segment in seconds, 2–10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_seconds: Option<u32>,
    /// Whether a poster and a sprite sheet are made; they are when the client does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnails: Option<bool>,
    /// Fail on the first damaged frame instead of finishing with warnings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// The client's guess at the input's length, for routing before the probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_hint_s: Option<u32>,
    /// The client's guess at the input's size, for routing before the probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_hint_bytes: Option<u64>,
    /// The client's own names and values, kept as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Every field that a submit may carry.
pub const FIELDS: [&str; 14] = [
    "job_id",
    "input_url",
    "input_path",
    "resolutions",
    "output_format",
    "priority",
    "preset",
    "crf",
    "segment_seconds",
    "thumbnails",
    "strict",
    "duration_hint_s",
    "size_hint_bytes",
    "labels",
];

fn bad(field: &str, wants: &str, got: &Value) -> Problem {
    let got = got.to_string();
    let got = if got.chars().count() > 80 {
        format!("{}…", got.chars().take(79).collect::<String>())
    } else {
        got
    };
    Problem::new(Code::BadField, format!("{field} must be {wants}, not {got}")).field(field)
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    if body.len() > SPEC_BYTES_MAX {
        let detail = format!("a job spec has at most {SPEC_BYTES_MAX} bytes");
        return Err(Problem::new(Code::SpecTooLarge, detail));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => {
            Err(Problem::new(Code::BadJson, "the body is JSON, but not an object like {\"input_url\": …}"))
        }
        Err(error) => Err(Problem::new(Code::BadJson, format!("the body is no JSON: {error}"))),
    }
}

/// Takes typed values out of a body's fields, each with an error that names the field.
struct Fields(Map<String, Value>);

impl Fields {
    fn take<T>(
        &mut self,
        field: &str,
        wants: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(&value).map(Some).ok_or_else(|| bad(field, wants, &value)),
        }
    }

    fn integer(&mut self, field: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let wants = format!("a whole number from {min} to {max}");
        self.take(field, &wants, |v| v.as_u64().filter(|n| (min..=max).contains(n)))
    }

    fn job_id(&mut self) -> Result<Option<JobId>, Problem> {
        let Some(value) = self.0.remove("job_id").filter(|v| !v.is_null()) else { return Ok(None) };
        let bad_id = |detail: String| Problem::new(Code::BadJobId, detail).field("job_id");
        let text = value.as_str().ok_or_else(|| bad_id("job_id must be a string".to_owned()))?;
        text.parse().map(Some).map_err(|error: crate::id::BadName| bad_id(error.to_string()))
    }

    fn priority(&mut self) -> Result<Option<Priority>, Problem> {
        self.take("priority", "one of live, normal, batch", |v| {
            Priority::ALL.into_iter().find(|p| v.as_str() == Some(p.as_str()))
        })
    }

    fn resolutions(&mut self) -> Result<Vec<Resolution>, Problem> {
        let Some(value) = self.0.remove("resolutions").filter(|v| !v.is_null()) else {
            return Ok(Vec::new());
        };
        let names = value
            .as_array()
            .filter(|names| (1..=RUNGS_MAX).contains(&names.len()))
            .ok_or_else(|| bad("resolutions", "a list of 1 to 8 of 1080p, 720p, 480p, 360p", &value))?;
        let mut rungs = Vec::with_capacity(names.len());
        for name in names {
            let rung = name.as_str().and_then(Resolution::parse).ok_or_else(|| {
                let detail =
                    format!("resolutions has {name}; the ladder's rungs are 1080p, 720p, 480p and 360p");
                Problem::new(Code::BadResolution, detail).field("resolutions")
            })?;
            rungs.push(rung);
        }
        rungs.sort_unstable_by(|a, b| b.cmp(a));
        rungs.dedup();
        Ok(rungs)
    }

    /// One name or a list of names.
    fn formats(&mut self) -> Result<Vec<Format>, Problem> {
        let wants = "hls, dash, mp4 or audio, or a list of these";
        let formats = self.take("output_format", wants, |value| {
            let names = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let formats =
                names.iter().map(|name| Format::parse(name.as_str()?)).collect::<Option<Vec<_>>>()?;
            (1..=Format::ALL.len()).contains(&formats.len()).then_some(formats)
        })?;
        let mut formats = formats.unwrap_or_default();
        formats.sort_unstable();
        formats.dedup();
        // The default by its name: before there was another, it was taken and not kept. The same body must stay the
        // same job, and one that a worker of that version can read.
        Ok(if formats == [Format::Hls] { Vec::new() } else { formats })
    }

    fn labels(&mut self) -> Result<BTreeMap<String, String>, Problem> {
        let wants = "an object of at most 32 short strings";
        let labels = self.take("labels", wants, |value| {
            let entries = value.as_object().filter(|entries| entries.len() <= LABELS_MAX)?;
            let text = |(name, value): (&String, &Value)| {
                let value = value.as_str()?;
                (name.len() <= LABEL_LENGTH_MAX && value.len() <= LABEL_LENGTH_MAX)
                    .then(|| (name.clone(), value.to_owned()))
            };
            entries.iter().map(text).collect::<Option<BTreeMap<_, _>>>()
        })?;
        Ok(labels.unwrap_or_default())
    }

    fn input(&mut self) -> Result<Input, Problem> {
        let text =
            |v: &Value| v.as_str().filter(|s| (1..=INPUT_LENGTH_MAX).contains(&s.len())).map(str::to_owned);
        let url = self.take("input_url", "an http or https URL of at most 4096 bytes", |v| {
            text(v).filter(|s| s.starts_with("http://") || s.starts_with("https://"))
        })?;
        let path = self.take("input_path", "POOL/KEY as an upload's answer names it", text)?;
        match (url, path) {
            (Some(url), None) => Ok(Input::Url(url)),
            (None, Some(path)) => check_input_path(&path).map(|()| Input::Path(path)),
            (Some(_), Some(_)) => {
                let detail = "give input_url or input_path, not both";
                Err(Problem::new(Code::BadField, detail).field("input_path"))
            }
            (None, None) => {
                let detail = "a job needs input_url (http or https) or input_path (of an upload)";
                Err(Problem::new(Code::BadField, detail).field("input_url"))
            }
        }
    }
}

/// An input path is `POOL/` and plain segments: nothing that could leave the store's root.
fn check_input_path(path: &str) -> Result<(), Problem> {
    let plain = |segment: &str| {
        !segment.is_empty()
            && !segment.starts_with('.')
            && !segment.contains(['\\', '\0'])
            && !segment.contains("%")
    };
    if path.contains('/') && path.split('/').all(plain) {
        return Ok(());
    }
    let detail = "input_path must be POOL/KEY as an upload's answer names it, and cannot leave the store";
    Err(Problem::new(Code::BadInputPath, detail).field("input_path"))
}

impl JobSpec {
    /// Reads a submit's body. Returns the spec and the job id it named, if any.
    ///
    /// # Errors
    /// A [`Problem`] that names the field: unknown fields, values outside their limits, a body over
    /// [`SPEC_BYTES_MAX`] or no JSON object.
    pub fn parse(body: &[u8]) -> Result<(Self, Option<JobId>), Problem> {
        let mut fields = Fields(object(body)?);
        if let Some(unknown) = fields.0.keys().find(|name| !FIELDS.contains(&name.as_str())) {
            let shown: String = unknown.chars().take(64).collect();
            let detail = format!("{shown:?} is no field of a job; the fields are {}", FIELDS.join(", "));
            return Err(Problem::new(Code::UnknownField, detail).field(shown));
        }
        let job_id = fields.job_id()?;
        let spec = Self {
            input: fields.input()?,
            resolutions: fields.resolutions()?,
            formats: fields.formats()?,
            priority: fields.priority()?,
            preset: fields.take(
                "preset",
                "one of ultrafast, superfast, veryfast, faster, fast, medium",
                |v| Preset::ALL.into_iter().find(|p| v.as_str() == Some(p.as_str())),
            )?,
            crf: fields.integer("crf", 18, 35)?.map(|n| n as u32),
            segment_seconds: fields.integer("segment_seconds", 2, 10)?.map(|n| n as u32),
            thumbnails: fields.take("thumbnails", "true or false", Value::as_bool)?,
            strict: fields.take("strict", "true or false", Value::as_bool)?.unwrap_or(false),
            duration_hint_s: fields.integer("duration_hint_s", 1, 86_400)?.map(|n| n as u32),
            size_hint_bytes: fields.integer("size_hint_bytes", 1, 1 << 50)?,
            labels: fields.labels()?,
        };
        debug_assert!(fields.0.is_empty(), "every known field is read above");
        Ok((spec, job_id))
    }

    /// SHA-256 of the canonical spec, in hex: two submits with the same id are the same job if this is equal.
    pub fn hash(&self) -> String {
        // Field order is the struct's and maps are sorted, so the text is canonical.
        let text = serde_json::to_vec(self).expect("a spec is plain data");
        hex::encode(Sha256::digest(text))
    }

    /// The class it waits in.
    pub fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    /// Whether a segmented stream is wanted, with both of its manifests.
    pub fn wants_stream(&self) -> bool {
        self.formats.is_empty() || self.wants(Format::Hls) || self.wants(Format::Dash)
    }

    /// Whether this format was named.
    pub fn wants(&self, format: Format) -> bool {
        self.formats.contains(&format)
    }

    /// Whether a picture is to be made, if the source has one.
    pub fn wants_picture(&self) -> bool {
        self.wants_stream() || self.wants(Format::Mp4)
    }

    /// Whether a poster and a sprite sheet are to be made, if there is a picture.
    pub fn wants_thumbnails(&self) -> bool {
        self.thumbnails.unwrap_or(true)
    }
}

/// What routing reads of a submit, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecHead {
    /// The client's own id, if it gave one.
    pub job_id: Option<JobId>,
    /// Who goes first.
    pub priority: Priority,
    /// The pool whose bucket holds the input, when `input_path` says so.
    pub input_pool: Option<String>,
    /// The client's guess at the input's length.
    pub duration_hint_s: Option<u32>,
    /// The client's guess at the input's size.
    pub size_hint_bytes: Option<u64>,
    /// The wanted rungs' heights, the highest first; empty when the client left them out.
    pub heights: Vec<u32>,
}

impl SpecHead {
    /// Reads the head and passes over whatever it does not know.
    ///
    /// # Errors
    /// A [`Problem`] when the body is no JSON object, is too large, or has an unusable `job_id` or `priority`.
    /// Anything else wrong is the worker's to say.
    pub fn peek(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = Fields(object(body)?);
        let job_id = fields.job_id()?;
        let path = fields.0.get("input_path").and_then(Value::as_str);
        let input_pool = path.and_then(|path| path.split_once('/')).map(|(pool, _)| pool.to_owned());
        Ok(Self {
            job_id,
            priority: fields.priority()?.unwrap_or_default(),
            input_pool,
            duration_hint_s: fields.integer("duration_hint_s", 1, 86_400).ok().flatten().map(|n| n as u32),
            size_hint_bytes: fields.integer("size_hint_bytes", 1, 1 << 50).ok().flatten(),
            heights: fields.resolutions().unwrap_or_default().into_iter().map(Resolution::height).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
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
        let a = r#"{"input_url":"http://h/v","resolutions":["480p","720p"],"labels":{"b":"2","a":"1"},"job_id":"x"}"#;
        let b =
            r#"{"labels":{"a":"1","b":"2"},"resolutions":["720p","480p","480p"],"input_url":"http://h/v"}"#;
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
    fn a_stored_spec_reads_back() {
        for body in [
            r#"{"input_url":"http://h/v","crf":20,"strict":true}"#,
            r#"{"input_path":"aws/uploads/k/v.mp4"}"#,
            r#"{"input_url":"http://h/v","output_format":["mp4","hls"],"thumbnails":false}"#,
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
}
