//! Jobs in parts.

use std::time::Instant;

use super::*;

const PLAN: &str = r#"{"a":"plan"}"#;

fn parts(ranges: u32) -> Vec<NewPart> {
    let new = |part, media_s| NewPart { part, work_seconds: 5.0, media_s };
    std::iter::once(new(Part::Sound, 0.0)).chain((0..ranges).map(|n| new(Part::Range(n), 10.0))).collect()
}

/// A worker that can encode.
async fn encoder(store: &dyn Store, name: &str, pool: &str, encoder: &str) -> Identity {
    let worker = worker(store, name, pool).await;
    store.equip(&worker, encoder, LONG).await.unwrap();
    worker
}

/// Accepts a job and splits it.
async fn split(store: &dyn Store, job_id: &str, by: &Identity, ranges: u32) -> Lease {
    accept(store, job_id, by).await;
    let whole = claim(store, by, LONG).await;
    assert_eq!((whole.part, &whole.plan), (Part::Whole, &None));
    assert!(store.enter(&whole.lease, Phase::Encoding, None).await.unwrap());
    assert!(store.split(&whole.lease, PLAN, &parts(ranges)).await.unwrap());
    whole.lease
}

async fn commit(store: &dyn Store, lease: &Lease, encoder: &str) -> Committed {
    store.commit(lease, encoder, &format!("result of {}", lease.epoch)).await.unwrap()
}

fn done(lease: &Lease, seconds: f64) -> Beat {
    let progress = Progress { percent: 50.0, media_seconds: Some(seconds), ..Progress::default() };
    Beat { lease: lease.clone(), progress }
}

/// The speed of job `j` and, by its own word, the seconds of media that are left, as soon as a heartbeat brings them: the clock
/// has to have gone on.
async fn how_fast(store: &dyn Store, by: &Identity, beat: &Beat) -> (f64, f64) {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < LONG, "nobody says how fast it is");
        store.heartbeat(by, std::slice::from_ref(beat), LONG).await.unwrap();
        if let Progress { speed: Some(speed), eta_seconds: Some(eta), .. } = row(store, "j").await.progress {
            return (speed, speed * eta);
        }
        tokio::task::yield_now().await;
    }
}

fn failed(code: FailureCode) -> AttemptEnd {
    AttemptEnd::Failed { code, detail: "why".to_owned(), retry_after: Duration::ZERO }
}

