use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use millrace_wire::{PoolId, WorkerId};

use super::*;
use crate::store::*;

const LEASE: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_secs(5);

/// A store that renews so many heartbeats and then never answers again.
struct Fading {
    answers: AtomicU32,
    verdict: Verdict,
    superseded: bool,
    /// When each heartbeat came, and what the first attempt in it said.
    heard: Mutex<Vec<(Instant, f64)>>,
}

impl Fading {
    fn new(answers: u32, verdict: Verdict) -> Self {
        let (answers, heard) = (AtomicU32::new(answers), Mutex::default());
        Self { answers, verdict, superseded: false, heard }
    }
}

#[async_trait]
impl Store for Fading {
    async fn heartbeat(&self, _: &Identity, beats: &[Beat], _: Duration) -> Result<Heartbeat, Error> {
        let percent = beats.first().map_or(0.0, |beat| beat.progress.percent);
        self.heard.lock().unwrap().push((Instant::now(), percent));
        if self.answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err()
        {
            std::future::pending::<()>().await;
        }
        Ok(Heartbeat { verdicts: vec![self.verdict; beats.len()], superseded: self.superseded })
    }
    async fn cancellations(&self, _: &Identity) -> Result<Vec<Lease>, Error> {
        if self.answers.load(Ordering::SeqCst) == 0 {
            std::future::pending::<()>().await;
        }
        Ok(Vec::new())
    }
    fn id(&self) -> &str {
        unreachable!("the heartbeat asks nothing else")
    }
    fn signing_key(&self) -> &[u8] {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn register(&self, _: &WorkerId, _: &PoolId) -> Result<Identity, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn equip(&self, _: &Identity, _: &str, _: Duration) -> Result<(), Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn split(&self, _: &Lease, _: &str, _: &[NewPart]) -> Result<bool, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn commit(&self, _: &Lease, _: &str, _: &str) -> Result<Committed, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn take_back(&self, _: &Lease, _: &[Lease], _: &str) -> Result<bool, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn results(&self, _: &str) -> Result<Vec<Done>, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn deregister(&self, _: &Identity) -> Result<(), Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn accept(&self, _: &NewJob, _: &Identity, _: Room) -> Result<Accepted, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn job(&self, _: &str, _: &JobId) -> Result<Option<JobRow>, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn jobs(&self, _: &str, _: &Filter) -> Result<Vec<JobRow>, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn cancel(&self, _: &str, _: &JobId) -> Result<Cancelled, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn retry(&self, _: &str, _: &JobId, _: &Identity, _: Room) -> Result<Retried, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn claim(&self, _: &Identity, _: Duration) -> Result<Option<Claim>, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn enter(&self, _: &Lease, _: millrace_wire::job::Phase, _: Option<f64>) -> Result<bool, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn publish(&self, _: &Lease, _: &Manifest) -> Result<Published, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn end(&self, _: &Lease, _: &AttemptEnd) -> Result<(), Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn backlog(&self, _: &Identity) -> Result<Backlog, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn events(&self, _: &str, _: i64, _: u32) -> Result<Vec<Event>, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
    async fn ping(&self) -> Result<i64, Error> {
        unreachable!("the heartbeat asks nothing else")
    }
}

/// Runs one attempt under `store` until it is told to stop; returns why and after how many seconds.
async fn stopped_after(store: Fading) -> (Option<Stop>, f64, bool) {
    stopped_after_beating(store, EVERY).await
}

async fn stopped_after_beating(store: Fading, every: Duration) -> (Option<Stop>, f64, bool) {
    let identity = Identity { worker: "w1".parse().unwrap(), pool: "aws".parse().unwrap(), incarnation: 1 };
    let lease = Lease { task_uid: "t".to_owned(), job_uid: "j".to_owned(), epoch: 1 };
    let leases = Leases::new(LEASE);
    let (began, end) = (Instant::now(), CancellationToken::new());
    let running = leases.enter(&lease, &"j".parse().unwrap(), 1.0, began);
    let metrics = Metrics::new().unwrap();
    let keep = leases.keep(&store, &identity, every, &metrics, &end);
    let superseded = tokio::select! {
        superseded = keep => superseded,
        () = running.stop.cancelled() => false,
    };
    (running.stopped(), began.elapsed().as_secs_f64(), superseded)
}

#[tokio::test(start_paused = true)]
async fn an_attempt_stops_itself_five_seconds_before_a_lease_that_nobody_renews() {
    let store = Fading::new(0, Verdict::Renewed);
    let (why, after, _) = stopped_after(store).await;
    assert_eq!(why, Some(Stop::LeaseLost));
    assert!((25.0..26.0).contains(&after), "{after}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_does_not_keep_it_from_stopping_in_time() {
    for every in [3, 4, 7, 9, 10] {
        let store = Fading::new(0, Verdict::Renewed);
        let (why, after, _) = stopped_after_beating(store, Duration::from_secs(every)).await;
        assert_eq!(why, Some(Stop::LeaseLost));
        assert!((25.0..25.5).contains(&after), "with a heartbeat every {every} s: {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_the_last_renewal_that_was_sent() {
    let store = Fading::new(4, Verdict::Renewed);
    let (why, after, _) = stopped_after(store).await;
    assert_eq!(why, Some(Stop::LeaseLost));
    assert!((40.0..41.0).contains(&after), "sent at 0, 5, 10 and 15 s: {after}");
}

#[tokio::test(start_paused = true)]
async fn the_stores_verdict_stops_an_attempt_at_once() {
    for (verdict, why) in [(Verdict::Lost, Stop::LeaseLost), (Verdict::CancelRequested, Stop::Cancelled)] {
        let store = Fading::new(9, verdict);
        let (stopped, after, _) = stopped_after(store).await;
        assert_eq!(stopped, Some(why));
        assert!(after < 1.0, "{after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_counted_once_whoever_says_so_first() {
    for (answers, verdict) in [(0, Verdict::Renewed), (9, Verdict::Lost)] {
        let identity =
            Identity { worker: "w1".parse().unwrap(), pool: "aws".parse().unwrap(), incarnation: 1 };
        let lease = Lease { task_uid: "t".to_owned(), job_uid: "j".to_owned(), epoch: 1 };
        let (leases, metrics, end) = (Leases::new(LEASE), Metrics::new().unwrap(), CancellationToken::new());
        let _running = leases.enter(&lease, &"j".parse().unwrap(), 1.0, Instant::now());
        let store = Fading::new(answers, verdict);
        let keep = leases.keep(&store, &identity, EVERY, &metrics, &end);
        let kept = tokio::time::timeout(LEASE * 2, keep).await;
        assert!(kept.is_err(), "it goes on");
        assert_eq!(metrics.leases_lost.get(), 1, "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_name_was_taken_is_told() {
    let store = Fading { superseded: true, ..Fading::new(9, Verdict::Renewed) };
    assert!(stopped_after(store).await.2);
}

/// Keeps one attempt whose progress is a function of time, for so many seconds or until it is stopped; returns when
/// heartbeats came and what they said.
async fn heard(
    store: &Fading,
    every: u64,
    seconds: u32,
    percent: impl Fn(f64) -> f64,
) -> (Vec<(f64, f64)>, Option<Stop>) {
    let identity = Identity { worker: "w1".parse().unwrap(), pool: "aws".parse().unwrap(), incarnation: 1 };
    let lease = Lease { task_uid: "t".to_owned(), job_uid: "j".to_owned(), epoch: 1 };
    let (leases, metrics, end) = (Leases::new(LEASE), Metrics::new().unwrap(), CancellationToken::new());
    let began = Instant::now();
    let running = leases.enter(&lease, &"j".parse().unwrap(), 1.0, began);
    let moving = async {
        for _ in 0..seconds * 10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let percent = percent(began.elapsed().as_secs_f64());
            running.progress(Progress { percent, ..Progress::default() });
        }
    };
    tokio::select! {
        _ = leases.keep(store, &identity, Duration::from_secs(every), &metrics, &end) => {}
        () = moving => {}
        () = running.stop.cancelled() => {}
    }
    let heard = store.heard.lock().unwrap();
    let heard = heard.iter().map(|(at, percent)| ((*at - began).as_secs_f64(), *percent)).collect();
    (heard, running.stopped())
}

#[tokio::test(start_paused = true)]
async fn a_fast_job_is_told_of_every_second_and_a_slow_one_costs_twenty_more_at_most() {
    let store = || Fading::new(9999, Verdict::Renewed);
    let (fast, _) = heard(&store(), 5, 9, |at| at * 10.0).await;
    assert!(fast.len() >= 9, "{fast:?}");
    assert!(fast.windows(2).all(|pair| pair[1].0 - pair[0].0 > 0.8), "{fast:?}");
    assert!(fast.windows(2).all(|pair| pair[1].1 - pair[0].1 < 21.0), "{fast:?}");

    let (slow, _) = heard(&store(), 5, 1000, |at| at / 10.0).await;
    assert!((200..=221).contains(&slow.len()), "200 of them are due anyway: {}", slow.len());
    let longest = slow.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(0.0, f64::max);
    assert!(longest <= 5.01, "an early one puts none off: {longest}");

    let (still, _) = heard(&store(), 5, 50, |_| 4.9).await;
    assert!((10..=11).contains(&still.len()), "{still:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_under_a_fast_job_does_not_keep_it_from_stopping_in_time() {
    for every in [3, 4, 7, 9, 10] {
        for answers in [0, 1, 3] {
            let (store, began) = (Fading::new(answers, Verdict::Renewed), Instant::now());
            // Up and down: there is always news.
            let (heard, stopped) = heard(&store, every, 90, |at| (at * 40.0) % 99.0).await;
            assert_eq!(stopped, Some(Stop::LeaseLost));
            // From when the last one that was answered was sent, or from the claim.
            let renewed = if answers == 0 { 0.0 } else { heard[answers as usize - 1].0 };
            let after = began.elapsed().as_secs_f64() - renewed;
            assert!((25.0..25.5).contains(&after), "every {every} s, {answers} answers: {after}");
        }
    }
}
