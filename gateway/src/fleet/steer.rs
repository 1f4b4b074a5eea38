//! An operator's hand on the fleet: overrides are set, removed and expire under the fleet's own lock, so that a change
//! is in force for the next decision, and two operators cannot overwrite each other unseen.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millrace_wire::PoolId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::snapshot::Snapshot;
use super::{Fleet, State};
use crate::audit::{self, Actor, Audit};
use crate::config::WEIGHT_MAX;
use crate::overrides::{Change, Kind, OVERRIDES_MAX, Override, Record, TTL_MAX, Target};

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// A pool's name, a worker's address or a worker's own name.
    pub target: String,
    /// What is to happen to it.
    pub action: Action,
    /// For how long.
    pub ttl: Option<Duration>,
    /// Who asks.
    pub by: Actor,
    /// The entity tags that allow the change, as `If-Match` has them.
    pub if_match: Option<String>,
}

/// What is to happen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// No new jobs; reads go on.
    Drain,
    /// New jobs again, whatever the file says.
    Undrain,
    /// Another preference.
    Weight(f64),
    /// What the file says: every override of the target goes.
    Remove,
}

impl Action {
    /// Its name in the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Weight(_) => "weight",
            Self::Remove => "remove",
        }
    }
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Steered {
    /// The pool's name or the worker's address.
    pub target: String,
    /// What was in force before …
    pub before: Value,
    /// … and is now.
    pub after: Value,
    /// What the operator should know.
    pub warning: Option<String>,
    /// The entity tag of the overrides now.
    pub etag: String,
}

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Somebody else changed the overrides since.
    #[error("the overrides have changed since; they are at {now} now")]
    Stale {
        /// The entity tag now.
        now: String,
    },
    /// Nothing of that name is there.
    #[error("{0}")]
    Unknown(String),
    /// The name means more than one thing.
    #[error("{0}")]
    Ambiguous(String),
    /// A value outside its limits.
    #[error("{field}: {message}")]
    Bad {
        /// The field of the request.
        field: &'static str,
        /// What it got and what it wants.
        message: String,
    },
    /// There are too many.
    #[error(
        "there are {OVERRIDES_MAX} overrides already; remove some, or put what must last into the routing file"
    )]
    Full,
}

/// What the routing file says of what can be overridden.
#[derive(Debug, Default)]
pub(super) struct Written {
    pools: HashMap<PoolId, (f64, bool)>,
    drained: HashSet<SocketAddr>,
}

impl State {
    /// Remembers what the file says, as the snapshot was just built from it, and puts the overrides on it.
    pub(super) fn settle_overrides(&mut self) {
        let pools = &self.snapshot.pools;
        self.written = Written {
            pools: pools.iter().map(|pool| (pool.id.clone(), (pool.weight, pool.drain))).collect(),
            drained: pools
                .iter()
                .flat_map(|pool| &pool.workers)
                .filter(|worker| worker.drain)
                .map(|worker| worker.address)
                .collect(),
        };
        self.overlay();
    }

    fn overlay(&mut self) {
        for pool in &mut self.snapshot.pools {
            let (weight, drain) =
                self.written.pools.get(&pool.id).copied().unwrap_or((pool.weight, pool.drain));
            pool.weight = self.overrides.weight(&pool.id).unwrap_or(weight);
            pool.drain = self.overrides.drain(&Target::Pool(pool.id.clone())).unwrap_or(drain);
            for worker in &mut pool.workers {
                let written = self.written.drained.contains(&worker.address);
                worker.drain = self.overrides.drain(&Target::Worker(worker.address)).unwrap_or(written);
            }
        }
    }

    fn present(&self, target: &Target) -> bool {
        match target {
            Target::Pool(pool) => self.snapshot.pool(pool).is_some(),
            Target::Worker(address) => self.endpoints.contains_key(address),
        }
    }

    fn written_drain(&self, target: &Target) -> bool {
        match target {
            Target::Pool(pool) => self.written.pools.get(pool).is_some_and(|(_, drain)| *drain),
            Target::Worker(address) => self.written.drained.contains(address),
        }
    }