pub(super) async fn a_split_job_is_done_when_its_last_part_is(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (one, two) = (encoder(&*store, "w1", "aws", "x").await, encoder(&*store, "w2", "aws", "x").await);
    let stranger = encoder(&*store, "w3", "gcp", "x").await;
    let whole = split(&*store, "j", &one, 2).await;
    assert!(store.split(&whole, PLAN, &parts(2)).await.unwrap(), "the answer may have been lost");
    assert!(!store.split(&whole, "another plan", &parts(2)).await.unwrap());
    assert_eq!(store.heartbeat(&one, &[beat(&whole)], LONG).await.unwrap().verdicts, [Verdict::Lost]);
    assert_eq!(store.backlog(&one).await.unwrap().accepted_here, 0, "parts take no room in a worker's queue");
    assert!(store.claim(&stranger, LONG).await.unwrap().is_none(), "parts are for the job's own pool");

    let sound = claim(&*store, &one, LONG).await;
    let began = Instant::now();
    let (first, second) = (claim(&*store, &two, LONG).await, claim(&*store, &one, LONG).await);
    let taken = [&sound, &first, &second].map(|claim| (claim.part, claim.lease.epoch, claim.plan.as_deref()));
    let wanted = [Part::Sound, Part::Range(0), Part::Range(1)].map(|part| (part, 1, Some(PLAN)));
    assert_eq!(taken, wanted);
    assert!(store.claim(&two, LONG).await.unwrap().is_none(), "what puts it together comes when all is done");

    store.heartbeat(&two, &[done(&first.lease, 4.0)], LONG).await.unwrap();
    assert_eq!(row(&*store, "j").await.progress.percent, 20.0);
    let both = [done(&second.lease, 5.0), done(&sound.lease, 7.0)];
    assert_eq!(store.heartbeat(&one, &both, LONG).await.unwrap().verdicts, [Verdict::Renewed; 2]);
    assert_eq!(row(&*store, "j").await.progress.percent, 45.0);
    store.heartbeat(&two, &[done(&first.lease, 1.0)], LONG).await.unwrap();
    assert_eq!(row(&*store, "j").await.progress.percent, 45.0, "a bar does not go back");
    let both_run = how_fast(&*store, &two, &done(&first.lease, 5.0)).await;
    assert!((both_run.1 - 10.0).abs() < 1e-6, "{both_run:?}: of 20 s of media are 10 left");
    // In this time at most, each has done its five, and two go on.
    assert!(both_run.0 >= 10.0 / began.elapsed().as_secs_f64(), "{both_run:?}");
    assert_eq!(commit(&*store, &first.lease, "x").await, Committed::Yes);
    let one_runs = how_fast(&*store, &one, &done(&second.lease, 5.0)).await;
    assert!((one_runs.1 - 5.0).abs() < 1e-6, "{one_runs:?}");
    assert!(one_runs.0 >= 7.5 / began.elapsed().as_secs_f64(), "{one_runs:?}");

    for lease in [&first.lease, &sound.lease, &second.lease] {
        assert!(store.claim(&two, LONG).await.unwrap().is_none());
        assert_eq!(commit(&*store, lease, "x").await, Committed::Yes);
        assert_eq!(commit(&*store, lease, "x").await, Committed::Yes, "the answer may have been lost");
        assert_eq!(row(&*store, "j").await.state, State::Running);
    }
    let all_done = row(&*store, "j").await.progress;
    assert_eq!((all_done.percent, all_done.speed, all_done.eta_seconds), (99.0, None, None));
    let finish = claim(&*store, &two, LONG).await;
    assert_eq!(finish.part, Part::Finish);
    let results = store.results(&finish.lease.job_uid).await.unwrap();
    let left: Vec<_> =
        results.iter().map(|done| (done.part, done.lease.clone(), done.result.as_str())).collect();
    let wanted = [&sound, &first, &second].map(|claim| (claim.part, claim.lease.clone(), "result of 1"));
    assert_eq!(left, wanted);

    assert!(store.enter(&finish.lease, Phase::Publishing, None).await.unwrap());
    for other in [&whole, &first.lease] {
        assert_eq!(store.publish(other, &manifest(other)).await.unwrap(), Published::No);
    }
    for _ in 0..2 {
        let published = store.publish(&finish.lease, &manifest(&finish.lease)).await.unwrap();
        assert_eq!(published, Published::Yes);
    }
    let done = row(&*store, "j").await;
    assert_eq!((done.state, done.attempt, done.progress.percent), (State::Succeeded, 1, 100.0));
    assert_eq!(kinds(&*store, "j").await, ["accepted", "claimed", "phase", "split", "phase", "succeeded"]);
}

