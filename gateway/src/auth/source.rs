//! Where the set of keys comes from: a file that is followed, or an address that is asked again and again.
//!
//! Whatever goes wrong, the last good set stays: an identity provider that is away for an hour must not lock everybody
//! out. A token with a key that is not in the set has it asked for at once, but strangers can write such tokens, so that
//! happens once in a while and no more, however many there are.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CACHE_CONTROL, HeaderMap};
use rand::Rng as _;
use reqwest::Url;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::jwks::{BYTES_MAX, KeySet, Origin};
use super::token::Tokens;
use crate::config::auth::Jwks;
use crate::metrics::Metrics;
use crate::settle::{self, Settle};

/// Longest time for the whole answer of an address.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a set holds whose answer says nothing of that.
const REFRESH: Duration = Duration::from_secs(300);
/// Least time between two questions that tokens with unknown keys cause.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(10);
/// How long a request with such a token waits for the answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The wait after a first failure; it doubles with each, up to the longest time between two answers.
const BACKOFF: Duration = Duration::from_secs(1);

/// Where the set of keys stands, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// The file or the address.
    pub source: String,
    /// How many keys are in force.
    pub keys: usize,
    /// How many others are in the set, which cannot be used.
    pub passed_over: usize,
    /// Seconds since the source last gave a good set.
    pub good_age_s: Option<u64>,
    /// Why what it gave last is not in force, if it is not.
    pub error: Option<String>,
}

/// Keeps the keys of [`Tokens`] up to date.
#[derive(Debug)]
pub(super) struct Source {
    tokens: Arc<Tokens>,
    place: Place,
    metrics: Arc<Metrics>,
    followed: Mutex<Followed>,
    asking: Mutex<Asking>,
    nudge: Notify,
    rounds: watch::Sender<u64>,
    failures: AtomicU32,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Url { url: Url, client: reqwest::Client, min_refresh: Duration, max_refresh: Duration },
}

#[derive(Debug)]
struct Followed {
    /// What was last seen; of a file, once it has stood still.
    content: Settle<Result<Vec<u8>, String>>,
    in_force: Option<[u8; 32]>,
    good_at: Option<Instant>,
    error: Option<String>,
}

/// Who asked for the set out of turn.
#[derive(Debug, Default)]
struct Asking {
    under_way: bool,
    last: Option<Instant>,
}

/// Why an address gave no set.
struct Failed {
    /// A metric label.
    outcome: &'static str,
    message: String,
}

/// Reads the set in a file, to see whether it is good. An address is not asked.
///
/// # Errors
/// What is wrong with it.
pub(super) fn load(jwks: &Jwks) -> Result<(), String> {
    match jwks {
        Jwks::Url { ca: Some(ca), .. } => certificates(ca).map(drop),
        Jwks::Url { ca: None, .. } => Ok(()),
        Jwks::File(file) => parse(file, &see(file)).map(drop),
    }
}

fn see(file: &PathBuf) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

fn parse(file: &std::path::Path, seen: &Result<Vec<u8>, String>) -> Result<KeySet, String> {
    let text = seen.as_ref().map_err(Clone::clone)?;
    KeySet::parse(text, Origin::File).map_err(|bad| format!("{}: {bad}", file.display()))
}

fn certificates(ca: &PathBuf) -> Result<Vec<reqwest::Certificate>, String> {
    let read = reqwest::Certificate::from_pem_bundle(&see(ca)?)
        .map_err(|error| format!("{} is no PEM: {error}", ca.display()))?;
    if read.is_empty() {
        return Err(format!("{} holds no certificate in PEM", ca.display()));
    }
    Ok(read)
}

