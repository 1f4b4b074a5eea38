//! What webhooks are signed with.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Begins a secret, by the specification.
const PREFIX: &str = "whsec_";
/// Bytes of a secret, by the specification.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// One secret or several: while receivers change from one to the next, both sign.
pub struct Secrets(Vec<Vec<u8>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Reads a file with one `whsec_…` in each line.
    ///
    /// # Errors
    /// Which line is wrong and what would be right, and nothing of what stands there.
    pub fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        Self::parse(&text).map_err(|wrong| format!("{}: {wrong}", file.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wants =
            "whsec_ and 24 to 64 bytes in base64, as `echo whsec_$(openssl rand -base64 32)` makes it";
        let mut secrets = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let secret = line.trim().strip_prefix(PREFIX).and_then(|key| STANDARD.decode(key).ok());
            let secret = secret.filter(|secret| BYTES.contains(&secret.len()));
            secrets.push(secret.ok_or_else(|| format!("line {} must be {wants}", number + 1))?);
        }
        if secrets.is_empty() {
            return Err(format!("it is empty; it must hold {wants}"));
        }
        Ok(Self(secrets))
    }

    /// The value of `webhook-signature`: a signature by each secret, with spaces between.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let sign = |secret: &Vec<u8>| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_that_the_specification_shows() {
        let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn while_secrets_change_both_sign() {
        let (old, new) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let one = |text: &str| Secrets::parse(text).unwrap().sign("id", 7, b"{}");
        assert_eq!(one(&format!("{new}\n\n{old}\n")), format!("{} {}", one(new), one(old)));
    }

    #[test]
    fn a_bad_secret_is_told_by_its_line_and_not_repeated() {
        for (text, says) in [
            ("", "it is empty"),
            ("\n \n", "it is empty"),
            ("plain-words", "line 1 must be whsec_"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_c2hvcnQ=", "line 2 must be whsec_"),
            ("whsec_not base64", "line 1 must be whsec_"),
        ] {
            let error = Secrets::parse(text).unwrap_err();
            assert!(error.starts_with(says) && !error.contains("c2hvcnQ"), "{text:?}: {error}");
        }
    }
}