pub(super) async fn a_lost_part_is_done_again_and_nothing_else(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (dead, heir) = (encoder(&*store, "w1", "aws", "x").await, encoder(&*store, "w2", "aws", "x").await);
    split(&*store, "j", &dead, 2).await;
    let sound = claim(&*store, &heir, LONG).await.lease;
    let kept = claim(&*store, &dead, LONG).await.lease;
    assert_eq!(commit(&*store, &kept, "x").await, Committed::Yes);
    let lost = claim(&*store, &dead, SHORT).await.lease;
    let again = claim(&*store, &heir, LONG).await;
    assert_eq!((again.part, again.lease.epoch), (Part::Range(1), 2));
    assert_eq!(row(&*store, "j").await.state, State::Running);
    assert_eq!(commit(&*store, &lost, "x").await, Committed::No, "a zombie");
    // Given back and failed, it waits again, and the job runs on.
    store.end(&again.lease, &AttemptEnd::Released).await.unwrap();
    let again = claim(&*store, &heir, LONG).await.lease;
    store.end(&again, &failed(FailureCode::EncodeFailed)).await.unwrap();
    let again = claim(&*store, &heir, LONG).await.lease;
    assert_eq!((again.epoch, row(&*store, "j").await.state), (4, State::Running));
    for lease in [&sound, &again] {
        assert_eq!(commit(&*store, lease, "x").await, Committed::Yes);
    }
    let results = store.results(&kept.job_uid).await.unwrap();
    let epochs: Vec<u64> = results.iter().map(|done| done.lease.epoch).collect();
    assert_eq!(epochs, [1, 1, 4], "what was done stays done");
    assert_eq!(claim(&*store, &dead, LONG).await.part, Part::Finish);
}

pub(super) async fn parts_whose_objects_are_lost_are_done_again_a_few_times(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = encoder(&*store, "w1", "aws", "x").await;
    split(&*store, "j", &w, 2).await;
    let mut done = Vec::new();
    for _ in 0..3 {
        done.push(claim(&*store, &w, LONG).await);
        assert_eq!(commit(&*store, &done.last().unwrap().lease, "x").await, Committed::Yes);
    }
    let finish = claim(&*store, &w, LONG).await;
    assert!(store.enter(&finish.lease, Phase::Publishing, None).await.unwrap());
    let zombie = finish.lease.clone();
    let [sound, first, second] = &done[..] else { unreachable!() };
    let one = std::slice::from_ref::<Lease>;
    assert!(store.take_back(&zombie, one(&first.lease), "gone").await.unwrap());
    assert!(!store.take_back(&zombie, one(&second.lease), "gone").await.unwrap(), "its lease is gone");
    assert_eq!(store.publish(&zombie, &manifest(&zombie)).await.unwrap(), Published::No);
    assert_eq!(row(&*store, "j").await.state, State::Running);

    // That one is done again, and only then comes the task that puts all together, under its next number.
    let again = claim(&*store, &w, LONG).await;
    assert_eq!((again.part, again.lease.epoch), (first.part, 2));
    assert!(store.claim(&w, LONG).await.unwrap().is_none());
    assert_eq!(commit(&*store, &first.lease, "x").await, Committed::No);
    assert_eq!(commit(&*store, &again.lease, "x").await, Committed::Yes);
    let finish = claim(&*store, &w, LONG).await;
    assert_eq!((finish.part, finish.lease.epoch), (Part::Finish, zombie.epoch + 1));
    let results = store.results(&finish.lease.job_uid).await.unwrap();
    assert_eq!(results.iter().map(|done| done.lease.epoch).collect::<Vec<_>>(), [1, 2, 1]);

    // All of them at once, and the first for the third time: that is the end, until somebody asks for more.
    let mut lost = [again.lease, second.lease.clone(), sound.lease.clone()].to_vec();
    let mut finish = finish.lease;
    for round in [2, 3] {
        assert!(store.take_back(&finish, &lost, "gone").await.unwrap());
        if round == 3 {
            break;
        }
        lost.clear();
        for _ in 0..3 {
            lost.push(claim(&*store, &w, LONG).await.lease);
            assert_eq!(commit(&*store, lost.last().unwrap(), "x").await, Committed::Yes);
        }
        finish = claim(&*store, &w, LONG).await.lease;
    }
    let job = row(&*store, "j").await;
    assert_eq!((job.state, job.error.unwrap().0), (State::Dead, FailureCode::ObjectsLost));
    assert!(store.claim(&w, LONG).await.unwrap().is_none());
    assert_eq!(kinds(&*store, "j").await.iter().filter(|kind| *kind == "taken_back").count(), 3);
    assert!(matches!(store.retry(TENANT_DEFAULT, &id("j"), &w, ROOM).await.unwrap(), Retried::Done(_)));
    for _ in 0..3 {
        let part = claim(&*store, &w, LONG).await;
        assert_ne!(part.part, Part::Finish);
        assert_eq!(commit(&*store, &part.lease, "x").await, Committed::Yes);
    }
    let finish = claim(&*store, &w, LONG).await;
    assert!(store.enter(&finish.lease, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&finish.lease, &manifest(&finish.lease)).await.unwrap(), Published::Yes);
    // A cancel is heard here, too.
    split(&*store, "cancelled", &w, 2).await;
    for _ in 0..3 {
        let part = claim(&*store, &w, LONG).await.lease;
        assert_eq!(commit(&*store, &part, "x").await, Committed::Yes);
    }
    let finish = claim(&*store, &w, LONG).await.lease;
    assert!(matches!(store.cancel(TENANT_DEFAULT, &id("cancelled")).await.unwrap(), Cancelled::Requested(_)));
    assert!(!store.take_back(&finish, &[], "gone").await.unwrap());
    store.end(&finish, &AttemptEnd::Cancelled).await.unwrap();
    assert_eq!(row(&*store, "cancelled").await.state, State::Cancelled);
}

