//! Reads: any healthy worker can answer, so the quicker of two random ones does.
//!
//! Cost = (peak-EWMA latency + 1 ms) · (open reads + 1). The latency jumps up to what is worse and decays with a time
//! constant of 10 s, also while nobody asks: one slow answer must not keep a worker out for ever. Two random choices
//! and not the least of all: every gateway would find the same one.
//!
//! Where half of the workers are slow, a quarter of the pairs are two slow ones, and choosing between them helps nobody. So
//! those that are far slower than the quickest stand back as long as they are.

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

/// Slower than this, in seconds, and by …
const SLOW_S: f64 = 0.25;
/// … so many times the latency of the quickest, a worker stands back. Distance alone makes nobody so slow.
const SLOW_TIMES: f64 = 8.0;

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
    /// As well, but its answers take far longer than others'.
    Slow,
    /// Up by its last probe, and silent since: one that has stopped without closing its connections would hold a read
    /// for its whole timeout.
    Silent,
    Down,
}

impl Candidates {
    pub(super) fn new(snapshot: &Snapshot, now: Duration) -> Self {
        let heard = |worker: &Worker| worker.answers(now) && worker.heard_within(worker::FRESH, now);
        let workers = || snapshot.pools.iter().flat_map(|pool| &pool.workers);
        let quickest_s = workers()
            .filter(|worker| heard(worker))
            .map(|worker| latency_s(worker, now))
            .fold(f64::INFINITY, f64::min);
        let slow_s = SLOW_S + SLOW_TIMES * quickest_s;
        let candidate = |pool: u32, worker: &Worker| Candidate {
            address: worker.address,
            cost: cost(worker, now),
            pool,
            health: match () {
                () if !worker.answers(now) => Health::Down,
                () if !heard(worker) => Health::Silent,
                () if latency_s(worker, now) > slow_s => Health::Slow,
                () => Health::Heard,
            },
            drains: worker.drains(),
        };
        let of_pool = |(place, pool)| {
            let workers: &[Worker] = pool;
            workers.iter().map(move |worker| candidate(place, worker))
        };
        let pools = (0..).zip(snapshot.pools.iter().map(|pool| pool.workers.as_slice()));
        let all: Vec<Candidate> = pools.flat_map(of_pool).collect();
        let best = among(&all, Draining::Welcome, &[], |_| true);
        Self { all, best }
    }
}

/// The worker's latency as of now, in seconds.
fn latency_s(worker: &Worker, now: Duration) -> f64 {
    let idle_s = now.saturating_sub(worker.read_at).as_secs_f64();
    worker.read_latency_s * (-idle_s / DECAY_S).exp()
}

/// The worker's cost of a read, in seconds.
fn cost(worker: &Worker, now: Duration) -> f64 {
    (latency_s(worker, now) + FLOOR_S) * (f64::from(worker.reads) + 1.0)
}

/// Those to choose among: the healthiest there are, of these the ones that do not drain if that matters, and of these the
/// ones of other pools than those that were `met` already: a pool often fails as a whole.
fn among(
    all: &[Candidate],
    draining: Draining,
    met: &[u32],
    wanted: impl Fn(&Candidate) -> bool,
) -> Vec<u32> {
    let rank = |candidate: &Candidate| {
        let drains = draining == Draining::LastResort && candidate.health != Health::Down && candidate.drains;
        (candidate.health, drains, met.contains(&candidate.pool))
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
            let tried = all.iter().filter(|candidate| exclude.tried.contains(&candidate.address));
            let met: Vec<u32> = tried.map(|candidate| candidate.pool).collect();
            narrowed = among(all, draining, &met, |c| of_pool(c) && !exclude.tried.contains(&c.address));
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

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::fleet::sample;
    use crate::fleet::snapshot::{Health, Pool, Report};

    const NOW: Duration = Duration::from_secs(1000);

    fn worker(port: u16, latency_s: f64) -> Worker {
        Worker {
            health: Health::Up,
            report: Some(Report { at: NOW, load: sample::report("p") }),
            read_latency_s: latency_s,
            read_at: NOW,
            ..Worker::new(SocketAddr::from(([127, 0, 0, 1], port)))
        }
    }

    fn pool(name: &str, workers: Vec<Worker>) -> Pool {
        Pool {
            id: name.parse().unwrap(),
            weight: 1.0,
            egress_usd_per_gb: 0.0,
            drain: false,
            back_at: None,
            reliability: crate::fleet::outlier::Reliability::default(),
            workers,
        }
    }

    /// The ports that a hundred reads go to.
    fn ports(pools: Vec<Pool>, now: Duration, tried: &[u16]) -> Vec<u16> {
        let mut snapshot = Snapshot { wait_usd_per_second: 1.0, pools };
        for worker in snapshot.pools.iter_mut().flat_map(|pool| &mut pool.workers) {
            worker.report.as_mut().unwrap().at = now;
        }
        let (view, mut rng) = (View::new(&snapshot, now), StdRng::seed_from_u64(1));
        let tried = tried.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
        let exclude = Exclude { tried, ..Exclude::default() };
        let port = |_| view.read(None, Draining::Welcome, &exclude, &mut rng).unwrap().address.port();
        let mut ports: Vec<u16> = (0..100).map(port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    #[test]
    fn who_is_far_slower_than_the_quickest_stands_back_until_it_may_have_mended() {
        let fleet = || {
            vec![
                pool("a", vec![worker(1, 0.03), worker(2, 0.2)]),
                pool("b", vec![worker(3, 1.5), worker(4, 3.0)]),
            ]
        };
        assert_eq!(ports(fleet(), NOW, &[]), [1, 2], "0.2 s is distance, 1.5 s is not");
        assert_eq!(ports(fleet(), NOW, &[1, 2]), [3, 4], "slow is better than nothing");
        assert!(ports(fleet(), NOW + Duration::from_secs(25), &[]).contains(&3), "it is tried again");
        let slow = || vec![pool("a", vec![worker(1, 1.5), worker(2, 1.6)]), pool("b", vec![worker(3, 1.7)])];
        assert_eq!(ports(slow(), NOW, &[]), [1, 2, 3], "where all are slow, nobody stands back");
    }

    #[test]
    fn a_read_that_failed_goes_to_another_pool_if_there_is_one() {
        let fleet = || vec![pool("a", vec![worker(1, 0.0), worker(2, 0.0)]), pool("b", vec![worker(3, 0.0)])];
        assert_eq!(ports(fleet(), NOW, &[1]), [3]);
        assert_eq!(ports(fleet(), NOW, &[1, 3]), [2]);
        let mut down = fleet();
        down[1].workers[0].health = Health::Down { reason: "gone".to_owned() };
        assert_eq!(ports(down, NOW, &[1]), [2], "but not to one that is down");
    }
}
