//! TLS for clients, with certificates made here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, Identity, StatusCode, Version};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::fake::Fake;
use crate::harness::{Gateway, check, eventually, gauge, open, pools};

/// Somebody whom certificates come from.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate and its key, PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For loopback, unless changed.
    pub(crate) fn signs(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// For the gateway, until that year.
    pub(crate) fn server(&self, until: i32) -> Pair {
        self.signs(|params| params.not_after = rcgen::date_time_ymd(until, 1, 1))
    }

    /// Clients that trust it.
    pub(crate) fn client(&self) -> reqwest::ClientBuilder {
        let root = Certificate::from_pem(self.pem.as_bytes()).unwrap();
        reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).tls_certs_only([root])
    }

    /// The same for a connection by hand, of that protocol.
    pub(crate) fn speaking(&self, protocol: &str) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        config
    }

    fn identity(&self) -> Identity {
        let pair = self.signs(|_| {});
        Identity::from_pem(format!("{}{}", pair.certificate, pair.key).as_bytes()).unwrap()
    }
}

/// The files of a TLS listener.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new(pair: &Pair) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let files = Self(tempfile::tempdir().unwrap());
        files.put(pair);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, pair: &Pair) {
        std::fs::write(self.path("cert.pem"), &pair.certificate).unwrap();
        std::fs::write(self.path("key.pem"), &pair.key).unwrap();
    }

    /// A routing file with that listener.
    pub(crate) fn routing(&self, workers: &[&Fake], more: &str) -> String {
        let (certificate, key) = (self.path("cert.pem"), self.path("key.pem"));
        let section = format!(
            "[listen.https]\naddress = \"127.0.0.1:0\"\ncertificate = {certificate:?}\nkey = {key:?}\n{more}\n[[pools]]"
        );
        pools(&[("aws", 1.0, workers)]).replacen("[[pools]]", &section, 1)
    }
}

