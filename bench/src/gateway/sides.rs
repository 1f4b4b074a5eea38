//! The proxies that are compared: how each is configured and started, and how its CPU time is read.
//!
//! All have the same core, one thread for requests, keep their connections on both sides, and write no log of each
//! request, except ours, which writes its sample.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::identity::{AUDIENCE, ISSUER, Identity};
use crate::process::{POLL, Process, Spawner, Spec};
use crate::procfs::{self, Spent};

/// From a start to the first connection.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// The share of requests that our access log writes.
pub const LOG_SAMPLE: f64 = 0.01;

/// One proxy that serves. Dropping it kills it.
#[derive(Debug)]
pub struct Side {
    /// As it is called in the table.
    pub name: &'static str,
    /// Its version, as it says itself.
    pub version: String,
    /// Where clients connect.
    pub address: SocketAddr,
    process: Process,
}

/// What all sides are started with.
pub struct Setting<'a> {
    /// Starts them.
    pub spawner: &'a Spawner,
    /// This program.
    pub bench: PathBuf,
    /// Where their files and logs go.
    pub directory: &'a Path,
    /// Their core.
    pub core: Option<usize>,
    /// All endpoints with their pools; all but our gateway have the first alone.
    pub endpoints: &'a [(String, SocketAddr)],
}

/// A proxy that is no part of ours.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// As it is called in the table.
    pub name: &'static str,
    /// Its program's name.
    pub program: &'static str,
    version_flag: &'static str,
    file: &'static str,
    config: fn(SocketAddr, SocketAddr, &Path) -> String,
    args: fn(&Path) -> Vec<OsString>,
}

/// Every one that we know to configure.
pub const PEERS: [Peer; 3] = [
    Peer {
        name: "nginx",
        program: "nginx",
        version_flag: "-v",
        file: "nginx.conf",
        config: nginx,
        args: |file| {
            let prefix = file.parent().unwrap_or(file);
            ["-p".into(), prefix.into(), "-e".into(), "stderr".into(), "-c".into(), file.into()].into()
        },
    },
    Peer {
        name: "HAProxy",
        program: "haproxy",
        version_flag: "-v",
        file: "haproxy.cfg",
        config: haproxy,
        args: |file| ["-db".into(), "-f".into(), file.into()].into(),
    },
    Peer {
        name: "Envoy",
        program: "envoy",
        version_flag: "--version",
        file: "envoy.json",
        config: envoy,
        args: |file| {
            let flags = ["--concurrency", "1", "--log-level", "warn", "--disable-hot-restart", "-c"];
            flags.into_iter().map(OsString::from).chain([file.into()]).collect()
        },
    },
];

fn nginx(listen: SocketAddr, upstream: SocketAddr, directory: &Path) -> String {
    let directory = directory.display();
    // It closes a connection after 1,000 requests unless told otherwise, and opens one per request to the worker.
    format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {directory}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  client_body_temp_path {directory}/nginx.body;\n  \
         proxy_temp_path {directory}/nginx.proxy;\n  fastcgi_temp_path {directory}/nginx.fastcgi;\n  \
         uwsgi_temp_path {directory}/nginx.uwsgi;\n  scgi_temp_path {directory}/nginx.scgi;\n  \
         upstream worker {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}\n  \
         server {{\n    listen {listen};\n    location / {{\n      proxy_pass http://worker;\n      \
         proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n    }}\n  }}\n}}\n"
    )
}

fn haproxy(listen: SocketAddr, upstream: SocketAddr, _: &Path) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
         timeout server 60s\n  http-reuse always\nfrontend clients\n  bind {listen}\n  default_backend workers\n\
         backend workers\n  server worker {upstream}\n"
    )
}

fn envoy(listen: SocketAddr, upstream: SocketAddr, _: &Path) -> String {
    let socket = |address: SocketAddr| {
        let (host, port) = (address.ip().to_string(), address.port());
        serde_json::json!({ "socket_address": { "address": host, "port_value": port } })
    };
    let router = serde_json::json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    let manager = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "http_filters": [router],
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "workers" } }],
        }] },
    });
    let filter = serde_json::json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    let endpoint = serde_json::json!({ "endpoint": { "address": socket(upstream) } });
    let file = serde_json::json!({ "static_resources": {
        "listeners": [{ "address": socket(listen), "filter_chains": [{ "filters": [filter] }] }],
        "clusters": [{
            "name": "workers", "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": { "cluster_name": "workers", "endpoints": [{ "lb_endpoints": [endpoint] }] },
        }],
    } });
    format!("{file:#}\n")
}

