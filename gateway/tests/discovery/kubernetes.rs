use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use millrace_gateway::config::discover::Kubernetes;
use millrace_gateway::fleet::discovery::kubernetes::{LIST_MAX, Source};
use millrace_gateway::fleet::discovery::{Discovery as _, Outcome, Round};
use serde_json::{Value, json};

use super::cluster::{Cluster, endpoint, slice, status};
use crate::fake::Behaviour;
use crate::front::tls::Authority;
use crate::harness::{Gateway, eventually, pools};

/// Longest that one answer is waited for: longer than the back-off between two tries.
const PATIENCE: Duration = Duration::from_secs(30);

fn source(api: SocketAddr) -> Source {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (namespace, service, port) = ("media".to_owned(), "workers".to_owned(), "http".to_owned());
    Source::new(Kubernetes { namespace, service, port, api: Some(api) })
}

async fn next(source: &mut Source) -> Round {
    tokio::time::timeout(PATIENCE, source.next()).await.expect("an answer")
}

/// The next answer that is not about a failure; how many of those there were.
async fn good(source: &mut Source) -> (Round, usize) {
    let mut failures = 0;
    loop {
        let round = next(source).await;
        if round.outcome != Outcome::Failed {
            return (round, failures);
        }
        assert_eq!(round.endpoints, None, "a failure keeps what is known");
        failures += 1;
    }
}

fn found(round: &Round) -> Vec<String> {
    let shown = |e: &millrace_gateway::config::Endpoint| {
        format!("{}{}", e.address, if e.drain { " drain" } else { "" })
    };
    round.endpoints.as_ref().unwrap_or_else(|| panic!("nothing new: {round:?}")).iter().map(shown).collect()
}

/// The next answer, when an event has been sent to a watch that is the so-manyeth.
async fn after(source: &mut Source, cluster: &Cluster, watch: usize, kind: &str, object: &Value) -> Round {
    let sending = async {
        watched(cluster, watch).await;
        cluster.send(kind, object);
    };
    tokio::join!(next(source), sending).0
}

