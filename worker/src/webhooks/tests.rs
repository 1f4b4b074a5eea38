//! Real receivers on loopback: slow, broken, gone; and every signature checked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use millrace_wire::job::Job;
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::http::tests::Served;
use crate::source::resolve::Lookup;

const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What a receiver does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Status(u16),
    /// 200 after so many failures of this status.
    After(u32, u16),
    /// Reads the request and hangs up.
    Close,
    /// Never.
    Silence,
    /// Elsewhere.
    Redirect,
    /// 200 and a body without end.
    Endless,
}

#[derive(Debug, Clone)]
struct Got {
    id: String,
    event: JobEvent<Job>,
    at: Instant,
}

/// A receiver that checks what it gets.
struct Receiver {
    address: std::net::SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    connections: Arc<AtomicU32>,
}

impl Receiver {
    async fn start(answers: Answers) -> Self {
        Self::on("127.0.0.1:0", answers).await
    }

    async fn on(address: &str, answers: Answers) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, connections) = (Arc::<Mutex<Vec<Got>>>::default(), Arc::<AtomicU32>::default());
        tokio::spawn({
            let (got, connections) = (Arc::clone(&got), Arc::clone(&connections));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let number = connections.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(serve(stream, answers, number, Arc::clone(&got)));
                }
            }
        });
        Self { address, got, connections }
    }

    fn url(&self) -> String {
        format!("http://{}/told", self.address)
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    async fn until(&self, count: usize) -> Vec<Got> {
        let began = Instant::now();
        while self.got().len() < count {
            assert!(began.elapsed() < PATIENCE, "{} of {count} came", self.got().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.got()
    }
}

async fn serve(mut stream: TcpStream, answers: Answers, number: u32, got: Arc<Mutex<Vec<Got>>>) {
    let mut read = Vec::new();
    let (head, length) = loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        read.extend_from_slice(&piece[..count]);
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(read[..end].to_vec()).unwrap();
        let length: usize = field(&head, "content-length").parse().unwrap();
        if read.len() >= end + 4 + length {
            read.drain(..end + 4);
            break (head, length);
        }
    };
    let body = &read[..length];
    assert!(head.starts_with("POST /told HTTP/1.1"), "{head}");
    assert_eq!(field(&head, "content-type"), "application/json");
    let (id, timestamp) = (field(&head, "webhook-id"), field(&head, "webhook-timestamp"));
    let age = jiff::Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(&SECRET[6..]).unwrap()).unwrap();
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    let event = serde_json::from_slice::<JobEvent<Job>>(body);
    let forged =
        field(&head, "webhook-signature") != signature || !(-5..=30).contains(&age) || id.contains('.');
    let Some(event) = event.ok().filter(|_| !forged) else {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        return;
    };
    got.lock().unwrap().push(Got { id, event, at: Instant::now() });
    let status = match answers {
        Answers::Status(status) => status,
        Answers::After(failures, status) if number < failures => status,
        Answers::After(..) => 200,
        Answers::Close => return,
        Answers::Silence => return std::future::pending().await,
        Answers::Redirect => {
            let to = b"HTTP/1.1 307 There\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
            return stream.write_all(to).await.unwrap();
        }
        Answers::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            while stream.write_all(b"400\r\n").await.is_ok() {
                if stream.write_all(&[b'x'; 1026]).await.is_err() {
                    return;
                }
            }
            return;
        }
    };
    let _ = stream.write_all(format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
}

fn field(head: &str, name: &str) -> String {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned());
    found.collect::<Vec<_>>().join(",")
}

fn loopback() -> Vec<IpNet> {
    vec!["127.0.0.1/32".parse().unwrap()]
}

/// A worker's HTTP side that tells.
struct Telling {
    served: Served,
    settings: Settings,
}

