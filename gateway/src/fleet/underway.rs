//! What is on its way to workers and not yet answered: it counts as theirs until then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Fleet;

/// How long a submit that timed out still counts as work of the worker it was sent to.
pub const TIMED_OUT_COUNTS: Duration = Duration::from_secs(3);

impl Fleet {
    /// A submit of that much work goes to a worker; it counts there until the answer.
    pub fn submitting(self: &Arc<Self>, address: SocketAddr, work_s: f64) -> Submitting {
        self.endpoint(address, |_, worker, _| {
            worker.compensation.jobs = worker.compensation.jobs.saturating_add(1);
            worker.compensation.work_s += work_s;
            // The one request that tries it is on its way.
            worker.on_trial
        });
        Submitting { fleet: self.clone(), address, work_s, timed_out: false }
    }

    /// A read goes to a worker.
    pub fn reading(self: &Arc<Self>, address: SocketAddr) -> Reading {
        self.endpoint(address, |_, worker, _| {
            worker.reads = worker.reads.saturating_add(1);
            false
        });
        Reading { fleet: self.clone(), address }
    }
}

/// A submit on its way: counts as work of its worker until it is dropped.
#[derive(Debug)]
pub struct Submitting {
    fleet: Arc<Fleet>,
    address: SocketAddr,
    work_s: f64,
    timed_out: bool,
}

impl Submitting {
    /// Nobody answered: the worker may or may not have it, so it counts a while longer.
    pub fn timed_out(mut self) {
        self.timed_out = true;
    }
}

impl Drop for Submitting {
    fn drop(&mut self) {
        let now = self.fleet.now();
        self.fleet.endpoint(self.address, |_, worker, _| {
            let compensation = &mut worker.compensation;
            compensation.jobs = compensation.jobs.saturating_sub(1);
            // Sums of floats drift; with nothing outstanding there is nothing left by definition.
            compensation.work_s =
                if compensation.jobs == 0 { 0.0 } else { (compensation.work_s - self.work_s).max(0.0) };
            compensation.timed_out.retain(|(until, _)| *until > now);
            if self.timed_out {
                compensation.timed_out.push((now + TIMED_OUT_COUNTS, self.work_s));
            }
            worker.on_trial
        });
    }
}

/// A read on its way: counts at its worker until it is dropped.
#[derive(Debug)]
pub struct Reading {
    fleet: Arc<Fleet>,
    address: SocketAddr,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.fleet.endpoint(self.address, |_, worker, _| {
            worker.reads = worker.reads.saturating_sub(1);
            false
        });
    }
}
