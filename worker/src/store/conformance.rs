//! What every store must do, whatever database is behind it: each backend keeps these promises on its own
//! `Fixture`.

mod copies;
mod outbox;
mod parts;
mod retry;
mod steal;
mod upkeep;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use millrace_wire::job::{FailureCode, Outputs, Phase, Progress, State};
use millrace_wire::{JobId, JobSpec};
use sqlx::{Connection as _, Executor as _};

use self::copies::*;
use self::outbox::*;
use self::parts::*;
use self::retry::*;
use self::steal::*;
use self::upkeep::*;
use super::rules::HEAD_START;
use super::upkeep::{Deleted, Due, Rules};
use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(30);
pub(super) const ROOM: Room = Room { slots: 100, queue_max: 100 };

/// A fresh database that is a store, and more handles on the same one.
#[async_trait]
trait Fixture: Send + Sync {
    async fn open(&self) -> Arc<dyn Store> {
        self.both().await.0
    }

    /// One handle, seen from two sides.
    async fn both(&self) -> (Arc<dyn Store>, Arc<dyn Upkeep>);

    /// Lets so much time go by for what ended, for uploads, and for what waits for a thief.
    async fn age(&self, by: Duration);

    /// Enters the last event of a job once more.
    async fn again(&self, job_id: &str);
}

/// What [`Fixture::age`] does.
fn aging(by: Duration) -> sqlx::AssertSqlSafe<String> {
    let ms = by.as_millis();
    sqlx::AssertSqlSafe(format!(
        "UPDATE job SET finished_at = finished_at - {ms}; UPDATE upload SET look_at = look_at - {ms}; \
         UPDATE steal SET at = at - {ms}; UPDATE worker SET unfit_at = unfit_at - {ms}"
    ))
}

/// What [`Fixture::again`] does.
fn repeating(job_id: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!(
        "INSERT INTO event (job_uid, at, kind, body) SELECT job_uid, at, kind, body FROM event \
         WHERE job_uid = (SELECT uid FROM job WHERE job_id = '{job_id}') ORDER BY seq DESC LIMIT 1"
    ))
}

async fn worker(store: &dyn Store, name: &str, pool: &str) -> Identity {
    store.register(&name.parse().unwrap(), &pool.parse().unwrap()).await.unwrap()
}

fn id(text: &str) -> JobId {
    text.parse().unwrap()
}

