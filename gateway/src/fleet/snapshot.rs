//! The gateway's immutable view of pools, endpoints and loads: plain data, swapped whole.
//!
//! Routing sees nothing else. All times are durations since the gateway started, so that tests need no clock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::outlier::Reliability;
use millrace_wire::{LoadReport, PoolId, WorkerId};

/// Everything routing knows at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// US dollars that a second of waiting costs; above 0.
    pub wait_usd_per_second: f64,
    /// The pools, in the file's order.
    pub pools: Vec<Pool>,
}

/// One pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name.
    pub id: PoolId,
    /// The operator's preference.
    pub weight: f64,
    /// US dollars per gigabyte that leaves it.
    pub egress_usd_per_gb: f64,
    /// No new jobs.
    pub drain: bool,
    /// When it came back as a whole, if it had been gone.
    pub back_at: Option<Duration>,
    /// How reliable its answers are of late.
    pub reliability: Reliability,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Where it listens.
    pub address: SocketAddr,
    /// The operator drains it.
    pub drain: bool,
    /// What its certificate names, where it is spoken to over TLS; never empty.
    pub tls: Option<Arc<str>>,
    /// What its answers say of it, once it has reported.
    pub sign: Option<Arc<Sign>>,
    /// What the probes say.
    pub health: Health,
    /// What it last said about itself.
    pub report: Option<Report>,
    /// Submits that went there and are not in its report.
    pub compensation: Compensation,
    /// Ejected as an outlier until then.
    pub ejected_until: Option<Duration>,
    /// Its ejection has passed, and it has yet to answer one request well.
    pub on_trial: bool,
    /// Its last answer was a failure, which counts until then.
    pub failing_until: Option<Duration>,
    /// Round trip of its probes, smoothed.
    pub round_trip: Duration,
    /// Peak-EWMA latency of reads, in seconds …
    pub read_latency_s: f64,
    /// … as of its last read.
    pub read_at: Duration,
    /// Reads that it works on.
    pub reads: u32,
}

/// What an answer says of where it comes from, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sign {
    /// The pool's name.
    pub pool: HeaderValue,
    /// The worker's own name, once it has told, else its address.
    pub worker: HeaderValue,
}

impl Sign {
    /// Of two names, or of a name and an address.
    pub fn new(pool: &str, worker: &str) -> Arc<Self> {
        let value = |text| HeaderValue::from_str(text).expect("a name or an address is a plain word");
        Arc::new(Self { pool: value(pool), worker: value(worker) })
    }
}

/// What the probes say of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// It answers.
    Up,
    /// It does not, or not as it should.
    Down {
        /// Why, for an operator.
        reason: String,
    },
}

/// A load report and when it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// When it came.
    pub at: Duration,
    /// What it says.
    pub load: LoadReport,
}

/// Submits that went to a worker and are not in its report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compensation {
    /// Sent and not yet answered.
    pub jobs: u32,
    /// Their work, in reference-seconds.
    pub work_s: f64,
    /// Timed out: until when each counts, and its work.
    pub timed_out: Vec<(Duration, f64)>,
}

impl Compensation {
    /// Jobs and their reference-seconds at `now`.
    pub fn at(&self, now: Duration) -> (u32, f64) {
        let live = self.timed_out.iter().filter(|(until, _)| *until > now);
        live.fold((self.jobs, self.work_s), |(jobs, work_s), (_, work)| {
            (jobs.saturating_add(1), work_s + work)
        })
    }
}

impl Worker {
    /// A worker of which nothing is known yet.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            drain: false,
            tls: None,
            sign: None,
            health: Health::Unknown,
            report: None,
            compensation: Compensation::default(),
            ejected_until: None,
            on_trial: false,
            failing_until: None,
            round_trip: Duration::ZERO,
            read_latency_s: 0.0,
            read_at: Duration::ZERO,
            reads: 0,
        }
    }

    /// The name it reports, once it has reported.
    pub fn id(&self) -> Option<&WorkerId> {
        self.report.as_ref().map(|report| &report.load.worker)
    }

    /// Whether it is ejected at `now`.
    pub fn ejected(&self, now: Duration) -> bool {
        self.ejected_until.is_some_and(|until| until > now)
    }

    /// Whether it answers requests: up and not ejected.
    pub fn answers(&self, now: Duration) -> bool {
        self.health == Health::Up && !self.ejected(now)
    }

    /// Whether its last report is at most that old.
    pub fn heard_within(&self, age: Duration, now: Duration) -> bool {
        self.report.as_ref().is_some_and(|report| now.saturating_sub(report.at) <= age)
    }

    /// Whether it takes no new jobs, by its own word or the operator's.
    pub fn drains(&self) -> bool {
        self.drain || self.report.as_ref().is_some_and(|report| report.load.draining)
    }
}

impl Snapshot {
    /// The worker at an address, and its pool.
    pub fn find(&self, address: SocketAddr) -> Option<(&Pool, &Worker)> {
        let mut all =
            self.pools.iter().flat_map(|pool| pool.workers.iter().map(move |worker| (pool, worker)));
        all.find(|(_, worker)| worker.address == address)
    }

    /// The pool of a name.
    pub fn pool(&self, id: &PoolId) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.id == *id)
    }
}
