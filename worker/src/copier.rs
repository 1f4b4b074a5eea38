//! Makes copies in other pools' buckets: the second one of a `dual` job's input, and those of outputs that were asked for.
//!
//! Beside the encoding and never in its way: copies take no slot, only a few are under way at once, and any worker that
//! reaches both buckets may make one. Each is claimed with a lease that is renewed while it is made; a dead worker's is
//! another's soon. What is written proves nothing before the store says that the copy is whole: an input's copy lies
//! under the claim's own key, and outputs, which never change, under their own, so that another try goes on where one ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use millrace_wire::PoolId;
use millrace_wire::job::FailureCode;
use millrace_wire::spec::Input;
use rand::Rng as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, info_span, warn};

use crate::failure::{Ended, Failure};
use crate::keys;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::source::fetch::Fetcher;
use crate::store::copies::{CopyClaim, CopyEnd, CopyLease, Kind, Reach};
use crate::store::{Identity, Manifest, Part, Upkeep};

/// Copies that a worker makes at once.
const AT_ONCE: usize = 2;
/// How often a worker with nothing to copy looks, before jitter.
const POLL: Duration = Duration::from_secs(2);
/// Files of one job that are copied at once.
const FILES_IN_FLIGHT: usize = 4;
/// Before another try after the first failure; doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// The longest wait before another try: a cloud that is away comes back some time.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// How often what waits is counted.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// What one worker copies with.
pub struct Copier {
    /// Says what is to be copied.
    pub upkeep: Arc<dyn Upkeep>,
    /// Holds the bytes.
    pub objects: Objects,
    /// Gets inputs by URL.
    pub fetcher: Fetcher,
    /// Who copies.
    pub identity: Identity,
    /// What it can copy.
    pub reach: Reach,
    /// How long a claim holds.
    pub lease: Duration,
    /// The largest input.
    pub bytes_max: u64,
    /// A private directory of this worker.
    pub scratch: PathBuf,
    /// "Look now."
    pub nudge: Arc<Notify>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// What was copied.
struct Made {
    bytes: u64,
    sha256: Option<String>,
}

/// A directory that goes when its copy ends, however it ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            warn!(path = %self.0.display(), %error, "cannot remove a scratch directory");
        }
    }
}

impl Copier {
    /// Copies until told to end; what it is at then is given back.
    pub async fn run(self, until: CancellationToken) {
        if self.reach.pools.as_ref().is_some_and(|pools| pools.len() < 2) {
            // There is no other bucket to copy into.
            return until.cancelled().await;
        }
        let lanes = (0..AT_ONCE).map(|_| self.lane(&until));
        tokio::join!(futures::future::join_all(lanes), self.count(&until));
    }

