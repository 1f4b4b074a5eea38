//! A gateway of a day: what it last saw of every worker, and the real routing code on top of it.
//!
//! Its snapshot is the gateway's own type, filled from what each worker said when this gateway last looked: once a
//! second, at another moment for every pair, and with every answer to a submit. Reports pass the real checks, and
//! failures go through the real outlier detection. Only the sockets and the clock are not real.

use std::net::SocketAddr;
use std::time::Duration;

use millrace_gateway::fleet::evidence::{PROBE_FAILURES_MAX, Verdict};
use millrace_gateway::fleet::outlier::{Outlier, Reliability};
use millrace_gateway::fleet::snapshot::{Health, Pool, Report, Snapshot, Worker};
use millrace_gateway::fleet::underway::TIMED_OUT_COUNTS;
use millrace_gateway::route::{self, Choice, Exclude, Refused, View};
use millrace_wire::spec::Priority;
use millrace_wire::steal::Prices;
use millrace_wire::{LoadReport, PoolId};
use rand::Rng;
use rand::rngs::StdRng;

use super::cluster::{Cluster, Mark};
use super::day::{Fault, Setting};
use super::jobs::Job;

/// Between two looks at a worker, in seconds.
const PROBE_EVERY_S: f64 = 1.0;
/// How much a worker's queue holds: more than the default, so that a lost pool's work finds room and every policy
/// serves the same jobs.
pub const QUEUE_MAX: u32 = 64;

/// One gateway.
#[derive(Debug)]
pub struct Gateway {
    snapshot: Snapshot,
    seen: Vec<Seen>,
}

/// What a gateway remembers of a worker beside its snapshot.
#[derive(Debug)]
struct Seen {
    /// Its place in the snapshot.
    place: (usize, usize),
    /// When in a second it is looked at.
    phase_s: f64,
    /// When it last answered a submit.
    answered_s: f64,
    outlier: Outlier,
}

/// A moment of the day as the gateway's clock shows it.
fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

/// An address for each worker.
fn address(worker: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (worker >> 8) as u8, worker as u8], 80))
}

impl Gateway {
    /// A gateway that has just seen everybody idle.
    pub fn new(setting: &Setting, rng: &mut StdRng) -> Self {
        let (mut pools, mut seen) = (Vec::new(), Vec::new());
        for (place, pool) in setting.pools.iter().enumerate() {
            let id: PoolId = pool.name.parse().expect("a pool's name");
            let mut workers = Vec::new();
            for member in 0..pool.workers {
                let load = LoadReport {
                    worker: format!("{}-{member}", pool.name).parse().expect("a worker's name"),
                    pool: id.clone(),
                    store_id: "store".to_owned(),
                    slots: 1,
                    running: 0,
                    queued: 0,
                    queue_max: QUEUE_MAX,
                    work_seconds: 0.0,
                    speed: pool.speed,
                    pool_queued: 0,
                    pool_work_seconds: 0.0,
                    draining: false,
                    incarnation: 1,
                    sequence: 0,
                };
                workers.push(Worker {
                    health: Health::Up,
                    report: Some(Report { at: Duration::ZERO, load }),
                    round_trip: Duration::from_millis(2),
                    ..Worker::new(address(seen.len()))
                });
                let phase_s = rng.random_range(0.0..PROBE_EVERY_S);
                let answered_s = f64::NEG_INFINITY;
                seen.push(Seen { place: (place, member), phase_s, answered_s, outlier: Outlier::default() });
            }
            let egress_usd_per_gb = pool.egress_usd_per_gb;
            let (back_at, reliability) = (None, Reliability::default());
            pools.push(Pool {
                id,
                weight: 1.0,
                egress_usd_per_gb,
                drain: false,
                back_at,
                reliability,
                workers,
            });
        }
        Self { snapshot: Snapshot { wait_usd_per_second: setting.wait_usd_per_hour / 3600.0, pools }, seen }
    }

    /// Brings the snapshot up to what this gateway can have seen by `now_s`.
    fn look(&mut self, cluster: &Cluster, setting: &Setting, now_s: f64) {
        for (worker, seen) in self.seen.iter().enumerate() {
            let life = cluster.life(worker);
            let looks = |at_s: f64| ((at_s - seen.phase_s) / PROBE_EVERY_S).floor();
            let looked_s = looks(now_s) * PROBE_EVERY_S + seen.phase_s;
            let pool = &mut self.snapshot.pools[seen.place.0];
            let known = &mut pool.workers[seen.place.1];
            if let Some(died_s) = life.died_s {
                if looks(now_s) - looks(died_s) >= f64::from(PROBE_FAILURES_MAX) {
                    known.health = Health::Down { reason: "connection refused".to_owned() };
                }
                continue;
            }
            if looked_s < life.back_s {
                continue;
            }
            if matches!(known.health, Health::Down { .. }) && life.back_s > 0.0 {
                known.health = Health::Up;
                pool.back_at.get_or_insert(at(looked_s));
            }
            let heard_s = looked_s.max(seen.answered_s);
            let Some(report) = &mut known.report else { continue };
            let fault = setting.pools[seen.place.0].fault;
            if fault == Fault::None {
                fill(&mut report.load, &cluster.report(worker, heard_s));
                report.at = at(heard_s);
                continue;
            }
            let mut said = report.load.clone();
            fill(&mut said, &cluster.report(worker, heard_s));
            said.sequence = (heard_s * 1e3) as u64 + 1;
            let text = fault.tamper(&said.to_orca(), heard_s);
            // What a worker says is believed as far as the real gateway believes it.
            match LoadReport::from_orca(&text, &said.worker, &said.pool, &said.store_id) {
                Ok(said) if said == report.load => report.at = at(heard_s),
                Ok(said) if said.supersedes(&report.load) => *report = Report { at: at(heard_s), load: said },
                Ok(_) => {}
                Err(error) => known.health = Health::Down { reason: error.to_string() },
            }
        }
    }

