//! JSON Web Tokens: whether one is good, and who it says is asking.
//!
//! Reading and checking a token is the library's; here is what it leaves open: which key may check it, that nothing in it
//! is said twice, that its issuer is one, and what its claims mean here.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use prometheus::IntCounter;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::jwks::{KeySet, NoKey};
use super::verified::{Entry, Verified};
use super::{Principal, Role, is_plain, verify};
use crate::config::auth::Jwt;
use crate::metrics::Metrics;

/// Longest token that is looked at, in bytes.
pub(super) const BYTES_MAX: usize = 8 * 1024;
/// Longest name that a token may give, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Why a token does not tell who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is no good; why, for its owner.
    Bad(String),
    /// It is good, and says nothing that would let anybody in here.
    Stranger(String),
    /// It is signed by a key that is not in the set; perhaps the set is old.
    UnknownKey,
    /// There is no set of keys yet.
    NoKeys,
}

/// A set of keys in force.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) keys: KeySet,
    /// Counts up with every set, so that tokens checked with an earlier one are checked again.
    pub(super) generation: u64,
}

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    jwt: Jwt,
    set: ArcSwapOption<InForce>,
    verified: Verified,
    hits: IntCounter,
    misses: IntCounter,
}

impl Tokens {
    /// Checks tokens as `jwt` says, once there is a set of keys.
    pub(super) fn new(jwt: Jwt, metrics: &Metrics) -> Self {
        verify::install();
        let looked = |result: &str| metrics.auth_tokens.with_label_values(&[result]);
        let (hits, misses) = (looked("hit"), looked("miss"));
        Self { jwt, set: ArcSwapOption::empty(), verified: Verified::default(), hits, misses }
    }

    /// The set of keys in force.
    pub(super) fn in_force(&self) -> Option<Arc<InForce>> {
        self.set.load_full()
    }

    /// Puts another set of keys in force.
    pub(super) fn exchange(&self, keys: KeySet) {
        let generation = self.set.load().as_ref().map_or(0, |set| set.generation + 1);
        self.set.store(Some(Arc::new(InForce { keys, generation })));
    }

    /// Who has this token.
    pub(super) fn find(&self, token: &[u8]) -> Result<Arc<Principal>, Refused> {
        let set = self.set.load();
        let set = set.as_ref().ok_or(Refused::NoKeys)?;
        let now = unix_now_s();
        if let Some(principal) = self.verified.get(token, now, set.generation) {
            self.hits.inc();
            return Ok(principal);
        }
        self.misses.inc();
        let (principal, until_unix_s) = self.check(token, &set.keys)?;
        let entry = Entry { principal: principal.clone(), until_unix_s, generation: set.generation };
        self.verified.put(token, entry);
        Ok(principal)
    }

    /// Whether the token was found good before, and still is.
    pub(super) fn knows(&self, token: &[u8]) -> bool {
        self.verified(token).is_some()
    }

    /// Who has this token, if it was found good before, still is, and lets him do what `needed` may.
    pub(super) fn known(&self, token: &[u8], needed: Role) -> Option<Arc<Principal>> {
        let principal = self.verified(token).filter(|principal| principal.role >= needed)?;
        self.hits.inc();
        Some(principal)
    }

    fn verified(&self, token: &[u8]) -> Option<Arc<Principal>> {
        self.verified.get(token, unix_now_s(), self.set.load().as_ref()?.generation)
    }

    /// Who a token says is asking, and until when, in Unix seconds.
    fn check(&self, token: &[u8], keys: &KeySet) -> Result<(Arc<Principal>, u64), Refused> {
        let bad = |why: &str| Refused::Bad(why.to_owned());
        if token.len() > BYTES_MAX {
            return Err(Refused::Bad(format!("it has more than {BYTES_MAX} bytes")));
        }
        // `none` is no algorithm that the library knows, nor here.
        let header = decode_header(token).map_err(|_| bad("its header cannot be read"))?;
        if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
            return Err(bad("its header asks for what is not known here (crit, enc or zip)"));
        }
        let key = keys.choose(header.kid.as_deref(), header.alg).map_err(|no| match no {
            NoKey::Unknown => Refused::UnknownKey,
            NoKey::Algorithm => bad("its algorithm is not that of its key"),
            NoKey::Unnamed => bad("it names no key (kid), and there are several"),
        })?;
        let claims = decode::<Claims>(token, &key.key, &self.validation(key.algorithm));
        let Claims(claims) = claims.map_err(|error| bad(why(error.kind())))?.claims;
        // The library takes a list of issuers for any of them.
        if claims.get("iss").and_then(Value::as_str) != Some(self.jwt.issuer.as_str()) {
            return Err(bad(why(&ErrorKind::InvalidIssuer)));
        }
        let principal = principal(&self.jwt, &claims)?;
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default();
        Ok((Arc::new(principal), (expires as u64).saturating_add(self.jwt.leeway.as_secs())))
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&self.jwt.issuer]);
        validation.set_audience(&self.jwt.audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.leeway = self.jwt.leeway.as_secs();
        validation.validate_nbf = true;
        validation
    }
}

