//! The view: what routing needs of a snapshot, worked out once and used by many decisions.
//!
//! Most of a decision does not depend on the job: who is usable, waits, capacities, who has room. With 10,000 workers
//! that is a millisecond of work; what is left per job is a handful of pools and a sample of eight workers. Choosing
//! and explaining both read this view, so that a record cannot tell another story than the choice. A retry, which must
//! not go where it has been, narrows a copy of the view: retries are few by their budget.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_wire::{PoolId, WorkerId};
use rand::Rng;

use super::explain::{self, PoolRejection, Reason, Rejection, Why};
use super::{Exclude, Job, RETRY_AFTER_JITTER, pool, read, retry_after_s, worker};
use crate::fleet::snapshot::{self, Snapshot};

/// What routing needs of a snapshot, as of one moment.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// As of when.
    pub at: Duration,
    pub(super) wait_usd_per_second: f64,
    pub(super) pools: Vec<Pool>,
    pub(super) reads: read::Candidates,
}

/// One pool of a [`View`].
#[derive(Debug, Clone)]
pub struct Pool {
    /// Its name.
    pub id: PoolId,
    /// The pool as a whole.
    pub standing: pool::Standing,
    pub(super) preference: pool::Preference,
    pub(super) egress_usd_per_gb: f64,
    pub(super) seats: worker::Seats,
    /// In the snapshot's order.
    pub(super) workers: Vec<Place>,
}

/// One worker of a [`View`].
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) address: SocketAddr,
    pub(super) store: u64,
    pub(super) standing: Result<worker::Standing, Rejection>,
}

/// Where a job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The pool's place in the view and in its snapshot.
    pub pool: usize,
    /// The worker's place in its pool.
    pub worker: usize,
    /// The worker's address.
    pub address: SocketAddr,
    /// Why this pool.
    pub reason: Reason,
}

/// Why a job goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// In one word.
    pub why: Why,
    /// Seconds after which another try makes sense, when everything is saturated.
    pub retry_after_s: Option<u64>,
}

impl View {
    /// Works out a snapshot as of `now`.
    pub fn new(snapshot: &Snapshot, now: Duration) -> Self {
        Self {
            at: now,
            wait_usd_per_second: snapshot.wait_usd_per_second,
            pools: snapshot.pools.iter().map(|pool| Pool::new(pool, now)).collect(),
            reads: read::Candidates::new(snapshot, now),
        }
    }

    /// The name of the pool in that place.
    pub fn pool(&self, place: usize) -> &PoolId {
        &self.pools[place].id
    }

    /// How many workers there are, in all pools.
    pub fn worker_count(&self) -> usize {
        self.pools.iter().map(|pool| pool.workers.len()).sum()
    }

    /// Whether there is a pool of that name.
    pub fn has_pool(&self, id: &PoolId) -> bool {
        self.pools.iter().any(|pool| pool.id == *id)
    }

    /// What a gigabyte that leaves the pool of that name costs, in US dollars.
    pub fn egress_usd_per_gb(&self, name: &str) -> Option<f64> {
        self.pools.iter().find(|pool| pool.id.as_str() == name).map(|pool| pool.egress_usd_per_gb)
    }

    /// Chooses a pool and a worker for a job.
    ///
    /// # Errors
    /// Why there is none.
    pub fn submit(&self, job: &Job, exclude: &Exclude, rng: &mut impl Rng) -> Result<Choice, Refused> {
        if exclude.is_empty() {
            return self.choose(job, false, rng);
        }
        self.without(exclude).choose(job, !exclude.tried.is_empty(), rng)
    }

    /// Chooses among all that is left in this view; `retry` is only the reason that is given.
    pub(super) fn choose(&self, job: &Job, retry: bool, rng: &mut impl Rng) -> Result<Choice, Refused> {
        let from = self.input_pool(job);
        // One pass and no allocation: each pool replaces the one held so far by its share of all weight seen. Weights
        // are relative to the least F seen, and rescaled when a lesser one comes.
        let (mut held, mut open, mut total, mut least) = (None, 0_usize, 0.0, f64::INFINITY);
        for place in 0..self.pools.len() {
            let Some(f_s) = self.open_f_s(place, job, from) else { continue };
            if f_s < least {
                total *= pool::decay(least - f_s);
                least = f_s;
            }
            let weight = self.pools[place].standing.weight(f_s, least);
            open += 1;
            total += weight;
            let takes = match () {
                () if open == 1 => true,
                // Weights too small to add up to anything count as equal.
                () if !f64::is_normal(total) => rng.random_range(0..open) == 0,
                () => rng.random::<f64>() * total < weight,
            };
            if takes {
                held = Some((place, f_s));
            }
        }
        let Some((place, f_s)) = held else { return Err(self.refused(job, rng)) };
        let pool = &self.pools[place];
        let worker = pool.seats.choose(job.priority, job.work_s, self.egress_s(from, place, job), rng);
        // Open pools have a worker with room.
        let Some(worker) = worker else { return Err(self.refused(job, rng)) };
        let reason = match () {
            () if retry => Reason::Retry,
            () if open == 1 => Reason::Only,
            () if f_s <= least => Reason::Least,
            () => Reason::Spread,
        };
        Ok(Choice { pool: place, worker, address: pool.workers[worker].address, reason })
    }

