//! What the store knows of copies: the second one of a `dual` job's input, and those of outputs in other pools.
//!
//! A copy is a task of its job's own: claimed with a lease, renewed, tried again after a failure or its worker's death, and
//! done by one compare-and-set on its epoch. It stands beside the tasks that encode, because it takes no slot, holds up no
//! other part of its job, and of outputs begins only after the job's end. What a copier writes proves nothing before the
//! row says that it is done.
//!
//! A job whose bucket is lost is moved ([`Copies::relocate`]) before another attempt begins: the bucket of one attempt
//! never changes, and so neither does what its commit means.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::{JobId, JobSpec, PoolId};

use super::{Error, Identity, JobRow, Lease, Manifest};

/// What a copy is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A job's input.
    Input,
    /// What a job gave.
    Outputs,
}

impl Kind {
    /// As its row has it, and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Outputs => "outputs",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "input" => Ok(Self::Input),
            "outputs" => Ok(Self::Outputs),
            _ => Err(Error::Corrupt(format!("a copy of {text:?}"))),
        }
    }
}

/// Proof of a claim on a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyLease {
    /// Of which job, by its internal name.
    pub job_uid: String,
    /// Of what.
    pub kind: Kind,
    /// Into whose bucket.
    pub to: PoolId,
    /// The claim's number.
    pub epoch: u64,
}

/// A copy to be made.
#[derive(Debug, Clone)]
pub struct CopyClaim {
    /// The proof.
    pub lease: CopyLease,
    /// The job's public name, for logs.
    pub job_id: JobId,
    /// What was asked; the input stands there.
    pub spec: JobSpec,
    /// Where its outputs lie, once there are any.
    pub manifest: Option<Manifest>,
    /// Tries that failed before this one.
    pub failures: u32,
}

/// Which copies a worker can make.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The pools whose buckets it knows; `None` is all of them.
    pub pools: Option<Vec<PoolId>>,
    /// Whether the store is known to be in several clouds by itself. Else inputs are copied only while its server waits for
    /// a synchronous standby: without a store that survives, a second copy is worth nothing.
    pub store_replicated: bool,
}

/// How a claim on a copy ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// It is whole.
    Done {
        /// Its bytes.
        bytes: u64,
        /// SHA-256 of an input, in hexadecimal.
        sha256: Option<String>,
    },
    /// It failed, and is tried again.
    Failed {
        /// A metric label.
        code: String,
        /// What the job's owner reads.
        detail: String,
        /// Before another try.
        retry_after: Duration,
    },
    /// Given back untouched.
    Released,
}

/// Where a copy stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRow {
    /// Of what.
    pub kind: Kind,
    /// In whose bucket.
    pub pool: PoolId,
    /// The claim that made it, and when, in milliseconds since 1970; none while it is not whole.
    pub done: Option<(u64, i64)>,
    /// A worker is at it.
    pub claimed: bool,
    /// Its bytes, when it is whole.
    pub bytes: Option<u64>,
    /// SHA-256 of an input, in hexadecimal.
    pub sha256: Option<String>,
    /// Why the last try failed.
    pub detail: Option<String>,
}

/// What lies in a bucket of a job that is over, besides what the job gave there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// The second copy of its input, of so many claims at most.
    Input {
        /// The highest claim's number.
        claims: u64,
    },
    /// A copy of its outputs.
    Outputs,
    /// What its attempts left where it was moved away from.
    Left,
}

impl Stale {
    pub(super) fn read(what: &str, claims: i64) -> Result<Self, Error> {
        match what {
            "left" => Ok(Self::Left),
            what => Ok(match Kind::parse(what)? {
                Kind::Input => Self::Input { claims: claims as u64 },
                Kind::Outputs => Self::Outputs,
            }),
        }
    }

    /// As its row has it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Input { .. } => "input",
            Self::Outputs => "outputs",
            Self::Left => "left",
        }
    }
}

/// A `dual` job that waits with a bucket.
#[derive(Debug, Clone)]
pub struct Stranded {
    /// Its internal name.
    pub job_uid: String,
    /// Its public name, for logs.
    pub job_id: JobId,
    /// What was asked; the input stands there.
    pub spec: JobSpec,
}