pub(super) fn new_job(job_id: &str, fields: &str) -> NewJob {
    let (spec, _) = JobSpec::parse(format!(r#"{{"input_url":"http://h/v"{fields}}}"#).as_bytes()).unwrap();
    let (tenant, steal) = (TENANT_DEFAULT.to_owned(), Prices::default());
    NewJob { tenant, job_id: id(job_id), spec, work_seconds: 10.0, steal, second: None }
}

async fn accept(store: &dyn Store, job_id: &str, by: &Identity) -> JobRow {
    match store.accept(&new_job(job_id, ""), by, ROOM).await.unwrap() {
        Accepted::Created(row) => row,
        other => panic!("{job_id} was not created: {other:?}"),
    }
}

async fn claim(store: &dyn Store, by: &Identity, lease: Duration) -> Claim {
    for _ in 0..200 {
        if let Some(claim) = store.claim(by, lease).await.unwrap() {
            return claim;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nothing to claim within 5 s");
}

async fn row(store: &dyn Store, job_id: &str) -> JobRow {
    store.job(TENANT_DEFAULT, &id(job_id)).await.unwrap().unwrap()
}

async fn kinds(store: &dyn Store, job_id: &str) -> Vec<String> {
    let uid = row(store, job_id).await.uid;
    store.events(&uid, 0, 100).await.unwrap().into_iter().map(|e| e.kind).collect()
}

fn manifest(lease: &Lease) -> Manifest {
    Manifest {
        bucket: "aws".parse().unwrap(),
        prefix: format!("jobs/{}/video/a{}", lease.job_uid, lease.epoch),
        pieces: None,
        files: 3,
        outputs: Outputs {
            hls: Some("master.m3u8".to_owned()),
            duration_s: 1.0,
            bytes: 9,
            ..Outputs::default()
        },
        warnings: Vec::new(),
    }
}

fn beat(lease: &Lease) -> Beat {
    Beat { lease: lease.clone(), progress: Progress { percent: 42.0, ..Progress::default() } }
}

async fn accepting_twice_is_one_job_and_another_spec_is_a_conflict(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w1", "aws").await;
    let first = accept(&*store, "j", &w).await;
    assert_eq!((first.state, first.attempt), (State::Queued, 0));
    let again = store.accept(&new_job("j", ""), &w, Room { slots: 0, queue_max: 0 }).await.unwrap();
    assert!(
        matches!(again, Accepted::Existing(row) if row.uid == first.uid),
        "even when there is no room left"
    );
    let other = store.accept(&new_job("j", r#","crf":20"#), &w, ROOM).await.unwrap();
    assert!(matches!(other, Accepted::Conflict));
}

async fn a_full_queue_refuses_the_lower_classes_first(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w1", "aws").await;
    let room = Room { slots: 0, queue_max: 10 };
    let mut accepted = [0; 3];
    for (class, fields) in [r#","priority":"batch""#, "", r#","priority":"live""#].iter().enumerate() {
        for n in 0..20 {
            let new = new_job(&format!("j{class}-{n}"), fields);
            accepted[class] +=
                i32::from(matches!(store.accept(&new, &w, room).await.unwrap(), Accepted::Created(_)));
        }
    }
    assert_eq!(accepted, [5, 3, 2], "batch fills half, normal goes on to 80 %, live to the limit");
}

async fn claims_take_the_highest_class_then_the_oldest_and_only_of_the_own_pool(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (aws, gcp) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    for (job, fields) in
        [("b", r#","priority":"batch""#), ("n1", ""), ("n2", ""), ("l", r#","priority":"live""#)]
    {
        assert!(matches!(
            store.accept(&new_job(job, fields), &aws, ROOM).await.unwrap(),
            Accepted::Created(_)
        ));
    }
    assert!(store.claim(&gcp, LONG).await.unwrap().is_none(), "another pool's waiting work is not taken");
    let mut order = Vec::new();
    while let Some(claim) = store.claim(&aws, LONG).await.unwrap() {
        assert_eq!(claim.lease.epoch, 1);
        order.push(claim.job_id.to_string());
    }
    assert_eq!(order, ["l", "n1", "n2", "b"]);
    let running = row(&*store, "l").await;
    assert_eq!((running.state, running.phase, running.attempt), (State::Running, Some(Phase::Source), 1));
    assert_eq!(running.worker, Some(aws.worker));
}

async fn many_workers_never_claim_the_same_task(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w0", "aws").await;
    for n in 0..40 {
        accept(&*store, &format!("j{n}"), &w).await;
    }
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..4 {
        let store = fixture.open().await;
        workers.spawn(async move {
            let w = worker(&*store, &format!("w{n}"), "aws").await;
            let mut mine = Vec::new();
            while let Some(claim) = store.claim(&w, LONG).await.unwrap() {
                mine.push(claim.job_id.to_string());
            }
            mine
        });
    }
    let all: Vec<String> = workers.join_all().await.concat();
    assert_eq!(all.len(), 40);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 40);
}

async fn an_expired_lease_goes_to_any_pool_and_its_zombie_can_do_nothing(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (dead, heir) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    accept(&*store, "j", &dead).await;
    let old = claim(&*store, &dead, SHORT).await.lease;
    assert!(store.enter(&old, Phase::Publishing, None).await.unwrap());
    let new = claim(&*store, &heir, LONG).await.lease;
    assert_eq!((new.epoch, new.task_uid.as_str()), (2, old.task_uid.as_str()));

    assert!(!store.enter(&old, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&old, &manifest(&old)).await.unwrap(), Published::No);
    store.end(&old, &AttemptEnd::Released).await.unwrap();
    let zombie = store.heartbeat(&dead, &[beat(&old)], LONG).await.unwrap();
    assert_eq!(zombie.verdicts, [Verdict::Lost]);

    assert!(store.enter(&new, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&new, &manifest(&new)).await.unwrap(), Published::Yes);
    let done = row(&*store, "j").await;
    assert_eq!((done.state, done.attempt, done.manifest), (State::Succeeded, 2, Some(manifest(&new))));
    assert_eq!(done.error, None, "how an earlier attempt failed is no error of a job that succeeded");
}

async fn what_waits_in_a_pool_without_a_living_worker_is_anybodys(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (dead, ending) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "aws").await);
    let heir = worker(&*store, "w3", "gcp").await;
    for job in ["first", "second"] {
        accept(&*store, job, &dead).await;
    }
    assert!(store.claim(&heir, LONG).await.unwrap().is_none(), "both were seen within a lease of 60 s");
    store.deregister(&dead).await.unwrap();
    assert!(store.claim(&heir, LONG).await.unwrap().is_none(), "one of them still lives");
    store.deregister(&ending).await.unwrap();
    let claimed = store.claim(&heir, LONG).await.unwrap().unwrap();
    assert_eq!((claimed.job_id, claimed.lease.epoch), (id("first"), 1));

    // A worker that dies says nothing; then its silence must do.
    store.heartbeat(&dead, &[], LONG).await.unwrap();
    assert!(store.claim(&heir, LONG).await.unwrap().is_none(), "it is back");
    let claimed = claim(&*store, &heir, Duration::from_millis(300)).await;
    assert_eq!(claimed.job_id, id("second"));
}

async fn a_heartbeat_keeps_a_lease_and_a_publish_may_be_repeated(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (w, other) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "aws").await);
    accept(&*store, "j", &w).await;
    let lease = claim(&*store, &w, Duration::from_millis(400)).await.lease;
    let answer = store.heartbeat(&w, &[beat(&lease)], LONG).await.unwrap();
    assert_eq!((answer.verdicts, answer.superseded), (vec![Verdict::Renewed], false));
    tokio::time::sleep(Duration::from_millis(450)).await;
    assert!(store.claim(&other, LONG).await.unwrap().is_none());
    assert_eq!(row(&*store, "j").await.progress.percent, 42.0);

    assert_eq!(
        store.publish(&lease, &manifest(&lease)).await.unwrap(),
        Published::No,
        "not before its phase"
    );
    assert!(store.enter(&lease, Phase::Publishing, Some(3.0)).await.unwrap());
    for _ in 0..2 {
        assert_eq!(store.publish(&lease, &manifest(&lease)).await.unwrap(), Published::Yes);
    }
    assert_eq!(kinds(&*store, "j").await, ["accepted", "claimed", "phase", "succeeded"]);
    let uid = row(&*store, "j").await.uid;
    let stood: Vec<_> = store
        .events(&uid, 0, 100)
        .await
        .unwrap()
        .iter()
        .map(|event| {
            let body: serde_json::Value = serde_json::from_str(&event.body).unwrap();
            let job: millrace_wire::job::JobUpdate = serde_json::from_value(body["job"].clone()).unwrap();
            (job.state, job.phase, job.attempt, job.worker.is_some())
        })
        .collect();
    let wanted = [
        (State::Queued, None, 0, false),
        (State::Running, Some(Phase::Source), 1, true),
        (State::Running, Some(Phase::Publishing), 1, true),
        (State::Succeeded, None, 1, true),
    ];
    assert_eq!(stood, wanted, "each event says how the job stood then");
}

async fn a_cancel_before_the_commit_wins_and_after_it_is_too_late(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w1", "aws").await;
    let cancel = async |job: &str| store.cancel(TENANT_DEFAULT, &id(job)).await.unwrap();

    accept(&*store, "waiting", &w).await;
    assert!(matches!(cancel("waiting").await, Cancelled::Done(row) if row.state == State::Cancelled));
    assert!(matches!(cancel("waiting").await, Cancelled::Done(_)), "again is the same");
    assert!(store.claim(&w, LONG).await.unwrap().is_none());

    accept(&*store, "running", &w).await;
    let lease = claim(&*store, &w, LONG).await.lease;
    assert!(store.enter(&lease, Phase::Publishing, None).await.unwrap());
    assert!(matches!(cancel("running").await, Cancelled::Requested(_)));
    assert_eq!(store.cancellations(&w).await.unwrap(), std::slice::from_ref(&lease));
    assert_eq!(
        store.heartbeat(&w, &[beat(&lease)], LONG).await.unwrap().verdicts,
        [Verdict::CancelRequested]
    );
    assert_eq!(store.publish(&lease, &manifest(&lease)).await.unwrap(), Published::No);
    // Even an attempt that failed meanwhile ends as cancelled, not as another try.
    let failed = AttemptEnd::Failed {
        code: FailureCode::EncodeFailed,
        detail: String::new(),
        retry_after: Duration::ZERO,
    };
    store.end(&lease, &failed).await.unwrap();
    assert_eq!(row(&*store, "running").await.state, State::Cancelled);

    accept(&*store, "done", &w).await;
    let lease = claim(&*store, &w, LONG).await.lease;
    assert!(store.enter(&lease, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&lease, &manifest(&lease)).await.unwrap(), Published::Yes);
    assert!(matches!(cancel("done").await, Cancelled::TooLate(_)));
    assert!(matches!(cancel("nobody").await, Cancelled::NotFound));
}

async fn a_cancelled_job_whose_worker_died_ends_when_its_lease_does(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (dead, other) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "aws").await);
    accept(&*store, "j", &dead).await;
    claim(&*store, &dead, SHORT).await;
    assert!(matches!(store.cancel(TENANT_DEFAULT, &id("j")).await.unwrap(), Cancelled::Requested(_)));
    for _ in 0..100 {
        assert!(store.claim(&other, LONG).await.unwrap().is_none());
        if row(&*store, "j").await.state == State::Cancelled {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is still {:?}", row(&*store, "j").await.state);
}

async fn failures_are_final_where_they_must_be_and_otherwise_counted_to_the_end(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w1", "aws").await;
    let fail = |code, wait| AttemptEnd::Failed { code, detail: "why".to_owned(), retry_after: wait };

    accept(&*store, "bad", &w).await;
    let lease = claim(&*store, &w, LONG).await.lease;
    store.end(&lease, &fail(FailureCode::SourceNotFound, Duration::ZERO)).await.unwrap();
    let bad = row(&*store, "bad").await;
    assert_eq!(
        (bad.state, bad.error),
        (State::Failed, Some((FailureCode::SourceNotFound, "why".to_owned())))
    );

    accept(&*store, "later", &w).await;
    let lease = claim(&*store, &w, LONG).await.lease;
    store.end(&lease, &fail(FailureCode::EncodeFailed, LONG)).await.unwrap();
    assert_eq!(row(&*store, "later").await.state, State::RetryWait);
    assert!(store.claim(&w, LONG).await.unwrap().is_none(), "not before its time");

    accept(&*store, "hopeless", &w).await;
    for attempt in 1..=3 {
        let lease = claim(&*store, &w, LONG).await.lease;
        assert_eq!(lease.epoch, attempt);
        store.end(&lease, &fail(FailureCode::EncodeFailed, Duration::ZERO)).await.unwrap();
    }
    assert_eq!(row(&*store, "hopeless").await.state, State::Dead);
    assert!(store.claim(&w, LONG).await.unwrap().is_none());
}

async fn a_released_lease_is_claimable_at_once_and_counts_towards_nothing(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (w, other) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "aws").await);
    accept(&*store, "j", &w).await;
    for _ in 0..5 {
        let lease = claim(&*store, &w, LONG).await.lease;
        store.end(&lease, &AttemptEnd::Released).await.unwrap();
        assert_eq!(row(&*store, "j").await.state, State::Queued);
    }
    assert_eq!(store.claim(&other, LONG).await.unwrap().unwrap().lease.epoch, 6);
}

async fn a_worker_that_comes_back_gives_up_its_past_and_an_older_self_is_told(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let first = worker(&*store, "w1", "aws").await;
    accept(&*store, "j", &first).await;
    let old = claim(&*store, &first, LONG).await.lease;
    let second = worker(&*store, "w1", "aws").await;
    assert_eq!(second.incarnation, first.incarnation + 1);
    assert_eq!(claim(&*store, &second, LONG).await.lease.epoch, 2, "at once, not after the lease");
    let answer = store.heartbeat(&first, &[beat(&old)], LONG).await.unwrap();
    assert_eq!((answer.verdicts, answer.superseded), (vec![Verdict::Lost], true));
    assert!(!store.heartbeat(&second, &[], LONG).await.unwrap().superseded);
}

async fn the_backlog_counts_what_waits_whoever_accepted_it(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (a, b) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "aws").await);
    let gcp = worker(&*store, "w3", "gcp").await;
    for (n, by) in [&a, &a, &b, &gcp].into_iter().enumerate() {
        accept(&*store, &format!("j{n}"), by).await;
    }
    let seen = Backlog { accepted_here: 2, accepted_here_work: 20.0, pool: 3, pool_work: 30.0 };
    assert_eq!(store.backlog(&a).await.unwrap(), seen);
    claim(&*store, &b, LONG).await;
    let seen = Backlog { accepted_here: 1, accepted_here_work: 10.0, pool: 2, pool_work: 20.0 };
    assert_eq!(store.backlog(&a).await.unwrap(), seen, "b took a's oldest");
}

