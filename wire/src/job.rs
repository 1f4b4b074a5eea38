//! What a client reads back about a job.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::copies::{JobDurability, OutputCopy};
use crate::id::{JobId, PoolId, WorkerId};
use crate::spec::{JobSpec, Priority};

/// Where a job stands. `running` is refined by [`Phase`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted, not yet claimed by a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Failed in a way that may pass; waits for its next attempt.
    RetryWait,
    /// Done; outputs are published.
    Succeeded,
    /// Ended by a permanent error.
    Failed,
    /// Ended by a client.
    Cancelled,
    /// Given up after too many attempts.
    Dead,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::RetryWait,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Dead,
    ];

    /// The name in the API and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::RetryWait => "retry_wait",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether nothing will change it any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Dead)
    }
}

/// What a running job is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Fetching the input.
    Source,
    /// Scanning its packets.
    Probing,
    /// ffmpeg runs.
    Encoding,
    /// Outputs are verified, stored and committed.
    Publishing,
}

impl Phase {
    /// Every phase in order.
    pub const ALL: [Self; 4] = [Self::Source, Self::Probing, Self::Encoding, Self::Publishing];

    /// The name in the API and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Probing => "probing",
            Self::Encoding => "encoding",
            Self::Publishing => "publishing",
        }
    }

    /// The phase of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name)
    }
}

/// How far the current attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// 0–100, by media time.
    pub percent: f64,
    /// Seconds of media encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_seconds: Option<f64>,
    /// Media seconds per wall second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// Seconds left at this speed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Bytes of the source that are here, while it is fetched from a URL; `percent` is 0 meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_bytes: Option<u64>,
    /// Bytes that it has in all, if its server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_bytes_total: Option<u64>,
}

macro_rules! failure_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $permanent:literal;)*) => {
        /// Why an attempt at a job failed, as a stable label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum FailureCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        // By hand: the derive does not see names that a macro hands on.
        impl PartialSchema for FailureCode {
            fn schema() -> RefOr<Schema> {
                let names = Self::ALL.iter().map(|code| code.as_str());
                let description = "Why an attempt at a job failed, as a stable label.";
                ObjectBuilder::new().schema_type(Type::String).description(Some(description)).enum_values(Some(names)).into()
            }
        }

        impl ToSchema for FailureCode {}

        impl FailureCode {
            /// All codes, for metrics and documentation.
            pub const ALL: &'static [FailureCode] = &[$(FailureCode::$name),*];

            /// The label, as it stands in `error.code`.
            pub fn as_str(self) -> &'static str {
                match self { $(FailureCode::$name => $text),* }
            }

            /// Whether another attempt is pointless.
            pub fn is_permanent(self) -> bool {
                match self { $(FailureCode::$name => $permanent),* }
            }
        }
    };
}

