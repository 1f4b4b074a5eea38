//! Uploads: a signed, expiring, size-limited URL, and the stream behind it.
//!
//! The signature is the permission: whoever holds the URL may write that one object, once, up to that size, until
//! then. All workers of a store share the key, so any of them may take the bytes.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, Mac};
use millrace_wire::job::UploadTicket;
use millrace_wire::{Code, PoolId, Problem};
use serde::Deserialize;
use sha2::Sha256;
use tracing::info;

use super::tenant::Tenant;
use super::{App, Refusal, Shared};
use crate::{keys, objects};

/// Most bytes of an upload request's body.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Longest file name in a request.
const FILENAME_LENGTH_MAX: usize = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadRequest {
    filename: String,
    #[serde(default)]
    content_type: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Signed {
    expires: i64,
    max: u64,
    sig: String,
}

/// What a signature covers. Every field that the receiver believes is in here.
fn mac(key: &[u8], pool: &PoolId, object: &str, expires: i64, max: u64) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(format!("PUT\n{pool}\n{object}\n{expires}\n{max}").as_bytes());
    mac
}

/// The endpoint as the client knows it: as configured, else as the request was addressed.
fn base_url(app: &App, headers: &HeaderMap) -> String {
    if let Some(url) = &app.public_url {
        return url.as_str().trim_end_matches('/').to_owned();
    }
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let host = header("x-forwarded-host").or_else(|| header("host")).unwrap_or("localhost");
    let scheme = header("x-forwarded-proto").filter(|s| *s == "https").unwrap_or("http");
    format!("{scheme}://{host}")
}

pub(super) async fn request(
    State(app): Shared,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<UploadTicket>), Refusal> {
    let body = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await.map_err(|_| {
        Problem::new(Code::BadJson, format!("an upload request has at most {REQUEST_BYTES_MAX} bytes"))
    })?;
    let wants = r#"the body must be {"filename": "clip.mp4", "content_type": "video/mp4"}"#;
    let asked: UploadRequest =
        serde_json::from_slice(&body).map_err(|e| Problem::new(Code::BadJson, format!("{wants}: {e}")))?;
    if asked.filename.is_empty() || asked.filename.len() > FILENAME_LENGTH_MAX {
        let detail = format!("filename must have 1 to {FILENAME_LENGTH_MAX} bytes");
        return Err(Problem::new(Code::BadField, detail).field("filename").into());
    }
    if asked
        .content_type
        .as_ref()
        .is_some_and(|t| !(t.starts_with("video/") || t == "application/octet-stream"))
    {
        let detail = "content_type must be video/… or application/octet-stream";
        return Err(Problem::new(Code::BadField, detail).field("content_type").into());
    }
    let (pool, key, max) = (&app.identity.pool, keys::upload(&tenant, &asked.filename), app.upload_bytes_max);
    let expires_at = jiff::Timestamp::now() + app.upload_expiry;
    let expires = expires_at.as_second();
    let sig = hex::encode(mac(app.store.signing_key(), pool, &key, expires, max).finalize().into_bytes());
    let ticket = UploadTicket {
        upload_url: format!(
            "{}/upload/{pool}/{key}?expires={expires}&max={max}&sig={sig}",
            base_url(&app, &headers)
        ),
        method: "PUT".to_owned(),
        input_path: format!("{pool}/{key}"),
        expires_at: jiff::Timestamp::from_second(expires).map_or_else(|_| String::new(), |t| t.to_string()),
        bytes_max: max,
    };
    Ok((StatusCode::OK, Json(ticket)))
}

pub(super) async fn receive(
    State(app): Shared,
    Path((pool, key)): Path<(String, String)>,
    signed: Result<Query<Signed>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let forged =
        || Problem::new(Code::BadSignature, "use the upload URL exactly as POST /upload/request gave it");
    let Query(signed) = signed.map_err(|_| forged())?;
    let pool: PoolId = pool.parse().map_err(|_| forged())?;
    let signature = hex::decode(&signed.sig).map_err(|_| forged())?;
    let expected = mac(app.store.signing_key(), &pool, &key, signed.expires, signed.max);
    expected.verify_slice(&signature).map_err(|_| forged())?;
    if keys::split_input_path(&format!("{pool}/{key}")).is_none() {
        return Err(forged().into());
    }
    if jiff::Timestamp::now().as_second() > signed.expires {
        return Err(Problem::new(Code::UploadExpired, "ask for a new one with POST /upload/request").into());
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let too_large =
        || Problem::new(Code::UploadTooLarge, format!("this URL takes at most {} bytes", signed.max));
    if announced.is_some_and(|bytes| bytes > signed.max) {
        return Err(too_large().into());
    }
    let stored = app.objects.create(&pool, &key, body.into_data_stream(), signed.max).await;
    let meta = stored.map_err(|error| match error {
        objects::Error::Exists => Refusal(Problem::new(
            Code::UploadExists,
            "the upload is complete already; submit a job with its input_path",
        )),
        objects::Error::TooLarge { .. } => too_large().into(),
        objects::Error::Interrupted(reason) => {
            info!(reason, "an upload broke off");
            Refusal(Problem::new(Code::UploadIncomplete, "the upload ended early; PUT it again"))
        }
        error => error.into(),
    })?;
    info!(%pool, key, bytes = meta.bytes, "upload stored");
    let stored = serde_json::json!({ "input_path": format!("{pool}/{key}"), "bytes": meta.bytes });
    Ok((StatusCode::CREATED, [(header::ETAG, meta.etag)], Json(stored)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_covers_every_part_of_the_url() {
        let (aws, gcp): (PoolId, PoolId) = ("aws".parse().unwrap(), "gcp".parse().unwrap());
        let sign = |key: &[u8], pool, object, expires, max| {
            mac(key, pool, object, expires, max).finalize().into_bytes()
        };
        let right = sign(b"k", &aws, "uploads/1/a", 10, 100);
        let others = [
            sign(b"K", &aws, "uploads/1/a", 10, 100),
            sign(b"k", &gcp, "uploads/1/a", 10, 100),
            sign(b"k", &aws, "uploads/1/b", 10, 100),
            sign(b"k", &aws, "uploads/1/a", 11, 100),
            sign(b"k", &aws, "uploads/1/a", 10, 101),
        ];
        assert!(others.iter().all(|other| *other != right));
        assert!(mac(b"k", &aws, "uploads/1/a", 10, 100).verify_slice(&right).is_ok());
    }
}
