//! One attempt at a task, by what it is of the job: all of it ([`whole`]), which a long job splits; one [`range`] of the
//! picture, or the sound; and putting those together ([`finish`]). [`outputs`] is what the first and the last have in common.
//!
//! Straight-line code on purpose. Each step either gives what the next one needs or ends the attempt; what the end
//! means for the job (another try, failed, cancelled) is decided by the store, in one place.

mod finish;
mod outputs;
mod range;
mod second;
mod stranded;
mod whole;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_wire::PoolId;
use millrace_wire::job::{FailureCode, JobUpdate, Phase};
use rand::Rng as _;
use tracing::{Instrument as _, info, info_span, warn};

use crate::cost::CostModel;
use crate::failure::{Ended, Failure};
use crate::ffmpeg::Ffmpeg;
use crate::fitness::Fitness;
use crate::keys;
use crate::lease::{Leases, Running, Stop};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::source::fetch::Fetcher;
use crate::source::kept::Kept;
use crate::source::stored;
use crate::store::{self, AttemptEnd, Claim, Lease, Part, Store, Upkeep};

/// First wait before another try; doubles with each, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest wait before another try.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Between tries to reach a store that does not answer.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Longest time to remove what an attempt wrote: meanwhile it keeps its slot, and a worker that is to leave.
const FORGET_PATIENCE: Duration = Duration::from_secs(5);
/// With less than this left, what was written last was not written whole.
const ROOM_MIN: u64 = 64 * 1024;
/// Events of a job that are read at once.
const EVENTS_PAGE: u32 = 64;

/// Runs attempts; shared by all slots.
pub struct Runner {
    /// Decides.
    pub store: Arc<dyn Store>,
    /// Knows where copies are.
    pub upkeep: Arc<dyn Upkeep>,
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
    /// Hears of failures.
    pub fitness: Arc<Fitness>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// A private directory of this worker.
    pub scratch: PathBuf,
    /// Threads of one encode.
    pub threads: u32,
    /// The pool that it works for.
    pub pool: PoolId,
    /// What a range is to be about as long as; none where no job is cut into ranges here.
    pub range: Option<Duration>,
    /// Sources of jobs in parts.
    pub sources: Kept,
}

/// How an attempt came out.
enum Outcome {
    Published,
    /// A job in parts has its plan now.
    Split,
    /// A part is done.
    Committed,
    /// A part is to be done again by an equal encoder; the store knows already.
    Again,
    /// Parts are to be done again whose objects are lost; the store knows already.
    TakenBack,
    Failed(Failure),
    /// The job waits again, to be made in another bucket: its own does not answer.
    Moved,
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

    /// What a failure of what was written here is about: ffmpeg ends well on a disk that filled up at its last bytes, and says
    /// no word of it.
    fn blame(&self, failure: Failure) -> Failure {
        use FailureCode::{EncodeFailed, VerifyFailed};
        let full = || rustix::fs::statvfs(&self.0).is_ok_and(|disk| disk.f_bavail * disk.f_frsize < ROOM_MIN);
        if matches!(failure.code, EncodeFailed | VerifyFailed) && full() {
            let detail = "the worker's scratch directory is full";
            return Failure::new(FailureCode::ScratchUnavailable, detail).log(failure);
        }
        failure
    }

    fn empty_out(&self) -> Result<(), Failure> {
        let emptied = std::fs::remove_dir_all(self.out()).and_then(|()| std::fs::create_dir(self.out()));
        emptied.map_err(|e| Failure::scratch("empty", &e))
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
        let part = claim.part.folder();
        let span = info_span!("attempt", job_id = %claim.job_id, part, attempt = claim.lease.epoch);
        async {
            let _held = Held(&self.leases, &claim.lease);
            info!(waited_s = claim.waited.as_secs_f64(), "claimed");
            let outcome = self.attempt(&claim, &running).await.unwrap_or_else(|outcome| outcome);
            let outcome = self.or_moved(&claim, &running, outcome).await;
            self.settle(&claim, &running, outcome).await;
        }
        .instrument(span)
        .await;
    }

    async fn attempt(&self, claim: &Claim, running: &Running) -> Result<Outcome, Outcome> {
        if let Some(moved) = self.leave_lost_bucket(claim, running).await? {
            return Ok(moved);
        }
        match claim.part {
            Part::Whole => self.whole(claim, running).await,
            Part::Range(index) => self.range(claim, running, index).await,
            Part::Sound => self.sound(claim, running).await,
            Part::Finish => self.finish(claim, running).await,
        }
    }

