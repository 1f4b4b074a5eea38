//! Who may ask for what: API keys, of which only hashes are kept, JSON Web Tokens, and what each role may do.
//!
//! Keys are made by a machine and hold at least 128 bits, so one round of SHA-256 is right: nobody guesses those, slow
//! hashes (argon2) protect what people think up, and would cost every request its milliseconds. For the same reason a
//! key that is short never works. A token is checked once, and then known for as long as it and its key hold. Media URLs
//! with a token in them and signed uploads carry their own permission.

mod jwks;
mod keys;
mod source;
mod strangers;
mod token;
mod verified;
mod verify;

use std::sync::Arc;

use futures::future::OptionFuture;
use http::{HeaderMap, HeaderValue};
use millrace_wire::{Code, Problem};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::glance::{Field, Glance};
use crate::metrics::Metrics;
use crate::request::Route;
use crate::settle;
use keys::Keys;
use source::Source;
use token::{Refused, Tokens};

pub use keys::{KEY_CHARS_MIN, KEYS_MAX};
pub use strangers::Strangers;

/// Tells a worker who asks. Clients cannot send it.
pub const PRINCIPAL: &str = "millrace-principal";
/// Tells a worker for whom. Clients cannot send it.
pub const TENANT: &str = "millrace-tenant";
/// Another place for a key, beside `Authorization: Bearer KEY`.
pub const API_KEY: &str = "x-api-key";

/// What somebody may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads jobs, their events and media.
    Viewer,
    /// Makes and cancels jobs.
    Creator,
    /// What a tenant's administrator does.
    Admin,
    /// Sees the pools.
    Operator,
}

impl Role {
    /// As it stands in files and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Creator => "creator",
            Self::Admin => "admin",
            Self::Operator => "operator",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Creator, Self::Admin, Self::Operator]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The key's name, or the token's.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// For whom it acts.
    pub tenant: String,
    /// Who it is among all: a token's name is not that of a key, and another tenant's is another's.
    pub id: Arc<str>,
    /// Name and tenant as workers are told.
    headers: [HeaderValue; 2],
}

impl Principal {
    fn of_key(name: &str, role: Role, tenant: &str) -> Self {
        Self::new(format!("key {name}"), name, role, tenant)
    }

    fn of_token(name: &str, role: Role, tenant: &str) -> Self {
        Self::new(format!("token {tenant} {name}"), name, role, tenant)
    }

    fn new(id: String, name: &str, role: Role, tenant: &str) -> Self {
        let header = |text: &str| HeaderValue::from_str(text).expect("both were checked to be visible ASCII");
        let headers = [header(name), header(tenant)];
        Self { name: name.to_owned(), role, tenant: tenant.to_owned(), id: id.into(), headers }
    }

    /// What workers are told: [`PRINCIPAL`] and [`TENANT`]. What he may is settled here.
    pub fn headers(&self) -> [HeaderValue; 2] {
        self.headers.clone()
    }
}

/// Whether a text is 1 to 64 of the characters that a name may have.
pub fn is_plain(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=64).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

/// Where keys and tokens stand, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// How many API keys are in force.
    pub keys: usize,
    /// Why what lies in the file of keys now is not in force, if it is not.
    pub error: Option<String>,
    /// The keys that tokens are checked with, where tokens are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<source::State>,
}

/// Why files cannot be used, under the key of `[auth]` that names the one at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct Bad {
    /// `auth.keys` or `auth.jwt.jwks`.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// Who is let in.
#[derive(Debug)]
pub struct Auth {
    keys: Option<Arc<Keys>>,
    tokens: Option<(Arc<Tokens>, Arc<Source>)>,
    metrics: Arc<Metrics>,
}

/// Why somebody is not let in.
#[derive(Debug)]
struct Stop {
    /// What he reads.
    problem: Box<Problem>,
    /// Whether it may be otherwise after [`Auth::look_again`].
    may_change: bool,
}

