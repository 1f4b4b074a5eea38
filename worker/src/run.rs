//! One attempt at a job: fetch, probe, plan, encode, verify, store, publish.
//!
//! Straight-line code on purpose. Each step either gives what the next one needs or ends the attempt; what the end
//! means for the job (another try, failed, cancelled) is decided by the store, in one place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use millrace_wire::job::{FailureCode, JobUpdate, Phase, Progress};
use millrace_wire::spec::Input;
use rand::Rng as _;
use tracing::{Instrument as _, info, info_span, warn};

use crate::cost::CostModel;
use crate::failure::{Ended, Failure};
use crate::ffmpeg::{self, Ffmpeg};
use crate::ladder::Plan;
use crate::ladder::Wanted;
use crate::lease::{Leases, Running, Stop};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::package::track::Track;
use crate::package::{self, Package};
use crate::source::fetch::{Arrived, Fetcher};
use crate::source::{probe, stored};
use crate::store::{self, AttemptEnd, Claim, Lease, Manifest, Published, Store};
use crate::{keys, ladder, progressive, thumbnails};

/// First wait before another try; doubles with each, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest wait before another try.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Between tries to reach a store that does not answer.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Events of a job that are read at once.
const EVENTS_PAGE: u32 = 64;
/// Files written to the object store at once.
const FILES_IN_FLIGHT: usize = 4;

/// Runs attempts; shared by all slots.
pub struct Runner {
    /// Decides.
    pub store: Arc<dyn Store>,
    /// Holds inputs and outputs.
    pub objects: Objects,
    /// What is held.
    pub leases: Arc<Leases>,
    /// Encodes.
    pub ffmpeg: Ffmpeg,
    /// Gets inputs by URL.
    pub fetcher: Fetcher,
    /// What inputs from the object store may take.
    pub stored: stored::Limits,
    /// Learns.
    pub cost: Arc<CostModel>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// A private directory of this worker.
    pub scratch: PathBuf,
    /// Threads of one encode.
    pub threads: u32,
}

/// How an attempt came out.
enum Outcome {
    Published,
    Failed(Failure),
    /// Told to stop; [`Running::stopped`] says why.
    Stopped,
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Cancelled => Self::Stopped,
            Ended::Failed(failure) => Self::Failed(failure),
        }
    }
}

/// A directory that goes when its attempt ends, however it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn create(path: PathBuf) -> Result<Self, Failure> {
        let made = std::fs::create_dir_all(path.join("out"));
        made.map_err(|e| Failure::scratch("create", &e))?;
        Ok(Self(path))
    }

    fn input(&self) -> PathBuf {
        self.0.join("input")
    }

    fn out(&self) -> PathBuf {
        self.0.join("out")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            warn!(path = %self.0.display(), %error, "cannot remove a scratch directory");
        }
    }
}

/// Takes an attempt out of the heartbeat when its task ends, a panic included: nobody must renew a dead one.
struct Held<'a>(&'a Leases, &'a store::Lease);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

impl Runner {
    /// Runs an attempt to its end and tells the store.
    pub async fn run(&self, claim: Claim, running: Arc<Running>) {
        let span = info_span!("attempt", job_id = %claim.job_id, attempt = claim.lease.epoch);
        async {
            let _held = Held(&self.leases, &claim.lease);
            info!(waited_s = claim.waited.as_secs_f64(), "claimed");
            let outcome = self.attempt(&claim, &running).await.unwrap_or_else(|outcome| outcome);
            self.settle(&claim, &running, outcome).await;
        }
        .instrument(span)
        .await;
    }

    async fn attempt(&self, claim: &Claim, running: &Running) -> Result<Outcome, Outcome> {
        let scratch =
            Scratch::create(self.scratch.join(format!("{}-a{}", claim.lease.job_uid, claim.lease.epoch)))?;
        let input = scratch.input();
        self.fetch(claim, running, &input).await?;

        self.enter(running, Phase::Probing, None).await?;
        let probe = probe::probe(&self.ffmpeg, &input, &running.stop).await?;
        let plan = ladder::plan(&claim.spec, &probe, self.threads)?;
        running.work_seconds(plan.work_seconds);

        self.enter(running, Phase::Encoding, Some(plan.work_seconds)).await?;
        let report = |seen| running.progress(progress(&seen, plan.duration_s));
        let out = scratch.out();
        let encoded = self.ffmpeg.encode(&plan, &input, &out, &report, &running.stop).await?;
        self.cost.learn(plan.work_seconds, encoded.wall.as_secs_f64());
        self.metrics.encoded(&plan, &encoded);

        self.enter(running, Phase::Publishing, None).await?;
        let wanted = plan.wanted;
        let mut package = package(plan, out.clone()).await?;
        self.add_files(wanted, &mut package, &scratch, running).await?;
        self.add_thumbnails(wanted, &mut package, &scratch, running).await?;
        package.outputs.bytes = package.bytes();
        self.publish(claim, running, &out, package, encoded.warnings).await
    }

