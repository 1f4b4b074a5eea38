//! The client API as OpenAPI 3.1: read off the types that are sent, and of each call what the gateway and the worker do.
//!
//! It lives here because it is the contract itself: gateway and worker each implement a part of it, and neither knows
//! the other.

mod calls;
pub mod postman;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::copies::Durability;
use crate::id::{JobId, PoolId, WorkerId};
use crate::problem::Problem;
use crate::spec::{Format, LABEL_LENGTH_MAX, LABELS_MAX, Preset, Priority, Resolution, TITLE_LENGTH_MAX};

/// What is asked of a job. Give `input_url` or `input_path`. A field that is not here is refused by its name.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobSpec {
    /// The job's public name. Posting it again with the same spec is the same job, anywhere. Without it the gateway
    /// assigns one and tells it in the answer, also when that is an error.
    #[schema(required = false)]
    job_id: Option<JobId>,
    /// An `http` or `https` URL that the worker fetches. Private, loopback and link-local addresses are refused.
    #[schema(
        max_length = 4096,
        format = "uri",
        pattern = "^https?://",
        example = "https://media.example/clip.mp4"
    )]
    input_url: Option<String>,
    /// `POOL/KEY` as an upload's answer names it.
    #[schema(max_length = 4096)]
    input_path: Option<String>,
    /// Wanted rungs. Left out: every standard rung not above the source.
    #[schema(min_items = 1, max_items = 8)]
    resolutions: Option<Vec<Resolution>>,
    /// Wanted formats. Left out: the segmented stream, which HLS and DASH share.
    output_format: Option<Formats>,
    /// Who goes first.
    priority: Option<Priority>,
    /// x264 preset.
    preset: Option<Preset>,
    /// x264 constant rate factor: lower is better and larger.
    #[schema(minimum = 18, maximum = 35)]
    crf: Option<u32>,
    /// Length of a segment in seconds.
    #[schema(minimum = 2, maximum = 10)]
    segment_seconds: Option<u32>,
    /// Whether a poster and a sprite sheet are made; they are when this is left out.
    thumbnails: Option<bool>,
    /// Fail on the first damaged frame instead of finishing with warnings.
    strict: Option<bool>,
    /// A guess at the input's length in seconds. Routing knows no better before a worker has looked.
    #[schema(minimum = 1)]
    duration_hint_s: Option<u32>,
    /// A guess at the input's size in bytes.
    #[schema(minimum = 1)]
    size_hint_bytes: Option<u64>,
    /// How many days the outputs are kept after the job's end. Left out: as the deployment has it.
    #[schema(minimum = 1, maximum = 3650)]
    retention_days: Option<u32>,
    /// What people call the video. It is found by its words.
    #[schema(min_length = 1, max_length = 256)]
    title: Option<String>,
    /// What the job shall survive: `single`, the default, the death of processes and nodes; `dual` the loss of a cloud, too,
    /// from the moment that its answer calls `durability.reached_at`. Where the deployment has no second cloud for that, 422.
    durability: Option<Durability>,
    /// Pools that get copies of the outputs once there are any.
    #[schema(min_items = 1, max_items = 8)]
    replicate: Option<Vec<PoolId>>,
    /// Where the job's end (succeeded, failed, dead or cancelled) is told: by a `POST` that is signed as the Standard
    /// Webhooks specification has it, and repeated for a day until it is answered with 2xx. Private, loopback and
    /// link-local addresses are refused.
    #[schema(max_length = 2048, format = "uri", pattern = "^https?://")]
    webhook_url: Option<String>,
    /// Names and values of the client's own, kept as they are.
    #[schema(schema_with = labels)]
    labels: Option<BTreeMap<String, String>>,
}

/// One format, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "never built: its shape is what it is for")]
enum Formats {
    One(Format),
    Several(Vec<Format>),
}

fn labels() -> Schema {
    let text = || ObjectBuilder::new().schema_type(Type::String).max_length(Some(LABEL_LENGTH_MAX));
    ObjectBuilder::new()
        .description(Some("Names and values of the client's own, kept as they are"))
        .max_properties(Some(LABELS_MAX))
        .property_names(Some(text()))
        .additional_properties(Some(text()))
        .into()
}

/// What is to be uploaded.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UploadRequest {
    /// The file's name; it becomes the end of the object's.
    #[schema(min_length = 1, max_length = 512, example = "clip.mp4")]
    filename: String,
    /// `video/…` or `application/octet-stream`.
    #[schema(pattern = "^(video/.*|application/octet-stream)$", example = "video/mp4")]
    content_type: Option<String>,
    /// The file's size. A resumable upload needs it, and so does one that is too large for a single `PUT`.
    #[schema(minimum = 1)]
    bytes: Option<u64>,
    /// In parts that can be sent again, where the object store can do that; else the ticket has no `parts`.
    resumable: Option<bool>,
}

/// Whether it serves.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok` or `unready`.
    status: String,
    /// Why not, if it does not.
    #[schema(required = false)]
    reason: Option<String>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Millrace", description = "Post a video once; it is transcoded where it ends soonest for the money.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")),
    paths(calls::submit, calls::process, calls::list, calls::read, calls::cancel, calls::retry, calls::replicate, calls::follow,
        calls::post_video, calls::find_videos, calls::video, calls::upload,
        calls::download, calls::media, calls::livez, calls::readyz, calls::health),
    components(schemas(Problem, PoolId, WorkerId)),
    tags(
        (name = "jobs", description = "Submit, read, follow, cancel"),
        (name = "videos", description = "Post a file, find it again, show it"),
        (name = "uploads", description = "Bytes that no URL leads to"),
        (name = "media", description = "What came of a job"),
        (name = "health", description = "For load balancers"),
    ),
    modifiers(&Keys),
    security((), ("key" = []), ("bearer" = [])),
)]
struct Api;

