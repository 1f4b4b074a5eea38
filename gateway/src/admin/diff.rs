//! `POST /diff`: what a routing file would change.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use millrace_runtime::config::Error;
use serde::{Deserialize, Serialize};

use super::Admin;
use super::problem::{self, Problem};
use crate::diff::Change;

/// A routing file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// What it is called, for errors.
    pub file: String,
    /// Its content.
    pub text: String,
}

/// What it would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Which routing file is in force, counted from 1.
    pub generation: u64,
    /// Each difference.
    pub changes: Vec<Change>,
    /// What operators changed beside the file, which stays in force over it: `pools.aws.weight`.
    pub overridden: Vec<String>,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/diff", post(diff))
}

/// A routing file that cannot be used.
pub(super) fn unusable(error: &Error) -> Problem {
    let title = "The routing file cannot be used; the one in force stays";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_config", title, error.to_string())
        .with("field", error.key.clone())
        .with("line", error.at.map(|(line, _)| line))
}

async fn diff(State(admin): State<Admin>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let Wanted { file, text } = problem::read(&headers, &body)?;
    let reloader = admin.reloader.clone();
    // Validating may read what the file names.
    let compared = tokio::task::spawn_blocking(move || reloader.diff(&text)).await;
    let compared = compared.map_err(|error| {
        let title = "The comparison failed";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title, error.to_string())
    })?;
    let (generation, changes) = compared.map_err(|error| unusable(&Error { file: file.into(), ..error }))?;
    let overridden = admin.fleet.overrides().1.into_iter().filter(|set| set.present).map(|set| {
        let kind = if set.weight.is_some() { "weight" } else { "drain" };
        format!("{} of {}", kind, set.target)
    });
    Ok(Json(Changes { generation, changes, overridden: overridden.collect() }).into_response())
}
