//! TLS between the gateway and its workers, with certificates made here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::StatusCode;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::Value;

use crate::fake::{Behaviour, Fake};
use crate::front::tls::{Authority, Pair};
use crate::harness::{Gateway, check, eventually, gauge, pools};

/// What a worker serves with: its own certificate, and whom it asks for one.
pub(crate) fn config(own: &Pair, clients: &[&Authority]) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    for authority in clients {
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = match clients {
        [] => builder.unwrap().with_no_client_auth(),
        _ => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.unwrap().with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

/// The files of `[upstream_tls]`, and who made them.
struct Trust {
    directory: tempfile::TempDir,
    workers: Authority,
    gateways: Authority,
}

impl Trust {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let trust = Self { directory, workers: Authority::new(), gateways: Authority::new() };
        std::fs::write(trust.path("ca.pem"), &trust.workers.pem).unwrap();
        trust.show(&trust.gateways.server(2099));
        trust
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the gateway shows from now on.
    fn show(&self, own: &Pair) {
        std::fs::write(self.path("gateway.pem"), &own.certificate).unwrap();
        std::fs::write(self.path("gateway.key"), &own.key).unwrap();
    }

    /// A worker that speaks TLS and asks the gateway for its certificate.
    async fn worker(&self, pool: &str, name: &str) -> Fake {
        let fake = Fake::start(pool, name).await;
        fake.tls(config(&self.workers.signs(|_| {}), &[&self.gateways]));
        fake
    }

    fn section(&self) -> String {
        let (ca, own, key) = (self.path("ca.pem"), self.path("gateway.pem"), self.path("gateway.key"));
        format!("[upstream_tls]\nca = {ca:?}\ncertificate = {own:?}\nkey = {key:?}\n")
    }

    /// A routing file in which every pool speaks TLS.
    fn routing(&self, file: &str) -> String {
        let file = file.replace("\nweight", "\ntls = true\nweight");
        file.replacen("[[pools]]", &format!("{}[[pools]]", self.section()), 1)
    }
}

/// A web server that answers, without TLS, that it cannot read what it is sent.
async fn plain_server() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = async || "hello";
    let router = axum::Router::new().route("/", axum::routing::get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// What is known of a worker's health.
async fn health(gateway: &Gateway, worker: SocketAddr) -> String {
    let status = gateway.status().await;
    let mut workers =
        status["pools"].as_array().unwrap().iter().flat_map(|p| p["workers"].as_array().unwrap());
    let found = workers.find(|known| known["address"] == worker.to_string()).unwrap();
    found["health"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn submits_reads_uploads_and_events_go_over_tls_on_connections_that_are_used_again() {
    let trust = Trust::new();
    let worker = trust.worker("aws", "w1").await;
    let gateway = Gateway::start(&trust.routing(&pools(&[("aws", 1.0, &[&worker])]))).await;
    gateway.healthy(1).await;
    for _ in 0..20 {
        assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
        let read = gateway.client.get(gateway.url("/jobs/a")).send().await.unwrap();
        assert_eq!(read.status(), StatusCode::OK);
    }
    let body: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    let put = gateway.client.put(gateway.url("/upload/aws/k")).body(body.clone()).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::OK);
    assert!(worker.seen().last().unwrap().body == body, "every byte of it");
    worker.behave(Behaviour::Large(3_000_000));
    let media = gateway.client.get(gateway.url("/media/a/t/seg.m4s")).send().await.unwrap();
    assert_eq!(media.bytes().await.unwrap().len(), 3_000_000);
    worker.behave(Behaviour::Events(Duration::from_millis(50)));
    let events = gateway.client.get(gateway.url("/jobs/a/events")).send().await.unwrap();
    let mut pieces = events.bytes_stream();
    for _ in 0..3 {
        assert!(pieces.next().await.unwrap().unwrap().starts_with(b"data: "), "as they come");
    }
    let (reused, handshakes) = (worker.reused(), worker.handshakes());
    assert!(
        reused >= 40 && handshakes <= 6,
        "{reused} requests on connections of before, {handshakes} handshakes"
    );
    assert_eq!(worker.garbled(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_known_by_the_name_that_its_pool_says() {
    let trust = Trust::new();
    let named = |name: &str| trust.workers.signs(|params| params.subject_alt_names = names(name));
    let (one, two) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    one.tls(config(&named("workers.internal"), &[]));
    two.tls(config(&named("other.internal"), &[]));
    let file = trust.routing(&pools(&[("aws", 1.0, &[&one]), ("gcp", 1.0, &[&two])]));
    let file = file.replacen("[upstream_tls]", "[upstream_tls]\nserver_name = \"workers.internal\"", 1);
    let gateway = Gateway::start(&file).await;
    gateway.healthy(1).await;
    let told = health(&gateway, two.address).await;
    assert!(told.contains("not valid for name") && told.contains("workers.internal"), "{told}");
    gateway.write(&file.replace("\"gcp\"\ntls", "\"gcp\"\nserver_name = \"other.internal\"\ntls"));
    gateway.healthy(2).await;
    for _ in 0..10 {
        assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
    }
    assert!(!one.submits().is_empty() && !two.submits().is_empty());
    let (_, table, _) = check(&["status", "--admin", &gateway.admin.to_string()]);
    for (pool, name) in [("aws", "workers.internal"), ("gcp", "other.internal")] {
        assert!(table.contains(&format!("tls: {pool}, each worker known by {name}\n")), "{table}");
    }
    let (_, checked, _) = check(&["check", gateway.file().to_str().unwrap()]);
    assert!(checked.contains("TLS to gcp (known by other.internal)"), "{checked}");
}

fn names(name: &str) -> Vec<rcgen::SanType> {
    vec![rcgen::SanType::DnsName(name.try_into().unwrap())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_be_believed_gets_nothing_and_status_says_why() {
    let trust = Trust::new();
    let good = trust.worker("aws", "good").await;
    let stranger = Authority::new();
    let (expired, foreign, named, choosy) = (
        Fake::start("aws", "expired").await,
        Fake::start("aws", "foreign").await,
        Fake::start("aws", "named").await,
        Fake::start("aws", "choosy").await,
    );
    expired.tls(config(&trust.workers.server(2020), &[]));
    foreign.tls(config(&stranger.signs(|_| {}), &[]));
    named.tls(config(&trust.workers.signs(|params| params.subject_alt_names = names("a.b")), &[]));
    choosy.tls(config(&trust.workers.signs(|_| {}), &[&stranger]));
    let hidden = trust.worker("gcp", "hidden").await;
    let all = [&good, &expired, &foreign, &named, &choosy];
    let plain = plain_server().await;
    let file = trust.routing(&pools(&[("aws", 1.0, &all), ("gcp", 1.0, &[&hidden])]));
    let file = file.replace("\"gcp\"\ntls = true", "\"gcp\"");
    let file = file.replacen("endpoints = [", &format!("endpoints = [\"{plain}\", "), 1);
    let gateway = Gateway::start(&file).await;
    eventually("every worker is judged", || async {
        for (worker, wants) in [
            (good.address, "up"),
            (expired.address, "TLS: the worker's certificate has expired"),
            (foreign.address, "TLS: the worker's certificate does not come from upstream_tls.ca"),
            (named.address, "TLS: the worker's certificate is not believed: certificate not valid for name"),
            (choosy.address, "TLS: the worker does not believe the gateway's certificate"),
            (plain, "TLS: the worker does not speak TLS, and its pool says tls = true"),
            (hidden.address, "a worker that speaks TLS wants tls = true"),
        ] {
            let told = health(&gateway, worker).await;
            if !told.contains(wants)
                && !told.contains(wants.trim_start_matches("certificate is not believed: "))
            {
                eprintln!("{told} is not {wants}");
                return false;
            }
        }
        true
    })
    .await;
    // The same trouble every second is one line of the log.
    let downs = gateway.log().matches("worker is down").count();
    for _ in 0..40 {
        assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(good.submits().len(), 40);
    for bad in [&expired, &foreign, &named, &choosy, &hidden] {
        assert!(bad.seen().is_empty(), "it was never asked");
    }
    let metrics = gateway.metrics().await;
    assert!(gauge(&metrics, "millrace_gateway_probe_failures_total{kind=\"tls\"}") >= 5.0);

    eventually("some more probes", || async {
        gauge(&gateway.metrics().await, "millrace_gateway_probe_failures_total{kind=\"tls\"}") >= 15.0
    })
    .await;
    assert_eq!(gateway.log().matches("worker is down").count(), downs, "{}", gateway.log());

    // The operator mends one: it is of use again by itself.
    expired.tls(config(&trust.workers.signs(|_| {}), &[&trust.gateways]));
    gateway.healthy(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_both_sides_and_their_cas_are_exchanged_under_load_without_a_failed_request() {
    let trust = Trust::new();
    let (one, two) = (trust.worker("aws", "w1").await, trust.worker("aws", "w2").await);
    let gateway = Gateway::start(&trust.routing(&pools(&[("aws", 1.0, &[&one, &two])]))).await;
    gateway.healthy(2).await;
    let metric = "millrace_gateway_upstream_certificate_expiry_timestamp_seconds";
    let expiry = async || gauge(&gateway.metrics().await, metric);
    let state = async || {
        let ready = gateway.client.get(gateway.admin_url("/readyz")).send().await.unwrap();
        ready.json::<Value>().await.unwrap()["upstream_certificate"].clone()
    };
    let load = gateway.load(4);

    // Workers come to take both CAs, then the gateway shows what the new one signed, then the old one goes.
    let next = Authority::new();
    for worker in [&one, &two] {
        worker.tls(config(&trust.workers.signs(|_| {}), &[&trust.gateways, &next]));
    }
    let before = expiry().await;
    let handshakes = one.handshakes();
    trust.show(&next.server(2098));
    eventually("the gateway shows the new one", || async { expiry().await < before }).await;
    for worker in [&one, &two] {
        worker.tls(config(&trust.workers.signs(|_| {}), &[&next]));
    }
    eventually("connections with the new one", || async { one.handshakes() >= handshakes + 2 }).await;

    // The same for the workers' CA.
    let authority = Authority::new();
    std::fs::write(trust.path("ca.pem"), format!("{}{}", trust.workers.pem, authority.pem)).unwrap();
    eventually("both CAs are believed", || async { gateway.log().matches("workers reloaded").count() == 2 })
        .await;
    for worker in [&one, &two] {
        worker.tls(config(&authority.signs(|_| {}), &[&next]));
    }
    std::fs::write(trust.path("ca.pem"), &authority.pem).unwrap();
    eventually("the old CA is gone", || async { gateway.log().matches("workers reloaded").count() == 3 })
        .await;

    // Half of a pair changes nothing, loudly.
    let held = expiry().await;
    let pair = next.server(2097);
    std::fs::write(trust.path("gateway.pem"), &pair.certificate).unwrap();
    eventually("the mismatch is told", || async { state().await["error"].is_string() }).await;
    let told = state().await["error"].as_str().unwrap().to_owned();
    assert!(told.starts_with("upstream_tls.key: ") && told.contains("is not the key of"), "{told}");
    let metrics = gateway.metrics().await;
    assert_eq!(gauge(&metrics, "millrace_gateway_upstream_certificate_reload_success"), 0.0);
    assert_eq!(expiry().await, held);
    trust.show(&pair);
    eventually("the whole pair counts", || async { expiry().await < held }).await;
    assert_eq!(state().await["error"], Value::Null);

    let (count, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new(), "of {count}");
    assert!(count > 100, "{count} requests are no load");
    assert_eq!(one.garbled() + two.garbled(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_turns_tls_on_and_a_bad_file_is_refused_by_the_key_that_names_it() {
    let trust = Trust::new();
    let worker = Fake::start("aws", "w1").await;
    let plain = pools(&[("aws", 1.0, &[&worker])]);
    let gateway = Gateway::start(&plain).await;
    gateway.healthy(1).await;
    let secure = trust.routing(&plain);
    let reload = async |routing: &str| {
        gateway.write(routing);
        let answer = gateway.reload().await;
        answer.json::<Value>().await.unwrap()["detail"].as_str().unwrap_or_default().to_owned()
    };
    let told = reload(&secure.replace("ca.pem", "none.pem")).await;
    assert!(told.contains(":5:6: upstream_tls.ca: ") && told.contains("cannot be read"), "{told}");
    let routing = trust.path("routing.toml");
    std::fs::write(&routing, secure.replace("gateway.key", "ca.pem")).unwrap();
    for arguments in [vec!["check"], vec!["run", "--config"]] {
        let (code, _, told) = check(&[&arguments[..], &[routing.to_str().unwrap()]].concat());
        assert_eq!(code, 2, "{told}");
        assert!(
            told.contains("routing.toml:7:7: upstream_tls.key: ") && told.contains("no private key"),
            "{told}"
        );
    }
    std::fs::write(&routing, &secure).unwrap();
    assert_eq!(check(&["check", routing.to_str().unwrap()]).0, 0);

    worker.tls(config(&trust.workers.signs(|_| {}), &[&trust.gateways]));
    assert_eq!(reload(&secure).await, "");
    eventually("it is asked over TLS", || async { worker.handshakes() > 0 }).await;
    gateway.healthy(1).await;
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
}
