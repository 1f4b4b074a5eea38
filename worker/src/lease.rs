//! The worker's hold on what it runs: one batched heartbeat renews every lease and brings cancellations back.
//!
//! A worker cannot know that the store still counts on it; it can only know until when it surely does. That is the
//! moment before its last renewed heartbeat was *sent*, plus the lease, less a margin for stopping ffmpeg: by this
//! process's monotonic clock, whatever wall clocks do. Past it, the attempt stops itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_wire::JobId;
use millrace_wire::job::Progress;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use crate::store::{Beat, Identity, Lease, Store, Verdict};

/// The share of a lease that is kept back for stopping: 5 s of the default 30 s.
const MARGIN_SHARE: u32 = 6;
/// How often a worker looks for cancellations between heartbeats.
const CANCELLATIONS_EVERY: Duration = Duration::from_secs(1);
/// Points of progress that are worth a heartbeat before its time: at most twenty of them in a whole attempt …
const PROGRESS_STEP: f64 = 5.0;
/// … and at least so far from the last one. A little less than the time between two looks, or a look that comes a hair
/// too early would wait for the next.
const PROGRESS_EVERY: Duration = Duration::from_millis(900);

/// Why an attempt was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A client cancelled the job.
    Cancelled,
    /// The lease ran out or went to somebody else.
    LeaseLost,
    /// The worker shuts down.
    Shutdown,
}

/// One attempt that runs here.
#[derive(Debug)]
pub struct Running {
    /// The proof of its claim.
    pub lease: Lease,
    /// For logs.
    pub job_id: JobId,
    /// Cancelled when it must stop; [`Running::stopped`] says why.
    pub stop: CancellationToken,
    state: Mutex<RunningState>,
}

#[derive(Debug)]
struct RunningState {
    progress: Progress,
    /// What the last heartbeat said, whether or not it was heard.
    told_percent: f64,
    work_seconds: f64,
    deadline: Instant,
    stopped: Option<Stop>,
    /// It is not all of its job, so the job is not as far as it is.
    part: bool,
}

impl Running {
    fn state(&self) -> std::sync::MutexGuard<'_, RunningState> {
        self.state.lock().expect("nothing panics while holding an attempt's state")
    }

    /// Tells it to stop; the first reason stays. Answers whether this is the first.
    pub fn stop(&self, why: Stop) -> bool {
        let mut state = self.state();
        let first = state.stopped.is_none();
        if first {
            state.stopped = Some(why);
            info!(job_id = %self.job_id, attempt = self.lease.epoch, ?why, "stopping an attempt");
        }
        drop(state);
        self.stop.cancel();
        first
    }

    /// Stops it because its lease is gone, and counts that once: its deadline, the heartbeat and a refused write may
    /// all say so.
    pub fn lose(&self, metrics: &Metrics) {
        if self.stop(Stop::LeaseLost) {
            metrics.leases_lost.inc();
        }
    }

    /// Why it was told to stop, if it was.
    pub fn stopped(&self) -> Option<Stop> {
        self.state().stopped
    }

    /// Notes that it is not all of its job.
    pub fn is_part(&self) {
        self.state().part = true;
    }

    /// Notes how far it is; the next heartbeat takes it along.
    pub fn progress(&self, progress: Progress) {
        self.state().progress = progress;
    }

    /// What a heartbeat says of it.
    fn beat(&self) -> Beat {
        let mut state = self.state();
        state.told_percent = state.progress.percent;
        Beat { lease: self.lease.clone(), progress: state.progress }
    }

    /// Whether it has moved so far since the last heartbeat that readers elsewhere should know.
    fn has_news(&self) -> bool {
        let state = self.state();
        state.stopped.is_none() && (state.progress.percent - state.told_percent).abs() >= PROGRESS_STEP
    }

    /// Notes what the probe found the job to cost, in reference-seconds.
    pub fn work_seconds(&self, work_seconds: f64) {
        self.state().work_seconds = work_seconds;
    }

    /// Reference-seconds still to do.
    pub fn work_left(&self) -> f64 {
        let state = self.state();
        state.work_seconds * (1.0 - state.progress.percent / 100.0).clamp(0.0, 1.0)
    }

    /// Until when this worker may act on the claim.
    pub fn deadline(&self) -> Instant {
        self.state().deadline
    }
}

