//! The worker's HTTP side: what clients reach through the gateway, and what the gateway asks for itself.
//!
//! Every handler returns one error type, rendered in one place as problem+json; every response carries the load
//! report in ORCA's text form, so that a gateway learns something from each.

mod jobs;
mod media;
mod ops;
mod uploads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use millrace_wire::{Code, Problem, headers, problem};
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::cost::CostModel;
use crate::lease::Leases;
use crate::load::Load;
use crate::metrics::Metrics;
use crate::objects::{self, Objects};
use crate::store::{self, Identity, Room, Store};

/// What handlers need.
pub struct App {
    /// Decides.
    pub store: Arc<dyn Store>,
    /// Who we are in it.
    pub identity: Identity,
    /// Holds bytes.
    pub objects: Objects,
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
    /// How full we may get.
    pub room: Room,
    /// Largest upload, in bytes.
    pub upload_bytes_max: u64,
    /// How long an upload URL holds.
    pub upload_expiry: Duration,
    /// What clients call the endpoint, if it was set.
    pub public_url: Option<url::Url>,
}

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
    Router::new()
        .route("/process", post(jobs::submit))
        .route("/jobs", post(jobs::submit).get(jobs::list))
        .route("/jobs/{job_id}", get(jobs::read).delete(jobs::cancel))
        .route("/upload/request", post(uploads::request))
        .route("/upload/{pool}/{*key}", put(uploads::receive))
        .route("/download/{job_id}", get(media::download))
        .route("/media/{job_id}/{name}", get(media::serve))
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
        // The router's own refusals: a method that the path does not take, a path or query that is no text.
        let allow = response.headers_mut().remove(ALLOW);
        let problem = match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => {
                Problem::new(Code::MethodNotAllowed, "this path takes other methods")
            }
            _ => Problem::new(Code::BadRequest, "the path or the query cannot be read"),
        };
        response = Refusal(problem).into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(ALLOW, allow);
        }
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
mod tests {
    use super::*;

    /// A worker's HTTP side on a store of its own, without a claim loop behind it.
    async fn serve(folder: &std::path::Path) -> String {
        let url = format!("sqlite:{}", folder.join("jobs.db").display());
        let store: Arc<dyn Store> = Arc::new(store::Sqlite::open(&url, 3).await.unwrap());
        let identity = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
        let room = Room { slots: 1, queue_max: 2 };
        let leases = Arc::new(Leases::new(Duration::from_secs(30)));
        let cost = Arc::new(CostModel::default());
        let load =
            Load::new(identity.clone(), room, Arc::clone(&store), Arc::clone(&leases), Arc::clone(&cost));
        let app = App {
            store,
            identity,
            objects: Objects::open(&folder.join("objects")).unwrap(),
            load: Arc::new(load),
            leases,
            cost,
            metrics: Arc::new(Metrics::new().unwrap()),
            nudge: Arc::default(),
            room,
            upload_bytes_max: 1000,
            upload_expiry: Duration::from_secs(60),
            public_url: None,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router(Arc::new(app))).await });
        url
    }

    #[tokio::test]
    async fn every_error_is_a_problem_and_no_client_can_make_a_worker_look_ill() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let url = serve(folder.path()).await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let long = format!(r#"{{"input_path":"aws/uploads/{}"}}"#, "a".repeat(300));
        for (method, path, body, status, code) in [
            ("GET", "/jobs/%ff", "", 400, Code::BadRequest),
            ("DELETE", "/jobs/%ff", "", 400, Code::BadRequest),
            ("GET", "/media/j/%ff", "", 400, Code::BadRequest),
            ("GET", "/jobs?limit=0", "", 400, Code::BadQuery),
            ("GET", "/jobs?colour=red", "", 400, Code::BadQuery),
            ("GET", "/jobs/%20", "", 422, Code::BadJobId),
            ("GET", "/jobs/none", "", 404, Code::JobNotFound),
            ("PATCH", "/jobs/j", "", 405, Code::MethodNotAllowed),
            ("GET", "/nothing", "", 404, Code::NotFound),
            ("PUT", "/upload/aws/uploads/k/v.mp4", "", 403, Code::BadSignature),
            ("POST", "/jobs", "{", 400, Code::BadJson),
            ("POST", "/jobs", long.as_str(), 422, Code::BadInputPath),
        ] {
            let request = client.request(method.parse().unwrap(), format!("{url}{path}"));
            let answer = request.body(body.to_owned()).send().await.unwrap();
            assert_eq!(answer.status(), status, "{method} {path}");
            assert_eq!(answer.headers()[CONTENT_TYPE], problem::CONTENT_TYPE, "{method} {path}");
            let read: Problem = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            assert_eq!(read.code, code, "{method} {path}");
        }
    }
}
