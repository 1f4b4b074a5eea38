//! The worker in a pool.
//!
//! F = 2 · wait + job work ÷ speed + round trip + egress: seconds until the job is done, with waiting counted twice
//! (it is lost for the job and for those behind it). Among those within max(5 s, 5 %) of the least F the choice is
//! random by free capacity.

use std::time::Duration;

use millrace_wire::spec::Priority;
use rand::Rng;

use super::explain::{Rejection, Terms, Worker as Considered};
use super::{Exclude, Job};
use crate::fleet::snapshot::{Report, Worker};

/// A report up to this age counts as it stands.
pub const FRESH: Duration = Duration::from_secs(3);
/// A report up to this age counts, with its age added to the wait.
pub const STALE: Duration = Duration::from_secs(15);
/// Workers whose F is within this many seconds of the least are equally good.
pub const BAND_S: f64 = 5.0;
/// … or within this share of the least.
pub const BAND_SHARE: f64 = 0.05;
/// Above this many candidates, only [`SAMPLE`] of them are compared.
pub const SAMPLE_ABOVE: usize = 64;
/// How many are compared then.
pub const SAMPLE: usize = 8;
/// What a worker's last failure adds to its F, so that failing fast attracts nothing.
pub const FAILING_S: f64 = 5.0;
/// The share of its capacity by which a worker without a free slot takes part in the random choice.
const BUSY_SHARE: f64 = 0.05;

/// Looks at every worker of a pool.
pub fn consider(
    workers: &[Worker],
    drained: bool,
    job: &Job,
    egress_s: f64,
    exclude: &Exclude,
    now: Duration,
) -> Vec<Considered> {
    let standing: Vec<Result<&Report, Rejection>> =
        workers.iter().map(|worker| eligible(worker, drained, exclude, now)).collect();
    let ages = || standing.iter().flatten().map(|report| now.saturating_sub(report.at));
    // Busy encoders starve reports: when most are late, lateness says nothing, and the last known stands.
    let starved = ages().filter(|age| *age <= FRESH).count() * 2 < ages().count();
    let considered = workers.iter().zip(&standing).map(|(worker, standing)| {
        let mut considered = Considered {
            address: worker.address,
            worker: worker.id().cloned(),
            rejected: None,
            terms: None,
            free: 0.0,
            slots: 0.0,
            speed: 0.0,
        };
        match standing {
            Err(rejection) => considered.rejected = Some(*rejection),
            Ok(report) => {
                let age = now.saturating_sub(report.at);
                if age > STALE && !starved {
                    considered.rejected = Some(Rejection::Stale);
                    return considered;
                }
                let terms = terms(worker, report, age, job, egress_s, now);
                considered.slots = f64::from(report.load.slots);
                considered.speed = report.load.speed;
                considered.free = free_slots(worker, report, now);
                considered.terms = Some(terms);
                if full(worker, report, job.priority, now) {
                    considered.rejected = Some(Rejection::Saturated);
                }
            }
        }
        considered
    });
    considered.collect()
}

fn eligible<'a>(
    worker: &'a Worker,
    drained: bool,
    exclude: &Exclude,
    now: Duration,
) -> Result<&'a Report, Rejection> {
    use crate::fleet::snapshot::Health;
    match &worker.health {
        Health::Unknown => return Err(Rejection::Unknown),
        Health::Down { .. } => return Err(Rejection::Down),
        Health::Up => {}
    }
    let Some(report) = &worker.report else { return Err(Rejection::Unknown) };
    let (outstanding, _) = worker.compensation.at(now);
    match () {
        () if drained => Err(Rejection::PoolDraining),
        () if worker.drain => Err(Rejection::Drained),
        () if report.load.draining => Err(Rejection::Draining),
        () if worker.ejected(now) => Err(Rejection::Ejected),
        () if worker.on_trial && outstanding > 0 => Err(Rejection::OnTrial),
        () if exclude.tried.contains(&worker.address) => Err(Rejection::Tried),
        () if exclude.store.as_ref().is_some_and(|store| *store != report.load.store_id) => {
            Err(Rejection::OtherStore)
        }
        () => Ok(report),
    }
}

fn free_slots(worker: &Worker, report: &Report, now: Duration) -> f64 {
    let load = &report.load;
    let taken = u64::from(load.running) + u64::from(load.queued) + u64::from(worker.compensation.at(now).0);
    // Slots are at most a million, so the difference is exact.
    u64::from(load.slots).saturating_sub(taken) as f64
}

fn terms(worker: &Worker, report: &Report, age: Duration, job: &Job, egress_s: f64, now: Duration) -> Terms {
    let load = &report.load;
    let (_, compensation_s) = worker.compensation.at(now);
    let wait_s = if free_slots(worker, report, now) > 0.0 {
        0.0
    } else {
        (load.work_seconds + compensation_s) / (f64::from(load.slots) * load.speed)
    };
    let age_s = if age > FRESH { age.as_secs_f64() } else { 0.0 };
    Terms {
        wait_s,
        age_s,
        job_s: job.work_s / load.speed,
        round_trip_s: worker.round_trip.as_secs_f64(),
        egress_s,
        failing_s: if worker.failing_until.is_some_and(|until| until > now) { FAILING_S } else { 0.0 },
    }
}

/// No free slot, and its queue has no room left for this class.
fn full(worker: &Worker, report: &Report, priority: Priority, now: Duration) -> bool {
    let load = &report.load;
    let held = f64::from(load.running) + f64::from(load.queued) + f64::from(worker.compensation.at(now).0);
    let waiting = held - f64::from(load.slots);
    waiting >= 0.0 && waiting >= f64::from(load.queue_max) * priority.queue_share()
}

/// Chooses one of those that were not rejected; an index into `workers`.
pub fn choose(workers: &[Considered], rng: &mut impl Rng) -> Option<usize> {
    let mut candidates: Vec<(usize, f64)> = workers
        .iter()
        .enumerate()
        .filter_map(|(index, worker)| Some((index, worker.candidate()?.f_s())))
        .collect();
    if candidates.len() > SAMPLE_ABOVE {
        let sampled = rand::seq::index::sample(rng, candidates.len(), SAMPLE);
        candidates = sampled.into_iter().map(|index| candidates[index]).collect();
    }
    let least = candidates.iter().map(|(_, f)| *f).min_by(f64::total_cmp)?;
    let band = least + BAND_S.max(least * BAND_SHARE);
    candidates.retain(|(_, f)| *f <= band);
    let shares: Vec<f64> = candidates.iter().map(|(index, _)| capacity(&workers[*index])).collect();
    super::pool::draw(&shares, rng).map(|place| candidates[place].0)
}

fn capacity(worker: &Considered) -> f64 {
    (worker.free * worker.speed).max(BUSY_SHARE * worker.slots * worker.speed)
}
