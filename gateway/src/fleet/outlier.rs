//! Outliers: a worker whose answers keep failing is left alone for a while.
//!
//! Five consecutive failures eject it for 30 s × the number of its ejections, at most 300 s. Then one request tries
//! it: it comes back, or it goes again for longer. A 429 is no failure: a full worker is a working one. One that its
//! pool cannot spare stays, but counts as failing for as long as it would have been gone. Pure: the caller says what
//! time it is and whether the pool can spare another worker.

use std::time::Duration;

/// Failures in a row that eject a worker.
pub const FAILURES_MAX: u32 = 5;
/// The first ejection; the n-th lasts n times this.
pub const EJECTION: Duration = Duration::from_secs(30);
/// The longest ejection, and how long a worker must behave until its past is forgotten.
pub const EJECTION_MAX: Duration = Duration::from_secs(300);

/// How long a failure counts against a worker. Without an end, one that failed once would never be chosen again while
/// others have room, and so could never show that it is well.
pub const FAILING: Duration = Duration::from_secs(10);

/// One worker's record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlier {
    failures: u32,
    failing_until: Option<Duration>,
    ejections: u32,
    ejected_until: Option<Duration>,
    on_trial: bool,
}

impl Outlier {
    /// A request failed. Answers whether the worker is ejected for it; `spare` says whether its pool can do without.
    pub fn failed(&mut self, now: Duration, spare: bool) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failing_until = Some(now + FAILING);
        let bearable = !self.on_trial && self.failures < FAILURES_MAX;
        if bearable || self.ejected(now) {
            return false;
        }
        if !spare {
            self.failing_until = Some(now + EJECTION);
            return false;
        }
        if self.ejected_until.is_some_and(|until| now.saturating_sub(until) > EJECTION_MAX) {
            self.ejections = 0;
        }
        self.ejections += 1;
        self.ejected_until = Some(now + (EJECTION * self.ejections).min(EJECTION_MAX));
        self.on_trial = true;
        true
    }

    /// A request was answered.
    pub fn answered(&mut self, now: Duration) {
        self.failures = 0;
        self.failing_until = None;
        if !self.ejected(now) {
            self.on_trial = false;
        }
    }

    /// A request was answered well, but so slowly that others are better for a while.
    pub fn slow(&mut self, now: Duration) {
        self.answered(now);
        self.failing_until = Some(now + FAILING);
    }

    /// Whether it is ejected.
    pub fn ejected(&self, now: Duration) -> bool {
        self.ejected_until.is_some_and(|until| until > now)
    }

    /// Until when it is or was last ejected.
    pub fn ejected_until(&self) -> Option<Duration> {
        self.ejected_until
    }

    /// Whether it has yet to show that it is well again.
    pub fn on_trial(&self) -> bool {
        self.on_trial
    }

    /// Until when its last answer, a failure, counts against it.
    pub fn failing_until(&self) -> Option<Duration> {
        self.failing_until
    }
}

/// What is left of a pool's reliability after one more failure.
const RELIABILITY_KEPT: f64 = 0.7;

/// How reliable a pool's answers are of late, as one gateway has met them.
///
/// Workers are judged one by one, and never more than half of a pool is ejected. A pool that fails as a whole would
/// cost five failures per worker, and keep the other half for ever.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reliability {
    share: f64,
    as_of: Duration,
    failures: u32,
}

impl Default for Reliability {
    fn default() -> Self {
        Self { share: 1.0, as_of: Duration::ZERO, failures: 0 }
    }
}

impl Reliability {
    /// A request failed: 70 % of it are left.
    pub fn failed(&mut self, now: Duration) {
        self.share = (self.at(now) * RELIABILITY_KEPT).max(f64::MIN_POSITIVE);
        self.failures = self.failures.saturating_add(1);
        self.as_of = now;
    }

    /// A job was taken well: 30 % of what is missing come back.
    pub fn answered(&mut self, now: Duration) {
        self.share = 1.0 - (1.0 - self.at(now)) * RELIABILITY_KEPT;
        (self.failures, self.as_of) = (0, now);
    }

    /// Above 0, at most 1. It comes back by itself, or nobody would try the pool again: with a time constant of 30 s ×
    /// failures in a row, at most 300 s.
    pub fn at(&self, now: Duration) -> f64 {
        let time_s = (EJECTION * self.failures.max(1)).min(EJECTION_MAX).as_secs_f64();
        let passed_s = now.saturating_sub(self.as_of).as_secs_f64();
        1.0 - (1.0 - self.share) * (-passed_s / time_s).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn five_failures_in_a_row_eject_and_four_do_not() {
        let mut outlier = Outlier::default();
        assert!((0..4).all(|_| !outlier.failed(s(1), true)));
        outlier.answered(s(1));
        assert!((0..4).all(|_| !outlier.failed(s(1), true)));
        assert!(outlier.failed(s(1), true));
        assert!(outlier.ejected(s(30)) && !outlier.ejected(s(31)));
    }

    #[test]
    fn a_failed_trial_ejects_at_once_and_for_longer_up_to_the_limit() {
        let mut outlier = Outlier::default();
        assert!((0..5).any(|_| outlier.failed(s(0), true)));
        let mut now = s(30);
        for wants in [60, 90, 120, 150, 180, 210, 240, 270, 300, 300] {
            assert!(outlier.on_trial() && outlier.failed(now, true));
            assert_eq!(outlier.ejected_until(), Some(now + s(wants)));
            now += s(wants);
        }
        outlier.answered(now);
        assert!(!outlier.on_trial() && outlier.failing_until().is_none());
        now += s(301);
        assert!((0..5).any(|_| outlier.failed(now, true)));
        assert_eq!(outlier.ejected_until(), Some(now + s(30)), "the past is forgotten");
    }

    #[test]
    fn a_slow_one_has_not_failed_and_yet_is_left_alone() {
        let mut outlier = Outlier::default();
        assert!((0..4).all(|_| !outlier.failed(s(1), true)));
        outlier.slow(s(2));
        assert!(!outlier.failed(s(2), true), "the failures before it are forgotten");
        (0..9).for_each(|_| outlier.slow(s(3)));
        assert!(!outlier.ejected(s(3)) && outlier.failing_until() == Some(s(3) + FAILING));
        outlier.answered(s(4));
        assert_eq!(outlier.failing_until(), None);
    }

    #[test]
    fn a_pool_that_cannot_spare_it_keeps_it() {
        let mut outlier = Outlier::default();
        assert!((0..9).all(|_| !outlier.failed(s(1), false)));
        assert!(!outlier.ejected(s(1)) && outlier.failing_until() == Some(s(31)));
    }

    #[test]
    fn a_pool_is_as_reliable_as_it_was_of_late() {
        let mut pool = Reliability::default();
        assert_eq!(pool.at(s(9)), 1.0);
        (0..10).for_each(|_| pool.failed(s(10)));
        assert!(pool.at(s(10)) < 0.03 && pool.at(s(70)) < 0.25 && pool.at(s(2000)) > 0.99);
        (0..10).for_each(|_| pool.answered(s(11)));
        assert!(pool.at(s(11)) > 0.97);
        (0..100_000).for_each(|_| pool.failed(s(12)));
        assert!(pool.at(s(12)) > 0.0);
    }
}
