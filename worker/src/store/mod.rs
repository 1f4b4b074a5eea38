//! The job store: the one place that decides what is true about a job.
//!
//! At-least-once execution, exactly-once effect: workers may do work twice, but a job is acknowledged only after
//! [`Store::accept`] committed it, and its outputs become visible only through [`Store::publish`]. Everything a
//! worker writes carries the epoch of its claim; after somebody else claimed, it changes nothing.
//!
//! There is no clock in this interface on purpose: times are the database's own. Rejected: correctness that rests on
//! LISTEN/NOTIFY, advisory locks or SKIP LOCKED, because stores that speak the same SQL elsewhere lack them; a queue service
//! beside the database, because then two systems would have to agree on what was accepted.

#[cfg(test)]
mod conformance;
pub mod copies;
pub mod library;
pub mod outbox;
mod parts;
pub mod postgres;
#[cfg(test)]
#[path = "../../../bench/src/postgres.rs"]
pub mod private_server;
mod row;
mod rules;
mod sqlite;
pub mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::{FailureCode, Outputs, Phase, Progress, State};
use millrace_wire::spec::{Input, Priority};
use millrace_wire::steal::Prices;
use millrace_wire::{JobId, JobSpec, PoolId, WorkerId};
use serde::{Deserialize, Serialize};

pub use copies::Copies;
pub use library::Library;
pub use outbox::Outbox;
pub use parts::{Committed, Done, NewPart, Part, Pieces};
pub use postgres::Postgres;
pub use sqlite::Sqlite;
pub use upkeep::{NewUpload, Upkeep};

/// Whose jobs those are that came without a tenant: of a gateway that asks nobody who he is.
pub const TENANT_DEFAULT: &str = "default";

/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not answer, is locked for too long, or its disk is full: try again later.
    #[error("the job store does not answer: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// A row does not hold what this version expects.
    #[error("the job store holds something unreadable: {0}")]
    Corrupt(String),
    /// The store cannot be opened as configured.
    #[error("cannot open the job store {url}: {message}")]
    Open {
        /// As configured.
        url: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl Error {
    /// A metric label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Corrupt(_) => "corrupt",
            Self::Open { .. } => "open",
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
                Self::Corrupt(error.to_string())
            }
            other => Self::Unavailable(other),
        }
    }
}

/// A submit that passed validation.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Whose.
    pub tenant: String,
    /// Its public name.
    pub job_id: JobId,
    /// What was asked.
    pub spec: JobSpec,
    /// Reference-seconds it will cost, as far as anybody knows before the probe.
    pub work_seconds: f64,
    /// What it must have waited before each other pool may take it.
    pub steal: Prices,
    /// The pool whose bucket gets the input's second copy, if it is a `dual` one; none where this deployment has none.
    pub second: Option<PoolId>,
}

/// How full the accepting worker may get.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Jobs it runs at once.
    pub slots: u32,
    /// Jobs that may wait beyond those.
    pub queue_max: u32,
}

/// What became of a submit.
#[derive(Debug, Clone)]
pub enum Accepted {
    /// Committed now.
    Created(JobRow),
    /// The same id and the same spec were committed before.
    Existing(JobRow),
    /// The same id with another spec.
    Conflict,
    /// No room for its class; nothing was written.
    Full,
}

/// A worker as it registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub worker: WorkerId,
    /// Its pool.
    pub pool: PoolId,
    /// Which life of it this is.
    pub incarnation: u64,
}

/// Proof of a claim: writes go through only while this is the task's latest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The task.
    pub task_uid: String,
    /// Its job.
    pub job_uid: String,
    /// The claim's number; also the attempt's.
    pub epoch: u64,
}

