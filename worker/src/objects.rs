//! Where bytes lie: inputs that clients uploaded, outputs that attempts wrote.
//!
//! Every pool has its own bucket. Here a bucket is a folder below one root; by URL (S3, GCS) comes with the issue on
//! object stores, and nothing outside this file will notice. Only this file names a cloud. A key is relative to its
//! bucket; an object becomes visible whole or not at all.

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use millrace_wire::PoolId;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, WriteMultipart};

/// Parts in flight while an object is written: bounds memory at about this times 5 MiB.
const PARTS_IN_FLIGHT: usize = 4;

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
    /// The store does not work: full, away, or refusing.
    #[error("{verb} object: {source}")]
    Unavailable {
        /// What was tried.
        verb: &'static str,
        /// What it said.
        #[source]
        source: object_store::Error,
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

fn unavailable(verb: &'static str) -> impl FnOnce(object_store::Error) -> Error {
    move |source| match source {
        object_store::Error::NotFound { .. } => Error::NotFound,
        object_store::Error::AlreadyExists { .. } => Error::Exists,
        object_store::Error::NotModified { .. } => Error::NotModified,
        source if cannot_exist(&source) => Error::NotFound,
        source => Error::Unavailable { verb, source },
    }
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

/// What to read of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Everything.
    All,
    /// From the first byte to the last, both included.
    Bounded(u64, u64),
    /// From here to the end.
    From(u64),
    /// The last so many bytes.
    Last(u64),
}

/// The project's object store.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
}

impl Objects {
    /// Opens a directory, and creates it where missing. Writes are synced before they count.
    ///
    /// # Errors
    /// When the directory cannot be created or used.
    pub fn open(root: &FilePath) -> Result<Self, Error> {
        std::fs::create_dir_all(root).map_err(local("create the objects directory"))?;
        let store = LocalFileSystem::new_with_prefix(root).map_err(unavailable("open"))?;
        Ok(Self { store: Arc::new(store.with_fsync(true).with_automatic_cleanup(true)) })
    }

    fn path(bucket: &PoolId, key: &str) -> Path {
        Path::from_iter(std::iter::once(bucket.as_str()).chain(key.split('/')))
    }

    /// Size and version.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store does not work.
    pub async fn head(&self, bucket: &PoolId, key: &str) -> Result<Meta, Error> {
        let meta = self.store.head(&Self::path(bucket, key)).await.map_err(unavailable("look up"))?;
        Ok(meta_of(&meta))
    }

