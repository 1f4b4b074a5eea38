//! DNS as a source: A and AAAA of a name with one port, or SRV and the addresses of its targets.
//!
//! A name is asked for again when the shortest TTL of an answer has passed, kept between a floor and a ceiling; after a
//! failure sooner, and then ever more slowly. There is no cache: what is asked for is wanted fresh.
//!
//! What fails (SERVFAIL, REFUSED, a timeout) says nothing, so each question keeps its last good answer without end: when
//! AAAA times out, the pool still has the addresses of AAAA. NXDOMAIN and empty answers are answers. Beside other
//! addresses they count at once; when nothing is left, only after `empty_after`, because a deployment or a broken zone
//! looks the same for a moment, and workers that are really gone are known to the probes.
//!
//! Of SRV's priorities the lowest number that has addresses is used, and no other. Weights are ignored: workers
//! say themselves how much they can take. A target `.` means that there is no such service.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use rand::Rng as _;
use tokio::time::Instant;

use super::{Discovery, Outcome, Round, plausible};
use crate::config::discover::{Dns, Record};
use crate::config::{ENDPOINTS_MAX, Endpoint};

/// A server's time to answer one question; then it is asked once more.
const TIMEOUT: Duration = Duration::from_secs(2);
/// All questions of one round together; what is open then has failed.
pub const ROUND_MAX: Duration = Duration::from_secs(5);
/// Targets of SRV that are looked up at once.
const TARGETS_AT_ONCE: usize = 16;

/// A name that is followed.
pub struct Source {
    of: Dns,
    /// Made when it is first wanted, and anew after a failure: the system's resolvers may be others by then.
    resolver: Option<TokioResolver>,
    /// The last good answer to each question.
    known: HashMap<(Name, RecordType), Vec<RData>>,
    due: Option<Instant>,
    failures: u32,
    empty_since: Option<Instant>,
}

/// What one round of questions has brought so far.
#[derive(Default)]
struct Asked {
    answers: HashMap<(Name, RecordType), Vec<RData>>,
    ttl: Option<Duration>,
    error: Option<String>,
}

/// The answer to one question.
enum Answer {
    /// Records, and the shortest TTL on the way to them.
    Records(Vec<RData>, Duration),
    /// There are none.
    None(String),
    Failed(String),
}

#[async_trait]
impl Discovery for Source {
    async fn next(&mut self) -> Round {
        if let Some(due) = self.due {
            tokio::time::sleep_until(due).await;
        }
        let (found, asked, nothing) = self.round().await;
        let failed = asked.error.is_some();
        self.known = asked.answers;
        if failed {
            self.resolver = None;
        }
        let round = self.judge(found, asked.error, nothing);
        let now = Instant::now();
        self.due = Some(now + self.wait(asked.ttl.filter(|_| round.outcome == Outcome::Good)));
        round
    }
}

impl Source {
    /// A source that has not been asked.
    pub fn new(of: Dns) -> Self {
        Self { of, resolver: None, known: HashMap::new(), due: None, failures: 0, empty_since: None }
    }