/// A claimed task with all that is needed to do it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The proof.
    pub lease: Lease,
    /// The job's public name, for logs.
    pub job_id: JobId,
    /// What was asked.
    pub spec: JobSpec,
    /// Bucket of the outputs.
    pub bucket: PoolId,
    /// Estimate before the probe.
    pub work_seconds: f64,
    /// Who accepted it.
    pub accepted_by: String,
    /// How long it waited since acceptance or its last release.
    pub waited: Duration,
    /// The pool that it waited in, where it was taken from there for its price.
    pub stolen_from: Option<PoolId>,
    /// Which part of the job it is.
    pub part: Part,
    /// The plan that the job was split by; none of [`Part::Whole`].
    pub plan: Option<String>,
}

/// One running task's sign of life.
#[derive(Debug, Clone)]
pub struct Beat {
    /// The proof.
    pub lease: Lease,
    /// How far it is.
    pub progress: Progress,
}

/// What the store says to a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The lease runs on from now.
    Renewed,
    /// A client wants it stopped.
    CancelRequested,
    /// Somebody else claimed it, or it ended.
    Lost,
}

/// The answer to a batched heartbeat.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// One per beat, in order.
    pub verdicts: Vec<Verdict>,
    /// A later process registered under this worker's name.
    pub superseded: bool,
}

/// How an attempt ended without publishing.
#[derive(Debug, Clone)]
pub enum AttemptEnd {
    /// It failed. The store decides between `failed`, `retry_wait` and `dead`.
    Failed {
        /// Why.
        code: FailureCode,
        /// What the client reads.
        detail: String,
        /// Before another attempt.
        retry_after: Duration,
    },
    /// Given back untouched: the worker stops. Claimable at once, and counts towards nothing.
    Released,
    /// Stopped because a client asked.
    Cancelled,
}

/// What a publish came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The job succeeded with this manifest, now or in an earlier try whose answer was lost.
    Yes,
    /// Cancelled first, or the lease is somebody else's.
    No,
}

/// What a cancel came to.
#[derive(Debug, Clone)]
pub enum Cancelled {
    /// It was waiting and is now cancelled, or already was.
    Done(JobRow),
    /// It runs; its worker will see the request.
    Requested(JobRow),
    /// It had already ended.
    TooLate(JobRow),
    /// No such job.
    NotFound,
}

/// What a wish for another series of attempts came to.
#[derive(Debug, Clone)]
pub enum Retried {
    /// It waits again.
    Done(JobRow),
    /// It has not ended, or in a way that another try cannot change.
    Refused(JobRow),
    /// No room for its class; nothing was written.
    Full,
    /// No such job.
    NotFound,
}

/// Where the outputs of a finished job lie. The whole truth for readers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Bucket.
    pub bucket: PoolId,
    /// Key prefix of every file, without a trailing slash; but for those of [`Self::pieces`].
    pub prefix: String,
    /// Where the segments lie of a job that was made in parts: where those who made them put them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Pieces>,
    /// Number of files below it.
    pub files: usize,
    /// What clients see, with file names for URLs.
    pub outputs: Outputs,
    /// What was odd, but not fatal.
    pub warnings: Vec<String>,
}

impl Manifest {
    /// The key of a file, by its name; whether there is such a file, the object store knows.
    pub fn key(&self, name: &str) -> String {
        let own = || format!("{}/{name}", self.prefix);
        let attempt = self.pieces.as_ref().and_then(|pieces| pieces.of(name));
        // `jobs/<uid>/<part>/a<n>`, like all the others.
        let job = self.prefix.rsplitn(3, '/').nth(2);
        job.zip(attempt)
            .map_or_else(own, |(job, (part, number))| format!("{job}/{}/a{number}/{name}", part.folder()))
    }
}

/// A job as stored.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// Internal name, used in paths.
    pub uid: String,
    /// Public name.
    pub job_id: JobId,
    /// What was asked.
    pub spec: JobSpec,
    /// Hash of the asking.
    pub spec_hash: String,
    /// Class.
    pub priority: Priority,
    /// State.
    pub state: State,
    /// What it is at.
    pub phase: Option<Phase>,
    /// Pool.
    pub pool: PoolId,
    /// Who runs it or ran it last.
    pub worker: Option<WorkerId>,
    /// Tries so far.
    pub attempt: u32,
    /// How far.
    pub progress: Progress,
    /// Outputs.
    pub manifest: Option<Manifest>,
    /// Why the last attempt failed.
    pub error: Option<(FailureCode, String)>,
    /// A client wants it stopped.
    pub cancel_requested: bool,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// Milliseconds since 1970.
    pub started_at_ms: Option<i64>,
    /// Milliseconds since 1970.
    pub finished_at_ms: Option<i64>,
}