    /// What is in force for a target, and by which overrides.
    fn in_force(&self, target: &Target, now: Duration) -> Value {
        let set = [Kind::Drain, Kind::Weight].map(|kind| self.overrides.get(target, kind));
        let set: Vec<Record> = set.into_iter().flatten().map(|set| set.record(now, true)).collect();
        match target {
            Target::Pool(pool) => match self.snapshot.pool(pool) {
                Some(pool) => json!({ "drain": pool.drain, "weight": pool.weight, "overrides": set }),
                None => json!({ "overrides": set }),
            },
            Target::Worker(address) => match self.snapshot.find(*address) {
                Some((_, worker)) => json!({ "drain": worker.drain, "overrides": set }),
                None => json!({ "overrides": set }),
            },
        }
    }

    /// What a name means: an address, a pool's name or a worker's own.
    fn resolve(&self, text: &str) -> Result<Target, Refused> {
        let snapshot = &self.snapshot;
        if let Ok(address) = text.parse::<SocketAddr>() {
            let target = Target::Worker(address);
            let known = self.present(&target) || self.overrides.has(&target);
            return if known { Ok(target) } else { Err(unknown(text, snapshot)) };
        }
        let workers = snapshot.pools.iter().flat_map(|pool| &pool.workers);
        let named: Vec<SocketAddr> = workers
            .filter(|worker| worker.id().is_some_and(|id| id.as_str() == text))
            .map(|worker| worker.address)
            .collect();
        let pool = text.parse::<PoolId>().ok().map(Target::Pool);
        let pool = pool.filter(|pool| self.present(pool) || self.overrides.has(pool));
        match (pool, &named[..]) {
            (Some(pool), []) => Ok(pool),
            (None, [address]) => Ok(Target::Worker(*address)),
            (None, []) => Err(unknown(text, snapshot)),
            (pool, _) => {
                let what = if pool.is_some() { "a pool and a worker" } else { "more than one worker" };
                let places: Vec<String> = named.iter().map(ToString::to_string).collect();
                let message =
                    format!("{text} names {what}; say the worker's address ({})", places.join(", "));
                Err(Refused::Ambiguous(message))
            }
        }
    }

    fn steer(&mut self, order: &Order, now: Duration) -> Result<(Target, Steered), Refused> {
        if order.if_match.as_ref().is_some_and(|if_match| !self.overrides.matches(if_match)) {
            return Err(Refused::Stale { now: self.overrides.etag() });
        }
        let bad = |field, message: String| Err(Refused::Bad { field, message });
        if let Some(ttl) = order.ttl
            && (ttl < Duration::from_secs(1) || ttl > TTL_MAX)
        {
            return bad("ttl", format!("{ttl:?} is not between 1s and 365 days"));
        }
        let target = self.resolve(&order.target)?;
        let change = match order.action {
            Action::Drain => Some(Change::Drain(true)),
            Action::Undrain if self.written_drain(&target) => Some(Change::Drain(false)),
            Action::Undrain => {
                if order.ttl.is_some() {
                    let message = "the routing file does not drain it, so there is nothing to lift for a while; \
                                   undrain it without a time";
                    return bad("ttl", message.to_owned());
                }
                None
            }
            Action::Weight(weight) => {
                if matches!(target, Target::Worker(_)) {
                    let message =
                        format!("{target} is a worker, and only pools have a weight; drain it instead");
                    return bad("target", message);
                }
                if !(0.0..=WEIGHT_MAX).contains(&weight) {
                    return bad("weight", format!("{weight} is not between 0 and {WEIGHT_MAX}"));
                }
                Some(Change::Weight(weight))
            }
            Action::Remove => None,
        };
        let before = self.in_force(&target, now);
        match change {
            Some(change) => {
                let known = self.overrides.get(&target, change.kind()).is_some();
                if !known && self.overrides.full() {
                    return Err(Refused::Full);
                }
                let until = order.ttl.map(|ttl| now + ttl);
                let (target, by, since) = (target.clone(), order.by.clone(), SystemTime::now());
                self.overrides.put(Override { target, change, by, since, until });
            }
            None => {
                self.overrides.remove(&target, Kind::Drain);
                if order.action == Action::Remove {
                    self.overrides.remove(&target, Kind::Weight);
                }
            }
        }
        self.overlay();
        let after = self.in_force(&target, now);
        let warning = self.warning(&target, order.action);
        let etag = self.overrides.etag();
        let steered = Steered { target: target.to_string(), before, after, warning, etag };
        Ok((target, steered))
    }

