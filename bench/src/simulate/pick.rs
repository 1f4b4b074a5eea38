//! What one decision costs: choosing among 10, 100 and 10,000 workers, and making the view that it chooses from.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millrace_gateway::fleet::snapshot::{Health, Pool, Report, Snapshot, Worker};
use millrace_gateway::route::{Chance, Draining, Exclude, Job, View};
use millrace_wire::LoadReport;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const NOW: Duration = Duration::from_secs(1000);
/// How many rounds are timed; the quickest and the median are shown.
const ROUNDS: usize = 25;

/// What was measured with so many workers in two pools.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// How many workers.
    pub workers: usize,
    /// Nanoseconds for a submit: the quickest round, and the median.
    pub submit_ns: (f64, f64),
    /// Nanoseconds for a read.
    pub read_ns: (f64, f64),
    /// Nanoseconds for making the view.
    pub view_ns: (f64, f64),
    /// Nanoseconds for a submit's whole record, which only `explain` makes.
    pub record_ns: (f64, f64),
}

/// A fleet of which three quarters are busy.
pub fn fleet(workers: usize) -> Snapshot {
    let mut rng = StdRng::seed_from_u64(1);
    let pool = |name: &str, first: usize| {
        let worker = |place: usize| {
            let busy = rng.random::<f64>() < 0.75;
            let load = LoadReport {
                worker: format!("{name}-{place}").parse().expect("a worker's name"),
                pool: name.parse().expect("a pool's name"),
                store_id: "store".to_owned(),
                slots: 2,
                running: if busy { 2 } else { rng.random_range(0..2) },
                queued: 0,
                queue_max: 16,
                work_seconds: rng.random_range(1.0..300.0),
                speed: rng.random_range(0.8..1.2),
                pool_queued: 0,
                pool_work_seconds: 0.0,
                draining: false,
                incarnation: 1,
                sequence: 1,
            };
            Worker {
                health: Health::Up,
                report: Some(Report { at: NOW - Duration::from_millis(rng.random_range(0..1000)), load }),
                round_trip: Duration::from_millis(2),
                read_latency_s: rng.random_range(0.001..0.1),
                ..Worker::new(SocketAddr::from(([10, 0, (place >> 8) as u8, place as u8], 80)))
            }
        };
        let workers = (first..first + workers / 2).map(worker).collect();
        let id = name.parse().expect("a pool's name");
        let (back_at, reliability) = (None, Default::default());
        Pool { id, weight: 1.0, egress_usd_per_gb: 0.1, drain: false, back_at, reliability, workers }
    };
    let mut pool = pool;
    let pools = vec![pool("aws", 0), pool("gcp", workers / 2)];
    Snapshot { wait_usd_per_second: 1.0 / 3600.0, pools }
}

/// Measures.
pub fn measure(workers: usize) -> Cost {
    let snapshot = fleet(workers);
    let view = View::new(&snapshot, NOW);
    // The generator that the gateway uses.
    let mut rng = Chance;
    let job = Job { input_pool: Some(snapshot.pools[0].id.clone()), ..Job::default() };
    let nowhere = Exclude::default();
    Cost {
        workers,
        submit_ns: timed(20_000, || view.submit(black_box(&job), &nowhere, &mut rng).is_ok()),
        read_ns: timed(20_000, || view.read(None, Draining::Welcome, &nowhere, &mut rng).is_some()),
        view_ns: timed(200_000 / workers + 5, || View::new(black_box(&snapshot), NOW).at == NOW),
        record_ns: timed(50_000 / workers + 3, || view.record(&snapshot, black_box(&job)).is_empty()),
    }
}

/// Nanoseconds per call: the quickest round's mean, and the median round's.
fn timed(calls: usize, mut call: impl FnMut() -> bool) -> (f64, f64) {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let since = Instant::now();
        for _ in 0..calls {
            black_box(call());
        }
        rounds.push(since.elapsed().as_secs_f64() * 1e9 / calls as f64);
    }
    rounds.sort_by(f64::total_cmp);
    (rounds[0], rounds[ROUNDS / 2])
}

/// Measures and prints.
pub fn run() {
    println!("One decision, in nanoseconds (quickest round / median), on one thread:");
    println!("{:>8}  {:>16}  {:>16}  {:>22}  {:>22}", "workers", "submit", "read", "view", "record");
    for workers in [10, 100, 10_000] {
        let cost = measure(workers);
        let pair = |(least, median): (f64, f64)| format!("{least:.0} / {median:.0}");
        println!(
            "{workers:>8}  {:>16}  {:>16}  {:>22}  {:>22}",
            pair(cost.submit_ns),
            pair(cost.read_ns),
            pair(cost.view_ns),
            pair(cost.record_ns)
        );
    }
}
