//! Decisions that were made: a bounded ring, from which the full record of one is worked out when somebody asks.
//!
//! Keeping costs a submit some pointers: the view that it chose from is shared by all decisions of its moment, and says
//! everything but the workers' own names, which are looked up when asked for.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use http::HeaderValue;
use millrace_wire::{JobId, PoolId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::overrides::rfc3339;
use crate::route::explain::{Pool, Reason, Why};
use crate::route::{Chance, Choice, Exclude, Job, Refused, View};

/// How many decisions are kept.
pub const KEPT: usize = 1000;
/// How many workers all kept views may hold together, about 30 MB: of a large fleet fewer decisions are kept.
pub const PLACES_MAX: usize = 150_000;

/// A decision that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// When.
    pub at: SystemTime,
    /// Of which job; a request for an upload has none yet.
    pub job_id: Option<JobId>,
    /// What the client calls the request.
    pub request_id: Option<HeaderValue>,
    /// Tries before this one.
    pub tries: u32,
    /// What was known.
    pub view: Arc<View>,
    /// The job as routing saw it.
    pub job: Job,
    /// Where it must not go.
    pub exclude: Exclude,
    /// Where it goes, or why nowhere.
    pub outcome: Result<Choice, Refused>,
}

/// The last [`KEPT`] decisions.
#[derive(Debug, Default)]
pub struct Decisions {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    made: VecDeque<Made>,
    /// Workers of all views in `made`, each view counted once.
    places: usize,
}

/// Why a job goes, went, or would go where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// When it was decided, RFC 3339; for a job that is only asked about, now.
    pub at: String,
    /// The job's id, if it is a real one.
    pub job_id: Option<JobId>,
    /// What the client called the request.
    pub request_id: Option<String>,
    /// Tries before this one.
    pub tries: u32,
    /// The job as routing sees it.
    pub job: Job,
    /// Where it goes …
    pub chosen: Option<Chosen>,
    /// … or why nowhere.
    pub refused: Option<Nowhere>,
    /// All that was considered.
    pub pools: Vec<Pool>,
}

/// Where a job goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// The pool.
    pub pool: PoolId,
    /// The worker's address.
    pub address: SocketAddr,
    /// The worker's own name.
    pub worker: Option<WorkerId>,
    /// Why this pool.
    pub reason: Reason,
    /// What the job must have waited in this pool before another may take it, in seconds.
    pub steal: Vec<(PoolId, f64)>,
}

/// Why a job goes nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nowhere {
    /// In one word.
    pub why: Why,
    /// Seconds after which another try makes sense, when everything is saturated.
    pub retry_after_s: Option<u64>,
}

impl Decisions {
    /// Keeps one, and forgets the oldest where there is no more room.
    pub fn keep(&self, made: Made) {
        // Freed after the lock is: the last decision of a view takes ten thousand workers with it.
        let mut forgotten = Vec::new();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.made.back().is_none_or(|last| !Arc::ptr_eq(&last.view, &made.view)) {
            ring.places += made.view.worker_count();
        }
        ring.made.push_back(made);
        while ring.made.len() > KEPT || (ring.places > PLACES_MAX && ring.made.len() > 1) {
            let Some(oldest) = ring.made.pop_front() else { break };
            if ring.made.front().is_none_or(|next| !Arc::ptr_eq(&next.view, &oldest.view)) {
                ring.places = ring.places.saturating_sub(oldest.view.worker_count());
            }
            forgotten.push(oldest);
        }
        drop(ring);
    }

