//! What every store must do as the one that keeps house.

use super::*;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Nothing is past its time.
const KEEP: Rules = Rules { outputs_kept: YEAR, uploads_kept: YEAR, lost_kept: YEAR, delete_after: YEAR };
/// Everything is, unless it says itself how long.
const NOW: Rules = Rules {
    outputs_kept: Duration::ZERO,
    uploads_kept: Duration::ZERO,
    lost_kept: Duration::ZERO,
    delete_after: Duration::ZERO,
};

fn aws() -> PoolId {
    "aws".parse().unwrap()
}

async fn due(upkeep: &dyn Upkeep, rules: Rules) -> Vec<Due> {
    upkeep.due(&aws(), &rules, 100).await.unwrap()
}

/// Says of all that is due that it was removed, and returns it.
async fn sweep(upkeep: &dyn Upkeep, rules: Rules) -> Vec<Due> {
    let due = due(upkeep, rules).await;
    for one in &due {
        upkeep.swept(&aws(), one).await.unwrap();
    }
    due
}

async fn publish(store: &dyn Store, claim: &Claim) {
    assert!(store.enter(&claim.lease, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&claim.lease, &manifest(&claim.lease)).await.unwrap(), Published::Yes);
}

async fn accept_of(store: &dyn Store, by: &Identity, job_id: &str, spec: &str) {
    let (spec, _) = JobSpec::parse(spec.as_bytes()).unwrap();
    let (tenant, steal) = (TENANT_DEFAULT.to_owned(), Prices::default());
    let new = NewJob { tenant, job_id: id(job_id), spec, work_seconds: 1.0, steal, second: None };
    assert!(matches!(store.accept(&new, by, ROOM).await.unwrap(), Accepted::Created(_)), "{job_id}");
}

async fn enter(upkeep: &dyn Upkeep, key: &str, parts: Option<&str>, until_ms: i64) {
    let upload = NewUpload { bucket: aws(), key: key.to_owned(), parts: parts.map(str::to_owned), until_ms };
    upkeep.enter_upload(&upload, Duration::ZERO).await.unwrap();
}

fn upload(key: &str) -> Due {
    Due::Upload { key: key.to_owned() }
}

pub(super) async fn what_lost_attempts_wrote_is_due_twice_and_what_may_still_publish_never(
    fixture: &dyn Fixture,
) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    accept(store, "j", &w).await;
    let lost = claim(store, &w, LONG).await;
    assert!(due(upkeep, NOW).await.is_empty(), "it runs");
    let (code, detail) = (FailureCode::EncodeFailed, String::new());
    let failed = AttemptEnd::Failed { code, detail, retry_after: Duration::ZERO };
    store.end(&lost.lease, &failed).await.unwrap();
    let live = claim(store, &w, LONG).await;
    assert!(due(upkeep, KEEP).await.is_empty(), "not yet");
    let Lease { task_uid, job_uid, epoch } = lost.lease.clone();
    let of_lost = [Due::Attempt { task_uid, job_uid, part: Part::Whole, number: epoch }];
    assert!(upkeep.due(&"gcp".parse().unwrap(), &NOW, 9).await.unwrap().is_empty(), "another's bucket");
    assert_eq!(due(upkeep, NOW).await, of_lost, "as often as it is asked");
    assert_eq!(sweep(upkeep, NOW).await, of_lost);
    assert_eq!(sweep(upkeep, NOW).await, of_lost, "once more, behind a zombie");
    assert!(due(upkeep, NOW).await.is_empty());
    publish(store, &live).await;
    assert!(due(upkeep, Rules { outputs_kept: YEAR, ..NOW }).await.is_empty(), "it published");

    // An attempt whose worker fell silent is lost like any other; who waits for another try has nothing to lose.
    accept(store, "silent", &w).await;
    let silent = claim(store, &w, SHORT).await;
    let again = claim(store, &w, LONG).await;
    assert_eq!(again.lease.task_uid, silent.lease.task_uid);
    let retry_after = LONG;
    let failed = AttemptEnd::Failed { code, detail: String::new(), retry_after };
    store.end(&again.lease, &failed).await.unwrap();
    let both = sweep(upkeep, Rules { outputs_kept: YEAR, ..NOW }).await;
    let numbers: HashSet<u64> = both
        .iter()
        .filter_map(|due| if let Due::Attempt { number, .. } = due { Some(*number) } else { None })
        .collect();
    assert_eq!(numbers, HashSet::from([silent.lease.epoch, again.lease.epoch]), "{both:?}");
}