async fn pages_are_newest_first_and_complete(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w1", "aws").await;
    for n in 0..7 {
        accept(&*store, &format!("j{n}"), &w).await;
    }
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = store.jobs(TENANT_DEFAULT, &Filter { state: None, limit: 3, before }).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.uid.clone());
        seen.extend(page.iter().map(|row| row.job_id.to_string()));
    }
    assert_eq!(seen, ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]);
    let running = Filter { state: Some(State::Running), limit: 10, before: None };
    assert!(store.jobs(TENANT_DEFAULT, &running).await.unwrap().is_empty());
    assert!(
        store
            .jobs("somebody-else", &Filter { state: None, limit: 9, before: None })
            .await
            .unwrap()
            .is_empty()
    );
}

async fn workers_that_start_together_open_one_store(fixture: &dyn Fixture) {
    let opening = (0..6).map(async |_| {
        let store = fixture.open().await;
        (store.id().to_owned(), store.signing_key().to_vec())
    });
    let seen: HashSet<_> = futures::future::join_all(opening).await.into_iter().collect();
    assert_eq!(seen.len(), 1);
}

/// Hands the name of every promise above to a macro.
macro_rules! promises {
    ($to:ident) => {
        $to! {
            accepting_twice_is_one_job_and_another_spec_is_a_conflict
            a_full_queue_refuses_the_lower_classes_first
            claims_take_the_highest_class_then_the_oldest_and_only_of_the_own_pool
            many_workers_never_claim_the_same_task
            an_expired_lease_goes_to_any_pool_and_its_zombie_can_do_nothing
            what_waits_in_a_pool_without_a_living_worker_is_anybodys
            a_heartbeat_keeps_a_lease_and_a_publish_may_be_repeated
            a_cancel_before_the_commit_wins_and_after_it_is_too_late
            a_cancelled_job_whose_worker_died_ends_when_its_lease_does
            failures_are_final_where_they_must_be_and_otherwise_counted_to_the_end
            a_released_lease_is_claimable_at_once_and_counts_towards_nothing
            a_worker_that_comes_back_gives_up_its_past_and_an_older_self_is_told
            the_backlog_counts_what_waits_whoever_accepted_it
            pages_are_newest_first_and_complete
            workers_that_start_together_open_one_store
            a_dead_job_that_is_retried_is_the_same_job_with_all_its_attempts_anew
            a_verdict_is_tried_again_only_where_it_may_be_another
            two_who_retry_at_once_begin_one_series
            waiting_work_is_stolen_for_its_price_and_not_before
            at_a_price_of_nothing_the_own_pool_has_a_head_start
            a_pool_steals_only_when_it_has_nothing_to_do_and_then_what_is_longest_past_its_price
            a_task_is_stolen_once_in_its_life
            what_was_cancelled_or_claimed_is_not_stolen
            many_thieves_and_the_robbed_never_claim_the_same_task
            a_split_job_is_done_when_its_last_part_is
            a_lost_part_is_done_again_and_nothing_else
            parts_whose_objects_are_lost_are_done_again_a_few_times
            ranges_are_for_equal_encoders_and_begin_anew_without_one
            a_part_that_fails_for_good_fails_its_job_and_ends_the_others
            a_cancel_ends_all_parts
            parts_that_end_together_bring_one_finalizer
            parts_of_a_pool_that_is_gone_are_anybodys
            a_dead_job_in_parts_goes_on_where_it_was_until_what_it_left_is_gone
            what_lost_attempts_wrote_is_due_twice_and_what_may_still_publish_never
            outputs_are_gone_for_readers_first_and_due_later
            a_client_deletes_the_outputs_of_its_own_finished_jobs_alone
            an_upload_is_due_when_no_job_reads_it_and_comes_back_when_one_does
            however_many_uploads_jobs_read_none_of_them_is_due
            an_upload_in_parts_is_due_after_its_session_unless_it_was_completed
            a_bucket_has_one_sweeper_at_a_time
            every_end_of_a_job_with_a_webhook_is_claimed_once
            a_webhook_is_told_again_until_its_window_ends
            a_receiver_is_told_a_few_at_a_time_and_a_job_in_order
            a_sink_has_one_feeder_that_goes_on_where_the_last_one_was
            jobs_are_found_by_the_words_of_their_own_tenant
            an_inputs_second_copy_is_one_claim_at_a_time_and_done_once
            an_input_that_lies_in_the_second_pool_is_copied_into_the_first
            nobody_copies_the_input_of_a_job_that_is_over_until_it_is_tried_again
            outputs_are_copied_once_there_are_any_and_go_with_them
            a_job_whose_bucket_is_lost_is_made_whole_in_another
            the_last_attempt_of_a_moved_job_can_never_publish_after_its_finalizer
            a_job_is_made_again_whose_outputs_are_lost_and_a_cancelled_one_is_not_moved
            what_waits_with_a_lost_bucket_is_named_and_moved_once
            a_split_job_of_which_no_part_runs_leaves_a_lost_bucket_whole
        }
    };
}

