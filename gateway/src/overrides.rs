//! What operators change beside the routing file: drain, undrain and weight, for a while or until taken back.
//!
//! An override is kept by the pool's name or the worker's address, so a reload neither drops nor moves it; one whose
//! target is gone waits for it to come back. Overrides live in memory: a restart returns to the routing file, which is
//! the place for what must last. Keeping them in a file of their own was rejected, since then two files would say what
//! is in force, and an old drain would surprise whoever starts a gateway anew.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use millrace_wire::PoolId;
use serde::{Deserialize, Serialize};

use crate::audit::Actor;

/// Most overrides at a time.
pub const OVERRIDES_MAX: usize = 1024;
/// Longest time of an override that has one.
pub const TTL_MAX: Duration = Duration::from_secs(365 * 86_400);

/// What an override is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A pool, by its name.
    Pool(PoolId),
    /// A worker, by its address.
    Worker(SocketAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(pool) => write!(f, "{pool}"),
            Self::Worker(address) => write!(f, "{address}"),
        }
    }
}

/// Which value an override replaces. A target has at most one override of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Whether it takes new jobs.
    Drain,
    /// Its preference among pools.
    Weight,
}

/// The value it puts there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Whether it takes no new jobs.
    Drain(bool),
    /// Its preference among pools.
    Weight(f64),
}

impl Change {
    /// Which value it replaces.
    pub fn kind(self) -> Kind {
        match self {
            Self::Drain(_) => Kind::Drain,
            Self::Weight(_) => Kind::Weight,
        }
    }
}

/// One override.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// What it is about.
    pub target: Target,
    /// What it says.
    pub change: Change,
    /// Who set it.
    pub by: Actor,
    /// When it was set.
    pub since: SystemTime,
    /// Until when it holds, by the fleet's clock; without, until it is removed or the gateway ends.
    pub until: Option<Duration>,
}

/// An override as it stands in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The pool's name or the worker's address.
    pub target: String,
    /// `drain`, `undrain` or `weight`.
    pub change: String,
    /// The weight, for `weight`.
    pub weight: Option<f64>,
    /// Who set it.
    pub by: Actor,
    /// When it was set, RFC 3339.
    pub since: String,
    /// Until when it holds, RFC 3339; without, until it is removed or the gateway ends.
    pub until: Option<String>,
    /// Seconds until then.
    pub left_s: Option<f64>,
    /// Whether its target is among the gateway's pools and workers now.
    pub present: bool,
}

/// An RFC 3339 time, in whole seconds.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

impl Override {
    /// As JSON shows it at `now` of the fleet's clock.
    pub fn record(&self, now: Duration, present: bool) -> Record {
        let left = self.until.map(|until| until.saturating_sub(now));
        Record {
            target: self.target.to_string(),
            change: match self.change {
                Change::Drain(true) => "drain",
                Change::Drain(false) => "undrain",
                Change::Weight(_) => "weight",
            }
            .to_owned(),
            weight: match self.change {
                Change::Weight(weight) => Some(weight),
                Change::Drain(_) => None,
            },
            by: self.by.clone(),
            since: rfc3339(self.since),
            until: left.map(|left| rfc3339(SystemTime::now() + left)),
            left_s: left.map(|left| left.as_secs_f64()),
            present,
        }
    }
}

/// All overrides, and how often they have changed.
#[derive(Debug)]
pub struct Overrides {
    /// Tells this process's revisions from those of an earlier one.
    epoch: u128,
    revision: u64,
    set: BTreeMap<(Target, Kind), Override>,
}

impl Default for Overrides {
    fn default() -> Self {
        let born = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { epoch: born.map_or(0, |born| born.as_micros()), revision: 0, set: BTreeMap::new() }
    }
}

impl Overrides {
    /// The HTTP entity tag of what is set now: it changes with every change, expiry included.
    pub fn etag(&self) -> String {
        format!("\"{:x}-{}\"", self.epoch, self.revision)
    }

    /// Whether an `If-Match` field allows a change now.
    pub fn matches(&self, if_match: &str) -> bool {
        let etag = self.etag();
        if_match.split(',').map(str::trim).any(|known| known == "*" || known == etag)
    }

    /// All, in the order of their targets.
    pub fn iter(&self) -> impl Iterator<Item = &Override> {
        self.set.values()
    }

    /// Whether one more target has room.
    pub fn full(&self) -> bool {
        self.set.len() >= OVERRIDES_MAX
    }

    /// Whether anything is set for this target.
    pub fn has(&self, target: &Target) -> bool {
        [Kind::Drain, Kind::Weight].iter().any(|kind| self.get(target, *kind).is_some())
    }

    /// One of them.
    pub fn get(&self, target: &Target, kind: Kind) -> Option<&Override> {
        self.set.get(&(target.clone(), kind))
    }

    /// Sets one; answers the one that it replaces.
    pub fn put(&mut self, change: Override) -> Option<Override> {
        self.revision += 1;
        self.set.insert((change.target.clone(), change.change.kind()), change)
    }

    /// Removes a target's override of one kind.
    pub fn remove(&mut self, target: &Target, kind: Kind) -> Option<Override> {
        let removed = self.set.remove(&(target.clone(), kind));
        self.revision += u64::from(removed.is_some());
        removed
    }

    /// Removes those whose time has come, and answers them.
    pub fn expire(&mut self, now: Duration) -> Vec<Override> {
        let over = |set: &Override| set.until.is_some_and(|until| until <= now);
        let gone: Vec<Override> = self.set.values().filter(|set| over(set)).cloned().collect();
        self.set.retain(|_, set| !over(set));
        self.revision += gone.len() as u64;
        gone
    }

    /// When the next one's time comes.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.set.values().filter_map(|set| set.until).min()
    }

    /// Whether a target is drained by an override, or undrained by one.
    pub fn drain(&self, target: &Target) -> Option<bool> {
        match self.get(target, Kind::Drain)?.change {
            Change::Drain(drain) => Some(drain),
            Change::Weight(_) => None,
        }
    }

    /// A pool's weight by an override.
    pub fn weight(&self, pool: &PoolId) -> Option<f64> {
        match self.get(&Target::Pool(pool.clone()), Kind::Weight)?.change {
            Change::Weight(weight) => Some(weight),
            Change::Drain(_) => None,
        }
    }
}
