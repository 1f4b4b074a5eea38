mod claims;

use std::collections::HashMap;

use millrace_wire::LoadReport;
use millrace_wire::load::{SLOTS_MAX, SPEED_MAX};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use smallvec::smallvec;

use super::explain::{PoolRejection, Reason, Rejection, Terms, Why};
use super::*;
use crate::fleet::sample;
use crate::fleet::snapshot::{Compensation, Health, Pool, Report, Worker};

const NOW: Duration = Duration::from_secs(1000);

fn load() -> LoadReport {
    sample::report("p")
}

fn worker(port: u16, load: LoadReport) -> Worker {
    Worker {
        health: Health::Up,
        report: Some(Report { at: NOW, load }),
        round_trip: Duration::from_millis(1),
        ..Worker::new(SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

fn busy(waiting: u32) -> LoadReport {
    LoadReport { running: 2, queued: waiting, work_seconds: 60.0 * f64::from(2 + waiting), ..load() }
}

fn pool(name: &str, workers: Vec<Worker>) -> Pool {
    Pool {
        id: name.parse().unwrap(),
        weight: 1.0,
        egress_usd_per_gb: 0.1,
        drain: false,
        back_at: None,
        reliability: Default::default(),
        workers,
    }
}

fn snapshot(pools: Vec<Pool>) -> Snapshot {
    Snapshot { wait_usd_per_second: 1.0 / 3600.0, pools }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn decide(snapshot: &Snapshot, job: &Job) -> Result<Decision, Box<Refusal>> {
    submit(snapshot, job, &Exclude::default(), NOW, &mut rng())
}

/// How often each pool is chosen, as shares.
fn shares(snapshot: &Snapshot, job: &Job) -> HashMap<String, f64> {
    let (mut rng, mut shares) = (rng(), HashMap::new());
    for _ in 0..4000 {
        let decision = submit(snapshot, job, &Exclude::default(), NOW, &mut rng).unwrap();
        *shares.entry(decision.pool.to_string()).or_default() += 1.0 / 4000.0;
    }
    shares
}

#[test]
fn shares_follow_the_operators_weights() {
    let mut two = snapshot(vec![
        pool("aws", vec![worker(1, load()), worker(2, load())]),
        pool("gcp", vec![worker(3, load()), worker(4, load())]),
    ]);
    assert!((shares(&two, &Job::default())["aws"] - 0.5).abs() < 0.04);
    two.pools[0].weight = 3.0;
    assert!((shares(&two, &Job::default())["aws"] - 0.75).abs() < 0.04);
    two.pools[0].weight = 0.0;
    assert!(!shares(&two, &Job::default()).contains_key("aws"));
}

#[test]
fn a_saturated_pool_gets_nothing_and_all_saturated_is_a_refusal_with_the_least_wait() {
    let full = |waiting| busy(waiting);
    let mut two = snapshot(vec![pool("aws", vec![worker(1, full(4))]), pool("gcp", vec![worker(2, load())])]);
    let decision = decide(&two, &Job::default()).unwrap();
    assert_eq!((decision.pool.as_str(), decision.reason), ("gcp", Reason::Only));
    assert_eq!(decision.pools[0].rejected, Some(PoolRejection::Saturated));
    two.pools[1].workers[0].report =
        Some(Report { at: NOW, load: LoadReport { work_seconds: 100.0, ..full(4) } });
    let refusal = decide(&two, &Job::default()).unwrap_err();
    assert_eq!(refusal.why, Why::Saturated);
    let after = refusal.retry_after_s.unwrap();
    assert!((40..=60).contains(&after), "{after} is not 50 ± 20 %");
}

/// The wait of a pool of one-slot workers that run these seconds of work, while so many more wait.
fn wait(running: &[f64], waiting: f64) -> f64 {
    let lanes = running.iter().enumerate().map(|(place, left)| {
        let load = LoadReport {
            slots: 1,
            running: 1,
            work_seconds: *left,
            pool_work_seconds: waiting,
            queue_max: 1000,
            ..load()
        };
        worker(place as u16 + 1, load)
    });
    let snapshot = snapshot(vec![pool("aws", lanes.collect())]);
    decide(&snapshot, &Job::default()).unwrap().pools[0].wait_s
}

#[test]
fn a_pools_wait_is_when_it_would_start_one_more_job() {
    let near = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-9, "{got}, not {wanted}");
    near(wait(&[60.0, 1.0], 0.0), 1.0); // the neighbour of a long job is free in a second
    near(wait(&[60.0, 1.0], 10.0), 11.0); // and takes all that waits before the long job ends
    near(wait(&[4.0, 2.0], 6.0), 6.0); // from 4 s on both take of it
    near(wait(&[5.0, 5.0, 5.0], 9.0), 8.0);
}

#[test]
fn a_queue_never_fills_up_with_work_that_can_wait() {
    let at = |priority, waiting| {
        let one = snapshot(vec![pool("aws", vec![worker(1, LoadReport { queue_max: 10, ..busy(waiting) })])]);
        decide(&one, &Job { priority, ..Job::default() }).is_ok()
    };
    assert!(at(Priority::Batch, 4) && !at(Priority::Batch, 5));
    assert!(at(Priority::Normal, 7) && !at(Priority::Normal, 8));
    assert!(at(Priority::Live, 9) && !at(Priority::Live, 10));
}

#[test]
fn work_follows_its_data_unless_waiting_costs_more() {
    let job = Job { input_pool: "aws".parse().ok(), input_gb: 1.0, ..Job::default() };
    // 0.1 USD a gigabyte at 1 USD an hour of waiting: 360 s.
    let near = snapshot(vec![pool("aws", vec![worker(1, busy(1))]), pool("gcp", vec![worker(2, load())])]);
    let decision = decide(&near, &job).unwrap();
    assert_eq!(decision.pools[1].workers[0].terms.unwrap().egress_s.round(), 360.0);
    assert!(shares(&near, &job)["aws"] > 0.9);
    let far = snapshot(vec![
        pool("aws", vec![worker(1, LoadReport { work_seconds: 900.0, ..busy(2) })]),
        pool("gcp", vec![worker(2, load())]),
    ]);
    assert!(shares(&far, &job)["gcp"] > 0.9);
}

#[test]
fn stale_reports_count_less_until_most_are_stale() {
    let aged = |port, seconds| {
        let report = Some(Report { at: NOW - Duration::from_secs(seconds), load: load() });
        Worker { report, ..worker(port, load()) }
    };
    let one = snapshot(vec![pool("aws", vec![aged(1, 0), aged(2, 10), aged(3, 20), aged(4, 1)])]);
    let workers = &decide(&one, &Job::default()).unwrap().pools[0].workers;
    assert_eq!(workers[1].terms.unwrap().age_s, 10.0);
    assert_eq!(workers[2].rejected, Some(Rejection::Stale));
    let starved = snapshot(vec![pool("aws", vec![aged(1, 0), aged(2, 20), aged(3, 40)])]);
    let workers = &decide(&starved, &Job::default()).unwrap().pools[0].workers;
    assert_eq!((workers[1].rejected, workers[2].rejected), (None, None), "the last known stands");
}

#[test]
fn submits_on_their_way_count_as_work() {
    let mut one = snapshot(vec![pool("aws", vec![worker(1, load())])]);
    let wait = |snapshot: &Snapshot| {
        decide(snapshot, &Job::default()).unwrap().pools[0].workers[0].terms.unwrap().wait_s
    };
    assert_eq!(wait(&one), 0.0);
    one.pools[0].workers[0].compensation = Compensation { jobs: 2, work_s: 80.0, timed_out: Vec::new() };
    assert_eq!(wait(&one), 40.0);
    one.pools[0].workers[0].compensation =
        Compensation { jobs: 1, work_s: 40.0, timed_out: vec![(NOW + Duration::from_secs(1), 40.0)] };
    assert_eq!(wait(&one), 40.0, "one that timed out counts for a while");
}

#[test]
fn after_an_unknown_outcome_only_the_same_store_will_do() {
    let other = LoadReport { store_id: "other".to_owned(), ..load() };
    let two = snapshot(vec![pool("aws", vec![worker(1, load()), worker(2, other)])]);
    let exclude = Exclude {
        tried: smallvec![two.pools[0].workers[0].address],
        store: Some("s".to_owned()),
        ..Exclude::default()
    };
    let refusal = submit(&two, &Job::default(), &exclude, NOW, &mut rng()).unwrap_err();
    assert_eq!(refusal.why, Why::Exhausted);
    assert_eq!(refusal.pools[0].workers[1].rejected, Some(Rejection::OtherStore));
}

#[test]
fn a_pool_that_comes_back_ramps_up() {
    let mut two = snapshot(vec![pool("aws", vec![worker(1, load())]), pool("gcp", vec![worker(2, load())])]);
    two.pools[0].back_at = Some(NOW - Duration::from_secs(10));
    let share = shares(&two, &Job::default())["aws"];
    assert!((share - 0.25).abs() < 0.04, "a third of the other's weight, not {share}");
}

#[test]
fn an_ejected_worker_gets_one_request_to_prove_itself() {
    let mut one = snapshot(vec![pool("aws", vec![worker(1, load()), worker(2, load())])]);
    let trial = &mut one.pools[0].workers[0];
    (trial.on_trial, trial.ejected_until) = (true, Some(NOW - Duration::from_secs(1)));
    assert_eq!(decide(&one, &Job::default()).unwrap().pools[0].workers[0].rejected, None);
    one.pools[0].workers[0].compensation.jobs = 1;
    assert_eq!(decide(&one, &Job::default()).unwrap().pools[0].workers[0].rejected, Some(Rejection::OnTrial));
}

#[test]
fn many_gateways_spread_over_equal_workers() {
    let one = snapshot(vec![pool("aws", (1..=100).map(|port| worker(port, load())).collect())]);
    let (mut rng, mut hit) = (rng(), HashMap::<SocketAddr, u32>::new());
    for _ in 0..5000 {
        *hit.entry(submit(&one, &Job::default(), &Exclude::default(), NOW, &mut rng).unwrap().address)
            .or_default() += 1;
    }
    assert!(hit.len() == 100 && hit.values().all(|n| (15..=110).contains(n)), "{hit:?}");
}

#[test]
fn a_sample_of_many_finds_the_few_that_are_free() {
    for free in [1, 3, 20] {
        let member = |port| worker(port, if port <= free { load() } else { busy(1) });
        let one = snapshot(vec![pool("aws", (1..=1000).map(member).collect())]);
        let mut rng = rng();
        let view = View::new(&one, NOW);
        for _ in 0..200 {
            let choice = view.submit(&Job::default(), &Exclude::default(), &mut rng).unwrap();
            assert!(choice.address.port() <= free, "{} is busy", choice.address);
        }
    }
}

#[test]
fn a_pool_that_only_fails_is_tried_and_attracts_nothing() {
    let failing = |port| Worker { failing_until: Some(NOW + Duration::from_secs(1)), ..worker(port, load()) };
    let two = snapshot(vec![
        pool("aws", (1..=4).map(|port| worker(port, LoadReport { running: 1, ..load() })).collect()),
        pool("gcp", (5..=8).map(failing).collect()),
    ]);
    let share = shares(&two, &Job::default())["gcp"];
    assert!((0.01..0.08).contains(&share), "{share}");
}

#[test]
fn a_pool_that_failed_as_a_whole_gets_little_and_comes_back() {
    let mut two = snapshot(vec![pool("aws", vec![worker(1, busy(0))]), pool("gcp", vec![worker(2, load())])]);
    assert!(shares(&two, &Job::default())["gcp"] > 0.99, "the other one is busy for a minute");
    (0..8).for_each(|_| two.pools[1].reliability.failed(NOW));
    assert!(shares(&two, &Job::default()).get("gcp").is_none_or(|share| *share < 0.01));
    for worker in two.pools.iter_mut().flat_map(|pool| &mut pool.workers) {
        worker.report.as_mut().unwrap().at += Duration::from_secs(900);
    }
    let later = NOW + Duration::from_secs(900);
    let record = consider(&two, &Job::default(), &Exclude::default(), later);
    assert!(record[1].share > 0.9, "{record:?}");
}

#[test]
fn a_steal_costs_what_another_pool_is_worse() {
    let slow = LoadReport { speed: 0.5, ..load() };
    let two = snapshot(vec![pool("aws", vec![worker(1, load())]), pool("gcp", vec![worker(2, slow)])]);
    let view = View::new(&two, NOW);
    let job = Job { input_pool: "aws".parse().ok(), input_gb: 0.1, ..Job::default() };
    // 0.01 USD at 1 USD an hour, and a minute of work that takes two there.
    let [(gcp, price)] = &view.steal_prices(&job, 0)[..] else { panic!("one other pool") };
    assert_eq!((gcp.as_str(), price.round()), ("gcp", 96.0));
    assert_eq!(view.steal_prices(&job, 1)[0].1, 0.0, "work may always go home");
    assert_eq!(decide(&two, &job).unwrap().steal.len(), 1);
}

#[test]
fn a_slow_read_is_forgotten_while_nobody_asks() {
    let slow = Worker { read_latency_s: 5.0, read_at: NOW - Duration::from_secs(100), ..worker(1, load()) };
    let quick = Worker { read_latency_s: 0.02, read_at: NOW, ..worker(2, load()) };
    let mut one = snapshot(vec![pool("aws", vec![slow, quick])]);
    let share_of_first = |snapshot: &Snapshot| {
        let (view, mut rng) = (View::new(snapshot, NOW), rng());
        let mut go =
            || view.read(None, Draining::Welcome, &Exclude::default(), &mut rng).unwrap().address.port();
        (0..400).filter(|_| go() == 1).count()
    };
    assert!(share_of_first(&one) > 200, "it is tried again");
    one.pools[0].workers[0].read_at = NOW;
    assert!(share_of_first(&one) < 150, "only where both of the two are this one");
}

#[test]
fn reads_go_to_healthy_workers_and_fail_open() {
    let mut one = snapshot(vec![pool("aws", vec![worker(1, load()), worker(2, load())])]);
    one.pools[0].workers[0].health = Health::Down { reason: "refused".to_owned() };
    let (up, down) = (one.pools[0].workers[1].address, one.pools[0].workers[0].address);
    let go = |snapshot: &Snapshot, exclude: &Exclude| {
        let chosen = View::new(snapshot, NOW).read(None, Draining::Welcome, exclude, &mut rng());
        chosen.map(|chosen| chosen.address)
    };
    assert_eq!(go(&one, &Exclude::default()), Some(up));
    let tried = Exclude { tried: smallvec![up], ..Exclude::default() };
    assert_eq!(go(&one, &tried), Some(down), "better a last try than none");
    one.pools[0].workers[1].drain = true;
    assert_eq!(go(&one, &Exclude::default()), Some(up), "a draining worker reads on");
    one.pools[0].workers[0].health = Health::Up;
    one.pools[0].workers[1].report = Some(Report { at: NOW - Duration::from_secs(4), load: load() });
    assert_eq!(go(&one, &Exclude::default()), Some(down), "one that is silent may hang");
    let gcp = "gcp".parse().unwrap();
    let view = View::new(&one, NOW);
    assert_eq!(view.read(Some(&gcp), Draining::LastResort, &Exclude::default(), &mut rng()), None);
}

#[test]
fn work_is_estimated_from_what_the_client_tells() {
    let job = |body: &str| Job::new(&SpecHead::peek(body.as_bytes()).unwrap());
    assert_eq!(job("{}"), Job::default());
    let short = job(r#"{"duration_hint_s":10,"resolutions":["360p"]}"#);
    let ladder = job(r#"{"duration_hint_s":10}"#);
    assert!(short.work_s < ladder.work_s / 3.0 && short.work_s > 1.0);
    let sized = job(r#"{"size_hint_bytes":6250000,"input_path":"gcp/k/v"}"#);
    assert_eq!((sized.work_s, sized.input_gb), (ladder.work_s, 0.00625));
    assert_eq!(sized.input_pool, "gcp".parse().ok());
}

#[test]
fn a_decision_serialises_with_every_term_and_reason() {
    let mut two = snapshot(vec![pool("aws", vec![worker(1, load())]), pool("gcp", vec![worker(2, load())])]);
    two.pools[1].drain = true;
    let json = serde_json::to_value(decide(&two, &Job::default()).unwrap()).unwrap();
    assert_eq!(json["pools"][1]["rejected"], "draining");
    assert_eq!(json["pools"][1]["workers"][0]["rejected"], "pool_draining");
    assert_eq!(json["pools"][0]["workers"][0]["terms"]["job_s"], 60.0);
    assert_eq!(json["reason"], "only");
}

fn any_load() -> impl Strategy<Value = LoadReport> {
    let count = prop_oneof![Just(0_u32), 0..20_u32, Just(1_000_000)];
    let amount = prop_oneof![Just(0.0), 0.0..1000.0, Just(1e9)];
    let speed = prop_oneof![Just(1e-6), 0.1..4.0, Just(SPEED_MAX)];
    let counts = (1..=SLOTS_MAX, count.clone(), count.clone(), count.clone(), count);
    (counts, (amount.clone(), amount, speed), any::<bool>()).prop_map(
        |(
            (slots, running, queued, queue_max, pool_queued),
            (work_seconds, pool_work_seconds, speed),
            draining,
        )| {
            let all = LoadReport { slots, running, queued, queue_max, pool_queued, work_seconds, ..load() };
            LoadReport { pool_work_seconds, speed, draining, ..all }.validate().unwrap()
        },
    )
}

fn any_worker() -> impl Strategy<Value = Worker> {
    let health = prop_oneof![
        6 => Just(Health::Up),
        1 => Just(Health::Unknown),
        1 => Just(Health::Down { reason: String::new() })
    ];
    let report = prop::option::weighted(0.9, (any_load(), 0..2000_u64));
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), any::<bool>());
    let times = (prop::option::weighted(0.2, 900..1100_u64), 0..10_000_u64);
    let outstanding = (0..5_u32, prop_oneof![Just(0.0), 0.0..1e6]);
    (health, report, flags, times, outstanding).prop_map(
        |(health, report, (drain, on_trial, failing), (ejected, rtt), (jobs, work_s))| Worker {
            drain,
            health,
            // Some reports come "from the future": a clock read a moment earlier.
            report: report.map(|(load, at)| Report { at: Duration::from_secs(at), load }),
            compensation: Compensation { jobs, work_s, timed_out: vec![(NOW, work_s)] },
            ejected_until: ejected.map(Duration::from_secs),
            on_trial,
            failing_until: failing.then_some(NOW + Duration::from_secs(1)),
            round_trip: Duration::from_millis(rtt),
            ..worker(0, load())
        },
    )
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let number = || prop_oneof![Just(0.0), 0.0..10.0, Just(1e-300), Just(1e6)];
    let price = prop_oneof![Just(1e-12), 1e-6..1.0];
    let any_pool = (
        number(),
        number(),
        prop::bool::weighted(0.1),
        prop::option::of(900..1100_u64),
        prop::collection::vec(any_worker(), 0..80),
    );
    (price, prop::collection::vec(any_pool, 0..4)).prop_map(|(wait_usd_per_second, pools)| {
        let mut port = 0;
        let pools = pools.into_iter().enumerate().map(
            |(index, (weight, egress_usd_per_gb, drain, back, mut workers))| {
                for worker in &mut workers {
                    port += 1;
                    worker.address.set_port(port);
                }
                let back_at = back.map(Duration::from_secs);
                Pool { weight, egress_usd_per_gb, drain, back_at, ..pool(&format!("p{index}"), workers) }
            },
        );
        Snapshot { wait_usd_per_second, pools: pools.collect() }
    })
}

fn any_job() -> impl Strategy<Value = Job> {
    let work = prop_oneof![Just(0.0), 0.0..1e4, Just(1e12)];
    (prop::sample::select(&Priority::ALL[..]), prop::option::of(0..5_u8), work.clone(), work).prop_map(
        |(priority, pool, work_s, input_gb)| Job {
            priority,
            input_pool: pool.map(|index| format!("p{index}").parse().unwrap()),
            work_s,
            input_gb,
        },
    )
}

proptest! {
    #[test]
    fn no_input_gives_nonsense(snapshot in any_snapshot(), job in any_job(), seed: u64) {
        let result = submit(&snapshot, &job, &Exclude::default(), NOW, &mut StdRng::seed_from_u64(seed));
        let pools = match &result {
            Ok(decision) => &decision.pools,
            Err(refusal) => &refusal.pools,
        };
        for pool in pools {
            for number in [pool.capacity, pool.k, pool.free_share, pool.wait_s, pool.f_s, pool.weight, pool.share] {
                prop_assert!(number.is_finite() && number >= 0.0, "{number} in {pool:?}");
            }
            for terms in pool.workers.iter().filter_map(|worker| worker.terms) {
                prop_assert!(terms.f_s().is_finite() && terms.f_s() >= 0.0, "{terms:?}");
            }
        }
        let open: Vec<_> = pools.iter().filter(|pool| pool.rejected.is_none()).collect();
        prop_assert_eq!(result.is_ok(), !open.is_empty(), "whoever can take it gets it");
        if !open.is_empty() {
            let total: f64 = open.iter().map(|pool| pool.share).sum();
            prop_assert!((total - 1.0).abs() < 1e-6 || open.iter().all(|pool| !pool.weight.is_normal()), "shares add up to {total}");
        }
        if let Err(refusal) = &result {
            prop_assert_eq!(refusal.why == Why::Saturated, refusal.retry_after_s.is_some());
            prop_assert!(refusal.retry_after_s.is_none_or(|after| (1..=360).contains(&after)));
        }
    }

    #[test]
    fn who_must_not_work_never_does(snapshot in any_snapshot(), job in any_job(), seed: u64) {
        if let Ok(decision) = submit(&snapshot, &job, &Exclude::default(), NOW, &mut StdRng::seed_from_u64(seed)) {
            let (pool, worker) = snapshot.find(decision.address).unwrap();
            prop_assert!(pool.id == decision.pool && !pool.drain && pool.weight > 0.0);
            prop_assert!(worker.answers(NOW) && !worker.drains(), "{worker:?}");
            let report = worker.report.as_ref().unwrap();
            let held = u64::from(report.load.running) + u64::from(report.load.queued) + u64::from(worker.compensation.at(NOW).0);
            let room = f64::from(report.load.slots) + f64::from(report.load.queue_max) * job.priority.queue_share();
            prop_assert!(held < u64::from(report.load.slots) || (held as f64) < room, "{report:?}");
            let again = Exclude { tried: smallvec![decision.address], store: Some("nobody's".to_owned()), ..Exclude::default() };
            prop_assert!(submit(&snapshot, &job, &again, NOW, &mut StdRng::seed_from_u64(seed)).is_err());
        }
    }

    #[test]
    fn the_record_tells_what_the_choice_did(snapshot in any_snapshot(), job in any_job(), seed: u64, tried in 0..9_u16) {
        let tried = (1..tried).map(|port| worker(port, load()).address).collect();
        let exclude = Exclude { tried, ..Exclude::default() };
        let record = consider(&snapshot, &job, &exclude, NOW);
        let choice = View::new(&snapshot, NOW).submit(&job, &exclude, &mut StdRng::seed_from_u64(seed));
        match choice {
            Ok(choice) => {
                let pool = &record[choice.pool];
                let chosen = &pool.workers[choice.worker];
                prop_assert_eq!(chosen.address, choice.address);
                prop_assert!(pool.rejected.is_none() && pool.share > 0.0, "{pool:?}");
                let f_s = chosen.candidate().unwrap().f_s();
                let candidates = pool.workers.iter().filter_map(|worker| worker.candidate()).map(Terms::f_s);
                let least = candidates.clone().min_by(f64::total_cmp).unwrap();
                let band = least + worker::BAND_S.max(least * worker::BAND_SHARE);
                prop_assert!(candidates.count() > worker::SAMPLE_ABOVE || f_s <= band * (1.0 + 1e-9), "{f_s} > {band}");
                prop_assert_eq!(choice.reason == Reason::Least, exclude.tried.is_empty() && pool.is_least && choice.reason != Reason::Only);
            }
            Err(refused) => {
                prop_assert!(record.iter().all(|pool| pool.rejected.is_some()));
                let again = submit(&snapshot, &job, &exclude, NOW, &mut StdRng::seed_from_u64(seed)).unwrap_err();
                prop_assert_eq!((again.why, again.retry_after_s), (refused.why, refused.retry_after_s));
            }
        }
    }

    #[test]
    fn the_terms_add_up(snapshot in any_snapshot(), job in any_job()) {
        let sum = |terms: &Terms| {
            let json = serde_json::to_value(terms).unwrap();
            let term = |name: &str| json[name].as_f64().unwrap();
            2.0 * (term("wait_s") + term("age_s")) + term("job_s") + term("round_trip_s") + term("egress_s") + term("failing_s")
        };
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(1.0);
        for pool in consider(&snapshot, &job, &Exclude::default(), NOW) {
            prop_assert!(near(sum(&pool.terms).min(pool::SECONDS_MAX), pool.f_s), "{pool:?}");
            prop_assert!(near(pool.k, pool.capacity * pool.ramp * snapshot.pool(&pool.pool).unwrap().weight));
            for terms in pool.workers.iter().filter_map(|worker| worker.terms.as_ref()) {
                prop_assert!(near(sum(terms), terms.f_s()));
            }
        }
    }

    #[test]
    fn more_capacity_never_raises_the_expected_wait(
        queues in prop::collection::vec((prop::collection::vec(0..4_u32, 1..6), 0.2..3.0_f64), 1..4),
        grows: prop::sample::Index,
        work_s in 1.0..1000.0_f64,
    ) {
        let mut port = 0;
        let mut member = |speed: f64, load: LoadReport| {
            port += 1;
            worker(port, LoadReport { speed, queue_max: 100, ..load })
        };
        let pools = queues.iter().enumerate().map(|(place, (waiting, speed))| {
            let workers = waiting.iter().map(|waiting| member(*speed, busy(*waiting))).collect();
            pool(&format!("p{place}"), workers)
        });
        let mut all = snapshot(pools.collect());
        let job = Job { work_s, ..Job::default() };
        let expected = |snapshot: &Snapshot| -> f64 {
            consider(snapshot, &job, &Exclude::default(), NOW).iter().map(|pool| pool.share * pool.wait_s).sum()
        };
        let before = expected(&all);
        let grown = grows.index(all.pools.len());
        all.pools[grown].workers.push(member(queues[grown].1, load()));
        let after = expected(&all);
        prop_assert!(after <= before * (1.0 + 1e-12), "{before} s before, {after} s after");
    }

    #[test]
    fn another_idle_worker_makes_nobody_wait_longer(queues in prop::collection::vec(0..4_u32, 1..8), seed: u64) {
        let workers: Vec<Worker> = queues.iter().zip(1..).map(|(waiting, port)| worker(port, busy(*waiting))).collect();
        let mut one = snapshot(vec![pool("aws", workers)]);
        let live = Job { priority: Priority::Live, ..Job::default() };
        let wait = |snapshot: &Snapshot| {
            let mut rng = StdRng::seed_from_u64(seed);
            let waits = (0..200).map(|_| {
                let decision = submit(snapshot, &live, &Exclude::default(), NOW, &mut rng).unwrap();
                let chosen = decision.pools[0].workers.iter().find(|worker| worker.address == decision.address);
                chosen.unwrap().terms.unwrap().wait_s
            });
            waits.sum::<f64>() / 200.0
        };
        let before = wait(&one);
        one.pools[0].workers.push(worker(99, load()));
        let after = wait(&one);
        prop_assert!(after <= before && after <= worker::BAND_S / 2.0, "{before} s before, {after} s after");
    }
}

proptest! {
    // Two thousand workers a case.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_small_pool_beside_a_large_one_is_weighed_by_its_capacity(
        states in (0..4_u8, 0..4_u8), prices in (prop_oneof![Just(0.0), 0.0..1.0], prop_oneof![Just(0.0), 0.0..1.0]), seed: u64,
    ) {
        let member = |port: u16, state: u8| match state {
            0 => worker(port, load()),
            1 => worker(port, busy(1)),
            2 => worker(port, busy(4)),
            _ => Worker { report: Some(Report { at: NOW - Duration::from_secs(60), load: load() }), ..worker(port, load()) },
        };
        let mut two = snapshot(vec![
            pool("small", (1..=2).map(|port| member(port, states.0)).collect()),
            pool("large", (3..=2002).map(|port| member(port, states.1)).collect()),
        ]);
        (two.pools[0].egress_usd_per_gb, two.pools[1].egress_usd_per_gb) = prices;
        let job = Job { input_pool: "small".parse().ok(), ..Job::default() };
        let decided = submit(&two, &job, &Exclude::default(), NOW, &mut StdRng::seed_from_u64(seed));
        let record = consider(&two, &job, &Exclude::default(), NOW);
        prop_assert_eq!(decided.is_err(), states == (2, 2), "only where all are full");
        for pool in &record {
            prop_assert!(pool.f_s.is_finite() && pool.weight.is_finite() && (0.0..=1.0).contains(&pool.share));
        }
        if states == (0, 0) && prices.0 <= 0.0 {
            let share = record[0].share;
            prop_assert!((share - 0.001).abs() < 1e-4, "2 of 2002 workers have a share of {share}");
        }
    }
}
