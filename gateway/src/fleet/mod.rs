//! The fleet: what the gateway knows of every endpoint, and the [`View`] of it that routing reads.
//!
//! One lock guards all of it and is never held across an await; readers take the view, which is made anew when
//! something changed and swapped whole. Per-endpoint locks were rejected: a decision compares all workers, so it wants
//! them as of one moment. What is known of an endpoint survives a reload by its address.
//!
//! Making a view costs microseconds for ten workers and a millisecond for ten thousand, and something changes with
//! every request. So a view that only counts differently is made anew when [`REST`] times its cost has passed, which
//! bounds the cost to a twentieth of a core; who is up, ejected or configured counts at once.

pub mod discovery;
pub mod evidence;
pub mod outlier;
pub mod probe;
pub mod snapshot;
pub mod steer;
pub mod underway;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use millrace_wire::PoolId;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::config::{self, Config, Discover};
use crate::overrides::Overrides;
use crate::route::View;
use discovery::{Found, Outcome, Round, Sources};
use outlier::{Outlier, Reliability};
use snapshot::{Pool, Snapshot, Worker};

/// How long after it is first configured a pool may take to come up and still need no ramp.
pub const START_GRACE: Duration = Duration::from_secs(10);
/// After a view was made, this many times its cost pass before small changes make another one.
pub const REST: u32 = 20;
/// … and at least this long: in a small fleet a request would else cost a view each, and nobody notices such an age.
pub const REST_MIN: Duration = Duration::from_millis(1);
/// A view as old as this is made anew though nothing changed: ejections end, reports get stale.
pub const VIEW_AGE_MAX: Duration = Duration::from_millis(250);

/// Which endpoints there are to probe.
pub type Targets = Arc<BTreeMap<SocketAddr, Target>>;

/// An endpoint that is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The pool that it belongs to.
    pub pool: PoolId,
    /// What its certificate names, where it is spoken to over TLS.
    pub tls: Option<Arc<str>>,
}

/// The fleet. Cheap to share in an [`Arc`].
#[derive(Debug)]
pub struct Fleet {
    start: Instant,
    /// Also in the state; here it is read without the lock.
    config: ArcSwap<Config>,
    state: Mutex<State>,
    /// Something changed since the view was made …
    changed: AtomicBool,
    /// … which decides who is usable at all.
    urgent: AtomicBool,
    /// Until when small changes wait, in microseconds since the start.
    rest_until_us: AtomicU64,
    view: ArcSwap<View>,
    targets: watch::Sender<Targets>,
    /// An override was set or removed.
    steered: Notify,
    sources: watch::Sender<Sources>,
}

#[derive(Debug)]
struct State {
    config: Arc<Config>,
    /// What discovery found, of the pools that have a source.
    found: HashMap<PoolId, Found>,
    /// Kept up to date in place, so that a view can be made without copying ten thousand reports.
    snapshot: Snapshot,
    /// Looked up several times for each request, by addresses that no client chooses: hence a quick hash.
    endpoints: HashMap<SocketAddr, Endpoint, foldhash::fast::RandomState>,
    pools: HashMap<PoolId, Presence>,
    overrides: Overrides,
    written: steer::Written,
}

/// What routing needs not know of a worker.
#[derive(Debug, Default)]
struct Endpoint {
    /// Its pool's and its own place in the snapshot.
    place: (usize, usize),
    probe_failures: u32,
    probed: bool,
    outlier: Outlier,
}

/// Whether a pool as a whole is there.
#[derive(Debug, Clone)]
struct Presence {
    born: Duration,
    there: bool,
    back_at: Option<Duration>,
}

/// What a reload changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Diff {
    /// Endpoints that are new.
    pub added: Vec<SocketAddr>,
    /// Endpoints that are gone.
    pub removed: Vec<SocketAddr>,
}

impl Fleet {
    /// A fleet of which nothing is known yet.
    pub fn new(config: Config) -> Arc<Self> {
        let in_force = Arc::new(config.clone());
        let fleet = Self {
            start: Instant::now(),
            config: ArcSwap::new(in_force.clone()),
            state: Mutex::new(State {
                config: in_force,
                found: HashMap::new(),
                snapshot: Snapshot::default(),
                endpoints: HashMap::default(),
                pools: HashMap::new(),
                overrides: Overrides::default(),
                written: steer::Written::default(),
            }),
            changed: AtomicBool::new(true),
            urgent: AtomicBool::new(true),
            rest_until_us: AtomicU64::new(0),
            view: ArcSwap::default(),
            targets: watch::Sender::default(),
            steered: Notify::new(),
            sources: watch::Sender::default(),
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
        self.config.load_full()
    }

    /// Which endpoints to probe, now and after each reload.
    pub fn targets(&self) -> watch::Receiver<Targets> {
        self.targets.subscribe()
    }

    /// Which sources to follow, now and after each reload.
    pub fn sources(&self) -> watch::Receiver<Sources> {
        self.sources.subscribe()
    }

    /// What a pool's source has found, if it has one.
    pub fn found(&self, pool: &PoolId) -> Option<Found> {
        self.lock().found.get(pool).cloned()
    }

    /// Everything that is known, as of now: a copy for who wants to look at it. Routing takes [`Self::view`].
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let mut state = self.lock();
        state.look(self.now());
        Arc::new(state.snapshot.clone())
    }

