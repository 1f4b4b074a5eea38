//! A set of keys that tokens may be signed with (RFC 7517), read so that nothing in it can be taken for more than it is.

use std::collections::HashMap;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;

/// Largest set, in bytes.
pub(super) const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most keys of a set.
pub(super) const KEYS_MAX: usize = 10_000;
/// Shortest secret of an HMAC, in bytes: SHA-256's own length (RFC 7518, 3.2). A shorter one may be guessed from a token.
const SECRET_BYTES_MIN: usize = 32;
/// Shortest modulus of an RSA key, in bytes: 2048 bits.
const MODULUS_BYTES_MIN: usize = 256;

/// A key, and the one algorithm that it is for. A token never chooses: with an RSA key's public half as the secret of an
/// HMAC, anybody could sign.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// The keys of a set that can be used.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    by_id: HashMap<String, Vec<usize>>,
    /// Of each algorithm the only key; `None` where there are several.
    lone: HashMap<Algorithm, Option<usize>>,
    /// How many keys are in the set that are for something else, or for nothing.
    pub(super) passed_over: usize,
}

/// Why a set has no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    /// None of that id: it may be newer than the set.
    Unknown,
    /// One of that id, for another algorithm.
    Algorithm,
    /// The token names none, and more than one would do.
    Unnamed,
}

/// Where a set comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A file of ours, which may hold secrets.
    File,
    /// A place where others read it, too: a secret there is none.
    Url,
}

impl KeySet {
    /// Reads a set. Keys that cannot be used are passed over (RFC 7517, 5), so that a new kind beside the old ones
    /// breaks nothing.
    ///
    /// # Errors
    /// No set, or none with a key that can be used. What is in it is never told: it may be secret.
    pub(super) fn parse(text: &[u8], origin: Origin) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        if text.len() > BYTES_MAX {
            return Err(format!("it has more than {BYTES_MAX} bytes"));
        }
        let read: Set = serde_json::from_slice(text)
            .map_err(|bad| format!("it is no JSON Web Key Set, at {}:{}", bad.line(), bad.column()))?;
        if read.keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys; at most {KEYS_MAX}", read.keys.len()));
        }
        let mut set = Self::default();
        let mut reason = "it is empty".to_owned();
        for (place, value) in read.keys.into_iter().enumerate() {
            let jwk = serde_json::from_value::<Jwk>(value).map_err(|_| "it is no key".to_owned());
            let added = jwk.and_then(|jwk| {
                let key = usable(&jwk, origin)?;
                set.add(jwk.common.key_id, key)
            });
            if let Err(why) = added {
                set.passed_over += 1;
                reason = format!("keys[{place}]: {why}");
            }
        }
        if set.keys.is_empty() {
            return Err(format!("no key of it can be used; {reason}"));
        }
        Ok(set)
    }

    fn add(&mut self, id: Option<String>, key: Key) -> Result<(), String> {
        let place = self.keys.len();
        if let Some(id) = id {
            let same = self.by_id.entry(id).or_default();
            if same.iter().any(|known| self.keys[*known].algorithm == key.algorithm) {
                return Err("an earlier key has its kid".to_owned());
            }
            same.push(place);
        }
        self.lone.entry(key.algorithm).and_modify(|lone| *lone = None).or_insert(Some(place));
        self.keys.push(key);
        Ok(())
    }

    /// How many keys can be used.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key of a token that says so of itself.
    pub(super) fn choose(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Key, NoKey> {
        let place = match id {
            Some(id) => {
                let same = self.by_id.get(id).ok_or(NoKey::Unknown)?;
                same.iter().find(|place| self.keys[**place].algorithm == algorithm).ok_or(NoKey::Algorithm)?
            }
            // Trying one after the other would let strangers have us check as many signatures as there are keys.
            None => match self.lone.get(&algorithm) {
                Some(Some(place)) => place,
                Some(None) => return Err(NoKey::Unnamed),
                None => return Err(NoKey::Algorithm),
            },
        };
        Ok(&self.keys[*place])
    }
}

/// What a key is for, if it is for checking signatures and strong enough.
fn usable(jwk: &Jwk, origin: Origin) -> Result<Key, String> {
    let common = &jwk.common;
    if common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Err("its use is not sig".to_owned());
    }
    if common.key_operations.as_ref().is_some_and(|may| !may.contains(&KeyOperations::Verify)) {
        return Err("its key_ops are without verify".to_owned());
    }
    let (default, others): (Algorithm, &[Algorithm]) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => {
            use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
            (RS256, &[RS256, RS384, RS512, PS256, PS384, PS512])
        }
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => (Algorithm::ES256, &[]),
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P384 => (Algorithm::ES384, &[]),
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, &[])
        }
        AlgorithmParameters::OctetKey(_) if origin == Origin::Url => {
            return Err("a secret (kty oct) that is read from a URL is none; it wants a file".to_owned());
        }
        AlgorithmParameters::OctetKey(_) => {
            (Algorithm::HS256, &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512])
        }
        _ => return Err("its kty or crv is none of those that are known here".to_owned()),
    };
    let algorithm = match common.key_algorithm {
        None => default,
        Some(said) => Algorithm::try_from(said)
            .ok()
            .filter(|said| *said == default || others.contains(said))
            .ok_or_else(|| unfit(said))?,
    };
    let key = DecodingKey::from_jwk(jwk).map_err(|_| "it is not in base64url".to_owned())?;
    let strong = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, .. } => significant(n) >= MODULUS_BYTES_MIN,
        DecodingKeyKind::SecretOrDer(bytes) => match algorithm {
            Algorithm::ES256 => bytes.len() == 65,
            Algorithm::ES384 => bytes.len() == 97,
            Algorithm::EdDSA => bytes.len() == 32,
            _ => bytes.len() >= SECRET_BYTES_MIN,
        },
    };
    if !strong {
        return Err(format!(
            "it is too short: an RSA key has at least {} bits, a secret {SECRET_BYTES_MIN} bytes, a curve's key its own length",
            MODULUS_BYTES_MIN * 8
        ));
    }
    Ok(Key { algorithm, key })
}

