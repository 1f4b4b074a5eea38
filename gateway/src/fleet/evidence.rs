//! What tells of a worker: the answers to probes, the reports on its responses, and how requests to it end.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_wire::{LoadReport, PoolId, load};
use tracing::{info, warn};

use super::snapshot::{Health, Pool, Report, Sign, Worker};
use super::{Fleet, probe};
use crate::route::read;

/// Failed probes in a row after which a worker counts as down. A probe that times out is none: a worker whose
/// encoders starve it is busy, not dead, and the age of its report prices that.
pub const PROBE_FAILURES_MAX: u32 = 2;
/// What a failed read counts as, so that fast failures don't attract work.
pub const FAILURE_LATENCY_S: f64 = 5.0;

/// A worker that takes as long as this to answer a submit is left alone for a while, as one that failed, where others
/// have room. That says nothing about how soon a job would be done; but a client waits for the answer, and a worker whose
/// store or disk has become so slow will hardly do better with what it accepts.
pub const SLOW: Duration = Duration::from_secs(1);

/// How a request to a worker ended, as far as its health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered; also with 429, where its report says no better.
    Answered,
    /// It refused a job with 429, and by its own report has room for it.
    Contradicted,
    /// It took a job well, but [`SLOW`]ly.
    Slow,
    /// It did not, or with a server error.
    Failed,
}

fn down(worker: &mut Worker, pool: &PoolId, reason: String) {
    if worker.health != (Health::Down { reason: reason.clone() }) {
        warn!(address = %worker.address, %pool, reason, "worker is down");
        worker.health = Health::Down { reason };
    }
}

/// Takes a report in, unless a later one is there already.
fn learn(worker: &mut Worker, load: LoadReport, now: Duration) {
    // Incarnations are counted by a store: another store's begin anew, and say nothing about which is later.
    let outdated = |known: &Report| {
        !load.supersedes(&known.load)
            && known.load.worker == load.worker
            && known.load.store_id == load.store_id
    };
    match &mut worker.report {
        // The same report again says that the worker still stands by it.
        Some(known) if known.load == load => known.at = now,
        Some(known) if outdated(known) => {}
        report => {
            let named = |sign: &Sign| sign.worker == load.worker.as_str();
            if !worker.sign.as_deref().is_some_and(named) {
                worker.sign = Some(Sign::new(load.pool.as_str(), load.worker.as_str()));
            }
            *report = Some(Report { at: now, load });
        }
    }
}

fn latency(worker: &mut Worker, seconds: f64, now: Duration) {
    let elapsed = now.saturating_sub(worker.read_at).as_secs_f64();
    let decay = (-elapsed / read::DECAY_S).exp();
    worker.read_at = now;
    worker.read_latency_s = if seconds > worker.read_latency_s {
        seconds
    } else {
        worker.read_latency_s * decay + seconds * (1.0 - decay)
    };
}

impl Fleet {
    /// A probe was answered with a report, after `round_trip`.
    pub fn probed(&self, address: SocketAddr, load: LoadReport, round_trip: Duration) {
        let now = self.now();
        self.endpoint(address, |endpoint, worker, pool| {
            let first = worker.round_trip.is_zero();
            worker.round_trip = if first { round_trip } else { (worker.round_trip * 7 + round_trip) / 8 };
            endpoint.probed = true;
            endpoint.probe_failures = 0;
            if load.pool != *pool {
                let reason = format!("it reports pool {}, but is configured in pool {pool}", load.pool);
                down(worker, pool, reason);
                return true;
            }
            let rises = worker.health != Health::Up;
            if rises {
                info!(%address, %pool, worker = %load.worker, "worker is up");
                worker.health = Health::Up;
            }
            let drained = worker.drains();
            learn(worker, load, now);
            rises || drained != worker.drains()
        });
    }

