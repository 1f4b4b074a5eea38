//! Promises about waiting work that another pool takes.

use super::*;

/// Accepts a job that other pools may take at these prices, with further fields of its spec.
async fn priced(store: &dyn Store, job_id: &str, fields: &str, by: &Identity, prices: &str) {
    let new = NewJob { steal: prices.parse().unwrap(), ..new_job(job_id, fields) };
    assert!(matches!(store.accept(&new, by, ROOM).await.unwrap(), Accepted::Created(_)), "{job_id}");
}

async fn claims(store: &dyn Store, by: &Identity) -> Option<(String, Option<String>)> {
    let claim = store.claim(by, LONG).await.unwrap()?;
    Some((claim.job_id.to_string(), claim.stolen_from.map(|pool| pool.to_string())))
}

fn stolen(job_id: &str) -> Option<(String, Option<String>)> {
    Some((job_id.to_owned(), Some("aws".to_owned())))
}

fn own(job_id: &str) -> Option<(String, Option<String>)> {
    Some((job_id.to_owned(), None))
}

pub(super) async fn waiting_work_is_stolen_for_its_price_and_not_before(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (aws, gcp) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    let azure = worker(&*store, "w3", "azure").await;
    priced(&*store, "j", "", &aws, "gcp=60,aws=0").await;
    assert_eq!(claims(&*store, &gcp).await, None);
    fixture.age(Duration::from_secs(58)).await;
    assert_eq!(claims(&*store, &gcp).await, None, "not before it has waited so long");
    fixture.age(Duration::from_secs(2)).await;
    assert_eq!(claims(&*store, &azure).await, None, "who has no price has no right");
    assert_eq!(claims(&*store, &gcp).await, stolen("j"));
    let running = row(&*store, "j").await;
    assert_eq!((running.pool, running.worker, running.attempt), (gcp.pool.clone(), Some(gcp.worker), 1));
    let claimed = store.events(&running.uid, 0, 9).await.unwrap().pop().unwrap();
    let body: serde_json::Value = serde_json::from_str(&claimed.body).unwrap();
    assert_eq!(
        (claimed.kind.as_str(), &body["stolen_from"], &body["pool"]),
        ("claimed", &"aws".into(), &"gcp".into())
    );
}

pub(super) async fn at_a_price_of_nothing_the_own_pool_has_a_head_start(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (aws, gcp) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    priced(&*store, "first", "", &aws, "gcp=0").await;
    priced(&*store, "second", "", &aws, "gcp=0").await;
    assert_eq!(claims(&*store, &gcp).await, None);
    assert_eq!(claims(&*store, &aws).await, own("first"));
    fixture.age(HEAD_START).await;
    assert_eq!(claims(&*store, &gcp).await, stolen("second"));
    assert_eq!(claims(&*store, &gcp).await, None, "what its own pool runs is no work for another");
}

pub(super) async fn a_pool_steals_only_when_it_has_nothing_to_do_and_then_what_is_longest_past_its_price(
    fixture: &dyn Fixture,
) {
    let store = fixture.open().await;
    let (aws, gcp) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    priced(&*store, "dear", "", &aws, "gcp=50").await;
    priced(&*store, "cheap", "", &aws, "gcp=10").await;
    priced(&*store, "live", r#","priority":"live""#, &aws, "gcp=55").await;
    priced(&*store, "forbidden", r#","priority":"live""#, &aws, "gcp=4000").await;
    priced(&*store, "own", r#","priority":"batch""#, &gcp, "aws=0").await;
    fixture.age(Duration::from_secs(60)).await;
    let mut order = Vec::new();
    while let Some((job, _)) = claims(&*store, &gcp).await {
        order.push(job);
    }
    assert_eq!(order, ["own", "live", "cheap", "dear"]);
    assert_eq!(claims(&*store, &aws).await, own("forbidden"));
}

pub(super) async fn a_task_is_stolen_once_in_its_life(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (aws, gcp) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    let azure = worker(&*store, "w3", "azure").await;
    priced(&*store, "j", "", &aws, "gcp=2,azure=2").await;
    fixture.age(LONG).await;
    let lease = store.claim(&gcp, LONG).await.unwrap().unwrap().lease;
    store.end(&lease, &AttemptEnd::Released).await.unwrap();
    fixture.age(LONG).await;
    // It is work that lost its worker now: its new pool's first, and after the head start anybody's.
    assert_eq!(claims(&*store, &azure).await, None);
    assert_eq!(claims(&*store, &aws).await, None);
    assert_eq!(claims(&*store, &gcp).await, own("j"));
}

pub(super) async fn what_was_cancelled_or_claimed_is_not_stolen(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let (aws, gcp) = (worker(&*store, "w1", "aws").await, worker(&*store, "w2", "gcp").await);
    for job in ["cancelled", "claimed", "delayed"] {
        priced(&*store, job, "", &aws, "gcp=2").await;
    }
    assert!(matches!(store.cancel(TENANT_DEFAULT, &id("cancelled")).await.unwrap(), Cancelled::Done(_)));
    assert_eq!(claims(&*store, &aws).await, own("claimed"));
    let lease = store.claim(&aws, LONG).await.unwrap().unwrap().lease;
    let failed =
        AttemptEnd::Failed { code: FailureCode::EncodeFailed, detail: String::new(), retry_after: LONG };
    store.end(&lease, &failed).await.unwrap();
    fixture.age(LONG).await;
    assert_eq!(claims(&*store, &gcp).await, None);
}

pub(super) async fn many_thieves_and_the_robbed_never_claim_the_same_task(fixture: &dyn Fixture) {
    let store = fixture.open().await;
    let aws = worker(&*store, "w0", "aws").await;
    for job in 0..40 {
        priced(&*store, &format!("j{job}"), "", &aws, "gcp=2,azure=3").await;
    }
    fixture.age(LONG).await;
    let mut workers = tokio::task::JoinSet::new();
    for (number, pool) in ["aws", "gcp", "gcp", "azure"].into_iter().enumerate() {
        let store = fixture.open().await;
        workers.spawn(async move {
            let by = worker(&*store, &format!("w{number}"), pool).await;
            let mut mine = Vec::new();
            while let Some((job, from)) = claims(&*store, &by).await {
                assert_eq!(from.is_some(), pool != "aws");
                mine.push(job);
            }
            mine
        });
    }
    let all: Vec<String> = workers.join_all().await.concat();
    assert_eq!(all.len(), 40);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 40);
}