pub(super) async fn outputs_are_gone_for_readers_first_and_due_later(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    // What one server's JSON cannot hold is kept and found like the rest.
    let labels = r#""labels":{"a":"\u0000","retention_days":"9"}"#;
    accept_of(store, &w, "default", &format!(r#"{{"input_url":"http://h/v",{labels}}}"#)).await;
    accept_of(store, &w, "own", &format!(r#"{{"input_url":"http://h/v","retention_days":3,{labels}}}"#))
        .await;
    accept(store, "failed", &w).await;
    let mut uids = Vec::new();
    for _ in 0..2 {
        let claim = claim(store, &w, LONG).await;
        publish(store, &claim).await;
        uids.push(claim.lease.job_uid);
    }
    let failed = claim(store, &w, LONG).await.lease;
    let gone = async || upkeep.outputs_gone(&uids).await.unwrap();
    let outputs = |uid: &String| Due::Outputs { job_uid: uid.clone() };
    let expired = Rules { outputs_kept: Duration::ZERO, ..KEEP };

    assert!(due(upkeep, KEEP).await.is_empty() && gone().await.is_empty());
    assert!(due(upkeep, expired).await.is_empty(), "readers still have URLs");
    let since = gone().await;
    assert_eq!(since.keys().collect::<Vec<_>>(), [&uids[0]], "the other says itself how long");
    fixture.age(Duration::from_secs(2 * 86_400)).await;
    assert!(due(upkeep, expired).await.is_empty());
    assert_eq!(gone().await, since);
    fixture.age(Duration::from_secs(86_400)).await;
    assert!(due(upkeep, KEEP).await.is_empty());
    assert_eq!(gone().await.len(), 2, "its three days are over");
    let removing = Rules { delete_after: Duration::ZERO, ..KEEP };
    assert_eq!(sweep(upkeep, removing).await, [outputs(&uids[0]), outputs(&uids[1])]);
    assert!(due(upkeep, removing).await.is_empty(), "once");
    assert_eq!(gone().await.len(), 2, "for ever");
    assert_eq!(row(store, "default").await.state, State::Succeeded);
    assert!(upkeep.outputs_gone(&[failed.job_uid]).await.unwrap().is_empty());
    assert!(upkeep.outputs_gone(&[]).await.unwrap().is_empty());
}

pub(super) async fn a_client_deletes_the_outputs_of_its_own_finished_jobs_alone(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    let deleted = async |tenant: &str, job: &str| upkeep.delete_outputs(tenant, &id(job)).await.unwrap();
    accept(store, "j", &w).await;
    assert!(matches!(deleted(TENANT_DEFAULT, "j").await, Deleted::None(State::Queued)));
    let claim = claim(store, &w, LONG).await;
    assert!(matches!(deleted(TENANT_DEFAULT, "j").await, Deleted::None(State::Running)));
    publish(store, &claim).await;
    let events = kinds(store, "j").await;
    for (tenant, job) in [("acme", "j"), (TENANT_DEFAULT, "k")] {
        assert!(matches!(deleted(tenant, job).await, Deleted::NotFound), "{tenant} {job}");
    }
    let uids = [claim.lease.job_uid];
    assert!(upkeep.outputs_gone(&uids).await.unwrap().is_empty());
    assert!(matches!(deleted(TENANT_DEFAULT, "j").await, Deleted::Done(row) if row.uid == uids[0]));
    let since = upkeep.outputs_gone(&uids).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(matches!(deleted(TENANT_DEFAULT, "j").await, Deleted::Done(_)), "again is the same");
    assert_eq!((upkeep.outputs_gone(&uids).await.unwrap(), since.len()), (since, 1));
    assert_eq!(kinds(store, "j").await, events);
    let removing = Rules { delete_after: Duration::ZERO, ..KEEP };
    assert_eq!(due(upkeep, removing).await, [Due::Outputs { job_uid: uids[0].clone() }]);

    accept(store, "cancelled", &w).await;
    store.cancel(TENANT_DEFAULT, &id("cancelled")).await.unwrap();
    assert!(matches!(deleted(TENANT_DEFAULT, "cancelled").await, Deleted::None(State::Cancelled)));
}

pub(super) async fn an_upload_is_due_when_no_job_reads_it_and_comes_back_when_one_does(
    fixture: &dyn Fixture,
) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    for key in ["uploads/1/read", "uploads/2/unread", "uploads/3/late"] {
        enter(upkeep, key, None, 0).await;
    }
    enter(upkeep, "uploads/4/not-yet", None, i64::MAX / 8).await;
    let reads = |key: &str| format!(r#"{{"input_path":"aws/{key}","labels":{{"a":"\u0000"}}}}"#);
    accept_of(store, &w, "j", &reads("uploads/1/read")).await;
    let slow = Rules { uploads_kept: Duration::ZERO, ..KEEP };
    assert!(due(upkeep, slow).await.is_empty(), "whoever is about to read them is given time");
    let gone = async |key: &str| upkeep.upload_gone(&aws(), key).await.unwrap();
    assert!(!gone("uploads/1/read").await && !gone("uploads/4/not-yet").await);
    assert!(gone("uploads/2/unread").await && gone("uploads/3/late").await);
    assert!(!upkeep.upload_gone(&"gcp".parse().unwrap(), "uploads/2/unread").await.unwrap());
    // Whoever looked before and commits now still gets it: the bytes' time has come, and it comes back.
    accept_of(store, &w, "late", &reads("uploads/3/late")).await;
    fixture.age(2 * YEAR).await;
    assert_eq!(sweep(upkeep, NOW).await, [upload("uploads/2/unread")]);
    assert!(!gone("uploads/3/late").await && !gone("uploads/2/unread").await, "its row went with it");

    // The last job that reads it ends, and its time begins then.
    let cancelled = store.cancel(TENANT_DEFAULT, &id("j")).await.unwrap();
    assert!(matches!(cancelled, Cancelled::Done(_)));
    fixture.age(Duration::from_secs(2 * 3600)).await;
    assert!(due(upkeep, Rules { uploads_kept: YEAR, ..NOW }).await.is_empty());
    assert!(!gone("uploads/1/read").await, "it was read lately");
    fixture.age(2 * YEAR).await;
    assert_eq!(sweep(upkeep, NOW).await, [upload("uploads/1/read")]);
}

pub(super) async fn however_many_uploads_jobs_read_none_of_them_is_due(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    for number in 0..9 {
        enter(upkeep, &format!("uploads/{number}/v"), None, 0).await;
    }
    // All are gone, and then named by jobs that were on their way.
    assert!(due(upkeep, Rules { uploads_kept: Duration::ZERO, ..KEEP }).await.is_empty());
    for number in 0..9 {
        let spec = format!(r#"{{"input_path":"aws/uploads/{number}/v"}}"#);
        accept_of(store, &w, &format!("j{number}"), &spec).await;
    }
    fixture.age(2 * YEAR).await;
    // A look comes back with less than there is.
    for _ in 0..3 {
        let due = upkeep.due(&aws(), &NOW, 2).await.unwrap();
        assert!(due.is_empty(), "{due:?}");
    }
}

pub(super) async fn an_upload_in_parts_is_due_after_its_session_unless_it_was_completed(
    fixture: &dyn Fixture,
) {
    let upkeep = fixture.both().await.1;
    let upkeep = &*upkeep;
    for (key, until_ms) in
        [("uploads/1/given-up", 0), ("uploads/2/complete", 0), ("uploads/3/open", i64::MAX / 8)]
    {
        enter(upkeep, key, Some(key), until_ms).await;
    }
    upkeep.upload_complete(&aws(), "uploads/2/complete", YEAR).await.unwrap();
    let key = "uploads/1/given-up".to_owned();
    assert_eq!(sweep(upkeep, NOW).await, [Due::Parts { id: key.clone(), key }]);
    assert!(due(upkeep, NOW).await.is_empty());
    // It is an upload like any other now; and told once more, its time does not begin again.
    fixture.age(2 * YEAR).await;
    upkeep.upload_complete(&aws(), "uploads/2/complete", YEAR).await.unwrap();
    assert_eq!(sweep(upkeep, NOW).await, [upload("uploads/2/complete")]);
}

pub(super) async fn a_bucket_has_one_sweeper_at_a_time(fixture: &dyn Fixture) {
    let upkeep = fixture.both().await.1;
    let take = async |who: &str, hold| upkeep.take(&aws(), who, hold).await.unwrap();
    let all = futures::future::join_all(["w1 1", "w2 1", "w3 1"].map(|who| take(who, LONG))).await;
    assert_eq!(all.iter().filter(|taken| **taken).count(), 1, "{all:?}");
    assert!(upkeep.take(&"gcp".parse().unwrap(), "w1 1", LONG).await.unwrap(), "a bucket each");
    let holder = ["w1 1", "w2 1", "w3 1"][all.iter().position(|taken| *taken).unwrap()];
    assert!(!take("w1 2", LONG).await, "another life is another");
    assert!(take(holder, SHORT).await, "as long as it goes on");
    let began = std::time::Instant::now();
    while !take("w1 2", LONG).await {
        assert!(began.elapsed() < Duration::from_secs(5), "its hold never ends");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!take(holder, LONG).await);
}
