//! Where bytes lie: inputs that clients uploaded, outputs that attempts wrote.
//!
//! Every pool has its own bucket: a folder of a directory, or a bucket of a cloud ([`place`]). Only this folder names a
//! cloud, and only [`connect`] says how one is reached. A key is relative to its pool's bucket; an object becomes
//! visible whole or not at all, whatever breaks.

mod connect;
mod credentials;
mod federation;
mod multipart;
mod place;
mod presign;
mod read;
mod replicate;
mod write;

#[cfg(test)]
pub(crate) mod conformance;

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use millrace_wire::PoolId;
use millrace_wire::job::FailureCode;
use object_store::ObjectStoreExt as _;

pub use multipart::Part;
pub use place::Places;
pub use presign::SignedPut;
pub use read::Span;
pub use replicate::Copied;
pub use write::part_bytes;

use crate::failure::Failure;
use connect::Bucket;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the object store could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// It exists already, and was to be written once.
    #[error("the object exists already")]
    Exists,
    /// The reader holds this version already.
    #[error("not modified")]
    NotModified,
    /// The range is outside the object.
    #[error("the range is outside the object")]
    BadRange,
    /// More bytes than allowed.
    #[error("more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The bytes to be written stopped coming.
    #[error("the sender broke off: {0}")]
    Interrupted(String),
    /// This worker knows no bucket of that pool, or the bucket it knows is not there.
    #[error("there is no bucket of pool {0}")]
    NoBucket(String),
    /// The store refuses who asks: credentials that are wrong, expired or may not, or a clock that is off.
    #[error("{verb} object, refused: {source}")]
    Denied {
        /// What was tried.
        verb: &'static str,
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// The store does not work: full, away, or refusing.
    #[error("{verb} object: {source}")]
    Unavailable {
        /// What was tried.
        verb: &'static str,
        /// What it said.
        #[source]
        source: BoxError,
    },
    /// A local file could not be read or written.
    #[error("{verb}: {source}")]
    Local {
        /// What was tried.
        verb: &'static str,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// What it is to an attempt that needs the store; `what` says what the store does not do.
    pub fn failure(self, what: &str) -> Failure {
        let code = match self {
            Self::Denied { .. } => FailureCode::ObjectsDenied,
            _ => FailureCode::ObjectsUnavailable,
        };
        let detail = match &self {
            Self::Denied { source, .. } if source.to_string().contains("RequestTimeTooSkewed") => {
                "the object store refuses the worker because its clock is off".to_owned()
            }
            Self::Denied { .. } => "the object store refuses the worker's credentials".to_owned(),
            _ => format!("the object store {what}"),
        };
        Failure::new(code, detail).log(self)
    }
}

fn unavailable(verb: &'static str) -> impl FnOnce(object_store::Error) -> Error {
    move |source| match source {
        object_store::Error::NotFound { .. } => Error::NotFound,
        object_store::Error::AlreadyExists { .. } => Error::Exists,
        object_store::Error::NotModified { .. } => Error::NotModified,
        source if cannot_exist(&source) => Error::NotFound,
        source if denied(&source) => Error::Denied { verb, source: Box::new(source) },
        source => Error::Unavailable { verb, source: Box::new(source) },
    }
}

/// Whether the store refuses who asks. Amazon says 400 to a token that has expired, and only its body says why.
fn denied(error: &object_store::Error) -> bool {
    use object_store::Error::{PermissionDenied, Unauthenticated};
    matches!(error, PermissionDenied { .. } | Unauthenticated { .. }) || tells_of_expiry(&error.to_string())
}

/// Whether an answer's body says that credentials are past their time.
fn tells_of_expiry(answer: &str) -> bool {
    ["ExpiredToken", "TokenRefreshRequired", "InvalidToken"]
        .iter()
        .any(|code| answer.contains(&format!("<Code>{code}</Code>")))
}

/// Whether a key names what no object of a directory can be: longer than a file's name, or below another object.
/// Clients choose keys, and a store that only refuses such a one is not away.
fn cannot_exist(error: &object_store::Error) -> bool {
    use std::io::ErrorKind;
    std::iter::successors(std::error::Error::source(error), |cause| cause.source())
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| matches!(cause.kind(), ErrorKind::InvalidFilename | ErrorKind::NotADirectory))
}

fn local(verb: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Local { verb, source }
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Bytes.
    pub bytes: u64,
    /// Strong, with quotes.
    pub etag: String,
}

/// Part of an object or all of it.
pub struct Content {
    /// Of the whole object.
    pub meta: Meta,
    /// The bytes that follow.
    pub range: std::ops::Range<u64>,
    /// Their stream.
    pub stream: BoxStream<'static, Result<Bytes, object_store::Error>>,
}

