//! The worker's account of its load: what it holds, what waits in its pool, how fast it is.
//!
//! What runs is known here at once; what waits is the store's to say and is cached for a second, so that a submit
//! does not cost a count. Between two reads the cache is moved along by what this worker itself accepts and claims.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_wire::LoadReport;
use tokio::time::Instant;
use tracing::debug;

use crate::cost::CostModel;
use crate::lease::Leases;
use crate::store::{Backlog, Claim, Identity, Room, Store};

/// How old the pool's backlog may be in a report.
const BACKLOG_AGE_MAX: Duration = Duration::from_secs(1);
/// How long a report waits for the store before it goes out with the last known backlog.
const BACKLOG_PATIENCE: Duration = Duration::from_millis(250);

/// Makes [`LoadReport`]s.
pub struct Load {
    identity: Identity,
    room: Room,
    store: Arc<dyn Store>,
    leases: Arc<Leases>,
    cost: Arc<CostModel>,
    draining: AtomicBool,
    unfit: AtomicBool,
    sequence: AtomicU64,
    backlog: Mutex<(Backlog, Option<Instant>)>,
}

impl Load {
    /// A worker that has accepted nothing yet.
    pub fn new(
        identity: Identity,
        room: Room,
        store: Arc<dyn Store>,
        leases: Arc<Leases>,
        cost: Arc<CostModel>,
    ) -> Self {
        Self {
            identity,
            room,
            store,
            leases,
            cost,
            draining: AtomicBool::new(false),
            unfit: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            backlog: Mutex::default(),
        }
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, (Backlog, Option<Instant>)> {
        self.backlog.lock().expect("nothing panics while holding the backlog")
    }

    /// From now on this worker says that it takes no new jobs.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether this worker can do jobs at all: while it cannot it says that it takes none, too.
    pub fn fit(&self, fit: bool) {
        self.unfit.store(!fit, Ordering::Relaxed);
    }

    /// Whether it is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Counts a job that was accepted just now, until the store is read again.
    pub fn accepted(&self, work_seconds: f64) {
        let (backlog, _) = &mut *self.cached();
        backlog.accepted_here += 1;
        backlog.accepted_here_work += work_seconds;
        backlog.pool += 1;
        backlog.pool_work += work_seconds;
    }

    /// Counts out a job that was claimed here just now, until the store is read again.
    pub fn claimed(&self, claim: &Claim) {
        if claim.stolen_from.is_some() {
            return;
        }
        let (backlog, _) = &mut *self.cached();
        backlog.pool = backlog.pool.saturating_sub(1);
        backlog.pool_work = (backlog.pool_work - claim.work_seconds).max(0.0);
        if claim.accepted_by == self.identity.worker.as_str() {
            backlog.accepted_here = backlog.accepted_here.saturating_sub(1);
            backlog.accepted_here_work = (backlog.accepted_here_work - claim.work_seconds).max(0.0);
        }
    }

    /// The backlog changed in a way this cache does not know: read it again next time.
    pub fn stale(&self) {
        self.cached().1 = None;
    }

    /// The report, with a backlog at most a second old where the store answers at all.
    pub async fn fresh(&self) -> LoadReport {
        let due = self.cached().1.is_none_or(|read| read.elapsed() >= BACKLOG_AGE_MAX);
        if due {
            match tokio::time::timeout(BACKLOG_PATIENCE, self.store.backlog(&self.identity)).await {
                Ok(Ok(backlog)) => *self.cached() = (backlog, Some(Instant::now())),
                Ok(Err(error)) => debug!(%error, "no fresh backlog for the load report"),
                Err(_) => debug!("no fresh backlog for the load report: the store is slow"),
            }
        }
        self.report()
    }

    /// The report from what is known now.
    pub fn report(&self) -> LoadReport {
        let running = self.leases.all();
        let (backlog, _) = *self.cached();
        let work_running: f64 = running.iter().map(|r| r.work_left()).sum();
        LoadReport {
            worker: self.identity.worker.clone(),
            pool: self.identity.pool.clone(),
            store_id: self.store.id().to_owned(),
            slots: self.room.slots,
            running: u32::try_from(running.len()).unwrap_or(u32::MAX),
            queued: backlog.accepted_here,
            queue_max: self.room.queue_max,
            work_seconds: work_running + backlog.accepted_here_work,
            speed: self.cost.speed(),
            pool_queued: backlog.pool,
            pool_work_seconds: backlog.pool_work,
            draining: self.is_draining() || self.unfit.load(Ordering::Relaxed),
            incarnation: self.identity.incarnation,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// Seconds until a slot is free, for `Retry-After`; at least 1, at most 300.
    pub fn wait_seconds(&self) -> u64 {
        let report = self.report();
        (report.work_seconds / (f64::from(report.slots) * report.speed)).ceil().clamp(1.0, 300.0) as u64
    }
}
