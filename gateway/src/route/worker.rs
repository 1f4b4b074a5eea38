//! The worker in a pool.
//!
//! F = 2 · wait + job work ÷ speed + round trip + egress: seconds until the job is done, with waiting counted twice
//! (it is lost for the job and for those behind it). Among those within max(5 s, 5 %) of the least F the choice is
//! random by free capacity. [`Standing`] is all of it that does not depend on the job, [`Seats`] makes the choice cheap.

use std::time::Duration;

use millrace_wire::spec::Priority;
use rand::Rng;

use super::explain::{Rejection, Terms};
use crate::fleet::snapshot::{Health, Report, Worker};

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

/// A worker as it stands, whatever the job. Times are in seconds, work in reference-seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// All slots.
    pub slots: f64,
    /// Reference-seconds per slot and second.
    pub speed: f64,
    /// Free slots, less the submits on their way.
    pub free: f64,
    /// Whom it has room for.
    pub room: Room,
    /// Until a slot is free.
    pub wait_s: f64,
    /// The report's age, when it is not fresh.
    pub age_s: f64,
    /// To the worker and back.
    pub round_trip_s: f64,
    /// [`FAILING_S`] while its last answer was a failure, else 0.
    pub failing_s: f64,
    /// Until what runs there is done, were it shared evenly among its slots.
    pub running_s: f64,
    /// Work of the submits on their way.
    pub unanswered_work_s: f64,
    /// When it reported.
    pub reported_at: Duration,
    /// What it says waits in its pool.
    pub pool_work_s: f64,
}

/// Whom a worker has room for, the most room first: a queue never fills up with work that can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// A free slot: for anybody.
    Slot,
    /// Its queue takes every class.
    Batch,
    /// Its queue takes normal and live jobs.
    Normal,
    /// Its queue takes live jobs.
    Live,
    /// Slots and queue are full.
    None,
}

impl Room {
    /// Whether a job of this class may go there.
    pub fn takes(self, priority: Priority) -> bool {
        self <= match priority {
            Priority::Batch => Self::Batch,
            Priority::Normal => Self::Normal,
            Priority::Live => Self::Live,
        }
    }

    /// What a report says, with `outstanding` submits on their way that it does not count.
    pub fn of(report: &Report, outstanding: u32) -> Self {
        let load = &report.load;
        let waiting =
            f64::from(load.running) + f64::from(load.queued) + f64::from(outstanding) - f64::from(load.slots);
        let below = |priority: Priority| waiting < f64::from(load.queue_max) * priority.queue_share();
        match () {
            () if waiting < 0.0 => Self::Slot,
            () if below(Priority::Batch) => Self::Batch,
            () if below(Priority::Normal) => Self::Normal,
            () if below(Priority::Live) => Self::Live,
            () => Self::None,
        }
    }
}

impl Standing {
    fn of(worker: &Worker, report: &Report, now: Duration) -> Self {
        let load = &report.load;
        let (outstanding, unanswered_work_s) = worker.compensation.at(now);
        let held = u64::from(load.running) + u64::from(load.queued);
        // Slots are at most a thousand, so the difference is exact.
        let free = u64::from(load.slots).saturating_sub(held + u64::from(outstanding)) as f64;
        let rate = f64::from(load.slots) * load.speed;
        let running = if held > 0 { f64::from(load.running) / held as f64 } else { 1.0 };
        let age = now.saturating_sub(report.at);
        let failing = worker.failing_until.is_some_and(|until| until > now);
        let standing = Self {
            slots: f64::from(load.slots),
            speed: load.speed,
            free,
            room: Room::of(report, outstanding),
            wait_s: if free > 0.0 { 0.0 } else { (load.work_seconds + unanswered_work_s) / rate },
            age_s: if age > FRESH { age.as_secs_f64() } else { 0.0 },
            round_trip_s: worker.round_trip.as_secs_f64(),
            failing_s: 0.0,
            running_s: load.work_seconds * running / rate,
            unanswered_work_s,
            reported_at: report.at,
            pool_work_s: load.pool_work_seconds,
        };
        if failing { standing.failing() } else { standing }
    }

    /// The same worker when it fails. Of its claim no free slot is believed then, and no more than one slot of a reference
    /// core: else the greatest claim would attract work whatever becomes of it.
    pub(super) fn failing(self) -> Self {
        Self {
            slots: self.slots.min(1.0),
            speed: self.speed.min(1.0),
            free: 0.0,
            failing_s: FAILING_S,
            ..self
        }
    }

    /// The terms of F for a job of `work_s` reference-seconds whose input costs `egress_s` to move here.
    pub fn terms(&self, work_s: f64, egress_s: f64) -> Terms {
        Terms {
            wait_s: self.wait_s,
            age_s: self.age_s,
            job_s: work_s / self.speed,
            round_trip_s: self.round_trip_s,
            egress_s,
            failing_s: self.failing_s,
        }
    }
}

/// Looks at every worker of a pool; `drained` says that an operator drains it.
pub fn standings(workers: &[Worker], drained: bool, now: Duration) -> Vec<Result<Standing, Rejection>> {
    let age = |report: &Report| now.saturating_sub(report.at);
    let (mut fresh, mut all) = (0_usize, 0_usize);
    for report in workers.iter().filter_map(|worker| eligible(worker, drained, now).ok()) {
        all += 1;
        fresh += usize::from(age(report) <= FRESH);
    }
    // Busy encoders starve reports: when most are late, lateness says nothing, and the last known stands.
    let starved = fresh * 2 < all;
    let standing = |worker| match eligible(worker, drained, now)? {
        report if age(report) > STALE && !starved => Err(Rejection::Stale),
        report => Ok(Standing::of(worker, report, now)),
    };
    workers.iter().map(standing).collect()
}