pub(super) async fn ranges_are_for_equal_encoders_and_begin_anew_without_one(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let first = encoder(&*store, "w1", "aws", "x").await;
    let other = encoder(&*store, "w2", "aws", "y").await;
    let unknown = worker(&*store, "w3", "aws").await;
    split(&*store, "j", &first, 3).await;
    let sound = claim(&*store, &first, LONG).await.lease;
    let (a, b) = (claim(&*store, &first, LONG).await.lease, claim(&*store, &other, LONG).await.lease);
    assert_eq!(commit(&*store, &a, "x").await, Committed::Yes);
    assert_eq!(commit(&*store, &b, "y").await, Committed::Again, "another was first");
    assert!(store.claim(&other, LONG).await.unwrap().is_none());
    assert!(store.claim(&unknown, LONG).await.unwrap().is_none());
    let b = claim(&*store, &first, LONG).await;
    assert_eq!((b.part, b.lease.epoch), (Part::Range(1), 2));
    store.end(&b.lease, &AttemptEnd::Released).await.unwrap();

    // The equal one is gone for good. The other waits its patience, and then everything is made by it.
    store.deregister(&first).await.unwrap();
    store.equip(&other, "y", LONG).await.unwrap();
    assert!(store.claim(&other, LONG).await.unwrap().is_none(), "it may come back");
    store.equip(&other, "y", Duration::from_millis(50)).await.unwrap();
    let mut made = Vec::new();
    for _ in 0..3 {
        let range = claim(&*store, &other, LONG).await;
        assert_eq!(commit(&*store, &range.lease, "y").await, Committed::Yes);
        made.push((range.part, range.lease.epoch));
    }
    made.sort_unstable();
    assert_eq!(made, [(Part::Range(0), 2), (Part::Range(1), 3), (Part::Range(2), 1)]);
    assert_eq!(commit(&*store, &sound, "x").await, Committed::Yes, "no encoder is asked of the sound");
    assert_eq!(claim(&*store, &other, LONG).await.part, Part::Finish);
    assert_eq!(kinds(&*store, "j").await.iter().filter(|kind| *kind == "begun_anew").count(), 1);
}