/// What a wish for copies of outputs came to.
#[derive(Debug, Clone)]
pub enum Wished {
    /// They are entered, now or before.
    Done(Box<JobRow>),
    /// It has none to copy: it did not succeed, or they are gone.
    None(Box<JobRow>),
    /// No such job.
    NotFound,
}

/// The part of a store that knows of copies. Every method is one transaction.
#[async_trait]
pub trait Copies: Send + Sync + 'static {
    /// Claims the copy that has been due longest, of those that the worker can make.
    async fn claim_copy(
        &self,
        by: &Identity,
        reach: &Reach,
        lease: Duration,
    ) -> Result<Option<CopyClaim>, Error>;

    /// Lets a claim hold on. `false`: it is lost, or nobody wants the copy any more.
    async fn renew_copy(&self, copy: &CopyLease, lease: Duration) -> Result<bool, Error>;

    /// Ends a claim. `false`: it was lost, or nobody wants the copy any more, or an input's copy would rest on a store that
    /// is in one place only. Safe to repeat when the answer was lost.
    async fn end_copy(&self, copy: &CopyLease, reach: &Reach, end: &CopyEnd) -> Result<bool, Error>;

    /// Of these jobs (by internal name) where their copies stand; those of which nobody reads any more are left out.
    async fn copies(&self, job_uids: &[String]) -> Result<BTreeMap<String, Vec<CopyRow>>, Error>;

    /// How many copies wait for their turn in all pools, and for how long the oldest of them.
    async fn copies_waiting(&self) -> Result<(u32, Duration), Error>;

    /// Enters copies of a finished job's outputs. One that is there already stays as it is.
    async fn replicate(&self, tenant: &str, job_id: &JobId, pools: &[PoolId]) -> Result<Wished, Error>;

    /// Moves a job to another bucket, and ends the attempt that found its own lost: the job waits again, whole, for the
    /// workers of that pool. What its parts left is theirs no more, for it lay in the lost bucket; attempts that still run
    /// have lost their leases, and can neither commit nor publish. `false`: the lease is lost, or the job is cancelled.
    async fn relocate(&self, lease: &Lease, to: &PoolId) -> Result<bool, Error>;

    /// Says that this worker lacks what every job needs, and names the `dual` jobs that wait with that bucket, the oldest of them
    /// after `after` first: no part of them runs, and they were claimed since they were moved last, if they ever were. None as
    /// long as another worker of the pool was seen within a lease and has not said the same of late: it may do them.
    async fn stranded(
        &self,
        by: &Identity,
        lease: Duration,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Stranded>, Error>;

    /// Moves such a job to another bucket, as [`Self::relocate`] does, but with no attempt to end. `false`: it is claimed,
    /// cancelled, over, or was moved already.
    async fn move_waiting(&self, job_uid: &str, from: &PoolId, to: &PoolId) -> Result<bool, Error>;

    /// The same with a job that has succeeded, and whose outputs are lost with their bucket: it is made again. `None`: it
    /// has not succeeded, or lies elsewhere by now than in `from`.
    async fn reopen(
        &self,
        tenant: &str,
        job_id: &JobId,
        from: &PoolId,
        to: &PoolId,
    ) -> Result<Option<JobRow>, Error>;
}

/// The copies that a job asks for when it is accepted by a worker of that pool: of what, and in whose bucket. An input that
/// already lies in the second pool's bucket gets its second copy in the worker's own.
pub(super) fn asked(spec: &JobSpec, second: Option<&PoolId>, by: &PoolId) -> Vec<(Kind, PoolId)> {
    use millrace_wire::spec::Input;
    let lies_in = |pool: &PoolId| matches!(&spec.input, Input::Path(path) if path.split('/').next() == Some(pool.as_str()));
    let input = second.filter(|_| spec.is_dual()).map(|second| if lies_in(second) { by } else { second });
    let input = input.map(|pool| (Kind::Input, pool.clone()));
    let outputs = spec.replicate.iter().map(|pool| (Kind::Outputs, pool.clone()));
    input.into_iter().chain(outputs).collect()
}
