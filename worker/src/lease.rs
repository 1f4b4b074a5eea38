//! The worker's hold on what it runs: one batched heartbeat renews every lease and brings cancellations back.
//!
//! A worker cannot know that the store still counts on it; it can only know until when it surely does. That is the
//! moment before its last renewed heartbeat was *sent*, plus the lease, less a margin for stopping ffmpeg: by this
//! process's monotonic clock, whatever wall clocks do. Past it, the attempt stops itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_wire::JobId;
use millrace_wire::job::Progress;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use crate::store::{Beat, Identity, Lease, Store, Verdict};

/// The share of a lease that is kept back for stopping: 5 s of the default 30 s.
const MARGIN_SHARE: u32 = 6;
/// How often a worker looks for cancellations between heartbeats.
const CANCELLATIONS_EVERY: Duration = Duration::from_secs(1);
/// Points of progress that are worth a heartbeat before its time: at most twenty of them in a whole attempt …
const PROGRESS_STEP: f64 = 5.0;
/// … and at least so far from the last one. A little less than the time between two looks, or a look that comes a hair
/// too early would wait for the next.
const PROGRESS_EVERY: Duration = Duration::from_millis(900);

/// Why an attempt was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A client cancelled the job.
    Cancelled,
    /// The lease ran out or went to somebody else.
    LeaseLost,
    /// The worker shuts down.
    Shutdown,
}

/// One attempt that runs here.
#[derive(Debug)]
pub struct Running {
    /// The proof of its claim.
    pub lease: Lease,
    /// For logs.
    pub job_id: JobId,
    /// Cancelled when it must stop; [`Running::stopped`] says why.
    pub stop: CancellationToken,
    state: Mutex<RunningState>,
}

#[derive(Debug)]
struct RunningState {
    progress: Progress,
    /// What the last heartbeat said, whether or not it was heard.
    told_percent: f64,
    work_seconds: f64,
    deadline: Instant,
    stopped: Option<Stop>,
    /// It is not all of its job, so the job is not as far as it is.
    part: bool,
}

impl Running {
    fn state(&self) -> std::sync::MutexGuard<'_, RunningState> {
        self.state.lock().expect("nothing panics while holding an attempt's state")
    }

    /// Tells it to stop; the first reason stays. Answers whether this is the first.
    pub fn stop(&self, why: Stop) -> bool {
        let mut state = self.state();
        let first = state.stopped.is_none();
        if first {
            state.stopped = Some(why);
            info!(job_id = %self.job_id, attempt = self.lease.epoch, ?why, "stopping an attempt");
        }
        drop(state);
        self.stop.cancel();
        first
    }

    /// Stops it because its lease is gone, and counts that once: its deadline, the heartbeat and a refused write may
    /// all say so.
    pub fn lose(&self, metrics: &Metrics) {
        if self.stop(Stop::LeaseLost) {
            metrics.leases_lost.inc();
        }
    }

    /// Why it was told to stop, if it was.
    pub fn stopped(&self) -> Option<Stop> {
        self.state().stopped
    }

    /// Notes that it is not all of its job.
    pub fn is_part(&self) {
        self.state().part = true;
    }

    /// Notes how far it is; the next heartbeat takes it along.
    pub fn progress(&self, progress: Progress) {
        self.state().progress = progress;
    }

    /// What a heartbeat says of it.
    fn beat(&self) -> Beat {
        let mut state = self.state();
        state.told_percent = state.progress.percent;
        Beat { lease: self.lease.clone(), progress: state.progress }
    }

    /// Whether it has moved so far since the last heartbeat that readers elsewhere should know.
    fn has_news(&self) -> bool {
        let state = self.state();
        state.stopped.is_none() && (state.progress.percent - state.told_percent).abs() >= PROGRESS_STEP
    }

    /// Notes what the probe found the job to cost, in reference-seconds.
    pub fn work_seconds(&self, work_seconds: f64) {
        self.state().work_seconds = work_seconds;
    }

    /// Reference-seconds still to do.
    pub fn work_left(&self) -> f64 {
        let state = self.state();
        state.work_seconds * (1.0 - state.progress.percent / 100.0).clamp(0.0, 1.0)
    }

    /// Until when this worker may act on the claim.
    pub fn deadline(&self) -> Instant {
        self.state().deadline
    }
}

/// Everything that runs here, and the loop that keeps it leased.
#[derive(Debug)]
pub struct Leases {
    lease: Duration,
    running: Mutex<HashMap<Lease, Arc<Running>>>,
}

impl Leases {
    /// `lease` is how long a claim holds without a heartbeat.
    pub fn new(lease: Duration) -> Self {
        Self { lease, running: Mutex::default() }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Lease, Arc<Running>>> {
        self.running.lock().expect("nothing panics while holding the running attempts")
    }

    /// How long a claim holds.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    fn deadline(&self, sent: Instant) -> Instant {
        sent + self.lease - self.lease / MARGIN_SHARE
    }

    /// Enters an attempt whose claim was sent at `sent`.
    pub fn enter(&self, lease: &Lease, job_id: &JobId, work_seconds: f64, sent: Instant) -> Arc<Running> {
        let state = RunningState {
            progress: Progress::default(),
            told_percent: 0.0,
            work_seconds,
            deadline: self.deadline(sent),
            stopped: None,
            part: false,
        };
        let running = Arc::new(Running {
            lease: lease.clone(),
            job_id: job_id.clone(),
            stop: CancellationToken::new(),
            state: Mutex::new(state),
        });
        self.map().insert(lease.clone(), Arc::clone(&running));
        running
    }

