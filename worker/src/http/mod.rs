//! The worker's HTTP side: what clients reach through the gateway, and what the gateway asks for itself.
//!
//! Every handler returns one error type, rendered in one place as problem+json; every response carries the load
//! report in ORCA's text form, so that a gateway learns something from each.

mod copies;
mod cross_origin;
mod events;
mod jobs;
mod media;
mod nearest;
mod ops;
mod tenant;
mod token;
mod unread;
mod uploads;
mod videos;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use millrace_wire::{Code, PoolId, Problem, headers, problem};
use tokio::sync::{Notify, Semaphore};
use tracing::{error, warn};

use crate::clock::Clock;
use crate::config::{Origins, Presign};
use crate::cost::CostModel;
use crate::fitness::Fitness;
use crate::lease::Leases;
use crate::load::Load;
use crate::metrics::Metrics;
use crate::objects::{self, Objects};
use crate::store::{self, Identity, Room, Store, Upkeep};
use crate::webhooks::receiver::Receivers;

/// What handlers need.
pub struct App {
    /// Decides.
    pub store: Arc<dyn Store>,
    /// Who we are in it.
    pub identity: Identity,
    /// Holds bytes.
    pub objects: Objects,
    /// Knows what we lack.
    pub fitness: Arc<Fitness>,
    /// Says how busy we are.
    pub load: Arc<Load>,
    /// What runs here.
    pub leases: Arc<Leases>,
    /// Estimates.
    pub cost: Arc<CostModel>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Wakes the claim loop.
    pub nudge: Arc<Notify>,
    /// Says what time it is.
    pub clock: Clock,
    /// How full we may get.
    pub room: Room,
    /// Keeps house.
    pub upkeep: Arc<dyn Upkeep>,
    /// What clients do past the workers, where the object store lets them.
    pub presign: Presign,
    /// How long outputs are kept.
    pub outputs_kept: Duration,
    /// How long uploads are kept.
    pub uploads_kept: Duration,
    /// Largest upload, in bytes.
    pub upload_bytes_max: u64,
    /// How long an upload URL holds.
    pub upload_expiry: Duration,
    /// How long a media URL holds at least when it is handed out.
    pub media_expiry: Duration,
    /// Which sites' pages may read media and events.
    pub media_origins: Origins,
    /// Event streams that may still be opened here.
    pub streams: Arc<Semaphore>,
    /// What clients call the endpoint, if it was set.
    pub public_url: Option<url::Url>,
    /// The pool that gets the second copy of a `dual` job's input; none where this deployment has none.
    pub second_pool: Option<PoolId>,
    /// Buckets that did not answer lately.
    pub shunned: nearest::Shunned,
    /// Wakes the copier.
    pub copy_nudge: Arc<Notify>,
    /// Who may be told of a job's end.
    pub receivers: Arc<Receivers>,
}

pub use events::STREAMS_MAX;
pub(crate) use jobs::seen_by_clients;

type Shared = State<Arc<App>>;

/// What a handler gives up with: one problem, and what only the log may know.
pub(crate) struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        warn!(%error, kind = error.kind(), "the job store failed a request");
        match error {
            store::Error::Unavailable(_) => Self(
                Problem::new(Code::StoreUnavailable, "the job store does not answer; try again")
                    .retry_after(2),
            ),
            _ => Self(Problem::new(Code::Internal, "the job store holds something this version cannot read")),
        }
    }
}

impl From<objects::Error> for Refusal {
    fn from(error: objects::Error) -> Self {
        match error {
            objects::Error::NotFound => Self(Problem::new(Code::NotFound, "no such object")),
            objects::Error::Denied { .. } => {
                warn!(%error, "the object store refuses us");
                let detail = "the object store refuses this deployment's credentials; try again later";
                Self(Problem::new(Code::ObjectsUnavailable, detail).retry_after(10))
            }
            error => {
                warn!(%error, "the object store failed a request");
                Self(
                    Problem::new(Code::ObjectsUnavailable, "the object store does not answer; try again")
                        .retry_after(2),
                )
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response =
            (status, [(CONTENT_TYPE, problem::CONTENT_TYPE)], self.0.to_json()).into_response();
        if let Some(seconds) = self.0.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Every route of a worker.
pub fn router(app: Arc<App>) -> Router {
    let timing = cross_origin::timing(&app.media_origins);
    let for_players = Router::new()
        .route("/jobs/{job_id}/events", get(events::listen))
        .route("/download/{job_id}", get(media::download))
        .route("/media/{job_id}/{name}", get(media::direct))
        .route("/media/{job_id}/{token}/{name}", get(media::serve))
        .layer(axum::middleware::map_response(move |response| cross_origin::mark(timing.clone(), response)))
        .layer(cross_origin::cors(&app.media_origins));
    Router::new()
        .merge(for_players)
        .route("/process", post(jobs::submit))
        .route("/jobs", post(jobs::submit).get(jobs::list))
        .route("/jobs/{job_id}", get(jobs::read).delete(jobs::cancel))
        .route("/jobs/{job_id}/retry", post(jobs::retry))
        .route("/jobs/{job_id}/replicate", post(copies::replicate))
        .route("/videos", post(videos::create).get(videos::list))
        .route("/videos/{video_id}", get(videos::read))
        .route("/upload/request", post(uploads::request))
        .route(
            "/upload/{pool}/{*key}",
            put(uploads::receive).get(uploads::parts::status).post(uploads::parts::complete),
        )
        .route("/load", get(ops::load))
        .route("/health", get(ops::live))
        .route("/livez", get(ops::live))
        .route("/readyz", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .fallback(|| async {
            Refusal(Problem::new(Code::NotFound, "no such path; the API is described in the README"))
        })
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), report))
        .layer(axum::middleware::from_fn(unread::close))
        .with_state(app)
}

/// Counts the request and puts the load report on the response.
async fn report(State(app): Shared, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |m| m.as_str().to_owned());
    let began = Instant::now();
    let mut response = next.run(request).await;
    let told = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == problem::CONTENT_TYPE);
    if response.status().is_client_error() && !told {
        // The router's own refusals: a method that the path does not take, a path or query that is no text. What was
        // said around them stays (which methods there are, which pages may read it).
        let mut said = std::mem::take(response.headers_mut());
        said.remove(CONTENT_LENGTH);
        let problem = match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => {
                Problem::new(Code::MethodNotAllowed, "this path takes other methods")
            }
            _ => Problem::new(Code::BadRequest, "the path or the query cannot be read"),
        };
        response = Refusal(problem).into_response();
        said.extend(std::mem::take(response.headers_mut()));
        *response.headers_mut() = said;
    }
    app.metrics.request_seconds.with_label_values(&[route.as_str()]).observe(began.elapsed().as_secs_f64());
    app.metrics.requests.with_label_values(&[route.as_str(), response.status().as_str()]).inc();
    let load = app.load.report();
    let entries = [(headers::LOAD, load.to_orca()), (headers::STORE, load.store_id)];
    for (name, value) in entries {
        match HeaderValue::try_from(value) {
            Ok(value) => drop(response.headers_mut().insert(name, value)),
            Err(error) => error!(name, %error, "a load report that is no header value"),
        }
    }
    response
}

#[cfg(test)]
pub(crate) mod tests;
