//! Rows into what the rest of the worker knows: the same columns, whatever database they come from.

use std::str::FromStr;

use millrace_wire::job::{FailureCode, Phase, State, WebhookState};
use millrace_wire::spec::Priority;
use millrace_wire::{JobId, JobSpec, PoolId, WorkerId};
use sqlx::Row as _;

use super::copies::{CopyClaim, CopyLease, CopyRow, Kind, Stale, Stranded};
use super::outbox::{SinkEvent, WebhookRow};
use super::upkeep::Due;
use super::{Error, JobRow, Part};

/// A row of either database.
pub(super) trait Columns {
    fn text(&self, column: &str) -> Result<String, sqlx::Error>;
    fn maybe_text(&self, column: &str) -> Result<Option<String>, sqlx::Error>;
    fn int(&self, column: &str) -> Result<i64, sqlx::Error>;
    fn maybe_int(&self, column: &str) -> Result<Option<i64>, sqlx::Error>;
}

macro_rules! columns {
    ($($row:ty),*) => {$(
        impl Columns for $row {
            fn text(&self, column: &str) -> Result<String, sqlx::Error> {
                self.try_get(column)
            }
            fn maybe_text(&self, column: &str) -> Result<Option<String>, sqlx::Error> {
                self.try_get(column)
            }
            fn int(&self, column: &str) -> Result<i64, sqlx::Error> {
                self.try_get(column)
            }
            fn maybe_int(&self, column: &str) -> Result<Option<i64>, sqlx::Error> {
                self.try_get(column)
            }
        }
    )*};
}
columns!(sqlx::sqlite::SqliteRow, sqlx::postgres::PgRow);

fn corrupt(what: &str, got: &str) -> Error {
    Error::Corrupt(format!("{what} {got:?}"))
}

fn parsed<T: FromStr>(column: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| corrupt(column, text))
}

fn json<T: serde::de::DeserializeOwned>(column: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|_| corrupt(column, text))
}

fn failure_code(name: &str) -> Result<FailureCode, Error> {
    FailureCode::ALL.iter().copied().find(|c| c.as_str() == name).ok_or_else(|| corrupt("error_code", name))
}

/// A pool's name as a row has it.
pub(super) fn pool_named(text: &str) -> Result<PoolId, Error> {
    parsed("pool", text)
}

/// Reads `SELECT * FROM job`.
pub(super) fn job_row(row: &impl Columns) -> Result<JobRow, Error> {
    let (phase, state) = (row.maybe_text("phase")?, row.text("state")?);
    let error = match row.maybe_text("error_code")? {
        Some(code) => Some((failure_code(&code)?, row.maybe_text("error_detail")?.unwrap_or_default())),
        None => None,
    };
    Ok(JobRow {
        uid: row.text("uid")?,
        job_id: parsed("job_id", &row.text("job_id")?)?,
        spec: json("spec", &row.text("spec")?)?,
        spec_hash: row.text("spec_hash")?,
        priority: Priority::ALL[usize::try_from(row.int("class")?).unwrap_or(1).min(2)],
        state: State::parse(&state).ok_or_else(|| corrupt("state", &state))?,
        phase: phase.map(|p| Phase::parse(&p).ok_or_else(|| corrupt("phase", &p))).transpose()?,
        pool: parsed("pool", &row.text("pool")?)?,
        worker: row.maybe_text("worker")?.map(|w| parsed::<WorkerId>("worker", &w)).transpose()?,
        attempt: u32::try_from(row.int("attempt")?).unwrap_or(u32::MAX),
        progress: json("progress", &row.text("progress")?)?,
        manifest: row.maybe_text("manifest")?.map(|m| json("manifest", &m)).transpose()?,
        error,
        cancel_requested: row.maybe_int("cancel_requested_at")?.is_some(),
        created_at_ms: row.int("created_at")?,
        started_at_ms: row.maybe_int("started_at")?,
        finished_at_ms: row.maybe_int("finished_at")?,
    })
}

/// What a worker must be able to read of a job before it claims it: what a later version accepted, it may not be.
pub(super) struct Wanted {
    pub(super) job_id: JobId,
    pub(super) spec: JobSpec,
    pub(super) bucket: PoolId,
    pub(super) part: Part,
    pub(super) plan: Option<String>,
}

