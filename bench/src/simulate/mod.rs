//! A simulated day: the real routing code in virtual time, beside what others would have done with the same jobs.
//!
//! [`jobs`] draws what arrives, [`cluster`] is what runs and waits and what is said of it, [`claim`] the store's rule of
//! who takes what, [`gateway`] our routing with what each gateway has seen, [`peers`] everybody else, [`day`] the events,
//! [`table`] and [`plot`] show it, [`pick`] measures what one decision costs. Everything is seeded.
//!
//! Rejected: a model of the formulas. It would show what they should do, not what the code does.

pub mod claim;
pub mod cluster;
pub mod day;
pub mod gateway;
pub mod jobs;
pub mod peers;
pub mod pick;
pub mod plot;
pub mod table;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};

use cluster::Queues;
use day::{Fault, Incident, Outcome, PoolSetting, Setting};
use jobs::{Lengths, Workload};
use peers::Rule;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hours of arrivals in each day.
    pub hours: f64,
    /// How many seeds; medians are shown.
    pub seeds: u64,
    /// The first of them.
    pub first_seed: u64,
    /// Where tables and plots go.
    pub out: PathBuf,
    /// Also other lengths, 16 gateways, and jobs of which nothing is known.
    pub all: bool,
}

/// Medians over the seeds of one policy in one scenario.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// How places are chosen.
    pub rule: Rule,
    /// Who owns waiting work.
    pub queues: Queues,
    /// Half of the jobs are finished within this many seconds of being posted …
    pub p50_s: f64,
    /// … and 99 % within this many.
    pub p99_s: f64,
    /// US dollars a day for inputs that left their pool.
    pub egress_usd: f64,
    /// Share of jobs in the fast pool.
    pub fast_share: f64,
}

/// A scenario's name and rows.
pub type Scenario = (String, Vec<Row>);

/// The day of the issue: two pools of fifty, one half as fast, eight gateways.
pub fn setting(load: f64, hours: f64) -> Setting {
    let pool = |name, speed, egress_usd_per_gb| PoolSetting {
        name,
        workers: 50,
        speed,
        egress_usd_per_gb,
        fault: Fault::None,
    };
    let seconds = hours * 3600.0;
    Setting {
        pools: vec![pool("aws", 1.0, 0.09), pool("gcp", 0.5, 0.12)],
        gateways: 8,
        wait_usd_per_hour: 1.0,
        workload: Workload::default(),
        load,
        seconds,
        incident: Incident::None,
        incident_at_s: seconds / 3.0,
        incident_s: 3600.0_f64.min(seconds / 6.0),
        warm_up_s: 1800.0_f64.min(seconds / 6.0),
    }
}

/// All policies that are compared.
pub fn policies() -> Vec<(Rule, Queues)> {
    let mut policies = vec![(Rule::Millrace, Queues::Pools)];
    for queues in [Queues::Workers, Queues::Pools] {
        let peers = Rule::ALL.into_iter().filter(|rule| *rule != Rule::Millrace && !rule.is_central());
        policies.extend(peers.map(|rule| (rule, queues)));
    }
    policies
        .extend(Rule::ALL.into_iter().filter(|rule| rule.is_central()).map(|rule| (rule, Queues::Workers)));
    policies
}

