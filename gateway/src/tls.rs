//! TLS for clients: exchanges certificates while connections come in. What makes them good is [`millrace_runtime::tls`]'s.
//!
//! Pingora's `TlsSettings` was rejected: it panics on a bad file and never looks at it again. So the handshake is ours, too,
//! and each begins with the configuration in force. A whole configuration is swapped, not a certificate in it, so that a
//! client's session of before cannot be resumed past a changed `client_ca`.

mod stream;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use millrace_runtime::tls::{self, Bad, Loaded, Server};
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as Socket;
use serde::Serialize;
use stream::Secured;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::config::https::Https;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::settle;

/// Where the certificate stands, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// When what is in force ends, in Unix seconds.
    pub expires_unix_s: i64,
    /// Why what lies in the files now is not in force, if it is not.
    pub error: Option<String>,
}

/// The certificate in force.
pub struct Tls {
    acceptor: ArcSwap<TlsAcceptor>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    followed: Mutex<Followed>,
}

struct Followed {
    state: State,
    files: tls::Followed<Server>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Tls {
    /// Serves with the files that `https` names.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(https: &Https, fleet: Arc<Fleet>, metrics: Arc<Metrics>) -> Result<Self, Bad> {
        let (files, Loaded { made, expires_unix_s }) = tls::Followed::open(&https.files)?;
        metrics.certificate_expiry.set(expires_unix_s);
        metrics.certificate_success.set(1);
        let state = State { expires_unix_s, error: None };
        let followed = Mutex::new(Followed { state, files });
        let acceptor = ArcSwap::from_pointee(TlsAcceptor::from(made));
        Ok(Self { acceptor, fleet, metrics, followed })
    }

    /// Where the certificate stands.
    pub fn state(&self) -> State {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).state.clone()
    }

    /// Makes a connection one of TLS. `None` when the client does not manage to, within `deadline`.
    pub async fn handshake(&self, stream: Stream, deadline: Duration) -> Option<Stream> {
        let socket = stream.into_any().downcast::<Socket>().ok()?;
        let acceptor = self.acceptor.load_full();
        // Boxed: a connection's whole state machine is large, and most of its life is after this.
        let shaking = Box::pin(tokio::time::timeout(deadline, acceptor.accept(*socket)));
        match shaking.await {
            Ok(Ok(stream)) => return Some(Box::new(Secured(stream))),
            Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
            Err(_) => debug!(?deadline, "TLS handshake did not end in time"),
        }
        self.metrics.tls_handshakes_failed.inc();
        None
    }

    /// Looks at the files, and puts them in force when two looks have seen the same new content.
    fn look(&self) {
        let config = self.fleet.config();
        let Some(https) = &config.listen.https else { return };
        let seen = tls::Seen::at(&https.files);
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = &mut *followed;
        match followed.files.saw(seen) {
            None => {}
            Some(Ok(Loaded { made, expires_unix_s })) => {
                self.acceptor.store(Arc::new(TlsAcceptor::from(made)));
                followed.state = State { expires_unix_s, error: None };
                self.metrics.certificate_expiry.set(expires_unix_s);
                self.metrics.certificate_success.set(1);
                info!(expires_unix_s, "certificate reloaded");
            }
            Some(Err(bad)) => {
                let told = format!("listen.https.{bad}");
                self.metrics.certificate_success.set(0);
                error!(error = told, "certificate not reloaded; the one in force stays");
                followed.state.error = Some(told);
            }
        }
    }
}

/// Follows the files until `stop`.
pub async fn run(tls: Arc<Tls>, stop: CancellationToken) {
    settle::follow(stop, move || tls.look()).await;
}
