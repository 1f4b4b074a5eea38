//! The day itself: events in virtual time.
//!
//! Arrivals, ends of jobs, a pool that dies and comes back, a pool that slows down, submits that are not answered. The
//! same jobs meet every policy. Nothing here decides where a job goes: that is [`super::gateway`] or [`super::peers`].

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use millrace_gateway::fleet::evidence::Verdict;
use millrace_gateway::forward::TRIES_MAX;
use millrace_gateway::route::Exclude;
use millrace_wire::load;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cluster::{Cluster, Queues, Started};
use super::gateway::Gateway;
use super::jobs::{Job, Workload};
use super::peers::{Balancer, Orca, Rule, least};

/// What a worker's lease is, in seconds: how long nobody knows that its work is lost.
const LEASE_S: f64 = 30.0;
/// How long a gateway waits for a worker's answer to a submit, in seconds (the routing file's default).
const SUBMIT_TIMEOUT_S: f64 = 10.0;
/// How long a slow worker takes to answer, in seconds.
const SLOW_ANSWER_S: f64 = 8.0;
/// After how long a client posts again when it was told that the gateway's tries failed, in seconds.
const CLIENT_RETRY_S: f64 = 5.0;
/// How long a balancer without load reports takes to see that a worker is dead, in seconds: two health checks.
const DEAD_AFTER_S: f64 = 2.0;

/// One pool of a day.
#[derive(Debug, Clone)]
pub struct PoolSetting {
    /// Its name.
    pub name: &'static str,
    /// Workers, of one slot each.
    pub workers: usize,
    /// Reference-seconds per second and slot.
    pub speed: f64,
    /// US dollars per gigabyte that leaves it.
    pub egress_usd_per_gb: f64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a pool's workers, all day. Their probes are answered in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Submits are accepted and never answered.
    BlackHole,
    /// Submits are answered with a 500 at once.
    Instant500,
    /// Submits are answered well after a long time.
    Slow200,
    /// Reports say negative work.
    Negative,
    /// Reports say NaN.
    NotANumber,
    /// Reports say a speed beyond belief.
    Huge,
    /// Reports say the greatest speed that is believed.
    Boast,
    /// Reports say the most slots and the greatest speed that are believed, all idle, and every submit is refused.
    Capture,
    /// Reports are numbered backwards.
    StaleSequence,
}

impl Fault {
    /// What a worker says in place of the truth.
    pub fn tamper(self, report: &str, now_s: f64) -> String {
        let replace = |metric: &str, value: &str| {
            let parts = report.split(", ").map(|part| match part.split_once('=') {
                Some((name, _)) if name == metric => format!("{metric}={value}"),
                _ => part.to_owned(),
            });
            parts.collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::Negative => replace("named_metrics.work_seconds", "-5"),
            Self::NotANumber => replace("named_metrics.speed", "NaN"),
            Self::Huge => replace("named_metrics.speed", "1e300"),
            Self::Boast => replace("named_metrics.speed", &load::SPEED_MAX.to_string()),
            Self::Capture => {
                let fast = replace("named_metrics.speed", &load::SPEED_MAX.to_string());
                fast.replace("named_metrics.slots=1,", &format!("named_metrics.slots={},", load::SLOTS_MAX))
            }
            Self::StaleSequence => {
                replace("named_metrics.sequence", &format!("{}", 1e9 as u64 - now_s as u64))
            }
            Self::None | Self::BlackHole | Self::Instant500 | Self::Slow200 => report.to_owned(),
        }
    }
}

/// What happens to a pool in the middle of a day, for an hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Incident {
    /// Nothing.
    None,
    /// It dies.
    Lost(usize),
    /// It is left with this share of its speed.
    BrownOut(usize, f64),
}

/// What a day is made of.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The pools.
    pub pools: Vec<PoolSetting>,
    /// How many gateways.
    pub gateways: usize,
    /// US dollars that an hour of waiting costs.
    pub wait_usd_per_hour: f64,
    /// The jobs.
    pub workload: Workload,
    /// Work that arrives, as a share of all capacity.
    pub load: f64,
    /// How long jobs arrive, in seconds.
    pub seconds: f64,
    /// What happens …
    pub incident: Incident,
    /// … from then on, in seconds …
    pub incident_at_s: f64,
    /// … for so long.
    pub incident_s: f64,
    /// Jobs that arrive before this are not counted, in seconds.
    pub warm_up_s: f64,
}

/// What became of a day.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Seconds from post to finish, of every job that counts.
    pub finish_s: Vec<f64>,
    /// The same of those that ran in the first pool.
    pub first_pool_s: Vec<f64>,
    /// US dollars for inputs that left their pool.
    pub egress_usd: f64,
    /// Share of the counted jobs that ran in the first pool.
    pub first_pool_share: f64,
    /// Tries beyond the first, by gateways or clients.
    pub retries: usize,
}

