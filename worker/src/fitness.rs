//! Whether this worker can do any job at all: its scratch space takes bytes, and its bucket takes, shows and removes them.
//!
//! A worker that cannot fails every job in a moment, is idle again, and takes the next: it would end all jobs of its pool
//! before a sound neighbour is done with one. So an attempt that failed of either raises a doubt, and with a doubt the
//! worker tries both itself before it claims again. While it lacks one it claims nothing and says that it takes no new jobs;
//! reads go on, and it tries again every few seconds. What it lacks may as well be everybody's (a store that is away): then
//! jobs wait where they are instead of losing their attempts; but for `dual` ones, which leave a lost bucket.
//!
//! A worker whose slots are all taken claims nothing, and would not notice: so while it is busy it asks its bucket now and
//! then for a sign of life, and has a doubt without one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use millrace_wire::job::FailureCode;
use millrace_wire::{PoolId, WorkerId};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::keys;
use crate::metrics::Metrics;
use crate::objects::{self, Objects};

/// What is written on trial. Less than that may be left of a disk that is full for every job.
const TRIAL_BYTES: usize = 256 * 1024;
/// Longest time for a trial of the object store.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Room in its scratch space.
    Scratch,
    /// A bucket that does what it is asked.
    Objects,
}

impl Lack {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Scratch, Self::Objects];

    /// A label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scratch => "scratch",
            Self::Objects => "objects",
        }
    }
}

/// What is known of it.
#[derive(Debug)]
pub struct Fitness {
    objects: Objects,
    pool: PoolId,
    worker: WorkerId,
    scratch: PathBuf,
    doubted: AtomicBool,
    /// What is lacking, by its place in [`Lack::ALL`] counted from 1; 0 is nothing.
    lacks: AtomicU8,
    /// Since when every trial found something lacking.
    lacking_since: Mutex<Option<Instant>>,
}

impl Fitness {
    /// A worker that is believed to be fit until something fails.
    pub fn new(objects: Objects, pool: PoolId, worker: WorkerId, scratch: PathBuf) -> Self {
        let (doubted, lacks) = (AtomicBool::new(false), AtomicU8::new(0));
        Self { objects, pool, worker, scratch, doubted, lacks, lacking_since: Mutex::new(None) }
    }

    /// Takes notice of a failure: those of the worker's own surroundings raise a doubt.
    pub fn hear(&self, code: FailureCode) {
        use FailureCode::{ObjectsDenied, ObjectsUnavailable, ScratchUnavailable};
        if matches!(code, ScratchUnavailable | ObjectsDenied | ObjectsUnavailable) {
            self.doubted.store(true, Ordering::Relaxed);
        }
    }

    /// What it lacked when it was last tried.
    pub fn lacks(&self) -> Option<Lack> {
        let place = usize::from(self.lacks.load(Ordering::Relaxed)).checked_sub(1)?;
        Lack::ALL.get(place).copied()
    }

    /// For how long every trial has found something lacking; `None` where the last one found nothing.
    pub fn lacking_for(&self) -> Option<Duration> {
        self.lacking_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }

