//! From one pool's bucket into another's: by the store itself where one server holds both and takes the same credentials for
//! them, else through this worker, a few ranges at a time.
//!
//! A copy is of one version of its source, appears whole or not at all, and has the source's size; what goes through here is
//! hashed on its way, and the place's own checksum goes with every part of it.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use http::header::{HeaderName, HeaderValue};
use millrace_wire::PoolId;
use object_store::ObjectStoreExt as _;
use object_store::signer::SignedUrlOptions;
use sha2::{Digest as _, Sha256};

use super::connect::{Bucket, Cloud, Kind};
use super::read::RANGE_BYTES;
use super::write::COPY_BYTES_MAX;
use super::{Error, Objects, unavailable};

/// Ranges of one object in flight: less than where a slot waits for them, for a copy is in nobody's way.
const RANGES_IN_FLIGHT: usize = 2;
/// How long a request to copy may begin after it was signed.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// An object that was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal, where it went through this worker.
    pub sha256: Option<String>,
}

impl Objects {
    /// The pools whose buckets this worker knows by name; `None` where one place takes those of all the others.
    pub fn pools(&self) -> Option<Vec<PoolId>> {
        self.buckets.rest.is_none().then(|| self.buckets.own.keys().cloned().collect())
    }

    /// Copies an object of at most `limit_bytes` from one bucket into another and holds the copy to its source's size. With
    /// `hash` it goes through this worker in any case.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TooLarge`], or a store does not work; nothing is visible then.
    pub async fn replicate(
        &self,
        (from_pool, from_key): (&PoolId, &str),
        (to_pool, to_key): (&PoolId, &str),
        limit_bytes: u64,
        hash: bool,
    ) -> Result<Copied, Error> {
        let (from, to) = (self.bucket(from_pool)?, self.bucket(to_pool)?);
        let (source, target) = (from.path(from_key), to.path(to_key));
        let meta = from.store.head(&source).await.map_err(unavailable("look up"))?;
        if meta.size > limit_bytes {
            return Err(Error::TooLarge { limit_bytes });
        }
        let by_itself = !hash && meta.size <= COPY_BYTES_MAX;
        let sha256 = if by_itself && from.shares_store(&to) {
            from.store.copy(&source, &target).await.map_err(unavailable("copy"))?;
            None
        } else if let Some((one, other)) = from.one_server(&to).filter(|_| by_itself)
            && let Some(named) = copy_source(one, source.as_ref())
        {
            copy_on_server(other, named, &target).await?;
            None
        } else {
            let starts = (0..meta.size).step_by(RANGE_BYTES as usize);
            let ranges = starts.map(|start| start..(start + RANGE_BYTES).min(meta.size));
            let (mut hasher, mut broke) = (Sha256::new(), None);
            let arriving = stream::iter(ranges)
                .map(|range| from.range(&source, &meta, range))
                .buffered(RANGES_IN_FLIGHT)
                .inspect_ok(|chunk| hasher.update(chunk))
                .map_err(|error| {
                    broke = Some(error);
                    "it could not be read"
                });
            let written = to.write(&target, Box::pin(arriving), meta.size, limit_bytes).await;
            // Of the two the reader's own words say more.
            written.map_err(|error| broke.unwrap_or(error))?;
            Some(hex::encode(hasher.finalize()))
        };
        let there = self.head(to_pool, to_key).await?;
        if there.bytes != meta.size {
            let what = format!("{} bytes are there of {}", there.bytes, meta.size);
            return Err(Error::Unavailable { verb: "copy", source: what.into() });
        }
        Ok(Copied { bytes: meta.size, sha256 })
    }

    /// Every object below a prefix, by its key, with its size.
    ///
    /// # Errors
    /// The store does not work.
    pub async fn list_below(&self, pool: &PoolId, prefix: &str) -> Result<Vec<(String, u64)>, Error> {
        let bucket = self.bucket(pool)?;
        let below = bucket.path(prefix);
        let found = bucket.store.list(Some(&below)).try_collect::<Vec<_>>().await;
        let found = found.map_err(unavailable("list"))?;
        let key = |location: &object_store::path::Path| {
            let rest = location.as_ref().strip_prefix(below.as_ref()).unwrap_or_default();
            format!("{prefix}{rest}")
        };
        Ok(found.iter().map(|meta| (key(&meta.location), meta.size)).collect())
    }
}

impl Bucket {
    /// Both clouds' sides, where they are one server that takes the same credentials for both.
    fn one_server<'a>(&'a self, other: &'a Self) -> Option<(&'a Cloud, &'a Cloud)> {
        let (one, other) = (self.cloud.as_deref()?, other.cloud.as_deref()?);
        (one.kind == other.kind && one.account == other.account).then_some((one, other))
    }
}

/// What names an object to the server that shall copy it. A name with characters that would have to be escaped is left to
/// the longer way: keys have none, and prefixes seldom.
fn copy_source(of: &Cloud, path: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    path.chars().all(plain).then(|| format!("{}/{path}", of.bucket))
}

/// Lets the server copy, which the library does within one bucket alone.
async fn copy_on_server(to: &Cloud, source: String, path: &object_store::path::Path) -> Result<(), Error> {
    let name = HeaderName::from_static(match to.kind {
        Kind::S3 => "x-amz-copy-source",
        Kind::Gcs => "x-goog-copy-source",
    });
    let value = HeaderValue::try_from(source).expect("plain characters are legal in a header");
    let options = SignedUrlOptions::default().with_signed_header(name.clone(), value.clone());
    let url = to.own.signed_url_opts(Method::PUT, path, SIGNED_FOR, &options).await;
    let url = url.map_err(unavailable("sign the copy of an"))?;
    let failed =
        |error: reqwest::Error| Error::Unavailable { verb: "copy", source: Box::new(error.without_url()) };
    let answer = to.http.put(url).header(name, value).header("content-length", 0).send().await;
    let answer = answer.map_err(failed)?;
    let status = answer.status();
    // A store may find only while it copies that it cannot, and has said 200 by then.
    let said = answer.text().await.map_err(failed)?;
    match status.as_u16() {
        200 if !said.contains("<Error>") => Ok(()),
        404 => Err(Error::NotFound),
        401 | 403 => Err(Error::Denied { verb: "copy", source: said.into() }),
        _ => Err(Error::Unavailable { verb: "copy", source: format!("{status}: {said}").into() }),
    }
}

#[cfg(test)]
mod tests;
