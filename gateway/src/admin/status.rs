//! What an operator sees of pools and workers: the shape of `GET /status`, also read by `millrace-gateway status`.

use std::collections::HashSet;
use std::net::SocketAddr;

use millrace_wire::LoadReport;
use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::fleet::snapshot::Health;
use crate::overrides::Record;
use crate::route::{self, Exclude, Job};

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The gateway's version.
    pub version: String,
    /// Which routing file is in force, counted from 1.
    pub config_generation: u64,
    /// The pools.
    pub pools: Vec<Pool>,
    /// What operators changed beside the routing file, and until when; it is in the pools' values already.
    #[serde(default)]
    pub overrides: Vec<Record>,
}

/// One pool, as it stands for a job of which nothing is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The operator's preference.
    pub weight: f64,
    /// No new jobs.
    pub drain: bool,
    /// US dollars per gigabyte that leaves it.
    pub egress_usd_per_gb: f64,
    /// Reference-seconds per second of its usable workers.
    pub capacity: f64,
    /// Free share of that, 0–1.
    pub headroom: f64,
    /// How far it has come back, 0–1.
    pub ramp: f64,
    /// Seconds until a slot is free.
    pub wait_s: f64,
    /// Reference-seconds that wait in its queue, by its newest report.
    #[serde(default)]
    pub backlog_s: f64,
    /// F in seconds: what routing compares.
    #[serde(default)]
    pub cost_s: f64,
    /// Its share of new jobs, 0–1.
    pub share: f64,
    /// Why it takes no job now, if so.
    pub rejected: Option<String>,
    /// Where its workers come from beside the file's list, if anywhere.
    #[serde(default)]
    pub source: Option<Source>,
    /// What its workers' certificates name, where it is spoken to over TLS: a name, or `its address`.
    #[serde(default)]
    pub tls: Option<String>,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// What a pool's workers are discovered by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `dns` or `dns_srv`.
    pub kind: String,
    /// What is asked for, like `dns workers.example port 9000`.
    pub name: String,
    /// How many of the workers come from it.
    pub endpoints: usize,
    /// Seconds since its last good answer, if there was one.
    pub good_age_s: Option<f64>,
    /// What went wrong when it was last asked, or why not all that it found is in force.
    pub error: Option<String>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it answers (probes, too) and is not ejected.
    pub healthy: bool,
    /// `up`, `unknown`, `silent` when its probes time out, or why it is down.
    pub health: String,
    /// The operator drains it.
    pub drain: bool,
    /// Seconds for which it stays ejected.
    pub ejected_s: Option<f64>,
    /// Why it takes no job now, if so.
    pub rejected: Option<String>,
    /// Age of its report in seconds.
    pub report_age_s: Option<f64>,
    /// Submits sent and not yet answered.
    pub outstanding: u32,
    /// Round trip of its probes in milliseconds.
    pub round_trip_ms: f64,
    /// Latency of its reads in milliseconds.
    pub read_latency_ms: f64,
    /// What it last said.
    pub report: Option<LoadReport>,
}

impl Status {
    /// As of now.
    pub fn of(fleet: &Fleet, config_generation: u64) -> Self {
        let (snapshot, now) = (fleet.snapshot(), fleet.now());
        let (job, anywhere) = (Job::default(), Exclude::default());
        let considered = route::consider(&snapshot, &job, &anywhere, now);
        let config = fleet.config();
        let pools = snapshot.pools.iter().zip(considered).map(|(pool, considered)| {
            let written = config.pools.iter().find(|known| known.name == pool.id);
            let listed: HashSet<SocketAddr> =
                written.iter().flat_map(|pool| &pool.endpoints).map(|endpoint| endpoint.address).collect();
            let source = fleet.found(&pool.id).map(|found| Source {
                kind: found.source.kind().to_owned(),
                name: found.source.to_string(),
                endpoints: pool.workers.iter().filter(|worker| !listed.contains(&worker.address)).count(),
                good_age_s: found.good_at.map(|at| now.saturating_sub(at).as_secs_f64()),
                error: found.error.or(found.refused),
            });
            let workers = pool.workers.iter().zip(&considered.workers).map(|(worker, seen)| Worker {
                address: worker.address,
                healthy: worker.answers(now) && worker.heard_within(route::worker::STALE, now),
                health: match &worker.health {
                    Health::Up if !worker.heard_within(route::worker::STALE, now) => "silent".to_owned(),
                    Health::Up => "up".to_owned(),
                    Health::Unknown => "unknown".to_owned(),
                    Health::Down { reason } => reason.clone(),
                },
                drain: worker.drain,
                ejected_s: worker.ejected_until.filter(|u| *u > now).map(|u| (u - now).as_secs_f64()),
                rejected: seen.rejected.map(label),
                report_age_s: worker.report.as_ref().map(|r| now.saturating_sub(r.at).as_secs_f64()),
                outstanding: worker.compensation.at(now).0,
                round_trip_ms: worker.round_trip.as_secs_f64() * 1e3,
                read_latency_ms: worker.read_latency_s * 1e3,
                report: worker.report.as_ref().map(|r| r.load.clone()),
            });
            Pool {
                name: pool.id.to_string(),
                weight: pool.weight,
                drain: pool.drain,
                egress_usd_per_gb: pool.egress_usd_per_gb,
                capacity: considered.capacity,
                headroom: considered.free_share,
                ramp: considered.ramp,
                wait_s: considered.wait_s,
                // Each tells of the same queue, from its own last look at it.
                backlog_s: pool
                    .workers
                    .iter()
                    .filter_map(|worker| worker.report.as_ref())
                    .max_by_key(|report| report.at)
                    .map_or(0.0, |report| report.load.pool_work_seconds),
                cost_s: considered.f_s,
                share: considered.share,
                rejected: considered.rejected.map(label),
                source,
                tls: written.and_then(|pool| pool.tls.as_ref()).map(ToString::to_string),
                workers: workers.collect(),
            }
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_generation,
            pools: pools.collect(),
            overrides: fleet.overrides().1,
        }
    }
}

/// An enum's name as it stands in JSON.
fn label(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(label)) => label,
        _ => String::new(),
    }
}