pub(super) async fn a_part_that_fails_for_good_fails_its_job_and_ends_the_others(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (one, two) = (encoder(&*store, "w1", "aws", "x").await, encoder(&*store, "w2", "aws", "x").await);
    split(&*store, "j", &one, 3).await;
    let (sound, range) = (claim(&*store, &one, LONG).await.lease, claim(&*store, &two, LONG).await.lease);
    store.end(&range, &failed(FailureCode::SourceDamaged)).await.unwrap();
    let job = row(&*store, "j").await;
    assert_eq!((job.state, job.error.unwrap().0), (State::Failed, FailureCode::SourceDamaged));
    assert_eq!(store.heartbeat(&one, &[beat(&sound)], LONG).await.unwrap().verdicts, [Verdict::Lost]);
    assert_eq!(commit(&*store, &sound, "x").await, Committed::No);
    store.end(&sound, &AttemptEnd::Released).await.unwrap();
    assert!(store.claim(&two, LONG).await.unwrap().is_none(), "nothing of it waits");

    split(&*store, "dead", &one, 2).await;
    claim(&*store, &one, LONG).await;
    for _ in 0..3 {
        let range = claim(&*store, &two, LONG).await;
        assert_eq!(range.part, Part::Range(0));
        store.end(&range.lease, &failed(FailureCode::EncodeFailed)).await.unwrap();
    }
    assert_eq!(row(&*store, "dead").await.state, State::Dead);
    assert_eq!(kinds(&*store, "dead").await.last().unwrap(), "dead");
    assert!(store.claim(&two, LONG).await.unwrap().is_none());
}

pub(super) async fn a_cancel_ends_all_parts(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (one, two) = (encoder(&*store, "w1", "aws", "x").await, encoder(&*store, "w2", "aws", "x").await);
    let cancel = async |job: &str| store.cancel(TENANT_DEFAULT, &id(job)).await.unwrap();
    split(&*store, "idle", &one, 2).await;
    assert!(matches!(cancel("idle").await, Cancelled::Done(_)), "nobody was at it");
    assert!(store.claim(&one, LONG).await.unwrap().is_none());

    split(&*store, "j", &one, 2).await;
    let (sound, range) = (claim(&*store, &one, LONG).await.lease, claim(&*store, &two, LONG).await.lease);
    assert!(matches!(cancel("j").await, Cancelled::Requested(_)));
    assert!(store.claim(&one, LONG).await.unwrap().is_none(), "what waited is over at once");
    assert_eq!(store.cancellations(&two).await.unwrap(), std::slice::from_ref(&range));
    let verdicts = store.heartbeat(&one, &[beat(&sound)], LONG).await.unwrap().verdicts;
    assert_eq!(verdicts, [Verdict::CancelRequested]);
    assert_eq!(commit(&*store, &sound, "x").await, Committed::No);
    for (lease, by) in [(&range, &two), (&sound, &one)] {
        store.end(lease, &AttemptEnd::Cancelled).await.unwrap();
        assert_eq!(row(&*store, "j").await.state, State::Cancelled);
        assert_eq!(store.heartbeat(by, &[beat(lease)], LONG).await.unwrap().verdicts, [Verdict::Lost]);
    }
    let cancelled = kinds(&*store, "j").await.into_iter().filter(|kind| kind == "cancelled").count();
    assert_eq!(cancelled, 1);
}

pub(super) async fn parts_that_end_together_bring_one_finalizer(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = encoder(&*store, "w1", "aws", "x").await;
    for job in ["a", "b", "c", "d"] {
        split(&*store, job, &w, 7).await;
        let mut committing = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (lease, store) = (claim(&*store, &w, LONG).await.lease, fixture.open().await);
            committing.spawn(async move { commit(&*store, &lease, "x").await });
        }
        assert_eq!(committing.join_all().await, [Committed::Yes; 8]);
        assert_eq!(claim(&*store, &w, LONG).await.part, Part::Finish);
        assert!(store.claim(&w, LONG).await.unwrap().is_none());
    }
}