    async fn fetch(&self, claim: &Claim, running: &Running, into: &Path) -> Result<(), Outcome> {
        match &claim.spec.input {
            Input::Url(url) => {
                let report = |seen| running.progress(source_progress(seen));
                self.fetcher.fetch(url, into, &report, &running.stop).await?;
            }
            Input::Path(path) => {
                let report = |seen| running.progress(source_progress(seen));
                stored::fetch(&self.objects, path, into, self.stored, &report, &running.stop).await?;
            }
        }
        Ok(())
    }

    /// Adds the progressive files that are wanted.
    async fn add_files(
        &self,
        wanted: Wanted,
        package: &mut Package,
        scratch: &Scratch,
        running: &Running,
    ) -> Result<(), Ended> {
        let Package { files, outputs, pictures, sound, .. } = package;
        let (ffmpeg, sound, out, stop) = (&self.ffmpeg, sound.as_ref(), scratch.out(), &running.stop);
        if wanted.mp4 {
            let named = outputs.renditions.iter().map(|one| one.name.as_str());
            let pictures: Vec<(&str, &Track)> = named.zip(&*pictures).collect();
            let made = progressive::make(ffmpeg, &pictures, sound, &out, &scratch.0, stop).await?;
            let renditions = outputs.renditions.iter_mut().zip(&made);
            renditions.for_each(|(one, file)| one.mp4 = Some(file.name.clone()));
            files.extend(made);
        }
        if wanted.audio {
            let made = progressive::make(ffmpeg, &[], sound, &out, &scratch.0, stop).await?;
            let audio = outputs.audio.iter_mut().zip(&made);
            audio.for_each(|(one, file)| one.mp4 = Some(file.name.clone()));
            files.extend(made);
        }
        Ok(())
    }

    /// Adds poster and sprites. A ladder without them is still a ladder: only what another attempt could mend fails it.
    async fn add_thumbnails(
        &self,
        wanted: Wanted,
        package: &mut Package,
        scratch: &Scratch,
        running: &Running,
    ) -> Result<(), Ended> {
        if !wanted.thumbnails {
            return Ok(());
        }
        let pictures: Vec<&Track> = package.pictures.iter().collect();
        match thumbnails::make(&self.ffmpeg, &pictures, &scratch.out(), &scratch.0, &running.stop).await {
            Ok(made) => {
                package.outputs.poster = Some(thumbnails::POSTER.to_owned());
                package.outputs.thumbnails = Some(thumbnails::INDEX.to_owned());
                package.files.extend(made.files);
                Ok(())
            }
            Err(Ended::Failed(failure)) if failure.code != FailureCode::ScratchUnavailable => {
                warn!(%failure, "no thumbnails");
                package.warnings.push("no poster and no sprites could be made of the picture".to_owned());
                Ok(())
            }
            Err(ended) => Err(ended),
        }
    }

    async fn publish(
        &self,
        claim: &Claim,
        running: &Running,
        out: &Path,
        package: Package,
        mut warnings: Vec<String>,
    ) -> Result<Outcome, Outcome> {
        let prefix = keys::attempt_prefix(&claim.lease);
        let names: Vec<String> = package.files.iter().map(|file| file.name.clone()).collect();
        let stored = futures::stream::iter(names)
            .map(|name| {
                let key = format!("{prefix}/{name}");
                async move { self.objects.put_file(&claim.bucket, &key, &out.join(name)).await }
            })
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_collect::<Vec<()>>();
        let stored = tokio::select! {
            () = running.stop.cancelled() => return Err(Outcome::Stopped),
            stored = stored => stored,
        };
        stored.map_err(|error| error.failure("takes no bytes"))?;
        warnings.extend(package.warnings);
        let manifest = Manifest {
            bucket: claim.bucket.clone(),
            prefix,
            files: package.files.len(),
            outputs: package.outputs,
            warnings,
        };
        match self.ask_store(running, || self.store.publish(&claim.lease, &manifest)).await? {
            Published::Yes => Ok(Outcome::Published),
            Published::No => {
                // Cancelled first, or somebody else's by now: the settling write finds out which.
                running.stop(Stop::Cancelled);
                Err(Outcome::Stopped)
            }
        }
    }

