//! The store's rule of who claims what, as a pure function.
//!
//! The worker's own rule is SQL (`worker/src/store/sqlite/claim.rs`: `claimable!` and the `ORDER BY` of `claim`); a
//! simulated day has no database. A test here fails when that SQL changes and this does not.

/// How long work that lost its worker is left to its own pool, in seconds.
const HEAD_START_S: f64 = 2.0;
/// How long a job waits for each class that it rises, in seconds.
const CLASS_AGES_EVERY_S: f64 = 600.0;

/// A task that waits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Task {
    /// Its job's place in the day; also its uid, since both count up with time.
    pub job: usize,
    /// The pool it waits in.
    pub pool: usize,
    /// 0 is live, 1 normal, 2 batch.
    pub class: u32,
    /// When it was accepted, in seconds.
    pub created_at_s: f64,
    /// From when it may be claimed, in seconds.
    pub not_before_s: f64,
    /// How often it was claimed.
    pub epoch: u32,
}

/// Whether a worker of `pool` may claim it; `gone` says that no worker of the task's pool has shown itself for a lease.
pub fn claimable(task: &Task, pool: usize, now_s: f64, gone: bool) -> bool {
    let lost = task.epoch > 0 && task.not_before_s + HEAD_START_S <= now_s;
    task.not_before_s <= now_s && (task.pool == pool || lost || gone)
}

/// Whether a worker of another pool may steal it, that has to have waited `price_s` there.
fn stealable(task: &Task, price_s: Option<f64>, now_s: f64) -> bool {
    task.epoch == 0 && price_s.is_some_and(|price_s| stealable_at(task, price_s) <= now_s)
}

/// From when on that is.
pub fn stealable_at(task: &Task, price_s: f64) -> f64 {
    task.created_at_s + price_s.max(HEAD_START_S)
}

/// The least of these is claimed: class with ageing, own pool first, the oldest.
fn order(task: &Task, since_s: f64, foreign: bool, now_s: f64) -> (u32, bool, f64, usize) {
    // A database divides integers, so a class is risen by whole steps.
    let risen = ((now_s - since_s) / CLASS_AGES_EVERY_S).floor().max(0.0) as u32;
    (task.class.saturating_sub(risen), foreign, since_s, task.job)
}

/// What a worker of `pool` claims: a place in `waiting`. It steals only where there is nothing else; `price_s` says what a
/// job must have waited for that.
pub fn next(
    waiting: &[Task],
    pool: usize,
    now_s: f64,
    gone: impl Fn(usize) -> bool,
    price_s: impl Fn(&Task) -> Option<f64>,
) -> Option<usize> {
    let places = || waiting.iter().enumerate();
    let mine = places().filter(|(_, task)| claimable(task, pool, now_s, gone(task.pool)));
    let ordered = mine.map(|(place, task)| (place, order(task, task.created_at_s, task.pool != pool, now_s)));
    first(ordered).or_else(|| {
        first(places().filter(|(_, task)| stealable(task, price_s(task), now_s)).map(|(place, task)| {
            let since_s = stealable_at(task, price_s(task).unwrap_or_default());
            (place, order(task, since_s, true, now_s))
        }))
    })
}

