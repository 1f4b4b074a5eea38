//! Every error a client can read: RFC 9457 `application/problem+json` with a stable `code`.

use serde::{Deserialize, Serialize};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::JobId;

/// The media type of a [`Problem`].
pub const CONTENT_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// What went wrong with a *request*, as a stable label. (What went wrong with a *job* is in [`crate::job::FailureCode`].)
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        // By hand: the derive does not see names that a macro hands on.
        impl PartialSchema for Code {
            fn schema() -> RefOr<Schema> {
                let names = Self::ALL.iter().map(|code| code.as_str());
                let description = "What went wrong with a request, as a stable label.";
                ObjectBuilder::new().schema_type(Type::String).description(Some(description)).enum_values(Some(names)).into()
            }
        }

        impl ToSchema for Code {}

        impl Code {
            /// All codes, for metrics and documentation.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The label, as it stands in `code`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text),* }
            }

            /// The HTTP status that goes with it. The only place that maps the two.
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status),* }
            }

            /// The human title that goes with it.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title),* }
            }
        }
    };
}

codes! {
    /// A request that is not well-formed HTTP.
    BadRequest = "bad_request", 400, "The request is malformed";
    /// The body is no JSON object.
    BadJson = "bad_json", 400, "The body is not a JSON object";
    /// A field that the API does not know.
    UnknownField = "unknown_field", 422, "Unknown field";
    /// A field with a value outside its limits.
    BadField = "bad_field", 422, "A field has a value it cannot have";
    /// A resolution that is none of the ladder's.
    BadResolution = "bad_resolution", 422, "Unknown resolution";
    /// A job id outside 1–64 of `A-Za-z0-9._-`.
    BadJobId = "bad_job_id", 422, "The job id is not usable";
    /// `job_id` and `Idempotency-Key` differ.
    JobIdMismatch = "job_id_mismatch", 422, "job_id and Idempotency-Key differ";
    /// `input_path` names nothing inside the project's own store.
    BadInputPath = "bad_input_path", 422, "input_path does not name an object of this store";
    /// A spec over 64 KiB.
    SpecTooLarge = "spec_too_large", 413, "The job spec is too large";
    /// A body that came slower than the deadline.
    BodyTimeout = "body_timeout", 408, "The body did not arrive in time";
    /// A request whose header is too large, or has too many fields.
    HeaderTooLarge = "header_too_large", 431, "The request's header is too large";
    /// A request whose path and query are too long.
    UriTooLong = "uri_too_long", 414, "The request's target is too long";
    /// A request without a key that is in force.
    Unauthenticated = "unauthenticated", 401, "Who asks is not known";
    /// A request whose key may not.
    Forbidden = "forbidden", 403, "Not allowed to this key";
    /// Nobody can tell who asks: the keys that tokens are checked with have not come yet.
    AuthUnavailable = "auth_unavailable", 503, "Who asks cannot be checked now";
    /// More requests of one key or address than the gateway allows. `Retry-After` says when to come back.
    RateLimited = "rate_limited", 429, "Too many requests";
    /// More bytes of uploads of one key or address than the gateway allows. `Retry-After` says when to come back.
    UploadQuota = "upload_quota", 429, "Too many bytes of uploads";
    /// The same job id with another spec.
    JobConflict = "job_conflict", 409, "This job id belongs to another spec";
    /// Cancel of a job that already ended.
    JobFinished = "job_finished", 409, "The job has already ended";
    /// Another try of a job that has not ended, or ended in a way that another try cannot change.
    JobNotRetryable = "job_not_retryable", 409, "Another try is no use";
    /// Another try of a job whose upload was kept no longer.
    InputGone = "input_gone", 410, "The job's input is gone";
    /// Media of a job that has none yet.
    JobNotReady = "job_not_ready", 409, "The job has no outputs yet";
    /// Media of a job that ended without any.
    JobWithoutOutputs = "job_without_outputs", 409, "The job ended without outputs";
    /// Media of a job whose outputs were deleted, or kept no longer.
    OutputsGone = "outputs_gone", 410, "The job's outputs are gone";
    /// No such job.
    JobNotFound = "job_not_found", 404, "No such job";
    /// No such path.
    NotFound = "not_found", 404, "Nothing here";
    /// A path that exists, with another method.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    /// A body of a kind that the path does not take.
    UnsupportedMediaType = "unsupported_media_type", 415, "This kind of body is not taken here";
    /// A query parameter outside its limits.
    BadQuery = "bad_query", 400, "A query parameter has a value it cannot have";
    /// A range that the object does not have.
    BadRange = "bad_range", 416, "The range is outside the object";
    /// An upload or media URL that was not signed here, or was changed.
    BadSignature = "bad_signature", 403, "The URL's signature does not match";
    /// An upload URL past its time.
    UploadExpired = "upload_expired", 403, "The upload URL has expired";
    /// A media URL past its time. Reading the job again gives a fresh one.
    MediaExpired = "media_expired", 403, "The media URL has expired";
    /// An upload beyond the size that its URL or the gateway allows.
    UploadTooLarge = "upload_too_large", 413, "The upload is too large";
    /// An upload that ended before its `Content-Length`.
    UploadIncomplete = "upload_incomplete", 400, "The upload ended early";
    /// An object of that key exists already.
    UploadExists = "upload_exists", 409, "This upload URL was already used";
    /// Queue full, here or everywhere. `Retry-After` says when to come back.
    Saturated = "saturated", 429, "Every queue is full";
    /// The process is shutting down or drained by an operator.
    Draining = "draining", 503, "Draining";
    /// A worker that serves as many event streams as it may. `Retry-After` says when to come back.
    TooManyStreams = "too_many_streams", 503, "Too many event streams";
    /// No healthy worker in any pool.
    NoHealthyWorker = "no_healthy_worker", 503, "No healthy worker";
    /// The job store does not answer.
    StoreUnavailable = "store_unavailable", 503, "The job store does not answer";
    /// The object store does not answer.
    ObjectsUnavailable = "objects_unavailable", 503, "The object store does not answer";
    /// A worker broke off, and no retry was safe or left.
    UpstreamFailed = "upstream_failed", 502, "The worker broke off";
    /// A worker did not answer in time, and no retry was safe or left.
    UpstreamTimeout = "upstream_timeout", 504, "The worker did not answer in time";
    /// A defect of ours.
    Internal = "internal", 500, "Internal error";
}