    /// A probe failed.
    pub fn probe_failed(&self, address: SocketAddr, failure: &probe::Failure) {
        self.endpoint(address, |endpoint, worker, pool| {
            endpoint.probed = true;
            if failure.is_timeout() && worker.report.is_some() {
                return false;
            }
            endpoint.probe_failures = endpoint.probe_failures.saturating_add(1);
            let fails = endpoint.probe_failures >= PROBE_FAILURES_MAX || worker.health == Health::Unknown;
            if fails {
                down(worker, pool, failure.to_string());
            }
            fails
        });
    }

    /// A worker's response carried a report.
    ///
    /// # Errors
    /// The report is not believable; nothing changed.
    pub fn heard(&self, address: SocketAddr, orca: &str, store_id: &str) -> Result<(), load::Error> {
        self.heard_after(self.now(), Duration::ZERO, address, || Ok((orca, store_id)))
    }

    /// The same as of `now`, unless the last report is younger than `rest`: then this one is not even asked for.
    ///
    /// # Errors
    /// The report is not believable; nothing changed.
    pub fn heard_after<'a>(
        &self,
        now: Duration,
        rest: Duration,
        address: SocketAddr,
        report: impl FnOnce() -> Result<(&'a str, &'a str), load::Error>,
    ) -> Result<(), load::Error> {
        let mut result = Ok(());
        self.endpoint(address, |_, worker, pool| {
            // The text form carries no names: until a probe has told them, there is nothing to believe it for.
            let Some(known) = &worker.report else { return false };
            if now.saturating_sub(known.at) < rest {
                return false;
            }
            let drained = worker.drains();
            let report = report()
                .and_then(|(orca, store)| LoadReport::from_orca(orca, &known.load.worker, pool, store));
            match report {
                Ok(load) => learn(worker, load, now),
                Err(error) => result = Err(error),
            }
            drained != worker.drains()
        });
        result
    }

    /// How a request ended `now`. Answers whether the worker is ejected for it.
    pub fn judge(
        &self,
        address: SocketAddr,
        now: Duration,
        verdict: Verdict,
        read_latency: Option<Duration>,
    ) -> bool {
        let mut ejected = false;
        self.change(|state| {
            let Some(endpoint) = state.endpoints.get(&address) else { return false };
            let (pool, worker) = endpoint.place;
            // Counted for failures only: it looks at the whole pool.
            let spare = verdict == Verdict::Failed && {
                let peers = &state.snapshot.pools[pool].workers;
                let gone = peers.iter().filter(|peer| peer.ejected(now)).count();
                (gone + 1) * 2 <= peers.len()
            };
            let Some(endpoint) = state.endpoints.get_mut(&address) else { return false };
            let Pool { id, workers, reliability, .. } = &mut state.snapshot.pools[pool];
            let worker = &mut workers[worker];
            match (verdict, read_latency) {
                // What is slow of late is slow as a whole more often than not: one worker's store is all workers' store.
                (Verdict::Failed | Verdict::Slow | Verdict::Contradicted, _) => reliability.failed(now),
                (Verdict::Answered, None) => reliability.answered(now),
                // A pool that answers reads may still take no jobs.
                (Verdict::Answered, Some(_)) => {}
            }
            let was_on_trial = endpoint.outlier.on_trial();
            match verdict {
                Verdict::Answered => {
                    endpoint.outlier.answered(now);
                    if let Some(seconds) = read_latency {
                        latency(worker, seconds.as_secs_f64(), now);
                    }
                }
                // No ejection: a report may be a moment older than the refusal that it comes with.
                Verdict::Slow | Verdict::Contradicted => endpoint.outlier.slow(now),
                Verdict::Failed => {
                    latency(worker, FAILURE_LATENCY_S, now);
                    ejected = endpoint.outlier.failed(now, spare);
                    if ejected {
                        warn!(%address, pool = %id, "worker ejected: its answers keep failing");
                    }
                }
            }
            worker.ejected_until = endpoint.outlier.ejected_until();
            worker.on_trial = endpoint.outlier.on_trial();
            worker.failing_until = endpoint.outlier.failing_until();
            ejected || was_on_trial != worker.on_trial
        });
        ejected
    }
}
