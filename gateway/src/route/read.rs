//! Reads: any healthy worker can answer, so the quicker of two random ones does.
//!
//! Cost = (peak-EWMA latency + 1 ms) · (open reads + 1). The latency jumps up to what is worse and decays with a time
//! constant of 10 s, also while nobody asks: one slow answer must not keep a worker out for ever. Two random choices
//! and not the least of all: every gateway would find the same one.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_wire::PoolId;
use rand::Rng;

use super::{Exclude, View, worker};
use crate::fleet::snapshot::{Snapshot, Worker};

/// Time constant of the latency's decay, in seconds.
pub const DECAY_S: f64 = 10.0;
/// Added to each latency, so that a worker of which nothing is known is not infinitely good, in seconds.
const FLOOR_S: f64 = 0.001;

/// What a read may settle for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    /// A draining worker is as good as any: reads.
    Welcome,
    /// Only when there is no other: uploads.
    LastResort,
}

/// A worker that was chosen for a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The pool's place in the view.
    pub pool: usize,
    /// The worker's address.
    pub address: SocketAddr,
}

/// All workers as reads see them.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidates {
    all: Vec<Candidate>,
    /// Places in `all` of those to choose among when nothing narrows the choice.
    best: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    address: SocketAddr,
    cost: f64,
    pool: u32,
    health: Health,
    drains: bool,
}

/// In the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Heard,
    /// Up by its last probe, and silent since: one that has stopped without closing its connections would hold a read
    /// for its whole timeout.
    Silent,
    Down,
}

impl Candidates {
    pub(super) fn new(snapshot: &Snapshot, now: Duration) -> Self {
        let candidate = |pool: u32, worker: &Worker| Candidate {
            address: worker.address,
            cost: cost(worker, now),
            pool,
            health: match () {
                () if !worker.answers(now) => Health::Down,
                () if worker.heard_within(worker::FRESH, now) => Health::Heard,
                () => Health::Silent,
            },
            drains: worker.drains(),
        };
        let of_pool = |(place, pool)| {
            let workers: &[Worker] = pool;
            workers.iter().map(move |worker| candidate(place, worker))
        };
        let pools = (0..).zip(snapshot.pools.iter().map(|pool| pool.workers.as_slice()));
        let all: Vec<Candidate> = pools.flat_map(of_pool).collect();
        let best = among(&all, Draining::Welcome, |_| true);
        Self { all, best }
    }
}

/// The worker's cost of a read, in seconds.
fn cost(worker: &Worker, now: Duration) -> f64 {
    let idle_s = now.saturating_sub(worker.read_at).as_secs_f64();
    (worker.read_latency_s * (-idle_s / DECAY_S).exp() + FLOOR_S) * (f64::from(worker.reads) + 1.0)
}

/// Those to choose among: the healthiest there are, and of these the ones that do not drain if that matters.
fn among(all: &[Candidate], draining: Draining, wanted: impl Fn(&Candidate) -> bool) -> Vec<u32> {
    let rank = |candidate: &Candidate| {
        let drains = draining == Draining::LastResort && candidate.health != Health::Down && candidate.drains;
        (candidate.health, drains)
    };
    let wanted = || (0..).zip(all).filter(|(_, candidate)| wanted(candidate));
    let Some(least) = wanted().map(|(_, candidate)| rank(candidate)).min() else { return Vec::new() };
    wanted().filter(|(_, candidate)| rank(candidate) == least).map(|(place, _)| place).collect()
}

impl View {
    /// Chooses a worker for a request that any worker can answer, of one pool or of all: the better of two random healthy
    /// ones. Fails open: with no healthy worker it takes any that was not tried.
    pub fn read(
        &self,
        pool: Option<&PoolId>,
        draining: Draining,
        exclude: &Exclude,
        rng: &mut impl Rng,
    ) -> Option<Chosen> {
        let all = &self.reads.all;
        let narrowed;
        let among = if pool.is_none() && draining == Draining::Welcome && exclude.tried.is_empty() {
            &self.reads.best
        } else {
            let of_pool = |candidate: &Candidate| {
                pool.is_none_or(|wanted| self.pools[candidate.pool as usize].id == *wanted)
            };
            narrowed = among(all, draining, |c| of_pool(c) && !exclude.tried.contains(&c.address));
            &narrowed
        };
        if among.is_empty() {
            return None;
        }
        let pick = |rng: &mut _| &all[among[Rng::random_range(rng, 0..among.len())] as usize];
        let (one, other) = (pick(rng), pick(rng));
        let chosen = if one.cost <= other.cost { one } else { other };
        Some(Chosen { pool: chosen.pool as usize, address: chosen.address })
    }
}
