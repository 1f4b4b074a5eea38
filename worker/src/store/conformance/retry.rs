//! Promises about jobs that are tried once more when all their attempts are used up.

use super::*;

fn failed(code: FailureCode) -> AttemptEnd {
    AttemptEnd::Failed { code, detail: "why".to_owned(), retry_after: Duration::ZERO }
}

/// Lets a waiting job fail so often that it ends; answers its last lease.
async fn fail(store: &dyn Store, by: &Identity, code: FailureCode) -> Lease {
    loop {
        let claim = claim(store, by, LONG).await;
        store.end(&claim.lease, &failed(code)).await.unwrap();
        if row(store, claim.job_id.as_str()).await.state.is_final() {
            return claim.lease;
        }
    }
}

async fn retry(store: &dyn Store, job_id: &str, by: &Identity) -> Retried {
    store.retry(TENANT_DEFAULT, &id(job_id), by, ROOM).await.unwrap()
}

pub(super) async fn a_dead_job_that_is_retried_is_the_same_job_with_all_its_attempts_anew(
    fixture: &dyn Fixture,
) {
    let store = fixture.open().await;
    let (w, other) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    let first = accept(&*store, "j", &w).await;
    let last = fail(&*store, &w, FailureCode::EncodeFailed).await;
    assert_eq!((row(&*store, "j").await.state, last.epoch), (State::Dead, 3));
    let Retried::Done(again) = retry(&*store, "j", &other).await else { panic!("it is dead") };
    assert_eq!((again.uid, again.state, again.attempt), (first.uid, State::Queued, 3));
    assert_eq!((again.error, again.finished_at_ms, again.pool.as_str()), (None, None, "gcp"));
    assert!(matches!(retry(&*store, "j", &w).await, Retried::Refused(row) if row.state == State::Queued));

    // Three failures killed it, and three more are what it takes now.
    let last = fail(&*store, &other, FailureCode::EncodeFailed).await;
    assert_eq!((row(&*store, "j").await.state, last.epoch), (State::Dead, 6));
    assert!(matches!(retry(&*store, "j", &other).await, Retried::Done(_)));
    let lease = claim(&*store, &other, LONG).await.lease;
    assert_eq!(lease.epoch, 7);
    assert!(!store.enter(&last, Phase::Publishing, None).await.unwrap(), "the past can do nothing");
    assert_eq!(store.publish(&last, &manifest(&last)).await.unwrap(), Published::No);
    assert!(store.enter(&lease, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&lease, &manifest(&lease)).await.unwrap(), Published::Yes);
    assert!(matches!(retry(&*store, "j", &w).await, Retried::Refused(row) if row.state == State::Succeeded));
    let kinds = kinds(&*store, "j").await;
    let ends: Vec<&str> = kinds
        .iter()
        .map(String::as_str)
        .filter(|kind| !["claimed", "retry_wait", "phase"].contains(kind))
        .collect();
    assert_eq!(ends, ["accepted", "dead", "retried", "dead", "retried", "succeeded"]);
}

pub(super) async fn a_verdict_is_tried_again_only_where_it_may_be_another(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w1", "aws").await;
    let input = r#"{"input_path":"aws/uploads/k/v.mp4"}"#;
    let uploaded = JobSpec::parse(input.as_bytes()).unwrap().0;
    for (job, code, spec, may) in [
        ("moved", FailureCode::SourceNotFound, None, true),
        ("damaged", FailureCode::SourceDamaged, None, true),
        ("too-much", FailureCode::EncodeOverLimits, None, false),
        ("uploaded", FailureCode::SourceDamaged, Some(uploaded), false),
    ] {
        let new = new_job(job, "");
        let new = NewJob { spec: spec.unwrap_or(new.spec), ..new_job(job, "") };
        assert!(matches!(store.accept(&new, &w, ROOM).await.unwrap(), Accepted::Created(_)));
        assert!(matches!(retry(&*store, job, &w).await, Retried::Refused(_)), "{job} waits");
        fail(&*store, &w, code).await;
        assert_eq!(row(&*store, job).await.state, State::Failed);
        let stranger = store.retry("somebody-else", &id(job), &w, ROOM).await.unwrap();
        assert!(matches!(stranger, Retried::NotFound), "{job} is another tenant's");
        let full = store.retry(TENANT_DEFAULT, &id(job), &w, Room { slots: 0, queue_max: 0 }).await.unwrap();
        assert_eq!(matches!(full, Retried::Full), may, "{job}: {full:?}");
        let retried = retry(&*store, job, &w).await;
        assert_eq!(matches!(retried, Retried::Done(_)), may, "{job}: {retried:?}");
        if may {
            assert!(matches!(store.cancel(TENANT_DEFAULT, &id(job)).await.unwrap(), Cancelled::Done(_)));
            assert!(matches!(retry(&*store, job, &w).await, Retried::Refused(_)), "{job} was cancelled");
        }
    }
    assert!(matches!(retry(&*store, "nobody", &w).await, Retried::NotFound));
}

pub(super) async fn two_who_retry_at_once_begin_one_series(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let w = worker(&*store, "w1", "aws").await;
    accept(&*store, "j", &w).await;
    fail(&*store, &w, FailureCode::EncodeFailed).await;
    let retrying = (0..4).map(async |_| {
        let store = fixture.open().await;
        matches!(retry(&*store, "j", &w).await, Retried::Done(_))
    });
    let done = futures::future::join_all(retrying).await.into_iter().filter(|done| *done).count();
    assert_eq!(done, 1);
    let retried = kinds(&*store, "j").await.into_iter().filter(|kind| kind == "retried").count();
    assert_eq!(retried, 1);
}
