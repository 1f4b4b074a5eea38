//! Rows into what the rest of the worker knows, and back.

use std::str::FromStr;

use millrace_wire::job::{FailureCode, Phase, State};
use millrace_wire::spec::Priority;
use millrace_wire::{PoolId, WorkerId};
use serde_json::{Value, json};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::super::{Error, JobRow};

pub(super) fn corrupt(what: &str, got: &str) -> Error {
    Error::Corrupt(format!("{what} {got:?}"))
}

pub(super) fn class_of(priority: Priority) -> i64 {
    match priority {
        Priority::Live => 0,
        Priority::Normal => 1,
        Priority::Batch => 2,
    }
}

pub(super) fn failure_code(name: &str) -> Result<FailureCode, Error> {
    FailureCode::ALL.iter().copied().find(|c| c.as_str() == name).ok_or_else(|| corrupt("error_code", name))
}

/// A job's row as a [`millrace_wire::job::JobUpdate`] is written, without reading its words.
pub(super) fn update(row: &SqliteRow) -> Result<Value, Error> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let maybe = |column: &str| row.try_get::<Option<String>, _>(column);
    let progress: Value =
        serde_json::from_str(&text("progress")?).unwrap_or_else(|_| json!({ "percent": 0.0 }));
    let mut update = json!({
        "job_id": text("job_id")?,
        "state": text("state")?,
        "progress": progress,
        "pool": text("pool")?,
        "attempt": row.try_get::<i64, _>("attempt")?,
    });
    if let Some(phase) = maybe("phase")? {
        update["phase"] = phase.into();
    }
    if let Some(worker) = maybe("worker")? {
        update["worker"] = worker.into();
    }
    if let Some(code) = maybe("error_code")? {
        update["error"] = json!({ "code": code, "detail": maybe("error_detail")?.unwrap_or_default() });
    }
    Ok(update)
}

/// Reads `SELECT * FROM job`.
pub(super) fn job_row(row: &SqliteRow) -> Result<JobRow, Error> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let maybe = |column: &str| row.try_get::<Option<String>, _>(column);
    let json = |column: &str, value: &str| Error::Corrupt(format!("{column} is {value:?}"));
    let (state, spec, job_id, pool, progress) =
        (text("state")?, text("spec")?, text("job_id")?, text("pool")?, text("progress")?);
    let phase = maybe("phase")?;
    let manifest = maybe("manifest")?;
    let error = match maybe("error_code")? {
        Some(code) => Some((failure_code(&code)?, maybe("error_detail")?.unwrap_or_default())),
        None => None,
    };
    let class: i64 = row.try_get("class")?;
    Ok(JobRow {
        uid: text("uid")?,
        job_id: job_id.parse().map_err(|_| corrupt("job_id", &job_id))?,
        spec: serde_json::from_str(&spec).map_err(|_| json("spec", &spec))?,
        spec_hash: text("spec_hash")?,
        priority: Priority::ALL[usize::try_from(class).unwrap_or(1).min(2)],
        state: State::parse(&state).ok_or_else(|| corrupt("state", &state))?,
        phase: phase.map(|p| Phase::parse(&p).ok_or_else(|| corrupt("phase", &p))).transpose()?,
        pool: PoolId::from_str(&pool).map_err(|_| corrupt("pool", &pool))?,
        worker: maybe("worker")?
            .map(|w| WorkerId::from_str(&w).map_err(|_| corrupt("worker", &w)))
            .transpose()?,
        attempt: u32::try_from(row.try_get::<i64, _>("attempt")?).unwrap_or(u32::MAX),
        progress: serde_json::from_str(&progress).map_err(|_| json("progress", &progress))?,
        manifest: manifest.map(|m| serde_json::from_str(&m).map_err(|_| json("manifest", &m))).transpose()?,
        error,
        cancel_requested: row.try_get::<Option<i64>, _>("cancel_requested_at")?.is_some(),
        created_at_ms: row.try_get("created_at")?,
        started_at_ms: row.try_get("started_at")?,
        finished_at_ms: row.try_get("finished_at")?,
    })
}
