use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::fleet::{probe, sample};
use millrace_runtime::config::File;

fn config(pools: &str) -> Config {
    let text = format!("listen = {{ http = \"127.0.0.1:0\", admin = \"127.0.0.1:0\" }}\n{pools}");
    Config::from_file(&File::from_text("routing.toml", text)).unwrap()
}

fn pool(name: &str, rest: &str) -> String {
    format!("[[pools]]\nname = \"{name}\"\n{rest}\n")
}

fn dns(name: &str) -> String {
    format!("discover = {{ dns = \"{name}\", port = 9 }}")
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn good(ports: &[u16]) -> Round {
    let endpoints = ports.iter().map(|port| Endpoint { address: at(*port), drain: false }).collect();
    Round { endpoints: Some(endpoints), outcome: Outcome::Good, error: None }
}

fn failed(why: &str) -> Round {
    Round { endpoints: None, outcome: Outcome::Failed, error: Some(why.to_owned()) }
}

/// Tells the fleet what the present source of a pool says.
fn say(fleet: &Fleet, pool: &str, round: Round) {
    let pool = pool.parse().unwrap();
    let source = fleet.found(&pool).unwrap().source;
    fleet.discovered(&pool, &source, round);
}

fn found(fleet: &Fleet, pool: &str) -> Found {
    fleet.found(&pool.parse().unwrap()).unwrap()
}

fn ports(fleet: &Fleet, pool: &str) -> Vec<u16> {
    let snapshot = fleet.snapshot();
    snapshot.pool(&pool.parse().unwrap()).unwrap().workers.iter().map(|w| w.address.port()).collect()
}

#[test]
fn what_is_known_of_an_endpoint_survives_answers_and_what_is_gone_gets_nothing() {
    let fleet = Fleet::new(config(&pool("aws", &format!("endpoints = [\"127.0.0.1:1\"]\n{}", dns("w")))));
    assert!(!fleet.first_round_done());
    say(&fleet, "aws", good(&[1, 2, 3]));
    assert_eq!(ports(&fleet, "aws"), [1, 2, 3], "what both name is there once");
    fleet.probe_failed(at(2), &probe::Failure::Status(500, String::new()));
    let reading = fleet.reading(at(3));
    say(&fleet, "aws", good(&[2]));
    assert_eq!(ports(&fleet, "aws"), [1, 2], "the file's list stays");
    assert!(fleet.of(at(2), |worker| worker.health != crate::fleet::snapshot::Health::Unknown).unwrap());
    assert_eq!(fleet.targets().borrow().keys().map(SocketAddr::port).collect::<Vec<_>>(), [1, 2]);
    // Ends after its worker is gone.
    drop(reading);
    say(&fleet, "aws", failed("SERVFAIL"));
    assert_eq!(ports(&fleet, "aws"), [1, 2]);
    assert_eq!(found(&fleet, "aws").error.as_deref(), Some("SERVFAIL"));
    say(&fleet, "aws", good(&[2]));
    assert_eq!(found(&fleet, "aws").error, None);
}

#[test]
fn another_source_takes_over_when_it_has_answered_and_a_late_word_of_the_old_one_is_nothing() {
    let fleet = Fleet::new(config(&pool("aws", "endpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\"]")));
    fleet.probe_failed(at(2), &probe::Failure::Status(500, String::new()));
    fleet.apply(config(&pool("aws", &dns("one"))));
    assert_eq!(ports(&fleet, "aws"), [1, 2], "until there is an answer");
    let one = found(&fleet, "aws").source;
    say(&fleet, "aws", good(&[2, 3]));
    assert_eq!(ports(&fleet, "aws"), [2, 3]);
    let diff = fleet.apply(config(&pool("aws", &dns("two"))));
    assert_eq!((diff.added, diff.removed), (vec![], vec![]));
    fleet.discovered(&"aws".parse().unwrap(), &one, good(&[9]));
    assert_eq!(ports(&fleet, "aws"), [2, 3]);
    say(&fleet, "aws", good(&[2, 4]));
    assert_eq!(ports(&fleet, "aws"), [2, 4]);
    assert!(fleet.of(at(2), |worker| worker.health != crate::fleet::snapshot::Health::Unknown).unwrap());
    fleet.apply(config(&pool("aws", "endpoints = [\"127.0.0.1:4\"]")));
    assert_eq!(ports(&fleet, "aws"), [4]);
    assert_eq!(fleet.found(&"aws".parse().unwrap()), None);
}

#[test]
fn an_address_has_one_pool_the_files_or_the_one_that_has_it() {
    let listed = pool("aws", &format!("endpoints = [\"127.0.0.1:1\"]\n{}", dns("a")));
    let fleet = Fleet::new(config(&format!("{listed}{}", pool("gcp", &dns("b")))));
    say(&fleet, "gcp", good(&[1, 2, 3]));
    assert_eq!((ports(&fleet, "aws"), ports(&fleet, "gcp")), (vec![1], vec![2, 3]));
    let refused = found(&fleet, "gcp").refused.unwrap();
    assert_eq!(refused, "1 not taken: 127.0.0.1:1 is already an endpoint of pool aws");
    say(&fleet, "aws", good(&[2, 3, 4]));
    assert_eq!((ports(&fleet, "aws"), ports(&fleet, "gcp")), (vec![1, 4], vec![2, 3]));
    assert!(found(&fleet, "aws").refused.unwrap().contains("2 not taken: 127.0.0.1:2 is already"));
    // Given up by one, it is free for the other.
    say(&fleet, "gcp", good(&[3]));
    assert_eq!((ports(&fleet, "aws"), ports(&fleet, "gcp")), (vec![1, 2, 4], vec![3]));
    assert_eq!(found(&fleet, "gcp").refused, None);
}

#[test]
fn no_more_endpoints_are_taken_than_there_may_be_in_all() {
    let fleet = Fleet::new(config(&format!("{}{}", pool("aws", &dns("a")), pool("gcp", &dns("b")))));
    let most: Vec<u16> = (1..=4000).collect();
    say(&fleet, "gcp", good(&most));
    say(&fleet, "aws", good(&(4001..=8000).collect::<Vec<u16>>()));
    assert_eq!((ports(&fleet, "aws").len(), ports(&fleet, "gcp").len()), (ENDPOINTS_MAX - 4000, 4000));
    let refused = found(&fleet, "aws").refused.unwrap();
    assert_eq!(refused, "3904 not taken: 127.0.0.1:4097 would be one more than 4096 in all pools");
}

#[test]
fn a_pool_without_endpoints_refuses_jobs_and_breaks_nothing() {
    let fleet = Fleet::new(config(&format!("{}{}", pool("aws", &dns("a")), pool("gcp", &dns("b")))));
    let status = crate::admin::status::Status::of(&fleet, 1);
    assert!(status.pools.iter().all(|pool| pool.rejected.is_some() && pool.share.is_finite()));
    say(&fleet, "aws", good(&[1]));
    fleet.probed(at(1), sample::report("aws"), Duration::from_millis(1));
    say(&fleet, "aws", Round { endpoints: Some(Vec::new()), outcome: Outcome::Empty, error: None });
    assert_eq!(ports(&fleet, "aws"), Vec::<u16>::new());
    fleet.view();
}

/// Panics when it is first opened, and then says what it is told.
struct Scripted(Arc<Mutex<Vec<Round>>>);

#[async_trait]
impl Discovery for Scripted {
    async fn next(&mut self) -> Round {
        let round = self.0.lock().unwrap().pop();
        match round {
            Some(round) => round,
            None => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_is_started_again_and_a_reload_swaps_it() {
    let fleet = Fleet::new(config(&pool("aws", &dns("one"))));
    let metrics = Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap());
    let script = Arc::new(Mutex::new(vec![good(&[1, 2])]));
    let opened = Arc::new(AtomicUsize::new(0));
    let open: Open = {
        let (script, opened) = (script.clone(), opened.clone());
        Arc::new(move |_| {
            assert!(opened.fetch_add(1, Ordering::SeqCst) > 0, "the first one panics");
            Box::new(Scripted(script.clone()))
        })
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(fleet.clone(), open, metrics.clone(), stop.clone()));
    let settle = || tokio::time::sleep(CHECK * 3);
    settle().await;
    assert_eq!(opened.load(Ordering::SeqCst), 2);
    assert_eq!(ports(&fleet, "aws"), [1, 2]);
    assert_eq!(metrics.discovery_lookups.with_label_values(&["aws", "good"]).get(), 1);
    script.lock().unwrap().push(good(&[2, 3]));
    fleet.apply(config(&pool("aws", &dns("two"))));
    settle().await;
    assert_eq!((opened.load(Ordering::SeqCst), ports(&fleet, "aws")), (3, vec![2, 3]));
    fleet.apply(config(&pool("aws", "weight = 2\ndiscover = { dns = \"two\", port = 9 }")));
    settle().await;
    assert_eq!(opened.load(Ordering::SeqCst), 3, "the same source stays");
    stop.cancel();
    tokio::time::timeout(CHECK, running).await.unwrap().unwrap();
}