    fn warning(&self, target: &Target, action: Action) -> Option<String> {
        let takes = |pool: &super::Pool| {
            !pool.drain && pool.weight > 0.0 && pool.workers.iter().any(|worker| !worker.drains())
        };
        if !self.snapshot.pools.iter().any(takes) {
            return Some("no pool takes jobs now: every submit is refused".to_owned());
        }
        let Target::Worker(address) = target else { return None };
        let (pool, worker) = self.snapshot.find(*address)?;
        match action {
            Action::Undrain if pool.drain => Some(format!("its pool {} is still drained", pool.id)),
            Action::Undrain if worker.drains() => Some("the worker itself says that it drains".to_owned()),
            _ => None,
        }
    }
}

fn unknown(text: &str, snapshot: &Snapshot) -> Refused {
    let pools: Vec<&str> = snapshot.pools.iter().map(|pool| pool.id.as_str()).collect();
    Refused::Unknown(format!(
        "{text:?} is no pool, no worker's address and no worker's name here; the pools are {}, and \
         `millrace-gateway status` lists the workers",
        pools.join(", ")
    ))
}

impl Fleet {
    /// All overrides, and their entity tag.
    pub fn overrides(&self) -> (String, Vec<Record>) {
        let (state, now) = (self.lock(), self.now());
        let records = state.overrides.iter().map(|set| set.record(now, state.present(&set.target)));
        (state.overrides.etag(), records.collect())
    }

    /// Sets or removes an override, and records it, or that it was refused.
    ///
    /// # Errors
    /// Why it is refused; nothing changed.
    pub fn steer(&self, order: &Order, audit: &Audit) -> Result<Steered, Refused> {
        let now = self.now();
        let mut result = Err(Refused::Full);
        self.change(|state| {
            result = state.steer(order, now);
            true
        });
        self.steered.notify_one();
        let (target, refused, before, after) = match &result {
            Ok((target, steered)) => {
                (target.to_string(), None, steered.before.clone(), steered.after.clone())
            }
            Err(refused) => {
                let asked = order.target.chars().take(audit::ACTOR_LENGTH_MAX).collect();
                (asked, Some(refused.to_string()), Value::Null, Value::Null)
            }
        };
        let (by, action) = (order.by.clone(), order.action.as_str());
        audit.record(audit::Change { by, action, target, refused, before, after });
        result.map(|(_, steered)| steered)
    }

    /// Ends the overrides whose time has come, and records it.
    pub fn expire(&self, now: Duration, audit: &Audit) {
        let mut ended = Vec::new();
        self.change(|state| {
            let due = state.overrides.next_expiry().is_some_and(|next| next <= now);
            if due {
                let mut targets: Vec<Target> = state
                    .overrides
                    .iter()
                    .filter(|set| set.until.is_some_and(|until| until <= now))
                    .map(|set| set.target.clone())
                    .collect();
                // One target may have two, which are neighbours in their order.
                targets.dedup();
                let before: Vec<Value> = targets.iter().map(|target| state.in_force(target, now)).collect();
                state.overrides.expire(now);
                state.overlay();
                for (target, before) in targets.iter().zip(before) {
                    ended.push((target.to_string(), before, state.in_force(target, now)));
                }
            }
            due
        });
        for (target, before, after) in ended {
            let by = Actor::own("time");
            audit.record(audit::Change { by, action: "expire", target, refused: None, before, after });
        }
    }
}

/// Ends overrides on time, until `stop`.
pub async fn run(fleet: Arc<Fleet>, audit: Arc<Audit>, stop: CancellationToken) {
    loop {
        let next = fleet.lock().overrides.next_expiry();
        let due = async {
            match next {
                Some(next) => tokio::time::sleep(next.saturating_sub(fleet.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = fleet.steered.notified() => {}
            () = due => {}
        }
        fleet.expire(fleet.now(), &audit);
    }
}

#[cfg(test)]
mod tests;
