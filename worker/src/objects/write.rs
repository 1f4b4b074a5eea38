//! Writing: whole or not at all, and once where it must be once.

use std::path::Path as FilePath;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use millrace_wire::PoolId;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyMode, CopyOptions, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, WriteMultipart,
};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tracing::warn;

use super::connect::{Bucket, Cloud, Kind};
use super::{Error, Meta, Objects, local, unavailable};

/// What is written in one request; larger objects are written in parts of at least this.
const PART_BYTES: u64 = 8 << 20;
/// A store takes ten thousand parts; a few stay free.
const PARTS_MAX: u64 = 9_000;
/// Parts in flight while an object is written: bounds memory at about this times a part.
const PARTS_IN_FLIGHT: usize = 4;
/// How often the writing of a file begins anew after a failure that may pass, beyond the tries of each request: an
/// encode of an hour should not fail for a bit that flipped on the way.
const FILE_RETRIES: u32 = 2;
/// Before it begins anew; doubles.
const FILE_RETRY_AFTER: Duration = Duration::from_millis(250);
/// The largest object that a store copies by itself in one request.
pub(super) const COPY_BYTES_MAX: u64 = 5 << 30;

/// How large each part of an object is: as many equal ones as a store takes.
pub fn part_bytes(object_bytes: u64) -> u64 {
    object_bytes.div_ceil(PARTS_MAX).next_multiple_of(1 << 20).max(PART_BYTES)
}

/// A write that finds no bucket is no object that is missing.
fn unwritable(verb: &'static str) -> impl FnOnce(object_store::Error) -> Error {
    move |source| match source {
        source @ object_store::Error::NotFound { .. } => {
            Error::Unavailable { verb, source: Box::new(source) }
        }
        source => unavailable(verb)(source),
    }
}

impl Objects {
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
        // Before its bytes are taken: they may be many.
        match self.head(bucket, key).await {
            Err(Error::NotFound) => {}
            Ok(_) => return Err(Error::Exists),
            Err(error) => return Err(error),
        }
        let place = self.bucket(bucket)?;
        match place.cloud.as_deref() {
            Some(cloud) if cloud.kind == Kind::S3 && cloud.conditional => {
                place.create_in_s3(cloud, key, bytes, limit_bytes).await?;
            }
            _ => place.create_by_rename(key, bytes, limit_bytes).await?,
        }
        self.head(bucket, key).await
    }

    /// Writes or replaces an object from a local file.
    ///
    /// # Errors
    /// The file cannot be read, or the store does not work; nothing is visible then.
    pub async fn put_file(&self, bucket: &PoolId, key: &str, file: &FilePath) -> Result<(), Error> {
        let place = self.bucket(bucket)?;
        let (mut tries, mut wait) = (0, FILE_RETRY_AFTER);
        loop {
            match place.put_file(key, file).await {
                Err(error @ Error::Unavailable { .. }) if place.cloud.is_some() && tries < FILE_RETRIES => {
                    warn!(%error, key, "writing an object again");
                    tokio::time::sleep(wait).await;
                    (tries, wait) = (tries + 1, wait * 2);
                }
                done => return done,
            }
        }
    }

    /// Copies an object, in the store where both lie in one, else through this worker.
    ///
    /// # Errors
    /// [`Error::NotFound`], or a store does not work; nothing is visible then.
    pub async fn copy(
        &self,
        (from_bucket, from_key): (&PoolId, &str),
        (to_bucket, to_key): (&PoolId, &str),
    ) -> Result<(), Error> {
        let (from, to) = (self.bucket(from_bucket)?, self.bucket(to_bucket)?);
        let meta = self.head(from_bucket, from_key).await?;
        if from.shares_store(&to) && (from.cloud.is_none() || meta.bytes <= COPY_BYTES_MAX) {
            let copied = from.store.copy(&from.path(from_key), &to.path(to_key)).await;
            return copied.map_err(unavailable("copy"));
        }
        let source = from.store.get(&from.path(from_key)).await.map_err(unavailable("read"))?;
        to.write(&to.path(to_key), source.into_stream(), meta.bytes, u64::MAX).await
    }
}

/// What a store is told of an object, so that it can be served from there as it is served here.
fn attributes(key: &str) -> Attributes {
    let name = key.rsplit('/').next().unwrap_or_default();
    Attributes::from_iter([(Attribute::ContentType, super::content_type(name))])
}

impl Bucket {
    fn attributes(&self, key: &str) -> Attributes {
        if self.cloud.is_some() { attributes(key) } else { Attributes::new() }
    }