pub(super) async fn parts_of_a_pool_that_is_gone_are_anybodys(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (dead, heir) = (encoder(&*store, "w1", "aws", "x").await, encoder(&*store, "w2", "gcp", "x").await);
    split(&*store, "j", &dead, 2).await;
    let lost = claim(&*store, &dead, SHORT).await;
    tokio::time::sleep(SHORT * 2).await;
    assert!(store.claim(&heir, LONG).await.unwrap().is_none(), "lost, and its pool lives");
    store.deregister(&dead).await.unwrap();
    let mut taken = vec![claim(&*store, &heir, LONG).await];
    for _ in 0..2 {
        taken.push(claim(&*store, &heir, LONG).await);
    }
    assert!(taken.iter().any(|claim| claim.part == lost.part && claim.lease.epoch == 2));
    for claim in &taken {
        assert_eq!(commit(&*store, &claim.lease, "x").await, Committed::Yes);
    }
    assert_eq!(claim(&*store, &heir, LONG).await.part, Part::Finish);
}

pub(super) async fn a_dead_job_in_parts_goes_on_where_it_was_until_what_it_left_is_gone(
    fixture: &dyn Fixture,
) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = encoder(store, "w1", "aws", "x").await;
    let year = Duration::from_secs(365 * 24 * 3600);
    let keep = Rules { outputs_kept: year, uploads_kept: year, lost_kept: year, delete_after: year };
    let (aws, now) = ("aws".parse().unwrap(), Rules { lost_kept: Duration::ZERO, ..keep });
    let pieces = async |rules: Rules| {
        let due = upkeep.due(&aws, &rules, 100).await.unwrap();
        due.into_iter().filter(|due| matches!(due, Due::Pieces { .. })).collect::<Vec<_>>()
    };
    split(store, "j", &w, 2).await;
    let (sound, kept) = (claim(store, &w, LONG).await.lease, claim(store, &w, LONG).await.lease);
    assert_eq!(commit(store, &kept, "x").await, Committed::Yes);
    let fail = async |times: u32| {
        for _ in 0..times {
            let range = claim(store, &w, LONG).await;
            assert_eq!(range.part, Part::Range(1));
            store.end(&range.lease, &failed(FailureCode::EncodeFailed)).await.unwrap();
        }
    };
    fail(3).await;
    assert_eq!(row(store, "j").await.state, State::Dead);
    assert!(pieces(keep).await.is_empty(), "somebody may go on with it");
    let retry = async || store.retry(TENANT_DEFAULT, &id("j"), &w, ROOM).await.unwrap();
    assert!(matches!(retry().await, Retried::Done(_)));
    assert_eq!(store.backlog(&w).await.unwrap().accepted_here, 0, "nor do parts take room now");
    let again = [claim(store, &w, LONG).await, claim(store, &w, LONG).await];
    assert_eq!(
        again.each_ref().map(|claim| claim.part),
        [Part::Sound, Part::Range(1)],
        "what is done stays done"
    );
    assert!(again[0].lease.epoch > sound.epoch);
    assert_eq!(row(store, "j").await.state, State::Running);
    store.end(&again[1].lease, &failed(FailureCode::EncodeFailed)).await.unwrap();
    fail(2).await;
    assert_eq!(row(store, "j").await.state, State::Dead);

    let left = [Due::Pieces { job_uid: kept.job_uid.clone(), outputs: false }];
    assert_eq!(pieces(now).await, left);
    assert_eq!(pieces(keep).await, left, "as often as it is asked");
    assert!(matches!(retry().await, Retried::Refused(_)), "there is nothing to go on with");
    upkeep.swept(&aws, &left[0]).await.unwrap();
    assert!(pieces(now).await.is_empty());

    // A verdict on the source is one on the copy of it that the parts read.
    split(store, "damaged", &w, 2).await;
    let range = claim(store, &w, LONG).await;
    store.end(&range.lease, &failed(FailureCode::SourceDamaged)).await.unwrap();
    let refused = store.retry(TENANT_DEFAULT, &id("damaged"), &w, ROOM).await.unwrap();
    assert!(matches!(refused, Retried::Refused(_)));
}
