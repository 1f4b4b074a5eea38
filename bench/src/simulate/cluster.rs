//! The workers of a day: what runs, what waits, and what they say of it.
//!
//! A worker has one slot. Where queues belong to pools, an idle worker claims by the store's rule ([`super::claim`]); else
//! a job stays at the worker that it was sent to. Reports are not stored but read back: each worker keeps a short
//! history, so that every gateway can see it as of the moment when it last looked.

use std::collections::VecDeque;

use super::claim::{self, Task};

/// How much of the past a report may be read from, in seconds.
const HISTORY_S: f64 = 4.0;
/// How much a worker's own idea of its speed follows the newest job (the worker's cost model).
const SPEED_NEWEST: f64 = 0.2;

/// Who owns waiting work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// The worker that it was sent to.
    Workers,
    /// The pool.
    Pools,
}

/// One worker.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its pool.
    pub pool: usize,
    /// Reference-seconds per second, now.
    pub speed: f64,
    /// What it believes of that.
    pub learned: f64,
    /// Whether it lives.
    pub life: Life,
    /// What runs there.
    pub running: Option<Running>,
    /// Counts what ran there, so that the end of what was cut off is not mistaken for another's.
    pub generation: u32,
    queue: VecDeque<Task>,
    accepted: u32,
    accepted_work_s: f64,
    history: VecDeque<(f64, Mark)>,
}

/// Whether a worker lives, and since when.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// When it died, while it is dead.
    pub died_s: Option<f64>,
    /// When it last came back.
    pub back_s: f64,
}

/// A job that runs.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    /// Its task.
    pub task: Task,
    /// When it began.
    pub since_s: f64,
    /// Its work.
    work_s: f64,
    /// What was left of it …
    left_s: f64,
    /// … at this time.
    at_s: f64,
}

/// What a worker's report says, as of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mark {
    /// Jobs that run.
    pub running: u32,
    /// Their reference-seconds left.
    pub running_work_s: f64,
    /// Jobs that it accepted and that wait.
    pub queued: u32,
    /// Their estimated work.
    pub queued_work_s: f64,
    /// What it believes of its speed.
    pub speed: f64,
    /// Reference-seconds done per second just then.
    rate: f64,
    /// Jobs that wait in its pool.
    pub pool_queued: u32,
    /// Their estimated work.
    pub pool_work_s: f64,
}

/// What a worker begins.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// Who.
    pub worker: usize,
    /// When it will be done, unless something happens.
    pub done_s: f64,
    /// Of which generation.
    pub generation: u32,
}

/// All workers and what waits.
#[derive(Debug)]
pub struct Cluster {
    /// The workers, pool after pool.
    pub workers: Vec<Worker>,
    queues: Queues,
    waiting: Vec<Task>,
    accepted_by: Vec<usize>,
    estimates_s: Vec<f64>,
    /// What each job must have waited before a pool may steal it.
    prices_s: Vec<Vec<(usize, f64)>>,
    backlog: Vec<VecDeque<(f64, u32, f64)>>,
    gone: Vec<bool>,
}

impl Cluster {
    /// Idle workers: for each pool how many, and how fast.
    pub fn new(pools: &[(usize, f64)], queues: Queues, jobs: usize) -> Self {
        let worker = |pool: usize, speed: f64| Worker {
            pool,
            speed,
            learned: speed,
            life: Life { died_s: None, back_s: f64::NEG_INFINITY },
            running: None,
            generation: 0,
            queue: VecDeque::new(),
            accepted: 0,
            accepted_work_s: 0.0,
            history: VecDeque::from([(f64::NEG_INFINITY, Mark { speed, ..Mark::default() })]),
        };
        let of_pool = |(pool, (count, speed)): (usize, &(usize, f64))| vec![worker(pool, *speed); *count];
        Self {
            workers: pools.iter().enumerate().flat_map(of_pool).collect(),
            queues,
            waiting: Vec::new(),
            accepted_by: vec![0; jobs],
            estimates_s: vec![0.0; jobs],
            prices_s: vec![Vec::new(); jobs],
            backlog: vec![VecDeque::from([(f64::NEG_INFINITY, 0, 0.0)]); pools.len()],
            gone: vec![false; pools.len()],
        }
    }