fn first(ordered: impl Iterator<Item = (usize, (u32, bool, f64, usize))>) -> Option<usize> {
    let least = ordered
        .min_by(|(_, a), (_, b)| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(&b.3)));
    least.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQL: &str = include_str!("../../../worker/src/store/sqlite/claim.rs");
    const RULES: &str = include_str!("../../../worker/src/store/rules.rs");

    fn task(job: usize, class: u32, created_at_s: f64) -> Task {
        Task { job, pool: 0, class, created_at_s, not_before_s: created_at_s, epoch: 0 }
    }

    fn claims(waiting: &[Task], pool: usize, now_s: f64) -> Option<usize> {
        next(waiting, pool, now_s, |_| false, |_| None).map(|place| waiting[place].job)
    }

    #[test]
    fn the_rule_is_the_one_of_the_stores_sql() {
        let rule: String = [SQL, RULES].concat().split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "task.state = 'waiting' AND task.not_before <= ",
            "(task.pool = ?1 OR NOT EXISTS (SELECT 1 FROM worker WHERE worker.pool = task.pool AND worker.seen_at > ",
            // The simulator's jobs are whole ones, and all encoders are equal.
            "OR (task.epoch > 0 AND task.kind = 'video' AND task.ordinal = 0 AND task.not_before + ?3 <= ",
            "ORDER BY max(0, task.class - (",
            "- task.created_at) / ?6), task.pool <> ?1, task.created_at, task.uid LIMIT ?5",
            ".bind(millis(HEAD_START)) .bind(by.worker.as_str()) .bind(HEAD_MAX) .bind(millis(CLASS_AGES_EVERY))",
            "WHERE steal.pool = ?1 AND steal.at <= ",
            "AND task.state = 'waiting' AND task.epoch = 0 ORDER BY max(0, steal.class - (",
            "- steal.at) / ?3), steal.at, steal.task_uid LIMIT ?2",
            "let steals = head.is_empty(); if steals { head = stealable(&mut tx, by).await?; }",
            "millis(price.max(HEAD_START))",
            "const HEAD_START: Duration = Duration::from_secs(2);",
            "const CLASS_AGES_EVERY: Duration = Duration::from_secs(600);",
        ] {
            assert!(rule.contains(part), "the store's rule has changed: {part:?} is gone");
        }
    }

    #[test]
    fn the_highest_class_comes_first_then_the_oldest() {
        assert_eq!(
            claims(&[task(0, 2, 0.0), task(1, 1, 1.0), task(2, 1, 2.0), task(3, 0, 3.0)], 0, 9.0),
            Some(3)
        );
        assert_eq!(claims(&[task(0, 2, 0.0), task(2, 1, 2.0), task(1, 1, 1.0)], 0, 9.0), Some(1));
    }

    #[test]
    fn an_idle_pool_steals_what_is_longest_past_its_price() {
        let waiting = [task(0, 1, 0.0), task(1, 1, 1.0), task(2, 2, 0.0)];
        let prices = [Some(50.0), Some(9.0), Some(1.0)];
        let steal = |waiting: &[Task], now_s| {
            let stolen = next(waiting, 1, now_s, |_| false, |task| prices[task.job]);
            stolen.map(|place| waiting[place].job)
        };
        assert_eq!(steal(&waiting, 1.9), None, "its own pool has a head start");
        assert_eq!(steal(&waiting, 2.0), Some(2));
        assert_eq!(steal(&waiting, 10.0), Some(1), "the higher class");
        assert_eq!(steal(&waiting[..1], 49.9), None);
        assert_eq!(steal(&waiting, 60.0), Some(1));
        assert_eq!(steal(&[Task { epoch: 1, not_before_s: 59.0, ..waiting[1] }], 60.0), None, "only once");
        let own = Task { pool: 1, ..task(2, 2, 59.0) };
        assert_eq!(steal(&[waiting[0], own], 60.0), Some(2), "its own work comes first, whatever its class");
    }

    #[test]
    fn a_job_rises_a_class_in_ten_minutes() {
        let waiting = [task(0, 2, 0.0), task(1, 1, 599.0)];
        assert_eq!(claims(&waiting, 0, 599.9), Some(1));
        assert_eq!(claims(&waiting, 0, 600.0), Some(0), "a normal one by now, and older");
    }

    #[test]
    fn another_pool_takes_only_what_lost_its_worker_or_its_pool() {
        let fresh = task(0, 1, 0.0);
        assert_eq!(claims(&[fresh], 1, 99.0), None);
        assert_eq!(next(&[fresh], 1, 99.0, |pool| pool == 0, |_| None), Some(0));
        let lost = Task { epoch: 1, not_before_s: 10.0, ..fresh };
        assert_eq!(claims(&[lost], 1, 11.9), None, "its own pool comes first");
        assert_eq!(claims(&[lost], 1, 12.0), Some(0));
        let own = Task { pool: 1, ..task(7, 1, 50.0) };
        assert_eq!(claims(&[lost, own], 1, 60.0), Some(7));
    }
}
