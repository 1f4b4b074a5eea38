//! Why a job goes where: every pool and worker that was considered, every term, every reason for a rejection.

use std::net::SocketAddr;

use millrace_wire::{PoolId, WorkerId};
use serde::{Deserialize, Serialize};

/// Where a job goes, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// The pool.
    pub pool: PoolId,
    /// The worker's address.
    pub address: SocketAddr,
    /// The worker's own name, once it has told.
    pub worker: Option<WorkerId>,
    /// Why this pool, in one word.
    pub reason: Reason,
    /// The job's estimated work, in reference-seconds.
    pub work_s: f64,
    /// What the job must have waited in this pool before another may take it, in seconds.
    pub steal: Vec<(PoolId, f64)>,
    /// All that was considered.
    pub pools: Vec<Pool>,
}

/// Why a job goes nowhere.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusal {
    /// In one word.
    pub why: Why,
    /// Seconds after which another try makes sense, when everything is saturated.
    pub retry_after_s: Option<u64>,
    /// All that was considered.
    pub pools: Vec<Pool>,
}

/// Why a pool was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing else could take it.
    Only,
    /// It is the best place.
    Least,
    /// Its turn by weight; another place is a little better.
    Spread,
    /// Another worker had failed or refused it.
    Retry,
}

impl Reason {
    /// A header value and metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Least => "least",
            Self::Spread => "spread",
            Self::Retry => "retry",
        }
    }
}

/// Why nothing was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Somewhere are healthy workers, and all their slots and queues are full.
    Saturated,
    /// All that is left was tried, or may not be tried.
    Exhausted,
    /// All that is healthy is being drained.
    Draining,
    /// Nothing is healthy.
    Unhealthy,
}

impl Why {
    /// A metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Saturated => "saturated",
            Self::Exhausted => "exhausted",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A pool as it was considered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub pool: PoolId,
    /// Why it could not take the job, if so.
    pub rejected: Option<PoolRejection>,
    /// Σ slots · speed of usable workers: reference-seconds per second.
    pub capacity: f64,
    /// Capacity × admin weight × ramp.
    pub k: f64,
    /// Free share of its capacity, 0–1.
    pub free_share: f64,
    /// How far it has come back, 0–1.
    pub ramp: f64,
    /// Seconds until a slot is free.
    pub wait_s: f64,
    /// The terms of its F.
    pub terms: Terms,
    /// Its F, in seconds.
    pub f_s: f64,
    /// Its weight in the draw.
    pub weight: f64,
    /// Its share of the draw, 0–1.
    pub share: f64,
    /// No pool has a lesser F.
    pub is_least: bool,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// Why a pool could not take a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolRejection {
    /// An operator drains it.
    Draining,
    /// Its admin weight is 0.
    WeightZero,
    /// Each of its workers has a reason of its own.
    NoUsableWorker,
    /// Every usable worker is full.
    Saturated,
}

/// A worker as it was considered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its address.
    pub address: SocketAddr,
    /// Its own name, once it has told.
    pub worker: Option<WorkerId>,
    /// Why it could not take the job, if so.
    pub rejected: Option<Rejection>,
    /// The terms of F, when it was usable.
    pub terms: Option<Terms>,
    /// Free slots.
    pub free: f64,
    /// All slots.
    pub slots: f64,
    /// Reference-seconds per slot and second.
    pub speed: f64,
}

impl Worker {
    /// Its terms, if it can take the job.
    pub fn candidate(&self) -> Option<&Terms> {
        self.terms.as_ref().filter(|_| self.rejected.is_none())
    }
}

/// Why a worker could not take a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// It has never reported.
    Unknown,
    /// Its probes fail.
    Down,
    /// An operator drains its pool.
    PoolDraining,
    /// An operator drains it.
    Drained,
    /// It says that it drains.
    Draining,
    /// Its answers kept failing.
    Ejected,
    /// It was ejected, and the one request that tries it is on its way.
    OnTrial,
    /// This request was there already.
    Tried,
    /// A try may have been accepted elsewhere, and this worker's store would not know.
    OtherStore,
    /// Its report is too old, and others are fresh.
    Stale,
    /// No free slot and no room in its queue for this class.
    Saturated,
}

/// The terms of F, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// Until a slot is free.
    pub wait_s: f64,
    /// The report's age, when it is not fresh; counts as wait.
    pub age_s: f64,
    /// The job itself.
    pub job_s: f64,
    /// To the worker and back.
    pub round_trip_s: f64,
    /// What moving the input costs, as time.
    pub egress_s: f64,
    /// A penalty while its last answer was a failure.
    pub failing_s: f64,
}

impl Terms {
    /// F = 2 · wait + job + round trip + egress (+ age, which is wait, and the penalty).
    pub fn f_s(&self) -> f64 {
        2.0 * (self.wait_s + self.age_s) + self.job_s + self.round_trip_s + self.egress_s + self.failing_s
    }
}