mod sqlite {
    use super::*;

    struct File(tempfile::TempDir);

    #[async_trait]
    impl Fixture for File {
        async fn both(&self) -> (Arc<dyn Store>, Arc<dyn Upkeep>) {
            let store = Arc::new(Sqlite::open(&self.url(), 3).await.unwrap());
            (Arc::clone(&store) as _, store)
        }

        async fn age(&self, by: Duration) {
            sqlx::SqliteConnection::connect(&self.url()).await.unwrap().execute(aging(by)).await.unwrap();
        }

        async fn again(&self, job_id: &str) {
            let mut connection = sqlx::SqliteConnection::connect(&self.url()).await.unwrap();
            connection.execute(repeating(job_id)).await.unwrap();
        }
    }

    impl File {
        fn url(&self) -> String {
            format!("sqlite:{}", self.0.path().join("jobs.db").display())
        }
    }

    macro_rules! tests {
        ($($promise:ident)*) => {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                super::$promise(&File(tempfile::tempdir().unwrap())).await;
            }
        )*};
    }
    promises!(tests);
}

mod postgres {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::postgres::tests::settings;
    use super::super::private_server::Server;
    use super::*;

    /// How many promises are looked at together.
    const AT_ONCE: usize = 4;

    struct Database(String);

    #[async_trait]
    impl Fixture for Database {
        async fn both(&self) -> (Arc<dyn Store>, Arc<dyn Upkeep>) {
            let store = Arc::new(Postgres::open(&self.0, settings(), 3).await.unwrap());
            (Arc::clone(&store) as _, store)
        }

