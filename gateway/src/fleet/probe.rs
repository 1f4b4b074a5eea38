//! Asking every worker for its load, about once a second.
//!
//! One task per endpoint, owned here and joined when its endpoint leaves the file. Each probe has one hard deadline
//! over connecting, headers and body; a task that ends by itself is a defect and ends the prober, which ends the
//! process: a gateway that has silently stopped looking would route by an ever older past.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_wire::{LoadReport, Problem, load};
use rand::Rng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Fleet, Target, Targets};
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// Between two probes of a worker, ± [`JITTER`].
pub const INTERVAL: Duration = Duration::from_millis(1000);
/// Share of the interval that a probe may come earlier or later.
pub const JITTER: f64 = 0.2;
/// A probe's whole time.
pub const DEADLINE: Duration = Duration::from_millis(1500);
/// Largest report that is read.
pub const REPORT_BYTES_MAX: usize = 64 * 1024;
/// Longest word of a worker about itself that is kept.
const DETAIL_CHARS_MAX: usize = 200;
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
    /// TLS did not come about: one does not believe the other, or does not speak it.
    #[error("TLS: {0}")]
    Tls(String),
    /// Another status than 200, and what the worker's problem says of it.
    #[error("GET /load answered {0}{1}")]
    Status(u16, String),
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
            Self::Tls(_) => "tls",
            Self::Status(..) => "status",
            Self::Shape(_) => "shape",
            Self::Unbelievable(_) => "unbelievable",
        }
    }

    /// Whether the worker was only slow.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }
}

/// The clients that probes use: one connection per worker, no proxy of the environment's, no redirects. One for all
/// that are spoken to in plain; over TLS one for each, because it carries the name that the worker is known by.
#[derive(Debug, Clone)]
pub struct Clients {
    plain: reqwest::Client,
    upstream: Arc<Upstream>,
}

impl Clients {
    /// Clients with the credentials in force.
    ///
    /// # Errors
    /// When a client cannot be built; needs a process-wide rustls provider.
    pub fn new(upstream: Arc<Upstream>) -> Result<Self, reqwest::Error> {
        Ok(Self { plain: Self::builder().build()?, upstream })
    }

    fn builder() -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE)
            .http1_only()
            .user_agent(concat!("millrace-gateway/", env!("CARGO_PKG_VERSION")))
    }
}

/// How one worker is asked.
struct Asker {
    clients: Clients,
    address: SocketAddr,
    tls: Option<Arc<str>>,
    /// The client over TLS, and which credentials it has.
    shaken: Option<(u64, reqwest::Client)>,
}

impl Asker {
    /// A client with the credentials in force, and the URL that it takes.
    fn client(&mut self) -> Result<(&reqwest::Client, String), Failure> {
        let Some(name) = &self.tls else {
            return Ok((&self.clients.plain, format!("http://{}/load", self.address)));
        };
        let missing = || Failure::Tls("there are no certificates in force".to_owned());
        let credentials = self.clients.upstream.credentials().ok_or_else(missing)?;
        let url = match name.parse::<IpAddr>() {
            Ok(_) => format!("https://{}/load", self.address),
            Err(_) => format!("https://{name}:{}/load", self.address.port()),
        };
        let outdated = self.shaken.take().filter(|(generation, _)| *generation == credentials.generation);
        let client = match outdated {
            Some((_, client)) => client,
            None => {
                let builder = Clients::builder().tls_backend_preconfigured(credentials.config.clone());
                // DNS is not asked: the name stands for this one address.
                let client = builder.resolve(name, self.address).build();
                client.map_err(|error| Failure::Tls(root(&error)))?
            }
        };
        let (_, client) = self.shaken.insert((credentials.generation, client));
        Ok((client, url))
    }
}