/// What a route takes, beside what it carries itself; `None` is open to all.
pub fn needed(route: &Route, method: &http::Method, path: &str) -> Option<Role> {
    // A preflight carries no credentials, and answers nothing but whether it may be asked.
    if method == http::Method::OPTIONS {
        return None;
    }
    match route {
        Route::Page | Route::Asset { .. } | Route::OpenApi | Route::Docs => None,
        Route::Livez | Route::Readyz | Route::Upload { .. } => None,
        // `/media/JOB/TOKEN/NAME`; without a token the worker would make one.
        Route::Media if path.starts_with("/media/") && path.split('/').count() > 4 => None,
        Route::Media | Route::Read => Some(Role::Viewer),
        Route::Submit | Route::Video | Route::UploadRequest | Route::Cancel | Route::Retry => {
            Some(Role::Creator)
        }
        Route::Pools => Some(Role::Operator),
    }
}

/// Reads the files that `auth` names, to see whether they are good. No address is asked.
///
/// # Errors
/// The first thing wrong.
pub fn load(auth: &config::auth::Auth) -> Result<(), Bad> {
    let bad = |key| move |message| Bad { key, message };
    if let Some(file) = &auth.keys {
        keys::load(file).map_err(bad(KEYS))?;
    }
    auth.jwt.as_ref().map_or(Ok(()), |jwt| source::load(&jwt.jwks).map_err(bad(JWKS)))
}

/// The key of the file of keys.
const KEYS: &str = "auth.keys";
/// The key of the set of keys.
const JWKS: &str = "auth.jwt.jwks";

impl Auth {
    /// Lets in who has a key or a token as `auth` says.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn new(auth: &config::auth::Auth, metrics: Arc<Metrics>) -> Result<Self, Bad> {
        let bad = |key| move |message| Bad { key, message };
        let keys =
            auth.keys.as_ref().map(|file| Keys::new(file, metrics.clone()).map(Arc::new).map_err(bad(KEYS)));
        let tokens = auth.jwt.as_ref().map(|jwt| {
            let tokens = Arc::new(Tokens::new(jwt.clone(), &metrics));
            let source = Source::new(&jwt.jwks, tokens.clone(), metrics.clone()).map_err(bad(JWKS))?;
            Ok((tokens, Arc::new(source)))
        });
        Ok(Self { keys: keys.transpose()?, tokens: tokens.transpose()?, metrics })
    }

    /// Where keys and tokens stand.
    pub fn state(&self) -> State {
        let (keys, error) = self.keys.as_ref().map(|keys| keys.state()).unwrap_or_default();
        State { keys, error, jwt: self.tokens.as_ref().map(|(_, source)| source.state()) }
    }

    /// Who shows a key or token that is good, whatever he may.
    pub fn known(&self, headers: &HeaderMap) -> Option<Arc<Principal>> {
        self.identify(headers).ok()
    }

    /// Who asks, if he may do what `needed` may.
    fn permit(&self, headers: &HeaderMap, needed: Role) -> Result<Arc<Principal>, Stop> {
        let principal = self.identify(headers)?;
        if principal.role < needed {
            let (has, needed) = (principal.role.as_str(), needed.as_str());
            let detail = format!("{} is a {has}; this wants a {needed}", principal.name);
            return Err(self.refuse(Code::Forbidden, detail, false));
        }
        Ok(principal)
    }

    /// Who asks, whatever he may.
    fn identify(&self, headers: &HeaderMap) -> Result<Arc<Principal>, Stop> {
        let header = Glance::from(headers);
        let Some((credential, bearer)) = presented(&header) else {
            let wants = match (&self.keys, &self.tokens) {
                (_, None) => "an API key, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`, once",
                (None, _) => "a token, as `Authorization: Bearer TOKEN`, once",
                _ => "an API key or a token, as `Authorization: Bearer ...` or `X-Api-Key: KEY`, once",
            };
            return Err(self.refuse(Code::Unauthenticated, format!("this wants {wants}"), false));
        };
        match (&self.keys, &self.tokens) {
            (_, Some((tokens, _))) if bearer && is_token(credential) => {
                tokens.find(credential).map_err(|refused| match refused {
                    Refused::Bad(why) => {
                        self.refuse(Code::Unauthenticated, format!("the token is no good: {why}"), false)
                    }
                    Refused::Stranger(why) => self.refuse(Code::Forbidden, why, false),
                    Refused::UnknownKey => {
                        let detail = "the token is no good: its key (kid) is not known here";
                        self.refuse(Code::Unauthenticated, detail.to_owned(), true)
                    }
                    Refused::NoKeys => {
                        let detail = "the keys that tokens are checked with are not here yet; try again";
                        self.refuse(Code::AuthUnavailable, detail.to_owned(), true)
                    }
                })
            }
            (Some(keys), _) => keys.find(credential).ok_or_else(|| {
                self.refuse(Code::Unauthenticated, "the API key is not known here".to_owned(), false)
            }),
            (None, _) => {
                let detail = "this wants a token, and what came is none".to_owned();
                Err(self.refuse(Code::Unauthenticated, detail, false))
            }
        }
    }

    /// Who shows a token that was found good before, still is, and lets him do what `needed` may.
    pub fn found_good(&self, header: &Glance<'_>, needed: Role) -> Option<Arc<Principal>> {
        let (tokens, _) = self.tokens.as_ref()?;
        let (credential, _) = presented(header).filter(|(_, bearer)| *bearer)?;
        tokens.known(credential, needed)
    }

    /// Whether telling who asks takes checking a signature: he shows a token, and not one that was found good before.
    fn has_to_check(&self, headers: &HeaderMap) -> bool {
        match (&self.tokens, presented(&Glance::from(headers))) {
            (Some((tokens, _)), Some((credential, true))) => {
                is_token(credential) && !tokens.knows(credential)
            }
            _ => false,
        }
    }

    /// Has the tokens' keys asked for again, and waits. False when that may not be now, or did not help.
    async fn look_again(&self) -> bool {
        match &self.tokens {
            Some((_, source)) => source.look_again().await,
            None => false,
        }
    }

    fn refuse(&self, code: Code, detail: String, may_change: bool) -> Stop {
        self.metrics.auth_refused.with_label_values(&[code.as_str()]).inc();
        let mut problem = Problem::new(code, detail);
        if code == Code::AuthUnavailable {
            problem = problem.retry_after(2);
        }
        Stop { problem: Box::new(problem), may_change }
    }
}

