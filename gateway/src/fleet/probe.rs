//! Asking every worker for its load, about once a second.
//!
//! One task per endpoint, owned here and joined when its endpoint leaves the file. Each probe has one hard deadline
//! over connecting, headers and body; a task that ends by itself is a defect and ends the prober, which ends the
//! process: a gateway that has silently stopped looking would route by an ever older past.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_wire::{LoadReport, PoolId, load};
use rand::Rng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Fleet, Targets};
use crate::metrics::Metrics;

/// Between two probes of a worker, ± [`JITTER`].
pub const INTERVAL: Duration = Duration::from_millis(1000);
/// Share of the interval that a probe may come earlier or later.
pub const JITTER: f64 = 0.2;
/// A probe's whole time.
pub const DEADLINE: Duration = Duration::from_millis(1500);
/// Largest report that is read.
pub const REPORT_BYTES_MAX: usize = 64 * 1024;
/// How long a probe's connection stays open without use.
const IDLE: Duration = Duration::from_secs(3);

/// Why a probe brought no report.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No whole answer within [`DEADLINE`].
    #[error("no answer to GET /load within {} ms", DEADLINE.as_millis())]
    Timeout,
    /// No connection, or it broke.
    #[error("GET /load: {0}")]
    Unreachable(String),
    /// Another status than 200.
    #[error("GET /load answered {0}")]
    Status(u16),
    /// The body is no load report.
    #[error("GET /load: the body is no load report: {0}")]
    Shape(String),
    /// The report says what cannot be.
    #[error("GET /load: {0}")]
    Unbelievable(#[from] load::Error),
}

impl Failure {
    /// A metric label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Status(_) => "status",
            Self::Shape(_) => "shape",
            Self::Unbelievable(_) => "unbelievable",
        }
    }

    /// Whether the worker was only slow.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }
}

/// The client that probes use: one connection per worker, no proxy of the environment's, no redirects.
///
/// # Errors
/// When the client cannot be built; needs a process-wide rustls provider.
pub fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(IDLE)
        .http1_only()
        .user_agent(concat!("millrace-gateway/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Probes the fleet's endpoints, as reloads change them, until `stop`.
///
/// # Errors
/// A probe task ended by itself; says which.
pub async fn run(
    fleet: Arc<Fleet>,
    client: reqwest::Client,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut targets = fleet.targets();
    let mut tasks: HashMap<SocketAddr, (PoolId, CancellationToken, JoinHandle<()>)> = HashMap::new();
    let mut check = tokio::time::interval(INTERVAL);
    let result = loop {
        let wanted: Targets = targets.borrow_and_update().clone();
        let gone: Vec<SocketAddr> = tasks
            .iter()
            .filter(|(address, (pool, ..))| wanted.get(address) != Some(pool))
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            if let Some((_, stop, task)) = tasks.remove(&address) {
                stop.cancel();
                // Its next await is a cancellation point, so this is brief.
                let _ = task.await;
            }
        }
        for (address, pool) in wanted.iter() {
            if !tasks.contains_key(address) {
                let stop = stop.child_token();
                let task = watch(fleet.clone(), client.clone(), metrics.clone(), *address, stop.clone());
                tasks.insert(*address, (pool.clone(), stop, tokio::spawn(task)));
            }
        }
        metrics.probe_tasks.set(i64::try_from(tasks.len()).unwrap_or(i64::MAX));
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            changed = targets.changed() => if changed.is_err() { break Ok(()) },
            _ = check.tick() => {}
        }
        if stop.is_cancelled() {
            break Ok(());
        }
        if let Some((address, _)) = tasks.iter().find(|(_, (.., task))| task.is_finished()) {
            break Err(format!("the probe of {address} ended by itself"));
        }
    };
    for (_, (_, stop, task)) in tasks.drain() {
        stop.cancel();
        let _ = task.await;
    }
    result
}

async fn watch(
    fleet: Arc<Fleet>,
    client: reqwest::Client,
    metrics: Arc<Metrics>,
    address: SocketAddr,
    stop: CancellationToken,
) {
    let rounds = async {
        loop {
            let asked = Instant::now();
            match probe(&client, address).await {
                Ok(load) => fleet.probed(address, load, asked.elapsed()),
                Err(failure) => {
                    metrics.probe_failures.with_label_values(&[failure.kind()]).inc();
                    if matches!(failure, Failure::Unbelievable(_)) {
                        metrics.unbelievable_reports.with_label_values(&["probe"]).inc();
                    }
                    tracing::debug!(%address, error = %failure, "probe failed");
                    fleet.probe_failed(address, &failure);
                }
            }
            let jitter = rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER);
            tokio::time::sleep(INTERVAL.mul_f64(jitter)).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = rounds => {}
    }
}

/// Asks one worker once.
///
/// # Errors
/// Why there is no report.
pub async fn probe(client: &reqwest::Client, address: SocketAddr) -> Result<LoadReport, Failure> {
    match tokio::time::timeout(DEADLINE, ask(client, address)).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::Timeout),
    }
}

async fn ask(client: &reqwest::Client, address: SocketAddr) -> Result<LoadReport, Failure> {
    let unreachable = |error: reqwest::Error| Failure::Unreachable(root(&error));
    let mut response = client.get(format!("http://{address}/load")).send().await.map_err(unreachable)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(Failure::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&piece);
        if body.len() > REPORT_BYTES_MAX {
            return Err(Failure::Shape(format!("more than {REPORT_BYTES_MAX} bytes")));
        }
    }
    let report: LoadReport =
        serde_json::from_slice(&body).map_err(|error| Failure::Shape(error.to_string()))?;
    Ok(report.validate()?)
}

/// The innermost cause: reqwest's own message says only that it could not send.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
