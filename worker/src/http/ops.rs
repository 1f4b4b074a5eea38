//! What the gateway and operators ask: load, health, metrics.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use millrace_wire::LoadReport;
use serde_json::json;

use super::Shared;
use crate::fitness::Lack;

/// How long the store may take to count as ready.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn load(State(app): Shared) -> Json<LoadReport> {
    Json(app.load.fresh().await)
}

/// The process answers; nothing more.
pub(super) async fn live() -> impl IntoResponse {
    Json(json!({ "status": "ok" }))
}

/// It takes jobs. What it lacks to do them is said, and makes it no less ready: where a bucket is away for everybody, all
/// workers would be, and nobody could even read how jobs stand.
pub(super) async fn ready(State(app): Shared) -> impl IntoResponse {
    let store = matches!(tokio::time::timeout(PATIENCE, app.store.ping()).await, Ok(Ok(_)));
    let draining = app.load.is_draining();
    let status = if store && !draining { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let lacks = app.fitness.lacks().map(Lack::as_str);
    (status, Json(json!({ "store": store, "draining": draining, "lacks": lacks })))
}

pub(super) async fn metrics(State(app): Shared) -> impl IntoResponse {
    let load = app.load.fresh().await;
    let text = tokio::task::spawn_blocking(move || app.metrics.text(&load));
    match text.await.unwrap_or_else(|died| Err(prometheus::Error::Msg(died.to_string()))) {
        Ok(text) => (StatusCode::OK, [("content-type", "text/plain; version=0.0.4; charset=utf-8")], text),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [("content-type", "text/plain")], error.to_string())
        }
    }
}