impl Telling {
    async fn start() -> Self {
        let timeout = Duration::from_millis(800);
        let receivers = Receivers::new(true, loopback(), timeout).unwrap();
        let served = Served::with(|app| app.receivers = Arc::new(receivers)).await;
        let secret_file = Some(served.folder.path().join("secret"));
        std::fs::write(secret_file.as_ref().unwrap(), SECRET).unwrap();
        let (pause, window) = (Duration::from_millis(20), Duration::from_secs(60));
        let settings = Settings { secret_file, allow_private: loopback(), timeout, pause, window };
        Self { served, settings }
    }

    /// A worker's telling, until it is dropped.
    fn teller(&self) -> tokio_util::sync::DropGuard {
        let app = Arc::clone(&self.served.app);
        let receivers = Arc::clone(&app.receivers);
        let teller = Teller::new(app, self.settings.clone(), receivers).unwrap().unwrap();
        let until = CancellationToken::new();
        tokio::spawn(Arc::new(teller).run(until.clone()));
        until.drop_guard()
    }

    /// Submits a job and ends it.
    async fn ended(&self, id: &str, url: &str) {
        let spec = serde_json::json!({ "job_id": id, "input_url": "http://h/v", "webhook_url": url });
        let answer = self.served.ask("POST", "/jobs").body(spec.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
        let cancelled = self.served.ask("DELETE", &format!("/jobs/{id}")).send().await.unwrap();
        assert_eq!(cancelled.status(), 200);
    }

    async fn stands(&self, id: &str) -> millrace_wire::job::Webhook {
        let job = self.served.get(&format!("/jobs/{id}")).await.text().await.unwrap();
        serde_json::from_str::<Job>(&job).unwrap().webhook.unwrap()
    }

    async fn until(&self, id: &str, state: WebhookState) -> millrace_wire::job::Webhook {
        let began = Instant::now();
        loop {
            let stands = self.stands(id).await;
            if stands.state == state {
                return stands;
            }
            assert!(began.elapsed() < PATIENCE, "{id}: {stands:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_told_with_a_signature_and_shown_as_told() {
    let (telling, receiver) = (Telling::start().await, Receiver::start(Answers::Status(204)).await);
    telling.ended("j", &receiver.url()).await;
    assert_eq!(telling.stands("j").await.state, WebhookState::Pending, "nobody tells yet");
    let _teller = telling.teller();
    let told = telling.until("j", WebhookState::Delivered).await;
    assert_eq!((told.tries, told.detail, told.next_at), (1, None, None));
    let got = receiver.got();
    assert_eq!(got.len(), 1);
    let event = &got[0].event;
    assert_eq!((event.type_.as_str(), event.data.job_id.as_str()), ("job.cancelled", "j"));
    assert_eq!(event.data.state, millrace_wire::job::State::Cancelled);
    assert!(event.timestamp.parse::<jiff::Timestamp>().is_ok(), "{}", event.timestamp);
    let text = telling.served.app.metrics.text(&telling.served.app.load.report()).unwrap();
    assert!(text.contains("millrace_worker_webhooks_total{outcome=\"delivered\"} 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_is_told_again_under_the_same_name() {
    let telling = Telling::start().await;
    let _tellers = (telling.teller(), telling.teller());
    for (job, answers) in [("errs", Answers::After(3, 500)), ("limits", Answers::After(1, 429))] {
        let receiver = Receiver::start(answers).await;
        telling.ended(job, &receiver.url()).await;
        let told = telling.until(job, WebhookState::Delivered).await;
        let got = receiver.got();
        assert_eq!(got.len(), told.tries as usize, "{job}");
        assert!(got.len() > 1 && got.iter().all(|one| one.id == got[0].id), "{job}: {got:?}");
        if job == "errs" {
            assert!(
                got[3].at - got[2].at > Duration::from_millis(60),
                "the third pause is four times the first"
            );
        }
    }
    for (job, answers, says) in [
        ("closes", Answers::Close, "the connection to the receiver broke"),
        ("redirects", Answers::Redirect, "the receiver answered 307"),
        ("refuses", Answers::Status(404), "the receiver answered 404"),
        ("is silent", Answers::Silence, "the receiver did not answer within 800ms"),
    ] {
        let (receiver, job) = (Receiver::start(answers).await, job.replace(' ', "-"));
        telling.ended(&job, &receiver.url()).await;
        receiver.until(2).await;
        let stands = telling.stands(&job).await;
        assert_eq!((stands.state, stands.detail.as_deref()), (WebhookState::Pending, Some(says)), "{job}");
        assert!(stands.next_at.is_some());
    }
    let endless = Receiver::start(Answers::Endless).await;
    telling.ended("endless", &endless.url()).await;
    telling.until("endless", WebhookState::Delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_takes_is_given_up_and_a_receiver_that_is_gone_at_once() {
    let mut telling = Telling::start().await;
    telling.settings.window = Duration::from_secs(3);
    let _teller = telling.teller();
    let (broken, gone) =
        (Receiver::start(Answers::Status(503)).await, Receiver::start(Answers::Status(410)).await);
    telling.ended("broken", &broken.url()).await;
    telling.ended("gone", &gone.url()).await;
    let over = telling.until("broken", WebhookState::GivenUp).await;
    assert_eq!(over.detail.as_deref(), Some("the receiver answered 503"));
    assert!(over.tries >= 2 && over.next_at.is_none(), "{over:?}");
    let over = telling.until("gone", WebhookState::GivenUp).await;
    assert_eq!((over.tries, over.detail.as_deref()), (1, Some("the receiver answered 410")));
    assert_eq!(gone.got().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_receiver_does_not_keep_the_others_waiting() {
    let telling = Telling::start().await;
    let (slow, quick) =
        (Receiver::start(Answers::Silence).await, Receiver::start(Answers::Status(200)).await);
    for n in 0..40 {
        telling.ended(&format!("slow-{n}"), &slow.url()).await;
    }
    for n in 0..20 {
        telling.ended(&format!("quick-{n}"), &quick.url()).await;
    }
    let began = Instant::now();
    let _teller = telling.teller();
    quick.until(20).await;
    // In turns of a few, the forty would take eight seconds.
    assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
    assert!(slow.connections.load(Ordering::SeqCst) < 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_tells_leaves_it_to_the_next() {
    let mut telling = Telling::start().await;
    // What a killed worker leaves: a claim, and perhaps a message that was taken without anybody noting it.
    let receiver = Receiver::start(Answers::Status(200)).await;
    telling.ended("j", &receiver.url()).await;
    let wanted = Wanted { limit: 9, per_receiver: 9, busy: Vec::new(), hold: Duration::from_millis(300) };
    let claim = telling.served.app.upkeep.claim_webhooks(&wanted).await.unwrap().remove(0);
    let message = Message {
        id: message_id(&claim.job.uid, claim.seq),
        body: serde_json::to_vec(&JobEvent {
            type_: "job.cancelled".to_owned(),
            timestamp: shown(claim.at_ms),
            data: seen_by_clients(&telling.served.app, &claim.tenant, claim.job.clone()).await.ok().unwrap(),
        })
        .unwrap(),
    };
    let secrets = Secrets::read(telling.settings.secret_file.as_deref().unwrap()).unwrap();
    telling
        .served
        .app
        .receivers
        .send(&receiver.url(), &message, &secrets, jiff::Timestamp::now())
        .await
        .unwrap();

    telling.settings.pause = Duration::from_millis(50);
    let _teller = telling.teller();
    let told = telling.until("j", WebhookState::Delivered).await;
    let got = receiver.got();
    assert_eq!((told.tries, got.len()), (2, 2));
    assert_eq!(got[0].id, got[1].id, "so that the receiver can tell that it is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_can_change_while_it_runs() {
    let telling = Telling::start().await;
    let _teller = telling.teller();
    let receiver = Receiver::start(Answers::Status(200)).await;
    let file = telling.settings.secret_file.clone().unwrap();
    std::fs::write(&file, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
    telling.ended("j", &receiver.url()).await;
    let began = Instant::now();
    while receiver.connections.load(Ordering::SeqCst) < 2 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(receiver.got().is_empty(), "it knows the old one only, and refuses");
    std::fs::write(&file, SECRET).unwrap();
    telling.until("j", WebhookState::Delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_name_only_who_may_be_told() {
    let telling = Telling::start().await;
    let submit = async |served: &Served, url: &str| {
        let spec = serde_json::json!({ "input_url": "http://h/v", "webhook_url": url });
        let answer = served.ask("POST", "/jobs").body(spec.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        let problem: millrace_wire::Problem = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!((status, problem.field.as_deref()), (422, Some("webhook_url")), "{url}");
        problem.detail
    };
    for (url, says) in [
        ("https://10.0.0.1/x", "private"),
        ("https://127.0.0.2/x", "loopback"),
        ("https://169.254.169.254/latest", "a metadata service"),
        ("https://[::ffff:10.0.0.1]/x", "private"),
        ("https://0x7f000002/x", "loopback"),
        ("http://93.184.216.34/x", "must be https"),
        ("https://user:secret@h.example/x", "no user and no password"),
        ("https://", "no URL"),
    ] {
        let detail = submit(&telling.served, url).await;
        assert!(detail.contains(says) && !detail.contains("secret@"), "{url}: {detail}");
    }
    let silent = Served::start().await;
    assert!(submit(&silent, "https://h.example/x").await.contains("--webhook-secret-file"));
    let strict = Receivers::new(true, Vec::new(), Duration::from_secs(1)).unwrap();
    assert!(strict.check("http://h.example/x").unwrap_err().contains("must be https"));
    assert_eq!(strict.check("https://h.example:8443/x?token=1"), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_that_was_checked_is_the_one_that_is_told() {
    // A name that answers with another address each time: one that is allowed, then one beside it that is not.
    let fine = Receiver::start(Answers::Status(200)).await;
    let inside = Receiver::on(&format!("127.0.0.2:{}", fine.address.port()), Answers::Status(200)).await;
    let (asked, rebinds) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(true)));
    let lookup: Lookup = {
        let (asked, rebinds) = (Arc::clone(&asked), Arc::clone(&rebinds));
        Arc::new(move |_| {
            let odd = asked.fetch_add(1, Ordering::SeqCst) % 2 == 1;
            let last = if odd && rebinds.load(Ordering::SeqCst) { 2 } else { 1 };
            Box::pin(async move { Ok(vec![IpAddr::from([127, 0, 0, last])]) })
        })
    };
    let receivers = Receivers::resolving(true, loopback(), Duration::from_secs(2), Some(&lookup)).unwrap();
    let url = format!("http://rebinds.example:{}/told", fine.address.port());
    let telling = Telling::start().await;
    telling.ended("j", &fine.url()).await;
    let row = telling.served.app.store.job("default", &"j".parse().unwrap()).await.unwrap().unwrap();
    let data = seen_by_clients(&telling.served.app, "default", row).await.ok().unwrap();
    let event = JobEvent { type_: "job.x".to_owned(), timestamp: String::new(), data };
    let message = Message { id: "m".to_owned(), body: serde_json::to_vec(&event).unwrap() };
    let secrets = Secrets::read(telling.settings.secret_file.as_deref().unwrap()).unwrap();
    let mut came: HashMap<bool, u32> = HashMap::new();
    for _ in 0..6 {
        let sent = receivers.send(&url, &message, &secrets, jiff::Timestamp::now()).await;
        if let Err(refusal) = &sent {
            assert_eq!(refusal.detail, "leads to an address that is refused: loopback");
        }
        *came.entry(sent.is_ok()).or_default() += 1;
    }
    assert_eq!(came, HashMap::from([(true, 3), (false, 3)]));
    assert_eq!(
        asked.load(Ordering::SeqCst),
        6,
        "once for each, and nobody asks between the check and the connection"
    );
    assert_eq!((fine.got().len(), inside.connections.load(Ordering::SeqCst)), (3, 0));
}