    /// Those of a job's or a request's id, the oldest first: one for each try.
    pub fn of(&self, id: &str) -> Vec<Made> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |made: &&Made| {
            made.job_id.as_ref().is_some_and(|job| job.as_str() == id)
                || made.request_id.as_ref().is_some_and(|known| known == id)
        };
        ring.made.iter().filter(named).cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).made.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Made {
    /// A decision about a job that nobody sent: where it would go now.
    pub fn supposed(fleet: &Fleet, job: Job) -> Self {
        // Not the view that submits choose from, which may be a moment old: this one is of now.
        let (view, exclude) = (Arc::new(View::new(&fleet.snapshot(), fleet.now())), Exclude::default());
        let outcome = view.submit(&job, &exclude, &mut Chance);
        let at = SystemTime::now();
        Self { at, job_id: None, request_id: None, tries: 0, view, job, exclude, outcome }
    }

    /// The record of it. Workers that are gone since have no name any more.
    pub fn explain(&self, fleet: &Fleet) -> Explained {
        let narrowed;
        let view: &View = if self.exclude.is_empty() {
            &self.view
        } else {
            narrowed = self.view.without(&self.exclude);
            &narrowed
        };
        let name = |address| fleet.of(address, |worker| worker.id().cloned()).flatten();
        let chosen = self.outcome.ok().map(|choice| Chosen {
            pool: view.pool(choice.pool).clone(),
            address: choice.address,
            worker: name(choice.address),
            reason: choice.reason,
            steal: view.steal_prices(&self.job, choice.pool),
        });
        let refused = self.outcome.err().map(|Refused { why, retry_after_s }| Nowhere { why, retry_after_s });
        Explained {
            at: rfc3339(self.at),
            job_id: self.job_id.clone(),
            request_id: self.request_id.as_ref().and_then(|id| Some(id.to_str().ok()?.to_owned())),
            tries: self.tries,
            job: self.job.clone(),
            chosen,
            refused,
            pools: view.recall(&self.job, |_, _, address| name(address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::snapshot::{self, Snapshot, Worker};

    fn view(workers: u16) -> Arc<View> {
        let worker = |port| Worker::new(SocketAddr::from(([127, 0, 0, 1], port)));
        let pool = snapshot::Pool {
            id: "aws".parse().unwrap(),
            weight: 1.0,
            egress_usd_per_gb: 0.0,
            drain: false,
            back_at: None,
            reliability: Default::default(),
            workers: (0..workers).map(worker).collect(),
        };
        let snapshot = Snapshot { wait_usd_per_second: 1.0, pools: vec![pool] };
        Arc::new(View::new(&snapshot, std::time::Duration::ZERO))
    }

    fn made(view: &Arc<View>, id: &str) -> Made {
        let (job, exclude) = (Job::default(), Exclude::default());
        let outcome = Err(Refused { why: Why::Unhealthy, retry_after_s: None });
        let job_id = Some(id.parse().unwrap());
        let (at, view) = (SystemTime::now(), view.clone());
        Made {
            at,
            job_id,
            request_id: Some(format!("r-{id}").parse().unwrap()),
            tries: 0,
            view,
            job,
            exclude,
            outcome,
        }
    }

    #[test]
    fn the_last_decisions_are_found_by_either_name() {
        let (decisions, view) = (Decisions::default(), view(2));
        (0..KEPT + 3).for_each(|n| decisions.keep(made(&view, &format!("j{n}"))));
        assert_eq!(decisions.len(), KEPT);
        assert!(decisions.of("j2").is_empty() && decisions.of("r-j2").is_empty());
        assert_eq!((decisions.of("j3").len(), decisions.of("r-j1002").len()), (1, 1));
    }

    #[test]
    fn views_of_a_large_fleet_are_held_in_bounded_number() {
        let decisions = Decisions::default();
        for n in 0..200 {
            let view = view(10_000);
            decisions.keep(made(&view, &format!("a{n}")));
            decisions.keep(made(&view, &format!("b{n}")));
        }
        assert_eq!(decisions.len(), 2 * PLACES_MAX / 10_000);
        assert_eq!(decisions.of("b199").len(), 1);
        // Small views again: the room is given back.
        let small = view(1);
        (0..KEPT).for_each(|n| decisions.keep(made(&small, &format!("c{n}"))));
        assert_eq!((decisions.len(), decisions.ring.lock().unwrap().places), (KEPT, 1));
    }
}
