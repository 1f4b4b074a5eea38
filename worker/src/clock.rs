//! What time it is by the job store's clock.
//!
//! Leases need no wall clock of ours: the store decides them by its own, and a worker's deadlines are monotonic. But what
//! this worker signs or judges with an expiry (media URLs, uploads, webhooks) meets other workers and other machines, and a
//! machine whose date was set wrong would refuse what its neighbours gave out a moment ago. So the store's time is used there,
//! by how far ours is ahead of it. Only what a library signs by itself for a cloud's store cannot be helped: such a store
//! says 403 to a clock that is off, and the worker then [lacks](crate::fitness) its bucket.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metrics::Metrics;
use crate::store::{self, Store};

/// How often the store is asked.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// An answer that took longer says too little.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(2);
/// From here on it is a fault that somebody should hear of.
const OFF_MS: i64 = 5_000;

/// The store's clock, as far as this worker knows it; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// How many milliseconds this machine's clock is ahead.
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    /// What time it is.
    pub fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_millis(self.ahead_ms.load(Ordering::Relaxed));
        Timestamp::now().checked_sub(ahead).unwrap_or_else(|_| Timestamp::now())
    }

    /// Asks the store once.
    ///
    /// # Errors
    /// It does not answer; what was known of its clock holds on.
    pub async fn look(&self, store: &dyn Store, metrics: &Metrics) -> Result<(), store::Error> {
        let (asked, before) = (Instant::now(), Timestamp::now().as_millisecond());
        let theirs = store.ping().await?;
        let took = asked.elapsed();
        if took > ROUND_TRIP_MAX {
            return Ok(());
        }
        // It read its clock about in the middle.
        let ours = before + i64::try_from(took.as_millis() / 2).unwrap_or(0);
        let ahead = ours - theirs;
        let known = self.ahead_ms.swap(ahead, Ordering::Relaxed);
        metrics.clock_ahead_seconds.set(ahead as f64 / 1000.0);
        if ahead.abs() >= OFF_MS && (ahead - known).abs() >= OFF_MS {
            warn!(
                ahead_s = ahead as f64 / 1000.0,
                "this machine's clock is not the job store's: set it right"
            );
        }
        Ok(())
    }

    /// Follows the store's clock until told to end.
    pub async fn follow(self, store: Arc<dyn Store>, metrics: Arc<Metrics>, until: CancellationToken) {
        loop {
            tokio::select! {
                () = until.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            tokio::select! {
                () = until.cancelled() => return,
                // A store that is away is the heartbeat's to report.
                _ = self.look(&*store, &metrics) => {}
            }
        }
    }
}
