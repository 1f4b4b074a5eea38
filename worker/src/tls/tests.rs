use std::path::Path;
use std::time::Instant;

use axum::routing::get;
use millrace_runtime::tls::{Clients, Pair};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, ClientBuilder, Identity};

use super::*;
use crate::probe::{self, Question};

const PATIENCE: Duration = Duration::from_secs(10);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for loopback until that year, and its key.
    fn signs(&self, until: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn identity(&self, until: i32) -> Identity {
        let (certificate, key) = self.signs(until);
        Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap()
    }

    fn clients(&self) -> ClientBuilder {
        let root = Certificate::from_pem(self.pem.as_bytes()).unwrap();
        reqwest::Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([root])
    }
}

/// A server on loopback that answers `/`, and what it stands on.
struct Served {
    directory: tempfile::TempDir,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    done: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

fn put(directory: &Path, (certificate, key): &(String, String)) {
    std::fs::write(directory.join("cert.pem"), certificate).unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
}

impl Served {
    async fn start(authority: &Authority, client_ca: Option<&Authority>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        put(directory.path(), &authority.signs(2099));
        let client_ca = client_ca.map(|ca| {
            std::fs::write(path("ca.pem"), &ca.pem).unwrap();
            path("ca.pem")
        });
        let own = Pair { certificate: path("cert.pem"), key: path("key.pem") };
        let files = Server { own, client_ca, clients: Clients::RequiredOrOwn, alpn: ALPN };
        let metrics = Arc::new(Metrics::new().unwrap());
        let tls = Arc::new(Tls::open(files, Arc::clone(&metrics)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let done = CancellationToken::new();
        let router = Router::new().route("/", get(async || "hello")).route("/readyz", get(async || "yes"));
        let server = tokio::spawn(serve(listener, tls, router, done.clone()));
        Self { directory, address, metrics, done, server }
    }

    fn pair(&self) -> Pair {
        let path = |name: &str| self.directory.path().join(name);
        Pair { certificate: path("cert.pem"), key: path("key.pem") }
    }

    async fn probe(&self, pair: Option<Pair>) -> Result<(), String> {
        let asked = probe::ask(Question::Ready, self.address, pair, PATIENCE).await;
        asked.map_err(|error| format!("{error:#}"))
    }

    async fn ask(&self, client: &reqwest::Client) -> reqwest::Result<String> {
        client.get(format!("https://{}/", self.address)).send().await?.text().await
    }

    fn failed(&self, kind: &str) -> u64 {
        self.metrics.tls_handshakes_failed.with_label_values(&[kind]).get()
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never saw: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_worker_is_probed_by_itself_and_by_no_other_worker() {
    let (own, trusted) = (Authority::new(), Authority::new());
    let served = Served::start(&own, Some(&trusted)).await;
    served.probe(Some(served.pair())).await.unwrap();

    let neighbour = tempfile::tempdir().unwrap();
    put(neighbour.path(), &own.signs(2099));
    let path = |name: &str| neighbour.path().join(name);
    let other = Pair { certificate: path("cert.pem"), key: path("key.pem") };
    // The probe believes its own certificate alone …
    let refused = served.probe(Some(other)).await.unwrap_err();
    assert!(refused.contains("no TLS with it"), "{refused}");
    // … and the worker that of itself and of clients, not of its neighbours.
    let client = own.clients().identity(own.identity(2099)).build().unwrap();
    assert!(served.ask(&client).await.is_err());
    let certificate_alone = Pair { key: path("key.pem"), ..served.pair() };
    let refused = served.probe(Some(certificate_alone)).await.unwrap_err();
    assert!(refused.contains("is not the key of the certificate"), "{refused}");
    let plain = served.probe(None).await.unwrap_err();
    assert!(plain.contains("with 400") && plain.contains("speaks TLS"), "{plain}");

    // A renewed certificate is asked by once the worker has followed it.
    put(served.directory.path(), &own.signs(2098));
    let deadline = Instant::now() + PATIENCE;
    while served.probe(Some(served.pair())).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate never opens");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served.done.cancel();
}

#[tokio::test]
async fn only_who_has_a_certificate_of_the_client_ca_is_served() {
    let (own, trusted, stranger) = (Authority::new(), Authority::new(), Authority::new());
    let served = Served::start(&own, Some(&trusted)).await;
    let with = |identity| own.clients().identity(identity).build().unwrap();
    assert_eq!(served.ask(&with(trusted.identity(2099))).await.unwrap(), "hello");
    for (who, client) in [
        ("without one", own.clients().build().unwrap()),
        ("with a stranger's", with(stranger.identity(2099))),
        ("with an expired one", with(trusted.identity(2020))),
    ] {
        assert!(served.ask(&client).await.is_err(), "{who}");
    }
    eventually("three refusals", || served.failed("refused") == 3).await;

    let open = Served::start(&own, None).await;
    assert_eq!(open.ask(&own.clients().build().unwrap()).await.unwrap(), "hello", "nobody is asked");
}

#[tokio::test]
async fn the_certificate_is_exchanged_while_it_serves_and_a_bad_pair_is_not() {
    let (own, next) = (Authority::new(), Authority::new());
    let served = Served::start(&own, None).await;
    let before = own.clients().build().unwrap();
    let fresh = |authority: &Authority| authority.clients().pool_max_idle_per_host(0).build().unwrap();
    assert_eq!(served.ask(&before).await.unwrap(), "hello");
    let pair = next.signs(2098);
    std::fs::write(served.directory.path().join("cert.pem"), &pair.0).unwrap();
    eventually("that the half pair is refused", || served.metrics.certificate_success.get() == 0).await;
    assert_eq!(served.ask(&fresh(&own)).await.unwrap(), "hello", "the one in force stays");
    let expiry = served.metrics.certificate_expiry.get();
    put(served.directory.path(), &pair);
    eventually("the new certificate", || served.metrics.certificate_expiry.get() < expiry).await;
    assert_eq!(served.metrics.certificate_success.get(), 1);
    assert_eq!(served.ask(&fresh(&next)).await.unwrap(), "hello");
    assert!(served.ask(&fresh(&own)).await.is_err(), "the old CA knows nothing of the new certificate");
    assert_eq!(served.ask(&before).await.unwrap(), "hello", "a connection of before goes on");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_and_who_says_nothing_holds_up_nobody() {
    let own = Authority::new();
    let served = Served::start(&own, None).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let plain = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let answer = plain.post(format!("http://{}/", served.address)).body("x").send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let problem: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("speaks TLS"), "{problem}");
    assert_eq!(served.ask(&own.clients().build().unwrap()).await.unwrap(), "hello");
    assert_eq!(served.failed("plain"), 1);
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(2 * HANDSHAKE, silent.read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && rest.is_empty(), "it is cut off without a word");
    assert_eq!(served.failed("timeout"), 1);
}

#[tokio::test]
async fn it_stops_as_a_server_without_tls_does() {
    let own = Authority::new();
    let served = Served::start(&own, None).await;
    let client = own.clients().build().unwrap();
    served.ask(&client).await.unwrap();
    served.done.cancel();
    tokio::time::timeout(PATIENCE, served.server).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody listens any more");
}
