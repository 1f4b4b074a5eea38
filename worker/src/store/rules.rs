//! What every store decides alike, as functions of what it has read: no database in here.

use std::time::Duration;

use millrace_wire::job::{FailureCode, State};
use millrace_wire::spec::Priority;

use super::Room;

/// How long a job waits for each class that it rises: strict classes alone would let the lowest wait for ever.
pub(super) const CLASS_AGES_EVERY: Duration = Duration::from_secs(600);
/// How far down the queue a claim looks for a job that it can read.
pub(super) const HEAD_MAX: u32 = 32;
/// How long work that lost its worker is left to its own pool before another pool takes it: an idle neighbour beside the
/// input comes first, and looks every second.
pub(super) const HEAD_START: Duration = Duration::from_secs(2);
/// What an attempt failed of whose worker fell silent.
pub(super) const SILENT: (FailureCode, &str) =
    (FailureCode::LeaseLost, "the worker that ran it stopped answering");

/// How long it holds that a worker said it lacks its bucket: longer than from one trial of it to the next.
pub(super) const UNFIT_HOLDS: Duration = Duration::from_secs(30);

/// How long after its session's end an upload in parts is given up.
pub(super) const PARTS_GRACE: Duration = Duration::from_secs(3600);
/// When an upload that a job reads is looked at again.
pub(super) const IN_USE_AGAIN: Duration = Duration::from_secs(3600);
/// How often what a lost attempt wrote is removed. The same number stands in the index.
pub(super) const SWEEPS: i64 = 2;

/// How many webhooks that are due a claim looks at. A receiver with more than these is busy after one look, and then passed
/// over.
pub(super) const WEBHOOKS_SEEN_MAX: i64 = 1000;

/// From when after its acceptance another pool may steal a task at this price. Its own pool has the same head start as with
/// lost work: at a price of nothing an idle stranger would win a race against the idle worker that accepted it.
pub(super) fn steal_after(price: Duration) -> i64 {
    millis(price.max(HEAD_START))
}

impl Room {
    /// How many jobs a worker may hold, running ones included, for one more of this class to be accepted.
    pub(super) fn limit(self, class: Priority) -> i64 {
        let queue = (f64::from(self.queue_max) * class.queue_share()).floor() as i64;
        i64::from(self.slots) + queue
    }
}

/// Whether nothing changes a job any more, in SQL over the column of its state.
macro_rules! is_final {
    ($state:literal) => {
        concat!($state, " IN ('succeeded', 'failed', 'cancelled', 'dead')")
    };
}
pub(super) use is_final;

/// Whether a job of the statement's `job` waits where nobody has claimed it since it was moved there, in SQL: a job is moved
/// once per lease, or two pools that each believe the other's bucket the better one would hand it to and fro.
macro_rules! just_moved {
    () => {
        "EXISTS (SELECT 1 FROM replica AS gone JOIN task AS whole ON whole.job_uid = gone.job_uid \
           WHERE gone.job_uid = job.uid AND gone.what = 'left' AND whole.kind = 'video' AND whole.ordinal = 0 \
             AND gone.not_before > 0 AND gone.epoch >= whole.epoch)"
    };
}
pub(super) use just_moved;

/// The class as a number that sorts: the highest first.
pub(super) fn class_of(priority: Priority) -> i64 {
    match priority {
        Priority::Live => 0,
        Priority::Normal => 1,
        Priority::Batch => 2,
    }
}

/// The state of a job whose task failed for the `failures`th time, if another try is no use: `None` is another try.
pub(super) fn end_of(code: FailureCode, failures: i64, failures_max: u32) -> Option<State> {
    if code.is_permanent() {
        return Some(State::Failed);
    }
    (failures >= i64::from(failures_max)).then_some(State::Dead)
}

/// Milliseconds, as databases count them here.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}
