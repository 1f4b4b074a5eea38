//! What certificate files must hold before they count: they parse, the key is the certificate's, nothing has expired or
//! is not valid yet, and each certificate of a chain is signed by the next.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Content, Files, itself};

/// Why the files cannot be used, under the key of the one at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct Bad {
    /// `certificate`, `key`, `client_ca` or `ca`.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// A certificate's file and its key's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The chain, PEM, the own certificate first, then each one's issuer.
    pub certificate: PathBuf,
    /// The private key of the first certificate, PEM.
    pub key: PathBuf,
}

/// The files of who serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its own.
    pub own: Pair,
    /// The certificates that clients' own must come from, PEM.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must have one, where `client_ca` says whom to believe.
    pub clients: Clients,
    /// Protocols it speaks, the first one preferred.
    pub alpn: &'static [&'static [u8]],
}

/// What is asked of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clients {
    /// One may be shown; a wrong one is refused.
    Optional,
    /// One must be shown.
    Required,
    /// One must be shown, and the server's own counts as well: whoever holds its key is it, and may ask itself.
    #[serde(skip)]
    RequiredOrOwn,
}

/// The files of who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The certificates that servers' own must come from, PEM. Nothing else is believed, the system's CAs neither.
    pub ca: PathBuf,
    /// What it shows to servers that ask.
    pub own: Option<Pair>,
}

/// Files that were found good.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// What they became.
    pub made: Arc<T>,
    /// When the first certificate among them ends, in Unix seconds: of a chain, or of the CAs where there is no chain.
    pub expires_unix_s: i64,
}

/// What connecting takes: the configuration, and the same in parts for who makes configurations himself.
#[derive(Debug)]
pub struct Connecting {
    /// Without ALPN; verification is webpki's, in full.
    pub config: ClientConfig,
    /// Whom it believes.
    pub roots: Vec<CertificateDer<'static>>,
    /// What it shows: its chain and key.
    pub own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// A file's key, path and content.
pub(super) struct Read<'a> {
    pub(super) key: &'static str,
    pub(super) path: &'a Path,
    pub(super) pem: &'a [u8],
}

fn read<'a>(files: &'a impl Files, seen: &'a [Content]) -> Result<Vec<Read<'a>>, Bad> {
    let named = files.files().into_iter().zip(seen);
    let each = named.map(|((key, path), content)| match content {
        Ok(pem) => Ok(Read { key, path, pem }),
        Err(error) => Err(Bad { key, message: error.clone() }),
    });
    each.collect()
}

pub(super) fn server(files: &Server, seen: &[Content]) -> Result<Loaded<ServerConfig>, Bad> {
    let read = read(files, seen)?;
    let [certificate, key, more @ ..] = &read[..] else { unreachable!("both are always named") };
    let (chain, private, expires_unix_s) = own(certificate, key, webpki::KeyUsage::server_auth())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3");
    let builder = match more.first() {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let (_, roots, _) = authorities(ca, "cannot tell clients")?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match files.clients {
                Clients::Optional => verifier.allow_unauthenticated(),
                Clients::Required | Clients::RequiredOrOwn => verifier,
            };
            let verifier =
                verifier.build().map_err(|error| ca.bad(&format!("cannot tell clients: {error}")))?;
            builder.with_client_cert_verifier(match files.clients {
                Clients::RequiredOrOwn => itself::or_own(chain[0].clone(), verifier),
                _ => verifier,
            })
        }
    };
    let config = builder.with_single_cert(chain, private);
    let mut config = config.map_err(|error| mismatch(certificate, key, &error))?;
    config.alpn_protocols = files.alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Loaded { made: Arc::new(config), expires_unix_s })
}

