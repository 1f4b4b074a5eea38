//! Uploads in parts, past the workers: the client sends each part to a URL of the object store, in any order and as
//! often as it must, and says at the end that all are there.
//!
//! The session's URL is the permission, as for a plain upload: `GET` says what has arrived and gives fresh URLs for the
//! rest, so that a client that lost its connection, or itself, goes on; `POST` makes the upload complete.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, Mac};
use millrace_wire::job::{ArrivedPart, PartUrl, UploadParts};
use millrace_wire::{Code, PoolId, Problem};
use serde::Deserialize;
use sha2::Sha256;
use tracing::{info, warn};

use super::super::{App, Refusal, Shared};
use crate::keys;
use crate::objects::{self, Part};

/// How long a session holds. Its parts' URLs hold as long as any upload URL, and are renewed by it.
pub(super) const SESSION: Duration = Duration::from_secs(24 * 3600);
/// The least that a part has, the last one excepted: small enough to be sent again, large enough to be few.
const PART_BYTES_MIN: u64 = 16 << 20;
/// URLs in one answer.
const URLS_MAX: usize = 100;
/// Most bytes of the body that completes an upload: ten thousand ETags.
const COMPLETE_BYTES_MAX: usize = 1 << 20;

/// What a session is about; every field is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) pool: PoolId,
    pub(super) key: String,
    pub(super) expires: i64,
    /// What the client said that it will send.
    pub(super) bytes: u64,
    /// The object store's own name for the upload.
    pub(super) id: String,
}

#[derive(Deserialize)]
pub(in super::super) struct Signed {
    expires: i64,
    bytes: u64,
    parts: String,
    sig: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Complete {
    #[serde(default)]
    etags: Vec<String>,
}

impl Session {
    fn mac(&self, key: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
        let Self { pool, key: object, expires, bytes, id } = self;
        mac.update(format!("PARTS\n{pool}\n{object}\n{expires}\n{bytes}\n{id}").as_bytes());
        mac
    }

    /// The path and query of the session's URL.
    pub(super) fn target(&self, key: &[u8]) -> String {
        let Self { pool, key: object, expires, bytes, id } = self;
        let sig = hex::encode(self.mac(key).finalize().into_bytes());
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("expires", &expires.to_string())
            .append_pair("bytes", &bytes.to_string())
            .append_pair("parts", id)
            .append_pair("sig", &sig)
            .finish();
        format!("/upload/{pool}/{object}?{query}")
    }

    fn part_bytes(&self) -> u64 {
        objects::part_bytes(self.bytes).max(PART_BYTES_MIN)
    }

    fn count(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(self.part_bytes()).max(1)).unwrap_or(u32::MAX)
    }

    /// How many bytes a part must have.
    fn bytes_of(&self, number: u32) -> u64 {
        self.bytes.saturating_sub(u64::from(number - 1) * self.part_bytes()).min(self.part_bytes())
    }

    /// What has arrived as it must be.
    fn sound<'a>(&self, arrived: &'a [Part]) -> impl Iterator<Item = &'a Part> + use<'a> {
        let session = self.clone();
        let fits = move |part: &&Part| {
            (1..=session.count()).contains(&part.number) && part.bytes == session.bytes_of(part.number)
        };
        arrived.iter().filter(fits)
    }

    /// What the client needs to know: what is there, and where the rest goes.
    pub(super) async fn answer(&self, app: &App, arrived: &[Part]) -> Result<UploadParts, Refusal> {
        let sound: Vec<&Part> = self.sound(arrived).collect();
        let missing = (1..=self.count()).filter(|number| sound.iter().all(|part| part.number != *number));
        let mut urls = Vec::new();
        for number in missing.take(URLS_MAX) {
            let url =
                app.objects.sign_part(&self.pool, &self.key, &self.id, number, app.upload_expiry).await?;
            let url = url.ok_or(objects::Error::NotFound)?.into();
            urls.push(PartUrl { number, url, bytes: self.bytes_of(number) });
        }
        let part = |part: &Part| ArrivedPart { number: part.number, bytes: part.bytes };
        let arrived = sound.into_iter().map(part).collect();
        Ok(UploadParts { part_bytes: self.part_bytes(), count: self.count(), arrived, urls })
    }
}

/// The session behind a URL, if the URL is one that was given out and still holds.
fn permitted(app: &App, pool: &str, key: String, signed: Option<Signed>) -> Result<Session, Refusal> {
    let forged = || {
        Refusal::from(Problem::new(
            Code::BadSignature,
            "use the upload URL exactly as POST /upload/request gave it",
        ))
    };
    let Signed { expires, bytes, parts, sig } = signed.ok_or_else(forged)?;
    let session = Session { pool: pool.parse().map_err(|_| forged())?, key, expires, bytes, id: parts };
    let signature = hex::decode(sig).map_err(|_| forged())?;
    session.mac(app.store.signing_key()).verify_slice(&signature).map_err(|_| forged())?;
    if keys::split_input_path(&format!("{}/{}", session.pool, session.key)).is_none() {
        return Err(forged());
    }
    if app.clock.now().as_second() > session.expires {
        return Err(Problem::new(Code::UploadExpired, "ask for a new one with POST /upload/request").into());
    }
    Ok(session)
}

type MaybeSigned = Result<Query<Signed>, axum::extract::rejection::QueryRejection>;