    /// A worker accepts a job that other pools may steal at these prices; answers when each of them may.
    pub fn accept(
        &mut self,
        worker: usize,
        job: usize,
        estimate_s: f64,
        prices_s: Vec<(usize, f64)>,
        now_s: f64,
    ) -> Vec<f64> {
        let pool = self.workers[worker].pool;
        self.accepted_by[job] = worker;
        self.estimates_s[job] = estimate_s;
        let task = Task { job, pool, class: 1, created_at_s: now_s, not_before_s: now_s, epoch: 0 };
        let steals = prices_s.iter().map(|(_, price_s)| claim::stealable_at(&task, *price_s)).collect();
        self.prices_s[job] = prices_s;
        self.wait(task, now_s);
        steals
    }

    fn wait(&mut self, task: Task, now_s: f64) {
        let worker = self.accepted_by[task.job];
        self.workers[worker].accepted += 1;
        self.workers[worker].accepted_work_s += self.estimates_s[task.job];
        match self.queues {
            Queues::Workers => self.workers[worker].queue.push_back(task),
            Queues::Pools => {
                self.waiting.push(task);
                self.note_backlog(task.pool, now_s);
            }
        }
        self.mark(worker, now_s);
    }

    /// An idle worker begins what it may, if there is any; `work_s` says what a job really is.
    pub fn claim(&mut self, worker: usize, now_s: f64, work_s: impl Fn(usize) -> f64) -> Option<Started> {
        if !self.is_idle(worker) {
            return None;
        }
        let mut task = match self.queues {
            Queues::Workers => self.workers[worker].queue.pop_front()?,
            Queues::Pools => {
                let pool = self.workers[worker].pool;
                let price_s = |task: &Task| {
                    let mut prices_s = self.prices_s[task.job].iter();
                    prices_s.find(|(thief, _)| *thief == pool).map(|(_, price_s)| *price_s)
                };
                let place = claim::next(&self.waiting, pool, now_s, |pool| self.gone[pool], price_s)?;
                let task = self.waiting.remove(place);
                self.note_backlog(task.pool, now_s);
                task
            }
        };
        let accepted_by = self.accepted_by[task.job];
        let estimate_s = self.estimates_s[task.job];
        let acceptor = &mut self.workers[accepted_by];
        acceptor.accepted = acceptor.accepted.saturating_sub(1);
        acceptor.accepted_work_s = (acceptor.accepted_work_s - estimate_s).max(0.0);
        task.epoch += 1;
        task.pool = self.workers[worker].pool;
        let work_s = work_s(task.job);
        let claimer = &mut self.workers[worker];
        claimer.generation += 1;
        claimer.running = Some(Running { task, since_s: now_s, work_s, left_s: work_s, at_s: now_s });
        let started =
            Started { worker, done_s: now_s + work_s / claimer.speed, generation: claimer.generation };
        self.mark(accepted_by, now_s);
        self.mark(worker, now_s);
        Some(started)
    }

    /// What runs there is done; `None` when it was cut off before.
    pub fn done(&mut self, worker: usize, generation: u32, now_s: f64) -> Option<Running> {
        let own = &mut self.workers[worker];
        if own.generation != generation {
            return None;
        }
        let running = own.running.take()?;
        let speed = running.work_s / (now_s - running.since_s).max(1e-3);
        own.learned += SPEED_NEWEST * (speed - own.learned);
        self.mark(worker, now_s);
        Some(running)
    }

    /// A worker's speed changes; what runs there ends at another time.
    pub fn set_speed(&mut self, worker: usize, speed: f64, now_s: f64) -> Option<Started> {
        let own = &mut self.workers[worker];
        let before = std::mem::replace(&mut own.speed, speed);
        let mut started = None;
        if let Some(running) = &mut own.running {
            running.left_s = (running.left_s - (now_s - running.at_s) * before).max(0.0);
            running.at_s = now_s;
            own.generation += 1;
            started =
                Some(Started { worker, done_s: now_s + running.left_s / speed, generation: own.generation });
        }
        self.mark(worker, now_s);
        started
    }

    /// A whole pool dies: answers what ran there, and with queues of their own also what waited at its workers.
    pub fn lose(&mut self, pool: usize, now_s: f64) -> Vec<Task> {
        let mut lost = Vec::new();
        for worker in
            (0..self.workers.len()).filter(|worker| self.workers[*worker].pool == pool).collect::<Vec<_>>()
        {
            let own = &mut self.workers[worker];
            own.life.died_s = Some(now_s);
            own.generation += 1;
            lost.extend(own.running.take().map(|running| running.task));
            if self.queues == Queues::Workers {
                lost.extend(own.queue.drain(..));
                (own.accepted, own.accepted_work_s) = (0, 0.0);
            }
            self.mark(worker, now_s);
        }
        lost
    }