    /// The F of a pool that may take the job.
    fn open_f_s(&self, place: usize, job: &Job, from: Option<usize>) -> Option<f64> {
        let pool = &self.pools[place];
        let open = pool.standing.rejected.is_none() && pool.seats.open(job.priority) > 0;
        open.then(|| pool.standing.f_s(job, self.egress_s(from, place, job)))
    }

    fn input_pool(&self, job: &Job) -> Option<usize> {
        let from = job.input_pool.as_ref()?;
        self.pools.iter().position(|pool| pool.id == *from)
    }

    /// What moving the input to a pool costs, as seconds of waiting that the money would buy.
    fn egress_s(&self, from: Option<usize>, to: usize, job: &Job) -> f64 {
        let price = from.filter(|from| *from != to).map_or(0.0, |from| self.pools[from].egress_usd_per_gb);
        pool::egress_s(price, job.input_gb, self.wait_usd_per_second)
    }

    /// What a job that goes to `pool` must have waited there before another pool may take it, in seconds.
    ///
    /// It is by how much the other pool is worse for it once waiting is left out: moving the input (design: egress
    /// seconds) and a slower encoder. 0 where the other pool is as good. A pool that takes no jobs steals none.
    pub fn steal_prices(&self, job: &Job, pool: usize) -> Vec<(PoolId, f64)> {
        let from = self.input_pool(job);
        let cost = |place: usize| {
            let speed = self.pools[place].standing.speed;
            self.egress_s(from, place, job) + if speed > 0.0 { job.work_s / speed } else { pool::SECONDS_MAX }
        };
        let here = cost(pool);
        let others = (0..self.pools.len())
            .filter(|place| *place != pool && self.pools[*place].standing.rejected.is_none());
        others
            .map(|place| {
                let price = (cost(place) - here).clamp(0.0, pool::SECONDS_MAX);
                (self.pools[place].id.clone(), price)
            })
            .collect()
    }

    fn refused(&self, job: &Job, rng: &mut impl Rng) -> Refused {
        let why = self.why();
        let retry_after_s = (why == Why::Saturated).then(|| {
            let jitter = rng.random_range(1.0 - RETRY_AFTER_JITTER..=1.0 + RETRY_AFTER_JITTER);
            retry_after_s(self.least_wait_s(job), jitter)
        });
        Refused { why, retry_after_s }
    }

    fn why(&self) -> Why {
        let any = |rejection: Rejection| {
            self.pools.iter().flat_map(|pool| &pool.workers).any(|place| place.standing == Err(rejection))
        };
        if self.pools.iter().any(|pool| pool.standing.rejected.is_none()) {
            Why::Saturated
        } else if any(Rejection::Tried) || any(Rejection::OtherStore) {
            Why::Exhausted
        } else if any(Rejection::Draining) || any(Rejection::Drained) || any(Rejection::PoolDraining) {
            Why::Draining
        } else {
            Why::Unhealthy
        }
    }

    /// The least wait among the saturated.
    fn least_wait_s(&self, job: &Job) -> f64 {
        let full = self.pools.iter().filter(|pool| pool.standing.rejected.is_none());
        let workers = full.flat_map(|pool| &pool.workers).filter_map(|place| place.standing.as_ref().ok());
        let waits = workers.filter(|standing| !standing.room.takes(job.priority)).map(|s| s.wait_s);
        waits.min_by(f64::total_cmp).unwrap_or(1.0)
    }

    /// The view without those to whom a request must not go again.
    pub fn without(&self, exclude: &Exclude) -> Self {
        if exclude.is_empty() {
            return self.clone();
        }
        let store = exclude.store.as_deref().map(store_hash);
        let narrowed = |pool: &Pool| {
            let mut pool = pool.clone();
            let lied = pool.workers.iter().any(|place| exclude.disbelieved.contains(&place.address));
            for place in pool.workers.iter_mut().filter(|place| place.standing.is_ok()) {
                if exclude.tried.contains(&place.address) {
                    place.standing = Err(Rejection::Tried);
                } else if store.is_some_and(|store| store != place.store) {
                    place.standing = Err(Rejection::OtherStore);
                } else if lied {
                    place.standing = place.standing.map(worker::Standing::failing);
                }
            }
            pool.settle(self.at);
            // Where this job has failed it will rather fail again.
            let tried = pool.workers.iter().filter(|place| exclude.tried.contains(&place.address)).count();
            if tried > 0 && pool.standing.capacity > 0.0 {
                let failing_s = pool.standing.failing_s + pool::UNRELIABLE_S * tried as f64;
                pool.standing.failing_s = failing_s.min(pool::FAILING_S_MAX);
            }
            pool
        };
        Self { pools: self.pools.iter().map(narrowed).collect(), reads: read::Candidates::default(), ..*self }
    }

