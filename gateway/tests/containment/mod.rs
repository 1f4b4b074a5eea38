//! A pool that is bad beside one that is good: nobody who asks may notice.
//!
//! Two gateways in one run: one with the good pool alone, one with a bad pool as well. Every client asks both in turn,
//! so that what the machine does meanwhile happens to both. The bad workers are honest until every one of them is known
//! to be healthy and idle, and then turn bad at once: the first requests, before anything is known, count like the rest.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::task::JoinSet;

use crate::fake::{Behaviour, Fake, Lie};
use crate::harness::{Gateway, pools};

/// How long a good worker thinks: long beside what a busy machine adds.
const THINKS: Duration = Duration::from_millis(30);
const GOOD: usize = 4;
const CLIENTS: usize = 5;
/// Rounds of each client: a submit and a read to either gateway.
const ROUNDS: usize = 30;
/// How much slower the median may be for the bad pool.
const RATIO_MAX: f64 = 1.2;
/// So that a black hole does not make the test long; the rest is as it comes.
const TIMEOUTS: &str = "[timeouts]\nsubmit = \"2s\"\nquery = \"2s\"\n";

async fn workers(pool: &str, count: usize) -> Vec<Fake> {
    let mut workers = Vec::with_capacity(count);
    for n in 0..count {
        let worker = Fake::start(pool, &format!("{pool}-{n}")).await;
        worker.behave(Behaviour::Slow(THINKS));
        workers.push(worker);
    }
    workers
}

/// How long each request took, in milliseconds: submits and reads, of the good pool alone and beside the bad one.
#[derive(Debug, Default)]
struct Took {
    submits: [Vec<f64>; 2],
    reads: [Vec<f64>; 2],
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Asks until the answer is whole; how long that took, or how it failed.
async fn ask(request: reqwest::RequestBuilder, wants: StatusCode) -> Result<f64, String> {
    let started = Instant::now();
    let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = answer.status();
    let body = answer.text().await.map_err(|error| format!("{error:?}"))?;
    if status == wants { Ok(started.elapsed().as_secs_f64() * 1e3) } else { Err(format!("{status}: {body}")) }
}

async fn client(urls: [[String; 2]; 2]) -> Result<Took, String> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
    let mut took = Took::default();
    for _ in 0..ROUNDS {
        for (place, [submit, read]) in urls.iter().enumerate() {
            took.submits[place].push(ask(client.post(submit).body("{}"), StatusCode::ACCEPTED).await?);
            took.reads[place].push(ask(client.get(read), StatusCode::OK).await?);
        }
    }
    Ok(took)
}

/// Runs both gateways, with workers of the bad pool that behave so.
async fn contained(bad: &[Behaviour]) {
    let (alone, beside) = (workers("good", GOOD).await, workers("good", GOOD).await);
    let others = workers("bad", bad.len()).await;
    let (alone_refs, beside_refs): (Vec<_>, Vec<_>) = (alone.iter().collect(), beside.iter().collect());
    let others_refs: Vec<_> = others.iter().collect();
    let small = Gateway::start(&(pools(&[("good", 1.0, &alone_refs)]) + TIMEOUTS)).await;
    let large =
        Gateway::start(&(pools(&[("good", 1.0, &beside_refs), ("bad", 1.0, &others_refs)]) + TIMEOUTS)).await;
    small.healthy(GOOD).await;
    large.healthy(GOOD + bad.len()).await;
    for (worker, behaviour) in others.iter().zip(bad) {
        worker.behave(*behaviour);
    }
    let urls = [&small, &large].map(|gateway| [gateway.url("/process"), gateway.url("/jobs/j")]);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(urls.clone()));
    }
    let (mut all, mut failed) = (Took::default(), Vec::new());
    for took in clients.join_all().await {
        match took {
            Ok(took) => {
                for place in 0..2 {
                    all.submits[place].extend(&took.submits[place]);
                    all.reads[place].extend(&took.reads[place]);
                }
            }
            Err(how) => failed.push(how),
        }
    }
    assert_eq!(failed, Vec::<String>::new());
    let met: usize = others.iter().map(|worker| worker.seen().len()).sum();
    assert!(met > 0, "the bad pool was never met, so nothing was contained");
    for (what, times) in [("submits", &mut all.submits), ("reads", &mut all.reads)] {
        let [alone, beside] = times;
        let (alone_ms, beside_ms) = (median(alone), median(beside));
        let ratio = beside_ms / alone_ms;
        println!(
            "{bad:?}, {met} requests met it: median of {} {what} {alone_ms:.1} ms alone, {beside_ms:.1} ms beside: {ratio:.3}",
            alone.len()
        );
        assert!(ratio <= RATIO_MAX, "{what} beside {bad:?}: {beside_ms:.1} ms, alone {alone_ms:.1} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_black_holes_is_contained() {
    contained(&[Behaviour::Hang; 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_instant_errors_is_contained() {
    contained(&[Behaviour::Status(500); 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_slow_answers_is_contained() {
    contained(&[Behaviour::Slow(Duration::from_millis(1500)); 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_wrong_load_reports_is_contained() {
    let lies = [Lie::Negative, Lie::NotANumber, Lie::Huge, Lie::Stale];
    contained(&lies.map(|lie| Behaviour::Lie(lie, THINKS))).await;
}