impl JobRow {
    /// Whether another series of attempts may end otherwise: after too many of what may pass, always; after a verdict on
    /// what lies at a URL, because something else may lie there by now. The bytes of an upload never change.
    pub fn may_be_retried(&self) -> bool {
        let of_the_source = self.error.as_ref().is_some_and(|(code, _)| code.as_str().starts_with("source_"));
        match self.state {
            State::Dead => true,
            State::Failed => of_the_source && matches!(self.spec.input, Input::Url(_)),
            _ => false,
        }
    }
}

/// Which jobs to list: the newest first.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only these.
    pub state: Option<State>,
    /// At most so many.
    pub limit: u32,
    /// Older than this job's uid.
    pub before: Option<String>,
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// Jobs that one worker accepted and nobody claimed.
    pub accepted_here: u32,
    /// Their reference-seconds.
    pub accepted_here_work: f64,
    /// Jobs that wait in the pool, whoever accepted them.
    pub pool: u32,
    /// Their reference-seconds.
    pub pool_work: f64,
}

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order of all events.
    pub seq: i64,
    /// `accepted`, `claimed`, `phase`, `succeeded`, `failed`, `retry_wait`, `released`, `cancelled`, `dead`, `retried`, `split`,
    /// `begun_anew`, `taken_back`, `moved`, …
    pub kind: String,
    /// A JSON object with what belongs to the kind, and in `job` how the job stood after it: a
    /// [`millrace_wire::job::JobUpdate`].
    pub body: String,
}

/// Opens the store that a URL names: `sqlite:PATH`, or `postgres://…`, several of those with commas between them. It is one
/// store, seen from two sides.
///
/// `failures_max` is how many counted failures make a job `dead`.
///
/// # Errors
/// [`Error::Open`] when it cannot be opened as configured.
pub async fn open(
    url: &str,
    settings: postgres::Settings,
    failures_max: u32,
) -> Result<(Arc<dyn Store>, Arc<dyn Upkeep>), Error> {
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        let store = Arc::new(Postgres::open(url, settings, failures_max).await?);
        return Ok((Arc::clone(&store) as _, store));
    }
    let store = Arc::new(Sqlite::open(url, failures_max).await?);
    Ok((Arc::clone(&store) as _, store))
}