    /// Writes a new object from a stream, of at most `limit_bytes`. It appears whole at the end, and only if nothing
    /// of that key is there.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::TooLarge`], [`Error::Interrupted`], or the store does not work; nothing is visible then.
    pub async fn create<S, E>(
        &self,
        bucket: &PoolId,
        key: &str,
        bytes: S,
        limit_bytes: u64,
    ) -> Result<Meta, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        match self.head(bucket, key).await {
            Err(Error::NotFound) => {}
            Ok(_) => return Err(Error::Exists),
            Err(error) => return Err(error),
        }
        // Two senders of one URL write two staged objects; the rename lets one of them win.
        let staged = Self::path(bucket, &format!("{key}.{}.part", uuid::Uuid::now_v7().simple()));
        self.write(&staged, bytes, limit_bytes).await?;
        let renamed = self.store.rename_if_not_exists(&staged, &Self::path(bucket, key)).await;
        if let Err(error) = renamed {
            let _ = self.store.delete(&staged).await;
            return Err(unavailable("write")(error));
        }
        self.head(bucket, key).await
    }

    /// Writes or replaces an object from a local file.
    ///
    /// # Errors
    /// The file cannot be read, or the store does not work.
    pub async fn put_file(&self, bucket: &PoolId, key: &str, file: &FilePath) -> Result<(), Error> {
        let file = tokio::fs::File::open(file).await.map_err(local("open the file to store"))?;
        let bytes = tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024);
        self.write(&Self::path(bucket, key), bytes, u64::MAX).await
    }

    async fn write<S, E>(&self, path: &Path, mut bytes: S, limit_bytes: u64) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let upload = self.store.put_multipart(path).await.map_err(unavailable("write"))?;
        let mut writer = WriteMultipart::new(upload);
        let mut written = 0_u64;
        loop {
            let failed = match bytes.next().await {
                None => break,
                Some(Err(error)) => Error::Interrupted(error.to_string()),
                Some(Ok(chunk)) => {
                    written += chunk.len() as u64;
                    if written > limit_bytes {
                        Error::TooLarge { limit_bytes }
                    } else {
                        match writer.wait_for_capacity(PARTS_IN_FLIGHT).await {
                            Ok(()) => {
                                writer.put(chunk);
                                continue;
                            }
                            Err(error) => unavailable("write")(error),
                        }
                    }
                }
            };
            // The failure to report is the first one; an abort that fails leaves a staged part behind.
            let _ = writer.abort().await;
            return Err(failed);
        }
        writer.finish().await.map_err(unavailable("write"))?;
        Ok(())
    }

    /// Copies an object into a local file.
    ///
    /// # Errors
    /// [`Error::NotFound`], the file cannot be written, or the store does not work.
    pub async fn get_file(&self, bucket: &PoolId, key: &str, into: &FilePath) -> Result<u64, Error> {
        let found = self.store.get(&Self::path(bucket, key)).await.map_err(unavailable("read"))?;
        let mut file = tokio::fs::File::create(into).await.map_err(local("create the scratch file"))?;
        let mut stream = found.into_stream();
        let mut bytes = 0;
        while let Some(chunk) = stream.try_next().await.map_err(unavailable("read"))? {
            bytes += chunk.len() as u64;
            tokio::io::AsyncWriteExt::write_all(&mut file, &chunk)
                .await
                .map_err(local("write the scratch file"))?;
        }
        tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(local("write the scratch file"))?;
        Ok(bytes)
    }

    /// Opens an object for reading. `meta` is what [`Objects::head`] said of it, which the caller needs to read a range
    /// anyway; `if_none_match` is the reader's ETag list as it came.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotModified`], [`Error::BadRange`], or the store does not work.
    pub async fn read(
        &self,
        bucket: &PoolId,
        key: &str,
        meta: &Meta,
        span: Span,
        if_none_match: Option<&str>,
    ) -> Result<Content, Error> {
        if if_none_match.is_some_and(|tags| names(tags, &meta.etag)) {
            return Err(Error::NotModified);
        }
        let range = match span {
            Span::All => None,
            Span::Bounded(first, last) if first < meta.bytes && first <= last => {
                Some(GetRange::Bounded(first..last.saturating_add(1).min(meta.bytes)))
            }
            Span::From(first) if first < meta.bytes => Some(GetRange::Offset(first)),
            Span::Last(count) if count > 0 && meta.bytes > 0 => Some(GetRange::Suffix(count.min(meta.bytes))),
            _ => return Err(Error::BadRange),
        };
        let options = GetOptions { range, ..GetOptions::default() };
        let found =
            self.store.get_opts(&Self::path(bucket, key), options).await.map_err(unavailable("read"))?;
        Ok(Content { meta: meta_of(&found.meta), range: found.range.clone(), stream: found.into_stream() })
    }

    /// Deletes everything below a prefix; what is already gone is no error.
    ///
    /// # Errors
    /// The store does not work.
    pub async fn delete_below(&self, bucket: &PoolId, prefix: &str) -> Result<(), Error> {
        let paths = self.store.list(Some(&Self::path(bucket, prefix))).map_ok(|meta| meta.location).boxed();
        let mut deleted = self.store.delete_stream(paths);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(unavailable("delete")(error)),
            }
        }
        Ok(())
    }
}

