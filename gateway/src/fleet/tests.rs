use millrace_runtime::config::File;
use millrace_wire::LoadReport;

use super::evidence::Verdict;
use super::snapshot::Health;
use super::underway::TIMED_OUT_COUNTS;
use super::*;

fn config(pools: &str) -> Config {
    let text = format!("listen = {{ http = \"127.0.0.1:0\", admin = \"127.0.0.1:0\" }}\n{pools}");
    Config::from_file(&File::from_text("routing.toml", text)).unwrap()
}

fn fleet() -> Arc<Fleet> {
    Fleet::new(config("[[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\"]"))
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn report(pool: &str, sequence: u64) -> LoadReport {
    LoadReport { sequence, ..sample::report(pool) }
}

fn worker(fleet: &Fleet, port: u16) -> Worker {
    fleet.snapshot().find(at(port)).unwrap().1.clone()
}

#[test]
fn a_later_report_wins_and_an_earlier_one_changes_nothing() {
    let fleet = fleet();
    fleet.probed(at(1), report("aws", 5), Duration::from_millis(1));
    let late = LoadReport { running: 2, ..report("aws", 4) };
    fleet.probed(at(1), late.clone(), Duration::from_millis(1));
    assert_eq!(worker(&fleet, 1).report.unwrap().load.running, 0);
    let newer = LoadReport { sequence: 6, ..late };
    fleet.heard(at(1), &newer.to_orca(), "s").unwrap();
    assert_eq!(worker(&fleet, 1).report.unwrap().load, newer);
    assert!(fleet.heard(at(1), &newer.to_orca().replace("speed=1", "speed=NaN"), "s").is_err());
    assert_eq!(worker(&fleet, 1).report.unwrap().load, newer);
}

#[test]
fn a_worker_that_comes_back_on_a_new_store_is_believed_although_it_counts_from_one() {
    let fleet = fleet();
    fleet.probed(at(1), LoadReport { incarnation: 7, ..report("aws", 900) }, Duration::from_millis(1));
    let anew = LoadReport { store_id: "new".to_owned(), running: 1, ..report("aws", 1) };
    fleet.probed(at(1), anew.clone(), Duration::from_millis(1));
    assert_eq!(worker(&fleet, 1).report.unwrap().load, anew);
}

#[test]
fn a_worker_of_another_pool_is_unusable_and_says_why() {
    let fleet = fleet();
    fleet.probed(at(1), report("gcp", 1), Duration::from_millis(1));
    let Health::Down { reason } = worker(&fleet, 1).health else { panic!("not down") };
    assert_eq!(reason, "it reports pool gcp, but is configured in pool aws");
}

#[test]
fn a_slow_worker_is_not_a_dead_one() {
    let fleet = fleet();
    fleet.probed(at(1), report("aws", 1), Duration::from_millis(1));
    (0..9).for_each(|_| fleet.probe_failed(at(1), &probe::Failure::Timeout));
    assert_eq!(worker(&fleet, 1).health, Health::Up);
    fleet.probe_failed(at(1), &probe::Failure::Unreachable("refused".to_owned()));
    assert_eq!(worker(&fleet, 1).health, Health::Up, "one may be a restart");
    fleet.probe_failed(at(1), &probe::Failure::Unreachable("refused".to_owned()));
    assert!(matches!(worker(&fleet, 1).health, Health::Down { .. }));
}

#[test]
fn submits_count_until_answered_and_a_while_longer_when_timed_out() {
    let fleet = fleet();
    let (first, second) = (fleet.submitting(at(1), 10.0), fleet.submitting(at(1), 20.0));
    assert_eq!(worker(&fleet, 1).compensation.at(fleet.now()), (2, 30.0));
    drop(first);
    second.timed_out();
    let compensation = worker(&fleet, 1).compensation;
    assert_eq!(compensation.at(fleet.now()), (1, 20.0));
    assert_eq!(compensation.at(fleet.now() + TIMED_OUT_COUNTS), (0, 0.0));
}

#[test]
fn routing_sees_who_is_up_at_once_and_counts_soon() {
    let fleet = fleet();
    let job = crate::route::Job::default();
    let choose = || fleet.view().submit(&job, &crate::route::Exclude::default(), &mut rand::rng());
    assert!(choose().is_err(), "nobody has reported");
    fleet.probed(at(1), LoadReport { slots: 1, queue_max: 0, ..report("aws", 1) }, Duration::from_millis(1));
    assert_eq!(choose().map(|choice| choice.address), Ok(at(1)));
    let _submitting = fleet.submitting(at(1), 10.0);
    let since = Instant::now();
    while choose().is_ok() {
        assert!(since.elapsed() < Duration::from_secs(5), "its only slot is still taken for free");
        std::thread::yield_now();
    }
}

#[test]
fn never_more_than_half_of_a_pool_is_ejected() {
    let fleet = fleet();
    let fail = |port| (0..5).any(|_| fleet.judge(at(port), fleet.now(), Verdict::Failed, None));
    assert!(fail(1));
    assert!(!fail(2));
    let now = fleet.now();
    assert!(worker(&fleet, 1).ejected(now) && !worker(&fleet, 2).ejected(now));
}

#[test]
fn a_pool_is_as_reliable_as_its_jobs_were_whatever_its_reads_say() {
    let fleet = fleet();
    let reliability = || fleet.snapshot().pools[0].reliability.at(fleet.now());
    (0..3).for_each(|_| {
        fleet.judge(at(1), fleet.now(), Verdict::Failed, None);
    });
    (0..9).for_each(|_| {
        fleet.judge(at(2), fleet.now(), Verdict::Answered, Some(Duration::from_millis(5)));
    });
    assert!(reliability() < 0.5, "{}", reliability());
    fleet.apply(config("[[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:2\"]"));
    assert!(reliability() < 0.5, "a reload keeps it");
    (0..9).for_each(|_| {
        fleet.judge(at(2), fleet.now(), Verdict::Answered, None);
    });
    assert!(reliability() > 0.9, "{}", reliability());
}

#[test]
fn a_reload_keeps_what_is_known_by_address() {
    let fleet = fleet();
    fleet.probed(at(1), report("aws", 1), Duration::from_millis(1));
    let diff = fleet.apply(config(
        "[[pools]]\nname = \"aws\"\nweight = 3\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:3\"]",
    ));
    assert_eq!(diff, Diff { added: vec![at(3)], removed: vec![at(2)] });
    assert_eq!(worker(&fleet, 1).health, Health::Up);
    assert_eq!(worker(&fleet, 3).health, Health::Unknown);
    assert_eq!(fleet.snapshot().pools[0].weight, 3.0);
    // The same address in another pool is another worker until it says so itself.
    fleet.apply(config("[[pools]]\nname = \"gcp\"\nendpoints = [\"127.0.0.1:1\"]"));
    assert_eq!(worker(&fleet, 1).health, Health::Unknown);
}

#[test]
fn a_pool_that_is_there_from_the_start_needs_no_ramp_and_one_that_comes_back_does() {
    let s = Duration::from_secs;
    let mut presence = Presence { born: s(0), there: false, back_at: None };
    assert_eq!(presence.update(true, s(2)), None);
    assert_eq!(presence.update(false, s(60)), None);
    assert_eq!(presence.update(true, s(90)), Some(s(90)));
    assert_eq!(presence.update(true, s(95)), Some(s(90)));
}

#[test]
fn nobody_sees_a_view_from_before_an_urgent_change() {
    let job = crate::route::Job::default();
    for _ in 0..500 {
        let fleet = fleet();
        fleet.view();
        fleet.probed(at(1), report("aws", 1), Duration::from_millis(1));
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let chosen =
                        fleet.view().submit(&job, &crate::route::Exclude::default(), &mut rand::rng());
                    assert!(chosen.is_ok(), "{chosen:?}");
                });
            }
        });
    }
}

#[test]
fn a_worker_that_refuses_against_its_own_word_is_left_alone_and_not_ejected() {
    let fleet = fleet();
    fleet.probed(at(1), report("aws", 1), Duration::from_millis(1));
    assert!((0..9).all(|_| !fleet.judge(at(1), fleet.now(), Verdict::Contradicted, None)));
    let known = worker(&fleet, 1);
    assert!(known.failing_until.is_some() && known.ejected_until.is_none());
    assert!(fleet.snapshot().find(at(1)).unwrap().0.reliability.at(fleet.now()) < 0.2);
    fleet.judge(at(1), fleet.now(), Verdict::Answered, None);
    assert_eq!(worker(&fleet, 1).failing_until, None);
}
