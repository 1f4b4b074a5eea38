//! What every store must do as the one that tells others and knows words.

use millrace_wire::job::WebhookState;

use super::*;
use crate::store::library::Search;
use crate::store::outbox::{Told, Wanted, WebhookClaim};

const WINDOW: Duration = Duration::from_secs(3600);

async fn accept_of(store: &dyn Store, by: &Identity, tenant: &str, job_id: &str, fields: &str) {
    let new = NewJob { tenant: tenant.to_owned(), ..new_job(job_id, fields) };
    assert!(matches!(store.accept(&new, by, ROOM).await.unwrap(), Accepted::Created(_)), "{job_id}");
}

fn hook(host: &str) -> String {
    format!(r#","webhook_url":"https://{host}/told?by=us""#)
}

fn wanted(hold: Duration) -> Wanted {
    Wanted { limit: 100, per_receiver: 100, busy: Vec::new(), hold }
}

async fn due(upkeep: &dyn Upkeep) -> Vec<WebhookClaim> {
    upkeep.claim_webhooks(&wanted(LONG)).await.unwrap()
}

fn failed(retry_after: Duration, window: Duration) -> Told {
    Told::Failed { detail: "it answered 500".to_owned(), retry_after, window }
}

/// Ends a claimed job with a failure that lets it end so.
async fn end(store: &dyn Store, claim: &Claim, code: FailureCode) {
    let failed = AttemptEnd::Failed { code, detail: "why".to_owned(), retry_after: Duration::ZERO };
    store.end(&claim.lease, &failed).await.unwrap();
}

pub(super) async fn every_end_of_a_job_with_a_webhook_is_claimed_once(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    for job in ["done", "bad", "hopeless", "stopped"] {
        accept_of(store, &w, "acme", job, &hook("h")).await;
    }
    accept(store, "silent", &w).await;
    assert!(due(upkeep).await.is_empty(), "nothing has ended");
    let done = claim(store, &w, LONG).await;
    assert!(store.enter(&done.lease, Phase::Publishing, None).await.unwrap());
    assert_eq!(store.publish(&done.lease, &manifest(&done.lease)).await.unwrap(), Published::Yes);
    end(store, &claim(store, &w, LONG).await, FailureCode::SourceNotFound).await;
    for _ in 0..3 {
        end(store, &claim(store, &w, LONG).await, FailureCode::EncodeFailed).await;
    }
    store.cancel("acme", &id("stopped")).await.unwrap();
    store.cancel(TENANT_DEFAULT, &id("silent")).await.unwrap();

    let claims = due(upkeep).await;
    let mut told: Vec<_> = claims.iter().map(|one| (one.job.job_id.as_str(), one.kind.as_str())).collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [("bad", "failed"), ("done", "succeeded"), ("hopeless", "dead"), ("stopped", "cancelled")]
    );
    for claim in &claims {
        assert_eq!((claim.tenant.as_str(), claim.receiver.as_str(), claim.tries), ("acme", "h:443", 1));
        assert_eq!(claim.kind, claim.job.state.as_str());
        assert!(claim.at_ms >= claim.job.finished_at_ms.unwrap());
    }
    assert!(due(upkeep).await.is_empty(), "they are claimed");
    let uids: Vec<String> = claims.iter().map(|claim| claim.job.uid.clone()).collect();
    let stands = upkeep.webhooks(&uids).await.unwrap();
    assert!(stands.len() == 4 && stands.values().all(|one| one.state == WebhookState::Pending));
    for claim in &claims {
        let state = upkeep.webhook_told(claim, &Told::Delivered).await.unwrap();
        assert_eq!(state, Some(WebhookState::Delivered));
        assert_eq!(upkeep.webhook_told(claim, &Told::Delivered).await.unwrap(), None, "once");
    }
    assert!(due(upkeep).await.is_empty());
}