fn eligible(worker: &Worker, drained: bool, now: Duration) -> Result<&Report, Rejection> {
    match &worker.health {
        Health::Unknown => return Err(Rejection::Unknown),
        Health::Down { .. } => return Err(Rejection::Down),
        Health::Up => {}
    }
    let Some(report) = &worker.report else { return Err(Rejection::Unknown) };
    match () {
        () if drained => Err(Rejection::PoolDraining),
        () if worker.drain => Err(Rejection::Drained),
        () if report.load.draining => Err(Rejection::Draining),
        () if worker.ejected(now) => Err(Rejection::Ejected),
        () if worker.on_trial && worker.compensation.at(now).0 > 0 => Err(Rejection::OnTrial),
        () => Ok(report),
    }
}

/// A pool's usable workers in the order of their [`Room`], so that whoever has room for a class is a prefix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seats {
    seats: Vec<Seat>,
    /// How many have a free slot.
    free: usize,
    /// How many have room for each class of [`Priority::ALL`].
    open: [usize; 3],
}

/// What the choice needs of one worker: 32 bytes, so that two share a cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seat {
    /// F without the job and its egress.
    base_s: f64,
    /// 1 ÷ speed.
    slowness: f64,
    /// Its weight in the draw.
    share: f64,
    /// Its place in the pool's list of workers.
    place: u32,
}

impl Seats {
    /// Seats those that are usable.
    pub fn of<'a>(standings: impl Iterator<Item = &'a Result<Standing, Rejection>>) -> Self {
        let mut ordered: Vec<(Room, Seat)> = Vec::new();
        for (place, standing) in (0..).zip(standings) {
            let Ok(standing) = standing else { continue };
            if standing.room == Room::None {
                continue;
            }
            let capacity = standing.slots * standing.speed;
            let seat = Seat {
                base_s: standing.terms(0.0, 0.0).f_s(),
                slowness: 1.0 / standing.speed,
                share: (standing.free * standing.speed).max(BUSY_SHARE * capacity),
                place,
            };
            ordered.push((standing.room, seat));
        }
        ordered.sort_by_key(|(room, _)| *room);
        let until = |open: &dyn Fn(Room) -> bool| ordered.partition_point(|(room, _)| open(*room));
        Self {
            free: until(&|room| room == Room::Slot),
            open: Priority::ALL.map(|priority| until(&|room| room.takes(priority))),
            seats: ordered.into_iter().map(|(_, seat)| seat).collect(),
        }
    }

    /// How many have room for this class.
    pub fn open(&self, priority: Priority) -> usize {
        let place = Priority::ALL.iter().position(|known| *known == priority);
        place.map_or(0, |place| self.open[place])
    }

    /// Chooses a worker that has room; its place in the pool's list. Egress is the same for all of a pool and cannot
    /// change the order, but widens the band.
    ///
    /// Of many, only [`SAMPLE`] are compared, drawn among those with a free slot as far as there are so many: a sample
    /// of a busy pool at large would mostly miss its last idle workers.
    pub fn choose(
        &self,
        priority: Priority,
        work_s: f64,
        egress_s: f64,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let open = self.open(priority);
        if open <= SAMPLE_ABOVE {
            return choose_among::<SAMPLE_ABOVE>(self.seats[..open].iter(), work_s, egress_s, rng);
        }
        // With repetition: among more than 64 it hardly happens, and does no harm. Each number serves two draws; the
        // bias of taking 32 of its bits by multiplication is below 64 ÷ 2³².
        let mut numbers = [0_u64; SAMPLE / 2];
        numbers.iter_mut().for_each(|number| *number = rng.next_u64());
        let sampled = (0..SAMPLE).map(|drawn| {
            let bits = u64::from((numbers[drawn / 2] >> (32 * (drawn % 2))) as u32);
            let within = |from: usize, to: usize| from + ((bits * (to - from) as u64) >> 32) as usize;
            &self.seats[match self.free {
                few @ 0..SAMPLE if drawn < few => drawn,
                few @ 0..SAMPLE => within(few, open),
                free => within(0, free),
            }]
        });
        choose_among::<SAMPLE>(sampled, work_s, egress_s, rng)
    }
}

/// Chooses among at most `MOST` seats; answers the place that the seat stands for.
fn choose_among<'a, const MOST: usize>(
    seats: impl Iterator<Item = &'a Seat>,
    work_s: f64,
    egress_s: f64,
    rng: &mut impl Rng,
) -> Option<usize> {
    let (mut f_s, mut shares, mut places) = ([0.0; MOST], [0.0; MOST], [0_u32; MOST]);
    let (mut count, mut least) = (0, f64::INFINITY);
    for seat in seats.take(MOST) {
        f_s[count] = seat.base_s + work_s * seat.slowness + egress_s;
        (shares[count], places[count]) = (seat.share, seat.place);
        least = f64::min(least, f_s[count]);
        count += 1;
    }
    let band = least + BAND_S.max(least * BAND_SHARE);
    let mut total = 0.0;
    for (share, f_s) in shares[..count].iter_mut().zip(&f_s) {
        total += if *f_s <= band { *share } else { 0.0 };
        *share = total;
    }
    let drawn = super::pool::draw(&shares[..count], rng)?;
    Some(places[drawn] as usize)
}
