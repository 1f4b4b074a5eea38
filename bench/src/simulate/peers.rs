//! What others do with the same jobs: the balancers of Envoy, HAProxy, NGINX, Finagle and gRPC, and two dispatchers that
//! know everything.
//!
//! The peers get more than they would have in the field: a request stays open until its job is done (so that counting
//! connections means something), they know the pools' nominal speeds as static weights, and averages are taken over ten
//! minutes, since with the usual ten seconds a job that runs for minutes would never be remembered. Like ours, each
//! gateway has its own instance.

use rand::Rng;
use rand::rngs::StdRng;

use super::cluster::Cluster;

/// Time constant of the peers' averages, in seconds.
const AVERAGE_S: f64 = 600.0;

/// How a place is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Ours: the real routing code.
    Millrace,
    /// By turns, weighted by nominal speed.
    RoundRobin,
    /// The fewest of its own requests under way, per nominal speed (Envoy, HAProxy, NGINX).
    LeastConnections,
    /// The same of everybody's, from the same load reports that ours has. No balancer does this for workers of its own
    /// kind; it is the strongest peer that one could build from a load report.
    LeastReported,
    /// The better of two random ones by peak-EWMA of time to finish × requests under way (Finagle, Linkerd).
    PeakEwma,
    /// By turns, weighted by finished jobs per second over utilization, both reported (gRPC, Envoy).
    OrcaRoundRobin,
    /// A central queue with known sizes: whenever a server is idle, the shortest waiting job goes to the fastest idle one.
    CentralShortest,
    /// A central dispatcher with known sizes: each job in turn goes where it ends earliest, waiting included.
    CentralEarliest,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Millrace,
        Self::RoundRobin,
        Self::LeastConnections,
        Self::LeastReported,
        Self::PeakEwma,
        Self::OrcaRoundRobin,
        Self::CentralShortest,
        Self::CentralEarliest,
    ];

    /// Its name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::RoundRobin => "round robin",
            Self::LeastConnections => "least connections",
            Self::LeastReported => "least connections, reported",
            Self::PeakEwma => "peak EWMA",
            Self::OrcaRoundRobin => "ORCA round robin",
            Self::CentralShortest => "central, shortest first",
            Self::CentralEarliest => "central, earliest finish",
        }
    }

    /// Whether it sees all and knows all sizes, which nobody does.
    pub fn is_central(self) -> bool {
        matches!(self, Self::CentralShortest | Self::CentralEarliest)
    }
}

/// One gateway's balancer.
#[derive(Debug)]
pub struct Balancer {
    /// Per worker.
    known: Vec<Known>,
    /// Whose turn it was last: one that was away does not catch up.
    turn: f64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    under_way: u32,
    latency_s: f64,
    latency_at_s: f64,
    /// When its turn comes, on a clock that counts turns.
    turn: f64,
    phase_s: f64,
    sent: [f64; 4],
}

/// What workers report to ORCA: shared by all gateways.
#[derive(Debug, Clone, Copy, Default)]
pub struct Orca {
    busy: bool,
    at_s: f64,
    utilization: f64,
    finished_per_s: f64,
}

impl Orca {
    /// It begins or ends a job.
    pub fn note(&mut self, busy: bool, finished: bool, now_s: f64) {
        let decay = (-(now_s - self.at_s) / AVERAGE_S).exp();
        self.utilization = self.utilization * decay + f64::from(u8::from(self.busy)) * (1.0 - decay);
        self.finished_per_s = self.finished_per_s * decay + if finished { 1.0 / AVERAGE_S } else { 0.0 };
        (self.busy, self.at_s) = (busy, now_s);
    }

    /// Queries per second over utilization, once there is any of both.
    fn weight(&self, now_s: f64) -> Option<f64> {
        let mut now = *self;
        now.note(self.busy, false, now_s);
        let weight = now.finished_per_s / now.utilization;
        (now.utilization > 0.01 && now.finished_per_s > 0.0).then_some(weight)
    }
}

