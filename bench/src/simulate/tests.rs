use super::*;

fn p99(of: &[f64]) -> f64 {
    quantile(of, 0.99)
}

/// The pools at a fifth of their size: small enough for an unoptimised build.
fn small(load: f64, hours: f64) -> Setting {
    let mut day = setting(load, hours);
    day.pools.iter_mut().for_each(|pool| pool.workers = 10);
    day
}

#[test]
fn every_policy_finishes_every_job_and_the_same_seed_gives_the_same_day() {
    for (rule, queues) in policies() {
        for incident in [Incident::None, Incident::Lost(0), Incident::BrownOut(0, 0.3)] {
            let day = Setting { incident, warm_up_s: 0.0, ..small(0.6, 0.5) };
            let posted = day.workload.draw(day.load * day.capacity(), day.seconds, 2, 8, 3).len();
            let outcome = day.run(rule, queues, 3);
            assert_eq!(outcome.finish_s.len(), posted, "{rule:?} {queues:?} {incident:?}");
            assert_eq!(outcome.finish_s, day.run(rule, queues, 3).finish_s);
        }
    }
}

#[test]
fn ours_is_ahead_of_peers_without_pool_queues_and_near_a_central_queue() {
    let day = setting(0.85, 2.0);
    let row = |(rule, queues): (Rule, Queues)| {
        let finish_s = day.run(rule, queues, 5).finish_s;
        let (p50_s, p99_s) = (quantile(&finish_s, 0.5), p99(&finish_s));
        Row { rule, queues, p50_s, p99_s, egress_usd: 0.0, fast_share: 0.0 }
    };
    let compared = |(rule, queues): &(Rule, Queues)| *rule == Rule::Millrace || *queues == Queues::Workers;
    let rows: Vec<Row> = policies().into_iter().filter(compared).map(row).collect();
    let (sticky, central) = (table::against_sticky(&rows), table::against_central(&rows));
    assert!(sticky < 0.75 && central < 1.15, "{sticky} of the best peer, {central} of the best central one");
}

/// 60 % of the work that the first pool alone can take, beside a second one with a fault, and without a second one. Both
/// are as fast, so that the faulty one, which is always idle, is attractive.
fn beside(fault: Fault) -> (Outcome, Outcome) {
    let mut day = small(0.3, 6.0);
    (day.pools[1].fault, day.pools[1].speed) = (fault, day.pools[0].speed);
    let mut alone = day.clone();
    alone.pools.truncate(1);
    alone.load = day.load * day.capacity() / alone.capacity();
    (day.run(Rule::Millrace, Queues::Pools, 7), alone.run(Rule::Millrace, Queues::Pools, 7))
}

#[test]
fn a_pool_that_never_answers_fails_or_lies_does_not_slow_the_healthy_one() {
    for fault in [
        Fault::BlackHole,
        Fault::Instant500,
        Fault::Negative,
        Fault::NotANumber,
        Fault::Huge,
        Fault::StaleSequence,
        Fault::Capture,
    ] {
        let (with, alone) = beside(fault);
        assert_eq!(with.finish_s.len(), alone.finish_s.len(), "{fault:?} loses no job");
        let (share, moved) = (with.first_pool_share, p99(&with.first_pool_s) / p99(&alone.finish_s));
        assert!(share > 0.97, "{fault:?} leaves {share} of the jobs to the healthy pool");
        assert!((0.9..1.1).contains(&moved), "{fault:?} moves the healthy pool's p99 by {moved}");
    }
}

#[test]
fn a_pool_that_answers_late_or_boasts_does_not_slow_the_healthy_one() {
    for fault in [Fault::Slow200, Fault::Boast] {
        let (with, alone) = beside(fault);
        assert_eq!(with.finish_s.len(), alone.finish_s.len());
        let moved = p99(&with.first_pool_s) / p99(&alone.finish_s);
        assert!(moved < 1.1, "{fault:?} moves the healthy pool's p99 by {moved}");
    }
}

#[test]
fn a_pool_that_never_answers_is_tried_a_few_times_an_hour() {
    let (with, alone) = beside(Fault::BlackHole);
    let (median, before) = (quantile(&with.finish_s, 0.5), quantile(&alone.finish_s, 0.5));
    assert!(median < 1.2 * before, "a median of {median} s, and {before} s without that pool");
    // However many jobs there are: what is tried grows with time.
    let tries = with.retries as f64 / 8.0 / 6.0;
    assert!(tries < 25.0, "each gateway tries it {tries} times an hour");
}
