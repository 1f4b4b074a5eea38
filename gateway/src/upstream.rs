//! TLS to workers: whom the gateway believes, what it shows of itself, and both exchanged while requests go on.
//!
//! One set of files for the process ([`crate::config::upstream_tls`]), checked before it counts and followed. Pingora's
//! connector can be given a CA when it is made, never another one, and no client certificate at all; so each peer carries
//! both, made once and shared by all, and Pingora makes a configuration of them for each new connection. Sessions are
//! therefore not resumed, which costs a signature per connection; connections are kept and used again. Its connector
//! interface of one's own would allow more, but its proxy cannot be had with one outside of its service.
//!
//! HTTP/1.1 only, as without TLS: what is known of retries, of broken-off bodies and of event streams holds for both.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use millrace_runtime::tls::{Bad, Client, Connecting, Followed, Loaded, Seen};
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::upstream_tls::UpstreamTls;
use crate::metrics::Metrics;
use crate::reload::INTERVAL;
use crate::tls::State;

/// The one protocol that workers are spoken to in.
const ALPN: &[u8] = b"http/1.1";

/// Whom the gateway believes and what it shows: files that were found good.
pub struct Credentials {
    /// Counts up; connections of an earlier one are not used for new requests.
    pub generation: u64,
    /// For who is not Pingora.
    pub config: ClientConfig,
    ca: Arc<CaType>,
    own: Option<Arc<CertKey>>,
}

/// What TLS to workers takes.
pub struct Upstream {
    in_force: ArcSwapOption<Credentials>,
    generation: AtomicU64,
    followed: Mutex<Option<Watched>>,
    metrics: Arc<Metrics>,
}

struct Watched {
    files: Client,
    content: Followed<Client>,
    state: State,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Credentials {
    fn new(connecting: &Connecting, generation: u64) -> Self {
        let mut config = connecting.config.clone();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let wrapped = |der: &CertificateDer<'_>| WrappedX509::new(der.to_vec(), parse_x509);
        let own = connecting.own.as_ref().map(|(chain, key)| {
            let chain = chain.iter().map(|der| der.to_vec()).collect();
            Arc::new(CertKey::new(chain, key.secret_der().to_vec()))
        });
        Self { generation, config, ca: connecting.roots.iter().map(wrapped).collect(), own }
    }

    /// A worker that has to be known by `name`, which is not empty: Pingora takes an empty one for "verify nothing".
    fn peer(&self, address: SocketAddr, name: &str) -> HttpPeer {
        debug_assert!(!name.is_empty(), "a worker without a name would not be verified");
        let mut peer = HttpPeer::new(address, true, name.to_owned());
        peer.options.ca = Some(self.ca.clone());
        peer.client_cert_key = self.own.clone();
        peer.group_key = self.generation;
        peer
    }
}

impl Upstream {
    /// Without credentials.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let generation = AtomicU64::new(0);
        Self { in_force: ArcSwapOption::empty(), generation, followed: Mutex::default(), metrics }
    }

    /// What is in force.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.in_force.load_full()
    }

    /// How to reach a worker: in plain, or over TLS where it has a name to be known by. `None` for one that has to be
    /// spoken to over TLS while nothing is in force, which no routing file can bring about.
    pub fn peer(&self, address: SocketAddr, name: Option<&str>) -> Option<HttpPeer> {
        match name {
            None => Some(HttpPeer::new(address, false, String::new())),
            Some(name) => Some(self.in_force.load().as_ref()?.peer(address, name)),
        }
    }

    /// Where the files stand, as `/readyz` shows it.
    pub fn state(&self) -> Option<State> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.as_ref().map(|watched| watched.state.clone())
    }

    /// Puts the section of another routing file in force, at once, if it names other files.
    ///
    /// # Errors
    /// What is wrong with the files; nothing has changed.
    pub fn adopt(&self, section: Option<&UpstreamTls>) -> Result<(), Bad> {
        // What is in force stays without a section, too: a request that began before may still go to a pool of before.
        let Some(UpstreamTls { files, .. }) = section else { return Ok(()) };
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.as_ref().is_some_and(|watched| watched.files == *files) {
            return Ok(());
        }
        let (content, loaded) = Followed::open(files)?;
        let state = self.swap(loaded)?;
        *followed = Some(Watched { files: files.clone(), content, state });
        Ok(())
    }

    fn swap(&self, Loaded { made, expires_unix_s }: Loaded<Connecting>) -> Result<State, Bad> {
        if let Some((_, key)) = &made.own
            && PrivateKeyDer::try_from(key.secret_der()).is_err()
        {
            let message =
                "it is of a kind that connections to workers cannot use; it wants PKCS #8".to_owned();
            return Err(Bad { key: "key", message });
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_force.store(Some(Arc::new(Credentials::new(&made, generation))));
        self.metrics.upstream_certificate_expiry.set(expires_unix_s);
        self.metrics.upstream_certificate_success.set(1);
        Ok(State { expires_unix_s, error: None })
    }

    fn look(&self) {
        let files = {
            let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            followed.as_ref().map(|watched| watched.files.clone())
        };
        let Some(files) = files else { return };
        let seen = Seen::at(&files);
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watched) = followed.as_mut().filter(|watched| watched.files == files) else { return };
        let Some(loaded) = watched.content.saw(seen) else { return };
        match loaded.and_then(|loaded| self.swap(loaded)) {
            Ok(state) => {
                info!(expires_unix_s = state.expires_unix_s, "certificates of TLS to workers reloaded");
                watched.state = state;
            }
            Err(bad) => {
                let told = format!("upstream_tls.{bad}");
                self.metrics.upstream_certificate_success.set(0);
                error!(error = told, "certificates of TLS to workers not reloaded; those in force stay");
                watched.state.error = Some(told);
            }
        }
    }
}

/// Follows the files until `stop`.
pub async fn run(upstream: Arc<Upstream>, stop: CancellationToken) {
    let mut look = tokio::time::interval(INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
        }
        let upstream = upstream.clone();
        // A secret may lie on a network file system; what goes wrong is logged, counted and shown where it arises.
        let _ = tokio::task::spawn_blocking(move || upstream.look()).await;
    }
}