    async fn put_file(&self, key: &str, file: &FilePath) -> Result<(), Error> {
        let mut file = tokio::fs::File::open(file).await.map_err(local("open the file to store"))?;
        let bytes = file.metadata().await.map_err(local("open the file to store"))?.len();
        let path = self.path(key);
        if self.cloud.is_none() || bytes > PART_BYTES {
            let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024);
            return self.write(&path, stream, bytes, u64::MAX).await;
        }
        let mut whole = Vec::with_capacity(bytes as usize);
        file.read_to_end(&mut whole).await.map_err(local("read the file to store"))?;
        let options = PutOptions { attributes: self.attributes(key), ..PutOptions::default() };
        self.store.put_opts(&path, whole.into(), options).await.map_err(unwritable("write"))?;
        Ok(())
    }

    /// Writes or replaces in parts. `bytes_hint` is how many will come at most, as far as that is known.
    pub(super) async fn write<S, E>(
        &self,
        path: &Path,
        mut bytes: S,
        bytes_hint: u64,
        limit_bytes: u64,
    ) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let options = PutMultipartOptions {
            attributes: self.attributes(path.as_ref()),
            ..PutMultipartOptions::default()
        };
        let upload = self.store.put_multipart_opts(path, options).await.map_err(unwritable("write"))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, part_bytes(bytes_hint) as usize);
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
                            Err(error) => unwritable("write")(error),
                        }
                    }
                }
            };
            // The failure to report is the first one; an abort that fails leaves a staged part behind.
            let _ = writer.abort().await;
            return Err(failed);
        }
        writer.finish().await.map_err(unwritable("write"))?;
        Ok(())
    }

    /// Two senders of one URL write two staged objects; the rename lets one of them win. Where a store cannot rename
    /// without replacing, the look before is all there is.
    async fn create_by_rename<S, E>(&self, key: &str, bytes: S, limit_bytes: u64) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let (staged, path) =
            (self.path(&format!("{key}.{}.part", uuid::Uuid::now_v7().simple())), self.path(key));
        let once = self.cloud.as_ref().is_none_or(|cloud| cloud.conditional);
        if !once {
            return self.write(&path, bytes, limit_bytes, limit_bytes).await;
        }
        self.write(&staged, bytes, limit_bytes, limit_bytes).await?;
        let renamed = if self.cloud.is_none() {
            self.store.rename_if_not_exists(&staged, &path).await
        } else {
            let options = CopyOptions { mode: CopyMode::Create, ..CopyOptions::default() };
            let copied = self.store.copy_opts(&staged, &path, options).await;
            let _ = self.store.delete(&staged).await;
            copied
        };
        if let Err(error) = renamed {
            let _ = self.store.delete(&staged).await;
            return Err(unwritable("write")(error));
        }
        Ok(())
    }

    /// S3 has no rename, but both of its writes can be told to happen only if nothing is there.
    async fn create_in_s3<S, E>(
        &self,
        cloud: &Cloud,
        key: &str,
        mut bytes: S,
        limit_bytes: u64,
    ) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let (path, part) = (self.path(key), part_bytes(limit_bytes) as usize);
        let mut taken = Taken { limit_bytes, bytes: 0 };
        let mut first = Vec::new();
        while first.len() < part {
            match taken.next(&mut bytes).await? {
                Some(chunk) => first.extend_from_slice(&chunk),
                None => {
                    let options = PutOptions {
                        mode: PutMode::Create,
                        attributes: self.attributes(key),
                        ..PutOptions::default()
                    };
                    self.store.put_opts(&path, first.into(), options).await.map_err(unwritable("write"))?;
                    return Ok(());
                }
            }
        }
        let id = cloud.parts.0.create_multipart(&path).await.map_err(unwritable("write"))?;
        let upload = PartUpload { cloud, path, id, part_bytes: part };
        let written = match self.write_parts(&upload, first, &mut bytes, &mut taken).await {
            Ok(etags) => self.complete(cloud, &upload.path, &upload.id, &etags).await,
            Err(error) => Err(error),
        };
        if written.is_err() {
            // The failure to report is that one; parts that stay behind are the bucket's lifecycle's.
            let _ = cloud.parts.0.abort_multipart(&upload.path, &upload.id).await;
        }
        written
    }

    /// Sends `first` and what follows as parts of one size, the last one excepted. Returns their ETags in order.
    async fn write_parts<S, E>(
        &self,
        upload: &PartUpload<'_>,
        first: Vec<u8>,
        bytes: &mut S,
        taken: &mut Taken,
    ) -> Result<Vec<String>, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        // Tasks of their own, so that parts go out while the sender dawdles; they end with this set.
        let mut sending = JoinSet::new();
        let (mut etags, mut buffer, mut ended) = (Vec::new(), first, false);
        for number in 0.. {
            while buffer.len() < upload.part_bytes && !ended {
                match taken.next(bytes).await? {
                    Some(chunk) => buffer.extend_from_slice(&chunk),
                    None => ended = true,
                }
            }
            if buffer.is_empty() {
                break;
            }
            let rest = buffer.split_off(upload.part_bytes.min(buffer.len()));
            let full = PutPayload::from(std::mem::replace(&mut buffer, rest));
            let (parts, path, id) = (upload.cloud.parts.clone(), upload.path.clone(), upload.id.clone());
            sending.spawn(async move {
                let sent = parts.0.put_part(&path, &id, number, full).await;
                sent.map(|part| (number, part.content_id)).map_err(unwritable("write"))
            });
            if sending.len() >= PARTS_IN_FLIGHT
                && let Some(sent) = sending.join_next().await
            {
                etags.push(sent.expect("sending a part does not panic")?);
            }
        }
        while let Some(sent) = sending.join_next().await {
            etags.push(sent.expect("sending a part does not panic")?);
        }
        etags.sort_unstable();
        Ok(etags.into_iter().map(|(_, etag)| etag).collect())
    }
}

/// Where the parts of one object go.
struct PartUpload<'a> {
    cloud: &'a Cloud,
    path: Path,
    id: String,
    part_bytes: usize,
}

/// How much of a stream was taken, and how much may be.
struct Taken {
    limit_bytes: u64,
    bytes: u64,
}

impl Taken {
    async fn next<S, E>(&mut self, from: &mut S) -> Result<Option<Bytes>, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let Some(chunk) = from.next().await else { return Ok(None) };
        let chunk = chunk.map_err(|error| Error::Interrupted(error.to_string()))?;
        self.bytes += chunk.len() as u64;
        if self.bytes > self.limit_bytes {
            return Err(Error::TooLarge { limit_bytes: self.limit_bytes });
        }
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_and_never_too_small() {
        for bytes in [0, 1, 100 << 20, 20_000_000_000, 5 << 40] {
            let part = part_bytes(bytes);
            assert!(part >= PART_BYTES && bytes.div_ceil(part) <= PARTS_MAX, "{bytes}: {part}");
        }
    }
}
