//! `POST /explain` for a job that nobody sent, `GET /decisions/{id}` for one that was.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use millrace_wire::SpecHead;
use millrace_wire::spec::DURATION_HINT_MAX_S;
use millrace_wire::spec::Priority;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Admin;
use super::problem::{self, Problem};
use crate::decisions::{Explained, KEPT, Made};
use crate::fleet::steer::Refused;
use crate::route::Job;

/// A job that nobody sent: its spec, and what is to be supposed beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supposed {
    /// A job spec as a client would post it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Map<String, Value>>,
    /// The pool whose bucket holds the input, instead of what the spec's `input_path` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_pool: Option<String>,
    /// The class, instead of the spec's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The input's length in seconds, instead of the spec's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_hint_s: Option<u32>,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/explain", post(suppose)).route("/decisions/{id}", get(decided))
}

async fn suppose(State(admin): State<Admin>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let asked: Supposed = problem::read(&headers, &body)?;
    let bad = |field, message: String| Problem::from(Refused::Bad { field, message });
    let spec = serde_json::to_vec(&asked.spec.unwrap_or_default()).expect("a JSON object is written as one");
    let mut head = SpecHead::peek(&spec).map_err(|told| bad("spec", told.detail))?;
    if let Some(pool) = asked.input_pool {
        let config = admin.fleet.config();
        if !config.pools.iter().any(|known| known.name.as_str() == pool) {
            let names: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
            return Err(bad(
                "input_pool",
                format!("there is no pool {pool:?}; there are {}", names.join(", ")),
            ));
        }
        head.input_pool = Some(pool);
    }
    if asked.duration_hint_s == Some(0) {
        return Err(bad("duration_hint_s", "0 is no length; it wants 1 to 86400".to_owned()));
    }
    head.priority = asked.priority.unwrap_or(head.priority);
    head.duration_hint_s =
        asked.duration_hint_s.map(|s| s.min(DURATION_HINT_MAX_S as u32)).or(head.duration_hint_s);
    Ok(Json(Made::supposed(&admin.fleet, Job::new(&head)).explain(&admin.fleet)).into_response())
}

async fn decided(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Response, Problem> {
    let made = admin.decisions.of(&id);
    if made.is_empty() {
        let detail = format!(
            "no decision about {id:?} is known: of this gateway's last {KEPT} decisions, {} are kept, and none is \
             of a job or request of that id",
            admin.decisions.len()
        );
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_decision", "No such decision", detail));
    }
    let explained: Vec<Explained> = made.iter().map(|made| made.explain(&admin.fleet)).collect();
    Ok(Json(explained).into_response())
}
