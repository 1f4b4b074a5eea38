//! TLS for clients: reads certificates, checks them before they count, and exchanges them while connections come in.
//!
//! Pingora's `TlsSettings` was rejected: it panics on a bad file and never looks at it again. Its `Acceptor` takes a
//! configuration of our own, and every handshake here begins with the one in force. A whole configuration is swapped,
//! not a certificate in it, so that a client's session of before cannot be resumed past a changed `client_ca`.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as Socket;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::https::{ClientCertificates, Https};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::settle::{self, Settle};

/// Why the files cannot be used, under the key of `[listen.https]` that names the one at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("listen.https.{key}: {message}")]
pub struct Bad {
    /// `certificate`, `key` or `client_ca`.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// Files that were found good.
#[derive(Debug, Clone)]
pub struct Loaded {
    config: Arc<ServerConfig>,
    /// When the first certificate of the chain ends, in Unix seconds.
    pub expires_unix_s: i64,
}

/// Where the certificate stands, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// When what is in force ends, in Unix seconds.
    pub expires_unix_s: i64,
    /// Why what lies in the files now is not in force, if it is not.
    pub error: Option<String>,
}

/// What the files hold; an unreadable one counts by its error.
type Seen = Vec<Result<Vec<u8>, String>>;

/// The certificate in force.
pub struct Tls {
    acceptor: ArcSwap<Acceptor>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    followed: Mutex<Followed>,
}

struct Followed {
    state: State,
    content: Settle<Seen>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// Reads and checks the files: they parse, the key is the certificate's, nothing has expired or is not valid yet, and
/// each certificate of the chain is signed by the next.
///
/// # Errors
/// The first thing wrong.
pub fn load(https: &Https) -> Result<Loaded, Bad> {
    judge(https, &see(https))
}

fn files(https: &Https) -> impl Iterator<Item = (&'static str, &Path)> {
    let two = [("certificate", https.certificate.as_path()), ("key", https.key.as_path())];
    two.into_iter().chain(https.client_ca.as_deref().map(|path| ("client_ca", path)))
}

fn see(https: &Https) -> Seen {
    files(https)
        .map(|(_, path)| {
            std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
        })
        .collect()
}

fn judge(https: &Https, seen: &Seen) -> Result<Loaded, Bad> {
    let mut read = Vec::with_capacity(seen.len());
    for ((key, path), content) in files(https).zip(seen) {
        let content = content.as_ref().map_err(|error| Bad { key, message: error.clone() })?;
        read.push((key, path.display(), content.as_slice()));
    }
    let (_, certificate_path, pem) = &read[0];
    let chain = certificates("certificate", certificate_path, pem)?;
    let expires_unix_s = in_time("certificate", certificate_path, &chain)?;
    linked(certificate_path, &chain)?;
    let (_, key_path, pem) = &read[1];
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| Bad {
        key: "key",
        message: format!("{key_path} holds no private key in PEM: {error}"),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3");
    let builder = match read.get(2) {
        None => builder.with_no_client_auth(),
        Some((_, path, pem)) => {
            let mut roots = RootCertStore::empty();
            let unusable = |error: &dyn std::fmt::Display| Bad {
                key: "client_ca",
                message: format!("{path} cannot tell clients: {error}"),
            };
            let trusted = certificates("client_ca", path, pem)?;
            in_time("client_ca", path, &trusted)?;
            for certificate in trusted {
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match https.client_certificates {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                ClientCertificates::Required => verifier,
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let message = format!("{key_path} is not the key of the certificate in {certificate_path}");
            Bad { key: "key", message }
        }
        error => Bad { key: "certificate", message: format!("{certificate_path} cannot be used: {error}") },
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), expires_unix_s })
}

fn certificates(
    key: &'static str,
    path: &dyn std::fmt::Display,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Bad> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        Ok(_) => Err(Bad { key, message: format!("{path} holds no certificate in PEM") }),
        Err(error) => Err(Bad { key, message: format!("{path} is no PEM: {error}") }),
    }
}

/// When the first of them ends, in Unix seconds; all must be valid now.
fn in_time(
    key: &'static str,
    path: &dyn std::fmt::Display,
    chain: &[CertificateDer<'_>],
) -> Result<i64, Bad> {
    let mut first_end = i64::MAX;
    for (place, der) in chain.iter().enumerate() {
        let bad = |what: String| Bad { key, message: format!("certificate {} of {path} {what}", place + 1) };
        let (_, read) = X509Certificate::from_der(der).map_err(|error| bad(format!("is none: {error}")))?;
        let (validity, now) = (read.validity(), unix_now_s());
        if now >= validity.not_after.timestamp() {
            return Err(bad(format!("({}) has expired on {}", read.subject(), validity.not_after)));
        }
        if now < validity.not_before.timestamp() {
            return Err(bad(format!("({}) is valid from {} on", read.subject(), validity.not_before)));
        }
        first_end = first_end.min(validity.not_after.timestamp());
    }
    Ok(first_end)
}

/// Clients know the last one's issuer at best; what leads there must be whole. A single certificate has no links.
fn linked(path: &dyn std::fmt::Display, chain: &[CertificateDer<'_>]) -> Result<(), Bad> {
    let [own, between @ .., last] = chain else { return Ok(()) };
    let broken = |error: webpki::Error| Bad {
        key: "certificate",
        message: format!(
            "{path} is no chain: the first certificate does not lead to the last one ({error}); \
             it wants the server's own, then each one's issuer"
        ),
    };
    let anchor = webpki::anchor_from_trusted_cert(last).map_err(broken)?;
    let own = webpki::EndEntityCert::try_from(own).map_err(broken)?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let usage = webpki::KeyUsage::server_auth();
    let now = UnixTime::now();
    own.verify_for_usage(algorithms, &[anchor], between, now, usage, None, None).map_err(broken)?;
    Ok(())
}

impl Tls {
    /// Serves with the files that `https` names.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(https: &Https, fleet: Arc<Fleet>, metrics: Arc<Metrics>) -> Result<Self, Bad> {
        let seen = see(https);
        let Loaded { config, expires_unix_s } = judge(https, &seen)?;
        metrics.certificate_expiry.set(expires_unix_s);
        metrics.certificate_success.set(1);
        let state = State { expires_unix_s, error: None };
        let followed = Mutex::new(Followed { state, content: Settle::new(seen) });
        let acceptor = ArcSwap::from_pointee(Acceptor::from_server_config(config));
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
        let shaking = Box::pin(tokio::time::timeout(deadline, acceptor.tls_handshake(*socket)));
        match shaking.await {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
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
        let seen = see(https);
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = &mut *followed;
        // Certificate and key are two files, and one is written before the other.
        let Some(seen) = followed.content.saw(seen) else { return };
        match judge(https, seen) {
            Ok(Loaded { config, expires_unix_s }) => {
                self.acceptor.store(Arc::new(Acceptor::from_server_config(config)));
                followed.state = State { expires_unix_s, error: None };
                self.metrics.certificate_expiry.set(expires_unix_s);
                self.metrics.certificate_success.set(1);
                info!(expires_unix_s, "certificate reloaded");
            }
            Err(bad) => {
                followed.state.error = Some(bad.to_string());
                self.metrics.certificate_success.set(0);
                error!(error = %bad, "certificate not reloaded; the one in force stays");
            }
        }
    }
}

fn unix_now_s() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Follows the files until `stop`.
pub async fn run(tls: Arc<Tls>, stop: CancellationToken) {
    settle::follow(stop, move || tls.look()).await;
}