/// Whether an `If-None-Match` names this version. A cache on the way may have made the tag weak; for this header it is
/// the same one (RFC 9110, 13.1.2).
fn names(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn meta_of(meta: &object_store::ObjectMeta) -> Meta {
    let etag = meta
        .e_tag
        .clone()
        .unwrap_or_else(|| format!("{:x}-{:x}", meta.size, meta.last_modified.timestamp_micros()));
    let etag = if etag.starts_with('"') { etag } else { format!("\"{etag}\"") };
    Meta { bytes: meta.size, etag }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn parts(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Unpin {
        stream::iter(parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect::<Vec<_>>())
    }

    async fn text(objects: &Objects, span: Span) -> Result<String, Error> {
        let (bucket, key) = ("aws".parse().unwrap(), "uploads/k/v.mp4");
        let meta = objects.head(&bucket, key).await?;
        let content = objects.read(&bucket, key, &meta, span, None).await?;
        let bytes: Vec<Bytes> = content.stream.try_collect().await.unwrap();
        Ok(String::from_utf8(bytes.concat()).unwrap())
    }

    #[tokio::test]
    async fn an_object_appears_whole_once_and_reads_in_ranges() {
        let root = tempfile::tempdir().unwrap();
        let (objects, bucket) = (Objects::open(root.path()).unwrap(), "aws".parse().unwrap());
        let key = "uploads/k/v.mp4";
        assert_eq!(objects.create(&bucket, key, parts(&["hello ", "world"]), 100).await.unwrap().bytes, 11);
        assert!(matches!(objects.create(&bucket, key, parts(&["x"]), 100).await, Err(Error::Exists)));
        assert_eq!(text(&objects, Span::All).await.unwrap(), "hello world");
        assert_eq!(text(&objects, Span::Bounded(1, 3)).await.unwrap(), "ell");
        assert_eq!(text(&objects, Span::Bounded(6, 999)).await.unwrap(), "world");
        assert_eq!(text(&objects, Span::From(6)).await.unwrap(), "world");
        assert_eq!(text(&objects, Span::Last(5)).await.unwrap(), "world");
        for outside in [Span::From(11), Span::Bounded(11, 12), Span::Bounded(3, 1), Span::Last(0)] {
            assert!(matches!(text(&objects, outside).await, Err(Error::BadRange)), "{outside:?}");
        }
        let meta = objects.head(&bucket, key).await.unwrap();
        for known in [meta.etag.clone(), format!("\"x\", W/{}", meta.etag), "*".to_owned()] {
            let again = objects.read(&bucket, key, &meta, Span::All, Some(&known)).await;
            assert!(matches!(again, Err(Error::NotModified)), "{known}");
        }
        assert!(objects.read(&bucket, key, &meta, Span::All, Some("W/\"x\"")).await.is_ok());
        objects.delete_below(&bucket, "uploads/k").await.unwrap();
        assert!(matches!(text(&objects, Span::All).await, Err(Error::NotFound)));
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_is_not_there_and_no_reason_to_doubt_the_store() {
        let root = tempfile::tempdir().unwrap();
        let (objects, bucket) = (Objects::open(root.path()).unwrap(), "aws".parse().unwrap());
        objects.create(&bucket, "uploads/k/v.mp4", parts(&["x"]), 100).await.unwrap();
        let long = format!("uploads/k/{}", "a".repeat(300));
        for key in [long.as_str(), "uploads/k/v.mp4/below", "uploads/k"] {
            let head = objects.head(&bucket, key).await;
            assert!(matches!(head, Err(Error::NotFound)), "{key}: {head:?}");
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_leaves_nothing_to_see() {
        let root = tempfile::tempdir().unwrap();
        let (objects, bucket) = (Objects::open(root.path()).unwrap(), "aws".parse().unwrap());
        let large = objects.create(&bucket, "uploads/a", parts(&["12345", "67890"]), 9).await;
        assert!(matches!(large, Err(Error::TooLarge { limit_bytes: 9 })));
        let broken = stream::iter(vec![Ok(Bytes::from_static(b"12")), Err(std::io::Error::other("gone"))]);
        assert!(matches!(objects.create(&bucket, "uploads/a", broken, 9).await, Err(Error::Interrupted(_))));
        assert!(matches!(objects.head(&bucket, "uploads/a").await, Err(Error::NotFound)));
        let left: Vec<_> = objects.store.list(None).try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}