    async fn lane(&self, until: &CancellationToken) {
        while !until.is_cancelled() {
            let sent = Instant::now();
            match self.upkeep.claim_copy(&self.identity, &self.reach, self.lease).await {
                Ok(Some(claim)) => {
                    let (kind, to) = (claim.lease.kind.as_str(), claim.lease.to.clone());
                    let span =
                        info_span!("copy", job_id = %claim.job_id, kind, %to, attempt = claim.lease.epoch);
                    self.one(&claim, sent, until).instrument(span).await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    self.metrics.store_errors.with_label_values(&[error.kind()]).inc();
                    warn!(%error, "cannot ask for copies to make");
                }
            }
            let pause = POLL.mul_f64(rand::rng().random_range(0.75..1.25));
            tokio::select! {
                () = until.cancelled() => {}
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn count(&self, until: &CancellationToken) {
        loop {
            if let Ok((waiting, age)) = self.upkeep.copies_waiting().await {
                self.metrics.copies_waiting.set(waiting.into());
                self.metrics.copies_oldest_seconds.set(age.as_secs_f64());
            }
            tokio::select! {
                () = until.cancelled() => return,
                () = tokio::time::sleep(COUNT_EVERY) => {}
            }
        }
    }

    async fn one(&self, claim: &CopyClaim, sent: Instant, until: &CancellationToken) {
        let stop = CancellationToken::new();
        let began = Instant::now();
        let made = tokio::select! {
            made = self.copy(claim, &stop) => made,
            () = self.keep(&claim.lease, sent) => {
                info!("nobody wants this copy any more, or another makes it");
                self.metrics.copies.with_label_values(&[claim.lease.kind.as_str(), "lost"]).inc();
                return;
            }
            () = until.cancelled() => Err(Ended::Cancelled),
        };
        stop.cancel();
        let (end, outcome) = match made {
            Ok(Made { bytes, sha256 }) => {
                info!(bytes, seconds = began.elapsed().as_secs_f64(), "copied");
                (CopyEnd::Done { bytes, sha256 }, "done")
            }
            Err(Ended::Cancelled) => (CopyEnd::Released, "released"),
            Err(Ended::Failed(failure)) => {
                let (code, detail) = (failure.code.as_str().to_owned(), failure.detail.clone());
                warn!(code, detail, log = failure.log, "the copy failed; it is tried again");
                (CopyEnd::Failed { code, detail, retry_after: retry_after(claim.failures) }, "failed")
            }
        };
        let outcome = match self.tell(&claim.lease, &end, sent).await {
            true => outcome,
            false => "lost",
        };
        self.metrics.copies.with_label_values(&[claim.lease.kind.as_str(), outcome]).inc();
    }

    /// Renews a claim; ends when it is lost, or may be for all that this worker knows.
    async fn keep(&self, copy: &CopyLease, mut sent: Instant) {
        loop {
            tokio::time::sleep(self.lease / 4).await;
            let asked = Instant::now();
            match self.upkeep.renew_copy(copy, self.lease).await {
                Ok(true) => sent = asked,
                Ok(false) => return,
                Err(error) => {
                    warn!(%error, "cannot renew the claim on a copy");
                    if sent.elapsed() >= self.lease {
                        return;
                    }
                }
            }
        }
    }

    /// Tells the store how it ended, for as long as the claim may hold.
    async fn tell(&self, copy: &CopyLease, end: &CopyEnd, sent: Instant) -> bool {
        let deadline = Instant::now().max(sent) + self.lease;
        loop {
            match self.upkeep.end_copy(copy, &self.reach, end).await {
                Ok(told) => {
                    if !told {
                        info!("the copy counts no more");
                    }
                    return told;
                }
                Err(error) if Instant::now() < deadline => {
                    warn!(%error, "cannot tell the store how the copy ended, trying again");
                }
                Err(_) => return false,
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn copy(&self, claim: &CopyClaim, stop: &CancellationToken) -> Result<Made, Ended> {
        match claim.lease.kind {
            Kind::Input => self.input(claim, stop).await,
            Kind::Outputs => self.outputs(claim).await,
        }
    }

    async fn input(&self, claim: &CopyClaim, stop: &CancellationToken) -> Result<Made, Ended> {
        let (to, key) = (&claim.lease.to, keys::second_input(&claim.lease.job_uid, claim.lease.epoch));
        match &claim.spec.input {
            Input::Path(path) => {
                let (from, source) = keys::split_input_path(path).ok_or_else(|| {
                    Failure::new(FailureCode::SourceNotFound, "input_path names no object").log(path)
                })?;
                let copied = self.objects.replicate((&from, source), (to, &key), self.bytes_max, false);
                let copied = copied.await.map_err(|error| error.failure("does not copy the input"))?;
                self.left(&from, to, Kind::Input, copied.bytes);
                Ok(Made { bytes: copied.bytes, sha256: copied.sha256 })
            }
            Input::Url(url) => {
                let name = format!("copy-{}-a{}", claim.lease.job_uid, claim.lease.epoch);
                let folder = Scratch(self.scratch.join(name));
                std::fs::create_dir_all(&folder.0).map_err(|e| Failure::scratch("create", &e))?;
                let file = folder.0.join("input");
                self.fetcher.fetch(url, &file, &|_| {}, stop).await?;
                let (bytes, sha256) = hashed(file.clone()).await?;
                let put = self.objects.put_file(to, &key, &file).await;
                put.map_err(|error| error.failure("takes no copy of the input"))?;
                let there = self.objects.head(to, &key).await;
                let there = there.map_err(|error| error.failure("does not show the copy"))?;
                if there.bytes != bytes {
                    let detail = "the copy of the input has another size";
                    return Err(Failure::new(FailureCode::ObjectsUnavailable, detail).into());
                }
                self.metrics.copied_bytes.with_label_values(&["url", to.as_str(), "input"]).inc_by(bytes);
                Ok(Made { bytes, sha256: Some(sha256) })
            }
        }
    }

    async fn outputs(&self, claim: &CopyClaim) -> Result<Made, Ended> {
        let manifest = claim
            .manifest
            .as_ref()
            .ok_or_else(|| Failure::new(FailureCode::Internal, "a job without outputs has none to copy"))?;
        let (from, to) = (&manifest.bucket, &claim.lease.to);
        let unlisted = |error: crate::objects::Error| error.failure("does not list the outputs");
        let (mut wanted, mut there) = (Vec::new(), std::collections::BTreeMap::new());
        for prefix in prefixes(manifest, &claim.lease.job_uid) {
            wanted.extend(self.objects.list_below(from, &prefix).await.map_err(unlisted)?);
            there.extend(self.objects.list_below(to, &prefix).await.map_err(unlisted)?);
        }
        if wanted.len() < manifest.files {
            let detail = "the job's outputs are not all where they were published";
            let log = format!("{} of {} files", wanted.len(), manifest.files);
            return Err(Failure::new(FailureCode::ObjectsUnavailable, detail).log(log).into());
        }
        let bytes = wanted.iter().map(|(_, bytes)| bytes).sum();
        // What another try copied is whole: objects appear so, and what was published never changes.
        wanted.retain(|(key, bytes)| there.get(key) != Some(bytes));
        futures::stream::iter(wanted)
            .map(async |(key, _)| {
                let copied = self.objects.replicate((from, &key), (to, &key), u64::MAX, false).await?;
                self.left(from, to, Kind::Outputs, copied.bytes);
                Ok(())
            })
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_collect::<()>()
            .await
            .map_err(|error: crate::objects::Error| error.failure("does not copy the outputs"))?;
        Ok(Made { bytes, sha256: None })
    }

    /// Counts what left a pool for another.
    fn left(&self, from: &PoolId, to: &PoolId, kind: Kind, bytes: u64) {
        let labels = [from.as_str(), to.as_str(), kind.as_str()];
        self.metrics.copied_bytes.with_label_values(&labels).inc_by(bytes);
    }
}

/// Below which everything lies that a job published.
fn prefixes(manifest: &Manifest, job_uid: &str) -> Vec<String> {
    let pieces = manifest.pieces.iter().flat_map(|pieces| {
        let ranges = pieces.ranges.iter().zip(0..).map(|(attempt, index)| (Part::Range(index), *attempt));
        ranges.chain(pieces.sound.map(|(attempt, _)| (Part::Sound, attempt)))
    });
    let pieces = pieces.map(|(part, attempt)| keys::prefix_of_attempt(job_uid, part, attempt));
    std::iter::once(manifest.prefix.clone()).chain(pieces).collect()
}

/// Size and SHA-256 of a file.
pub(crate) async fn hashed(file: PathBuf) -> Result<(u64, String), Failure> {
    let read = move |path: &Path| -> std::io::Result<(u64, String)> {
        let (mut hash, mut file) = (Sha256::new(), std::fs::File::open(path)?);
        let bytes = std::io::copy(&mut file, &mut hash)?;
        Ok((bytes, hex::encode(hash.finalize())))
    };
    let hashed = tokio::task::spawn_blocking(move || read(&file)).await;
    let hashed = hashed.map_err(|e| Failure::new(FailureCode::Internal, "hashing failed").log(e))?;
    hashed.map_err(|error| Failure::scratch("read the input", &error))
}

fn retry_after(failures: u32) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << failures.min(10));
    doubled.min(RETRY_MAX).mul_f64(rand::rng().random_range(0.8..1.2))
}

#[cfg(test)]
mod tests;
