//! Who may ask for what: API keys, of which only hashes are kept, and what each role may do.
//!
//! Keys are made by a machine and hold at least 128 bits, so one round of SHA-256 is right: nobody guesses those, slow
//! hashes (argon2) protect what people think up, and would cost every request its milliseconds. For the same reason a
//! key that is short never works. Media URLs with a token in them and signed uploads carry their own permission.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::HeaderMap;
use millrace_wire::{Code, Problem};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::metrics::Metrics;
use crate::reload::INTERVAL;
use crate::request::Route;
use crate::settle::Settle;

/// Shortest key that works, in characters.
pub const KEY_CHARS_MIN: usize = 32;
/// Most keys of a file.
pub const KEYS_MAX: usize = 10_000;
/// Tells a worker who asks. Clients cannot send it.
pub const PRINCIPAL: &str = "millrace-principal";
/// Tells a worker for whom. Clients cannot send it.
pub const TENANT: &str = "millrace-tenant";
/// Tells a worker in which role. Clients cannot send it.
pub const ROLE: &str = "millrace-role";
/// Another place for a key, beside `Authorization: Bearer KEY`.
pub const API_KEY: &str = "x-api-key";

/// What somebody may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The key's name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// For whom it acts.
    pub tenant: String,
}

/// The keys in force, by their hash.
type Keys = HashMap<[u8; 32], Arc<Principal>>;

/// Where the file of keys stands, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// How many keys are in force.
    pub keys: usize,
    /// Why what lies in the file now is not in force, if it is not.
    pub error: Option<String>,
}

/// The keys, followed.
#[derive(Debug)]
pub struct Auth {
    keys: ArcSwap<Keys>,
    file: std::path::PathBuf,
    metrics: Arc<Metrics>,
    followed: Mutex<Followed>,
}

#[derive(Debug)]
struct Followed {
    error: Option<String>,
    content: Settle<Result<String, String>>,
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
        Route::Submit | Route::UploadRequest | Route::Cancel => Some(Role::Creator),
        Route::Pools => Some(Role::Operator),
    }
}

/// Reads the file of keys: `NAME ROLE TENANT SHA256` per line, in hex; `#` begins a comment.
///
/// # Errors
/// The first thing wrong, with its line. Never the line itself: somebody may have put a key there.
pub fn load(file: &Path) -> Result<usize, String> {
    parse(file, &see(file)).map(|keys| keys.len())
}

