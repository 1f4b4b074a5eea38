//! Tokens: whose are taken, and what becomes of it when their keys change or cannot be had.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use crate::fake::Fake;
use crate::front::tls::{Authority, Pair};
use crate::harness::{Gateway, check, eventually, gauge, pools, problem};

/// Who signs tokens, under one key's name.
struct Issuer {
    id: String,
    key: Ed25519KeyPair,
}

impl Issuer {
    fn new(id: &str) -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        Self { id: id.to_owned(), key: Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap() }
    }

    fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({ "kid": self.id, "kty": "OKP", "crv": "Ed25519", "x": x })
    }

    fn token(&self, role: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = json!({ "alg": "EdDSA", "kid": self.id });
        let claims = json!({
            "iss": "https://id.example", "aud": ["millrace"], "exp": now + 600,
            "sub": "alice", "role": role, "tenant": "acme",
        });
        let encode = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

fn set(issuers: &[&Issuer]) -> String {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Answers with a set of keys, or with what it is told to.
#[derive(Clone)]
struct Provider {
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<(StatusCode, HeaderMap, String)>>,
    slow: Arc<Mutex<Duration>>,
    url: String,
}

impl Provider {
    async fn start(text: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Self {
            asked: Arc::default(),
            answer: Arc::new(Mutex::new((StatusCode::OK, HeaderMap::new(), text))),
            slow: Arc::default(),
            url: format!("http://{}/keys", listener.local_addr().unwrap()),
        };
        let app =
            axum::Router::new().route("/keys", axum::routing::get(Self::keys)).with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        provider
    }

    async fn keys(State(provider): State<Self>) -> (StatusCode, HeaderMap, String) {
        provider.asked.fetch_add(1, Ordering::SeqCst);
        let slow = *provider.slow.lock().unwrap();
        tokio::time::sleep(slow).await;
        provider.answer.lock().unwrap().clone()
    }

    fn answers(&self, status: StatusCode, text: &str) {
        let mut answer = self.answer.lock().unwrap();
        (answer.0, answer.2) = (status, text.to_owned());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn routing(worker: &Fake, jwks: &str, more: &str) -> String {
    let section =
        format!("[auth.jwt]\njwks = {jwks:?}\nissuer = \"https://id.example\"\naudience = [\"millrace\"]\n");
    format!("{}{section}{more}", pools(&[("aws", 1.0, &[worker])]))
}

async fn read(gateway: &Gateway, token: &str) -> reqwest::Response {
    gateway.client.get(gateway.url("/jobs")).bearer_auth(token).send().await.unwrap()
}

async fn may(gateway: &Gateway, token: &str) -> bool {
    read(gateway, token).await.status().is_success()
}

async fn stands(gateway: &Gateway) -> Value {
    let ready = gateway.client.get(gateway.admin_url("/readyz")).send().await.unwrap();
    ready.json::<Value>().await.unwrap()["auth"]["jwt"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_keys_say_who_asks_side_by_side() {
    let (worker, issuer) = (Fake::start("aws", "w1").await, Issuer::new("a"));
    let folder = tempfile::tempdir().unwrap();
    let (jwks, keys) = (folder.path().join("jwks.json"), folder.path().join("keys"));
    std::fs::write(&jwks, set(&[&issuer])).unwrap();
    let key = "k".repeat(32);
    std::fs::write(&keys, format!("alice viewer other {}\n", hex::encode(Sha256::digest(&key)))).unwrap();
    let file = routing(&worker, jwks.to_str().unwrap(), "");
    let gateway =
        Gateway::start(&file.replace("[auth.jwt]", &format!("[auth]\nkeys = {keys:?}\n[auth.jwt]"))).await;
    gateway.healthy(1).await;

    let token = issuer.token("creator");
    for _ in 0..5 {
        let request = gateway.client.post(gateway.url("/jobs")).bearer_auth(&token).body("{}");
        let answer = request.header("millrace-tenant", "evil").send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    }
    let seen = worker.seen().pop().unwrap();
    let told = ["millrace-principal", "millrace-tenant"].map(|name| seen.header(name).unwrap());
    assert_eq!(told, ["alice", "acme"]);
    assert_eq!(seen.header("authorization"), None, "the token stays here");
    assert!(may(&gateway, &key).await);
    assert_eq!(worker.seen().pop().unwrap().header("millrace-tenant").unwrap(), "other");
    let metrics = gateway.metrics().await;
    let looked =
        |result: &str| gauge(&metrics, &format!("millrace_gateway_auth_tokens_total{{result=\"{result}\"}}"));
    assert_eq!((looked("hit"), looked("miss")), (4.0, 1.0));

    let viewer = gateway.client.delete(gateway.url("/jobs/j")).bearer_auth(issuer.token("viewer"));
    assert_eq!(problem(viewer.send().await.unwrap()).await["code"], "forbidden");
    let stranger = read(&gateway, &issuer.token("root")).await;
    assert_eq!(problem(stranger).await["code"], "forbidden");
    let (message, _) = token.rsplit_once('.').unwrap();
    for bad in [
        format!("{message}."),
        format!("{message}.{}", "A".repeat(86)),
        format!("{message}.{}", "A".repeat(9000)),
    ] {
        let answer = read(&gateway, &bad).await;
        assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"millrace\"");
        assert_eq!(problem(answer).await["code"], "unauthenticated");
    }
    let elsewhere =
        gateway.client.get(gateway.url("/jobs")).header("x-api-key", &token).send().await.unwrap();
    assert_eq!(elsewhere.status(), 401, "a token is no API key");
    assert_eq!(read(&gateway, &Issuer::new("b").token("viewer")).await.status(), 401);

    // The file is followed; a bad one changes nothing.
    let next = Issuer::new("b");
    std::fs::write(&jwks, set(&[&next])).unwrap();
    eventually("the next key is in force", || async { may(&gateway, &next.token("viewer")).await }).await;
    assert!(!may(&gateway, &token).await, "its key is gone, though the token was known");
    std::fs::write(&jwks, "{\"keys\":[{\"kty\":\"oct\",\"k\":\"secret\"}]}").unwrap();
    eventually("the bad set is told", || async { stands(&gateway).await["error"].is_string() }).await;
    assert!(may(&gateway, &next.token("viewer")).await);
    assert!(!gateway.log().contains("secret") && !gateway.log().contains(message), "{}", gateway.log());
    let (code, _, err) = check(&["check", gateway.file().to_str().unwrap()]);
    assert!(
        code == 2 && err.contains("auth.jwt.jwks: ") && err.contains("no key of it can be used"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_asked_for_at_once_but_strangers_cannot_make_us_ask() {
    let (worker, old, new) = (Fake::start("aws", "w1").await, Issuer::new("old"), Issuer::new("new"));
    let provider = Provider::start(set(&[&old])).await;
    let gateway = Gateway::start(&routing(&worker, &provider.url, "")).await;
    gateway.healthy(1).await;
    assert!(may(&gateway, &old.token("viewer")).await);
    assert_eq!(provider.asked(), 1);

    provider.answers(StatusCode::OK, &set(&[&old, &new]));
    *provider.slow.lock().unwrap() = Duration::from_millis(300);
    let first = new.token("viewer");
    let asking = (0..8).map(|_| may(&gateway, &first));
    let all = futures::future::join_all(asking).await;
    assert!(all.into_iter().all(|may| may), "all of them wait for the one answer");
    assert_eq!(provider.asked(), 2);
    assert!(may(&gateway, &old.token("viewer")).await);

    for n in 0..100 {
        assert!(!may(&gateway, &Issuer::new(&format!("stranger-{n}")).token("operator")).await);
    }
    assert_eq!(provider.asked(), 2, "once in ten seconds and no more");
    let state = stands(&gateway).await;
    assert_eq!((&state["keys"], &state["error"]), (&json!(2), &Value::Null), "{state}");
    assert_eq!(state["source"], provider.url.as_str());
    assert!(
        gauge(&gateway.metrics().await, "millrace_gateway_auth_jwks_fetches_total{outcome=\"ok\"}") >= 2.0
    );
}

/// Serves that set of keys over TLS, to who believes the certificate.
async fn secure(pair: &Pair, text: String) -> (String, Arc<AtomicUsize>) {
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let (acceptor, text) = (acceptor.clone(), text.clone());
            tokio::spawn(async move {
                // Who does not believe the certificate ends here.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
                let length = text.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}");
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_over_tls_from_who_has_a_certificate_of_ones_own_ca_and_from_nobody_else() {
    let (worker, issuer) = (Fake::start("aws", "w1").await, Issuer::new("a"));
    let (ours, theirs, folder) = (Authority::new(), Authority::new(), tempfile::tempdir().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &ours.pem).unwrap();
    let (url, _) = secure(&ours.server(2099), set(&[&issuer])).await;
    let believes = |ca: &Path| format!("ca = {ca:?}\nmin_refresh = \"1s\"\nmax_refresh = \"1s\"\n");
    // The system's own certificates count for nothing there: it may have none.
    let gateway = Gateway::start_with_roots("/dev/null", &routing(&worker, &url, &believes(&ca))).await;
    gateway.healthy(1).await;
    let token = issuer.token("viewer");
    eventually("its token is good", || may(&gateway, &token)).await;
    let state = stands(&gateway).await;
    assert_eq!((&state["source"], &state["error"], &state["keys"]), (&json!(url), &Value::Null, &json!(1)));

    for (who, pair) in [
        ("one of another CA", theirs.server(2099)),
        ("one whose time is over", ours.server(2020)),
        ("somebody else's", ours.signs(|params| params.subject_alt_names.clear())),
    ] {
        let (url, asked) = secure(&pair, set(&[&issuer])).await;
        let gateway = Gateway::start(&routing(&worker, &url, &believes(&ca))).await;
        gateway.healthy(1).await;
        eventually("it has tried twice", || async { asked.load(Ordering::SeqCst) >= 2 }).await;
        let answer = read(&gateway, &token).await;
        assert_eq!(problem(answer).await["code"], "auth_unavailable", "{who}");
        let told = stands(&gateway).await["error"].as_str().unwrap_or_default().to_owned();
        assert!(told.contains("certificate"), "{who}: {told}");
    }

    let file = folder.path().join("routing.toml");
    std::fs::write(&file, routing(&worker, &url, &believes(&folder.path().join("none.pem")))).unwrap();
    let (code, _, told) = check(&["check", file.to_str().unwrap()]);
    assert!(code == 2 && told.contains("auth.jwt") && told.contains("none.pem cannot be read"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_would_come_in_plain_from_elsewhere_are_refused_at_once() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let file = folder.path().join("routing.toml");
    std::fs::write(&file, routing(&worker, "http://id.example/jwks.json?token=secret", "")).unwrap();
    for command in [&["check"][..], &["run", "--config"]] {
        let (code, _, told) = check(&[command, &[file.to_str().unwrap()]].concat());
        assert_eq!(code, 2, "{told}");
        assert!(told.contains("auth.jwt.jwks: http://id.example is asked without TLS"), "{told}");
        assert!(told.contains("it wants https, or http on a loopback address"), "{told}");
        assert!(!told.contains("secret"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_provider_answers_the_last_good_set_stays_and_a_revoked_key_ends() {
    let (worker, old, new) = (Fake::start("aws", "w1").await, Issuer::new("old"), Issuer::new("new"));
    let provider = Provider::start(set(&[&old])).await;
    // Says nothing of how long it holds, so the longest time counts.
    let file = routing(&worker, &provider.url, "min_refresh = \"1s\"\nmax_refresh = \"1s\"\n");
    let gateway = Gateway::start(&file).await;
    gateway.healthy(1).await;
    let token = old.token("viewer");
    assert!(may(&gateway, &token).await);

    let large = format!("{{\"keys\":[{}]}}", vec![old.jwk().to_string(); 10_001].join(","));
    for (status, text, outcome) in [
        (StatusCode::INTERNAL_SERVER_ERROR, set(&[&new]), "status"),
        (StatusCode::FOUND, set(&[&new]), "status"),
        (StatusCode::OK, "<html>maintenance</html>".to_owned(), "bad"),
        (StatusCode::OK, "{\"keys\":[]}".to_owned(), "bad"),
        (StatusCode::OK, large, "bad"),
        (StatusCode::OK, " ".repeat(5 << 20), "bad_size"),
    ] {
        provider.answer.lock().unwrap().1.insert(header::LOCATION, provider.url.parse().unwrap());
        let name = format!("millrace_gateway_auth_jwks_fetches_total{{outcome=\"{outcome}\"}}");
        let count = async || {
            let metrics = gateway.metrics().await;
            if metrics.contains(&name) { gauge(&metrics, &name) } else { 0.0 }
        };
        let before = count().await;
        provider.answers(status, &text);
        eventually("the answer is counted", || async { count().await > before }).await;
        assert!(may(&gateway, &token).await && !may(&gateway, &new.token("viewer")).await, "{status}");
        assert!(stands(&gateway).await["error"].is_string());
    }
    assert_eq!(gauge(&gateway.metrics().await, "millrace_gateway_auth_jwks_success"), 0.0);
    provider.answers(StatusCode::OK, &set(&[&new]));
    eventually("the next key is in force", || async { may(&gateway, &new.token("viewer")).await }).await;
    assert!(!may(&gateway, &token).await, "its key was revoked while the token was known");
    assert_eq!(stands(&gateway).await["error"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_its_provider_and_says_that_it_cannot_tell() {
    let (worker, issuer) = (Fake::start("aws", "w1").await, Issuer::new("a"));
    let provider = Provider::start(set(&[&issuer])).await;
    *provider.slow.lock().unwrap() = Duration::from_secs(60);
    let gateway = Gateway::start(&routing(&worker, &provider.url, "max_refresh = \"1m\"\n")).await;
    gateway.healthy(1).await;
    let answer = read(&gateway, &issuer.token("viewer")).await;
    assert_eq!(answer.headers()["retry-after"], "2");
    assert_eq!(problem(answer).await["code"], "auth_unavailable");
    assert_eq!(gateway.client.get(gateway.url("/livez")).send().await.unwrap().status(), 200);
    *provider.slow.lock().unwrap() = Duration::ZERO;
    eventually("the provider is there", || async { may(&gateway, &issuer.token("viewer")).await }).await;
    assert_eq!(stands(&gateway).await["keys"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_bad_tokens_too_often_has_none_checked_and_harms_nobody_beside_him() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let (issuer, forger) = (Issuer::new("a"), Issuer::new("a"));
    let (jwks, keys) = (folder.path().join("jwks.json"), folder.path().join("keys"));
    std::fs::write(&jwks, set(&[&issuer])).unwrap();
    let key = "k".repeat(32);
    std::fs::write(&keys, format!("bob viewer other {}\n", hex::encode(Sha256::digest(&key)))).unwrap();
    let file = routing(&worker, jwks.to_str().unwrap(), "[rate]\nper_second = 0.01\nburst = 10\n");
    let gateway =
        Gateway::start(&file.replace("[auth.jwt]", &format!("[auth]\nkeys = {keys:?}\n[auth.jwt]"))).await;
    gateway.healthy(1).await;
    let known = issuer.token("viewer");
    assert!(may(&gateway, &known).await);

    for _ in 0..10 {
        assert_eq!(problem(read(&gateway, &forger.token("viewer")).await).await["code"], "unauthenticated");
    }
    let checked =
        async || gauge(&gateway.metrics().await, "millrace_gateway_auth_tokens_total{result=\"miss\"}");
    let before = checked().await;
    for _ in 0..5 {
        let answer = read(&gateway, &forger.token("viewer")).await;
        let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=100).contains(&after), "{after}");
        assert_eq!(problem(answer).await["code"], "rate_limited");
    }
    assert_eq!(read(&gateway, &issuer.token("creator")).await.status(), 429, "it would have to be checked");
    assert!(checked().await == before, "no signature was checked");
    assert_eq!(read(&gateway, &"x".repeat(32)).await.status(), 429, "keys are guessed no faster");

    assert!(may(&gateway, &known).await, "a token that was found good before");
    assert!(may(&gateway, &key).await, "a key");
    let media = gateway.client.get(gateway.url("/media/j/token/master.m3u8")).send().await.unwrap();
    assert_eq!(media.status(), 200, "and who needs neither");
}
