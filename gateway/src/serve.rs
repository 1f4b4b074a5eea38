//! The whole life of a gateway: bind, start every task, say that it serves, wait for the end.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_runtime::config::File;
use millrace_runtime::shutdown::Shutdown;
use pingora::listeners::ListenerConfig;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use pingora::time::fast_timeout::set_fast_timeout_to_tokio_threshold;
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::audit::Audit;
use crate::auth::{self, Auth};
use crate::config::{Config, https, upstream_tls};
use crate::decisions::Decisions;
use crate::dispatch::Dispatch;
use crate::drain::{self, Drain};
use crate::edge::Edge;
use crate::error::Error;
use crate::fleet::{Fleet, discovery, probe, steer};
use crate::forward::{Budget, TRIES_MAX};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::rate::Limiter;
use crate::reload::{self, Reloader};
use crate::tls::{self, Tls};
use crate::upstream::{self, Upstream};

/// Unused connections kept open to all workers together, per thread.
const UPSTREAM_IDLE_MAX: usize = 256;

/// Whom Pingora's connector believes by itself: nobody. Each worker that is spoken to over TLS brings the CA that its
/// certificate must come from; and of the system's CA certificates, which it would read else, it makes a panic where they
/// cannot be read.
const NO_CA: &str = "/dev/null";

/// The tasks that take clients' connections.
const LISTENERS: [&str; 2] = ["http listener", "https listener"];

/// How a gateway runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The routing file.
    pub config: PathBuf,
    /// How long after SIGTERM it still accepts, so that load balancers see that it is unready.
    pub lame_duck: Duration,
    /// How long requests in flight may take after that.
    pub drain_timeout: Duration,
}

/// Where a gateway serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// For clients, without TLS.
    pub http: Option<SocketAddr>,
    /// For clients, with TLS.
    pub https: Option<SocketAddr>,
    /// For operators.
    pub admin: SocketAddr,
    /// For Prometheus and probes alone.
    pub metrics: Option<SocketAddr>,
}