struct Keys;

impl Modify for Keys {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        let key = ApiKeyValue::with_description("x-api-key", "An API key, where the gateway asks for one");
        let bearer =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API key or a token"));
        components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(key)));
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    }
}

/// The description, as it is served at `/openapi.json`.
pub fn document() -> Value {
    let mut document = serde_json::to_value(Api::openapi()).expect("a description is plain data");
    let spec = &mut document["components"]["schemas"]["JobSpec"];
    spec["oneOf"] = json!([{ "required": ["input_url"] }, { "required": ["input_path"] }]);
    videos(&mut document);
    let formats = document["components"]["schemas"]["Formats"]["oneOf"].as_array_mut();
    for list in formats.into_iter().flatten().filter(|one| one["type"] == "array") {
        (list["minItems"], list["maxItems"]) = (json!(1), json!(Format::ALL.len()));
    }
    let operations = document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    for operation in operations.filter_map(Value::as_object_mut).flat_map(|path| path.values_mut()) {
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        operation["responses"]["default"] = json!({
            "description": "What went wrong, with a stable `code` to program against",
            "content": { crate::problem::CONTENT_TYPE: { "schema": schema } },
        });
    }
    webhooks(&mut document);
    plain(&mut document);
    document
}

/// What is posted as a video: the file, or a form around it; and what may be asked is a job's spec without an input.
fn videos(document: &mut Value) {
    let mut spec = document["components"]["schemas"]["JobSpec"].clone();
    spec["description"] =
        "What is asked of a video's job: a job's spec without an input, which is the file.".into();
    let fields = spec.as_object_mut().expect("a schema is an object");
    fields.remove("oneOf");
    for input in ["input_url", "input_path"] {
        fields["properties"].as_object_mut().expect("an object's schema").remove(input);
    }
    document["components"]["schemas"]["VideoSpec"] = spec;
    let file = json!({ "type": "string", "format": "binary", "description": "The file" });
    document["paths"]["/videos"]["post"]["requestBody"] = json!({
        "required": true,
        "content": {
            "application/octet-stream": { "schema": file },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": false,
                    "properties": {
                        "file": file,
                        "spec": { "$ref": "#/components/schemas/VideoSpec" },
                        "title": { "type": "string", "maxLength": TITLE_LENGTH_MAX, "description": "What people call it" },
                    },
                },
                "encoding": { "spec": { "contentType": "application/json" } },
            },
        },
    });
}

/// What a receiver is told.
fn webhooks(document: &mut Value) {
    let header = |name: &str, description: &str| json!({ "name": name, "in": "header", "required": true, "description": description, "schema": { "type": "string" } });
    document["webhooks"] = json!({ "jobEnded": { "post": {
        "summary": "A job with a `webhook_url` has ended",
        "description": "Signed as the Standard Webhooks specification has it, and sent again for a day until it is \
            answered with 2xx; 410 ends it at once. Duplicates have the same id; those of one job come in order.",
        "operationId": "jobEnded",
        "tags": ["jobs"],
        "parameters": [
            header("webhook-id", "The message's name, the same however often it is sent"),
            header("webhook-timestamp", "Seconds since 1970, when this try was sent"),
            header("webhook-signature", "`v1,` and HMAC-SHA256 of `id.timestamp.body` in base64; one for each secret"),
        ],
        "requestBody": { "required": true, "content": { "application/json": { "schema": {
            "type": "object",
            "required": ["type", "timestamp", "data"],
            "properties": {
                "type": { "type": "string", "enum": ["job.succeeded", "job.failed", "job.dead", "job.cancelled"] },
                "timestamp": { "type": "string", "format": "date-time" },
                "data": { "$ref": "#/components/schemas/Job" },
            },
        } } } },
        "responses": { "2XX": { "description": "Taken" }, "410": { "description": "Send none of this job any more" } },
    } } });
}

/// Rust's links are no text for readers of an API: ``[`Code::title`]`` becomes `` `Code::title` ``.
fn plain(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("[`") => *text = text.replace("[`", "`").replace("`]", "`"),
        Value::Array(values) => values.iter_mut().for_each(plain),
        Value::Object(values) => values.values_mut().for_each(plain),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::job::State;
    use crate::spec::FIELDS;

    #[test]
    fn the_description_has_each_field_that_a_spec_may_have_and_no_other() {
        let document = document();
        let schema = &document["components"]["schemas"]["JobSpec"];
        let described: BTreeSet<&str> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, FIELDS.into_iter().collect());
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(document.pointer("/components/schemas/Formats/oneOf/1/minItems"), Some(&json!(1)));
    }

    #[test]
    fn names_are_those_that_are_sent() {
        let document = document();
        let names = |schema: &str| {
            let names = document["components"]["schemas"][schema]["enum"].as_array().unwrap();
            names.iter().map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("Code"), crate::Code::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>());
        let codes = crate::job::FailureCode::ALL.iter().map(|code| code.as_str());
        assert_eq!(names("FailureCode"), codes.collect::<Vec<_>>());
        assert_eq!(names("State"), State::ALL.map(State::as_str));
        assert_eq!(names("Resolution"), ["360p", "480p", "720p", "1080p"]);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                Value::Object(values) => {
                    found.extend(values.get("$ref").and_then(Value::as_str));
                    values.values().for_each(|value| references(value, found));
                }
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
        }
    }
}