fn scenarios(options: &Options) -> Vec<(String, Setting)> {
    let at = |load| setting(load, options.hours);
    let mut scenarios: Vec<(String, Setting)> =
        [0.6, 0.85, 0.95].into_iter().map(|load| (format!("load {load}"), at(load))).collect();
    let lost = Setting { incident: Incident::Lost(1), ..at(0.6) };
    scenarios.push(("load 0.6, the slow pool lost for an hour".to_owned(), lost));
    let fast_lost = Setting { incident: Incident::Lost(0), ..at(0.6) };
    scenarios.push(("load 0.6, the fast pool lost for an hour".to_owned(), fast_lost));
    let brown_out = Setting { incident: Incident::BrownOut(0, 1.0 / 3.0), ..at(0.6) };
    scenarios.push(("load 0.6, the fast pool at a third of its speed for an hour".to_owned(), brown_out));
    if options.all {
        for lengths in [Lengths::LogNormal(1.5), Lengths::Exponential, Lengths::Pareto(2.2)] {
            let workload = Workload { lengths, ..Workload::default() };
            scenarios.push((format!("load 0.85, lengths {lengths:?}"), Setting { workload, ..at(0.85) }));
        }
        scenarios.push(("load 0.85, 16 gateways".to_owned(), Setting { gateways: 16, ..at(0.85) }));
        let blind = Workload { hinted: 0.0, ..Workload::default() };
        scenarios.push((
            "load 0.85, no client tells a length".to_owned(),
            Setting { workload: blind, ..at(0.85) },
        ));
        let half = Workload { hinted: 0.5, ..Workload::default() };
        scenarios.push(("load 0.85, half of them do".to_owned(), Setting { workload: half, ..at(0.85) }));
        let nowhere = Workload { stored: 0.0, ..Workload::default() };
        scenarios
            .push(("load 0.85, every input by URL".to_owned(), Setting { workload: nowhere, ..at(0.85) }));
    }
    scenarios
}

/// Simulates, prints the tables, and leaves them with the plots below `out`.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn run(options: &Options) -> Result<()> {
    std::fs::create_dir_all(&options.out).context("create the directory for the results")?;
    let scenarios = scenarios(options);
    let policies = policies();
    let seeds: Vec<u64> = (0..options.seeds).map(|seed| options.first_seed + seed).collect();
    let mut work = Vec::new();
    for scenario in 0..scenarios.len() {
        for policy in 0..policies.len() {
            work.extend(seeds.iter().map(|seed| (scenario, policy, *seed)));
        }
    }
    let outcomes = in_parallel(&work, |(scenario, policy, seed)| {
        let (rule, queues) = policies[*policy];
        Summary::of(&scenarios[*scenario].1.run(rule, queues, *seed))
    });
    let mut results: Vec<Scenario> = Vec::new();
    let mut rest = outcomes.as_slice();
    for (name, _) in &scenarios {
        let mut rows = Vec::new();
        for (rule, queues) in &policies {
            let (these, others) = rest.split_at(seeds.len());
            rest = others;
            let median = |of: fn(&Summary) -> f64| quantile(&these.iter().map(of).collect::<Vec<_>>(), 0.5);
            rows.push(Row {
                rule: *rule,
                queues: *queues,
                p50_s: median(|one| one.p50_s),
                p99_s: median(|one| one.p99_s),
                egress_usd: median(|one| one.egress_usd) * 24.0 / options.hours,
                fast_share: median(|one| one.fast_share),
            });
        }
        results.push((name.clone(), rows));
    }
    let text = table::render(&results, options);
    print!("{text}");
    std::fs::write(options.out.join("routing.txt"), &text).context("write the table")?;
    let plot = options.out.join("routing.svg");
    plot::draw(&results, &plot).context("draw the plot")?;
    println!("{}", plot.display());
    Ok(())
}

struct Summary {
    p50_s: f64,
    p99_s: f64,
    egress_usd: f64,
    fast_share: f64,
}

impl Summary {
    fn of(outcome: &Outcome) -> Self {
        Self {
            egress_usd: outcome.egress_usd,
            fast_share: outcome.first_pool_share,
            p99_s: quantile(&outcome.finish_s, 0.99),
            p50_s: quantile(&outcome.finish_s, 0.5),
        }
    }
}

/// The value that this share of all does not exceed; 0 of none.
pub fn quantile(of: &[f64], share: f64) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Maps on as many threads as there are cores; the order stays.
fn in_parallel<T: Sync, R: Send>(of: &[T], map: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(of.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = of.get(place) else { return };
                    let result = map(item);
                    done.lock().expect("nothing panics while holding the results").push((place, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nothing panics while holding the results");
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}