    /// Asks everything once: the endpoints, how it went, and what was said where there is nothing.
    async fn round(&mut self) -> (BTreeSet<SocketAddr>, Asked, Option<String>) {
        let mut asked = Asked::default();
        let resolver = match self.resolver.take().map_or_else(|| resolver(&self.of), Ok) {
            Ok(resolver) => resolver,
            Err(error) => {
                asked.error = Some(format!("no resolver: {error}"));
                asked.answers = std::mem::take(&mut self.known);
                return (BTreeSet::new(), asked, None);
            }
        };
        let deadline = Instant::now() + ROUND_MAX;
        let mut nothing = None;
        let mut found = BTreeSet::new();
        match self.of.record {
            Record::Address { port } => {
                let name = self.of.name.clone();
                let both = addresses(&resolver, name, deadline).await;
                let ips = self.take(&mut asked, both, &mut nothing);
                found.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, port)));
            }
            Record::Service => {
                let service = ask(&resolver, &self.of.name, RecordType::SRV, deadline).await;
                let question = (self.of.name.clone(), RecordType::SRV);
                let records = asked.settle(&self.known, question, service, &mut nothing);
                found = self.targets(&resolver, &mut asked, records, &mut nothing, deadline).await;
            }
        }
        self.resolver = Some(resolver);
        (found, asked, nothing)
    }

    /// The addresses of a service's targets, of the lowest priority that has any.
    async fn targets(
        &self,
        resolver: &TokioResolver,
        asked: &mut Asked,
        records: Vec<RData>,
        nothing: &mut Option<String>,
        deadline: Instant,
    ) -> BTreeSet<SocketAddr> {
        let mut services: Vec<SRV> = Vec::with_capacity(records.len());
        for record in records {
            match record {
                RData::SRV(srv) if srv.target.is_root() || srv.port == 0 => {
                    *nothing = Some(format!("{} has a target that is no service", self.of.name));
                }
                RData::SRV(srv) => services.push(srv),
                _ => {}
            }
        }
        services.sort_by_key(|srv| srv.priority);
        for group in services.chunk_by(|one, other| one.priority == other.priority) {
            let mut ports: HashMap<Name, BTreeSet<u16>> = HashMap::new();
            for SRV { target, port, .. } in group {
                ports.entry(target.to_lowercase()).or_default().insert(*port);
            }
            let names = ports.keys().cloned().map(|name| addresses(resolver, name, deadline));
            let mut answers =
                futures::stream::iter(names.collect::<Vec<_>>()).buffer_unordered(TARGETS_AT_ONCE);
            let mut found = BTreeSet::new();
            while let Some(both) = answers.next().await {
                let name = both[0].0.0.clone();
                for ip in self.take(asked, both, nothing) {
                    found.extend(ports[&name].iter().map(|port| SocketAddr::new(ip, *port)));
                }
            }
            if !found.is_empty() {
                return found;
            }
        }
        BTreeSet::new()
    }

    fn take(&self, asked: &mut Asked, both: Both, nothing: &mut Option<String>) -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for (question, answer) in both {
            for record in asked.settle(&self.known, question, answer, nothing) {
                let ip = match record {
                    RData::A(a) => IpAddr::V4(a.0),
                    RData::AAAA(aaaa) => IpAddr::V6(aaaa.0).to_canonical(),
                    _ => continue,
                };
                if !plausible(ip) {
                    asked.error.get_or_insert_with(|| format!("{ip} is no address of a worker"));
                } else {
                    ips.push(ip);
                }
            }
        }
        ips
    }

    fn judge(
        &mut self,
        found: BTreeSet<SocketAddr>,
        error: Option<String>,
        nothing: Option<String>,
    ) -> Round {
        let keep = |outcome, error| Round { endpoints: None, outcome, error: Some(error) };
        let now = Instant::now();
        let count = found.len();
        let endpoints = found.into_iter().map(|address| Endpoint { address, drain: false }).collect();
        let round = match (count, error) {
            (0, Some(error)) => keep(Outcome::Failed, error),
            (0, None) => {
                let since = *self.empty_since.get_or_insert(now);
                let nothing = nothing.unwrap_or_else(|| format!("{} has no records", self.of.name));
                if now - since >= self.of.empty_after {
                    Round { endpoints: Some(endpoints), outcome: Outcome::Empty, error: Some(nothing) }
                } else {
                    let kept = humantime::format_duration(self.of.empty_after);
                    keep(Outcome::Empty, format!("{nothing}; what was known counts for {kept}"))
                }
            }
            (count, _) if count > ENDPOINTS_MAX => {
                let error = format!("{count} addresses are too many; at most {ENDPOINTS_MAX}");
                keep(Outcome::Refused, error)
            }
            (_, Some(error)) => {
                Round { endpoints: Some(endpoints), outcome: Outcome::Failed, error: Some(error) }
            }
            (_, None) => Round { endpoints: Some(endpoints), outcome: Outcome::Good, error: None },
        };
        if round.outcome != Outcome::Empty && count > 0 {
            self.empty_since = None;
        }
        round
    }

    /// How long until it is asked again: `ttl` after a good answer, else a time that doubles.
    fn wait(&mut self, ttl: Option<Duration>) -> Duration {
        let (floor, ceiling) = (self.of.min_ttl, self.of.max_ttl);
        if let Some(ttl) = ttl {
            self.failures = 0;
            return ttl.clamp(floor, ceiling);
        }
        let doubled = floor.saturating_mul(1 << self.failures.min(12)).min(ceiling);
        self.failures = self.failures.saturating_add(1);
        // Many gateways that lost the same server must not come back to it together.
        doubled.mul_f64(rand::rng().random_range(0.8..=1.0)).max(floor)
    }
}

impl Asked {
    /// Takes an answer in: its records, or those known when it failed.
    fn settle(
        &mut self,
        known: &HashMap<(Name, RecordType), Vec<RData>>,
        question: (Name, RecordType),
        answer: Answer,
        nothing: &mut Option<String>,
    ) -> Vec<RData> {
        let records = match answer {
            Answer::Records(records, ttl) => {
                self.ttl = Some(self.ttl.map_or(ttl, |known| known.min(ttl)));
                records
            }
            Answer::None(why) => {
                nothing.get_or_insert(why);
                return Vec::new();
            }
            Answer::Failed(why) => {
                self.error.get_or_insert(why);
                known.get(&question).cloned().unwrap_or_default()
            }
        };
        self.answers.insert(question, records.clone());
        records
    }
}

type Both = [((Name, RecordType), Answer); 2];

async fn addresses(resolver: &TokioResolver, name: Name, deadline: Instant) -> Both {
    let (a, aaaa) = tokio::join!(
        ask(resolver, &name, RecordType::A, deadline),
        ask(resolver, &name, RecordType::AAAA, deadline)
    );
    [((name.clone(), RecordType::A), a), ((name, RecordType::AAAA), aaaa)]
}

async fn ask(resolver: &TokioResolver, name: &Name, kind: RecordType, deadline: Instant) -> Answer {
    let failed = |why: &dyn std::fmt::Display| Answer::Failed(format!("{kind} of {name}: {why}"));
    match tokio::time::timeout_at(deadline, resolver.lookup(name.clone(), kind)).await {
        Err(_) => failed(&format_args!("no answer within {} s", ROUND_MAX.as_secs())),
        Ok(Ok(lookup)) => {
            // An alias on the way to the records may change before they do.
            let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
            let records = lookup.answers().iter().filter(|record| record.record_type() == kind);
            Answer::Records(
                records.map(|record| record.data.clone()).collect(),
                Duration::from_secs(ttl.into()),
            )
        }
        Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => match none.response_code {
            ResponseCode::NXDomain => Answer::None(format!("{name} does not exist")),
            ResponseCode::NoError => Answer::None(format!("{name} has no {kind} records")),
            code => failed(&code),
        },
        Ok(Err(error)) => failed(&error),
    }
}

fn resolver(of: &Dns) -> Result<TokioResolver, NetError> {
    let mut builder = match of.resolver {
        Some(server) => {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (server.port(), server.port());
            let server = NameServerConfig::new(server.ip(), true, vec![udp, tcp]);
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        }
        None => TokioResolver::builder_tokio()?,
    };
    let options = builder.options_mut();
    options.cache_size = 0;
    options.timeout = TIMEOUT;
    options.attempts = 1;
    builder.build()
}
