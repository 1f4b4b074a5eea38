//! The operator's listener: metrics, readiness, status, reload, the page with the pools alone. Without keys on loopback
//! only, and by a loopback name only: else any site could have its own name lead here (DNS rebinding) and read on with its
//! visitor's browser. With keys it serves operators', on any address, and the key's name is what the audit log has.
//!
//! What probes and Prometheus ask for is nobody's secret and changes nothing; they have no keys, so there may be a
//! listener for that alone.
//!
//! Our own small app: Pingora's metrics app answers every path with the metrics.

mod bounded;
pub mod diff;
pub mod explain;
pub mod problem;
pub mod status;
pub mod steer;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use millrace_wire::problem::CONTENT_TYPE;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::audit::{ACTOR, Audit, Entry};
use crate::auth::{Auth, Principal, Role, Strangers};
use crate::decisions::Decisions;
use crate::drain::Drain;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::page::{self, Parts};
use crate::rate::{Limiter, Who};
use crate::reload::{Reloader, Trigger};
use crate::tls::Tls;
use crate::upstream::Upstream;
use bounded::{Bounded, Peer};
use problem::Problem;
use status::Status;

/// What the listener shows and steers.
#[derive(Clone)]
pub struct Admin {
    /// The workers.
    pub fleet: Arc<Fleet>,
    /// What is in flight.
    pub drain: Arc<Drain>,
    /// The routing file.
    pub reloader: Arc<Reloader>,
    /// The certificate, where the gateway has one.
    pub tls: Option<Arc<Tls>>,
    /// What TLS to workers takes, where the gateway speaks it.
    pub upstream: Arc<Upstream>,
    /// The API keys, where the gateway asks for them.
    pub auth: Option<Arc<Auth>>,
    /// Whether operators are asked for them, too.
    pub asks: bool,
    /// Counts who has no good key or token.
    pub strangers: Arc<Limiter>,
    /// The gateway's families.
    pub metrics: Arc<Metrics>,
    /// All families of the process.
    pub registry: Registry,
    /// Who changed what.
    pub audit: Arc<Audit>,
    /// What was decided of late.
    pub decisions: Arc<Decisions>,
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener breaks.
pub async fn run(listener: TcpListener, admin: Admin, stop: CancellationToken) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(show))
        .route("/", get(index))
        .route("/assets/{name}", get(asset))
        .route("/pools", get(pools))
        .route("/reload", post(reload))
        .route("/audit", get(audit))
        .merge(steer::routes())
        .merge(explain::routes())
        .merge(diff::routes())
        .layer(middleware::from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
        .into_make_service_with_connect_info::<Peer>();
    // Not graceful: an operator's open connection must not keep the process.
    tokio::select! {
        served = async { axum::serve(Bounded::new(listener), app).await } => served,
        () = stop.cancelled() => Ok(()),
    }
}

/// The operator who asks.
async fn operator(
    admin: &Admin,
    from: SocketAddr,
    headers: &HeaderMap,
) -> Result<Arc<Principal>, Box<millrace_wire::Problem>> {
    let Some(auth) = &admin.auth else {
        let detail = "this wants an operator's key, and the gateway knows no keys";
        return Err(Box::new(millrace_wire::Problem::new(millrace_wire::Code::Forbidden, detail)));
    };
    let rate = admin.fleet.config().refusals();
    let strangers = Strangers { limiter: &admin.strangers, who: Who::stranger(from.ip()), rate };
    auth.let_in(headers, Role::Operator, strangers).await
}

/// Serves `/metrics`, `/livez` and a short `/readyz` until `stop`.
///
/// # Errors
/// When the listener breaks.
pub async fn run_metrics(
    listener: TcpListener,
    admin: Admin,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin);
    tokio::select! {
        served = async { axum::serve(Bounded::new(listener), app).await } => served,
        () = stop.cancelled() => Ok(()),
    }
}

/// Lets through who may ask.
async fn guard(
    State(admin): State<Admin>,
    ConnectInfo(Peer(from)): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    if admin.asks {
        // The page and its files are the same for everybody, and ask for a key themselves.
        let open =
            ["/", "/livez"].contains(&request.uri().path()) || request.uri().path().starts_with("/assets/");
        if open {
            return next.run(request).await;
        }
        match operator(&admin, from, request.headers()).await {
            Ok(principal) => {
                // Who has shown a key is not asked for his name.
                let name = HeaderValue::from_str(&principal.name);
                request
                    .headers_mut()
                    .insert(ACTOR, name.unwrap_or_else(|_| HeaderValue::from_static("an operator")));
            }
            Err(problem) => return refuse(&problem),
        }
        return next.run(request).await;
    }
    if page::is_local(request.uri(), request.headers()) {
        return next.run(request).await;
    }
    let why = "ask for localhost or a loopback address: this listener has no other name\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// The client API's problem as axum's answer.
fn refuse(problem: &millrace_wire::Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::FORBIDDEN);
    let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], problem.to_json()).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"millrace\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    if let Some(after) = problem.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, after.into());
    }
    response
}

async fn ready(State(admin): State<Admin>) -> Response {
    match admin.drain.unready(&admin.fleet) {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let unready = admin.drain.unready(&admin.fleet);
    let config = admin.reloader.state();
    let body = serde_json::json!({
        "ready": unready.is_none(),
        "reason": unready,
        "in_flight": admin.drain.live(),
        "config": config,
        "auth": admin.auth.as_ref().map(|auth| auth.state()),
        "certificate": admin.tls.as_ref().map(|tls| tls.state()),
        "upstream_certificate": admin.upstream.state(),
    });
    let status = if unready.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

async fn show(State(admin): State<Admin>) -> Json<Status> {
    Json(Status::of(&admin.fleet, admin.reloader.state().generation))
}

async fn pools(State(admin): State<Admin>) -> Response {
    plain(Some(page::pools(&Status::of(&admin.fleet, admin.reloader.state().generation))))
}

async fn index(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    plain(page::index(&admin.fleet.config().page, Parts::Pools, &headers))
}

async fn asset(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    plain(page::asset(&admin.fleet.config().page, &name, query.as_deref(), &headers))
}

async fn audit(State(admin): State<Admin>) -> Json<Vec<Entry>> {
    Json(admin.audit.entries())
}

/// The page's answer as axum's.
fn plain(response: Option<axum::http::Response<Bytes>>) -> Response {
    response.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |response| response.map(Body::from))
}

async fn metrics(State(admin): State<Admin>) -> Response {
    admin.metrics.in_flight.set(i64::try_from(admin.drain.live()).unwrap_or(i64::MAX));
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    admin.metrics.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
    admin.metrics.show(&Status::of(&admin.fleet, admin.reloader.state().generation));
    let mut text = Vec::new();
    match TextEncoder::new().encode(&admin.registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn reload(
    State(admin): State<Admin>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    problem::must_be_json(&headers)?;
    let by = Some(steer::actor(&headers, peer));
    let reloaded = admin.reloader.reload(Trigger::Admin, by);
    Ok(Json(reloaded.map_err(|error| diff::unusable(&error))?).into_response())
}