    /// What routing chooses from.
    pub fn view(&self) -> Arc<View> {
        self.view_at(self.now())
    }

    /// The same for who knows the time.
    pub fn view_at(&self, now: Duration) -> Arc<View> {
        if self.urgent.load(Ordering::Acquire) {
            let mut state = self.lock();
            // Whoever held the lock may have made the view meanwhile.
            if self.urgent.load(Ordering::Acquire) {
                self.renew(&mut state, now);
            }
        } else if now.as_micros() as u64 >= self.rest_until_us.load(Ordering::Acquire)
            && (self.changed.load(Ordering::Acquire) || now >= self.view.load().at + VIEW_AGE_MAX)
        {
            // Whoever holds the lock may be making a view: the last one does until then.
            let state = match self.state.try_lock() {
                Ok(state) => Some(state),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            if let Some(mut state) = state
                && self.view.load().at < now
            {
                self.renew(&mut state, now);
            }
        }
        self.view.load_full()
    }

    /// Changes are made and marked under the lock that is held here, so none is lost in between. `urgent` is taken back
    /// last: until the view is there, who asks for it has to wait and must not take the one before.
    fn renew(&self, state: &mut State, now: Duration) {
        self.changed.store(false, Ordering::Release);
        state.look(now);
        self.view.store(Arc::new(View::new(&state.snapshot, now)));
        let done = self.now();
        let rest_until = done + (done.saturating_sub(now) * REST).max(REST_MIN);
        self.rest_until_us.store(rest_until.as_micros() as u64, Ordering::Release);
        self.urgent.store(false, Ordering::Release);
    }

    /// Reads what is known of one worker.
    pub fn of<T>(&self, address: SocketAddr, read: impl FnOnce(&Worker) -> T) -> Option<T> {
        let state = self.lock();
        let (pool, worker) = state.endpoints.get(&address)?.place;
        Some(read(&state.snapshot.pools[pool].workers[worker]))
    }

    /// Puts another file in force: what is known of an endpoint survives by its address. A pool with another source than
    /// before keeps its endpoints until that source has answered.
    pub fn apply(&self, config: Config) -> Diff {
        let mut diff = Diff::default();
        self.change(|state| {
            let mut found = HashMap::new();
            for pool in &config.pools {
                let Some(source) = &pool.discover else { continue };
                let known = state.found.remove(&pool.name).filter(|known| known.source == *source);
                let fresh = || Found::unasked(source.clone(), state.endpoints_of(&pool.name));
                found.insert(pool.name.clone(), known.unwrap_or_else(fresh));
            }
            let sources = found.iter().map(|(pool, found)| (pool.clone(), found.source.clone())).collect();
            state.found = found;
            state.config = Arc::new(config);
            self.config.store(state.config.clone());
            diff = self.rebuild(state);
            self.sources.send_if_modified(|known| {
                let changed = **known != sources;
                *known = Arc::new(sources);
                changed
            });
            true
        });
        diff
    }

    /// A pool's source has been asked. What comes from a source that the pool no longer has changes nothing.
    pub fn discovered(&self, pool: &PoolId, source: &Discover, round: Round) {
        let now = self.now();
        self.change(|state| {
            let Some(found) = state.found.get_mut(pool).filter(|found| found.source == *source) else {
                return false;
            };
            match (&round.error, &found.error) {
                (Some(error), known) if known.as_ref() != Some(error) => {
                    warn!(%pool, %source, error, "discovery is in trouble");
                }
                (None, Some(_)) => info!(%pool, %source, "discovery is well again"),
                _ => {}
            }
            if round.outcome == Outcome::Good {
                found.good_at = Some(now);
            }
            (found.asked, found.error) = (true, round.error);
            let Some(endpoints) = round.endpoints else { return false };
            // What could not be taken may be free by now.
            if found.endpoints == endpoints && found.refused.is_none() {
                return false;
            }
            found.endpoints = endpoints;
            let Diff { added, removed } = self.rebuild(state);
            let changed = !added.is_empty() || !removed.is_empty();
            if changed {
                info!(%pool, %source, ?added, ?removed, "discovery changed the endpoints");
            }
            true
        });
    }

    /// Brings the snapshot in line with the file and with what discovery found.
    fn rebuild(&self, state: &mut State) -> Diff {
        let now = self.now();
        let mut targets = BTreeMap::new();
        let mut diff = Diff::default();
        let config = state.config.clone();
        let holds = |pool: &PoolId, address: SocketAddr| {
            let place = state.endpoints.get(&address).map(|endpoint| endpoint.place.0);
            place.is_some_and(|place| state.snapshot.pools[place].id == *pool)
        };
        let members = discovery::members(&config, &mut state.found, holds);
        let reliability: HashMap<PoolId, Reliability> =
            state.snapshot.pools.iter().map(|pool| (pool.id.clone(), pool.reliability)).collect();
        let mut known: HashMap<SocketAddr, (PoolId, Worker, Endpoint)> = state.take();
        for (place, (pool, members)) in config.pools.iter().zip(members).enumerate() {
            let presence = Presence { born: now, there: false, back_at: None };
            state.pools.entry(pool.name.clone()).or_insert(presence);
            let mut workers = Vec::with_capacity(members.len());
            for member in members {
                let address = member.address;
                let tls = pool.tls.as_ref().map(|name| name.of(address));
                targets.insert(address, Target { pool: pool.name.clone(), tls: tls.clone() });
                let (mut worker, mut endpoint) = match known.remove(&address) {
                    Some((of, worker, endpoint)) if of == pool.name => (worker, endpoint),
                    // The same address in another pool is another worker.
                    Some(_) => (Worker::new(address), Endpoint::default()),
                    None => {
                        diff.added.push(address);
                        (Worker::new(address), Endpoint::default())
                    }
                };
                worker.drain = member.drain;
                worker.tls = tls;
                endpoint.place = (place, workers.len());
                workers.push(worker);
                state.endpoints.insert(address, endpoint);
            }
            state.snapshot.pools.push(Pool {
                id: pool.name.clone(),
                weight: pool.weight,
                egress_usd_per_gb: pool.egress_usd_per_gb,
                drain: pool.drain,
                back_at: None,
                reliability: reliability.get(&pool.name).copied().unwrap_or_default(),
                workers,
            });
        }
        diff.removed = known.into_keys().collect();
        diff.removed.sort_unstable();
        state.pools.retain(|known, _| config.pools.iter().any(|pool| pool.name == *known));
        state.snapshot.wait_usd_per_second = config.routing.wait_usd_per_hour / 3600.0;
        state.settle_overrides();
        // Under the lock, so that what is probed is never what an earlier change wanted.
        self.targets.send_replace(Arc::new(targets));
        diff
    }

    /// Whether every source has been asked and every endpoint has been probed once.
    pub fn first_round_done(&self) -> bool {
        let state = self.lock();
        state.found.values().all(|found| found.asked)
            && state.endpoints.values().all(|endpoint| endpoint.probed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock leaves it half changed, so a panic elsewhere under it is no reason to stop.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something; the closure answers whether it decides who is usable at all.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        let mut state = self.lock();
        let urgent = change(&mut state);
        self.changed.store(true, Ordering::Release);
        if urgent {
            self.urgent.store(true, Ordering::Release);
        }
    }

    fn endpoint(
        &self,
        address: SocketAddr,
        change: impl FnOnce(&mut Endpoint, &mut Worker, &PoolId) -> bool,
    ) {
        self.change(|state| {
            let Some(endpoint) = state.endpoints.get_mut(&address) else { return false };
            let Pool { id, workers, .. } = &mut state.snapshot.pools[endpoint.place.0];
            let worker = endpoint.place.1;
            change(endpoint, &mut workers[worker], id)
        });
    }
}

impl State {
    /// Takes out everything that is known, with the pool it is known of.
    fn take(&mut self) -> HashMap<SocketAddr, (PoolId, Worker, Endpoint)> {
        let pools = std::mem::take(&mut self.snapshot.pools);
        let endpoints = &mut self.endpoints;
        let known = pools.into_iter().flat_map(|pool| {
            let id = pool.id;
            pool.workers.into_iter().map(move |worker| (id.clone(), worker))
        });
        let known = known.filter_map(|(id, worker)| {
            let endpoint = endpoints.remove(&worker.address)?;
            Some((worker.address, (id, worker, endpoint)))
        });
        known.collect()
    }

    /// The endpoints that a pool has now.
    fn endpoints_of(&self, pool: &PoolId) -> Vec<config::Endpoint> {
        let workers = self.snapshot.pool(pool).map_or(&[][..], |pool| &pool.workers);
        workers
            .iter()
            .map(|Worker { address, drain, .. }| config::Endpoint { address: *address, drain: *drain })
            .collect()
    }

    /// Sees which pools are there as a whole.
    fn look(&mut self, now: Duration) {
        for pool in &mut self.snapshot.pools {
            let there = pool.workers.iter().any(|worker| worker.answers(now));
            pool.back_at = self.pools.get_mut(&pool.id).and_then(|presence| presence.update(there, now));
        }
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

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