impl Source {
    /// Reads the file at once; an address is asked when it runs.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn new(jwks: &Jwks, tokens: Arc<Tokens>, metrics: Arc<Metrics>) -> Result<Self, String> {
        let mut followed =
            Followed { content: Settle::new(Err(String::new())), in_force: None, good_at: None, error: None };
        let place = match jwks {
            Jwks::File(file) => {
                let seen = see(file);
                let keys = parse(file, &seen)?;
                metrics.auth_jwks_keys.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
                metrics.auth_jwks_success.set(1);
                tokens.exchange(keys);
                followed.content = Settle::new(seen);
                followed.good_at = Some(Instant::now());
                Place::File(file.clone())
            }
            Jwks::Url { url, ca, min_refresh, max_refresh } => {
                let mut client = reqwest::Client::builder()
                    .no_proxy()
                    // An address that may send us elsewhere may send us anywhere.
                    .redirect(reqwest::redirect::Policy::none())
                    .timeout(FETCH_TIMEOUT)
                    .pool_max_idle_per_host(0)
                    .user_agent(concat!("millrace-gateway/", env!("CARGO_PKG_VERSION")));
                if let Some(ca) = ca {
                    client = client.tls_certs_only(certificates(ca)?);
                }
                let client = client.build().map_err(|error| format!("no client for it: {error}"))?;
                let (min_refresh, max_refresh) = (*min_refresh, *max_refresh);
                Place::Url { url: url.clone(), client, min_refresh, max_refresh }
            }
        };
        Ok(Self {
            tokens,
            place,
            metrics,
            followed: Mutex::new(followed),
            asking: Mutex::default(),
            nudge: Notify::new(),
            rounds: watch::Sender::new(0),
            failures: AtomicU32::new(0),
        })
    }

    /// Where the set stands.
    pub(super) fn state(&self) -> State {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let set = self.tokens.in_force();
        State {
            source: match &self.place {
                Place::File(file) => file.display().to_string(),
                Place::Url { url, .. } => shown(url),
            },
            keys: set.as_ref().map_or(0, |set| set.keys.len()),
            passed_over: set.as_ref().map_or(0, |set| set.keys.passed_over),
            good_age_s: followed.good_at.map(|at| at.elapsed().as_secs()),
            error: followed.error.clone(),
        }
    }

    /// Has the address asked again for a token that needs another set, and waits for the answer. False when that may
    /// not be, or did not help in time.
    pub(super) async fn look_again(&self) -> bool {
        if matches!(self.place, Place::File(_)) {
            return false;
        }
        let mut rounds = self.rounds.subscribe();
        {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            if !asking.under_way {
                if asking.last.is_some_and(|at| at.elapsed() < UNKNOWN_KEY_INTERVAL) {
                    return false;
                }
                *asking = Asking { under_way: true, last: Some(Instant::now()) };
                self.nudge.notify_one();
            }
        }
        matches!(tokio::time::timeout(PATIENCE, rounds.changed()).await, Ok(Ok(())))
    }

    fn took(&self, text: &[u8], parsed: Result<KeySet, String>) -> Result<(), String> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let digest: [u8; 32] = Sha256::digest(text).into();
        let same = followed.in_force == Some(digest);
        match parsed {
            Ok(keys) => {
                followed.good_at = Some(Instant::now());
                followed.error = None;
                self.metrics.auth_jwks_success.set(1);
                // The same set again ends no token.
                if !same {
                    let (count, passed_over) = (keys.len(), keys.passed_over);
                    info!(keys = count, passed_over, "token keys exchanged");
                    self.metrics.auth_jwks_keys.set(i64::try_from(count).unwrap_or(i64::MAX));
                    self.tokens.exchange(keys);
                    followed.in_force = Some(digest);
                }
                Ok(())
            }
            Err(bad) => {
                self.failed(&mut followed, &bad);
                Err(bad)
            }
        }
    }

    fn failed(&self, followed: &mut Followed, bad: &str) {
        self.metrics.auth_jwks_success.set(0);
        if followed.error.as_deref() != Some(bad) {
            error!(error = %bad, "token keys not exchanged; those in force stay");
            followed.error = Some(bad.to_owned());
        }
    }

    /// Looks at the file, if it is one.
    fn look(&self) {
        let Place::File(file) = &self.place else { return };
        let settled = {
            let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            followed.content.saw(see(file)).cloned()
        };
        match settled {
            None => {}
            Some(Ok(text)) => {
                let parsed = parse(file, &Ok(text.clone()));
                // Told and counted where it arises.
                let _ = self.took(&text, parsed);
            }
            Some(Err(bad)) => {
                self.failed(&mut self.followed.lock().unwrap_or_else(PoisonError::into_inner), &bad)
            }
        }
    }

    /// Asks the address once; says when to ask again.
    async fn ask(&self, url: &Url, client: &reqwest::Client, min: Duration, max: Duration) -> Duration {
        let answer = fetch(url, client).await;
        let taken = answer.and_then(|(text, holds)| {
            let parsed = KeySet::parse(&text, Origin::Url);
            let parsed = parsed.map_err(|bad| format!("{}: {bad}", shown(url)));
            self.took(&text, parsed).map_err(|message| Failed { outcome: "bad", message })?;
            Ok(holds)
        });
        let count = |outcome: &str| self.metrics.auth_jwks_fetches.with_label_values(&[outcome]).inc();
        match taken {
            Ok(holds) => {
                count("ok");
                self.failures.store(0, Ordering::Relaxed);
                holds.unwrap_or(REFRESH).clamp(min, max)
            }
            Err(Failed { outcome, message }) => {
                count(outcome);
                if outcome != "bad" {
                    let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
                    self.failed(&mut followed, &message);
                }
                let failures = self.failures.fetch_add(1, Ordering::Relaxed);
                BACKOFF.saturating_mul(1 << failures.min(16)).min(max)
            }
        }
    }
}

