//! Which pool and which worker: pure functions of a [`Snapshot`], `now` and a seeded random source.
//!
//! [`pool`] weighs the pools, [`worker`] chooses within one, [`explain`] is the record of why. Strictly taking the
//! best place was rejected: every gateway sees the same stale report and all would herd to it.

pub mod explain;
pub mod pool;
pub mod worker;

use std::net::SocketAddr;
use std::time::Duration;

use millrace_wire::spec::Priority;
use millrace_wire::{PoolId, SpecHead};
use rand::Rng;

use crate::fleet::snapshot::{Snapshot, Worker};
use explain::{Decision, Reason, Refusal, Why};

/// Reference-seconds of a job of which nothing is known.
pub const WORK_DEFAULT_S: f64 = 60.0;
/// Bytes per second of a typical source (5 Mbit/s), to guess a length from a size and a size from a length.
pub const SOURCE_BYTES_PER_S: f64 = 625_000.0;
/// Reference-seconds per second of source for decoding, and for a 1080p rung; lower rungs go by their pixels.
const DECODE_COST: f64 = 0.2;
const RUNG_1080_COST: f64 = 1.0;
/// Longest `Retry-After`, in seconds, before jitter.
pub const RETRY_AFTER_S_MAX: f64 = 300.0;
/// Jitter of `Retry-After`, so that those who were refused together don't come back together.
pub const RETRY_AFTER_JITTER: f64 = 0.2;

/// What routing knows of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its class.
    pub priority: Priority,
    /// The pool whose bucket holds its input, if known.
    pub input_pool: Option<PoolId>,
    /// Its work, in reference-seconds.
    pub work_s: f64,
    /// Its input's size in gigabytes.
    pub input_gb: f64,
}

impl Default for Job {
    fn default() -> Self {
        let input_gb = WORK_DEFAULT_S * SOURCE_BYTES_PER_S / 1e9;
        Self { priority: Priority::Normal, input_pool: None, work_s: WORK_DEFAULT_S, input_gb }
    }
}

impl Job {
    /// Estimates from what the client told.
    pub fn new(head: &SpecHead) -> Self {
        let hinted_s = head.duration_hint_s.map(f64::from);
        let size = head.size_hint_bytes.map(|bytes| bytes as f64);
        let length_s = hinted_s.or_else(|| size.map(|bytes| bytes / SOURCE_BYTES_PER_S));
        let heights: &[u32] = if head.heights.is_empty() { &[1080, 720, 480, 360] } else { &head.heights };
        let rungs: f64 =
            heights.iter().map(|height| RUNG_1080_COST * (f64::from(*height) / 1080.0).powi(2)).sum();
        let default = Self::default();
        Self {
            priority: head.priority,
            input_pool: head.input_pool.as_ref().and_then(|name| name.parse().ok()),
            work_s: length_s.map_or(default.work_s, |length| length * (DECODE_COST + rungs)),
            input_gb: size
                .or_else(|| hinted_s.map(|s| s * SOURCE_BYTES_PER_S))
                .map_or(default.input_gb, |b| b / 1e9),
        }
    }
}

/// Where a request must not go (again).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclude {
    /// Workers that were tried.
    pub tried: Vec<SocketAddr>,
    /// A try's outcome is unknown: only workers of this store, where the id makes the submit the same job.
    pub store: Option<String>,
}

/// Chooses a pool and a worker for a job.
///
/// # Errors
/// Why there is none.
pub fn submit(
    snapshot: &Snapshot,
    job: &Job,
    exclude: &Exclude,
    now: Duration,
    rng: &mut impl Rng,
) -> Result<Decision, Box<Refusal>> {
    let mut pools: Vec<explain::Pool> =
        snapshot.pools.iter().map(|pool| pool::consider(snapshot, pool, job, exclude, now)).collect();
    pool::weigh(&mut pools);
    let Some(chosen) = pool::choose(&pools, rng) else {
        let why = pool::refusal(&pools);
        let retry_after_s = (why == Why::Saturated).then(|| {
            let jitter = rng.random_range(1.0 - RETRY_AFTER_JITTER..=1.0 + RETRY_AFTER_JITTER);
            retry_after_s(pool::least_wait_s(&pools), jitter)
        });
        return Err(Box::new(Refusal { why, retry_after_s, pools }));
    };
    let Some(candidate) = worker::choose(&pools[chosen].workers, rng) else {
        // `pool::choose` takes only pools with a candidate.
        return Err(Box::new(Refusal { why: Why::Unhealthy, retry_after_s: None, pools }));
    };
    let reason = if !exclude.tried.is_empty() {
        Reason::Retry
    } else if pools.iter().filter(|pool| pool.rejected.is_none()).count() == 1 {
        Reason::Only
    } else if pools[chosen].is_least {
        Reason::Least
    } else {
        Reason::Spread
    };
    let worker = &pools[chosen].workers[candidate];
    Ok(Decision {
        pool: pools[chosen].pool.clone(),
        address: worker.address,
        worker: worker.worker.clone(),
        reason,
        work_s: job.work_s,
        pools,
    })
}

/// `Retry-After` for a wait: whole seconds, at least 1.
pub fn retry_after_s(wait_s: f64, jitter: f64) -> u64 {
    let wait_s = if wait_s.is_finite() { wait_s.clamp(1.0, RETRY_AFTER_S_MAX) } else { RETRY_AFTER_S_MAX };
    // In range by construction, so the cast keeps the number.
    (wait_s * jitter).ceil().max(1.0) as u64
}

/// What a read may settle for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    /// A draining worker is as good as any: reads.
    Welcome,
    /// Only when there is no other: uploads.
    LastResort,
}

/// Chooses a worker for a request that any worker can answer, of one pool or of all: the better of two random healthy
/// ones by peak-EWMA latency and open reads. Fails open: with no healthy worker it takes any that was not tried.
pub fn read(
    snapshot: &Snapshot,
    pool: Option<&PoolId>,
    draining: Draining,
    exclude: &Exclude,
    now: Duration,
    rng: &mut impl Rng,
) -> Option<SocketAddr> {
    let all: Vec<&Worker> = snapshot
        .pools
        .iter()
        .filter(|candidate| pool.is_none_or(|wanted| candidate.id == *wanted))
        .flat_map(|candidate| &candidate.workers)
        .filter(|worker| !exclude.tried.contains(&worker.address))
        .collect();
    let healthy: Vec<&Worker> = all.iter().copied().filter(|worker| worker.answers(now)).collect();
    // One that has stopped without closing its connections would hold a read for its whole timeout.
    let heard: Vec<&Worker> =
        healthy.iter().copied().filter(|worker| worker.heard_within(worker::FRESH, now)).collect();
    let healthy = if heard.is_empty() { healthy } else { heard };
    let taking: Vec<&Worker> = healthy.iter().copied().filter(|worker| !worker.drains()).collect();
    let among = match draining {
        Draining::LastResort if !taking.is_empty() => taking,
        _ if !healthy.is_empty() => healthy,
        _ => all,
    };
    if among.is_empty() {
        return None;
    }
    let cost = |worker: &Worker| (worker.read_latency_s + 0.001) * (f64::from(worker.reads) + 1.0);
    let pick = |rng: &mut _| among[Rng::random_range(rng, 0..among.len())];
    let (one, other) = (pick(rng), pick(rng));
    Some(if cost(one) <= cost(other) { one.address } else { other.address })
}

#[cfg(test)]
mod tests;