pub(super) fn client(files: &Client, seen: &[Content]) -> Result<Loaded<Connecting>, Bad> {
    let read = read(files, seen)?;
    let [ca, pair @ ..] = &read[..] else { unreachable!("it is always named") };
    let (roots, store, mut expires_unix_s) = authorities(ca, "cannot tell servers")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(store);
    let (config, own) = match pair {
        [certificate, key] => {
            let (chain, private, expires) = own(certificate, key, webpki::KeyUsage::client_auth())?;
            expires_unix_s = expires;
            let config = builder.with_client_auth_cert(chain.clone(), private.clone_key());
            (config.map_err(|error| mismatch(certificate, key, &error))?, Some((chain, private)))
        }
        _ => (builder.with_no_client_auth(), None),
    };
    Ok(Loaded { made: Arc::new(Connecting { config, roots, own }), expires_unix_s })
}

impl Read<'_> {
    fn bad(&self, what: &str) -> Bad {
        Bad { key: self.key, message: format!("{} {what}", self.path.display()) }
    }

    fn private(&self) -> Result<PrivateKeyDer<'static>, Bad> {
        let private = PrivateKeyDer::from_pem_slice(self.pem);
        private.map_err(|error| self.bad(&format!("holds no private key in PEM: {error}")))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Bad> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.pem).collect();
        match read {
            Ok(read) if !read.is_empty() => Ok(read),
            Ok(_) => Err(self.bad("holds no certificate in PEM")),
            Err(error) => Err(self.bad(&format!("is no PEM: {error}"))),
        }
    }

    /// When the first of them ends, in Unix seconds; all must be valid now.
    fn in_time(&self, chain: &[CertificateDer<'_>]) -> Result<i64, Bad> {
        let mut first_end = i64::MAX;
        for (place, der) in chain.iter().enumerate() {
            let bad = |what: String| Bad {
                key: self.key,
                message: format!("certificate {} of {} {what}", place + 1, self.path.display()),
            };
            let (_, read) =
                X509Certificate::from_der(der).map_err(|error| bad(format!("is none: {error}")))?;
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

    /// The other side knows the last one's issuer at best; what leads there must be whole. A single certificate has no
    /// links.
    fn linked(&self, chain: &[CertificateDer<'_>], usage: webpki::KeyUsage) -> Result<(), Bad> {
        let [own, between @ .., last] = chain else { return Ok(()) };
        let broken = |error: webpki::Error| {
            self.bad(&format!(
                "is no chain: the first certificate does not lead to the last one ({error}); \
                 it wants one's own, then each one's issuer"
            ))
        };
        let anchor = webpki::anchor_from_trusted_cert(last).map_err(broken)?;
        let own = webpki::EndEntityCert::try_from(own).map_err(broken)?;
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
        let now = UnixTime::now();
        own.verify_for_usage(algorithms, &[anchor], between, now, usage, None, None).map_err(broken)?;
        Ok(())
    }
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, i64);

fn own(certificate: &Read<'_>, key: &Read<'_>, usage: webpki::KeyUsage) -> Result<Own, Bad> {
    let chain = certificate.certificates()?;
    let expires_unix_s = certificate.in_time(&chain)?;
    certificate.linked(&chain, usage)?;
    Ok((chain, key.private()?, expires_unix_s))
}

/// A chain and its key as they stand in the files, whatever they are good for.
pub(super) fn own_pair(
    certificate: &Read<'_>,
    key: &Read<'_>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Bad> {
    Ok((certificate.certificates()?, key.private()?))
}

type Authorities = (Vec<CertificateDer<'static>>, RootCertStore, i64);

fn authorities(ca: &Read<'_>, otherwise: &str) -> Result<Authorities, Bad> {
    let trusted = ca.certificates()?;
    let expires_unix_s = ca.in_time(&trusted)?;
    let mut roots = RootCertStore::empty();
    for certificate in &trusted {
        let added = roots.add(certificate.clone());
        added.map_err(|error| ca.bad(&format!("{otherwise}: {error}")))?;
    }
    Ok((trusted, roots, expires_unix_s))
}

pub(super) fn mismatch(certificate: &Read<'_>, key: &Read<'_>, error: &rustls::Error) -> Bad {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            key.bad(&format!("is not the key of the certificate in {}", certificate.path.display()))
        }
        error => certificate.bad(&format!("cannot be used: {error}")),
    }
}

fn unix_now_s() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