async fn watched(cluster: &Cluster, times: usize) {
    eventually("there is a watch", || async { cluster.watches() >= times }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_terminating_two_families_and_several_slices_are_told_apart() {
    let one = slice(
        "one",
        "IPv4",
        9000,
        &[
            endpoint("10.0.0.1", "a", true, false),
            endpoint("10.0.0.2", "b", false, false),
            endpoint("10.0.0.3", "c", false, true),
            json!({ "addresses": ["10.0.0.4"] }),
            json!({ "addresses": ["10.0.0.5"], "conditions": {} }),
        ],
    );
    let two = slice("two", "IPv4", 9001, &[endpoint("10.0.0.1", "a", true, false)]);
    // The same pods in the other family, and one that has no other; one in two slices, which terminates in one.
    let six = slice(
        "six",
        "IPv6",
        9000,
        &[endpoint("fd00::1", "a", true, false), endpoint("fd00::9", "z", true, false)],
    );
    let moved = slice("moved", "IPv4", 9000, &[endpoint("10.0.0.4", "d", true, true)]);
    let cluster = Cluster::start(vec![one, two, six, moved]).await;
    let mut source = source(cluster.address);
    let round = next(&mut source).await;
    assert_eq!(
        found(&round),
        [
            "10.0.0.1:9000",
            "10.0.0.1:9001",
            "10.0.0.3:9000 drain",
            "10.0.0.4:9000 drain",
            "10.0.0.5:9000",
            "[fd00::9]:9000"
        ]
    );
    assert_eq!((round.outcome, round.error), (Outcome::Good, None));

    // What cannot be used is said, and the rest is used.
    let mut portless = slice("two", "IPv4", 9001, &[endpoint("10.0.0.7", "a", true, false)]);
    portless["ports"] = json!([{ "name": "http", "port": 9001, "protocol": "UDP" }]);
    let round = after(&mut source, &cluster, 1, "MODIFIED", &portless).await;
    assert_eq!((found(&round).len(), round.outcome), (5, Outcome::Refused));
    assert_eq!(round.error.unwrap(), "slice two: it has no port \"http\"");
    let fqdn = slice("two", "FQDN", 9001, &[endpoint("w.example", "a", true, false)]);
    let round = after(&mut source, &cluster, 1, "MODIFIED", &fqdn).await;
    assert_eq!(round.error.unwrap(), "slice two: \"w.example\" is no address of a worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_followed_through_bookmarks_resets_410_and_refusals() {
    let first = |address| slice("one", "IPv4", 9000, &[endpoint(address, "a", true, false)]);
    let cluster = Cluster::start(vec![first("10.0.0.1")]).await;
    let mut source = source(cluster.address);
    assert_eq!(found(&next(&mut source).await), ["10.0.0.1:9000"]);
    let bookmark = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "resourceVersion": "9", "creationTimestamp": null }, "addressType": "", "endpoints": null,
    });
    let second = slice("two", "IPv4", 9000, &[endpoint("10.0.0.2", "b", true, false)]);
    let sending = async {
        watched(&cluster, 1).await;
        cluster.send("BOOKMARK", &bookmark);
        cluster.send("ADDED", &second);
    };
    let (round, ()) = tokio::join!(next(&mut source), sending);
    assert_eq!(found(&round), ["10.0.0.1:9000", "10.0.0.2:9000"]);
    let round = after(&mut source, &cluster, 1, "DELETED", &first("10.0.0.1")).await;
    assert_eq!(found(&round), ["10.0.0.2:9000"]);

    // The connection breaks: the watch goes on, and what comes after it counts.
    cluster.reset();
    let again = async {
        watched(&cluster, 2).await;
        cluster.send("ADDED", &first("10.0.0.3"));
    };
    let ((round, _), ()) = tokio::join!(good(&mut source), again);
    assert_eq!(found(&round), ["10.0.0.2:9000", "10.0.0.3:9000"]);

    // The server forgot where the watch was: everything is listed again, and what is not there is gone.
    let lists = cluster.lists();
    cluster.set(vec![first("10.0.0.4")]);
    cluster.send("ERROR", &status(410, "Expired"));
    let (round, _) = good(&mut source).await;
    assert_eq!(found(&round), ["10.0.0.4:9000"]);
    assert!(cluster.lists() > lists);

    // Permission is lost and given back.
    let losing = async {
        watched(&cluster, 3).await;
        cluster.refuse(Some(StatusCode::FORBIDDEN));
        cluster.send("ERROR", &status(410, "Expired"));
    };
    let (first_failure, ()) = tokio::join!(next(&mut source), losing);
    assert_eq!(first_failure.endpoints, None);
    let round = loop {
        let round = next(&mut source).await;
        if round.error.as_ref().is_some_and(|error| error.contains("Forbidden")) {
            break round;
        }
    };
    assert_eq!((round.endpoints, round.outcome), (None, Outcome::Failed));
    cluster.set(vec![]);
    cluster.refuse(None);
    let (round, _) = good(&mut source).await;
    assert_eq!((found(&round), round.outcome), (vec![], Outcome::Empty), "the API server knows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_and_none_at_all_are_said_and_waited_for() {
    let cluster =
        Cluster::start(vec![slice("one", "IPv4", 1, &[endpoint("10.0.0.1", "a", true, false)])]).await;
    cluster.delay(LIST_MAX + Duration::from_secs(1));
    let mut slow = source(cluster.address);
    let round = next(&mut slow).await;
    assert_eq!(round.error.as_deref(), Some("no list within 10 s"));
    assert_eq!(found(&next(&mut slow).await), ["10.0.0.1:1"]);
    let address = cluster.address;
    drop((cluster, slow));
    let round = next(&mut source(address)).await;
    assert_eq!((round.endpoints, round.outcome), (None, Outcome::Failed));
    assert!(round.error.unwrap().contains("initial object list"));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_watch_goes_on_with_a_new_token_and_only_the_clusters_own_ca_is_believed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("ca.crt"), &authority.pem).unwrap();
    std::fs::write(path("token"), "first").unwrap();
    let one = |address| slice("one", "IPv4", 9000, &[endpoint(address, "a", true, false)]);
    let tls = crate::upstream::config(&authority.signs(|_| {}), &[]);
    let cluster = Cluster::secure(vec![one("10.0.0.1")], tls, "first").await;

    // As a pod's service account has it: files that are exchanged while the pod runs.
    let account = |ca: &str| {
        let mut config = kube::Config::new(format!("https://{}", cluster.address).parse().unwrap());
        config.root_cert_file = Some(path(ca));
        config.auth_info.token_file = Some(path("token").to_str().unwrap().to_owned());
        config
    };
    let mut source = source(cluster.address).at(account("ca.crt"));
    assert_eq!(found(&next(&mut source).await), ["10.0.0.1:9000"]);
    let round = after(&mut source, &cluster, 1, "MODIFIED", &one("10.0.0.2")).await;
    assert_eq!(found(&round), ["10.0.0.2:9000"]);
    assert_eq!(cluster.unknown(), 0);

    // The token is exchanged, and the old one is worth nothing from then on.
    let watches = cluster.watches();
    cluster.expect("second");
    cluster.set(vec![one("10.0.0.3")]);
    cluster.reset();
    let refused = loop {
        let round = next(&mut source).await;
        assert_eq!(round.endpoints, None, "what is known stays");
        if round.error.as_ref().is_some_and(|error| error.contains("Unauthorized")) {
            break round;
        }
    };
    assert_eq!(refused.outcome, Outcome::Failed);
    std::fs::write(path("token"), "second").unwrap();
    let (round, _) = good(&mut source).await;
    assert_eq!(found(&round), ["10.0.0.3:9000"]);
    let round = after(&mut source, &cluster, watches + 1, "MODIFIED", &one("10.0.0.4")).await;
    assert_eq!(found(&round), ["10.0.0.4:9000"], "the watch goes on");

    std::fs::write(path("other.crt"), &stranger.pem).unwrap();
    let mut wary = self::source(cluster.address).at(account("other.crt"));
    let round = next(&mut wary).await;
    assert_eq!((round.endpoints, round.outcome), (None, Outcome::Failed));
    let told = round.error.unwrap();
    assert!(told.contains("certificate"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_gives_a_terminating_worker_no_job_and_lets_it_answer_reads() {
    let (first, second) = super::twins().await;
    let port = first.address.port();
    let slice = |terminating: bool| {
        let first = endpoint("127.0.0.1", "a", !terminating, terminating);
        slice("one", "IPv4", port, &[first, endpoint("127.0.0.2", "b", true, false)])
    };
    let cluster = Cluster::start(vec![slice(false)]).await;
    let file = format!(
        "{}[[pools]]\nname = \"aws\"\ndiscover = {{ kubernetes = {{ namespace = \"media\", service = \"workers\", \
         port = \"http\", api = \"{}\" }} }}\n",
        pools(&[]),
        cluster.address
    );
    let gateway = Gateway::start(&file).await;
    gateway.healthy(2).await;
    watched(&cluster, 1).await;
    cluster.send("MODIFIED", &slice(true));
    eventually("the first worker drains", || async {
        gateway.status().await["pools"][0]["workers"][0]["drain"] == true
    })
    .await;
    let before = first.submits().len();
    for _ in 0..10 {
        assert_eq!(gateway.submit("{}").await.status().as_u16(), 202);
    }
    assert_eq!((first.submits().len(), second.submits().len()), (before, 10));
    // Nobody else answers reads: it does.
    second.behave(Behaviour::Status(503));
    let read = gateway.client.get(gateway.url("/jobs/j1")).send().await.unwrap();
    assert_eq!(read.status().as_u16(), 200);
    assert!(first.seen().iter().any(|seen| seen.path == "/jobs/j1"));
}