    /// The record of every pool and worker for a job. `snapshot` is the one that this view was made of.
    pub fn record(&self, snapshot: &Snapshot, job: &Job) -> Vec<explain::Pool> {
        self.recall(job, |pool, worker, _| snapshot.pools.get(pool)?.workers.get(worker)?.id().cloned())
    }

    /// The same without the snapshot. A view knows no worker's own name: `name` gets the places of pool and worker and
    /// the worker's address.
    pub fn recall(
        &self,
        job: &Job,
        name: impl Fn(usize, usize, SocketAddr) -> Option<WorkerId>,
    ) -> Vec<explain::Pool> {
        let from = self.input_pool(job);
        let least = (0..self.pools.len())
            .filter_map(|place| self.open_f_s(place, job, from))
            .min_by(f64::total_cmp)
            .unwrap_or(0.0);
        let record = |(place, pool): (usize, &Pool)| {
            let name = |worker, address| name(place, worker, address);
            let mut record = pool.record(name, job, self.egress_s(from, place, job));
            if let Some(f_s) = self.open_f_s(place, job, from) {
                record.is_least = f_s <= least;
                record.weight = pool.standing.weight(f_s, least);
            }
            record
        };
        let mut pools: Vec<_> = self.pools.iter().enumerate().map(record).collect();
        let total: f64 = pools.iter().map(|pool| pool.weight).sum();
        let open = pools.iter().filter(|pool| pool.rejected.is_none()).count() as f64;
        for pool in pools.iter_mut().filter(|pool| pool.rejected.is_none()) {
            pool.share = if total.is_normal() { pool.weight / total } else { 1.0 / open };
        }
        pools
    }
}

impl Pool {
    fn new(pool: &snapshot::Pool, now: Duration) -> Self {
        let standings = worker::standings(&pool.workers, pool.drain, now);
        let place = |(worker, standing): (&snapshot::Worker, _)| Place {
            address: worker.address,
            store: worker.report.as_ref().map_or(0, |report| store_hash(&report.load.store_id)),
            standing,
        };
        let mut view = Self {
            id: pool.id.clone(),
            standing: pool::Standing::default(),
            preference: pool::Preference::of(pool),
            egress_usd_per_gb: pool.egress_usd_per_gb,
            seats: worker::Seats::default(),
            workers: pool.workers.iter().zip(standings).map(place).collect(),
        };
        view.settle(now);
        view
    }

    /// Works out what follows from the workers' standings.
    fn settle(&mut self, now: Duration) {
        let standings = || self.workers.iter().map(|place| &place.standing);
        self.standing = pool::Standing::of(&self.preference, standings().flatten(), now);
        self.seats = worker::Seats::of(standings());
    }

    /// The record of this pool, without what depends on the other pools.
    fn record(
        &self,
        name: impl Fn(usize, SocketAddr) -> Option<WorkerId>,
        job: &Job,
        egress_s: f64,
    ) -> explain::Pool {
        let workers = self.workers.iter().enumerate().map(|(worker, place)| {
            let standing = place.standing.as_ref().ok();
            let full = standing.filter(|standing| !standing.room.takes(job.priority));
            explain::Worker {
                address: place.address,
                worker: name(worker, place.address),
                rejected: place.standing.as_ref().err().copied().or(full.map(|_| Rejection::Saturated)),
                terms: standing.map(|standing| standing.terms(job.work_s, egress_s)),
                free: standing.map_or(0.0, |standing| standing.free),
                slots: standing.map_or(0.0, |standing| standing.slots),
                speed: standing.map_or(0.0, |standing| standing.speed),
            }
        });
        let standing = &self.standing;
        let full = (self.seats.open(job.priority) == 0).then_some(PoolRejection::Saturated);
        explain::Pool {
            pool: self.id.clone(),
            rejected: standing.rejected.or(full),
            capacity: standing.capacity,
            k: standing.k,
            free_share: standing.free_share,
            ramp: standing.ramp,
            terms: standing.terms(job, egress_s),
            f_s: standing.f_s(job, egress_s),
            wait_s: standing.wait_s,
            weight: 0.0,
            share: 0.0,
            is_least: false,
            workers: workers.collect(),
        }
    }
}

/// A store's name as a number: a view compares it on retries only and need not hold ten thousand copies. Two names of
/// one number (1 in 2⁶⁴) would let a retry go to a foreign store, where it is a second job.
fn store_hash(store: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    store.hash(&mut hasher);
    hasher.finish()
}