/// Serves until `shutdown`; calls `ready` once, when both listeners take connections.
///
/// Pingora's `Server` stays out: it wants its own runtimes, signals and grace period, and its service runs as well
/// under ours. Both sockets are bound here and Pingora adopts its one by descriptor, so a port that was asked for as
/// 0 is known without a race.
///
/// # Errors
/// When it cannot start, or a task ends that must not.
pub async fn serve(
    options: Options,
    registry: Registry,
    shutdown: Shutdown,
    ready: impl FnOnce(Ready),
) -> Result<(), Error> {
    let file = File::read(&options.config)?;
    let config = Config::from_file(&file)?;
    let metrics = Arc::new(Metrics::new(&registry)?);
    let http = config.listen.http.map(|address| bind(address, "listen.http")).transpose()?;
    let https = config.listen.https.clone();
    let https_listener =
        https.as_ref().map(|https| bind(https.address, "listen.https.address")).transpose()?;
    let admin_listener = bind(config.listen.admin, "listen.admin")?;
    let metrics_listener =
        config.listen.metrics.map(|address| bind(address, "listen.metrics")).transpose()?;
    let asks = config.listen.admin_auth;
    let system = |what| move |source| Error::System { what, source };
    let bound = Ready {
        http: bound_to(http.as_ref()).map_err(system("read the http listener's address"))?,
        https: bound_to(https_listener.as_ref()).map_err(system("read the https listener's address"))?,
        admin: admin_listener.local_addr().map_err(system("read the admin listener's address"))?,
        metrics: bound_to(metrics_listener.as_ref())
            .map_err(system("read the metrics listener's address"))?,
    };
    let admin_listener =
        tokio::net::TcpListener::from_std(admin_listener).map_err(system("adopt the admin listener"))?;

    let auth = config.auth.as_ref().map(|auth| {
        let auth = Auth::new(auth, metrics.clone());
        auth.map(Arc::new).map_err(|bad| file.error(bad.key, bad.message))
    });
    let auth = auth.transpose()?;
    let upstream = Arc::new(Upstream::new(metrics.clone()));
    let adopted = upstream.adopt(config.upstream_tls.as_ref());
    adopted.map_err(|bad| upstream_tls::error(&file, bad.key, bad.message))?;
    let (fleet, drain) = (Fleet::new(config), Arc::new(Drain::default()));
    let audit = Arc::new(Audit::default());
    let path = options.config.clone();
    let text = file.text().to_owned();
    let (counts, own) = (metrics.clone(), upstream.clone());
    let reloader = Arc::new(Reloader::new(path, text, fleet.clone(), counts, audit.clone(), own));
    let budget = Arc::new(Budget::default());
    let decisions = Arc::new(Decisions::default());
    let dispatch = Dispatch {
        fleet: fleet.clone(),
        drain: drain.clone(),
        metrics: metrics.clone(),
        budget,
        decisions: decisions.clone(),
    };
    let access_log = AccessLog::new(std::io::stdout(), metrics.access_log_dropped.clone());
    let access_log = Arc::new(access_log.map_err(system("start the access log's thread"))?);
    let proxy = Proxy {
        dispatch,
        reloader: reloader.clone(),
        access_log: access_log.clone(),
        auth: auth.clone(),
        rate: Limiter::default(),
        uploads: Limiter::default(),
        upstream: upstream.clone(),
    };
    let tls = https.map(|https| {
        let tls = Tls::new(&https, fleet.clone(), metrics.clone());
        tls.map(Arc::new).map_err(|bad| https::error(&file, bad.key, bad.message))
    });
    let tls = tls.transpose()?;
    // Pingora's own timers read the clock twice for each, wake a thread a hundred times a second, and are kept until they
    // would have rung: for two per request, tokio's cost less.
    set_fast_timeout_to_tokio_threshold(Some(Duration::ZERO));
    let edge = Edge::new(http_proxy(&Arc::new(server_conf()), proxy), fleet.clone(), metrics.clone());

    let stop = CancellationToken::new();
    let (close, closed) = watch::channel(false);
    let mut tasks: JoinSet<(&'static str, Result<(), String>)> = JoinSet::new();
    let listeners = [
        (LISTENERS[0], http, bound.http, Some(edge.clone())),
        (LISTENERS[1], https_listener, bound.https, tls.clone().map(|tls| edge.with_tls(tls))),
    ];
    for (name, listener, address, edge) in listeners {
        let (Some(listener), Some(address), Some(edge)) = (listener, address, edge) else { continue };
        let listening = listen(edge, listener, address, closed.clone());
        tasks.spawn(async move {
            listening.await;
            (name, Ok(()))
        });
    }
    if let Some(auth) = auth.clone() {
        let following = auth::run(auth, stop.clone());
        tasks.spawn(async move {
            following.await;
            ("keys' follower", Ok(()))
        });
    }
    if let Some(tls) = tls.clone() {
        let following = tls::run(tls, stop.clone());
        tasks.spawn(async move {
            following.await;
            ("certificate's follower", Ok(()))
        });
    }
    let following = upstream::run(upstream.clone(), stop.clone());
    tasks.spawn(async move {
        following.await;
        ("upstream certificates' follower", Ok(()))
    });
    let app = Admin {
        fleet: fleet.clone(),
        drain: drain.clone(),
        reloader: reloader.clone(),
        auth,
        asks,
        strangers: Arc::default(),
        tls,
        upstream: upstream.clone(),
        metrics: metrics.clone(),
        registry,
        audit: audit.clone(),
        decisions,
    };
    let steering = steer::run(fleet.clone(), audit, stop.clone());
    tasks.spawn(async move {
        steering.await;
        ("clock of the overrides", Ok(()))
    });
    if let Some(listener) = metrics_listener {
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(system("adopt the metrics listener"))?;
        let serving = admin::run_metrics(listener, app.clone(), stop.clone());
        tasks.spawn(async move { ("metrics listener", serving.await.map_err(|error| error.to_string())) });
    }
    let admin = admin::run(admin_listener, app, stop.clone());
    tasks.spawn(async move { ("admin listener", admin.await.map_err(|error| error.to_string())) });
    let reload = reload::run(reloader, stop.clone());
    tasks.spawn(async move { ("reloader", reload.await.map_err(|error| error.to_string())) });
    let follow = discovery::run(fleet.clone(), discovery::open(), metrics.clone(), stop.clone());
    tasks.spawn(async move {
        follow.await;
        ("discovery", Ok(()))
    });
    let probed = fleet.clone();
    let probes = probe::run(fleet, probe::Clients::new(upstream)?, metrics, stop.clone());
    tasks.spawn(async move { ("prober", probes.await) });
    // Said when a submit would find a worker, if there is one: who starts a gateway and waits for this line goes on at once.
    let announce = async {
        while drain.unready(&probed).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ready(bound);
    };
    tokio::pin!(announce);
    let mut announced = false;
    let draining = drain::run(drain.clone(), shutdown, close, options.lame_duck, options.drain_timeout);
    tokio::pin!(draining);
    let result = loop {
        tokio::select! {
            () = &mut draining => break Ok(()),
            () = &mut announce, if !announced => announced = true,
            Some(ended) = tasks.join_next() => match ended {
                // It ends first when it is closed.
                Ok((task, Ok(()))) if LISTENERS.contains(&task) && drain.draining() => {}
                Ok((task, Ok(()))) => break Err(Error::TaskEnded { task, reason: "without being asked to".to_owned() }),
                Ok((task, Err(reason))) => break Err(Error::TaskEnded { task, reason }),
                Err(error) => break Err(Error::TaskEnded { task: "background task", reason: error.to_string() }),
            },
        }
    };
    stop.cancel();
    let joined = async { while tasks.join_next().await.is_some() {} };
    if result.is_ok() && tokio::time::timeout(Duration::from_secs(1), joined).await.is_err() {
        tracing::warn!("a task did not end in time");
    }
    access_log.flush(Duration::from_secs(1));
    result
}

fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, Error> {
    let bound = millrace_runtime::listen::bind(address).and_then(tokio::net::TcpListener::into_std);
    bound.map_err(|source| Error::Listen { address, key, source })
}

fn bound_to(listener: Option<&TcpListener>) -> std::io::Result<Option<SocketAddr>> {
    listener.map(TcpListener::local_addr).transpose()
}

fn server_conf() -> ServerConf {
    // Tries are ours to count: Pingora's limit only has to stay out of the way.
    let max_retries = TRIES_MAX as usize + 1;
    ServerConf {
        upstream_keepalive_pool_size: UPSTREAM_IDLE_MAX,
        max_retries,
        ca_file: Some(NO_CA.to_owned()),
        ..ServerConf::default()
    }
}

/// Runs Pingora's listening service on a socket that is bound already, until `closed` turns true.
async fn listen(edge: Edge, listener: TcpListener, address: SocketAddr, closed: watch::Receiver<bool>) {
    let address = address.to_string();
    let mut fds = Fds::new();
    fds.add(address.clone(), listener.into_raw_fd());
    let fds: ListenFds = Arc::new(fds.into());
    let buffers = edge.buffers();
    let mut service = Service::new("gateway".to_owned(), edge);
    service.add_listener(ListenerConfig::tcp(&address).l4_buffer(buffers));
    service.start_service(Some(fds), closed, 1).await;
}
