//! Removes from the object store what nobody needs any more, a little at a time, for as long as the worker lives.
//!
//! Each worker sweeps its own pool's bucket, and of a pool's workers one at a time. What is due is the store's to say,
//! by its own clock, and is asked each time anew; so a pass that breaks off, or two at once, do no harm. What a live
//! lease writes is never due: only attempts that ended are, and jobs that ended.

use std::sync::Arc;
use std::time::Duration;

use millrace_wire::PoolId;
use rand::Rng as _;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::keys;
use crate::metrics::Metrics;
use crate::objects::{self, Objects};
use crate::store;
use crate::store::copies::Stale;
use crate::store::upkeep::{Due, Rules, Upkeep};

/// How many things of each kind are asked for at a time.
const BATCH: u32 = 100;
/// How many batches one pass takes: what is left waits for the next.
const BATCHES_MAX: u32 = 20;
/// How long a sweeper has its bucket for itself without saying so again.
const HOLD: Duration = Duration::from_secs(300);
/// Longest wait before a worker's first pass.
const FIRST_WITHIN: Duration = Duration::from_secs(60);

/// What one worker sweeps with.
pub struct Sweeper {
    /// Says what is due.
    pub upkeep: Arc<dyn Upkeep>,
    /// Holds the bytes.
    pub objects: Objects,
    /// Whose bucket.
    pub pool: PoolId,
    /// Who sweeps; another life of the same worker is another sweeper.
    pub name: String,
    /// How long things are kept.
    pub rules: Rules,
    /// Time between two passes.
    pub every: Duration,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job store did not answer.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The object store did not.
    #[error(transparent)]
    Objects(#[from] objects::Error),
}

impl Sweeper {
    /// Sweeps until told to end.
    pub async fn run(self, until: CancellationToken) {
        // Workers start together, and passes at one moment would only wait for each other.
        let mut wait = self.every.min(FIRST_WITHIN).mul_f64(rand::rng().random_range(0.0..1.0));
        loop {
            tokio::select! {
                () = until.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let passed = tokio::select! {
                () = until.cancelled() => return,
                passed = self.pass() => passed,
            };
            match passed {
                Ok(0) => {}
                Ok(removed) => info!(removed, pool = %self.pool, "swept"),
                Err(error) => warn!(%error, pool = %self.pool, "the sweep broke off; the next goes on"),
            }
            wait = self.every.mul_f64(rand::rng().random_range(0.8..1.2));
        }
    }

    /// Removes what is due, up to a limit; returns how many things that were.
    ///
    /// # Errors
    /// One of the stores does not answer; what was removed before stays removed.
    pub async fn pass(&self) -> Result<usize, Error> {
        let mut removed = 0;
        for _ in 0..BATCHES_MAX {
            if !self.upkeep.take(&self.pool, &self.name, HOLD).await? {
                break;
            }
            let due = self.upkeep.due(&self.pool, &self.rules, BATCH).await?;
            for one in &due {
                self.remove(one).await?;
                removed += 1;
            }
            if due.len() < BATCH as usize {
                break;
            }
        }
        Ok(removed)
    }

    async fn remove(&self, due: &Due) -> Result<(), Error> {
        let label = match due {
            Due::Outputs { job_uid } => {
                self.objects.delete_below(&self.pool, &keys::job_prefix(job_uid)).await?;
                "outputs"
            }
            Due::Attempt { job_uid, part, number, .. } => {
                let prefix = keys::prefix_of_attempt(job_uid, *part, *number);
                self.objects.delete_below(&self.pool, &prefix).await?;
                "attempt"
            }
            Due::Pieces { job_uid, outputs } => {
                let below = if *outputs { keys::sources_prefix(job_uid) } else { keys::job_prefix(job_uid) };
                self.objects.delete_below(&self.pool, &below).await?;
                "pieces"
            }
            Due::Copy { job_uid, what } => {
                match what {
                    // Each by its key: of a job that is tried again just now another copy may be made beside them.
                    Stale::Input { claims } => {
                        for claim in 1..=*claims {
                            self.objects.delete(&self.pool, &keys::second_input(job_uid, claim)).await?;
                        }
                    }
                    Stale::Outputs | Stale::Left => {
                        self.objects.delete_below(&self.pool, &keys::job_prefix(job_uid)).await?;
                    }
                }
                "copy"
            }
            Due::Upload { key } => {
                self.objects.delete(&self.pool, key).await?;
                "upload"
            }
            Due::Parts { key, id } => {
                match self.objects.head(&self.pool, key).await {
                    // It was completed, and the store was not told.
                    Ok(_) => {
                        let kept = self.rules.uploads_kept;
                        return Ok(self.upkeep.upload_complete(&self.pool, key, kept).await?);
                    }
                    Err(objects::Error::NotFound) => {}
                    Err(error) => return Err(error.into()),
                }
                self.objects.abort_parts(&self.pool, key, id).await?;
                "parts"
            }
        };
        self.upkeep.swept(&self.pool, due).await?;
        self.metrics.swept.with_label_values(&[label]).inc();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