#[derive(Debug, Clone)]
enum Event {
    Arrive(usize),
    Answer { job: usize, worker: usize, well: bool, try_: Box<Try> },
    Done { worker: usize, generation: u32 },
    Begins,
    Expires,
    Claims,
    Ends,
}

/// A submit on its way from worker to worker.
#[derive(Debug, Clone, Default)]
struct Try {
    count: u32,
    exclude: Exclude,
    tried: Vec<usize>,
    /// What other pools must wait before they steal it from where it goes now.
    prices_s: Vec<(usize, f64)>,
}

#[derive(Debug)]
struct Due {
    at_s: f64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The heap gives the greatest first: the earliest, and of these the one that was noted first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at_s.total_cmp(&self.at_s).then(other.number.cmp(&self.number))
    }
}

struct Day<'a> {
    setting: &'a Setting,
    rule: Rule,
    jobs: Vec<Job>,
    cluster: Cluster,
    gateways: Vec<Gateway>,
    balancers: Vec<Balancer>,
    orca: Vec<Orca>,
    nominal: Vec<f64>,
    /// The worker that each job was sent to.
    sent_to: Vec<usize>,
    /// What waits centrally.
    central: Vec<usize>,
    lost: Vec<super::claim::Task>,
    due: BinaryHeap<Due>,
    noted: u64,
    rng: StdRng,
    outcome: Outcome,
    counted: usize,
    first: usize,
}

impl Setting {
    /// Reference-seconds per second of all pools.
    pub fn capacity(&self) -> f64 {
        self.pools.iter().map(|pool| pool.workers as f64 * pool.speed).sum()
    }

    /// Runs the day.
    pub fn run(&self, rule: Rule, queues: Queues, seed: u64) -> Outcome {
        let work_rate = self.load * self.capacity();
        let jobs = self.workload.draw(work_rate, self.seconds, self.pools.len(), self.gateways, seed);
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6d69_6c6c);
        let pools: Vec<(usize, f64)> = self.pools.iter().map(|pool| (pool.workers, pool.speed)).collect();
        let queues = if rule.is_central() { Queues::Workers } else { queues };
        let cluster = Cluster::new(&pools, queues, jobs.len());
        let workers = cluster.workers.len();
        let mut day = Day {
            setting: self,
            rule,
            gateways: (0..self.gateways).map(|_| Gateway::new(self, &mut rng)).collect(),
            balancers: (0..self.gateways).map(|_| Balancer::new(workers, &mut rng)).collect(),
            orca: vec![Orca::default(); workers],
            nominal: cluster.workers.iter().map(|worker| worker.speed).collect(),
            sent_to: vec![0; jobs.len()],
            central: Vec::new(),
            lost: Vec::new(),
            due: BinaryHeap::new(),
            noted: 0,
            outcome: Outcome::default(),
            counted: 0,
            first: 0,
            jobs,
            cluster,
            rng,
        };
        for job in 0..day.jobs.len() {
            day.note(day.jobs[job].at_s, Event::Arrive(job));
        }
        if self.incident != Incident::None {
            day.note(self.incident_at_s, Event::Begins);
            day.note(self.incident_at_s + self.incident_s, Event::Ends);
        }
        while let Some(Due { at_s, event, .. }) = day.due.pop() {
            day.happen(event, at_s);
        }
        let mut outcome = day.outcome;
        outcome.first_pool_share = day.first as f64 / day.counted.max(1) as f64;
        outcome
    }
}