/// Whether a credential looks like a token: three parts, of which the first begins like an object of JSON. An API key
/// may have dots, but is made by a machine and will not.
fn is_token(credential: &[u8]) -> bool {
    credential.starts_with(b"eyJ") && memchr::memchr_iter(b'.', credential).count() == 2
}

/// The key or token of a request that has exactly one, and whether it is the bearer's.
fn presented<'a>(header: &Glance<'a>) -> Option<(&'a [u8], bool)> {
    match (header.authorization, header.api_key) {
        (Field::Once(value), Field::Absent) => {
            let (scheme, key) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| (key.trim_ascii(), true))
        }
        (Field::Absent, Field::Once(key)) => Some((key.as_bytes(), false)),
        _ => None,
    }
}

/// Follows the file of keys and the tokens' set of keys until `stop`.
pub async fn run(auth: Arc<Auth>, stop: CancellationToken) {
    let source = auth.tokens.as_ref().map(|(_, source)| source::run(source.clone(), stop.clone()));
    let keys = auth.keys.clone().map(|keys| settle::follow(stop, move || keys.look()));
    tokio::join!(OptionFuture::from(keys), OptionFuture::from(source));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_role() {
        let of = |method: &str, path: &str| {
            let method: http::Method = method.parse().unwrap();
            needed(&crate::request::classify(&method, path).unwrap(), &method, path)
        };
        for (method, path, role) in [
            ("GET", "/", None),
            ("GET", "/livez", None),
            ("GET", "/media/j/token/master.m3u8", None),
            ("PUT", "/upload/aws/k", None),
            ("OPTIONS", "/media/j/master.m3u8", None),
            ("GET", "/media/j/master.m3u8", Some(Role::Viewer)),
            ("GET", "/download/j", Some(Role::Viewer)),
            ("GET", "/jobs/j/events", Some(Role::Viewer)),
            ("GET", "/jobs", Some(Role::Viewer)),
            ("POST", "/jobs", Some(Role::Creator)),
            ("POST", "/upload/request", Some(Role::Creator)),
            ("DELETE", "/jobs/j", Some(Role::Creator)),
            ("POST", "/jobs/j/retry", Some(Role::Creator)),
            ("GET", "/pools", Some(Role::Operator)),
        ] {
            assert_eq!(of(method, path), role, "{method} {path}");
        }
    }
}