/// An error as a client reads it. Details for operators go to the log, never here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the `code` is the type.
    #[serde(rename = "type")]
    pub type_: String,
    /// [`Code::title`].
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable label to program against.
    pub code: Code,
    /// What happened this time and what to do about it.
    pub detail: String,
    /// The field or parameter at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The job's id, also when the gateway assigned it: post again with it and it is the same job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// Seconds after which another try makes sense; the same as the `Retry-After` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem with the code's own status and title.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            type_: "about:blank".to_owned(),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            field: None,
            job_id: None,
            retry_after_s: None,
        }
    }

    /// Names the field or parameter at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Names the job, so that a client can post again safely.
    #[must_use]
    pub fn job(mut self, job_id: &JobId) -> Self {
        self.job_id = Some(job_id.clone());
        self
    }

    /// Says when another try makes sense, in seconds (at least 1).
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// The JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a problem is plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_say_what_serde_says() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{} twice", code.as_str());
            assert_eq!(serde_json::to_string(code).unwrap(), format!("{:?}", code.as_str()));
            assert!((400..600).contains(&code.status()));
        }
    }

    #[test]
    fn a_problem_reads_back_as_it_was_written() {
        let problem =
            Problem::new(Code::Saturated, "both pools are full").retry_after(0).job(&JobId::assign());
        assert_eq!(problem.retry_after_s, Some(1));
        assert_eq!(serde_json::from_str::<Problem>(&problem.to_json()).unwrap(), problem);
    }
}