impl Day<'_> {
    fn note(&mut self, at_s: f64, event: Event) {
        self.noted += 1;
        self.due.push(Due { at_s, number: self.noted, event });
    }

    fn happen(&mut self, event: Event, now_s: f64) {
        match event {
            Event::Arrive(job) => self.submit(job, Try::default(), now_s),
            Event::Answer { job, worker, well, try_ } => self.answer(job, worker, well, *try_, now_s),
            Event::Done { worker, generation } => self.done(worker, generation, now_s),
            Event::Begins => match self.setting.incident {
                Incident::Lost(pool) => self.lose(pool, now_s),
                Incident::BrownOut(pool, share) => self.slow(pool, share, now_s),
                Incident::None => {}
            },
            Event::Ends => match self.setting.incident {
                Incident::Lost(pool) => {
                    self.cluster.revive(pool, now_s);
                    self.claim_all(now_s);
                }
                Incident::BrownOut(pool, _) => self.slow(pool, 1.0, now_s),
                Incident::None => {}
            },
            Event::Expires => {
                if let Incident::Lost(pool) = self.setting.incident {
                    let lost = std::mem::take(&mut self.lost);
                    self.cluster.expire(pool, lost, now_s);
                    self.claim_all(now_s);
                }
            }
            Event::Claims => self.claim_all(now_s),
        }
    }

    fn submit(&mut self, job: usize, mut try_: Try, now_s: f64) {
        let posted = self.jobs[job];
        let estimate_s = posted.hint_s.unwrap_or(millrace_gateway::route::WORK_DEFAULT_S);
        let chosen = match self.rule {
            Rule::Millrace => {
                let gateway = &mut self.gateways[posted.gateway];
                let exclude = &try_.exclude;
                match gateway.choose(&self.cluster, self.setting, &posted, exclude, now_s, &mut self.rng) {
                    Ok((worker, prices_s)) => {
                        try_.prices_s = prices_s;
                        Some(worker)
                    }
                    Err(refused) => {
                        let after_s = refused.retry_after_s.map_or(CLIENT_RETRY_S, |after| after as f64);
                        self.outcome.retries += 1;
                        self.note(now_s + after_s, Event::Arrive(job));
                        return;
                    }
                }
            }
            Rule::CentralShortest => {
                self.central.push(job);
                self.dispatch(now_s);
                return;
            }
            Rule::CentralEarliest => {
                let (cluster, jobs) = (&self.cluster, &self.jobs);
                let alive: Vec<usize> =
                    (0..cluster.workers.len()).filter(|w| cluster.life(*w).died_s.is_none()).collect();
                let ends = |worker: usize| {
                    let busy_s = cluster.busy_s(worker, now_s, |job| jobs[job].work_s);
                    busy_s + posted.work_s / cluster.workers[worker].speed
                };
                least(&alive, ends, &mut self.rng)
            }
            rule => {
                let seen_up = |worker: &usize| {
                    let died_s = self.cluster.life(*worker).died_s;
                    died_s.is_none_or(|at_s| now_s < at_s + DEAD_AFTER_S) && !try_.tried.contains(worker)
                };
                let up: Vec<usize> = (0..self.nominal.len()).filter(seen_up).collect();
                let known = (&self.cluster, self.orca.as_slice());
                self.balancers[posted.gateway].choose(rule, &up, &self.nominal, known, now_s, &mut self.rng)
            }
        };
        let Some(worker) = chosen else {
            self.outcome.retries += 1;
            self.note(now_s + CLIENT_RETRY_S, Event::Arrive(job));
            return;
        };
        try_.count += 1;
        try_.tried.push(worker);
        Gateway::exclude(&mut try_.exclude, worker);
        let fault = self.setting.pools[self.cluster.workers[worker].pool].fault;
        if self.cluster.life(worker).died_s.is_some() || matches!(fault, Fault::Instant500 | Fault::Capture) {
            if fault == Fault::Capture {
                Gateway::disbelieve(&mut try_.exclude, worker);
            }
            self.gateways[posted.gateway].sent(worker, estimate_s);
            self.answer(job, worker, false, try_, now_s);
        } else if matches!(fault, Fault::BlackHole | Fault::Slow200) {
            self.gateways[posted.gateway].sent(worker, estimate_s);
            let well = fault == Fault::Slow200;
            let after_s = if well { SLOW_ANSWER_S } else { SUBMIT_TIMEOUT_S };
            self.note(now_s + after_s, Event::Answer { job, worker, well, try_: Box::new(try_) });
        } else {
            self.accepted(job, worker, try_.prices_s, now_s);
            self.gateways[posted.gateway].judge(worker, Verdict::Answered, now_s);
        }
    }

    /// A worker's answer that did not come at once.
    fn answer(&mut self, job: usize, worker: usize, well: bool, mut try_: Try, now_s: f64) {
        let posted = self.jobs[job];
        let estimate_s = posted.hint_s.unwrap_or(millrace_gateway::route::WORK_DEFAULT_S);
        let fault = self.setting.pools[self.cluster.workers[worker].pool].fault;
        let gateway = &mut self.gateways[posted.gateway];
        gateway.settled(worker, estimate_s, fault == Fault::BlackHole, now_s);
        gateway.judge(
            worker,
            match () {
                () if well => Verdict::Answered,
                () if fault == Fault::Capture => Verdict::Contradicted,
                () => Verdict::Failed,
            },
            now_s,
        );
        if well {
            self.accepted(job, worker, try_.prices_s, now_s);
            return;
        }
        self.outcome.retries += 1;
        if try_.count < TRIES_MAX {
            if fault == Fault::BlackHole {
                // Its outcome is unknown: only the same store will do, which all of this day's workers share.
                try_.exclude.store = Some("store".to_owned());
            }
            self.submit(job, try_, now_s);
        } else {
            self.note(now_s + CLIENT_RETRY_S, Event::Arrive(job));
        }
    }

    fn accepted(&mut self, job: usize, worker: usize, prices_s: Vec<(usize, f64)>, now_s: f64) {
        let posted = self.jobs[job];
        let estimate_s = posted.hint_s.unwrap_or(millrace_gateway::route::WORK_DEFAULT_S);
        self.sent_to[job] = worker;
        self.balancers[posted.gateway].sent(worker, now_s);
        let steals = self.cluster.accept(worker, job, estimate_s, prices_s, now_s);
        self.claim(worker, now_s);
        let pool = self.cluster.workers[worker].pool;
        // If the one that was asked is busy, another one of its pool may be idle.
        let start = self.rng.random_range(0..self.nominal.len());
        for offset in 0..self.nominal.len() {
            let other = (start + offset) % self.nominal.len();
            if self.cluster.waiting() == 0 {
                break;
            }
            if self.cluster.workers[other].pool == pool {
                self.claim(other, now_s);
            }
        }
        if self.cluster.waits(job) {
            steals.into_iter().for_each(|at_s| self.note(at_s, Event::Claims));
        }
    }

    fn claim(&mut self, worker: usize, now_s: f64) {
        let jobs = &self.jobs;
        if let Some(started) = self.cluster.claim(worker, now_s, |job| jobs[job].work_s) {
            self.orca[worker].note(true, false, now_s);
            self.begun(started);
        }
    }

    fn begun(&mut self, Started { worker, done_s, generation }: Started) {
        self.note(done_s, Event::Done { worker, generation });
    }

    fn claim_all(&mut self, now_s: f64) {
        (0..self.nominal.len()).for_each(|worker| self.claim(worker, now_s));
        self.dispatch(now_s);
    }

    /// The central queue: the shortest to the fastest idle one.
    fn dispatch(&mut self, now_s: f64) {
        while !self.central.is_empty() {
            let idle = (0..self.nominal.len()).filter(|worker| self.cluster.is_idle(*worker));
            let speed = |worker: &usize| self.cluster.workers[*worker].speed;
            let Some(worker) = idle.max_by(|a, b| speed(a).total_cmp(&speed(b))) else { return };
            let work_s = |place: &usize| self.jobs[self.central[*place]].work_s;
            let shortest = (0..self.central.len()).min_by(|a, b| work_s(a).total_cmp(&work_s(b)));
            let Some(shortest) = shortest else { return };
            let job = self.central.swap_remove(shortest);
            self.accepted(job, worker, Vec::new(), now_s);
        }
    }

    fn done(&mut self, worker: usize, generation: u32, now_s: f64) {
        let Some(running) = self.cluster.done(worker, generation, now_s) else { return };
        let job = running.task.job;
        let posted = self.jobs[job];
        self.orca[worker].note(false, true, now_s);
        let sent_to = self.sent_to[job];
        self.balancers[posted.gateway].ended(sent_to, Some(now_s - running.task.created_at_s), now_s);
        let pool = self.cluster.workers[worker].pool;
        if posted.at_s >= self.setting.warm_up_s {
            self.counted += 1;
            self.outcome.finish_s.push(now_s - posted.at_s);
            if pool == 0 {
                self.first += 1;
                self.outcome.first_pool_s.push(now_s - posted.at_s);
            }
            if let Some(from) = posted.input_pool.filter(|from| *from != pool) {
                self.outcome.egress_usd += self.setting.pools[from].egress_usd_per_gb * posted.input_gb;
            }
        }
        self.claim(worker, now_s);
        self.dispatch(now_s);
    }

    fn lose(&mut self, pool: usize, now_s: f64) {
        let lost = self.cluster.lose(pool, now_s);
        for worker in (0..self.nominal.len()).filter(|worker| self.cluster.workers[*worker].pool == pool) {
            self.orca[worker].note(false, false, now_s);
        }
        if self.cluster.has_pool_queues() {
            // The leases run out; what waited is claimable by the other pool then.
            self.lost = lost;
            self.note(now_s + LEASE_S, Event::Expires);
            self.note(now_s + LEASE_S + 2.001, Event::Claims);
        } else {
            // Every open request breaks off and is sent again at once.
            for task in lost {
                let sent_to = self.sent_to[task.job];
                self.balancers[self.jobs[task.job].gateway].ended(sent_to, None, now_s);
                self.outcome.retries += 1;
                self.submit(task.job, Try::default(), now_s);
            }
        }
    }

    fn slow(&mut self, pool: usize, share: f64, now_s: f64) {
        for worker in 0..self.nominal.len() {
            if self.cluster.workers[worker].pool == pool {
                let speed = self.nominal[worker] * share;
                if let Some(started) = self.cluster.set_speed(worker, speed, now_s) {
                    self.begun(started);
                }
            }
        }
    }
}
