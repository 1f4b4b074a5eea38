//! The fleet: what the gateway knows of every endpoint, and the [`Snapshot`] of it that routing reads.
//!
//! One lock guards all of it and is held for microseconds, never across an await; readers take the snapshot, which
//! is rebuilt when something changed and swapped whole. Per-endpoint locks were rejected: a decision compares all
//! workers, so it wants them as of one moment. What is known of an endpoint survives a reload by its address.

pub mod outlier;
pub mod probe;
pub mod snapshot;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use millrace_wire::{LoadReport, PoolId, load};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::Config;
use outlier::Outlier;
use snapshot::{Compensation, Health, Pool, Report, Snapshot, Worker};

/// Failed probes in a row after which a worker counts as down. A probe that times out is none: a worker whose
/// encoders starve it is busy, not dead, and the age of its report prices that.
pub const PROBE_FAILURES_MAX: u32 = 2;
/// How long a submit that timed out still counts as work of the worker it was sent to.
pub const TIMED_OUT_COUNTS: Duration = Duration::from_secs(3);
/// How long after it is first configured a pool may take to come up and still need no ramp.
pub const START_GRACE: Duration = Duration::from_secs(10);
/// Time constant of the read latency's decay.
const LATENCY_DECAY_S: f64 = 10.0;
/// What a failed read counts as, so that fast failures don't attract work.
pub const FAILURE_LATENCY_S: f64 = 5.0;

/// Which endpoints there are to probe, and the pool each belongs to.
pub type Targets = Arc<BTreeMap<SocketAddr, PoolId>>;

/// The fleet. Cheap to share in an [`Arc`].
#[derive(Debug)]
pub struct Fleet {
    start: Instant,
    state: Mutex<State>,
    dirty: AtomicBool,
    published: ArcSwap<Snapshot>,
    targets: watch::Sender<Targets>,
}

#[derive(Debug)]
struct State {
    config: Arc<Config>,
    endpoints: HashMap<SocketAddr, Endpoint>,
    pools: HashMap<PoolId, Presence>,
}

#[derive(Debug)]
struct Endpoint {
    pool: PoolId,
    health: Health,
    report: Option<Report>,
    probe_failures: u32,
    probed: bool,
    compensation: Compensation,
    outlier: Outlier,
    round_trip: Option<Duration>,
    read_latency_s: f64,
    read_at: Duration,
    reads: u32,
}

/// Whether a pool as a whole is there.
#[derive(Debug, Clone)]
struct Presence {
    born: Duration,
    there: bool,
    back_at: Option<Duration>,
}

/// How a request to a worker ended, as far as its health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered; also with 429.
    Answered,
    /// It did not, or with a server error.
    Failed,
}

/// What a reload changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Diff {
    /// Endpoints that are new.
    pub added: Vec<SocketAddr>,
    /// Endpoints that are gone.
    pub removed: Vec<SocketAddr>,
}

impl Endpoint {
    fn new(pool: PoolId) -> Self {
        Self {
            pool,
            health: Health::Unknown,
            report: None,
            probe_failures: 0,
            probed: false,
            compensation: Compensation::default(),
            outlier: Outlier::default(),
            round_trip: None,
            read_latency_s: 0.0,
            read_at: Duration::ZERO,
            reads: 0,
        }
    }

    fn down(&mut self, address: SocketAddr, reason: String) {
        if self.health != (Health::Down { reason: reason.clone() }) {
            warn!(%address, pool = %self.pool, reason, "worker is down");
            self.health = Health::Down { reason };
        }
    }

    /// Takes a report in, unless a later one is there already.
    fn learn(&mut self, load: LoadReport, now: Duration) {
        // Incarnations are counted by a store: another store's begin anew, and say nothing about which is later.
        let outdated = |known: &Report| {
            !load.supersedes(&known.load)
                && known.load.worker == load.worker
                && known.load.store_id == load.store_id
        };
        match &mut self.report {
            // The same report again says that the worker still stands by it.
            Some(known) if known.load == load => known.at = now,
            Some(known) if outdated(known) => {}
            report => *report = Some(Report { at: now, load }),
        }
    }

    fn latency(&mut self, seconds: f64, now: Duration) {
        let elapsed = now.saturating_sub(self.read_at).as_secs_f64();
        let decay = (-elapsed / LATENCY_DECAY_S).exp();
        self.read_at = now;
        self.read_latency_s = if seconds > self.read_latency_s {
            seconds
        } else {
            self.read_latency_s * decay + seconds * (1.0 - decay)
        };
    }
}

impl Fleet {
    /// A fleet of which nothing is known yet.
    pub fn new(config: Config) -> Arc<Self> {
        let fleet = Self {
            start: Instant::now(),
            state: Mutex::new(State {
                config: Arc::new(config.clone()),
                endpoints: HashMap::new(),
                pools: HashMap::new(),
            }),
            dirty: AtomicBool::new(true),
            published: ArcSwap::default(),
            targets: watch::Sender::default(),
        };
        fleet.apply(config);
        Arc::new(fleet)
    }