/// Probes the fleet's endpoints, as reloads change them, until `stop`.
///
/// # Errors
/// A probe task ended by itself; says which.
pub async fn run(
    fleet: Arc<Fleet>,
    clients: Clients,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut targets = fleet.targets();
    let mut tasks: HashMap<SocketAddr, (Target, CancellationToken, JoinHandle<()>)> = HashMap::new();
    let mut check = tokio::time::interval(INTERVAL);
    let result = loop {
        let wanted: Targets = targets.borrow_and_update().clone();
        let gone: Vec<SocketAddr> = tasks
            .iter()
            .filter(|(address, (target, ..))| wanted.get(address) != Some(target))
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            if let Some((_, stop, task)) = tasks.remove(&address) {
                stop.cancel();
                // Its next await is a cancellation point, so this is brief.
                let _ = task.await;
            }
        }
        for (address, target) in wanted.iter() {
            if !tasks.contains_key(address) {
                let stop = stop.child_token();
                let (clients, tls) = (clients.clone(), target.tls.clone());
                let asker = Asker { clients, address: *address, tls, shaken: None };
                let task = watch(fleet.clone(), asker, metrics.clone(), stop.clone());
                tasks.insert(*address, (target.clone(), stop, tokio::spawn(task)));
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

async fn watch(fleet: Arc<Fleet>, mut asker: Asker, metrics: Arc<Metrics>, stop: CancellationToken) {
    let address = asker.address;
    let rounds = async {
        loop {
            let asked = Instant::now();
            match probe(&mut asker).await {
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

async fn probe(asker: &mut Asker) -> Result<LoadReport, Failure> {
    match tokio::time::timeout(DEADLINE, ask(asker)).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::Timeout),
    }
}

async fn ask(asker: &mut Asker) -> Result<LoadReport, Failure> {
    let (client, url) = asker.client()?;
    let unreachable = |error: reqwest::Error| match shaking(&error) {
        Some(why) => Failure::Tls(why),
        None if cause::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse) => Failure::Unreachable(
            "the answer is no HTTP; a worker that speaks TLS wants tls = true in its pool".to_owned(),
        ),
        None => Failure::Unreachable(root(&error)),
    };
    let mut response = client.get(url).send().await.map_err(unreachable)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&piece);
        if body.len() > REPORT_BYTES_MAX {
            return Err(Failure::Shape(format!("more than {REPORT_BYTES_MAX} bytes")));
        }
    }
    if status != reqwest::StatusCode::OK {
        let problem: Option<Problem> = serde_json::from_slice(&body).ok();
        let detail = problem.map_or(String::new(), |problem| format!(": {}", plain(&problem.detail)));
        return Err(Failure::Status(status.as_u16(), detail));
    }
    let report: LoadReport =
        serde_json::from_slice(&body).map_err(|error| Failure::Shape(error.to_string()))?;
    Ok(report.validate()?)
}

/// What a worker says, fit for an operator's terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(DETAIL_CHARS_MAX).collect()
}

/// What TLS has against the worker, or the worker against us, as an operator reads it. Without times and the like, so
/// that the same trouble is told in the same words by every probe.
fn shaking(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    let found = cause::<Error>(error)?;
    Some(match found {
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "the worker's certificate has expired".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "the worker's certificate is not valid yet".to_owned()
        }
        // A CA of the same name that has another key.
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "the worker's certificate does not come from upstream_tls.ca".to_owned()
        }
        Error::InvalidCertificate(why) => format!("the worker's certificate is not believed: {why}"),
        Error::InvalidMessage(_) => "the worker does not speak TLS, and its pool says tls = true".to_owned(),
        Error::AlertReceived(
            alert @ (Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::DecryptError
            | Alert::AccessDenied),
        ) => format!("the worker does not believe the gateway's certificate: {alert:?}"),
        other => other.to_string(),
    })
}

/// The first cause of that type. An I/O error does not tell its own content among its causes, so that is looked into.
fn cause<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    if let Some(found) = error.downcast_ref::<T>() {
        return Some(found);
    }
    let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let inside = inside.and_then(|inside| cause::<T>(inside));
    inside.or_else(|| cause::<T>(error.source()?))
}

/// The innermost cause: reqwest's own message says only that it could not send.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
