//! Claims work while there is a free slot: at once when nudged, else about every second.
//!
//! Level-triggered: a nudge carries no job, it only says "look now". Waiting work belongs to the pool, so a worker
//! that accepted a job is merely the first to hear of it.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::lease::{Leases, Stop};
use crate::load::Load;
use crate::metrics::Metrics;
use crate::run::Runner;
use crate::store::{Identity, Part, Store};

/// How often an idle worker looks without being nudged, before jitter.
const POLL: Duration = Duration::from_secs(1);
/// How long it waits after the store failed, or while it lacks what every job needs.
const BACK_OFF: Duration = Duration::from_secs(2);

/// How often a worker whose slots are all taken looks whether its bucket is there.
const LOOK: Duration = Duration::from_secs(15);

/// The claim loop and what it needs.
pub struct Queue {
    /// Who claims.
    pub identity: Identity,
    /// Jobs at once.
    pub slots: u32,
    /// From where.
    pub store: Arc<dyn Store>,
    /// What is held.
    pub leases: Arc<Leases>,
    /// Runs an attempt.
    pub runner: Arc<Runner>,
    /// Told when the backlog changed.
    pub load: Arc<Load>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// "Look now."
    pub nudge: Arc<Notify>,
}

impl Queue {
    /// Claims and runs until `drain`, then waits for what runs until `grace` has passed or `immediate`; what runs
    /// then is stopped and its lease released.
    pub async fn run(self, drain: CancellationToken, immediate: CancellationToken, grace: Duration) {
        let slots = Arc::new(Semaphore::new(self.slots as usize));
        let mut attempts = JoinSet::new();
        let mut left_to = String::new();
        loop {
            while let Some(ended) = attempts.try_join_next() {
                report_panic(ended);
            }
            // In this order: with a free slot both are ready, and a worker that drains must not toss a coin.
            let look = if self.runner.fitness.lacks().is_some() { BACK_OFF } else { LOOK };
            let permit = tokio::select! {
                biased;
                () = drain.cancelled() => break,
                permit = Arc::clone(&slots).acquire_owned() =>
                    Some(permit.expect("the semaphore is never closed")),
                () = tokio::time::sleep(jittered(look)) => None,
            };
            let fit = async {
                if permit.is_none() {
                    self.runner.fitness.look().await;
                }
                self.runner.fitness.may_claim(&self.metrics).await
            };
            let fit = tokio::select! {
                biased;
                () = drain.cancelled() => break,
                fit = fit => fit,
            };
            self.load.fit(fit);
            if !fit {
                drop(permit);
                let leave = async {
                    self.runner.leave_with(&self.identity, &mut left_to).await;
                    tokio::time::sleep(jittered(BACK_OFF)).await;
                };
                tokio::select! {
                    () = drain.cancelled() => break,
                    () = leave => {}
                }
                continue;
            }
            let Some(permit) = permit else { continue };
            let sent = Instant::now();
            let pause = match self.store.claim(&self.identity, self.leases.lease()).await {
                Ok(Some(claim)) => {
                    self.load.claimed(&claim);
                    self.metrics.wait_seconds.observe(claim.waited.as_secs_f64());
                    if let Some(from) = &claim.stolen_from {
                        let labels = [from.as_str(), self.identity.pool.as_str()];
                        self.metrics.stolen.with_label_values(&labels).inc();
                    }
                    let running = self.leases.enter(&claim.lease, &claim.job_id, claim.work_seconds, sent);
                    if claim.part != Part::Whole {
                        running.is_part();
                    }
                    let (runner, load, nudge) =
                        (Arc::clone(&self.runner), Arc::clone(&self.load), Arc::clone(&self.nudge));
                    attempts.spawn(async move {
                        runner.run(claim, running).await;
                        load.stale();
                        drop(permit);
                        nudge.notify_one();
                    });
                    continue;
                }
                Ok(None) => {
                    self.runner.sources.tidy();
                    POLL
                }
                Err(error) => {
                    self.metrics.store_errors.with_label_values(&[error.kind()]).inc();
                    warn!(%error, "claim failed");
                    BACK_OFF
                }
            };
            drop(permit);
            tokio::select! {
                () = drain.cancelled() => break,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(jittered(pause)) => {}
            }
        }
        let finish = async { while attempts.join_next().await.map(report_panic).is_some() {} };
        let cut_off = tokio::select! {
            () = finish => false,
            () = tokio::time::sleep(grace) => true,
            () = immediate.cancelled() => true,
        };
        if cut_off {
            self.leases.stop_all(Stop::Shutdown);
            while attempts.join_next().await.map(report_panic).is_some() {}
        }
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.75..1.25))
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        // The lease is not renewed by anybody any more: the store gives the job to another attempt.
        error!(%error, "an attempt's task died");
    }
}
