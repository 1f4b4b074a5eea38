//! Who the clients are: a key pair made for one run, and a token that it signed, as an identity provider would.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// Who says so.
pub const ISSUER: &str = "https://id.example/realms/video";
/// For whom.
pub const AUDIENCE: &str = "millrace";
/// How long the token holds: longer than any run.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// One client and its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The provider's public key, as a JWKS.
    pub jwks: String,
    /// The client's token, with the claims that providers like to give: about 600 bytes.
    pub token: String,
}

impl Identity {
    /// Makes both.
    ///
    /// # Errors
    /// The system has no random bytes or no time.
    pub fn new() -> Result<Self> {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let pair = pair.map_err(|_| anyhow!("make a key pair: the system gives no random bytes"))?;
        let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref()).map_err(|error| anyhow!("{error}"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        let jwks = json!({ "keys": [{ "kid": "bench", "kty": "OKP", "crv": "Ed25519", "x": x }] });
        let header = json!({ "alg": "EdDSA", "kid": "bench", "typ": "JWT" });
        let claims = json!({
            "iss": ISSUER, "aud": [AUDIENCE, "account"], "iat": now.as_secs(), "exp": (now + LIFETIME).as_secs(),
            "jti": "0199c0de-0000-7000-8000-0000000000aa", "azp": "upload-page",
            "sub": "0199c0de-0000-7000-8000-0000000000bb", "role": "creator", "tenant": "acme",
            "sid": "0199c0de-0000-7000-8000-0000000000cc", "scope": "openid profile email",
            "email_verified": true, "preferred_username": "alice", "email": "alice@acme.example",
        });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
        Ok(Self { jwks: jwks.to_string(), token: format!("{signed}.{signature}") })
    }
}