    /// Asks the bucket for a sign of life; without one there is a doubt.
    pub async fn look(&self) {
        if self.doubted.load(Ordering::Relaxed) {
            return;
        }
        let answered = tokio::time::timeout(PATIENCE, self.objects.check(&self.pool)).await;
        if !matches!(answered, Ok(Ok(()))) {
            self.doubted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it may claim: at once where there is no doubt, else after a trial.
    pub async fn may_claim(&self, metrics: &Metrics) -> bool {
        if !self.doubted.load(Ordering::Relaxed) {
            return true;
        }
        let found = self.try_out().await;
        let before = self.lacks();
        let place = found.as_ref().map_or(0, |(lack, _)| *lack as u8 + 1);
        self.lacks.store(place, Ordering::Relaxed);
        {
            let mut since = self.lacking_since.lock().unwrap_or_else(PoisonError::into_inner);
            *since = found.is_some().then(|| since.unwrap_or_else(Instant::now));
        }
        for lack in Lack::ALL {
            let lacking = found.as_ref().is_some_and(|(found, _)| *found == lack);
            metrics.lacks.with_label_values(&[lack.as_str()]).set(lacking.into());
        }
        match (&found, before) {
            (Some((lack, why)), before) if before != Some(*lack) => {
                warn!(lacks = lack.as_str(), why, "claiming nothing until that is mended");
            }
            (None, Some(lack)) => info!(lacked = lack.as_str(), "fit again"),
            _ => {}
        }
        if found.is_none() {
            self.doubted.store(false, Ordering::Relaxed);
        }
        found.is_none()
    }

    /// Tries what every job needs, and says what fails and how.
    async fn try_out(&self) -> Option<(Lack, String)> {
        let file = self.scratch.join("trial");
        // Bytes that no disk packs together.
        let bytes: Vec<u8> = (0..TRIAL_BYTES).map(|_| rand::random()).collect();
        let written = tokio::fs::write(&file, bytes).await;
        let lack = match written {
            Err(error) => Some((Lack::Scratch, error.to_string())),
            Ok(()) => {
                let tried = tokio::time::timeout(PATIENCE, self.try_bucket(&file)).await;
                let tried = tried.map_err(|_| format!("no answer within {PATIENCE:?}"));
                tried
                    .and_then(|tried| tried.map_err(|error| error.to_string()))
                    .err()
                    .map(|why| (Lack::Objects, why))
            }
        };
        // It may not even be there.
        let _ = tokio::fs::remove_file(&file).await;
        lack
    }

    async fn try_bucket(&self, file: &std::path::Path) -> Result<(), objects::Error> {
        let key = keys::trial(&self.worker);
        self.objects.put_file(&self.pool, &key, file).await?;
        self.objects.head(&self.pool, &key).await?;
        self.objects.delete(&self.pool, &key).await
    }
}

#[cfg(test)]
mod tests {
    use millrace_object_server::{Fault, What};

    use super::*;
    use crate::objects::conformance::{Stage, aws};

    fn fitness(stage: &Stage) -> Fitness {
        let scratch = stage.folder.path().join("scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        Fitness::new(stage.objects.clone(), aws(), "w1".parse().unwrap(), scratch)
    }

    #[tokio::test]
    async fn only_a_doubt_is_looked_into_and_nothing_is_left_of_the_trial() {
        let (stage, metrics) = (Stage::s3().await, Metrics::new().unwrap());
        let faults = &stage.server.as_ref().unwrap().faults;
        let fitness = fitness(&stage);
        for code in [FailureCode::SourceDamaged, FailureCode::EncodeFailed, FailureCode::VerifyFailed] {
            fitness.hear(code);
            assert!(fitness.may_claim(&metrics).await);
        }
        assert!(faults.take_seen().is_empty(), "nobody was asked");
        fitness.hear(FailureCode::ObjectsUnavailable);
        assert!(fitness.may_claim(&metrics).await, "it was a moment's trouble");
        assert!(!faults.take_seen().is_empty());
        assert_eq!(stage.everything().await, Vec::<String>::new());
        assert!(fitness.may_claim(&metrics).await && faults.take_seen().len() <= 1, "asked once");
    }

    #[tokio::test]
    async fn what_is_lacking_has_a_name_until_it_is_there_again() {
        let (stage, metrics) = (Stage::s3().await, Metrics::new().unwrap());
        let faults = &stage.server.as_ref().unwrap().faults;
        let fitness = fitness(&stage);
        // Objects are deleted by a list of them.
        for (method, on) in [("PUT", "trials/w1"), ("POST", "?delete")] {
            let method = method.parse().unwrap();
            faults.set(vec![Fault::new(&method, on, 1000, What::Refuse(403, "AccessDenied".to_owned()))]);
            fitness.hear(FailureCode::ObjectsDenied);
            for _ in 0..2 {
                assert!(!fitness.may_claim(&metrics).await);
                assert_eq!(fitness.lacks(), Some(Lack::Objects));
            }
            faults.set(Vec::new());
            assert!(fitness.may_claim(&metrics).await);
            assert_eq!(fitness.lacks(), None);
        }
        std::fs::remove_dir(stage.folder.path().join("scratch")).unwrap();
        fitness.hear(FailureCode::ScratchUnavailable);
        assert!(!fitness.may_claim(&metrics).await);
        assert_eq!(fitness.lacks(), Some(Lack::Scratch));
        assert!(fitness.lacking_for().is_some(), "whatever it is");
    }

    #[tokio::test]
    async fn a_bucket_is_lost_from_the_first_trial_that_misses_it_until_one_that_does_not() {
        let (stage, metrics) = (Stage::s3().await, Metrics::new().unwrap());
        let faults = &stage.server.as_ref().unwrap().faults;
        let fitness = fitness(&stage);
        fitness.look().await;
        assert!(fitness.may_claim(&metrics).await, "it answers");
        faults.set(vec![Fault {
            method: None,
            on: None,
            skip: 0,
            times: 1000,
            what: What::Refuse(403, "AccessDenied".to_owned()),
        }]);
        assert!(fitness.may_claim(&metrics).await, "nobody looked");
        fitness.look().await;
        assert_eq!(fitness.lacking_for(), None, "a doubt alone proves nothing");
        assert!(!fitness.may_claim(&metrics).await);
        let first = fitness.lacking_for().unwrap();
        assert!(!fitness.may_claim(&metrics).await);
        assert!(fitness.lacking_for().unwrap() > first, "counted from the first one");
        faults.set(Vec::new());
        assert!(fitness.may_claim(&metrics).await);
        assert_eq!(fitness.lacking_for(), None);
    }
}
