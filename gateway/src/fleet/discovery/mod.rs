//! Discovery: following what says where a pool's workers are, beside the list in the file.
//!
//! One task per source, owned here and swapped when a reload changes its pool's source. What it finds goes into the
//! fleet by the way of the file's own lists, so an endpoint that stays keeps what is known of it, and one that goes
//! gets nothing new while what it works on ends. No source empties a pool because it is itself in trouble: the last
//! good answer stays. A task that panics is started again; its pool keeps its endpoints meanwhile.

pub mod dns;
pub mod kubernetes;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::PoolId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Fleet;
use crate::config::{Config, Discover, ENDPOINTS_MAX, Endpoint};
use crate::metrics::Metrics;

/// Between two looks at whether every task still runs, and so before one that panicked is started again.
const CHECK: Duration = Duration::from_secs(1);

/// Which pools have a source, and which.
pub type Sources = Arc<BTreeMap<PoolId, Discover>>;
/// Makes what asks a source.
pub type Open = Arc<dyn Fn(&Discover) -> Box<dyn Discovery> + Send + Sync>;

/// Something that says where workers are.
#[async_trait]
pub trait Discovery: Send {
    /// Waits until it is time to ask, or something changes, and answers what came of it. The first time it asks at
    /// once. Dropping the future loses nothing but this answer.
    async fn next(&mut self) -> Round;
}

/// What came of asking once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// All endpoints there are now; none to keep those there were.
    pub endpoints: Option<Vec<Endpoint>>,
    /// How it went.
    pub outcome: Outcome,
    /// What an operator should know, if anything went wrong.
    pub error: Option<String>,
}

/// How asking went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There are endpoints.
    Good,
    /// There are none, says the source.
    Empty,
    /// The source did not answer, or not everything.
    Failed,
    /// The answer cannot be used.
    Refused,
}

impl Outcome {
    /// A metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Empty => "empty",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What a pool's source has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The source.
    pub source: Discover,
    /// What it last said, or what the pool had when this became its source.
    pub endpoints: Vec<Endpoint>,
    /// It has been asked once.
    pub asked: bool,
    /// When it last had a good answer.
    pub good_at: Option<Duration>,
    /// What went wrong when it was last asked.
    pub error: Option<String>,
    /// Why some of the endpoints are not in force.
    pub refused: Option<String>,
}

impl Found {
    /// A source that has not been asked: the pool keeps what it has until then.
    pub(super) fn unasked(source: Discover, endpoints: Vec<Endpoint>) -> Self {
        Self { source, endpoints, asked: false, good_at: None, error: None, refused: None }
    }
}

/// The endpoints of each pool of the file: those it lists, and those found.
///
/// An address has one pool. The file's word comes first, then that of the pool which has the address already, so that
/// no source takes over another pool's worker; then the file's order. The same holds when there are too many.
pub(super) fn members(
    config: &Config,
    found: &mut HashMap<PoolId, Found>,
    holds: impl Fn(&PoolId, SocketAddr) -> bool,
) -> Vec<Vec<Endpoint>> {
    // The address's pool, and whether the file lists it.
    let mut owners: HashMap<SocketAddr, (&PoolId, bool)> = HashMap::new();
    for pool in &config.pools {
        owners.extend(pool.endpoints.iter().map(|endpoint| (endpoint.address, (&pool.name, true))));
    }
    for settled in [true, false] {
        for pool in &config.pools {
            for Endpoint { address, .. } in found.get(&pool.name).iter().flat_map(|found| &found.endpoints) {
                if settled == holds(&pool.name, *address) && owners.len() < ENDPOINTS_MAX {
                    owners.entry(*address).or_insert((&pool.name, false));
                }
            }
        }
    }
    let members = config.pools.iter().map(|pool| {
        let mut members = pool.endpoints.clone();
        let Some(found) = found.get_mut(&pool.name) else { return members };
        let (mut first, mut count) = (None, 0_usize);
        for endpoint in &found.endpoints {
            let owner = owners.get(&endpoint.address).copied();
            if let Some((owner, listed)) = owner
                && *owner == pool.name
            {
                if !listed {
                    members.push(*endpoint);
                }
                continue;
            }
            count += 1;
            first.get_or_insert_with(|| match owner {
                Some((owner, _)) => format!("{} is already an endpoint of pool {owner}", endpoint.address),
                None => {
                    format!("{} would be one more than {ENDPOINTS_MAX} in all pools", endpoint.address)
                }
            });
        }
        let refused = first.map(|first| format!("{count} not taken: {first}"));
        if let Some(why) = &refused
            && found.refused != refused
        {
            error!(pool = %pool.name, source = %found.source, why, "endpoints refused");
        }
        found.refused = refused;
        members
    });
    members.collect()
}

/// What asks each kind of source.
pub fn open() -> Open {
    Arc::new(|source| match source {
        Discover::Dns(of) => Box::new(dns::Source::new(of.clone())),
        Discover::Kubernetes(of) => Box::new(kubernetes::Source::new(of.clone())),
    })
}

/// Whether a worker can be at an address. Resolvers that block a name answer 0.0.0.0, and connecting there reaches this
/// very machine.
fn plausible(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// Follows the pools' sources, as reloads change them, until `stop`.
pub async fn run(fleet: Arc<Fleet>, open: Open, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut sources = fleet.sources();
    let mut tasks: HashMap<PoolId, (Discover, CancellationToken, JoinHandle<()>)> = HashMap::new();
    let mut check = tokio::time::interval(CHECK);
    check.tick().await;
    while !stop.is_cancelled() {
        let wanted: Sources = sources.borrow_and_update().clone();
        let stale = |(pool, (source, _, task)): (&PoolId, &(Discover, _, JoinHandle<()>))| {
            (wanted.get(pool) != Some(source) || task.is_finished()).then(|| pool.clone())
        };
        let gone: Vec<PoolId> = tasks.iter().filter_map(stale).collect();
        for pool in gone {
            if let Some((source, stop, task)) = tasks.remove(&pool) {
                stop.cancel();
                // Its next await is a cancellation point, so this is brief.
                if let Err(error) = task.await {
                    error!(%pool, %source, %error, "discovery panicked; it is started again");
                }
            }
        }
        for (pool, source) in wanted.iter() {
            if !tasks.contains_key(pool) {
                let stop = stop.child_token();
                let following =
                    follow(fleet.clone(), open.clone(), metrics.clone(), pool.clone(), source.clone());
                let task = stop.clone().run_until_cancelled_owned(following);
                let task = tokio::spawn(async move {
                    let _ = task.await;
                });
                tasks.insert(pool.clone(), (source.clone(), stop, task));
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            changed = sources.changed() => if changed.is_err() { break },
            _ = check.tick() => {}
        }
    }
    for (_, (_, stop, task)) in tasks.drain() {
        stop.cancel();
        let _ = task.await;
    }
}

async fn follow(fleet: Arc<Fleet>, open: Open, metrics: Arc<Metrics>, pool: PoolId, source: Discover) {
    let mut discovery = open(&source);
    loop {
        let round = discovery.next().await;
        metrics.discovery_lookups.with_label_values(&[pool.as_str(), round.outcome.label()]).inc();
        fleet.discovered(&pool, &source, round);
    }
}

#[cfg(test)]
mod tests;
