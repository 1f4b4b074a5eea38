//! The pool.
//!
//! K = Σ slots · speed · admin weight · ramp over usable workers; weight = max(K · free share, 5 % of K) ·
//! exp(−(F − least F) ÷ 10 s). Smooth: no threshold at which all gateways would turn around together. A pool with a free
//! slot has no wait (as a worker has none), and else the wait is of real capacity, not of K, because an operator's
//! preference makes no encoder faster.

use std::time::Duration;

use rand::Rng;

use super::explain::{Pool as Considered, PoolRejection, Rejection, Why};
use super::{Exclude, Job, worker};
use crate::fleet::snapshot::{Pool, Snapshot};

/// How fast a pool loses shares as it gets worse: by a factor of e per this many seconds.
pub const DECAY_S: f64 = 10.0;
/// The share of its capacity that a pool without a free slot keeps.
pub const FULL_SHARE: f64 = 0.05;
/// How long a pool that comes back takes to its full share.
pub const RAMP: Duration = Duration::from_secs(30);
/// Where the ramp starts: a pool without any share would never be tried.
pub const RAMP_MIN: f64 = 0.05;
/// Longest F and egress that are told apart; beyond it all is equally bad.
const SECONDS_MAX: f64 = 1e12;

/// Looks at one pool and its workers.
pub fn consider(snapshot: &Snapshot, pool: &Pool, job: &Job, exclude: &Exclude, now: Duration) -> Considered {
    let egress_s = egress_s(snapshot, pool, job);
    let workers = worker::consider(&pool.workers, pool.drain, job, egress_s, exclude, now);
    let ramp = pool.back_at.map_or(1.0, |back| {
        (now.saturating_sub(back).as_secs_f64() / RAMP.as_secs_f64()).clamp(RAMP_MIN, 1.0)
    });
    let usable = || workers.iter().filter(|worker| worker.terms.is_some());
    let slots: f64 = usable().map(|worker| worker.slots).sum();
    let capacity: f64 = usable().map(|worker| worker.slots * worker.speed).sum();
    let free: f64 = usable().map(|worker| worker.free.min(worker.slots) * worker.speed).sum();
    let rejected = if pool.drain {
        Some(PoolRejection::Draining)
    } else if pool.weight <= 0.0 {
        Some(PoolRejection::WeightZero)
    } else if usable().next().is_none() {
        Some(PoolRejection::NoUsableWorker)
    } else if workers.iter().all(|worker| worker.candidate().is_none()) {
        Some(PoolRejection::Saturated)
    } else {
        None
    };
    let mut considered = Considered {
        pool: pool.id.clone(),
        rejected,
        capacity,
        k: capacity * pool.weight * ramp,
        free_share: if capacity > 0.0 { free / capacity } else { 0.0 },
        ramp,
        wait_s: 0.0,
        f_s: 0.0,
        weight: 0.0,
        share: 0.0,
        is_least: false,
        workers,
    };
    if capacity > 0.0 {
        let age_s = least(&considered, |terms| terms.age_s);
        considered.wait_s = if free > 0.0 { 0.0 } else { wait_s(pool, &considered, now) };
        let job_s = job.work_s / (capacity / slots);
        let near_s = least(&considered, |terms| terms.round_trip_s + terms.failing_s);
        considered.f_s = (2.0 * (considered.wait_s + age_s) + job_s + near_s + egress_s).min(SECONDS_MAX);
    }
    considered
}

fn least(pool: &Considered, term: impl Fn(&super::explain::Terms) -> f64) -> f64 {
    pool.workers
        .iter()
        .filter_map(|worker| worker.terms.as_ref())
        .map(term)
        .min_by(f64::total_cmp)
        .unwrap_or(0.0)
}