    async fn enter(&self, running: &Running, phase: Phase, work_seconds: Option<f64>) -> Result<(), Outcome> {
        let mine = self.ask_store(running, || self.store.enter(&running.lease, phase, work_seconds)).await?;
        if !mine {
            running.lose(&self.metrics);
            return Err(Outcome::Stopped);
        }
        Ok(())
    }

    /// Asks until the store answers or the attempt has to stop: a store that is away for a while costs no work.
    async fn ask_store<T, F>(&self, running: &Running, mut ask: impl FnMut() -> F) -> Result<T, Outcome>
    where
        F: Future<Output = Result<T, store::Error>>,
    {
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error @ store::Error::Unavailable(_)) => {
                    self.metrics.store_errors.with_label_values(&[error.kind()]).inc();
                    warn!(%error, "waiting for the store");
                }
                Err(error) => {
                    return Err(Failure::new(FailureCode::Internal, "the job store failed")
                        .log(error)
                        .into());
                }
            }
            tokio::select! {
                () = running.stop.cancelled() => return Err(Outcome::Stopped),
                () = tokio::time::sleep(STORE_RETRY) => {}
            }
        }
    }

    async fn settle(&self, claim: &Claim, running: &Running, outcome: Outcome) {
        let (label, end) = match outcome {
            Outcome::Published => {
                info!("published");
                ("succeeded", None)
            }
            Outcome::Failed(failure) => {
                let code = failure.code;
                warn!(code = code.as_str(), detail = failure.detail, log = failure.log, "attempt failed");
                self.metrics.failures.with_label_values(&[code.as_str()]).inc();
                let retry_after = retry_after(claim.lease.epoch);
                ("failed", Some(AttemptEnd::Failed { code, detail: failure.detail, retry_after }))
            }
            Outcome::Stopped => match running.stopped() {
                Some(Stop::Cancelled) => ("cancelled", Some(AttemptEnd::Cancelled)),
                Some(Stop::Shutdown) => ("released", Some(AttemptEnd::Released)),
                Some(Stop::LeaseLost) | None => ("lease_lost", None),
            },
        };
        self.metrics.attempts.with_label_values(&[label]).inc();
        if let Some(end) = end {
            self.tell_store(running, &end).await;
        }
        if label != "succeeded" {
            forget(&*self.store, &self.objects, claim).await;
        }
    }

    /// Tells how it ended while the lease may still be ours; past that, the expiry says it.
    async fn tell_store(&self, running: &Running, end: &AttemptEnd) {
        while tokio::time::Instant::now() < running.deadline() {
            match self.store.end(&running.lease, end).await {
                Ok(()) => return,
                Err(error) => {
                    self.metrics.store_errors.with_label_values(&[error.kind()]).inc();
                    warn!(%error, "cannot tell the store how the attempt ended, trying again");
                }
            }
            tokio::time::sleep(STORE_RETRY).await;
        }
    }
}

/// Removes what an attempt wrote, unless it was published after all: the answer to a publish can be lost and the attempt
/// stopped before it could ask again. Whoever cannot tell leaves it: too many bytes are better than too few.
async fn forget(store: &dyn Store, objects: &Objects, claim: &Claim) {
    let prefix = keys::attempt_prefix(&claim.lease);
    match succeeded(store, &claim.lease).await {
        Ok(true) => {
            info!(prefix, "published, though the store's answer was lost");
            return;
        }
        Ok(false) => {}
        Err(error) => {
            warn!(%error, prefix, "cannot ask whether the attempt was published, so what it wrote stays");
            return;
        }
    }
    if let Err(error) = objects.delete_below(&claim.bucket, &prefix).await {
        warn!(%error, prefix, "cannot remove what the attempt wrote");
    }
}