failure_codes! {
    /// The URL's host could not be reached or resolved, or the connection broke.
    SourceUnreachable = "source_unreachable", false;
    /// The URL leads to a private, loopback, link-local or metadata address.
    SourceAddressRefused = "source_address_refused", true;
    /// The URL answered 4xx, or the object is not in the store.
    SourceNotFound = "source_not_found", true;
    /// The URL answered 5xx, 408 or 429.
    SourceUnavailable = "source_unavailable", false;
    /// The URL redirected too often, or to something that is not http(s).
    SourceRedirects = "source_redirects", true;
    /// The input is larger than this deployment allows.
    SourceTooLarge = "source_too_large", true;
    /// The input did not arrive within its time.
    SourceTimeout = "source_timeout", false;
    /// Zero bytes.
    SourceEmpty = "source_empty", true;
    /// Not a container that we read: HTML, text, a playlist, an archive, an unknown format.
    SourceNotMedia = "source_not_media", true;
    /// The file ends before what it announces.
    SourceTruncated = "source_truncated", true;
    /// Too much of it cannot be decoded.
    SourceDamaged = "source_damaged", true;
    /// The sound alone was asked for, and there is none.
    SourceNoAudio = "source_no_audio", true;
    /// Neither picture nor sound in it.
    SourceNoVideo = "source_no_video", true;
    /// More pixels, streams or seconds than the limits allow.
    SourceOverLimits = "source_over_limits", true;
    /// ffmpeg failed on an input that looked sound.
    EncodeFailed = "encode_failed", false;
    /// ffmpeg made no progress for too long and was stopped.
    EncodeStalled = "encode_stalled", false;
    /// ffmpeg went over its CPU, memory or file-size limit.
    EncodeOverLimits = "encode_over_limits", true;
    /// The outputs are not what was planned.
    VerifyFailed = "verify_failed", false;
    /// The scratch directory is full or not writable.
    ScratchUnavailable = "scratch_unavailable", false;
    /// The object store does not take or give bytes.
    ObjectsUnavailable = "objects_unavailable", false;
    /// The object store refuses the worker: its credentials are wrong or past their time, or its clock is off.
    ObjectsDenied = "objects_denied", false;
    /// What the object store had taken is not there any more, or not as it was written; it is made again, a few times.
    ObjectsLost = "objects_lost", false;
    /// The lease ran out: the worker died or was cut off.
    LeaseLost = "lease_lost", false;
    /// The worker was asked to stop before the job was done.
    WorkerStopped = "worker_stopped", false;
    /// A defect of ours.
    Internal = "internal", false;
}

/// Why the last attempt failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobError {
    /// The stable label.
    pub code: FailureCode,
    /// What happened, for people; never paths, addresses inside, or credentials.
    pub detail: String,
}

/// One rendition of a finished job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rendition {
    /// `720p`; by the shorter side, whatever the aspect ratio.
    pub name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Peak bits per second of any segment with its audio, measured (HLS `BANDWIDTH`).
    pub bandwidth: u64,
    /// Bits per second over the whole length with audio, measured (HLS `AVERAGE-BANDWIDTH`).
    pub average_bandwidth: u64,
    /// RFC 6381 codecs, video then audio.
    pub codecs: String,
    /// Frames per second.
    pub frame_rate: f64,
    /// Path of its HLS media playlist on the same endpoint, when a stream was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Path of its progressive file, sound included, when one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mp4: Option<String>,
}

/// The sound of a finished job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AudioRendition {
    /// Peak bits per second of any segment, measured.
    pub bandwidth: u64,
    /// Bits per second over the whole length, measured.
    pub average_bandwidth: u64,
    /// RFC 6381.
    pub codecs: String,
    /// How many.
    pub channels: u32,
    /// Hertz.
    pub sample_rate: u32,
    /// Path of its HLS media playlist, when a stream was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Path of the sound as one progressive file, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mp4: Option<String>,
}

/// What a finished job gave. Paths are on the same endpoint, and what was not asked for is not there.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Outputs {
    /// Path of the HLS multivariant playlist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hls: Option<String>,
    /// Path of the MPEG-DASH manifest over the same segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dash: Option<String>,
    /// Path of a still picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poster: Option<String>,
    /// Path of a WebVTT file that names the part of a sprite sheet for each moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnails: Option<String>,
    /// Length in seconds.
    pub duration_s: f64,
    /// Bytes of all files.
    pub bytes: u64,
    /// The highest first; none when there is no picture.
    pub renditions: Vec<Rendition>,
    /// The sound, if there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<AudioRendition>,
}

impl Outputs {
    /// Every path in it, for who has to rewrite them all.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let own = [&mut self.hls, &mut self.dash, &mut self.poster, &mut self.thumbnails];
        let renditions = self.renditions.iter_mut().flat_map(|one| [&mut one.url, &mut one.mp4]);
        let audio = self.audio.iter_mut().flat_map(|one| [&mut one.url, &mut one.mp4]);
        own.into_iter().chain(renditions).chain(audio).flatten()
    }
}

/// What `GET /jobs/{job_id}/events` says in each message: where a job stood at that moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobUpdate {
    /// The job's public name.
    pub job_id: JobId,
    /// Where it stood.
    pub state: State,
    /// What it was at, while it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How far it was. Within one attempt it never falls from message to message.
    pub progress: Progress,
    /// The pool that accepted it, or ran it.
    pub pool: PoolId,
    /// The worker that ran it last; none before the first claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// How many times it was tried, that try included.
    pub attempt: u32,
    /// Why the last failed attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}

