//! What the store knows of bytes that nobody needs any more: a job's outputs past their time, what lost attempts wrote,
//! uploads that no job reads.
//!
//! Nothing here is a queue that could lose an entry: what is due is read off the jobs, attempts and uploads themselves,
//! each time anew. First the rows say that something is gone, so that nobody is led there any more; its bytes go later,
//! when the last reader's URL has ended.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::State;
use millrace_wire::{JobId, PoolId};

use super::copies::Stale;
use super::{Copies, Error, JobRow, Library, Outbox, Part};

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Outputs of a job that says nothing of its own, from its end.
    pub outputs_kept: Duration,
    /// An upload, from its ticket's end or the end of the last job that read it.
    pub uploads_kept: Duration,
    /// What a lost attempt wrote, from its end; removed once more after as long again. And what the parts of a job wrote that
    /// ended without outputs, from its end.
    pub lost_kept: Duration,
    /// From when something is gone for everybody to when its bytes are.
    pub delete_after: Duration,
}

/// An upload that a URL is about to be given out for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUpload {
    /// Its bucket.
    pub bucket: PoolId,
    /// Its key.
    pub key: String,
    /// The object store's name for it, if it comes in parts.
    pub parts: Option<String>,
    /// When its URL ends, in milliseconds since 1970 by the worker's clock.
    pub until_ms: i64,
}

/// Something whose bytes shall go now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// All outputs of a job.
    Outputs {
        /// The job's internal name.
        job_uid: String,
    },
    /// What an attempt wrote that did not publish.
    Attempt {
        /// The task's name.
        task_uid: String,
        /// Its job's internal name.
        job_uid: String,
        /// What it was at.
        part: Part,
        /// Which try.
        number: u64,
    },
    /// What a job in parts left that ended, besides its outputs.
    Pieces {
        /// The job's internal name.
        job_uid: String,
        /// It has outputs, which stay.
        outputs: bool,
    },
    /// A copy of what a job read or gave, which nobody needs any more.
    Copy {
        /// The job's internal name.
        job_uid: String,
        /// Of what.
        what: Stale,
    },
    /// An upload.
    Upload {
        /// Its key.
        key: String,
    },
    /// An upload in parts that was not completed in time, as far as the store knows.
    Parts {
        /// Its key.
        key: String,
        /// The object store's name for it.
        id: String,
    },
}

/// What the deletion of a job's outputs came to.
#[derive(Debug, Clone)]
pub enum Deleted {
    /// They are gone for everybody, now or since before.
    Done(Box<JobRow>),
    /// There are none to delete, or not yet.
    None(State),
    /// No such job.
    NotFound,
}

/// The part of a store that keeps house, tells others and knows words: all that is beside the life of a job. Every method is
/// one transaction.
#[async_trait]
pub trait Upkeep: Outbox + Library + Copies + Send + Sync + 'static {
    /// Enters an upload, to be looked at `kept` after its URL's end; one in parts an hour after.
    async fn enter_upload(&self, upload: &NewUpload, kept: Duration) -> Result<(), Error>;

    /// Says that an upload in parts is one object now, to be looked at after `kept`.
    async fn upload_complete(&self, bucket: &PoolId, key: &str, kept: Duration) -> Result<(), Error>;

    /// Whether an upload is about to be removed, so that no job may name it.
    async fn upload_gone(&self, bucket: &PoolId, key: &str) -> Result<bool, Error>;

    /// Of these jobs (by internal name) those whose outputs are gone, and since when, in milliseconds since 1970.
    async fn outputs_gone(&self, job_uids: &[String]) -> Result<BTreeMap<String, i64>, Error>;

    /// Makes a finished job's outputs gone for everybody.
    async fn delete_outputs(&self, tenant: &str, job_id: &JobId) -> Result<Deleted, Error>;

    /// Makes this sweeper the only one of a bucket for `hold`; `false` when another is.
    async fn take(&self, bucket: &PoolId, sweeper: &str, hold: Duration) -> Result<bool, Error>;

    /// Makes gone what is past its time, and returns what shall lose its bytes now: at most `limit` of each kind.
    async fn due(&self, bucket: &PoolId, rules: &Rules, limit: u32) -> Result<Vec<Due>, Error>;

    /// Says that the bytes are gone.
    async fn swept(&self, bucket: &PoolId, due: &Due) -> Result<(), Error>;
}