    /// Time since the start: the clock of everything in the snapshot.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The file in force.
    pub fn config(&self) -> Arc<Config> {
        self.lock().config.clone()
    }

    /// Which endpoints to probe, now and after each reload.
    pub fn targets(&self) -> watch::Receiver<Targets> {
        self.targets.subscribe()
    }

    /// The latest view.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        if self.dirty.load(Ordering::Acquire) {
            let mut state = self.lock();
            if self.dirty.swap(false, Ordering::AcqRel) {
                self.published.store(Arc::new(state.build(self.now())));
            }
        }
        self.published.load_full()
    }

    /// Puts another file in force: what is known of an endpoint survives by its address.
    pub fn apply(&self, config: Config) -> Diff {
        let now = self.now();
        let mut targets = BTreeMap::new();
        let mut diff = Diff::default();
        self.change(|state| {
            for pool in &config.pools {
                let presence = Presence { born: now, there: false, back_at: None };
                state.pools.entry(pool.name.clone()).or_insert(presence);
                for endpoint in &pool.endpoints {
                    targets.insert(endpoint.address, pool.name.clone());
                    match state.endpoints.get(&endpoint.address) {
                        Some(known) if known.pool == pool.name => continue,
                        Some(_) => {}
                        None => diff.added.push(endpoint.address),
                    }
                    state.endpoints.insert(endpoint.address, Endpoint::new(pool.name.clone()));
                }
            }
            diff.removed =
                state.endpoints.keys().filter(|known| !targets.contains_key(known)).copied().collect();
            diff.removed.sort_unstable();
            state.endpoints.retain(|known, _| targets.contains_key(known));
            state.pools.retain(|known, _| config.pools.iter().any(|pool| pool.name == *known));
            state.config = Arc::new(config);
        });
        self.targets.send_replace(Arc::new(targets));
        diff
    }

    /// A probe was answered with a report, after `round_trip`.
    pub fn probed(&self, address: SocketAddr, load: LoadReport, round_trip: Duration) {
        let now = self.now();
        self.endpoint(address, |endpoint| {
            endpoint.probed = true;
            endpoint.probe_failures = 0;
            let smoothed = endpoint.round_trip.map_or(round_trip, |known| (known * 7 + round_trip) / 8);
            endpoint.round_trip = Some(smoothed);
            if load.pool != endpoint.pool {
                let reason =
                    format!("it reports pool {}, but is configured in pool {}", load.pool, endpoint.pool);
                endpoint.down(address, reason);
                return;
            }
            if endpoint.health != Health::Up {
                info!(%address, pool = %endpoint.pool, worker = %load.worker, "worker is up");
                endpoint.health = Health::Up;
            }
            endpoint.learn(load, now);
        });
    }

    /// A probe failed.
    pub fn probe_failed(&self, address: SocketAddr, failure: &probe::Failure) {
        self.endpoint(address, |endpoint| {
            endpoint.probed = true;
            if failure.is_timeout() && endpoint.report.is_some() {
                return;
            }
            endpoint.probe_failures = endpoint.probe_failures.saturating_add(1);
            if endpoint.probe_failures >= PROBE_FAILURES_MAX || endpoint.health == Health::Unknown {
                endpoint.down(address, failure.to_string());
            }
        });
    }

    /// A worker's response carried a report.
    ///
    /// # Errors
    /// The report is not believable; nothing changed.
    pub fn heard(&self, address: SocketAddr, orca: &str, store_id: &str) -> Result<(), load::Error> {
        let now = self.now();
        let mut result = Ok(());
        self.endpoint(address, |endpoint| {
            // The text form carries no names: until a probe has told them, there is nothing to believe it for.
            let Some(known) = &endpoint.report else { return };
            match LoadReport::from_orca(orca, &known.load.worker, &endpoint.pool, store_id) {
                Ok(load) => endpoint.learn(load, now),
                Err(error) => result = Err(error),
            }
        });
        result
    }

    /// A submit of that much work goes to a worker; it counts there until the answer.
    pub fn submitting(self: &Arc<Self>, address: SocketAddr, work_s: f64) -> Submitting {
        self.endpoint(address, |endpoint| {
            endpoint.compensation.jobs = endpoint.compensation.jobs.saturating_add(1);
            endpoint.compensation.work_s += work_s;
        });
        Submitting { fleet: self.clone(), address, work_s, timed_out: false }
    }

    /// A read goes to a worker.
    pub fn reading(self: &Arc<Self>, address: SocketAddr) -> Reading {
        self.endpoint(address, |endpoint| endpoint.reads = endpoint.reads.saturating_add(1));
        Reading { fleet: self.clone(), address }
    }

    /// How a request ended. Answers whether the worker is ejected for it.
    pub fn judge(&self, address: SocketAddr, verdict: Verdict, read_latency: Option<Duration>) -> bool {
        let now = self.now();
        let mut ejected = false;
        self.change(|state| {
            let Some(pool) = state.endpoints.get(&address).map(|endpoint| endpoint.pool.clone()) else {
                return;
            };
            let peers = || state.endpoints.values().filter(|peer| peer.pool == pool);
            let gone = peers().filter(|peer| peer.outlier.ejected(now)).count();
            let spare = (gone + 1) * 2 <= peers().count();
            let Some(endpoint) = state.endpoints.get_mut(&address) else { return };
            match verdict {
                Verdict::Answered => {
                    endpoint.outlier.answered(now);
                    if let Some(latency) = read_latency {
                        endpoint.latency(latency.as_secs_f64(), now);
                    }
                }
                Verdict::Failed => {
                    endpoint.latency(FAILURE_LATENCY_S, now);
                    ejected = endpoint.outlier.failed(now, spare);
                    if ejected {
                        warn!(%address, %pool, "worker ejected: its answers keep failing");
                    }
                }
            }
        });
        ejected
    }

    /// Whether every endpoint has been probed once.
    pub fn first_round_done(&self) -> bool {
        self.lock().endpoints.values().all(|endpoint| endpoint.probed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock leaves it half changed, so a panic elsewhere under it is no reason to stop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.dirty.store(true, Ordering::Release);
    }

    fn endpoint(&self, address: SocketAddr, change: impl FnOnce(&mut Endpoint)) {
        self.change(|state| {
            if let Some(endpoint) = state.endpoints.get_mut(&address) {
                change(endpoint);
            }
        });
    }
}