/// An address without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Neither can fail for an address with a host, which http and https have.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    url.to_string()
}

/// The text at an address, and how long it says that it holds.
async fn fetch(url: &Url, client: &reqwest::Client) -> Result<(Vec<u8>, Option<Duration>), Failed> {
    let broken = |error: reqwest::Error| {
        let outcome = if error.is_timeout() { "timeout" } else { "unreachable" };
        let error = error.without_url();
        // The last of the chain says most: the ones before say that something failed.
        let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let why = chain.last().map(ToString::to_string).unwrap_or_default();
        Failed { outcome, message: format!("{} does not answer: {why}", shown(url)) }
    };
    let mut answer = client.get(url.clone()).send().await.map_err(broken)?;
    if answer.status() != http::StatusCode::OK {
        let message = format!("{} answers {}", shown(url), answer.status());
        return Err(Failed { outcome: "status", message });
    }
    let holds = max_age(answer.headers());
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(broken)? {
        if text.len() + piece.len() > BYTES_MAX {
            let message = format!("{} has more than {BYTES_MAX} bytes", shown(url));
            return Err(Failed { outcome: "bad_size", message });
        }
        text.extend_from_slice(&piece);
    }
    Ok((text, holds))
}

/// How long an answer may be used without asking again, if it says so (RFC 9111, 5.2.2).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    directives.find_map(|directive| {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => Some(Duration::ZERO),
            "max-age" => value.trim_matches('"').parse().ok().map(Duration::from_secs),
            _ => None,
        }
    })
}

/// Follows the file or asks the address until `stop`.
pub(super) async fn run(source: Arc<Source>, stop: CancellationToken) {
    let Place::Url { url, client, min_refresh, max_refresh } = &source.place else {
        return settle::follow(stop, move || source.look()).await;
    };
    let under_way = |now| source.asking.lock().unwrap_or_else(PoisonError::into_inner).under_way = now;
    loop {
        under_way(true);
        let wait = tokio::select! {
            () = stop.cancelled() => return,
            wait = source.ask(url, client, *min_refresh, *max_refresh) => wait,
        };
        under_way(false);
        source.rounds.send_modify(|rounds| *rounds += 1);
        // Gateways that were started together need not ask together.
        let wait = wait.mul_f64(rand::rng().random_range(0.9..=1.0));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = source.nudge.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_long_it_holds() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CACHE_CONTROL, value.parse().unwrap());
            }
            max_age(&headers).map(|holds| holds.as_secs())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["public, Max-Age=600, must-revalidate"]), Some(600));
        assert_eq!(of(&["public", "max-age=\"7\""]), Some(7));
        assert_eq!(of(&["no-store"]), Some(0));
        assert_eq!(of(&["max-age=-1"]), None);
        assert_eq!(of(&["max-age=99999999999999999999999"]), None);
        assert_eq!(of(&["s-maxage=5"]), None);
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let url: Url = "https://me:secret@id.example/keys?token=secret".parse().unwrap();
        assert_eq!(shown(&url), "https://id.example/keys");
    }
}
