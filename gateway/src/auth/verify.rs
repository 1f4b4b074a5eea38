//! Signatures of tokens, checked by ring.
//!
//! `jsonwebtoken` brings a choice of two crypto libraries; either would be a second one beside that of TLS. So it gets
//! ring's, in the form that it wants. Nothing is signed here.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use ring::{hmac, signature as known};

static RING: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring what tokens are checked by, in the whole process.
pub(super) fn install() {
    // Whoever came first did the same.
    let _ = RING.install_default();
}

fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if family(*algorithm) != Some(key.family()) {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(Ring { algorithm: *algorithm, key: key.clone() }))
}

fn family(algorithm: Algorithm) -> Option<AlgorithmFamily> {
    use AlgorithmFamily::{Ec, Ed, Hmac, Rsa};
    [Hmac, Rsa, Ec, Ed].into_iter().find(|family| family.algorithms().contains(&algorithm))
}

struct Ring {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for Ring {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Ring {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        let by = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let hmac = |algorithm, key: &[u8]| hmac::verify(&hmac::Key::new(algorithm, key), message, signature);
        let rsa = |parameters: &'static RsaParameters, n: &[u8], e: &[u8]| {
            RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
        };
        let checked = match (self.algorithm, self.key.kind()) {
            (Algorithm::HS256, DecodingKeyKind::SecretOrDer(key)) => hmac(hmac::HMAC_SHA256, key),
            (Algorithm::HS384, DecodingKeyKind::SecretOrDer(key)) => hmac(hmac::HMAC_SHA384, key),
            (Algorithm::HS512, DecodingKeyKind::SecretOrDer(key)) => hmac(hmac::HMAC_SHA512, key),
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(key)) => by(&known::ECDSA_P256_SHA256_FIXED, key),
            (Algorithm::ES384, DecodingKeyKind::SecretOrDer(key)) => by(&known::ECDSA_P384_SHA384_FIXED, key),
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => by(&known::ED25519, key),
            (algorithm, DecodingKeyKind::RsaModulusExponent { n, e }) => match algorithm {
                Algorithm::RS256 => rsa(&known::RSA_PKCS1_2048_8192_SHA256, n, e),
                Algorithm::RS384 => rsa(&known::RSA_PKCS1_2048_8192_SHA384, n, e),
                Algorithm::RS512 => rsa(&known::RSA_PKCS1_2048_8192_SHA512, n, e),
                Algorithm::PS256 => rsa(&known::RSA_PSS_2048_8192_SHA256, n, e),
                Algorithm::PS384 => rsa(&known::RSA_PSS_2048_8192_SHA384, n, e),
                Algorithm::PS512 => rsa(&known::RSA_PSS_2048_8192_SHA512, n, e),
                _ => Err(ring::error::Unspecified),
            },
            _ => Err(ring::error::Unspecified),
        };
        checked.map_err(|_| signature::Error::new())
    }
}
