//! A server that may ask itself: it believes its own certificate beside its clients', and the asker believes no other.
//!
//! Who can prove to hold the server's key is the server, and learns nothing by talking to itself. So nothing else of a
//! certificate is looked at here: not its end, nor for what it was issued.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
};

use super::files::{Bad, Pair, Read, mismatch, own_pair};

/// What a process connects to its own listener with: it shows the pair, and wants to be shown the same certificate.
///
/// # Errors
/// What is wrong with the files.
pub fn connecting(pair: &Pair) -> Result<ClientConfig, Bad> {
    let read = |key: &'static str, path: &Path| {
        let bad = |error| Bad { key, message: format!("{} cannot be read: {error}", path.display()) };
        std::fs::read(path).map_err(bad)
    };
    let (chain_pem, key_pem) = (read("certificate", &pair.certificate)?, read("key", &pair.key)?);
    let certificate = Read { key: "certificate", path: &pair.certificate, pem: &chain_pem };
    let key = Read { key: "key", path: &pair.key, pem: &key_pem };
    let (chain, private) = own_pair(&certificate, &key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let only = Arc::new(OnlyOwn { own: chain[0].clone(), provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(only);
    builder.with_client_auth_cert(chain, private).map_err(|error| mismatch(&certificate, &key, &error))
}

/// Believes who shows `own`, and who `others` believes.
pub(super) fn or_own(
    own: CertificateDer<'static>,
    others: Arc<dyn ClientCertVerifier>,
) -> Arc<dyn ClientCertVerifier> {
    Arc::new(OrOwn { own, others })
}

#[derive(Debug)]
struct OrOwn {
    own: CertificateDer<'static>,
    others: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for OrOwn {
    fn offer_client_auth(&self) -> bool {
        self.others.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.others.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.others.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if *shown == self.own {
            return Ok(ClientCertVerified::assertion());
        }
        self.others.verify_client_cert(shown, between, now)
    }

    // That the key is the shown certificate's is proved here, for both.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.others.verify_tls12_signature(message, shown, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.others.verify_tls13_signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.others.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct OnlyOwn {
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnlyOwn {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *shown == self.own {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
