//! Which pool and which worker: pure functions of a [`Snapshot`], `now` and a seeded random source.
//!
//! [`view`] works a snapshot out once for many jobs, [`pool`] weighs the pools, [`worker`] chooses within one, [`read`]
//! chooses for what any worker can answer, [`explain`] is the record of why, [`chance`] the random source of live ones.
//! Strictly taking the best place was rejected: every gateway sees the same stale report and all would herd to it.

pub mod chance;
pub mod explain;
pub mod pool;
pub mod read;
pub mod view;
pub mod worker;

use std::net::SocketAddr;
use std::time::Duration;

use millrace_wire::spec::Priority;
use millrace_wire::{PoolId, SpecHead};
use rand::Rng;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::fleet::snapshot::Snapshot;
use explain::{Decision, Refusal};

pub use chance::Chance;
pub use read::Draining;
pub use view::{Choice, Refused, View};

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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Workers that were tried: of most requests one, which needs no memory of its own.
    pub tried: SmallVec<[SocketAddr; 1]>,
    /// A try's outcome is unknown: only workers of this store, where the id makes the submit the same job.
    pub store: Option<String>,
    /// Workers that refused it against their own word: nothing that their pools claim counts for this request.
    pub disbelieved: Vec<SocketAddr>,
}

impl Exclude {
    /// Whether it excludes nobody.
    pub fn is_empty(&self) -> bool {
        self.tried.is_empty() && self.store.is_none()
    }
}

/// Chooses a pool and a worker for a job, and says why: [`View::submit`] on a view made for it, with its record.
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
    let view = View::new(snapshot, now).without(exclude);
    let pools = view.record(snapshot, job);
    match view.choose(job, !exclude.tried.is_empty(), rng) {
        Ok(choice) => Ok(Decision {
            pool: view.pool(choice.pool).clone(),
            address: choice.address,
            worker: pools[choice.pool].workers[choice.worker].worker.clone(),
            reason: choice.reason,
            work_s: job.work_s,
            steal: view.steal_prices(job, choice.pool),
            pools,
        }),
        Err(Refused { why, retry_after_s }) => Err(Box::new(Refusal { why, retry_after_s, pools })),
    }
}

/// The record of every pool and worker, as a decision for this job would see them now.
pub fn consider(snapshot: &Snapshot, job: &Job, exclude: &Exclude, now: Duration) -> Vec<explain::Pool> {
    View::new(snapshot, now).without(exclude).record(snapshot, job)
}

/// `Retry-After` for a wait: whole seconds, at least 1.
pub fn retry_after_s(wait_s: f64, jitter: f64) -> u64 {
    let wait_s = if wait_s.is_finite() { wait_s.clamp(1.0, RETRY_AFTER_S_MAX) } else { RETRY_AFTER_S_MAX };
    // In range by construction, so the cast keeps the number.
    (wait_s * jitter).ceil().max(1.0) as u64
}

#[cfg(test)]
mod tests;