    /// Chooses by the real routing code; answers the worker, and what the job must have waited before each other pool may
    /// steal it.
    pub fn choose(
        &mut self,
        cluster: &Cluster,
        setting: &Setting,
        job: &Job,
        exclude: &Exclude,
        now_s: f64,
        rng: &mut StdRng,
    ) -> Result<(usize, Vec<(usize, f64)>), Refused> {
        self.look(cluster, setting, now_s);
        let view = View::new(&self.snapshot, at(now_s));
        let wanted = route::Job {
            priority: Priority::Normal,
            input_pool: job.input_pool.map(|pool| self.snapshot.pools[pool].id.clone()),
            work_s: job.hint_s.unwrap_or(route::WORK_DEFAULT_S),
            // Both come from the same hint.
            input_gb: job.hint_s.map_or(route::Job::default().input_gb, |_| job.input_gb),
        };
        let Choice { pool, worker, .. } = view.submit(&wanted, exclude, rng)?;
        let before: usize = self.snapshot.pools[..pool].iter().map(|pool| pool.workers.len()).sum();
        let prices = Prices::of(view.steal_prices(&wanted, pool));
        let place = |id: &PoolId| self.snapshot.pools.iter().position(|pool| pool.id == *id);
        let prices = prices.iter().filter_map(|(id, price)| Some((place(id)?, price.as_secs_f64())));
        Ok((before + worker, prices.collect()))
    }

    fn known(&mut self, worker: usize) -> (&mut Worker, &mut Seen) {
        let seen = &mut self.seen[worker];
        (&mut self.snapshot.pools[seen.place.0].workers[seen.place.1], seen)
    }

    /// A submit goes to a worker and is not answered at once.
    pub fn sent(&mut self, worker: usize, work_s: f64) {
        let (known, _) = self.known(worker);
        known.compensation.jobs += 1;
        known.compensation.work_s += work_s;
    }

    /// That submit is answered, or has timed out.
    pub fn settled(&mut self, worker: usize, work_s: f64, timed_out: bool, now_s: f64) {
        let (known, _) = self.known(worker);
        let compensation = &mut known.compensation;
        compensation.jobs = compensation.jobs.saturating_sub(1);
        compensation.work_s = (compensation.work_s - work_s).max(0.0);
        compensation.timed_out.retain(|(until, _)| *until > at(now_s));
        if timed_out {
            compensation.timed_out.push((at(now_s) + TIMED_OUT_COUNTS, work_s));
        }
    }

    /// How a submit ended, as the fleet judges it.
    pub fn judge(&mut self, worker: usize, verdict: Verdict, now_s: f64) {
        let now = at(now_s);
        let peers = &self.snapshot.pools[self.seen[worker].place.0].workers;
        let spare = (peers.iter().filter(|peer| peer.ejected(now)).count() + 1) * 2 <= peers.len();
        let reliability = &mut self.snapshot.pools[self.seen[worker].place.0].reliability;
        match verdict {
            Verdict::Answered => reliability.answered(now),
            Verdict::Slow | Verdict::Contradicted | Verdict::Failed => reliability.failed(now),
        }
        let (known, seen) = self.known(worker);
        match verdict {
            Verdict::Answered => {
                seen.answered_s = now_s;
                seen.outlier.answered(now);
            }
            Verdict::Slow | Verdict::Contradicted => seen.outlier.slow(now),
            Verdict::Failed => {
                seen.outlier.failed(now, spare);
            }
        }
        known.ejected_until = seen.outlier.ejected_until();
        known.on_trial = seen.outlier.on_trial();
        known.failing_until = seen.outlier.failing_until();
    }

    /// Names a worker that must not be tried again.
    pub fn exclude(exclude: &mut Exclude, worker: usize) {
        exclude.tried.push(address(worker));
    }

    /// Names a worker that refused a job against its own word.
    pub fn disbelieve(exclude: &mut Exclude, worker: usize) {
        exclude.disbelieved.push(address(worker));
    }
}

fn fill(load: &mut LoadReport, mark: &Mark) {
    load.running = mark.running;
    load.queued = mark.queued;
    load.work_seconds = mark.running_work_s + mark.queued_work_s;
    load.speed = mark.speed;
    load.pool_queued = mark.pool_queued;
    load.pool_work_seconds = mark.pool_work_s;
}
