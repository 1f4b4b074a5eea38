//! `dual` jobs that wait with a bucket that is lost: their pool's workers live, so nobody else takes them, and can do none.
//!
//! A worker that has lacked its bucket for a lease says so in the store. When every living worker of the pool does, it moves
//! what waits there to where the input's other copy lies, if that answers. Nothing is claimed for it: no part of such a job
//! runs, one transaction moves it, and whoever claims it then finds it like any other. Jobs that are not `dual`, or whose
//! second copy is not whole, stay: elsewhere they could only lose their attempts.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt as _;
use millrace_wire::PoolId;
use tracing::{debug, info, warn};

use super::Runner;
use super::second::{BUCKET_PATIENCE, places};
use crate::store::copies::{CopyRow, Stranded};
use crate::store::{Error, Identity};

/// How many are asked for at once.
const PAGE: u32 = 100;
/// How many are looked for in other buckets at once.
const AT_ONCE: usize = 8;

impl Runner {
    /// Moves what can be moved away from the worker's own bucket, once that has been lacking for a lease.
    pub(crate) async fn leave_with_all(&self, by: &Identity) {
        let lease = self.leases.lease();
        if self.fitness.bucket_lost_for().is_none_or(|lost| lost < lease) {
            return;
        }
        let (mut after, mut moved) = (String::new(), 0);
        // Of other buckets, too, some may not answer: each is waited for once.
        let silent = Mutex::new(BTreeSet::new());
        loop {
            let page = match self.page(by, &after).await {
                Ok(page) => page,
                Err(error) => {
                    self.metrics.store_errors.with_label_values(&[error.kind()]).inc();
                    warn!(%error, "cannot ask what waits with the lost bucket");
                    break;
                }
            };
            let Some((last, _)) = page.last() else { break };
            after.clone_from(&last.job_uid);
            let all = futures::stream::iter(page);
            let moves = all.map(|(job, copies)| self.leave(job, copies, &silent)).buffer_unordered(AT_ONCE);
            moved += moves.filter(|moved| std::future::ready(*moved)).count().await;
        }
        if moved > 0 {
            warn!(from = %self.pool, jobs = moved, "the bucket does not answer; moved the jobs that waited with it");
        }
    }

    async fn page(&self, by: &Identity, after: &str) -> Result<Vec<(Stranded, Vec<CopyRow>)>, Error> {
        let jobs = self.upkeep.stranded(by, self.leases.lease(), after, PAGE).await?;
        let uids: Vec<String> = jobs.iter().map(|job| job.job_uid.clone()).collect();
        let mut copies = self.upkeep.copies(&uids).await?;
        let with_copies = |job: Stranded| {
            let copies = copies.remove(&job.job_uid).unwrap_or_default();
            (job, copies)
        };
        Ok(jobs.into_iter().map(with_copies).collect())
    }

    async fn leave(&self, job: Stranded, copies: Vec<CopyRow>, silent: &Mutex<BTreeSet<PoolId>>) -> bool {
        let is_silent = |pool: &PoolId| silent.lock().unwrap_or_else(PoisonError::into_inner).contains(pool);
        for place in places(&job.spec.input, &job.job_uid, copies) {
            if place.pool == self.pool || is_silent(&place.pool) {
                continue;
            }
            let there = self.objects.head(&place.pool, &place.key);
            match tokio::time::timeout(BUCKET_PATIENCE, there).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    debug!(job_id = %job.job_id, %error, to = %place.pool, "no copy of its input to move to");
                    continue;
                }
                Err(_) => {
                    silent.lock().unwrap_or_else(PoisonError::into_inner).insert(place.pool);
                    continue;
                }
            }
            match self.upkeep.move_waiting(&job.job_uid, &self.pool, &place.pool).await {
                Ok(moved) => {
                    if moved {
                        info!(job_id = %job.job_id, to = %place.pool, "moved");
                        let labels = [self.pool.as_str(), place.pool.as_str()];
                        self.metrics.moved.with_label_values(&labels).inc();
                    }
                    return moved;
                }
                Err(error) => warn!(job_id = %job.job_id, %error, "cannot move it"),
            }
        }
        false
    }
}
