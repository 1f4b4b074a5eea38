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

/// The least of these is claimed: class with ageing, own pool first, the oldest.
fn order(task: &Task, pool: usize, now_s: f64) -> (u32, bool, f64, usize) {
    // A database divides integers, so a class is risen by whole steps.
    let risen = ((now_s - task.created_at_s) / CLASS_AGES_EVERY_S).floor().max(0.0) as u32;
    (task.class.saturating_sub(risen), task.pool != pool, task.created_at_s, task.job)
}

/// What a worker of `pool` claims: a place in `waiting`.
pub fn next(waiting: &[Task], pool: usize, now_s: f64, gone: impl Fn(usize) -> bool) -> Option<usize> {
    let mine = |task: &Task| claimable(task, pool, now_s, gone(task.pool));
    let ordered = waiting.iter().enumerate().filter(|(_, task)| mine(task));
    let least = ordered.min_by(|(_, a), (_, b)| {
        let ((class_a, foreign_a, at_a, uid_a), (class_b, foreign_b, at_b, uid_b)) =
            (order(a, pool, now_s), order(b, pool, now_s));
        (class_a, foreign_a).cmp(&(class_b, foreign_b)).then(at_a.total_cmp(&at_b)).then(uid_a.cmp(&uid_b))
    });
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
        next(waiting, pool, now_s, |_| false).map(|place| waiting[place].job)
    }

    #[test]
    fn the_rule_is_the_one_of_the_stores_sql() {
        let rule: String = [SQL, RULES].concat().split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "task.state = 'waiting' AND task.not_before <= ",
            "AND (task.pool = ?1 OR (task.epoch > 0 AND task.not_before + ?3 <= ",
            ") OR NOT EXISTS (SELECT 1 FROM worker WHERE worker.pool = task.pool AND worker.seen_at > ",
            "ORDER BY max(0, task.class - (",
            "- task.created_at) / ?5), task.pool <> ?1, task.created_at, task.uid LIMIT ?4",
            ".bind(millis(HEAD_START)) .bind(HEAD_MAX) .bind(millis(CLASS_AGES_EVERY))",
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
    fn a_job_rises_a_class_in_ten_minutes() {
        let waiting = [task(0, 2, 0.0), task(1, 1, 599.0)];
        assert_eq!(claims(&waiting, 0, 599.9), Some(1));
        assert_eq!(claims(&waiting, 0, 600.0), Some(0), "a normal one by now, and older");
    }

    #[test]
    fn another_pool_takes_only_what_lost_its_worker_or_its_pool() {
        let fresh = task(0, 1, 0.0);
        assert_eq!(claims(&[fresh], 1, 99.0), None);
        assert_eq!(next(&[fresh], 1, 99.0, |pool| pool == 0), Some(0));
        let lost = Task { epoch: 1, not_before_s: 10.0, ..fresh };
        assert_eq!(claims(&[lost], 1, 11.9), None, "its own pool comes first");
        assert_eq!(claims(&[lost], 1, 12.0), Some(0));
        let own = Task { pool: 1, ..task(7, 1, 50.0) };
        assert_eq!(claims(&[lost, own], 1, 60.0), Some(7));
    }
}
