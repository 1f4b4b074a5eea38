//! `POST /drain`, `/undrain`, `/weight`; `GET /overrides`, `DELETE /overrides/{target}`.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Admin;
use super::problem::{self, Problem};
use crate::audit::{ACTOR, Actor};
use crate::fleet::steer::{Action, Order, Refused, Steered};
use crate::overrides::Record;

/// The body of a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// A pool's name, a worker's address or a worker's own name.
    pub target: String,
    /// For how long, like `30m`; without, until it is removed or the gateway ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// The weight, for `/weight` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

/// The answer of `GET /overrides`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// The entity tag, as `ETag` and `If-Match` have it.
    pub etag: String,
    /// All overrides.
    pub overrides: Vec<Record>,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/overrides", get(list))
        .route("/overrides/{target}", delete(remove))
        .route("/drain", changing(|weight| weightless(Action::Drain, weight)))
        .route("/undrain", changing(|weight| weightless(Action::Undrain, weight)))
        .route("/weight", changing(weighted))
}

/// Who sent a request.
pub(super) fn actor(headers: &HeaderMap, peer: SocketAddr) -> Actor {
    Actor::of_request(headers.get(ACTOR).and_then(|name| name.to_str().ok()), peer)
}

async fn list(State(admin): State<Admin>) -> Response {
    let (etag, overrides) = admin.fleet.overrides();
    ([(header::ETAG, etag.clone())], Json(Listed { etag, overrides })).into_response()
}

/// A change whose path and weight say what is done.
fn changing(action: fn(Option<f64>) -> Result<Action, Refused>) -> MethodRouter<Admin> {
    let handle = move |State(admin): State<Admin>,
                       ConnectInfo(peer): ConnectInfo<SocketAddr>,
                       headers: HeaderMap,
                       body: Bytes| async move { change(&admin, action, peer, &headers, &body) };
    post(handle)
}

fn weighted(weight: Option<f64>) -> Result<Action, Refused> {
    weight.map(Action::Weight).ok_or_else(|| bad("weight", "it is missing".to_owned()))
}

fn weightless(action: Action, weight: Option<f64>) -> Result<Action, Refused> {
    match weight {
        None => Ok(action),
        Some(_) => Err(bad("weight", format!("{} takes none; POST it to /weight", action.as_str()))),
    }
}

fn bad(field: &'static str, message: String) -> Refused {
    Refused::Bad { field, message }
}

fn change(
    admin: &Admin,
    action: fn(Option<f64>) -> Result<Action, Refused>,
    peer: SocketAddr,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Problem> {
    let asked: Asked = problem::read(headers, body)?;
    let action = action(asked.weight)?;
    let ttl: Option<Duration> = match asked.ttl.as_deref().map(|ttl| (ttl, humantime::parse_duration(ttl))) {
        None => None,
        Some((_, Ok(ttl))) => Some(ttl),
        Some((got, Err(error))) => {
            let message = format!("{got:?} is no time ({error}); it wants one like 30m or 2h 15m");
            return Err(bad("ttl", message).into());
        }
    };
    steer(
        admin,
        &Order { target: asked.target, action, ttl, by: actor(headers, peer), if_match: if_match(headers)? },
    )
}

async fn remove(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(target): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (by, if_match) = (actor(&headers, peer), if_match(&headers)?);
    steer(&admin, &Order { target, action: Action::Remove, ttl: None, by, if_match })
}

/// All `If-Match` fields as one. One that cannot be read must not count as none.
fn if_match(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut all = Vec::new();
    for value in headers.get_all(header::IF_MATCH) {
        all.push(value.to_str().map_err(|_| bad("if-match", "it is not plain text".to_owned()))?);
    }
    Ok((!all.is_empty()).then(|| all.join(",")))
}

fn steer(admin: &Admin, order: &Order) -> Result<Response, Problem> {
    let steered: Steered = admin.fleet.steer(order, &admin.audit)?;
    Ok(([(header::ETAG, steered.etag.clone())], Json(steered)).into_response())
}