pub(super) async fn a_webhook_is_told_again_until_its_window_ends(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    for job in ["again", "late", "gone", "lost"] {
        accept_of(store, &w, TENANT_DEFAULT, job, &hook(job)).await;
        store.cancel(TENANT_DEFAULT, &id(job)).await.unwrap();
    }
    let claims =
        upkeep.claim_webhooks(&Wanted { busy: vec!["lost:443".to_owned()], ..wanted(LONG) }).await.unwrap();
    let of = |job: &str| claims.iter().find(|claim| claim.job.job_id == id(job)).unwrap();
    let stands = async |job: &str| {
        let uid = row(store, job).await.uid;
        upkeep.webhooks(std::slice::from_ref(&uid)).await.unwrap().remove(&uid).unwrap()
    };
    assert_eq!(claims.len(), 3, "a receiver that is busy is left alone");

    let pending = upkeep.webhook_told(of("again"), &failed(LONG, WINDOW)).await.unwrap();
    assert_eq!(pending, Some(WebhookState::Pending));
    let later = stands("again").await;
    assert_eq!((later.tries, later.detail.as_deref()), (1, Some("it answered 500")));
    assert!(later.due_at_ms > of("again").at_ms + 50_000);
    let over = upkeep.webhook_told(of("late"), &failed(LONG, Duration::ZERO)).await.unwrap();
    assert_eq!((over, stands("late").await.state), (Some(WebhookState::GivenUp), WebhookState::GivenUp));
    let gone = Told::Gone { detail: "it answered 410".to_owned() };
    assert_eq!(upkeep.webhook_told(of("gone"), &gone).await.unwrap(), Some(WebhookState::GivenUp));

    // Whoever claimed it died; another has it when the claim runs out, and then the first one's failure counts for nothing.
    let lost = upkeep.claim_webhooks(&wanted(SHORT)).await.unwrap().remove(0);
    let heir = loop {
        match upkeep.claim_webhooks(&wanted(LONG)).await.unwrap().pop() {
            Some(claim) => break claim,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!((heir.seq, lost.tries, heir.tries), (lost.seq, 1, 2));
    assert_eq!(upkeep.webhook_told(&lost, &failed(Duration::ZERO, WINDOW)).await.unwrap(), None);
    assert_eq!(upkeep.webhook_told(&lost, &gone).await.unwrap(), None);
    assert!(due(upkeep).await.is_empty(), "the heir has it");
    // But that it was taken is true whoever says it.
    assert_eq!(upkeep.webhook_told(&lost, &Told::Delivered).await.unwrap(), Some(WebhookState::Delivered));
    assert_eq!(upkeep.webhook_told(&heir, &failed(Duration::ZERO, WINDOW)).await.unwrap(), None);
}

pub(super) async fn a_receiver_is_told_a_few_at_a_time_and_a_job_in_order(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    for n in 0..5 {
        for host in ["a", "b:8443"] {
            let job = format!("{}{n}", &host[..1]);
            accept_of(store, &w, TENANT_DEFAULT, &job, &hook(host)).await;
            store.cancel(TENANT_DEFAULT, &id(&job)).await.unwrap();
        }
    }
    let few = Wanted { per_receiver: 2, limit: 3, ..wanted(LONG) };
    let claims = upkeep.claim_webhooks(&few).await.unwrap();
    let of = |host: &str| claims.iter().filter(|claim| claim.receiver == host).count();
    assert_eq!(claims.len(), 3);
    assert!(of("a:443") <= 2 && of("b:8443") <= 2, "{claims:?}");

    // Many claim at once, and each is one's alone.
    let mut claimers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (_, upkeep) = fixture.both().await;
        claimers.spawn(async move {
            let mut mine = Vec::new();
            for _ in 0..7 {
                let wanted = Wanted { limit: 2, ..wanted(LONG) };
                mine.extend(upkeep.claim_webhooks(&wanted).await.unwrap().into_iter().map(|claim| claim.seq));
            }
            mine
        });
    }
    let mut all = claimers.join_all().await.concat();
    all.sort_unstable();
    assert_eq!(all.len(), 7);
    all.dedup();
    assert_eq!(all.len(), 7);

    // Two ends of one job, as when it was given another try.
    accept_of(store, &w, TENANT_DEFAULT, "twice", &hook("twice")).await;
    store.cancel(TENANT_DEFAULT, &id("twice")).await.unwrap();
    fixture.again("twice").await;
    let first = due(upkeep).await;
    assert_eq!(first.len(), 1, "the second waits for the first");
    upkeep.webhook_told(&first[0], &Told::Gone { detail: String::new() }).await.unwrap();
    let second = due(upkeep).await;
    assert!(second.len() == 1 && second[0].seq > first[0].seq);
    let uid = row(store, "twice").await.uid;
    let stands = upkeep.webhooks(std::slice::from_ref(&uid)).await.unwrap();
    assert_eq!(stands[&uid].state, WebhookState::Pending, "the last end is what is shown");
}

pub(super) async fn a_sink_has_one_feeder_that_goes_on_where_the_last_one_was(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    accept(store, "before", &w).await;
    let start = upkeep.feed("nats", "f1", LONG).await.unwrap().unwrap();
    accept_of(store, &w, "acme", "after", "").await;
    claim(store, &w, LONG).await;
    // A transaction that is open anywhere may make it wait.
    let settled = async |after: i64, count: usize| {
        for _ in 0..1000 {
            let seen = upkeep.settled(after, 100).await.unwrap();
            if seen.len() >= count {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} events never settled")
    };
    let seen = settled(start, 2).await;
    let named: Vec<_> =
        seen.iter().map(|one| (one.tenant.as_str(), one.job_id.as_str(), one.kind.as_str())).collect();
    assert_eq!(
        named,
        [("acme", "after", "accepted"), (TENANT_DEFAULT, "before", "claimed")],
        "a new sink has the past"
    );
    assert!(seen[0].seq < seen[1].seq && seen[0].seq > start);
    assert_eq!(settled(seen[0].seq, 1).await, seen[1..]);
    assert!(upkeep.settled(start, 1).await.unwrap().len() <= 1);

    assert_eq!(upkeep.feed("nats", "f2", LONG).await.unwrap(), None, "another feeds it");
    assert_eq!(upkeep.feed("other", "f2", LONG).await.unwrap(), Some(seen[1].seq), "another sink");
    assert!(upkeep.fed("nats", "f1", seen[0].seq).await.unwrap());
    assert!(!upkeep.fed("nats", "f2", seen[1].seq).await.unwrap());
    assert_eq!(upkeep.feed("nats", "f1", SHORT).await.unwrap(), Some(seen[0].seq));
    let heir = loop {
        match upkeep.feed("nats", "f2", LONG).await.unwrap() {
            Some(at) => break at,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(heir, seen[0].seq);
    assert!(!upkeep.fed("nats", "f1", seen[1].seq).await.unwrap(), "it is not his any more");
    upkeep.leave("nats", "f1").await.unwrap();
    assert_eq!(upkeep.feed("nats", "f1", LONG).await.unwrap(), None, "who has nothing gives nothing up");
    upkeep.leave("nats", "f2").await.unwrap();
    assert_eq!(upkeep.feed("nats", "f1", LONG).await.unwrap(), Some(seen[0].seq));
    assert!(upkeep.fed("nats", "f1", 0).await.unwrap());
    assert_eq!(upkeep.feed("nats", "f1", LONG).await.unwrap(), Some(seen[0].seq), "never back");
}

pub(super) async fn jobs_are_found_by_the_words_of_their_own_tenant(fixture: &dyn Fixture) {
    let (store, upkeep) = fixture.both().await;
    let (store, upkeep) = (&*store, &*upkeep);
    let w = worker(store, "w1", "aws").await;
    for (tenant, job, fields) in [
        ("acme", "dogs", r#","title":"Two DOGS at the sea","labels":{"team":"red panda"}"#),
        ("acme", "cats", r#","title":"Übermut: cats' holiday\u0000 (final)""#),
        ("acme", "more", r#","title":"dogs again","labels":{"a":"\u0000"}"#),
        ("a-me", "theirs", r#","title":"dogs""#),
        ("acme", "hindi", r#","title":"हिन्दी में""#),
    ] {
        accept_of(store, &w, tenant, job, fields).await;
    }
    accept_of(store, &w, "acme", "silent", "").await;
    let find = async |tenant: &str, query: &str, limit: u32, before: Option<String>| {
        let words: Vec<String> = millrace_wire::spec::words(query).collect();
        let found = upkeep.search(tenant, &Search { words, limit, before }).await.unwrap();
        found.iter().map(|row| row.job_id.to_string()).collect::<Vec<_>>()
    };
    for (tenant, query, wanted) in [
        ("acme", "dogs", vec!["more", "dogs"]),
        ("acme", "DOGS sea", vec!["dogs"]),
        ("acme", "sea dogs", vec!["dogs"]),
        ("acme", "dog", vec!["more", "dogs"]),
        ("acme", "dog sea", vec![]),
        ("acme", "team panda", vec!["dogs"]),
        ("acme", "übermut", vec!["cats"]),
        ("acme", "ubermut", vec![]),
        ("acme", "हिन्दी", vec!["hindi"]),
        ("a-me", "dogs", vec!["theirs"]),
        ("acme2", "dogs", vec![]),
        ("acme", "tenant dogs", vec![]),
        ("acme", "t", vec!["dogs"]),
        ("acme", "t acme", vec![]),
        ("acme", "acme", vec![]),
        // What another language would take for its own.
        ("acme", "dogs OR cats", vec![]),
        ("acme", "NOT cats", vec![]),
        ("acme", "words:dogs* AND (", vec![]),
        ("acme", "\"dogs\" ' & | ! :* <-> \\ ); --", vec!["more", "dogs"]),
        ("acme", "NEAR(dogs, 2)", vec![]),
    ] {
        assert_eq!(find(tenant, query, 9, None).await, wanted, "{tenant}: {query}");
    }
    assert_eq!(find("acme", "dogs", 1, None).await, ["more"]);
    let more = store.job("acme", &id("more")).await.unwrap().unwrap().uid;
    assert_eq!(find("acme", "dogs", 9, Some(more)).await, ["dogs"]);
    let long = "x".repeat(1000);
    assert!(find("acme", &long, 9, None).await.is_empty());
}