    /// Takes an attempt out.
    pub fn leave(&self, lease: &Lease) {
        self.map().remove(lease);
    }

    /// Everything that runs.
    pub fn all(&self) -> Vec<Arc<Running>> {
        self.map().values().cloned().collect()
    }

    /// Stops everything.
    pub fn stop_all(&self, why: Stop) {
        for running in self.all() {
            running.stop(why);
        }
    }

    /// Stops one, if it runs here.
    pub fn stop_one(&self, job_uid: &str, why: Stop) {
        for running in self.all() {
            if running.lease.job_uid == job_uid {
                running.stop(why);
            }
        }
    }

    /// How far an attempt at a whole job is, if it runs here.
    pub fn progress_of(&self, job_uid: &str, attempt: u64) -> Option<Progress> {
        let map = self.map();
        let mut running = map.values();
        let found = running
            .find(|one| one.lease.job_uid == job_uid && one.lease.epoch == attempt && !one.state().part)?;
        Some(found.state().progress)
    }

    fn stop_overdue(&self, metrics: &Metrics) {
        let now = Instant::now();
        for running in self.all() {
            if running.deadline() <= now && running.stopped().is_none() {
                warn!(job_id = %running.job_id, "no renewed lease before its deadline");
                running.lose(metrics);
            }
        }
    }

    fn earliest_deadline(&self) -> Option<Instant> {
        self.all().iter().filter(|r| r.stopped().is_none()).map(|r| r.deadline()).min()
    }

    /// How long a question to the store may take: past the next deadline its answer would come too late.
    fn patience(&self, every: Duration) -> Duration {
        let left =
            self.earliest_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(every, |left| left.min(every))
    }

    /// Renews leases until `end`. Returns `true` when another process took this worker's name: the caller must end.
    pub async fn keep(
        &self,
        store: &dyn Store,
        identity: &Identity,
        every: Duration,
        metrics: &Metrics,
        end: &CancellationToken,
    ) -> bool {
        let mut heartbeat = tokio::time::interval(every);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(CANCELLATIONS_EVERY.min(every));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sent = Instant::now();
        loop {
            let overdue = async {
                match self.earliest_deadline() {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // In this order, and with no patience past a deadline: what waits for a store that hangs must not keep an
            // attempt from stopping itself in time.
            tokio::select! {
                biased;
                () = end.cancelled() => return false,
                () = overdue => self.stop_overdue(metrics),
                _ = heartbeat.tick() => {
                    sent = Instant::now();
                    if self.beat(store, identity, self.patience(every), metrics).await {
                        return true;
                    }
                }
                // An early heartbeat is one more: it moves no later one. It brings cancellations back, too.
                _ = look.tick() => if sent.elapsed() >= PROGRESS_EVERY && self.has_news() {
                    sent = Instant::now();
                    if self.beat(store, identity, self.patience(every), metrics).await {
                        return true;
                    }
                } else {
                    self.look_for_cancellations(store, identity, self.patience(every)).await;
                },
            }
        }
    }

    fn has_news(&self) -> bool {
        self.all().iter().any(|running| running.has_news())
    }

    async fn look_for_cancellations(&self, store: &dyn Store, identity: &Identity, patience: Duration) {
        if self.map().is_empty() {
            return;
        }
        // A store that does not answer is the heartbeat's to report.
        if let Ok(Ok(leases)) = tokio::time::timeout(patience, store.cancellations(identity)).await {
            for lease in leases {
                if let Some(running) = self.map().get(&lease).cloned() {
                    running.stop(Stop::Cancelled);
                }
            }
        }
    }

    async fn beat(
        &self,
        store: &dyn Store,
        identity: &Identity,
        patience: Duration,
        metrics: &Metrics,
    ) -> bool {
        let running = self.all();
        let beats: Vec<Beat> = running.iter().map(|running| running.beat()).collect();
        let sent = Instant::now();
        let answer = tokio::time::timeout(patience, store.heartbeat(identity, &beats, self.lease)).await;
        let heartbeat = match answer {
            Ok(Ok(heartbeat)) => heartbeat,
            Ok(Err(error)) => {
                metrics.store_errors.with_label_values(&[error.kind()]).inc();
                warn!(%error, "heartbeat failed");
                self.stop_overdue(metrics);
                return false;
            }
            Err(_) => {
                metrics.store_errors.with_label_values(&["timeout"]).inc();
                warn!(patience_s = patience.as_secs_f64(), "heartbeat timed out");
                self.stop_overdue(metrics);
                return false;
            }
        };
        for (running, verdict) in running.iter().zip(heartbeat.verdicts) {
            match verdict {
                Verdict::Renewed => running.state().deadline = self.deadline(sent),
                Verdict::CancelRequested => {
                    running.state().deadline = self.deadline(sent);
                    running.stop(Stop::Cancelled);
                }
                // An attempt that just ended is no longer here, and its lease is rightly gone.
                Verdict::Lost if !self.map().contains_key(&running.lease) => {}
                Verdict::Lost => running.lose(metrics),
            }
        }
        if heartbeat.superseded {
            error!(worker = %identity.worker, "another process registered under this worker's name: give each its own");
        }
        heartbeat.superseded
    }
}

#[cfg(test)]
mod tests;