impl Setting<'_> {
    /// The least that Pingora can be.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn minimal(&self) -> Result<Side> {
        let (address, upstream) = (free_port()?, self.upstream()?);
        let args = ["minimal-proxy".into(), address.to_string().into(), upstream.to_string().into()];
        let version = "the same build".to_owned();
        self.start("minimal Pingora", version, &self.bench.clone(), args.into(), address).await
    }

    /// Our gateway with all that it does, for clients with tokens of this provider.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn gateway(&self, program: &Path, identity: &Identity) -> Result<Side> {
        let (http, admin) = (free_port()?, free_port()?);
        let jwks = self.directory.join("jwks.json");
        fs::write(&jwks, &identity.jwks).context("write the provider's key")?;
        let mut routing = format!(
            "[listen]\nhttp = \"{http}\"\nadmin = \"{admin}\"\n\n[auth.jwt]\njwks = \"jwks.json\"\n\
             issuer = {ISSUER:?}\naudience = [{AUDIENCE:?}]\n\n\
             [access_log]\nenabled = true\nsample = {LOG_SAMPLE}\n"
        );
        let mut pools: Vec<&str> = self.endpoints.iter().map(|(pool, _)| pool.as_str()).collect();
        pools.dedup();
        for pool in pools {
            let of_pool = self.endpoints.iter().filter(|(of, _)| of == pool);
            let endpoints: Vec<String> = of_pool.map(|(_, address)| address.to_string()).collect();
            routing += &format!(
                "\n[[pools]]\nname = {pool:?}\negress_usd_per_gb = 0.09\nendpoints = {endpoints:?}\n"
            );
        }
        let file = self.directory.join("routing.toml");
        fs::write(&file, routing).context("write the routing file")?;
        let args = ["run".into(), "--config".into(), file.into()];
        let version = version(program, "--version")?;
        self.start("millrace-gateway", version, program, args.into(), http).await
    }

    /// A proxy of somebody else's; none where it is not installed.
    ///
    /// # Errors
    /// It is installed and does not come up.
    pub async fn peer(&self, peer: &Peer, also_in: &Path) -> Result<Option<Side>> {
        let Some(program) = find(peer.program, also_in) else { return Ok(None) };
        let (address, upstream) = (free_port()?, self.upstream()?);
        let file = self.directory.join(peer.file);
        fs::write(&file, (peer.config)(address, upstream, self.directory))
            .with_context(|| format!("write {}", file.display()))?;
        let version = version(&program, peer.version_flag)?;
        self.start(peer.name, version, &program, (peer.args)(&file), address).await.map(Some)
    }

    fn upstream(&self) -> Result<SocketAddr> {
        self.endpoints.first().map(|(_, address)| *address).context("there is no endpoint")
    }

    async fn start(
        &self,
        name: &'static str,
        version: String,
        program: &Path,
        args: Vec<OsString>,
        address: SocketAddr,
    ) -> Result<Side> {
        let (program, args) = match self.core {
            None => (program.to_owned(), args),
            Some(core) => {
                let on_core = ["on-core".into(), core.to_string().into(), "--".into(), program.into()];
                (self.bench.clone(), on_core.into_iter().chain(args).collect())
            }
        };
        let logs = self.directory.join("logs");
        let log_name = name.replace(' ', "-").to_lowercase();
        let mut process = self.spawner.start(Spec { name: log_name, program, args, logs })?;
        let deadline = Instant::now() + READY_PATIENCE;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            if let Some(status) = process.exited() {
                bail!("{name} ended ({status}) before it was ready\n{}", process.tail());
            }
            if Instant::now() > deadline {
                bail!("{name} was not ready after {READY_PATIENCE:?}\n{}", process.tail());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(Side { name, version, address, process })
    }
}

impl Side {
    /// CPU time of its process and all below it, so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn spent(&self) -> Result<Spent> {
        let pid = self.process.pid();
        let below = procfs::descendants(pid).into_iter().map(|process| process.pid);
        Spent::of(std::iter::once(pid).chain(below))
            .with_context(|| format!("{} has ended\n{}", self.name, self.process.tail()))
    }
}

/// A program on the search path, beside where administrators' programs are, or in that directory.
fn find(program: &str, also_in: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), also_in.to_owned()]);
    places.map(|place| place.join(program)).find(|file| file.is_file())
}

fn version(program: &Path, flag: &str) -> Result<String> {
    let said = std::process::Command::new(program).arg(flag).output();
    let said = said.with_context(|| format!("run {} {flag}", program.display()))?;
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown");
    // `nginx version: nginx/1.22.1`, `HAProxy version 2.6.12-1 2022/12/16 - …`, `…/envoy  version: HASH/1.38.3/…`.
    let mut words = line.split(|c: char| c.is_whitespace() || c == '/');
    let number = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    Ok(number.unwrap_or(line).to_owned())
}

/// A port that is free now. Whoever takes it in between makes its side fail, loudly.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("take a port")?;
    listener.local_addr().context("read the port")
}
