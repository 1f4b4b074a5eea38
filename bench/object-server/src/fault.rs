//! What goes wrong on purpose, in front of a server that works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, Method, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// One thing that goes wrong, with the requests that it meets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Only requests of this method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only requests with this in their path or query.
    #[serde(default)]
    pub on: Option<String>,
    /// Of those, so many pass before the first is met.
    #[serde(default)]
    pub skip: u32,
    /// How many are met.
    pub times: u32,
    /// What happens to them.
    pub what: What,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It is read and answered with an S3 error: `(503, "SlowDown")`.
    Refuse(u16, String),
    /// It is served, so many milliseconds later.
    Slow(u64),
    /// It is served when faults are set the next time.
    Hold,
    /// One bit of its body is another when it arrives.
    Corrupt,
    /// Its connection breaks after so many bytes of its body.
    CutRequest(usize),
    /// It is served, and the connection breaks after so many bytes of the answer's body.
    CutAnswer(usize),
    /// It is served, and its answer never arrives.
    LoseAnswer,
}

impl Fault {
    /// Meets the next `times` requests of this method that have `on` in their path or query.
    #[must_use]
    pub fn new(method: &Method, on: &str, times: u32, what: What) -> Self {
        Self { method: Some(method.to_string()), on: Some(on.to_owned()), skip: 0, times, what }
    }

    fn meets(&self, method: &Method, uri: &Uri) -> bool {
        let there = |text: &String| uri.to_string().contains(text.as_str());
        self.method.as_ref().is_none_or(|wanted| wanted == method.as_str())
            && self.on.as_ref().is_none_or(there)
    }
}

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub target: String,
    /// Its `Range`, if it had one.
    pub range: Option<String>,
}

/// The faults to come and the requests that were.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    /// How often faults were set.
    sets: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    coming: Vec<Fault>,
    seen: Vec<Seen>,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong from now on, instead of what was set before.
    pub fn set(&self, faults: Vec<Fault>) {
        self.state().coming = faults;
        self.sets.send_modify(|sets| *sets += 1);
    }

    /// Whether every fault has met all requests that it was for.
    #[must_use]
    pub fn all_met(&self) -> bool {
        self.state().coming.iter().all(|fault| fault.times == 0)
    }

    /// Every request so far, and forgets them.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// Hears when faults are set from now on.
    pub(crate) fn sets(&self) -> watch::Receiver<u64> {
        self.sets.subscribe()
    }

    /// Enters a request and says what shall happen to it.
    pub(crate) fn meet(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<What> {
        let mut state = self.state();
        let range = headers.get("range").and_then(|value| value.to_str().ok()).map(str::to_owned);
        state.seen.push(Seen { method: method.to_string(), target: uri.to_string(), range });
        let fault = state.coming.iter_mut().find(|fault| fault.times > 0 && fault.meets(method, uri))?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        Some(fault.what.clone())
    }
}
