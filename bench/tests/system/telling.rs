//! Others who are told, as strict as they come: a receiver behind TLS of a private CA, and a NATS server that lets in by JWT.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_nats::jetstream;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use millrace_bench::System;
use millrace_bench::nats::Nats;
use millrace_bench::system::Builder;
use millrace_wire::job::{Job, WebhookState};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::stage::{PATIENCE, Stage};

/// A CA that signs one certificate, for loopback.
struct Authority {
    pem: String,
    server: Arc<rustls::ServerConfig>,
}

impl Authority {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let own = rcgen::KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let chain = vec![params.signed_by(&own, &issuer).unwrap().der().clone()];
        let key = PrivatePkcs8KeyDer::from(own.serialize_der()).into();
        let server = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        Self { pem, server: Arc::new(server.unwrap()) }
    }

    /// Answers 204 to every message over TLS, and keeps what came.
    async fn receiver(&self) -> (String, Arc<Mutex<Vec<Value>>>) {
        let (got, acceptor) =
            (Arc::<Mutex<Vec<Value>>>::default(), TlsAcceptor::from(Arc::clone(&self.server)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/told", listener.local_addr().unwrap());
        let told = Arc::clone(&got);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // Whoever does not believe the certificate goes away again.
                let Ok(mut socket) = acceptor.accept(socket).await else { continue };
                let mut read = Vec::new();
                let body = loop {
                    let mut piece = [0; 4096];
                    let count = socket.read(&mut piece).await.unwrap_or(0);
                    read.extend_from_slice(&piece[..count]);
                    let end = read.windows(4).position(|four| four == b"\r\n\r\n");
                    match end.map(|end| serde_json::from_slice(&read[end + 4..])) {
                        Some(Ok(body)) => break body,
                        _ => assert!(count > 0, "{}", String::from_utf8_lossy(&read)),
                    }
                };
                told.lock().unwrap().push(body);
                let _ = socket.write_all(b"HTTP/1.1 204 Thanks\r\ncontent-length: 0\r\n\r\n").await;
                let _ = socket.shutdown().await;
            }
        });
        (url, got)
    }
}

fn one() -> Builder {
    System::builder().pool("aws", 1)
}

async fn webhook(stage: &Stage, id: &str, state: WebhookState) -> Option<String> {
    let reached =
        |job: &Job| job.webhook.as_ref().is_some_and(|webhook| webhook.state == state && webhook.tries > 0);
    stage.client.wait_for(id, "its webhook", PATIENCE, reached).await.unwrap().webhook.unwrap().detail
}

#[tokio::test]
async fn a_receiver_is_told_over_tls_if_the_system_trusts_its_ca() {
    let folder = tempfile::tempdir().unwrap();
    let (trusted, unknown) = (Authority::new(), Authority::new());
    let (secret, ca) = (folder.path().join("secret"), folder.path().join("ca.pem"));
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    std::fs::write(&ca, &trusted.pem).unwrap();
    let builder = one().worker_arg("--webhook-secret-file", secret.to_str().unwrap());
    let builder =
        builder.worker_arg("--allow-private-webhooks", "127.0.0.1/32").worker_arg("--webhook-pause", "200ms");
    let trusts = vec!["env".to_owned(), format!("SSL_CERT_FILE={}", ca.display())];
    let stage = Stage::start(builder.worker_started_by("aws-1", trusts)).await;
    let ((good, told), (bad, refused)) = (trusted.receiver().await, unknown.receiver().await);
    for (id, url) in [("good", &good), ("bad", &bad)] {
        let mut spec = stage.web.small_spec(id);
        spec["webhook_url"] = json!(url);
        stage.client.submit(&spec).await.unwrap();
    }
    webhook(&stage, "good", WebhookState::Delivered).await;
    assert_eq!(told.lock().unwrap()[0]["data"]["state"], "succeeded");
    let detail = webhook(&stage, "bad", WebhookState::Pending).await.unwrap();
    assert_eq!(detail, "the receiver's certificate is not trusted");
    assert_eq!(refused.lock().unwrap().len(), 0);
    stage.end().await;
}

/// A NATS server that knows one operator, and what lets somebody in.
struct Jwts {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl Jwts {
    fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }

    /// What `by` says about `of`.
    fn sign(by: &KeyPair, of: &KeyPair, nats: &Value) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "jti": of.public_key(), "iat": now, "iss": by.public_key(), "sub": of.public_key(), "name": "a test's",
            "nats": nats,
        });
        let coded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", coded(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), coded(&claims));
        let signature = URL_SAFE_NO_PAD.encode(by.sign(signed.as_bytes()).unwrap());
        format!("{signed}.{signature}")
    }

    /// Lines of the server's configuration.
    fn configuration(&self) -> String {
        let operator =
            Self::sign(&self.operator, &self.operator, &json!({ "type": "operator", "version": 2 }));
        let no_limits = ["subs", "data", "payload", "imports", "exports", "conn", "leaf"];
        let mut limits: Value = no_limits.iter().map(|name| ((*name).to_owned(), json!(-1))).collect();
        limits["wildcards"] = json!(true);
        let account = |limits: &Value| json!({ "limits": limits, "type": "account", "version": 2 });
        let system = Self::sign(&self.operator, &self.system, &account(&limits));
        for name in ["mem_storage", "disk_storage", "streams", "consumer"] {
            limits[name] = json!(-1);
        }
        let jobs = Self::sign(&self.operator, &self.account, &account(&limits));
        format!(
            "operator: {operator}\nresolver: MEMORY\nsystem_account: {}\nresolver_preload: {{ {}: {system}, {}: {jobs} }}",
            self.system.public_key(),
            self.system.public_key(),
            self.account.public_key()
        )
    }

    /// A .creds file of a user of an account.
    fn credentials(account: &KeyPair) -> String {
        let user = KeyPair::new_user();
        let nats = json!({ "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2 });
        let (jwt, seed) = (Self::sign(account, &user, &nats), user.seed().unwrap());
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

#[tokio::test]
async fn a_nats_server_that_lets_in_by_jwt_has_every_event() {
    let (jwts, folder) = (Jwts::new(), tempfile::tempdir().unwrap());
    let nats = Nats::start_with(&jwts.configuration()).unwrap();
    let file = folder.path().join("millrace.creds");
    std::fs::write(&file, Jwts::credentials(&jwts.account)).unwrap();
    let builder = one().worker_arg("--events", &nats.url());
    let stage = Stage::start(builder.worker_arg("--events-credentials-file", file.to_str().unwrap())).await;
    stage.client.submit(&stage.web.small_spec("told")).await.unwrap();
    stage.succeeded("told").await;

    let stranger = Jwts::credentials(&KeyPair::new_account());
    let refused = async_nats::ConnectOptions::with_credentials(&stranger).unwrap().connect(nats.url()).await;
    assert!(refused.is_err(), "the server asks who comes");
    let own = std::fs::read_to_string(&file).unwrap();
    let client =
        async_nats::ConnectOptions::with_credentials(&own).unwrap().connect(nats.url()).await.unwrap();
    let stream = jetstream::new(client);
    let began = Instant::now();
    loop {
        if let Ok(stream) = stream.get_stream("millrace-jobs").await {
            let last = stream.get_last_raw_message_by_subject("millrace.jobs.default.told.succeeded").await;
            if let Ok(message) = last {
                let body: Value = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(
                    (&body["type"], &body["data"]["job"]["state"]),
                    (&json!("job.succeeded"), &json!("succeeded"))
                );
                break;
            }
        }
        assert!(began.elapsed() < PATIENCE, "the last event never came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.end().await;
}