fn see(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

fn parse(file: &Path, text: &Result<String, String>) -> Result<Keys, String> {
    let mut keys = Keys::new();
    for (place, line) in text.as_ref().map_err(Clone::clone)?.lines().enumerate() {
        let bad = |what: &str| format!("{}:{}: {what}", file.display(), place + 1);
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let [name, role, tenant, hash] = words[..] else {
            if words.is_empty() {
                continue;
            }
            return Err(bad("it wants four words: NAME ROLE TENANT SHA256"));
        };
        let plain = |text: &str| {
            text.len() <= 64 && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        };
        if !plain(name) || !plain(tenant) {
            return Err(bad("name and tenant have at most 64 of A-Z a-z 0-9 . _ -"));
        }
        let role =
            Role::parse(role).ok_or_else(|| bad("the role is none of viewer, creator, admin, operator"))?;
        let mut digest = [0; 32];
        hex::decode_to_slice(hash, &mut digest)
            .map_err(|_| bad("the hash is no SHA-256 in hex, which has 64 digits"))?;
        let principal = Principal { name: name.to_owned(), role, tenant: tenant.to_owned() };
        if keys.insert(digest, Arc::new(principal)).is_some() {
            return Err(bad("the key is that of an earlier line"));
        }
        if keys.len() > KEYS_MAX {
            return Err(bad(&format!("more than {KEYS_MAX} keys")));
        }
    }
    if keys.is_empty() {
        return Err(format!("{} holds no key, so nobody could ask for anything", file.display()));
    }
    Ok(keys)
}

impl Auth {
    /// Admits who has a key in `file`.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn new(file: &Path, metrics: Arc<Metrics>) -> Result<Self, String> {
        let seen = see(file);
        let keys = parse(file, &seen)?;
        metrics.auth_keys.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
        metrics.auth_keys_success.set(1);
        let followed = Mutex::new(Followed { error: None, content: Settle::new(seen) });
        Ok(Self { keys: ArcSwap::from_pointee(keys), file: file.to_owned(), metrics, followed })
    }

    /// Where the file stands.
    pub fn state(&self) -> State {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        State { keys: self.keys.load().len(), error: followed.error.clone() }
    }

    /// Who asks, if the route wants to know and he may.
    ///
    /// # Errors
    /// 401 without a key that is in force, 403 with one that may not.
    pub fn admit(
        &self,
        route: &Route,
        method: &http::Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Principal>>, Box<Problem>> {
        needed(route, method, path).map(|needed| self.holder(headers, needed)).transpose()
    }

    /// Whose key a request shows, if it may do what `needed` may.
    fn holder(&self, headers: &HeaderMap, needed: Role) -> Result<Arc<Principal>, Box<Problem>> {
        let refuse = |code, detail: String| {
            self.metrics.auth_refused.with_label_values(&[Code::as_str(code)]).inc();
            Err(Box::new(Problem::new(code, detail)))
        };
        let Some(key) = presented(headers) else {
            let detail = "this wants an API key, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`, once";
            return refuse(Code::Unauthenticated, detail.to_owned());
        };
        let long_enough = key.len() >= KEY_CHARS_MIN;
        // Found by its hash, so that how long it takes tells nothing of the keys.
        let digest: [u8; 32] = Sha256::digest(key).into();
        match self.keys.load().get(&digest).filter(|_| long_enough) {
            None => refuse(Code::Unauthenticated, "the API key is not known here".to_owned()),
            Some(principal) if principal.role < needed => refuse(
                Code::Forbidden,
                format!(
                    "{} is a {}; this wants a {}",
                    principal.name,
                    principal.role.as_str(),
                    needed.as_str()
                ),
            ),
            Some(principal) => Ok(principal.clone()),
        }
    }

    /// Who asks, if it is an operator; for the admin listener.
    ///
    /// # Errors
    /// As of [`Auth::admit`].
    pub fn admit_operator(&self, headers: &HeaderMap) -> Result<Arc<Principal>, Box<Problem>> {
        self.holder(headers, Role::Operator)
    }

    fn look(&self) {
        let seen = see(&self.file);
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = &mut *followed;
        // Half a file would lock half of the clients out, hence two looks.
        let Some(seen) = followed.content.saw(seen) else { return };
        match parse(&self.file, seen) {
            Ok(keys) => {
                info!(keys = keys.len(), "API keys reloaded");
                self.metrics.auth_keys.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
                self.metrics.auth_keys_success.set(1);
                self.keys.store(Arc::new(keys));
                followed.error = None;
            }
            Err(bad) => {
                error!(error = %bad, "API keys not reloaded; those in force stay");
                self.metrics.auth_keys_success.set(0);
                followed.error = Some(bad);
            }
        }
    }
}

/// The key of a request that has exactly one.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get_all(http::header::AUTHORIZATION).iter().map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    let own = headers.get_all(API_KEY).iter().map(|value| Some(value.as_bytes()));
    let mut all = bearer.chain(own);
    let first = all.next()??;
    all.next().is_none().then_some(first)
}

/// Follows the file until `stop`.
pub async fn run(auth: Arc<Auth>, stop: CancellationToken) {
    let mut look = tokio::time::interval(INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
        }
        let auth = auth.clone();
        // What goes wrong is logged, counted and shown where it arises.
        let _ = tokio::task::spawn_blocking(move || auth.look()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Keys, String> {
        parse(Path::new("keys"), &Ok(text.to_owned()))
    }

    #[test]
    fn a_file_of_keys_is_read_and_an_error_names_its_line_but_not_its_text() {
        let hash = "a".repeat(64);
        let keys = read(&format!("# who\n\nci creator acme {hash} # the build\n")).unwrap();
        let principal = keys.values().next().unwrap();
        assert_eq!((principal.name.as_str(), principal.role), ("ci", Role::Creator));
        for (text, wants) in [
            (format!("ci creator {hash}"), "keys:1: it wants four words"),
            (format!("\nci root acme {hash}"), "keys:2: the role is none of"),
            (format!("c/i viewer acme {hash}"), "keys:1: name and tenant"),
            ("ci viewer acme secret-in-plain-text".to_owned(), "keys:1: the hash is no SHA-256"),
            (format!("a viewer t {hash}\nb viewer t {hash}"), "keys:2: the key is that of an earlier line"),
            ("# none".to_owned(), "keys holds no key"),
        ] {
            let shown = read(&text).unwrap_err();
            assert!(shown.contains(wants) && !shown.contains("secret") && !shown.contains("aaaa"), "{shown}");
        }
    }

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
            ("GET", "/pools", Some(Role::Operator)),
        ] {
            assert_eq!(of(method, path), role, "{method} {path}");
        }
    }
}