    /// Leases ran out: what ran in a pool that died waits again, and the pool counts as gone.
    pub fn expire(&mut self, pool: usize, lost: Vec<Task>, now_s: f64) {
        self.gone[pool] = true;
        for task in lost {
            self.wait(Task { not_before_s: now_s, ..task }, now_s);
        }
    }

    /// A pool is back.
    pub fn revive(&mut self, pool: usize, now_s: f64) {
        self.gone[pool] = false;
        for worker in self.workers.iter_mut().filter(|worker| worker.pool == pool) {
            worker.life = Life { died_s: None, back_s: now_s };
        }
    }

    /// Whether a worker lives.
    pub fn life(&self, worker: usize) -> Life {
        self.workers[worker].life
    }

    /// Whether a worker lives and has nothing to do.
    pub fn is_idle(&self, worker: usize) -> bool {
        self.workers[worker].life.died_s.is_none() && self.workers[worker].running.is_none()
    }

    /// Seconds until a worker with a queue of its own is done with all that it has.
    pub fn busy_s(&self, worker: usize, now_s: f64, work_s: impl Fn(usize) -> f64) -> f64 {
        let own = &self.workers[worker];
        let left_s = own.running.map_or(0.0, |r| (r.left_s - (now_s - r.at_s) * own.speed).max(0.0));
        (left_s + own.queue.iter().map(|task| work_s(task.job)).sum::<f64>()) / own.speed
    }

    /// Whether waiting work belongs to pools.
    pub fn has_pool_queues(&self) -> bool {
        self.queues == Queues::Pools
    }

    /// Whether a job waits in a pool's queue.
    pub fn waits(&self, job: usize) -> bool {
        self.waiting.iter().any(|task| task.job == job)
    }

    /// How many wait in pools' queues.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn note_backlog(&mut self, pool: usize, now_s: f64) {
        let own = || self.waiting.iter().filter(|task| task.pool == pool);
        let work_s = own().map(|task| self.estimates_s[task.job]).sum();
        let entry = (now_s, own().count() as u32, work_s);
        push(&mut self.backlog[pool], now_s, entry, |entry| entry.0);
    }

    fn mark(&mut self, worker: usize, now_s: f64) {
        let own = &mut self.workers[worker];
        let left_s = own.running.map_or(0.0, |r| (r.left_s - (now_s - r.at_s) * own.speed).max(0.0));
        let mark = Mark {
            running: u32::from(own.running.is_some()),
            running_work_s: left_s,
            queued: own.accepted,
            queued_work_s: own.accepted_work_s,
            speed: own.learned,
            rate: if own.running.is_some() { own.speed } else { 0.0 },
            pool_queued: 0,
            pool_work_s: 0.0,
        };
        push(&mut own.history, now_s, (now_s, mark), |entry| entry.0);
    }

    /// What a worker reported at `at_s`, which is at most [`HISTORY_S`] ago.
    pub fn report(&self, worker: usize, at_s: f64) -> Mark {
        let own = &self.workers[worker];
        let newest = own.history.iter().rev().find(|(since_s, _)| *since_s <= at_s);
        let Some((since_s, mark)) = newest.or(own.history.front()) else { return Mark::default() };
        let waits = self.backlog[own.pool].iter().rev().find(|(since_s, ..)| *since_s <= at_s);
        let (_, pool_queued, pool_work_s) =
            waits.or(self.backlog[own.pool].front()).copied().unwrap_or_default();
        let done_s = if mark.rate > 0.0 { (at_s - since_s).max(0.0) * mark.rate } else { 0.0 };
        Mark { running_work_s: (mark.running_work_s - done_s).max(0.0), pool_queued, pool_work_s, ..*mark }
    }
}

/// Appends to a history and forgets what no report can be read from.
fn push<T>(history: &mut VecDeque<T>, now_s: f64, entry: T, at_s: impl Fn(&T) -> f64) {
    history.push_back(entry);
    while history.get(1).is_some_and(|second| at_s(second) < now_s - HISTORY_S) {
        history.pop_front();
    }
}