/// The project's object store: every pool's bucket that this worker knows.
#[derive(Debug, Clone)]
pub struct Objects {
    buckets: Arc<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    rest: Option<Bucket>,
    own: BTreeMap<PoolId, Bucket>,
}

impl Objects {
    /// Opens a directory for all pools, and creates it where missing. Writes are synced before they count.
    ///
    /// # Errors
    /// When the directory cannot be created or used.
    pub fn open(root: &FilePath) -> Result<Self, Error> {
        Self::connect(&Places::directory(root))
    }

    /// Opens every place. Directories are created where missing; a cloud is not asked anything yet.
    ///
    /// # Errors
    /// A directory cannot be created or used, or what the environment says of a cloud cannot be.
    pub fn connect(places: &Places) -> Result<Self, Error> {
        let rest = places.rest.as_ref().map(Bucket::open).transpose()?;
        let own = places.own.iter().map(|(pool, place)| Ok((pool.clone(), Bucket::open(place)?)));
        Ok(Self { buckets: Arc::new(Buckets { rest, own: own.collect::<Result<_, Error>>()? }) })
    }

    fn bucket(&self, pool: &PoolId) -> Result<Bucket, Error> {
        let own = self.buckets.own.get(pool).cloned();
        own.or_else(|| self.buckets.rest.as_ref().map(|rest| rest.of_pool(pool)))
            .ok_or_else(|| Error::NoBucket(pool.to_string()))
    }

    /// Whether this worker knows where a pool's bytes lie.
    pub fn knows(&self, pool: &PoolId) -> bool {
        self.bucket(pool).is_ok()
    }

    /// Asks the store whether a pool's bucket is there and may be listed.
    ///
    /// # Errors
    /// [`Error::NoBucket`], [`Error::Denied`], or the store does not work.
    pub async fn check(&self, pool: &PoolId) -> Result<(), Error> {
        let bucket = self.bucket(pool)?;
        let prefix = bucket.path("uploads");
        match bucket.store.list(Some(&prefix)).next().await {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(error)) if error.to_string().contains("<Code>NoSuchBucket</Code>") => {
                Err(Error::NoBucket(pool.to_string()))
            }
            Some(Err(error)) => Err(unavailable("list")(error)),
        }
    }

    /// Size and version.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store does not work.
    pub async fn head(&self, bucket: &PoolId, key: &str) -> Result<Meta, Error> {
        let bucket = self.bucket(bucket)?;
        let meta = bucket.store.head(&bucket.path(key)).await.map_err(unavailable("look up"))?;
        Ok(meta_of(&meta))
    }

    /// Deletes one object; one that is already gone is no error.
    ///
    /// # Errors
    /// The store does not work.
    pub async fn delete(&self, bucket: &PoolId, key: &str) -> Result<(), Error> {
        let bucket = self.bucket(bucket)?;
        match bucket.store.delete(&bucket.path(key)).await.map_err(unavailable("delete")) {
            Err(Error::NotFound) => Ok(()),
            done => done,
        }
    }

    /// Deletes everything below a prefix, and says how many objects that were; what is already gone is no error.
    ///
    /// # Errors
    /// The store does not work; some may be gone then.
    pub async fn delete_below(&self, bucket: &PoolId, prefix: &str) -> Result<usize, Error> {
        let bucket = self.bucket(bucket)?;
        let paths = bucket.store.list(Some(&bucket.path(prefix))).map_ok(|meta| meta.location).boxed();
        let (mut deleted, mut count) = (bucket.store.delete_stream(paths), 0);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) => count += 1,
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(unavailable("delete")(error)),
            }
        }
        Ok(count)
    }
}

/// What a file is, by its name, for players and stores alike.
pub fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "m3u8" => "application/vnd.apple.mpegurl",
        "mpd" => "application/dash+xml",
        // Sound included: the name tells nothing of what is in it, and players go by the playlist.
        "m4s" => "video/iso.segment",
        "mp4" => "video/mp4",
        "m4a" => "audio/mp4",
        "jpg" => "image/jpeg",
        "vtt" => "text/vtt; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn meta_of(meta: &object_store::ObjectMeta) -> Meta {
    let etag = meta
        .e_tag
        .clone()
        .unwrap_or_else(|| format!("{:x}-{:x}", meta.size, meta.last_modified.timestamp_micros()));
    let etag = if etag.starts_with('"') { etag } else { format!("\"{etag}\"") };
    Meta { bytes: meta.size, etag }
}
