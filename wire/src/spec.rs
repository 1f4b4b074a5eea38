//! What a client asks for.
//!
//! [`JobSpec`] is the whole, validated spec: the worker reads it. [`SpecHead`] is the little that routing needs: the
//! gateway reads that and leaves every other field alone, so that an old gateway never refuses what a new worker knows.

mod fields;
mod head;

use std::collections::{BTreeMap, BTreeSet};

use fields::{Fields, object};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::copies::Durability;
use crate::id::{JobId, PoolId};
use crate::problem::{Code, Problem};

/// Largest body of a submit: it must fit the gateway's retry buffer whole.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;
/// Longest `input_url` or `input_path`.
pub const INPUT_LENGTH_MAX: usize = 4096;
/// Longest hint of a length, in seconds.
pub const DURATION_HINT_MAX_S: u64 = 86_400;
/// Largest hint of a size.
pub const SIZE_HINT_MAX_BYTES: u64 = 1 << 50;
/// Most labels of one job.
pub const LABELS_MAX: usize = 32;
/// Longest label name or value.
pub const LABEL_LENGTH_MAX: usize = 256;
/// Longest title, in characters.
pub const TITLE_LENGTH_MAX: usize = 256;
/// Longest `webhook_url`.
pub const WEBHOOK_URL_LENGTH_MAX: usize = 2048;
/// Most rungs of one ladder.
pub const RUNGS_MAX: usize = 8;
/// Most pools that outputs are copied to.
pub const REPLICATE_MAX: usize = 8;
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

/// A standard rung of the ladder, named by the shorter side of its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
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

    /// Pixels of the shorter side: the height of a picture that lies.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
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
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
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
    /// How many days the outputs are kept after the job's end, 1–3650; as the deployment has it when the client does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// What people call the video; it is found by the words of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it shall survive. `dual` stands here, `single` is left out: it is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Pools that get copies of the outputs once there are any; in order, none twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicate: Vec<PoolId>,
    /// Where the job's end is told, by a signed `POST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// The client's own names and values, kept as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Every field that a submit may carry.
pub const FIELDS: [&str; 19] = [
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
    "retention_days",
    "title",
    "durability",
    "replicate",
    "webhook_url",
    "labels",
];

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
            duration_hint_s: fields.integer("duration_hint_s", 1, DURATION_HINT_MAX_S)?.map(|n| n as u32),
            size_hint_bytes: fields.integer("size_hint_bytes", 1, SIZE_HINT_MAX_BYTES)?,
            retention_days: fields.integer("retention_days", 1, 3650)?.map(|n| n as u32),
            title: fields.title()?,
            durability: fields.durability()?,
            replicate: fields.pools("replicate")?,
            webhook_url: fields.webhook_url()?,
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

    /// Whether its input shall lie in two clouds.
    pub fn is_dual(&self) -> bool {
        self.durability == Some(Durability::Dual)
    }

    /// The words by which it is found: those of its title and its labels, in lower case, each once.
    pub fn words(&self) -> BTreeSet<String> {
        let labels = self.labels.iter().flat_map(|(name, value)| [name, value]);
        self.title.iter().chain(labels).flat_map(|text| words(text)).collect()
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

/// Reads the body of a wish for copies: `{"pools": […]}`.
///
/// # Errors
/// A [`Problem`] that names the field.
pub fn pools_of(body: &[u8]) -> Result<Vec<PoolId>, Problem> {
    let mut fields = Fields(object(body)?);
    let pools = fields.pools("pools")?;
    if let Some(unknown) = fields.0.keys().next() {
        let shown: String = unknown.chars().take(64).collect();
        let detail = format!("{shown:?} is no field here; the only one is pools");
        return Err(Problem::new(Code::UnknownField, detail).field(shown));
    }
    if pools.is_empty() {
        let detail = "pools must name the pools that shall have copies";
        return Err(Problem::new(Code::BadField, detail).field("pools"));
    }
    Ok(pools)
}

/// A text's words: runs of letters and digits, in lower case. Whatever stands between them is nothing, so that no text has
/// a meaning for a database's language of queries.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
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
        head::read(body)
    }
}

#[cfg(test)]
mod tests;
