//! Reading: parts of an object for players, whole ones into local files.

use std::ops::Range;
use std::path::Path as FilePath;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use millrace_wire::PoolId;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt as _};
use tokio::io::AsyncWriteExt as _;
use tracing::warn;

use super::connect::Bucket;
use super::{Content, Error, Meta, Objects, local, meta_of, unavailable};

/// What is read in one request of a large object.
pub(super) const RANGE_BYTES: u64 = 16 << 20;
/// Such requests in flight: bounds memory at about this times a range.
const RANGES_IN_FLIGHT: usize = 4;
/// How often one range begins anew, beyond the tries that each request makes by itself.
const RANGE_RETRIES: u32 = 2;
/// Before it begins anew; doubles.
const RANGE_RETRY_AFTER: Duration = Duration::from_millis(250);

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

impl Objects {
    /// Copies an object of at most `limit_bytes` into a local file, in ranges of one version of it. `report` is told how
    /// many bytes of how many are there.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TooLarge`], the file cannot be written, or the store does not work.
    pub async fn get_file(
        &self,
        bucket: &PoolId,
        key: &str,
        into: &FilePath,
        limit_bytes: u64,
        report: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<u64, Error> {
        let bucket = self.bucket(bucket)?;
        let path = bucket.path(key);
        let meta = bucket.store.head(&path).await.map_err(unavailable("read"))?;
        if meta.size > limit_bytes {
            return Err(Error::TooLarge { limit_bytes });
        }
        let mut file = tokio::fs::File::create(into).await.map_err(local("create the scratch file"))?;
        let starts = (0..meta.size).step_by(RANGE_BYTES as usize);
        let ranges = starts.map(|start| start..(start + RANGE_BYTES).min(meta.size));
        let mut arriving =
            stream::iter(ranges).map(|range| bucket.range(&path, &meta, range)).buffered(RANGES_IN_FLIGHT);
        let mut bytes = 0;
        report(bytes, meta.size);
        while let Some(chunk) = arriving.next().await {
            let chunk = chunk?;
            file.write_all(&chunk).await.map_err(local("write the scratch file"))?;
            bytes += chunk.len() as u64;
            report(bytes, meta.size);
        }
        file.flush().await.map_err(local("write the scratch file"))?;
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
        let bucket = self.bucket(bucket)?;
        let options = GetOptions { range, ..GetOptions::default() };
        let found = bucket.store.get_opts(&bucket.path(key), options).await.map_err(unavailable("read"))?;
        Ok(Content { meta: meta_of(&found.meta), range: found.range.clone(), stream: found.into_stream() })
    }
}

impl Bucket {
    /// One range of one version.
    pub(super) async fn range(
        &self,
        path: &Path,
        of: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<Bytes, Error> {
        let (mut tries, mut wait) = (0, RANGE_RETRY_AFTER);
        loop {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                if_match: of.e_tag.clone(),
                ..GetOptions::default()
            };
            let read = async { self.store.get_opts(path, options).await?.bytes().await };
            match read.await.map_err(unavailable("read")) {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
                Ok(bytes) if tries == RANGE_RETRIES => {
                    let short = format!("{} bytes came of {range:?}", bytes.len());
                    return Err(Error::Unavailable { verb: "read", source: short.into() });
                }
                Err(Error::Unavailable { source, .. }) if tries < RANGE_RETRIES && self.cloud.is_some() => {
                    warn!(error = %source, "reading a range again");
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(wait).await;
            (tries, wait) = (tries + 1, wait * 2);
        }
    }
}

/// Whether an `If-None-Match` names this version. A cache on the way may have made the tag weak; for this header it is
/// the same one (RFC 9110, 13.1.2).
fn names(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
