//! Uploads: a signed, expiring, size-limited URL, and the stream behind it.
//!
//! The signature is the permission: whoever holds the URL may write that one object, once, up to that size, until
//! then. All workers of a store share the key, so any of them may take the bytes. Where the object store signs URLs of
//! its own, the bytes go there, past the workers; large ones [in parts](parts).

pub(super) mod parts;

use std::collections::BTreeMap;

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
use crate::store::NewUpload;
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
    /// How large the file is, if the client knows.
    #[serde(default)]
    bytes: Option<u64>,
    /// In parts, where the store can.
    #[serde(default)]
    resumable: bool,
}

/// What one `PUT` to an object store may have.
const PUT_BYTES_MAX: u64 = 5 << 30;

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
    let host = header("host").unwrap_or("localhost");
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
    let wants = r#"the body must be {"filename": "clip.mp4", "content_type": "video/mp4", "bytes": 1234}"#;
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
    let max = app.upload_bytes_max;
    if asked.bytes == Some(0) || asked.resumable && asked.bytes.is_none() {
        let detail = "bytes must be the file's size, at least 1; a resumable upload needs it";
        return Err(Problem::new(Code::BadField, detail).field("bytes").into());
    }
    if asked.bytes.is_some_and(|bytes| bytes > max) {
        let detail = format!("an upload has at most {max} bytes here");
        return Err(Problem::new(Code::UploadTooLarge, detail).field("bytes").into());
    }
    let key = keys::upload(&tenant, &asked.filename);
    let ticket = if app.presign.uploads() && app.objects.signs(&app.identity.pool) {
        past_the_workers(&app, &headers, key, &asked).await?
    } else {
        through_a_worker(&app, &headers, key).await?
    };
    Ok((StatusCode::OK, Json(ticket)))
}

/// A time in seconds since 1970, as answers have it.
fn shown(time: i64) -> String {
    jiff::Timestamp::from_second(time).map_or_else(|_| String::new(), |time| time.to_string())
}

/// Enters the upload before its URL is given out: what nobody knows of, nobody would ever remove.
async fn enter(app: &App, key: &str, parts: Option<&str>, expires: i64) -> Result<(), Refusal> {
    let (bucket, until_ms) = (app.identity.pool.clone(), expires.saturating_mul(1000));
    let upload = NewUpload { bucket, key: key.to_owned(), parts: parts.map(str::to_owned), until_ms };
    Ok(app.upkeep.enter_upload(&upload, app.uploads_kept).await?)
}

async fn through_a_worker(app: &App, headers: &HeaderMap, key: String) -> Result<UploadTicket, Refusal> {
    let (pool, max) = (&app.identity.pool, app.upload_bytes_max);
    let expires = (app.clock.now() + app.upload_expiry).as_second();
    enter(app, &key, None, expires).await?;
    let sig = hex::encode(mac(app.store.signing_key(), pool, &key, expires, max).finalize().into_bytes());
    let base = base_url(app, headers);
    Ok(UploadTicket {
        upload_url: format!("{base}/upload/{pool}/{key}?expires={expires}&max={max}&sig={sig}"),
        method: "PUT".to_owned(),
        headers: BTreeMap::new(),
        input_path: format!("{pool}/{key}"),
        expires_at: shown(expires),
        bytes_max: max,
        parts: None,
    })
}

async fn past_the_workers(
    app: &App,
    headers: &HeaderMap,
    key: String,
    asked: &UploadRequest,
) -> Result<UploadTicket, Refusal> {
    let pool = app.identity.pool.clone();
    let now = app.clock.now();
    let input_path = format!("{pool}/{key}");
    let in_parts = asked.bytes.filter(|bytes| asked.resumable || *bytes > PUT_BYTES_MAX);
    if let Some(bytes) = in_parts {
        let id = app.objects.begin_parts(&pool, &key).await?.ok_or(objects::Error::NotFound)?;
        let expires = (now + parts::SESSION).as_second();
        if let Err(refusal) = enter(app, &key, Some(&id), expires).await {
            // Nobody would ever complete it or give it up.
            let _ = app.objects.abort_parts(&pool, &key, &id).await;
            return Err(refusal);
        }
        let session = parts::Session { pool, key, expires, bytes, id };
        return Ok(UploadTicket {
            upload_url: format!("{}{}", base_url(app, headers), session.target(app.store.signing_key())),
            method: "POST".to_owned(),
            headers: BTreeMap::new(),
            input_path,
            expires_at: shown(expires),
            bytes_max: bytes,
            parts: Some(session.answer(app, &[]).await?),
        });
    }
    let expires = (now + app.upload_expiry).as_second();
    enter(app, &key, None, expires).await?;
    let signed =
        app.objects.sign_put(&pool, &key, app.upload_expiry).await?.ok_or(objects::Error::NotFound)?;
    Ok(UploadTicket {
        upload_url: signed.url.into(),
        method: "PUT".to_owned(),
        headers: signed.headers,
        input_path,
        expires_at: shown(expires),
        bytes_max: app.upload_bytes_max.min(PUT_BYTES_MAX),
        parts: None,
    })
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
    if app.clock.now().as_second() > signed.expires {
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