impl Balancer {
    /// A balancer that knows nothing yet.
    pub fn new(workers: usize, rng: &mut StdRng) -> Self {
        let known = |_| Known {
            under_way: 0,
            latency_s: 0.0,
            latency_at_s: 0.0,
            turn: rng.random(),
            phase_s: rng.random(),
            sent: [f64::NEG_INFINITY; 4],
        };
        Self { known: (0..workers).map(known).collect(), turn: 0.0 }
    }

    /// Chooses among `up`; `nominal` are the static weights.
    pub fn choose(
        &mut self,
        rule: Rule,
        up: &[usize],
        nominal: &[f64],
        (cluster, orca): (&Cluster, &[Orca]),
        now_s: f64,
        rng: &mut StdRng,
    ) -> Option<usize> {
        let under_way = |worker: usize| f64::from(self.known[worker].under_way);
        match rule {
            Rule::RoundRobin => self.by_turns(up, |worker| nominal[worker]),
            Rule::OrcaRoundRobin => {
                let weights: Vec<Option<f64>> = orca.iter().map(|known| known.weight(now_s)).collect();
                let known: Vec<f64> = weights.iter().flatten().copied().collect();
                let mean =
                    if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
                self.by_turns(up, |worker| weights[worker].unwrap_or(mean))
            }
            Rule::LeastConnections => least(up, |worker| (under_way(worker) + 1.0) / nominal[worker], rng),
            Rule::LeastReported => {
                let held = |worker: usize| {
                    let known = &self.known[worker];
                    let seen_s = (now_s - known.phase_s).floor() + known.phase_s;
                    let mark = cluster.report(worker, seen_s);
                    let since = known.sent.iter().filter(|at_s| **at_s > seen_s).count() as f64;
                    f64::from(mark.running + mark.queued) + since
                };
                least(up, |worker| (held(worker) + 1.0) / nominal[worker], rng)
            }
            Rule::PeakEwma => {
                let cost = |worker: usize| {
                    let known = &self.known[worker];
                    let decay = (-(now_s - known.latency_at_s) / AVERAGE_S).exp();
                    (known.latency_s * decay).max(1.0) * (under_way(worker) + 1.0)
                };
                if up.is_empty() {
                    return None;
                }
                let two = [up[rng.random_range(0..up.len())], up[rng.random_range(0..up.len())]];
                least(&two, cost, rng)
            }
            Rule::Millrace | Rule::CentralShortest | Rule::CentralEarliest => None,
        }
    }

    /// Earliest deadline first: whoever is chosen comes again after 1 ÷ weight turns.
    fn by_turns(&mut self, up: &[usize], weight: impl Fn(usize) -> f64) -> Option<usize> {
        let turn = |worker: usize| self.known[worker].turn;
        let next = *up.iter().min_by(|a, b| turn(**a).total_cmp(&turn(**b)))?;
        self.turn = self.turn.max(self.known[next].turn);
        self.known[next].turn = self.turn + 1.0 / weight(next);
        Some(next)
    }

    /// A request goes there.
    pub fn sent(&mut self, worker: usize, now_s: f64) {
        let known = &mut self.known[worker];
        known.under_way += 1;
        known.sent.rotate_right(1);
        known.sent[0] = now_s;
    }

    /// It was answered after so long, or broke off.
    pub fn ended(&mut self, worker: usize, latency_s: Option<f64>, now_s: f64) {
        let known = &mut self.known[worker];
        known.under_way = known.under_way.saturating_sub(1);
        if let Some(latency_s) = latency_s {
            let decay = (-(now_s - known.latency_at_s) / AVERAGE_S).exp();
            known.latency_s = if latency_s > known.latency_s * decay {
                latency_s
            } else {
                known.latency_s * decay + latency_s * (1.0 - decay)
            };
            known.latency_at_s = now_s;
        }
    }
}

/// The least by cost; one of them at random where several are equal.
pub fn least(of: &[usize], cost: impl Fn(usize) -> f64, rng: &mut StdRng) -> Option<usize> {
    let costs: Vec<f64> = of.iter().map(|worker| cost(*worker)).collect();
    let least = costs.iter().copied().min_by(f64::total_cmp)?;
    let equal: Vec<usize> = of.iter().zip(&costs).filter(|(_, c)| **c <= least).map(|(w, _)| *w).collect();
    Some(equal[rng.random_range(0..equal.len())])
}
