//! The pool.
//!
//! K = Σ slots · speed · admin weight · ramp over usable workers; weight = max(K · free share, 5 % of K) ·
//! exp(−(F − least F) ÷ 10 s). Smooth: no threshold at which all gateways would turn around together. A pool with a free
//! slot has no wait (as a worker has none), and else the wait is of real capacity, not of K, because an operator's
//! preference makes no encoder faster. A pool that fails is as much slower as its failures cost.

use std::time::Duration;

use rand::Rng;

use super::explain::{PoolRejection, Terms};
use super::{Job, worker};
use crate::fleet::outlier::Reliability;
use crate::fleet::snapshot::Pool;

/// How fast a pool loses shares as it gets worse: by a factor of e per this many seconds.
pub const DECAY_S: f64 = 10.0;
/// The share of its capacity that a pool without a free slot keeps.
pub const FULL_SHARE: f64 = 0.05;
/// What a failed try costs a job, in seconds: about two timeouts of a submit. A pool that answers the share r of its jobs
/// costs 1 ÷ r − 1 failures for each that it takes.
pub const UNRELIABLE_S: f64 = 20.0;
/// The largest penalty for failing, in seconds.
pub const FAILING_S_MAX: f64 = 600.0;
/// How long a pool that comes back takes to its full share.
pub const RAMP: Duration = Duration::from_secs(30);
/// Where the ramp starts: a pool without any share would never be tried.
pub const RAMP_MIN: f64 = 0.05;
/// Longest F and egress that are told apart, in seconds; beyond it all is equally bad.
pub const SECONDS_MAX: f64 = 1e12;

/// What is known of a pool beside its workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    weight: f64,
    drain: bool,
    back_at: Option<Duration>,
    reliability: Reliability,
}

impl Preference {
    /// A pool's.
    pub fn of(pool: &Pool) -> Self {
        Self { weight: pool.weight, drain: pool.drain, back_at: pool.back_at, reliability: pool.reliability }
    }
}

/// A pool as it stands, whatever the job. Times are in seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Why it takes no job at all, if so.
    pub rejected: Option<PoolRejection>,
    /// Σ slots · speed of usable workers: reference-seconds per second.
    pub capacity: f64,
    /// Capacity · admin weight · ramp.
    pub k: f64,
    /// Free share of its capacity, 0–1, without what is free at workers that fail.
    pub free_share: f64,
    /// How far it has come back, 0–1.
    pub ramp: f64,
    /// Until it would start one more job.
    pub wait_s: f64,
    /// The least age of a report that is not fresh.
    pub age_s: f64,
    /// Reference-seconds per slot and second, on average.
    pub speed: f64,
    /// To its nearest worker and back …
    pub round_trip_s: f64,
    /// … and that worker's penalty, with the pool's own.
    pub failing_s: f64,
}