/// A job as a client reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// The job's public name.
    pub job_id: JobId,
    /// Where it stands.
    pub state: State,
    /// What it is at, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How far it is.
    pub progress: Progress,
    /// The class it waits in.
    pub priority: Priority,
    /// The pool that accepted it, or runs it.
    pub pool: PoolId,
    /// The worker that runs it or ran it last; none before the first claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// How many times it was tried, this try included.
    pub attempt: u32,
    /// What was asked.
    #[schema(value_type = crate::openapi::JobSpec)]
    pub spec: JobSpec,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Outputs>,
    /// RFC 3339, UTC: until when the outputs of a finished job are kept, or since when they are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs_until: Option<String>,
    /// How far `dual` is, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<JobDurability>,
    /// Copies of the outputs in other pools, where those were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<OutputCopy>,
    /// What was odd, but not fatal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// A cancel was asked for and not yet seen by the worker.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// How far the telling of its end is, when it has a `webhook_url` and has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC: first claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Paths of this job on the same endpoint.
    pub links: BTreeMap<String, String>,
}

/// Where the telling of a job's end stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookState {
    /// It is told, or told again, until it is taken or a day is over.
    Pending,
    /// The receiver took it.
    Delivered,
    /// The receiver took it never, or said that it is gone (410).
    GivenUp,
}

impl WebhookState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::GivenUp];

    /// The name in the API and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// How far the telling of a job's end is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Webhook {
    /// Where it stands.
    pub state: WebhookState,
    /// How often it was sent.
    pub tries: u32,
    /// How the last try failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// RFC 3339, UTC: when it is sent next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
}

/// What is sent to a webhook, and to an event sink: something that happened to a job. By the Standard Webhooks
/// specification; the message's id is in its header, and duplicates have the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEvent<T> {
    /// `job.` and the event's kind, like `job.succeeded`.
    #[serde(rename = "type")]
    pub type_: String,
    /// RFC 3339, UTC: when it happened.
    pub timestamp: String,
    /// The job. A webhook's is as it stands when the message is sent; a sink's is a [`JobUpdate`] of that moment.
    pub data: T,
}

/// One page of jobs, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobPage {
    /// At most `limit` of them.
    pub jobs: Vec<Job>,
    /// Pass it as `cursor` for the next page; none on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// The answer of `POST /upload/request`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadTicket {
    /// Where the bytes go. With `parts`, what completes the upload, and says on `GET` how far it is.
    pub upload_url: String,
    /// `PUT`; `POST` with `parts`.
    pub method: String,
    /// What the `PUT` must carry: the URL's signature covers it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Then submit a job with this.
    pub input_path: String,
    /// RFC 3339, UTC: the URL's end.
    pub expires_at: String,
    /// Most bytes that the URL takes.
    pub bytes_max: u64,
    /// Where each part goes, when the upload is resumable. Then `POST` to `upload_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<UploadParts>,
}

/// How far an upload in parts is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadParts {
    /// Bytes of each part but the last.
    pub part_bytes: u64,
    /// How many there must be.
    pub count: u32,
    /// What is there with the size that it must have.
    pub arrived: Vec<ArrivedPart>,
    /// Where the next missing ones go, at most a hundred. `GET` of `upload_url` gives more of them, and fresh ones.
    pub urls: Vec<PartUrl>,
}

/// A part that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArrivedPart {
    /// From 1.
    pub number: u32,
    /// Bytes.
    pub bytes: u64,
}

/// Where a part goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartUrl {
    /// From 1.
    pub number: u32,
    /// `PUT` it here, as often as needed. The answer's `ETag` is for the body of the `POST`, where the store asks for it.
    pub url: String,
    /// How many bytes it must have.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_serde_says() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
            assert_eq!(Phase::parse(phase.as_str()), Some(phase));
        }
        for state in WebhookState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        for code in FailureCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