/// The job store. Every method is one transaction; nothing but the database is awaited inside one.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The deployment's store, by a name given at its creation: equal ids are the same jobs.
    fn id(&self) -> &str;

    /// Secret that signs upload URLs, shared by every worker of this store.
    fn signing_key(&self) -> &[u8];

    /// Enters a worker and gives it the next incarnation. Leases of its earlier lives end now.
    async fn register(&self, worker: &WorkerId, pool: &PoolId) -> Result<Identity, Error>;

    /// Says what a worker encodes with, and how long it leaves alone what an encoder began that is not heard of any more.
    /// Without it a worker takes no range that somebody began.
    async fn equip(&self, worker: &Identity, encoder: &str, patience: Duration) -> Result<(), Error>;

    /// Takes a worker out that ends: what waits in its pool is anybody's as soon as no other worker of the pool lives.
    async fn deregister(&self, worker: &Identity) -> Result<(), Error>;

    /// Commits a job if there is room for its class. Only after this may a client be told so.
    async fn accept(&self, new: &NewJob, by: &Identity, room: Room) -> Result<Accepted, Error>;

    /// One job.
    async fn job(&self, tenant: &str, job_id: &JobId) -> Result<Option<JobRow>, Error>;

    /// A page of jobs, the newest first.
    async fn jobs(&self, tenant: &str, filter: &Filter) -> Result<Vec<JobRow>, Error>;

    /// Ends a waiting job, or asks the worker of a running one to stop.
    async fn cancel(&self, tenant: &str, job_id: &JobId) -> Result<Cancelled, Error>;

    /// Lets a job that ended without outputs wait again, with all its attempts anew: see [`JobRow::may_be_retried`]. It is the
    /// same job (its uid stays and its epoch goes on, so that no earlier attempt can publish), and in the queue it is a new
    /// one, of the worker that is asked.
    async fn retry(&self, tenant: &str, job_id: &JobId, by: &Identity, room: Room) -> Result<Retried, Error>;

    /// Claims the oldest waiting task of the highest class in the worker's own pool, or one that has lost its worker or
    /// its whole pool: no heartbeat of any worker there for a lease.
    ///
    /// Where there is none, it steals: a task that nobody has claimed yet and that has waited in another pool for its price
    /// (see [`NewJob::steal`]), the one that is longest past it first. The first claim of a task takes its prices away, so
    /// it is stolen at most once in its life, and moves to another pool only by a claim, which is a lease.
    ///
    /// Parts of a job go to its own pool alone, as long as one worker of it lives; and ranges, once one of them is done, only
    /// to workers with an equal encoder. Where none of those has been heard of for the claimer's patience, the ranges begin
    /// anew, and anybody may be first.
    async fn claim(&self, by: &Identity, lease: Duration) -> Result<Option<Claim>, Error>;

    /// Renews every lease of a worker at once.
    async fn heartbeat(&self, by: &Identity, beats: &[Beat], lease: Duration) -> Result<Heartbeat, Error>;

    /// Which of this worker's running tasks a client wants stopped.
    async fn cancellations(&self, by: &Identity) -> Result<Vec<Lease>, Error>;

    /// Enters a phase; with a better estimate of the work where one is known. `false`: the lease is lost.
    async fn enter(&self, lease: &Lease, phase: Phase, work_seconds: Option<f64>) -> Result<bool, Error>;

    /// Ends a job's first task with a plan and enters its parts: claimable from now on, but for [`Part::Finish`], which comes
    /// by itself when all of them are done. Safe to repeat when the answer was lost. `false`: the lease is lost, or the job
    /// is cancelled.
    async fn split(&self, lease: &Lease, plan: &str, parts: &[NewPart]) -> Result<bool, Error>;

    /// Ends a part's task with what it left; of a range with the encoder that made it. Safe to repeat when the answer was
    /// lost.
    async fn commit(&self, lease: &Lease, encoder: &str, result: &str) -> Result<Committed, Error>;

    /// What the parts of a job left that are done.
    async fn results(&self, job_uid: &str) -> Result<Vec<Done>, Error>;

    /// Takes parts back that were done and whose objects are lost, on behalf of the task that was to put them together: they
    /// wait to be done again, and that task until they are. For each it is a failure of [`FailureCode::ObjectsLost`] with
    /// this detail, and too many of them are the end of the job. Safe to repeat when the answer was lost: the lease is gone
    /// then, which is `false`, as where the job is cancelled.
    async fn take_back(&self, lease: &Lease, lost: &[Lease], detail: &str) -> Result<bool, Error>;

    /// Makes outputs visible: the commit of a job. Safe to repeat when the answer was lost.
    async fn publish(&self, lease: &Lease, manifest: &Manifest) -> Result<Published, Error>;

    /// Ends an attempt that did not publish. A lost lease changes nothing.
    async fn end(&self, lease: &Lease, end: &AttemptEnd) -> Result<(), Error>;

    /// What waits, at this worker and in its pool.
    async fn backlog(&self, of: &Identity) -> Result<Backlog, Error>;

    /// What happened to a job after event `after`, in order.
    async fn events(&self, job_uid: &str, after: i64, limit: u32) -> Result<Vec<Event>, Error>;

    /// Whether the database answers: what its clock says, in milliseconds since 1970.
    async fn ping(&self) -> Result<i64, Error>;
}