        async fn age(&self, by: Duration) {
            sqlx::PgConnection::connect(&self.0).await.unwrap().execute(aging(by)).await.unwrap();
        }

        async fn again(&self, job_id: &str) {
            let mut connection = sqlx::PgConnection::connect(&self.0).await.unwrap();
            connection.execute(repeating(job_id)).await.unwrap();
        }
    }

    /// One test for all of them: a server takes longer to start than they take.
    #[tokio::test(flavor = "multi_thread")]
    async fn every_promise_is_kept() {
        let server = Arc::new(Server::start().unwrap());
        let turns = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let (mut promises, databases) = (Vec::new(), Arc::new(AtomicU32::new(0)));
        macro_rules! keep {
            ($($promise:ident)*) => {$({
                let (server, turns, databases) =
                    (Arc::clone(&server), Arc::clone(&turns), Arc::clone(&databases));
                promises.push((stringify!($promise), tokio::spawn(async move {
                    let _turn = turns.acquire().await.unwrap();
                    let number = databases.fetch_add(1, Ordering::Relaxed);
                    let url = server.create(&format!("promise_{number}")).unwrap();
                    super::$promise(&Database(url)).await;
                })));
            })*};
        }
        promises!(keep);
        let mut broken = Vec::new();
        for (promise, kept) in promises {
            if let Err(error) = kept.await {
                broken.push(format!("{promise}: {error}"));
            }
        }
        assert!(broken.is_empty(), "{broken:#?}");
    }
}