async fn certificate_state(gateway: &Gateway) -> Value {
    let ready = gateway.client.get(gateway.admin_url("/readyz")).send().await.unwrap();
    ready.json::<Value>().await.unwrap()["certificate"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_speak_both_versions_over_tls_and_workers_learn_that_it_was_tls() {
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let files = Files::new(&authority.server(2099));
    let gateway = Gateway::start(&files.routing(&[&worker], "")).await;
    gateway.healthy(1).await;
    let clients = [
        (Version::HTTP_11, authority.client().http1_only().build().unwrap()),
        (Version::HTTP_2, authority.client().build().unwrap()),
    ];
    for (version, client) in clients {
        let answer = client.post(gateway.https_url("/process")).body("{}").send().await.unwrap();
        assert_eq!((answer.status(), answer.version()), (StatusCode::ACCEPTED, version));
        let body = vec![7_u8; 300_000];
        let put = client.put(gateway.https_url("/upload/aws/k")).body(body.clone()).send().await.unwrap();
        assert_eq!(put.status(), StatusCode::OK);
        let seen = worker.seen();
        assert!(seen.last().unwrap().body == body);
        for seen in &seen[seen.len() - 2..] {
            assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("https"));
            assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
            assert_eq!(seen.header("host"), Some(gateway.https.unwrap().to_string()));
        }
    }
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
    let plain = worker.submits().pop().unwrap();
    assert_eq!(plain.header("x-forwarded-proto"), None, "the other listener is there, too");
    assert_eq!(worker.garbled(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_can_be_the_only_listener_and_drains_as_the_plain_one() {
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let files = Files::new(&authority.server(2099));
    let routing = files.routing(&[&worker], "").replacen("http = \"127.0.0.1:0\"\n", "", 1);
    let gateway = Gateway::start(&routing).await;
    gateway.healthy(1).await;
    assert_eq!(Some(gateway.http), gateway.https, "nothing else was announced");
    let client = authority.client().build().unwrap();
    let url = gateway.https_url("/process");
    let answer = client.post(&url).body("{}").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    gateway.signal("TERM");
    eventually("it ends by itself", || async { gateway.exit_code() == Some(0) }).await;
    assert!(client.post(&url).body("{}").send().await.unwrap_err().is_connect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_the_right_certificate_is_refused() {
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let (trusted, stranger) = (Authority::new(), Authority::new());
    let files = Files::new(&authority.server(2099));
    std::fs::write(files.path("ca.pem"), &trusted.pem).unwrap();
    for (wanted, without) in [("required", false), ("optional", true)] {
        let more = format!("client_ca = {:?}\nclient_certificates = \"{wanted}\"", files.path("ca.pem"));
        let gateway = Gateway::start(&files.routing(&[&worker], &more)).await;
        gateway.healthy(1).await;
        for (who, identity, welcome) in [
            ("nobody", None, without),
            ("a stranger", Some(stranger.identity()), false),
            ("one of ours", Some(trusted.identity()), true),
        ] {
            let builder = authority.client();
            let builder = match identity {
                Some(identity) => builder.identity(identity),
                None => builder,
            };
            let client = builder.build().unwrap();
            let answer = client.post(gateway.https_url("/process")).body("{}").send().await;
            assert_eq!(answer.is_ok(), welcome, "{who}, {wanted}: {answer:?}");
        }
        let failed = gauge(&gateway.metrics().await, "millrace_gateway_tls_handshakes_failed_total");
        assert!(failed >= if without { 1.0 } else { 2.0 }, "{failed}");
    }
    assert_eq!(worker.submits().len(), 3);
}

/// Requests without pause, each third on a connection of its own, until it is told to stop.
fn load(client: &reqwest::Client, fresh: &reqwest::Client, url: &str) -> (Arc<AtomicBool>, Vec<Running>) {
    let stop = Arc::new(AtomicBool::new(false));
    let tasks = (0..4).map(|n| {
        let (stop, url) = (stop.clone(), url.to_owned());
        let client = if n == 0 { fresh.clone() } else { client.clone() };
        tokio::spawn(async move {
            let (mut count, mut failed) = (0, Vec::new());
            while !stop.load(Ordering::SeqCst) {
                count += 1;
                match client.post(&url).body("{}").send().await {
                    Ok(answer) if answer.status().is_success() => {}
                    other => failed.push(format!("{other:?}")),
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            (count, failed)
        })
    });
    (stop.clone(), tasks.collect())
}

type Running = tokio::task::JoinHandle<(usize, Vec<String>)>;

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_under_load_without_a_failed_request() {
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let files = Files::new(&authority.server(2099));
    let gateway = Gateway::start(&files.routing(&[&worker], "")).await;
    gateway.healthy(1).await;
    let expiry =
        async || gauge(&gateway.metrics().await, "millrace_gateway_certificate_expiry_timestamp_seconds");
    let first = expiry().await;
    let client = authority.client().build().unwrap();
    let fresh = authority.client().pool_max_idle_per_host(0).build().unwrap();
    let (stop, tasks) = load(&client, &fresh, &gateway.https_url("/process"));
    for until in [2098, 2097, 2096] {
        let before = expiry().await;
        files.put(&authority.server(until));
        eventually("the new certificate is in force", || async { expiry().await < before }).await;
    }
    assert!(first - expiry().await > 2.9 * 365.0 * 86400.0);

    // A certificate whose key is still that of before changes nothing, loudly.
    let held = expiry().await;
    let next = authority.server(2095);
    std::fs::write(files.path("cert.pem"), &next.certificate).unwrap();
    let told =
        || async { certificate_state(&gateway).await["error"].as_str().unwrap_or_default().to_owned() };
    eventually("the mismatch is told", || async { !told().await.is_empty() }).await;
    let shown = told().await;
    assert!(shown.starts_with("listen.https.key: ") && shown.contains("is not the key of"), "{shown}");
    assert!(gateway.log().contains("certificate not reloaded"), "{}", gateway.log());
    let metrics = gateway.metrics().await;
    assert_eq!(gauge(&metrics, "millrace_gateway_certificate_reload_success"), 0.0);
    assert_eq!(expiry().await, held);
    let ready = gateway.client.get(gateway.admin_url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK, "it still serves");
    for (pair, wants) in [
        (authority.server(2020), "listen.https.certificate: "),
        (Pair { certificate: "nothing".to_owned(), key: String::new() }, "holds no certificate"),
    ] {
        files.put(&pair);
        eventually("that one is refused, too", || async { told().await.contains(wants) }).await;
    }
    files.put(&next);
    eventually("the right pair is in force", || async { expiry().await < held }).await;
    assert_eq!(certificate_state(&gateway).await["error"], Value::Null);
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        let (count, failed) = task.await.unwrap();
        assert_eq!(failed, Vec::<String>::new(), "of {count}");
        assert!(count > 50, "{count} requests are no load");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_is_refused_by_the_key_that_names_it() {
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let (good, other) = (authority.server(2099), authority.server(2099));
    let files = Files::new(&good);
    let routing = files.path("routing.toml");
    let refused = |more: &str, wants: &[&str]| {
        std::fs::write(&routing, files.routing(&[&worker], more)).unwrap();
        let (code, _, told) = check(&["check", routing.to_str().unwrap()]);
        assert_eq!(code, 2, "{told}");
        assert!(wants.iter().all(|wants| told.contains(wants)), "{told} is not {wants:?}");
        assert_eq!(check(&["run", "--config", routing.to_str().unwrap()]).0, 2, "it does not run with that");
    };
    files.put(&Pair { key: other.key, ..authority.server(2099) });
    refused("", &["routing.toml:7:7: listen.https.key: ", "is not the key of the certificate in"]);
    files.put(&authority.server(2020));
    refused("", &["routing.toml:6:15: listen.https.certificate: certificate 1 of", "has expired on"]);
    files.put(&authority.signs(|params| params.not_before = rcgen::date_time_ymd(2090, 1, 1)));
    refused("", &["listen.https.certificate: certificate 1 of", "is valid from"]);
    let stranger = Authority::new();
    let chain =
        |last: &str| Pair { certificate: format!("{}{last}", good.certificate), key: good.key.clone() };
    files.put(&chain(&stranger.pem));
    refused("", &["listen.https.certificate: ", "is no chain"]);
    files.put(&Pair { key: "no key".to_owned(), ..chain("") });
    refused("", &["listen.https.key: ", "holds no private key"]);
    files.put(&chain(&authority.pem));
    refused(
        "client_ca = \"/nonexistent.pem\"",
        &[":8:13: listen.https.client_ca: /nonexistent.pem cannot be read"],
    );

    std::fs::write(&routing, files.routing(&[&worker], "")).unwrap();
    let (code, out, err) = check(&["check", routing.to_str().unwrap()]);
    assert_eq!((code, out.contains("ok, 1 pool, 1 endpoint")), (0, true), "{out}{err}");
    std::fs::remove_file(files.path("key.pem")).unwrap();
    refused("", &["listen.https.key: ", "cannot be read"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routing_file_may_name_other_files_but_only_good_ones() {
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let files = Files::new(&authority.server(2099));
    let routing = files.routing(&[&worker], "");
    let gateway = Gateway::start(&routing).await;
    gateway.healthy(1).await;
    let reload = async |routing: &str| {
        gateway.write(routing);
        let answer = gateway.reload().await;
        answer.json::<Value>().await.unwrap()["detail"].as_str().unwrap_or_default().to_owned()
    };
    let there = |path: &Path| routing.replace("cert.pem", path.file_name().unwrap().to_str().unwrap());
    let told = reload(&there(Path::new("other.pem"))).await;
    assert!(told.contains(":6:15: listen.https.certificate: ") && told.contains("cannot be read"), "{told}");
    let told = reload(&routing.replacen("address = \"127.0.0.1:0\"", "address = \"127.0.0.1:1\"", 1)).await;
    assert!(
        told.contains("listen.https.address: changing it from 127.0.0.1:0 to 127.0.0.1:1 needs"),
        "{told}"
    );

    let next = authority.server(2050);
    std::fs::write(files.path("other.pem"), &next.certificate).unwrap();
    std::fs::write(files.path("other.key"), &next.key).unwrap();
    let told = reload(&there(Path::new("other.pem")).replace("key.pem", "other.key")).await;
    assert_eq!(told, "");
    let year_2051 = 2_556_144_000_i64;
    eventually("the other files are in force", || async {
        certificate_state(&gateway).await["expires_unix_s"].as_i64().unwrap() < year_2051
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_shake_hands_is_cut_off() {
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let files = Files::new(&authority.server(2099));
    let routing = format!("{}[timeouts]\nheader = \"500ms\"\n", files.routing(&[&worker], ""));
    let gateway = Gateway::start(&routing).await;
    gateway.healthy(1).await;
    for first in ["", "GET / HTTP/1.1\r\nhost: h\r\n\r\n"] {
        let started = Instant::now();
        let mut silent = open(gateway.https.unwrap()).await;
        silent.send(first).await;
        let answer = silent.rest().await;
        assert!(!answer.starts_with(b"HTTP"), "nothing but an alert: {answer:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    let failed = gauge(&gateway.metrics().await, "millrace_gateway_tls_handshakes_failed_total");
    assert_eq!(failed, 2.0);
}