/// Whether this very attempt was published. A claim does not know whose job it is, so the job's events are asked.
async fn succeeded(store: &dyn Store, lease: &Lease) -> Result<bool, store::Error> {
    #[derive(serde::Deserialize)]
    struct Body {
        job: JobUpdate,
    }
    let mut after = 0;
    loop {
        let page = store.events(&lease.job_uid, after, EVENTS_PAGE).await?;
        for event in page.iter().filter(|event| event.kind == "succeeded") {
            let body = serde_json::from_str::<Body>(&event.body);
            // One that cannot be read may be this one.
            if body.map_or(true, |body| u64::from(body.job.attempt) == lease.epoch) {
                return Ok(true);
            }
        }
        match page.last() {
            Some(last) if page.len() >= EVENTS_PAGE as usize => after = last.seq,
            _ => return Ok(false),
        }
    }
}

/// How far a job is, by media time. It reaches 100 % only when it is published.
fn progress(seen: &ffmpeg::Progress, duration_s: f64) -> Progress {
    let media_seconds = seen.media.as_secs_f64().min(duration_s);
    let left = duration_s - media_seconds;
    Progress {
        percent: (100.0 * media_seconds / duration_s.max(1e-3)).min(99.0),
        media_seconds: Some(media_seconds),
        speed: seen.speed,
        eta_seconds: seen.speed.filter(|speed| *speed > 0.0).map(|speed| left / speed),
        ..Progress::default()
    }
}

/// How much of the source is here. Of the job itself that is nothing yet.
fn source_progress(seen: Arrived) -> Progress {
    Progress { source_bytes: Some(seen.bytes), source_bytes_total: seen.announced, ..Progress::default() }
}

/// Reads back and verifies what was encoded, where blocking is allowed.
async fn package(plan: Plan, out: PathBuf) -> Result<Package, Failure> {
    let packaged = tokio::task::spawn_blocking(move || package::package(&plan, &out)).await;
    packaged.map_err(|error| Failure::new(FailureCode::Internal, "packaging failed").log(error))?
}

/// Doubles with every attempt, with jitter so that what failed together does not come back together.
fn retry_after(attempt: u64) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(10));
    doubled.min(RETRY_MAX).mul_f64(rand::rng().random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use millrace_wire::job::Outputs;

    use super::*;
    use crate::store::{Accepted, NewJob, Room, Sqlite};

    #[tokio::test]
    async fn what_was_published_stays_although_its_attempt_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Sqlite::open(&format!("sqlite:{}", folder.path().join("jobs.db").display()), 3).await.unwrap();
        let objects = Objects::open(&folder.path().join("objects")).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let by = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
        for (id, publishes) in [("published", true), ("stopped", false)] {
            let (spec, _) = millrace_wire::JobSpec::parse(br#"{"input_url":"http://h/v"}"#).unwrap();
            let (tenant, steal) = ("acme".to_owned(), Default::default());
            let new = NewJob { tenant, job_id: id.parse().unwrap(), spec, work_seconds: 1.0, steal };
            let room = Room { slots: 9, queue_max: 9 };
            assert!(matches!(store.accept(&new, &by, room).await.unwrap(), Accepted::Created(_)));
            let claim = store.claim(&by, Duration::from_secs(60)).await.unwrap().unwrap();
            let prefix = keys::attempt_prefix(&claim.lease);
            let key = format!("{prefix}/master.m3u8");
            objects.put_file(&claim.bucket, &key, &file).await.unwrap();
            if publishes {
                let outputs = Outputs { duration_s: 1.0, bytes: 1, ..Outputs::default() };
                let (bucket, warnings) = (claim.bucket.clone(), Vec::new());
                let manifest = Manifest { bucket, prefix, files: 1, outputs, warnings };
                assert!(store.enter(&claim.lease, Phase::Publishing, None).await.unwrap());
                assert_eq!(store.publish(&claim.lease, &manifest).await.unwrap(), Published::Yes);
            }
            // What a worker says that lost the answer: nothing is changed by it.
            store.end(&claim.lease, &AttemptEnd::Released).await.unwrap();
            forget(&store, &objects, &claim).await;
            assert_eq!(objects.head(&claim.bucket, &key).await.is_ok(), publishes, "{id}");
        }
    }

    #[test]
    fn the_wait_before_another_try_doubles_up_to_its_limit() {
        for (attempt, seconds) in [(1, 5.0), (2, 10.0), (4, 40.0), (60, 300.0)] {
            let wait = retry_after(attempt).as_secs_f64();
            assert!((seconds * 0.8..=seconds * 1.2).contains(&wait), "attempt {attempt}: {wait}");
        }
    }
}