/// Everything that runs here, and the loop that keeps it leased.
#[derive(Debug)]
pub struct Leases {
    lease: Duration,
    running: Mutex<HashMap<Lease, Arc<Running>>>,
}

impl Leases {
    /// `lease` is how long a claim holds without a heartbeat.
    pub fn new(lease: Duration) -> Self {
        Self { lease, running: Mutex::default() }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Lease, Arc<Running>>> {
        self.running.lock().expect("nothing panics while holding the running attempts")
    }

    /// How long a claim holds.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    fn deadline(&self, sent: Instant) -> Instant {
        sent + self.lease - self.lease / MARGIN_SHARE
    }

    /// Enters an attempt whose claim was sent at `sent`.
    pub fn enter(&self, lease: &Lease, job_id: &JobId, work_seconds: f64, sent: Instant) -> Arc<Running> {
        let state = RunningState {
            progress: Progress::default(),
            told_percent: 0.0,
            work_seconds,
            deadline: self.deadline(sent),
            stopped: None,
            part: false,
        };
        let running = Arc::new(Running {
            lease: lease.clone(),
            job_id: job_id.clone(),
            stop: CancellationToken::new(),
            state: Mutex::new(state),
        });
        self.map().insert(lease.clone(), Arc::clone(&running));
        running
    }

    /// Takes an attempt out.
    pub fn leave(&self, lease: &Lease) {
        self.map().remove(lease);
    }

    /// Everything that runs.
    pub fn all(&self) -> Vec<Arc<Running>> {
        self.map().values().cloned().collect()
    }

    /// Stops everything.
    pub fn stop_all(&self, why: Stop) {
        for running in self.all() {
            running.stop(why);
        }
    }

    /// Stops one, if it runs here.
    pub fn stop_one(&self, job_uid: &str, why: Stop) {
        for running in self.all() {
            if running.lease.job_uid == job_uid {
                running.stop(why);
            }
        }
    }

    /// How far an attempt at a whole job is, if it runs here.
    pub fn progress_of(&self, job_uid: &str, attempt: u64) -> Option<Progress> {
        let map = self.map();
        let mut running = map.values();
        let found = running
            .find(|one| one.lease.job_uid == job_uid && one.lease.epoch == attempt && !one.state().part)?;
        Some(found.state().progress)
    }

    fn stop_overdue(&self, metrics: &Metrics) {
        let now = Instant::now();
        for running in self.all() {
            if running.deadline() <= now && running.stopped().is_none() {
                warn!(job_id = %running.job_id, "no renewed lease before its deadline");
                running.lose(metrics);
            }
        }
    }

    fn earliest_deadline(&self) -> Option<Instant> {
        self.all().iter().filter(|r| r.stopped().is_none()).map(|r| r.deadline()).min()
    }

    /// How long a question to the store may take: past the next deadline its answer would come too late.
    fn patience(&self, every: Duration) -> Duration {
        let left =
            self.earliest_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(every, |left| left.min(every))
    }