impl Wanted {
    pub(super) fn read(row: &impl Columns) -> Result<Self, Error> {
        let part = Part::read(&row.text("kind")?, row.int("ordinal")?)?;
        let plan = row.maybe_text("plan")?;
        if part != Part::Whole && plan.is_none() {
            return Err(corrupt("plan", "none"));
        }
        Ok(Self {
            job_id: parsed("job_id", &row.text("job_id")?)?,
            spec: json("spec", &row.text("spec")?)?,
            bucket: parsed("bucket", &row.text("bucket")?)?,
            part,
            plan: plan.filter(|_| part != Part::Whole),
        })
    }
}

/// Reads `job_uid, what, pool, epoch, failures` of a copy and `job_id, spec, manifest` of its job.
pub(super) fn copy_claim(row: &impl Columns) -> Result<CopyClaim, Error> {
    Ok(CopyClaim {
        lease: CopyLease {
            job_uid: row.text("job_uid")?,
            kind: Kind::parse(&row.text("what")?)?,
            to: pool_named(&row.text("pool")?)?,
            epoch: row.int("epoch")? as u64,
        },
        job_id: parsed("job_id", &row.text("job_id")?)?,
        spec: json("spec", &row.text("spec")?)?,
        manifest: row.maybe_text("manifest")?.map(|m| json("manifest", &m)).transpose()?,
        failures: count(row.int("failures")?),
    })
}

/// Reads `job_uid, what, pool, state, copy, bytes, sha256, done_at, detail, claimed` of a copy.
pub(super) fn copy_row(row: &impl Columns) -> Result<(String, CopyRow), Error> {
    let (done, copied_by) = (row.text("state")? == "done", row.int("copy")? as u64);
    let copy = CopyRow {
        kind: Kind::parse(&row.text("what")?)?,
        pool: pool_named(&row.text("pool")?)?,
        done: row.maybe_int("done_at")?.filter(|_| done).map(|at| (copied_by, at)),
        claimed: row.int("claimed")? != 0,
        bytes: row.maybe_int("bytes")?.filter(|_| done).map(|bytes| bytes as u64),
        sha256: row.maybe_text("sha256")?.filter(|_| done),
        detail: row.maybe_text("detail")?,
    };
    Ok((row.text("job_uid")?, copy))
}

/// Reads `uid, job_id, spec` of a job that waits with a bucket.
pub(super) fn stranded(row: &impl Columns) -> Result<Stranded, Error> {
    Ok(Stranded {
        job_uid: row.text("uid")?,
        job_id: parsed("job_id", &row.text("job_id")?)?,
        spec: json("spec", &row.text("spec")?)?,
    })
}

/// Reads `job_uid, what, epoch` of a copy that is nobody's any more.
pub(super) fn stale_copy(row: &impl Columns) -> Result<Due, Error> {
    let what = Stale::read(&row.text("what")?, row.int("epoch")?)?;
    Ok(Due::Copy { job_uid: row.text("job_uid")?, what })
}

/// A number that is never negative.
pub(super) fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(super) fn webhook_state(name: &str) -> Result<WebhookState, Error> {
    WebhookState::parse(name).ok_or_else(|| corrupt("state", name))
}

/// Reads `job_uid, state, tries, detail, due_at` of a webhook.
pub(super) fn webhook(row: &impl Columns) -> Result<(String, WebhookRow), Error> {
    let told = WebhookRow {
        state: webhook_state(&row.text("state")?)?,
        tries: count(row.int("tries")?),
        detail: row.maybe_text("detail")?,
        due_at_ms: row.int("due_at")?,
    };
    Ok((row.text("job_uid")?, told))
}

/// Reads `seq, tenant, job_id, job_uid, kind, at, body` of an event and its job.
pub(super) fn sink_event(row: &impl Columns) -> Result<SinkEvent, Error> {
    Ok(SinkEvent {
        seq: row.int("seq")?,
        tenant: row.text("tenant")?,
        job_id: parsed("job_id", &row.text("job_id")?)?,
        job_uid: row.text("job_uid")?,
        kind: row.text("kind")?,
        at_ms: row.int("at")?,
        body: row.text("body")?,
    })
}