fn unfit(said: KeyAlgorithm) -> String {
    format!("its alg ({said}) is not for keys of its kty")
}

fn significant(number: &[u8]) -> usize {
    number.len() - number.iter().take_while(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EC: &str = r#""kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA""#;

    fn rsa(bytes: usize) -> String {
        let n = "_".repeat(bytes * 4 / 3) + ["", "w", "8"][bytes % 3 * 2 % 3];
        format!(r#""kty":"RSA","e":"AQAB","n":"{n}""#)
    }

    fn secret(chars: usize) -> String {
        format!(r#""kty":"oct","k":"{}""#, "A".repeat(chars))
    }

    fn read(keys: &[String], origin: Origin) -> Result<KeySet, String> {
        let keys: Vec<String> = keys.iter().map(|key| format!("{{{key}}}")).collect();
        KeySet::parse(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes(), origin)
    }

    #[test]
    fn a_key_is_for_one_algorithm_whatever_a_token_says() {
        let named = |id: &str, key: &str| format!(r#"{key},"kid":"{id}""#);
        let keys = [
            named("e", EC),
            named("r", &rsa(258)),
            named("p", &(rsa(258) + r#","alg":"PS256""#)),
            named("s", &secret(44)),
        ];
        let set = read(&keys, Origin::File).unwrap();
        for (id, right) in [
            ("e", Algorithm::ES256),
            ("r", Algorithm::RS256),
            ("p", Algorithm::PS256),
            ("s", Algorithm::HS256),
        ] {
            use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, RS256, RS512};
            for said in [ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, RS256, RS512] {
                let chosen = set.choose(Some(id), said).map(|key| key.algorithm);
                assert_eq!(
                    chosen,
                    if said == right { Ok(right) } else { Err(NoKey::Algorithm) },
                    "{id} {said:?}"
                );
            }
        }
        assert_eq!(set.choose(Some("x"), Algorithm::ES256).err(), Some(NoKey::Unknown));
        assert!(set.choose(None, Algorithm::ES256).is_ok(), "the only one of its kind needs no name");
        assert_eq!(set.choose(None, Algorithm::EdDSA).err(), Some(NoKey::Algorithm));
        let two = read(&[named("a", EC), EC.to_owned()], Origin::Url).unwrap();
        assert_eq!(two.choose(None, Algorithm::ES256).err(), Some(NoKey::Unnamed));
    }

    #[test]
    fn what_is_no_key_for_signatures_is_passed_over_and_told() {
        for (key, wants) in [
            (format!(r#"{EC},"use":"enc""#), "its use is not sig"),
            (format!(r#"{EC},"key_ops":["encrypt"]"#), "its key_ops are without verify"),
            (format!(r#"{EC},"alg":"HS256""#), "its alg (HS256) is not for keys of its kty"),
            (format!(r#"{EC},"alg":"none""#), "is not for keys of its kty"),
            (rsa(258) + r#","alg":"HS256""#, "its alg (HS256)"),
            (EC.replace("P-256", "P-521"), "its kty or crv"),
            (EC.replace("P-256", "P-384"), "too short"),
            (r#""kty":"XX""#.to_owned(), "its kty or crv"),
            (r#""no":1"#.to_owned(), "its kty or crv"),
            (rsa(129), "too short"),
            (secret(40), "too short"),
            (secret(45), "not in base64url"),
        ] {
            let alone = read(std::slice::from_ref(&key), Origin::File).unwrap_err();
            assert!(alone.contains(wants) && !alone.contains("AAAA"), "{key}: {alone}");
            let beside = read(&[key, format!(r#"{EC},"kid":"e""#)], Origin::File).unwrap();
            assert_eq!((beside.len(), beside.passed_over), (1, 1));
        }
        assert!(read(&[secret(44)], Origin::Url).unwrap_err().contains("it wants a file"));
        let twice = read(&[format!(r#"{EC},"kid":"e""#), format!(r#"{EC},"kid":"e""#)], Origin::Url).unwrap();
        assert_eq!((twice.len(), twice.passed_over), (1, 1));
    }

    #[test]
    fn what_is_no_set_is_refused_and_a_large_one_is_read() {
        for text in [
            "",
            "<html>",
            "[]",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":[1]}"#,
            r#"{"keys":[]}"#,
            "{\"keys\":[\"\u{7f}",
        ] {
            assert!(KeySet::parse(text.as_bytes(), Origin::Url).is_err(), "{text}");
        }
        assert!(KeySet::parse(&[b'['; 100_000], Origin::Url).is_err(), "depth");
        let many = |count: usize| (0..count).map(|n| format!(r#"{EC},"kid":"{n}""#)).collect::<Vec<_>>();
        let set = read(&many(KEYS_MAX), Origin::Url).unwrap();
        assert!(set.len() == KEYS_MAX && set.choose(Some("9999"), Algorithm::ES256).is_ok());
        assert!(read(&many(KEYS_MAX + 1), Origin::Url).unwrap_err().contains("at most 10000"));
    }
}