impl State {
    fn build(&mut self, now: Duration) -> Snapshot {
        let config = self.config.clone();
        let pools = config.pools.iter().map(|pool| {
            let workers: Vec<Worker> = pool
                .endpoints
                .iter()
                .filter_map(|listed| {
                    let known = self.endpoints.get_mut(&listed.address)?;
                    known.compensation.timed_out.retain(|(until, _)| *until > now);
                    Some(Worker {
                        address: listed.address,
                        drain: listed.drain,
                        health: known.health.clone(),
                        report: known.report.clone(),
                        compensation: known.compensation.clone(),
                        ejected_until: known.outlier.ejected_until(),
                        on_trial: known.outlier.on_trial(),
                        failing_until: known.outlier.failing_until(),
                        round_trip: known.round_trip.unwrap_or_default(),
                        read_latency_s: known.read_latency_s,
                        reads: known.reads,
                    })
                })
                .collect();
            let there = workers.iter().any(|worker| worker.answers(now));
            let back_at = self.pools.get_mut(&pool.name).and_then(|presence| presence.update(there, now));
            Pool {
                id: pool.name.clone(),
                weight: pool.weight,
                egress_usd_per_gb: pool.egress_usd_per_gb,
                drain: pool.drain,
                back_at,
                workers,
            }
        });
        let pools = pools.collect();
        Snapshot { wait_usd_per_second: config.routing.wait_usd_per_hour / 3600.0, pools }
    }
}

impl Presence {
    fn update(&mut self, there: bool, now: Duration) -> Option<Duration> {
        if there && !self.there && now.saturating_sub(self.born) > START_GRACE {
            self.back_at = Some(now);
        }
        self.there = there;
        self.back_at
    }
}

/// A submit on its way: counts as work of its worker until it is dropped.
#[derive(Debug)]
pub struct Submitting {
    fleet: Arc<Fleet>,
    address: SocketAddr,
    work_s: f64,
    timed_out: bool,
}

impl Submitting {
    /// Nobody answered: the worker may or may not have it, so it counts a while longer.
    pub fn timed_out(mut self) {
        self.timed_out = true;
    }
}

impl Drop for Submitting {
    fn drop(&mut self) {
        let until = self.fleet.now() + TIMED_OUT_COUNTS;
        self.fleet.endpoint(self.address, |endpoint| {
            let compensation = &mut endpoint.compensation;
            compensation.jobs = compensation.jobs.saturating_sub(1);
            // Sums of floats drift; with nothing outstanding there is nothing left by definition.
            compensation.work_s =
                if compensation.jobs == 0 { 0.0 } else { (compensation.work_s - self.work_s).max(0.0) };
            if self.timed_out {
                compensation.timed_out.push((until, self.work_s));
            }
        });
    }
}

/// A read on its way: counts at its worker until it is dropped.
#[derive(Debug)]
pub struct Reading {
    fleet: Arc<Fleet>,
    address: SocketAddr,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.fleet.endpoint(self.address, |endpoint| endpoint.reads = endpoint.reads.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