    /// Renews leases until `end`. Returns `true` when another process took this worker's name: the caller must end.
    pub async fn keep(
        &self,
        store: &dyn Store,
        identity: &Identity,
        every: Duration,
        metrics: &Metrics,
        end: &CancellationToken,
    ) -> bool {
        let mut heartbeat = tokio::time::interval(every);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(CANCELLATIONS_EVERY.min(every));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sent = Instant::now();
        loop {
            let overdue = async {
                match self.earliest_deadline() {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // In this order, and with no patience past a deadline: what waits for a store that hangs must not keep an
            // attempt from stopping itself in time.
            tokio::select! {
                biased;
                () = end.cancelled() => return false,
                () = overdue => self.stop_overdue(metrics),
                _ = heartbeat.tick() => {
                    sent = Instant::now();
                    if self.beat(store, identity, self.patience(every), metrics).await {
                        return true;
                    }
                }
                // An early heartbeat is one more: it moves no later one. It brings cancellations back, too.
                _ = look.tick() => if sent.elapsed() >= PROGRESS_EVERY && self.has_news() {
                    sent = Instant::now();
                    if self.beat(store, identity, self.patience(every), metrics).await {
                        return true;
                    }
                } else {
                    self.look_for_cancellations(store, identity, self.patience(every)).await;
                },
            }
        }
    }

    fn has_news(&self) -> bool {
        self.all().iter().any(|running| running.has_news())
    }

    async fn look_for_cancellations(&self, store: &dyn Store, identity: &Identity, patience: Duration) {
        if self.map().is_empty() {
            return;
        }
        // A store that does not answer is the heartbeat's to report.
        if let Ok(Ok(leases)) = tokio::time::timeout(patience, store.cancellations(identity)).await {
            for lease in leases {
                if let Some(running) = self.map().get(&lease).cloned() {
                    running.stop(Stop::Cancelled);
                }
            }
        }
    }

    async fn beat(
        &self,
        store: &dyn Store,
        identity: &Identity,
        patience: Duration,
        metrics: &Metrics,
    ) -> bool {
        let running = self.all();
        let beats: Vec<Beat> = running.iter().map(|running| running.beat()).collect();
        let sent = Instant::now();
        let answer = tokio::time::timeout(patience, store.heartbeat(identity, &beats, self.lease)).await;
        let heartbeat = match answer {
            Ok(Ok(heartbeat)) => heartbeat,
            Ok(Err(error)) => {
                metrics.store_errors.with_label_values(&[error.kind()]).inc();
                warn!(%error, "heartbeat failed");
                self.stop_overdue(metrics);
                return false;
            }
            Err(_) => {
                metrics.store_errors.with_label_values(&["timeout"]).inc();
                warn!(patience_s = patience.as_secs_f64(), "heartbeat timed out");
                self.stop_overdue(metrics);
                return false;
            }
        };
        for (running, verdict) in running.iter().zip(heartbeat.verdicts) {
            match verdict {
                Verdict::Renewed => running.state().deadline = self.deadline(sent),
                Verdict::CancelRequested => {
                    running.state().deadline = self.deadline(sent);
                    running.stop(Stop::Cancelled);
                }
                // An attempt that just ended is no longer here, and its lease is rightly gone.
                Verdict::Lost if !self.map().contains_key(&running.lease) => {}
                Verdict::Lost => running.lose(metrics),
            }
        }
        if heartbeat.superseded {
            error!(worker = %identity.worker, "another process registered under this worker's name: give each its own");
        }
        heartbeat.superseded
    }
}

#[cfg(test)]
mod tests {
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
            if self
                .answers
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_err()
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
        async fn enter(
            &self,
            _: &Lease,
            _: millrace_wire::job::Phase,
            _: Option<f64>,
        ) -> Result<bool, Error> {
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
        async fn ping(&self) -> Result<(), Error> {
            unreachable!("the heartbeat asks nothing else")
        }
    }

    /// Runs one attempt under `store` until it is told to stop; returns why and after how many seconds.
    async fn stopped_after(store: Fading) -> (Option<Stop>, f64, bool) {
        stopped_after_beating(store, EVERY).await
    }

    async fn stopped_after_beating(store: Fading, every: Duration) -> (Option<Stop>, f64, bool) {
        let identity =
            Identity { worker: "w1".parse().unwrap(), pool: "aws".parse().unwrap(), incarnation: 1 };
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
        for (verdict, why) in [(Verdict::Lost, Stop::LeaseLost), (Verdict::CancelRequested, Stop::Cancelled)]
        {
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
            let (leases, metrics, end) =
                (Leases::new(LEASE), Metrics::new().unwrap(), CancellationToken::new());
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
        let identity =
            Identity { worker: "w1".parse().unwrap(), pool: "aws".parse().unwrap(), incarnation: 1 };
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
}
