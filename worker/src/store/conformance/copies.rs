//! What every store must do as the one that knows of copies.

use super::*;
use crate::store::copies::{CopyClaim, CopyEnd, CopyRow, Kind, Reach, Stale, Wished};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Nothing is past its time.
const KEEP: Rules = Rules { outputs_kept: YEAR, uploads_kept: YEAR, lost_kept: YEAR, delete_after: YEAR };
/// Everything is.
const NOW: Rules = Rules {
    outputs_kept: Duration::ZERO,
    uploads_kept: Duration::ZERO,
    lost_kept: Duration::ZERO,
    delete_after: Duration::ZERO,
};

fn pool(name: &str) -> PoolId {
    name.parse().unwrap()
}

/// All buckets, and a store that is in several clouds by its own account.
fn everywhere() -> Reach {
    Reach { pools: None, store_replicated: true }
}

async fn dual(store: &dyn Store, job_id: &str, fields: &str, by: &Identity) -> JobRow {
    let fields = format!(r#","durability":"dual"{fields}"#);
    let new = NewJob { second: Some(pool("gcp")), ..new_job(job_id, &fields) };
    match store.accept(&new, by, ROOM).await.unwrap() {
        Accepted::Created(row) => row,
        other => panic!("{job_id}: {other:?}"),
    }
}

/// What a job is split into here.
fn halves() -> [NewPart; 2] {
    [Part::Range(0), Part::Range(1)].map(|part| NewPart { part, work_seconds: 1.0, media_s: 1.0 })
}

/// A worker of `aws` and one of `gcp`, and a `dual` job that the first has claimed and split: its internal name and that claim.
async fn split_job(store: &dyn Store) -> ([Identity; 2], String, Claim) {
    let workers = [worker(store, "w1", "aws").await, worker(store, "w2", "gcp").await];
    for worker in &workers {
        store.equip(worker, "e", LONG).await.unwrap();
    }
    let uid = dual(store, "j", "", &workers[0]).await.uid;
    let whole_job = claim(store, &workers[0], LONG).await;
    assert!(store.split(&whole_job.lease, "plan", &halves()).await.unwrap());
    (workers, uid, whole_job)
}

async fn copy(upkeep: &dyn Upkeep, by: &Identity, lease: Duration) -> Option<CopyClaim> {
    upkeep.claim_copy(by, &everywhere(), lease).await.unwrap()
}

async fn copy_soon(upkeep: &dyn Upkeep, by: &Identity, lease: Duration) -> CopyClaim {
    for _ in 0..200 {
        if let Some(claim) = copy(upkeep, by, lease).await {
            return claim;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nothing to copy within 5 s");
}

fn whole() -> CopyEnd {
    CopyEnd::Done { bytes: 7, sha256: Some("aa".to_owned()) }
}

async fn ends(upkeep: &dyn Upkeep, claim: &CopyClaim, end: &CopyEnd) -> bool {
    upkeep.end_copy(&claim.lease, &everywhere(), end).await.unwrap()
}

async fn of(upkeep: &dyn Upkeep, uid: &str) -> Vec<CopyRow> {
    upkeep.copies(&[uid.to_owned()]).await.unwrap().remove(uid).unwrap_or_default()
}

async fn publish(store: &dyn Store, claim: &Claim) {
    assert!(store.enter(&claim.lease, Phase::Publishing, None).await.unwrap());
    let manifest = Manifest { bucket: claim.bucket.clone(), ..manifest(&claim.lease) };
    assert_eq!(store.publish(&claim.lease, &manifest).await.unwrap(), Published::Yes);
}

pub(super) async fn an_inputs_second_copy_is_one_claim_at_a_time_and_done_once(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let (w, other) = (worker(store, "w1", "aws").await, worker(store, "w2", "gcp").await);
    accept(store, "single", &w).await;
    assert!(copy(upkeep, &w, LONG).await.is_none(), "nobody asked");
    let uid = dual(store, "j", "", &w).await.uid;
    let far = Reach { pools: Some(vec![pool("aws"), pool("azure")]), store_replicated: true };
    assert!(upkeep.claim_copy(&w, &far, LONG).await.unwrap().is_none(), "it knows no bucket of gcp");
    let unproven = Reach { pools: None, store_replicated: false };
    assert!(upkeep.claim_copy(&w, &unproven, LONG).await.unwrap().is_none(), "the store is in one place");

    let lost = copy(upkeep, &w, SHORT).await.unwrap();
    assert_eq!((lost.lease.kind, &lost.lease.to, lost.failures), (Kind::Input, &pool("gcp"), 0));
    assert!(of(upkeep, &uid).await[0].done.is_none());
    // Its worker is dead: another's turn, and what the dead one says counts no more.
    let mine = copy_soon(upkeep, &other, LONG).await;
    assert!(mine.lease.epoch > lost.lease.epoch && copy(upkeep, &w, LONG).await.is_none());
    assert!(!upkeep.renew_copy(&lost.lease, LONG).await.unwrap());
    assert!(!ends(upkeep, &lost, &whole()).await && !ends(upkeep, &lost, &CopyEnd::Released).await);
    assert!(upkeep.renew_copy(&mine.lease, LONG).await.unwrap());
    assert!(!upkeep.end_copy(&mine.lease, &unproven, &whole()).await.unwrap());

    let (code, detail) = ("objects_unavailable".to_owned(), "away\0".to_owned());
    assert!(ends(upkeep, &mine, &CopyEnd::Failed { code, detail, retry_after: SHORT }).await);
    assert!(of(upkeep, &uid).await[0].detail.as_ref().unwrap().starts_with("away"));
    let again = copy_soon(upkeep, &w, LONG).await;
    assert_eq!(again.failures, 1);
    assert!(
        ends(upkeep, &again, &whole()).await && ends(upkeep, &again, &whole()).await,
        "an answer was lost"
    );
    let there = of(upkeep, &uid).await;
    assert_eq!((there.len(), there[0].done.unwrap().0, there[0].bytes), (1, again.lease.epoch, Some(7)));
    assert_eq!((&there[0].pool, there[0].sha256.as_deref()), (&pool("gcp"), Some("aa")));
    assert!(copy(upkeep, &w, LONG).await.is_none());
}

pub(super) async fn an_input_that_lies_in_the_second_pool_is_copied_into_the_first(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let w = worker(&*store, "w1", "aws").await;
    for (place, to) in [("gcp", "aws"), ("aws", "gcp"), ("azure", "gcp")] {
        let spec = format!(r#"{{"input_path":"{place}/uploads/k/v","durability":"dual"}}"#);
        let (spec, _) = JobSpec::parse(spec.as_bytes()).unwrap();
        let new = NewJob { spec, second: Some(pool("gcp")), ..new_job(place, "") };
        assert!(matches!(store.accept(&new, &w, ROOM).await.unwrap(), Accepted::Created(_)));
        let claim = copy(&*upkeep, &w, LONG).await.unwrap();
        assert_eq!((claim.job_id.as_str(), claim.lease.to), (place, pool(to)));
    }
}

pub(super) async fn nobody_copies_the_input_of_a_job_that_is_over_until_it_is_tried_again(
    fixture: &dyn Fixture,
) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    let uid = dual(store, "j", "", &w).await.uid;
    let copying = copy(upkeep, &w, LONG).await.unwrap();
    for _ in 0..3 {
        let attempt = claim(store, &w, LONG).await;
        let (code, detail) = (FailureCode::EncodeFailed, String::new());
        let failed = AttemptEnd::Failed { code, detail, retry_after: Duration::ZERO };
        store.end(&attempt.lease, &failed).await.unwrap();
    }
    assert_eq!(row(store, "j").await.state, State::Dead);
    assert!(!upkeep.renew_copy(&copying.lease, LONG).await.unwrap());
    assert!(!ends(upkeep, &copying, &whole()).await);
    assert!(upkeep.due(&pool("gcp"), &KEEP, 9).await.unwrap().is_empty(), "it may be tried again");

    let due = upkeep.due(&pool("gcp"), &NOW, 9).await.unwrap();
    let claims = copying.lease.epoch;
    assert_eq!(due, [Due::Copy { job_uid: uid.clone(), what: Stale::Input { claims } }]);
    assert!(matches!(store.retry(TENANT_DEFAULT, &id("j"), &w, ROOM).await.unwrap(), Retried::Done(_)));
    assert!(upkeep.due(&pool("gcp"), &NOW, 9).await.unwrap().is_empty(), "it is wanted again");
    let again = copy(upkeep, &w, LONG).await.unwrap();
    assert!(again.lease.epoch > claims && ends(upkeep, &again, &whole()).await);

    // Of what is done, and then over, nothing is left for readers once it is past its time; and then it is due, twice.
    publish(store, &claim(store, &w, LONG).await).await;
    assert_eq!(of(upkeep, &uid).await.len(), 1);
    for _ in 0..2 {
        let due = upkeep.due(&pool("gcp"), &Rules { outputs_kept: YEAR, ..NOW }, 9).await.unwrap();
        assert_eq!(due.len(), 1, "{due:?}");
        upkeep.swept(&pool("gcp"), &due[0]).await.unwrap();
        assert!(of(upkeep, &uid).await.is_empty());
    }
    assert!(upkeep.due(&pool("gcp"), &Rules { outputs_kept: YEAR, ..NOW }, 9).await.unwrap().is_empty());
}

pub(super) async fn outputs_are_copied_once_there_are_any_and_go_with_them(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    let new = new_job("j", r#","replicate":["gcp","aws"]"#);
    let Accepted::Created(JobRow { uid, .. }) = store.accept(&new, &w, ROOM).await.unwrap() else { panic!() };
    assert!(copy(upkeep, &w, LONG).await.is_none(), "there is nothing yet");
    let early = upkeep.replicate(TENANT_DEFAULT, &id("j"), &[pool("gcp")]).await.unwrap();
    assert!(matches!(early, Wished::None(_)), "{early:?}");
    publish(store, &claim(store, &w, LONG).await).await;
    let copying = copy(upkeep, &w, LONG).await.unwrap();
    assert_eq!((copying.lease.kind, &copying.lease.to), (Kind::Outputs, &pool("gcp")));
    assert_eq!(copying.manifest.as_ref().unwrap().bucket, pool("aws"));
    assert!(copy(upkeep, &w, LONG).await.is_none(), "aws has them already");
    assert_eq!(upkeep.copies_waiting().await.unwrap().0, 1);
    assert!(ends(upkeep, &copying, &CopyEnd::Done { bytes: 9, sha256: None }).await);

    // Asked for later, and again: what is there stays.
    let pools = [pool("gcp"), pool("azure"), pool("aws")];
    let later = upkeep.replicate(TENANT_DEFAULT, &id("j"), &pools).await.unwrap();
    assert!(matches!(later, Wished::Done(_)));
    let missing = upkeep.replicate("other", &id("j"), &pools).await.unwrap();
    assert!(matches!(missing, Wished::NotFound));
    let azure = copy(upkeep, &w, LONG).await.unwrap();
    assert_eq!(azure.lease.to, pool("azure"));
    assert!(copy(upkeep, &w, LONG).await.is_none());
    let done: Vec<bool> = of(upkeep, &uid)
        .await
        .into_iter()
        .filter(|c| c.kind == Kind::Outputs)
        .map(|c| c.done.is_some())
        .collect();
    assert!(done.contains(&true) && done.contains(&false));

    // With the outputs go their copies: for readers and copiers at once, their bytes later, from each bucket by its own
    // sweeper.
    assert!(matches!(upkeep.delete_outputs(TENANT_DEFAULT, &id("j")).await.unwrap(), Deleted::Done(_)));
    assert!(!upkeep.renew_copy(&azure.lease, LONG).await.unwrap());
    let late = upkeep.replicate(TENANT_DEFAULT, &id("j"), &pools).await.unwrap();
    assert!(matches!(late, Wished::None(_)));
    assert!(upkeep.due(&pool("gcp"), &KEEP, 9).await.unwrap().is_empty(), "URLs to them may hold still");
    for (name, what) in [("gcp", Stale::Outputs), ("azure", Stale::Outputs)] {
        let due = upkeep.due(&pool(name), &NOW, 9).await.unwrap();
        assert_eq!(due, [Due::Copy { job_uid: uid.clone(), what }], "{name}");
    }
}

pub(super) async fn a_job_whose_bucket_is_lost_is_made_whole_in_another(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let ([w, other], uid, whole_job) = split_job(store).await;
    let (first, second) = (claim(store, &w, LONG).await, claim(store, &w, LONG).await);
    assert_eq!(store.commit(&first.lease, "e", "{}").await.unwrap(), Committed::Yes);

    assert!(!upkeep.relocate(&first.lease, &pool("gcp")).await.unwrap(), "that one is done");
    assert!(!upkeep.relocate(&second.lease, &pool("aws")).await.unwrap(), "it is there");
    assert!(upkeep.relocate(&second.lease, &pool("gcp")).await.unwrap());
    assert!(!upkeep.relocate(&second.lease, &pool("gcp")).await.unwrap());
    let moved = row(store, "j").await;
    assert_eq!((moved.state, moved.pool, moved.phase), (State::Queued, pool("gcp"), None));
    // Whoever was at it can do nothing any more.
    assert_eq!(store.commit(&second.lease, "e", "{}").await.unwrap(), Committed::No);
    assert_eq!(store.publish(&whole_job.lease, &manifest(&whole_job.lease)).await.unwrap(), Published::No);
    assert_eq!(store.heartbeat(&w, &[beat(&second.lease)], LONG).await.unwrap().verdicts, [Verdict::Lost]);

    let again = claim(store, &other, LONG).await;
    assert_eq!((again.part, &again.bucket, again.plan.as_deref()), (Part::Whole, &pool("gcp"), None));
    assert!(again.lease.epoch > whole_job.lease.epoch);
    // It may be split anew, and what it left behind is nobody's once it is over.
    assert!(store.split(&again.lease, "another plan", &halves()).await.unwrap());
    for _ in 0..2 {
        let part = claim(store, &other, LONG).await;
        assert_eq!(store.commit(&part.lease, "e", "{}").await.unwrap(), Committed::Yes);
    }
    let finalizer = claim(store, &other, LONG).await;
    assert_eq!(finalizer.part, Part::Finish);
    assert!(upkeep.due(&pool("aws"), &NOW, 9).await.unwrap().is_empty(), "it is not over");
    publish(store, &finalizer).await;
    assert_eq!(row(store, "j").await.manifest.unwrap().bucket, pool("gcp"));
    let rules = Rules { outputs_kept: YEAR, ..NOW };
    let due = upkeep.due(&pool("aws"), &rules, 9).await.unwrap();
    assert_eq!(due, [Due::Copy { job_uid: uid, what: Stale::Left }]);
    assert!(kinds(store, "j").await.contains(&"moved".to_owned()));
}

pub(super) async fn the_last_attempt_of_a_moved_job_can_never_publish_after_its_finalizer(
    fixture: &dyn Fixture,
) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let (w, other) = (worker(store, "w1", "aws").await, worker(store, "w2", "gcp").await);
    store.equip(&w, "e", LONG).await.unwrap();
    dual(store, "j", "", &w).await;
    let first = claim(store, &w, LONG).await;
    let part = NewPart { part: Part::Range(0), work_seconds: 1.0, media_s: 1.0 };
    assert!(store.split(&first.lease, "plan", &[part]).await.unwrap());
    let range = claim(store, &w, LONG).await;
    assert_eq!(store.commit(&range.lease, "e", "{}").await.unwrap(), Committed::Yes);
    let finalizer = claim(store, &w, LONG).await;
    assert!(store.enter(&finalizer.lease, Phase::Publishing, None).await.unwrap());
    assert!(upkeep.relocate(&finalizer.lease, &pool("gcp")).await.unwrap());
    let again = claim(store, &other, LONG).await;
    assert!(again.lease.epoch > finalizer.lease.epoch, "no number comes twice");
    assert!(store.enter(&again.lease, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&finalizer.lease, &manifest(&finalizer.lease)).await.unwrap(), Published::No);
    publish(store, &again).await;
}

pub(super) async fn a_job_is_made_again_whose_outputs_are_lost_and_a_cancelled_one_is_not_moved(
    fixture: &dyn Fixture,
) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let (w, other) = (worker(store, "w1", "aws").await, worker(store, "w2", "gcp").await);
    let uid = dual(store, "j", r#","replicate":["azure"]"#, &w).await.uid;
    let input = copy(upkeep, &w, LONG).await.unwrap();
    assert!(ends(upkeep, &input, &whole()).await);
    let reopen =
        async |from, to| upkeep.reopen(TENANT_DEFAULT, &id("j"), &pool(from), &pool(to)).await.unwrap();
    assert!(reopen("aws", "gcp").await.is_none(), "it has not ended");
    let first = claim(store, &w, LONG).await;
    publish(store, &first).await;
    let outputs = copy(upkeep, &w, LONG).await.unwrap();
    assert!(reopen("gcp", "aws").await.is_none(), "its outputs are not there");
    let again = reopen("aws", "gcp").await.unwrap();
    assert_eq!((again.state, again.manifest), (State::Queued, None));
    assert!(!ends(upkeep, &outputs, &whole()).await, "of what is gone no copy is whole");
    assert!(of(upkeep, &uid).await.iter().any(|c| c.kind == Kind::Input && c.done.is_some()));
    let second = claim(store, &other, LONG).await;
    assert!(second.lease.epoch > first.lease.epoch && second.bucket == pool("gcp"));
    publish(store, &second).await;
    assert_eq!(copy(upkeep, &w, LONG).await.unwrap().lease.to, pool("azure"));

    dual(store, "unwanted", "", &w).await;
    let unwanted = claim(store, &w, LONG).await;
    assert!(matches!(store.cancel(TENANT_DEFAULT, &id("unwanted")).await.unwrap(), Cancelled::Requested(_)));
    assert!(!upkeep.relocate(&unwanted.lease, &pool("gcp")).await.unwrap());
}

pub(super) async fn what_waits_with_a_lost_bucket_is_named_and_moved_once(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let (w, neighbour) = (worker(store, "w1", "aws").await, worker(store, "w2", "aws").await);
    let other = worker(store, "w3", "gcp").await;
    let names = async |by: &Identity, after: &str| {
        let named = upkeep.stranded(by, LONG, after, 9).await.unwrap();
        named.into_iter().map(|job| job.job_id.to_string()).collect::<Vec<_>>()
    };
    accept(store, "single", &w).await;
    dual(store, "running", "", &w).await;
    let running = claim(store, &w, LONG).await;
    let running = if running.job_id == id("single") { claim(store, &w, LONG).await } else { running };
    assert_eq!(running.job_id, id("running"));
    let first = dual(store, "first", "", &w).await.uid;
    let second = dual(store, "second", "", &w).await.uid;
    dual(store, "unwanted", "", &w).await;
    assert!(matches!(store.cancel(TENANT_DEFAULT, &id("unwanted")).await.unwrap(), Cancelled::Done(_)));
    dual(store, "elsewhere", "", &other).await;

    assert_eq!(names(&w, "").await, [""; 0], "a neighbour lives, and says nothing of the bucket");
    assert_eq!(names(&neighbour, "").await, ["first", "second"], "both have said so now");
    assert_eq!(names(&w, &first).await, ["second"]);
    fixture.age(Duration::from_secs(31)).await;
    assert_eq!(names(&w, "").await, [""; 0], "that the neighbour said so is long ago");
    store.deregister(&neighbour).await.unwrap();
    assert_eq!(names(&w, "").await, ["first", "second"], "it is alone");

    let (aws, gcp) = (pool("aws"), pool("gcp"));
    for (job, from, to) in [
        (&first, &gcp, &aws),
        (&first, &aws, &aws),
        (&running.lease.job_uid, &aws, &gcp),
        (&"none".to_owned(), &aws, &gcp),
    ] {
        assert!(!upkeep.move_waiting(job, from, to).await.unwrap());
    }
    assert!(upkeep.move_waiting(&first, &aws, &gcp).await.unwrap());
    assert!(!upkeep.move_waiting(&first, &aws, &gcp).await.unwrap(), "it is there");
    assert!(!upkeep.move_waiting(&first, &gcp, &aws).await.unwrap(), "nobody claimed it since");
    let moved = row(store, "first").await;
    assert_eq!((moved.state, moved.pool, moved.attempt), (State::Queued, gcp.clone(), 0));
    assert_eq!(names(&w, "").await, ["second"]);
    assert_eq!(names(&other, "").await, ["elsewhere"], "and not what was just moved");

    // A claim is a lease, and after it the job may move again, even back.
    let claimed = claim(store, &other, LONG).await;
    assert_eq!((claimed.job_id, &claimed.bucket, claimed.lease.epoch), (id("first"), &gcp, 1));
    let failed = AttemptEnd::Failed {
        code: FailureCode::ObjectsUnavailable,
        detail: String::new(),
        retry_after: LONG,
    };
    store.end(&claimed.lease, &failed).await.unwrap();
    assert_eq!(names(&other, "").await, ["first", "elsewhere"]);
    assert!(upkeep.move_waiting(&first, &gcp, &aws).await.unwrap());
    assert!(!upkeep.move_waiting(&first, &aws, &gcp).await.unwrap());
    let back = row(store, "first").await;
    assert_eq!((back.state, back.pool), (State::Queued, aws.clone()), "it waits for no back-off there");
    assert_eq!(kinds(store, "first").await, ["accepted", "moved", "claimed", "retry_wait", "moved"]);
    publish(store, &claim(store, &w, LONG).await).await;
    assert!(!upkeep.move_waiting(&first, &aws, &gcp).await.unwrap(), "it is over");
    assert!(upkeep.move_waiting(&second, &aws, &gcp).await.unwrap());
}

pub(super) async fn a_split_job_of_which_no_part_runs_leaves_a_lost_bucket_whole(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let ([w, other], uid, whole_job) = split_job(store).await;
    let part = claim(store, &w, LONG).await;
    assert!(upkeep.stranded(&w, LONG, "", 9).await.unwrap().is_empty(), "one of its parts runs");
    assert!(!upkeep.move_waiting(&uid, &pool("aws"), &pool("gcp")).await.unwrap());
    store.end(&part.lease, &AttemptEnd::Released).await.unwrap();
    assert_eq!(upkeep.stranded(&w, LONG, "", 9).await.unwrap().len(), 1);
    assert!(upkeep.move_waiting(&uid, &pool("aws"), &pool("gcp")).await.unwrap());
    let again = claim(store, &other, LONG).await;
    assert_eq!((again.part, &again.bucket, again.plan.as_deref()), (Part::Whole, &pool("gcp"), None));
    assert!(again.lease.epoch > whole_job.lease.epoch);
    assert_eq!(store.commit(&part.lease, "e", "{}").await.unwrap(), Committed::No);
    publish(store, &again).await;
}