/// What has arrived, and where the rest goes.
pub(in super::super) async fn status(
    State(app): Shared,
    Path((pool, key)): Path<(String, String)>,
    signed: MaybeSigned,
) -> Result<Json<UploadParts>, Refusal> {
    let session = permitted(&app, &pool, key, signed.ok().map(|Query(signed)| signed))?;
    match app.objects.head(&session.pool, &session.key).await {
        Err(objects::Error::NotFound) => {}
        Ok(_) => return Err(complete_already().into()),
        Err(error) => return Err(error.into()),
    }
    let arrived = app.objects.parts(&session.pool, &session.key, &session.id).await?;
    Ok(Json(session.answer(&app, &arrived).await?))
}

fn complete_already() -> Problem {
    Problem::new(Code::UploadExists, "the upload is complete already; submit a job with its input_path")
}

/// Makes the parts one object. Once done it is done: asking again gives the same answer.
pub(in super::super) async fn complete(
    State(app): Shared,
    Path((pool, key)): Path<(String, String)>,
    signed: MaybeSigned,
    body: Body,
) -> Result<Response, Refusal> {
    let session = permitted(&app, &pool, key, signed.ok().map(|Query(signed)| signed))?;
    let wants = r#"the body must be empty or {"etags": ["…", …]}"#;
    let bad = |what: &dyn std::fmt::Display| Problem::new(Code::BadJson, format!("{wants}: {what}"));
    let body = axum::body::to_bytes(body, COMPLETE_BYTES_MAX).await.map_err(|error| bad(&error))?;
    let told = match body.is_empty() {
        true => Complete { etags: Vec::new() },
        false => serde_json::from_slice(&body).map_err(|error| bad(&error))?,
    };
    let meta = match app.objects.head(&session.pool, &session.key).await {
        Ok(meta) => meta,
        Err(objects::Error::NotFound) => session.complete(&app, told.etags).await?,
        Err(error) => return Err(error.into()),
    };
    let input_path = format!("{}/{}", session.pool, session.key);
    info!(input_path, bytes = meta.bytes, "upload complete");
    let stored = serde_json::json!({ "input_path": input_path, "bytes": meta.bytes });
    Ok((StatusCode::OK, Json(stored)).into_response())
}

impl Session {
    async fn complete(&self, app: &App, told: Vec<String>) -> Result<objects::Meta, Refusal> {
        let arrived = app.objects.parts(&self.pool, &self.key, &self.id).await?;
        let sound: Vec<&Part> = self.sound(&arrived).collect();
        if sound.len() != self.count() as usize {
            let detail = format!(
                "{} of {} parts are there with the size that they must have; GET this URL says which are not",
                sound.len(),
                self.count()
            );
            return Err(Problem::new(Code::UploadIncomplete, detail).into());
        }
        // The store's own word, where its list has one; else the client's.
        let listed: Vec<String> = sound.iter().map(|part| part.etag.clone()).collect();
        let etags = if listed.iter().all(|etag| !etag.is_empty()) { listed } else { told };
        if etags.len() != self.count() as usize {
            let detail = format!("this store needs the ETag of each of the {} parts, in order", self.count());
            return Err(Problem::new(Code::BadField, detail).field("etags").into());
        }
        match app.objects.complete_parts(&self.pool, &self.key, &self.id, &etags).await {
            Ok(meta) => {
                let known = app.upkeep.upload_complete(&self.pool, &self.key, app.uploads_kept).await;
                if let Err(error) = known {
                    warn!(%error, "the sweeper will find out by itself that an upload is complete");
                }
                Ok(meta)
            }
            Err(objects::Error::Exists) => Ok(app.objects.head(&self.pool, &self.key).await?),
            Err(objects::Error::NotFound) => {
                let detail = "the parts are not those that arrived last, or the upload was given up";
                Err(Problem::new(Code::UploadIncomplete, detail).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(bytes: u64) -> Session {
        let (pool, key) = ("aws".parse().unwrap(), "uploads/1/a".to_owned());
        Session { pool, key, expires: 10, bytes, id: "x/y=".to_owned() }
    }

    #[test]
    fn parts_add_up() {
        for bytes in [1, PART_BYTES_MIN, PART_BYTES_MIN + 1, 20_000_000_000, 5 << 40] {
            let session = session(bytes);
            let all: u64 = (1..=session.count()).map(|number| session.bytes_of(number)).sum();
            assert_eq!(all, bytes);
            assert!(session.count() <= 10_000 && session.bytes_of(session.count()) > 0, "{bytes}");
        }
    }

    #[test]
    fn a_signature_covers_every_part_of_the_url() {
        let (right, sig) = (session(100), session(100).target(b"k"));
        let others = [
            Session { pool: "gcp".parse().unwrap(), ..right.clone() },
            Session { key: "uploads/1/b".to_owned(), ..right.clone() },
            Session { expires: 11, ..right.clone() },
            Session { bytes: 101, ..right.clone() },
            Session { id: "x".to_owned(), ..right.clone() },
        ];
        let sig = hex::decode(sig.rsplit_once("sig=").unwrap().1).unwrap();
        assert!(right.mac(b"k").verify_slice(&sig).is_ok() && right.mac(b"K").verify_slice(&sig).is_err());
        assert!(others.iter().all(|other| other.mac(b"k").verify_slice(&sig).is_err()));
        assert!(right.target(b"k").contains("parts=x%2Fy%3D"));
    }
}