    /// Where an attempt works.
    fn scratch_of(&self, claim: &Claim) -> PathBuf {
        let (job, part, epoch) = (&claim.lease.job_uid, claim.part.folder(), claim.lease.epoch);
        self.scratch.join(format!("{job}-{part}-a{epoch}"))
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
            Outcome::Split => {
                info!("split");
                ("succeeded", None)
            }
            Outcome::Committed => {
                info!(part = claim.part.folder(), "part done");
                ("succeeded", None)
            }
            Outcome::Again => {
                info!(part = claim.part.folder(), "another encoder was first");
                ("released", None)
            }
            Outcome::Moved => {
                // Nothing was written, and nobody would answer who was asked to remove it.
                if claim.bucket == self.pool {
                    self.fitness.hear(FailureCode::ObjectsUnavailable);
                }
                self.metrics.attempts.with_label_values(&["released"]).inc();
                return;
            }
            Outcome::TakenBack => ("released", None),
            Outcome::Failed(failure) => {
                let code = failure.code;
                warn!(code = code.as_str(), detail = failure.detail, log = failure.log, "attempt failed");
                self.metrics.failures.with_label_values(&[code.as_str()]).inc();
                self.fitness.hear(code);
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
            let forgotten = forget(&*self.store, &self.objects, claim);
            if tokio::time::timeout(FORGET_PATIENCE, forgotten).await.is_err() {
                warn!("what the attempt wrote is left to the sweep: the object store does not answer");
            }
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

/// Removes what an attempt wrote, unless it counts after all: the answer to a commit can be lost and the attempt stopped
/// before it could ask again. Whoever cannot tell leaves it: too many bytes are better than too few.
async fn forget(store: &dyn Store, objects: &Objects, claim: &Claim) {
    let prefix = keys::attempt_prefix(claim.part, &claim.lease);
    let counts = match claim.part {
        Part::Range(_) | Part::Sound => is_done(store, &claim.lease).await,
        Part::Whole | Part::Finish => succeeded(store, &claim.lease).await,
    };
    match counts {
        Ok(true) => {
            info!(prefix, "committed, though the store's answer was lost");
            return;
        }
        Ok(false) => {}
        Err(error) => {
            warn!(%error, prefix, "cannot ask whether the attempt was committed, so what it wrote stays");
            return;
        }
    }
    if let Err(error) = objects.delete_below(&claim.bucket, &prefix).await {
        warn!(%error, prefix, "cannot remove what the attempt wrote");
    }
}

/// Whether this very attempt at a part was committed.
async fn is_done(store: &dyn Store, lease: &Lease) -> Result<bool, store::Error> {
    Ok(store.results(&lease.job_uid).await?.iter().any(|done| done.lease == *lease))
}

/// Whether this very attempt was published, or split its job. A claim does not know whose job it is, so the job's events are
/// asked.
async fn succeeded(store: &dyn Store, lease: &Lease) -> Result<bool, store::Error> {
    #[derive(serde::Deserialize)]
    struct Body {
        /// Of a publish; since jobs have parts.
        epoch: Option<u64>,
        job: JobUpdate,
    }
    let mut after = 0;
    loop {
        let page = store.events(&lease.job_uid, after, EVENTS_PAGE).await?;
        for event in page.iter().filter(|event| event.kind == "succeeded" || event.kind == "split") {
            let body = serde_json::from_str::<Body>(&event.body);
            // One that cannot be read may be this one.
            let by = body.map(|body| body.epoch.unwrap_or(u64::from(body.job.attempt)));
            if by.map_or(true, |epoch| epoch == lease.epoch) {
                return Ok(true);
            }
        }
        match page.last() {
            Some(last) if page.len() >= EVENTS_PAGE as usize => after = last.seq,
            _ => return Ok(false),
        }
    }
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
    use crate::store::{Accepted, Manifest, NewJob, Published, Room, Sqlite};

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
            let new =
                NewJob { tenant, job_id: id.parse().unwrap(), spec, work_seconds: 1.0, steal, second: None };
            let room = Room { slots: 9, queue_max: 9 };
            assert!(matches!(store.accept(&new, &by, room).await.unwrap(), Accepted::Created(_)));
            let claim = store.claim(&by, Duration::from_secs(60)).await.unwrap().unwrap();
            let prefix = keys::attempt_prefix(claim.part, &claim.lease);
            let key = format!("{prefix}/master.m3u8");
            objects.put_file(&claim.bucket, &key, &file).await.unwrap();
            if publishes {
                let outputs = Outputs { duration_s: 1.0, bytes: 1, ..Outputs::default() };
                let (bucket, warnings) = (claim.bucket.clone(), Vec::new());
                let manifest = Manifest { bucket, prefix, pieces: None, files: 1, outputs, warnings };
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