impl Standing {
    /// Sums up a pool's usable workers.
    pub fn of<'a>(
        preference: &Preference,
        usable: impl Iterator<Item = &'a worker::Standing> + Clone,
        now: Duration,
    ) -> Self {
        let ramp = preference.back_at.map_or(1.0, |back| {
            (now.saturating_sub(back).as_secs_f64() / RAMP.as_secs_f64()).clamp(RAMP_MIN, 1.0)
        });
        let (mut slots, mut capacity, mut free, mut idle, mut age_s) = (0.0, 0.0, 0.0, false, f64::INFINITY);
        let mut nearest = (f64::INFINITY, 0.0);
        for worker in usable.clone() {
            slots += worker.slots;
            capacity += worker.slots * worker.speed;
            // A slot of one that fails is no room: a pool that only fails must not attract by being idle.
            if worker.failing_s <= 0.0 {
                free += worker.free.min(worker.slots) * worker.speed;
            }
            idle |= worker.free > 0.0;
            age_s = worker.age_s.min(age_s);
            if worker.round_trip_s + worker.failing_s < nearest.0 + nearest.1 {
                nearest = (worker.round_trip_s, worker.failing_s);
            }
        }
        let none = capacity <= 0.0;
        let rejected = match () {
            () if preference.drain => Some(PoolRejection::Draining),
            () if preference.weight <= 0.0 => Some(PoolRejection::WeightZero),
            () if none => Some(PoolRejection::NoUsableWorker),
            () => None,
        };
        if none {
            return Self { rejected, ramp, ..Self::default() };
        }
        Self {
            rejected,
            capacity,
            k: capacity * preference.weight * ramp,
            free_share: free / capacity,
            ramp,
            wait_s: if idle { 0.0 } else { wait_s(usable) },
            age_s,
            speed: capacity / slots,
            round_trip_s: nearest.0,
            failing_s: (nearest.1 + UNRELIABLE_S * (1.0 / preference.reliability.at(now) - 1.0))
                .min(FAILING_S_MAX),
        }
    }

    /// The terms of the pool's F for a job whose input costs `egress_s` to move here. All 0 without a usable worker.
    pub fn terms(&self, job: &Job, egress_s: f64) -> Terms {
        Terms {
            wait_s: self.wait_s,
            age_s: self.age_s,
            job_s: if self.speed > 0.0 { job.work_s / self.speed } else { 0.0 },
            round_trip_s: self.round_trip_s,
            egress_s,
            failing_s: self.failing_s,
        }
    }

    /// Its F, in seconds.
    pub fn f_s(&self, job: &Job, egress_s: f64) -> f64 {
        self.terms(job, egress_s).f_s().min(SECONDS_MAX)
    }

    /// Its weight in the draw, where the best open pool's F is `least_s`.
    pub fn weight(&self, f_s: f64, least_s: f64) -> f64 {
        (self.k * self.free_share).max(FULL_SHARE * self.k) * decay(f_s - least_s)
    }
}

/// What is left of a pool's weight when it is worse by so many seconds.
pub fn decay(by_s: f64) -> f64 {
    if by_s > 0.0 { (-by_s / DECAY_S).exp() } else { 1.0 }
}

/// Seconds until a pool without a free slot would start one more job.
///
/// Its workers finish what they run, and who is done first takes what waits, whoever accepted it (a dead worker's queue
/// is work, too): waiting work fills up the earliest finishers like water. All work ÷ all capacity, which this
/// replaces, lets one long job on one worker hide that its neighbour is free in a second.
fn wait_s<'a>(usable: impl Iterator<Item = &'a worker::Standing>) -> f64 {
    let (mut lanes, mut newest, mut unanswered) = (Vec::new(), (Duration::ZERO, 0.0), 0.0);
    for worker in usable {
        lanes.push((worker.running_s, worker.slots * worker.speed));
        unanswered += worker.unanswered_work_s;
        // Every worker tells of the same queue, each from its own last look at it.
        if worker.reported_at >= newest.0 {
            newest = (worker.reported_at, worker.pool_work_s);
        }
    }
    lanes.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
    let (mut water, mut rates) = (newest.1 + unanswered, 0.0);
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

/// What moving an input costs, as seconds of waiting that the money would buy: US dollars per gigabyte that leaves its
/// pool · gigabytes ÷ US dollars per second of waiting.
pub fn egress_s(usd_per_gb: f64, gb: f64, wait_usd_per_second: f64) -> f64 {
    let seconds = usd_per_gb * gb / wait_usd_per_second;
    if seconds.is_nan() { 0.0 } else { seconds.clamp(0.0, SECONDS_MAX) }
}

/// Draws a place at random by weight; each entry is the sum of all weights up to its own. Weights too small to add up to
/// anything count as equal.
pub fn draw(sums: &[f64], rng: &mut impl Rng) -> Option<usize> {
    let total = *sums.last()?;
    if !(total.is_normal() && total > 0.0) {
        return Some(rng.random_range(0..sums.len()));
    }
    let point = rng.random::<f64>() * total;
    // Without a branch that nobody can predict. Rounding may leave a point at the very end: it belongs to the last that
    // has any weight, where the sums reach the total.
    let place = sums.iter().filter(|sum| **sum <= point).count();
    if place < sums.len() { Some(place) } else { sums.iter().position(|sum| *sum >= total) }
}