/// A claim by its name or, where that begins with `/`, by its JSON Pointer (RFC 6901).
fn claim<'a>(claims: &'a HashMap<String, Value>, name: &str) -> Option<&'a Value> {
    let Some(pointer) = name.strip_prefix('/') else { return claims.get(name) };
    let (first, rest) = pointer.split_once('/').map_or((pointer, ""), |(first, rest)| (first, rest));
    let value = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
    if rest.is_empty() { Some(value) } else { value.pointer(&format!("/{rest}")) }
}

fn principal(jwt: &Jwt, claims: &HashMap<String, Value>) -> Result<Principal, Refused> {
    let stranger = |what: &str, name: &str, wants: &str| {
        Refused::Stranger(format!("the token's {what} (claim {name}) {wants}"))
    };
    let of = |name: &str| claim(claims, name);
    let name = of(&jwt.name_claim).and_then(Value::as_str);
    // It ends up in headers and logs.
    let visible = |name: &&str| {
        (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_graphic())
    };
    let name = name.filter(visible).ok_or_else(|| {
        stranger("name", &jwt.name_claim, &format!("wants 1 to {NAME_BYTES_MAX} visible characters of ASCII"))
    })?;
    let tenant = match (of(&jwt.tenant_claim), &jwt.tenant) {
        (None | Some(Value::Null), Some(tenant)) => tenant.as_str(),
        (Some(Value::String(tenant)), _) if is_plain(tenant) => tenant,
        _ => return Err(stranger("tenant", &jwt.tenant_claim, "wants 1 to 64 of A-Z a-z 0-9 . _ -")),
    };
    let role = match of(&jwt.role_claim) {
        None | Some(Value::Null) => jwt.role,
        // Who says what he is and is nothing here is not given what others are who say nothing.
        Some(value) => role(jwt, value),
    };
    let role = role.ok_or_else(|| stranger("role", &jwt.role_claim, "names none that is known here"))?;
    Ok(Principal::of_token(name, role, tenant))
}

/// The highest role that a claim names: one, a list, or words in one text, as in `scope`.
fn role(jwt: &Jwt, value: &Value) -> Option<Role> {
    let known = |name: &str| match jwt.roles.get(name) {
        Some(role) => Some(*role),
        // With a mapping, only what it names counts.
        None if jwt.roles.is_empty() => Role::parse(name),
        None => None,
    };
    let words = |text: &str| text.split_ascii_whitespace().filter_map(known).max();
    match value {
        Value::String(text) => known(text).or_else(|| words(text)),
        Value::Array(list) => list.iter().filter_map(Value::as_str).filter_map(known).max(),
        _ => None,
    }
}

/// What a token's owner reads of a token that is no good. It tells nothing of the keys.
fn why(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidIssuer => "its issuer (iss) is not the one that is believed here",
        ErrorKind::InvalidAudience => "it is not meant for this audience (aud)",
        ErrorKind::MissingRequiredClaim(_) => "it lacks one of exp, iss and aud",
        ErrorKind::InvalidClaimFormat(_) => "its exp or nbf is no time",
        ErrorKind::InvalidSignature => "its signature does not match",
        _ => "it cannot be read",
    }
}

/// The claims of a token. What is said twice is not said: two readers might hear different things.
struct Claims(HashMap<String, Value>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Claims;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of claims")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = HashMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    match claims.entry(name) {
                        Slot::Occupied(_) => return Err(de::Error::custom("a claim is there twice")),
                        Slot::Vacant(slot) => drop(slot.insert(value)),
                    }
                }
                Ok(Claims(claims))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