/// Seconds until the pool would start one more job.
///
/// Its workers finish what they run, and who is done first takes what waits, whoever accepted it (a dead worker's queue
/// is work, too): waiting work fills up the earliest finishers like water. All work ÷ all capacity, which this
/// replaces, lets one long job on one worker hide that its neighbour is free in a second.
fn wait_s(pool: &Pool, considered: &Considered, now: Duration) -> f64 {
    let usable = pool.workers.iter().zip(&considered.workers).filter(|(_, worker)| worker.terms.is_some());
    let (mut lanes, mut waiting, mut unanswered) = (Vec::new(), 0.0_f64, 0.0);
    for (worker, _) in usable {
        let Some(report) = &worker.report else { continue };
        let load = &report.load;
        let held = f64::from(load.running) + f64::from(load.queued);
        let running = if held > 0.0 { f64::from(load.running) / held } else { 1.0 };
        let rate = f64::from(load.slots) * load.speed;
        lanes.push((load.work_seconds * running / rate, rate));
        unanswered += worker.compensation.at(now).1;
        waiting = waiting.max(load.pool_work_seconds);
    }
    lanes.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (mut water, mut rates) = (waiting + unanswered, 0.0);
    for (place, (level, rate)) in lanes.iter().enumerate() {
        rates += rate;
        let above = lanes.get(place + 1).map_or(f64::INFINITY, |(next, _)| *next);
        if water <= (above - level) * rates {
            return (level + water / rates).min(SECONDS_MAX);
        }
        water -= (above - level) * rates;
    }
    SECONDS_MAX
}

/// What moving the input here costs, as seconds of waiting that the money would buy.
fn egress_s(snapshot: &Snapshot, pool: &Pool, job: &Job) -> f64 {
    let from = job.input_pool.as_ref().filter(|from| **from != pool.id).and_then(|from| snapshot.pool(from));
    let seconds =
        from.map_or(0.0, |from| from.egress_usd_per_gb * job.input_gb / snapshot.wait_usd_per_second);
    if seconds.is_nan() { 0.0 } else { seconds.clamp(0.0, SECONDS_MAX) }
}

/// Fills in weights and shares of those that are not rejected.
pub fn weigh(pools: &mut [Considered]) {
    let open = |pools: &[Considered]| {
        pools.iter().filter(|pool| pool.rejected.is_none()).map(|pool| pool.f_s).min_by(f64::total_cmp)
    };
    let Some(least) = open(pools) else { return };
    for pool in pools.iter_mut().filter(|pool| pool.rejected.is_none()) {
        pool.is_least = pool.f_s <= least;
        let size = (pool.k * pool.free_share).max(FULL_SHARE * pool.k);
        pool.weight = size * (-(pool.f_s - least) / DECAY_S).exp();
    }
    let total: f64 = pools.iter().map(|pool| pool.weight).sum();
    for pool in pools.iter_mut() {
        pool.share = if total > 0.0 { pool.weight / total } else { 0.0 };
    }
}

/// Chooses a pool at random by weight; an index into `pools`.
pub fn choose(pools: &[Considered], rng: &mut impl Rng) -> Option<usize> {
    let open: Vec<usize> = (0..pools.len()).filter(|index| pools[*index].rejected.is_none()).collect();
    let weights: Vec<f64> = open.iter().map(|index| pools[*index].weight).collect();
    draw(&weights, rng).map(|place| open[place])
}

/// Draws a place at random by weight. Weights too small to add up to anything count as equal.
pub fn draw(weights: &[f64], rng: &mut impl Rng) -> Option<usize> {
    let total: f64 = weights.iter().sum();
    if !(total.is_normal() && total > 0.0) {
        return (!weights.is_empty()).then(|| rng.random_range(0..weights.len()));
    }
    let mut point = rng.random::<f64>() * total;
    for (place, weight) in weights.iter().enumerate() {
        if point < *weight {
            return Some(place);
        }
        point -= weight;
    }
    // Rounding may leave a rest at the very end: it belongs to the last that has any weight.
    weights.iter().rposition(|weight| *weight > 0.0)
}

/// Why no pool could be chosen.
pub fn refusal(pools: &[Considered]) -> Why {
    let any = |rejection: Rejection| {
        pools.iter().flat_map(|pool| &pool.workers).any(|worker| worker.rejected == Some(rejection))
    };
    if pools.iter().any(|pool| pool.rejected == Some(PoolRejection::Saturated)) {
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
pub fn least_wait_s(pools: &[Considered]) -> f64 {
    let open = pools.iter().filter(|pool| pool.rejected == Some(PoolRejection::Saturated));
    let waits = open
        .flat_map(|pool| &pool.workers)
        .filter_map(|worker| worker.terms.as_ref())
        .map(|terms| terms.wait_s);
    waits.min_by(f64::total_cmp).unwrap_or(1.0)
}
