//! A `dual` job's second input: which of the two copies an attempt reads, and what becomes of a job whose bucket is lost.
//!
//! A job's bucket is fixed for an attempt, because the commit means it: outputs are written there first, and the row
//! that makes them visible names it. So a job whose bucket is gone cannot be ended by any attempt that has begun. Instead
//! each attempt at a `dual` job asks its bucket for a sign of life before it does anything, and again when it failed at an
//! object store. Without one, and with the input's copy at hand in another, the job is moved there by one transaction that
//! also ends the attempt. The next one is like any first one, in a bucket that answers. Whoever still runs the job has
//! lost its lease, epochs go on, and nothing that lies in the lost bucket is ever referred to again; should it come back,
//! the sweep removes what is there.

use std::path::Path;
use std::time::Duration;

use millrace_wire::PoolId;
use millrace_wire::job::FailureCode;
use millrace_wire::spec::Input;
use tracing::{info, warn};

use super::{Outcome, Runner};
use crate::copier::hashed;
use crate::failure::{Ended, Failure};
use crate::keys;
use crate::lease::{Running, Stop};
use crate::source::fetch::Report;
use crate::source::stored;
use crate::store::Claim;
use crate::store::copies::{CopyRow, Kind};

/// How long a bucket may take to say that it is there.
pub(super) const BUCKET_PATIENCE: Duration = Duration::from_secs(5);

/// A place of an input, besides its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// In whose bucket.
    pub(super) pool: PoolId,
    pub(super) key: String,
    /// What the second copy must be: its size, and its SHA-256 where that is known.
    must_be: Option<(u64, Option<String>)>,
}

/// Every place where an input lies: where it was uploaded to, and where its second copy is.
pub(super) fn places(input: &Input, job_uid: &str, copies: Vec<CopyRow>) -> Vec<Place> {
    let mut places = Vec::new();
    if let Input::Path(path) = input
        && let Some((pool, key)) = keys::split_input_path(path)
    {
        places.push(Place { pool, key: key.to_owned(), must_be: None });
    }
    for copy in copies {
        if let (Kind::Input, Some((claimed, _))) = (copy.kind, copy.done) {
            let key = keys::second_input(job_uid, claimed);
            let must_be = Some((copy.bytes.unwrap_or_default(), copy.sha256));
            places.push(Place { pool: copy.pool, key, must_be });
        }
    }
    places
}

impl Runner {
    /// Every place where a `dual` job's input lies, the nearest first.
    async fn places(&self, claim: &Claim, running: &Running) -> Result<Vec<Place>, Outcome> {
        let job = [claim.lease.job_uid.clone()];
        let mut copies = self.ask_store(running, || self.upkeep.copies(&job)).await?;
        let copies = copies.remove(&claim.lease.job_uid).unwrap_or_default();
        let mut places = places(&claim.spec.input, &claim.lease.job_uid, copies);
        places.sort_by_key(|place| place.pool != self.pool);
        Ok(places)
    }

    /// Moves a `dual` job out of a bucket that does not answer, if its input lies in one that does.
    pub(super) async fn leave_lost_bucket(
        &self,
        claim: &Claim,
        running: &Running,
    ) -> Result<Option<Outcome>, Outcome> {
        if !claim.spec.is_dual() || self.answers(&claim.bucket).await {
            return Ok(None);
        }
        let elsewhere = self.places(claim, running).await?;
        for place in elsewhere.iter().filter(|place| place.pool != claim.bucket) {
            let there = self.objects.head(&place.pool, &place.key);
            if !matches!(tokio::time::timeout(BUCKET_PATIENCE, there).await, Ok(Ok(_))) {
                continue;
            }
            warn!(from = %claim.bucket, to = %place.pool, "the job's bucket does not answer; moving the job");
            if !self.ask_store(running, || self.upkeep.relocate(&claim.lease, &place.pool)).await? {
                // Cancelled first, or somebody else's by now: the settling write finds out which.
                running.stop(Stop::Cancelled);
                return Err(Outcome::Stopped);
            }
            self.metrics.moved.with_label_values(&[claim.bucket.as_str(), place.pool.as_str()]).inc();
            return Ok(Some(Outcome::Moved));
        }
        // With no copy elsewhere it is like any job whose bucket is away for a while.
        Ok(None)
    }

    /// What becomes of an attempt that failed at an object store: where that is the job's own bucket, and lost, the job is
    /// moved at once, and nothing is counted against it.
    pub(super) async fn or_moved(&self, claim: &Claim, running: &Running, outcome: Outcome) -> Outcome {
        use FailureCode::{ObjectsDenied, ObjectsUnavailable};
        let Outcome::Failed(failure) = &outcome else { return outcome };
        if !matches!(failure.code, ObjectsUnavailable | ObjectsDenied) {
            return outcome;
        }
        match self.leave_lost_bucket(claim, running).await {
            Ok(Some(moved)) => {
                warn!(%failure, "the attempt failed with its bucket");
                self.metrics.failures.with_label_values(&[failure.code.as_str()]).inc();
                moved
            }
            Ok(None) => outcome,
            Err(stopped) => stopped,
        }
    }

    async fn answers(&self, bucket: &PoolId) -> bool {
        matches!(tokio::time::timeout(BUCKET_PATIENCE, self.objects.check(bucket)).await, Ok(Ok(())))
    }

    /// Fetches a `dual` job's input from the nearest place that gives it. `false`: no place has it but its URL.
    pub(super) async fn fetch_nearest(
        &self,
        claim: &Claim,
        running: &Running,
        into: &Path,
        report: Report<'_>,
    ) -> Result<bool, Ended> {
        let by_url = matches!(claim.spec.input, Input::Url(_));
        let mut places = self.places(claim, running).await.map_err(|outcome| match outcome {
            Outcome::Failed(failure) => Ended::Failed(failure),
            _ => Ended::Cancelled,
        })?;
        // What a URL leads to is asked there as long as its copy is not nearer.
        places.retain(|place| !by_url || place.pool == self.pool || claim.bucket == place.pool);
        let mut last = None;
        for place in places {
            let name = format!("{}/{}", place.pool, place.key);
            let object = (&place.pool, place.key.as_str(), name.as_str());
            let fetched =
                stored::fetch_object(&self.objects, object, into, self.stored, report, &running.stop);
            let fetched = match fetched.await {
                Ok(()) => place.check(into).await.map_err(Ended::from),
                Err(ended) => Err(ended),
            };
            match fetched {
                Ok(()) => {
                    if place.pool != self.pool {
                        info!(from = %place.pool, "the input came from another pool's bucket");
                    }
                    return Ok(true);
                }
                Err(Ended::Failed(failure)) => {
                    warn!(%failure, from = %place.pool, "no input from here; trying elsewhere");
                    last = Some(failure);
                }
                Err(cancelled) => return Err(cancelled),
            }
        }
        match last {
            Some(failure) if !by_url => Err(failure.into()),
            _ => Ok(false),
        }
    }
}

impl Place {
    /// Holds what was fetched to what was copied.
    async fn check(&self, file: &Path) -> Result<(), Failure> {
        let Some((bytes, sha256)) = &self.must_be else { return Ok(()) };
        let (got, hash) = hashed(file.to_owned()).await?;
        if got == *bytes && sha256.as_ref().is_none_or(|wanted| *wanted == hash) {
            return Ok(());
        }
        let detail = "the second copy of the input is not as it was made";
        Err(Failure::new(FailureCode::ObjectsUnavailable, detail).log(&self.key))
    }
}
