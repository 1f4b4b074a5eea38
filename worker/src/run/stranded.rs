//! `dual` jobs that wait with a bucket that is lost: their pool's workers live, so nobody else takes them, and can do none.
//!
//! A worker that has lacked its bucket, or room to work in, for a lease says so in the store. When every living worker of the
//! pool does, one that lacks the bucket moves what waits there to where the input's other copy lies, if that answers. Nothing
//! is claimed for it: no part of such a job runs, one transaction moves it, and whoever claims it then finds it like any
//! other. Jobs that are not `dual`, or of whose input no other place has a whole copy, stay: elsewhere they could only lose
//! their attempts. A worker that drains counts as one that works until it has ended.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt as _;
use millrace_wire::PoolId;
use tracing::{debug, info, warn};

use super::Runner;
use super::second::{BUCKET_PATIENCE, places};
use crate::fitness::Lack;
use crate::objects;
use crate::store::copies::{CopyRow, Stranded};
use crate::store::{Error, Identity};

/// How many are asked for at once.
const PAGE: u32 = 100;
/// How many are looked for in other buckets at once.
const AT_ONCE: usize = 8;

impl Runner {
    /// Says that the worker can do nothing, once it has lacked something for a lease; and if that is its bucket, moves what
    /// can be moved away from it: the page after `after`, which is then the last of that, or begins anew. One page and no
    /// more, so that the worker tries its bucket again before the next one.
    pub(crate) async fn leave_with(&self, by: &Identity, after: &mut String) {
        if self.fitness.lacking_for().is_none_or(|lacking| lacking < self.leases.lease()) {
            return;
        }
        // Who lacks something else has not found out whether its bucket is there.
        let limit = if self.fitness.lacks() == Some(Lack::Objects) { PAGE } else { 0 };
        let page = match self.page(by, after, limit).await {
            Ok(page) => page,
            Err(error) => {
                self.metrics.store_errors.with_label_values(&[error.kind()]).inc();
                warn!(%error, "cannot ask what waits with the lost bucket");
                return;
            }
        };
        *after = page.last().map(|(last, _)| last.job_uid.clone()).unwrap_or_default();
        // Of other buckets, too, some may not answer: each is waited for once.
        let silent = Mutex::new(BTreeSet::new());
        let all = futures::stream::iter(page);
        let moves = all.map(|(job, copies)| self.leave(job, copies, &silent)).buffer_unordered(AT_ONCE);
        let moved = moves.filter(|moved| std::future::ready(*moved)).count().await;
        if moved > 0 {
            warn!(from = %self.pool, jobs = moved, "the bucket does not answer; moved the jobs that waited with it");
        }
    }

    async fn page(
        &self,
        by: &Identity,
        after: &str,
        limit: u32,
    ) -> Result<Vec<(Stranded, Vec<CopyRow>)>, Error> {
        let jobs = self.upkeep.stranded(by, self.leases.lease(), after, limit).await?;
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
                Ok(Err(error @ objects::Error::NotFound)) => {
                    debug!(job_id = %job.job_id, %error, to = %place.pool, "no copy of its input to move to");
                    continue;
                }
                Ok(Err(_)) | Err(_) => {
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
