//! A real NATS server with JetStream, killed and started again while it is fed; feeders that die; two of everything.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream;
use tempfile::TempDir;
use tokio_util::sync::DropGuard;

use super::nats::{Nats, Settings};
use super::private_server::Nats as Server;
use super::*;
use crate::store::{Accepted, Cancelled, Identity, NewJob, Outbox as _, Room, Sqlite, Store as _};

const PATIENCE: Duration = Duration::from_secs(60);

/// A store in which things happen.
struct House {
    folder: TempDir,
    store: Arc<Sqlite>,
    worker: Identity,
}

impl House {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Self::store(&folder).await;
        let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
        Self { folder, store, worker }
    }

    async fn store(folder: &TempDir) -> Arc<Sqlite> {
        let url = format!("sqlite:{}", folder.path().join("jobs.db").display());
        Arc::new(Sqlite::open(&url, 3).await.unwrap())
    }

    /// Accepts jobs, claims and cancels some of them; returns how many events that were.
    async fn happens(&self, jobs: std::ops::Range<usize>) -> usize {
        let mut events = 0;
        for n in jobs {
            let (spec, _) = millrace_wire::JobSpec::parse(br#"{"input_url":"http://h/v"}"#).unwrap();
            let (tenant, job_id) = (["acme", "b.c"][n % 2].to_owned(), format!("j.{n}").parse().unwrap());
            let new = NewJob {
                tenant: tenant.clone(),
                job_id,
                spec,
                work_seconds: 1.0,
                steal: Default::default(),
                second: None,
            };
            let room = Room { slots: 10_000, queue_max: 10_000 };
            let accepted = self.store.accept(&new, &self.worker, room).await.unwrap();
            assert!(matches!(accepted, Accepted::Created(_)));
            events += 1;
            if n % 3 == 0 {
                let cancelled = self.store.cancel(&tenant, &new.job_id).await.unwrap();
                assert!(matches!(cancelled, Cancelled::Done(_)));
            } else {
                self.store.claim(&self.worker, Duration::from_secs(600)).await.unwrap().unwrap();
            }
            events += 1;
        }
        events
    }

    /// A worker's feeder, until it is dropped.
    async fn feeder(&self, name: &str, settings: &Settings) -> (DropGuard, tokio::task::JoinHandle<()>) {
        let feeder = Feeder {
            upkeep: Self::store(&self.folder).await,
            sink: Arc::new(Nats::connect(settings.clone()).await.unwrap()),
            name: "nats".to_owned(),
            feeder: name.to_owned(),
            clock: Clock::default(),
            metrics: Arc::new(Metrics::new().unwrap()),
        };
        let until = CancellationToken::new();
        let task = tokio::spawn(feeder.run(until.clone()));
        (until.drop_guard(), task)
    }
}

fn settings(url: String) -> Settings {
    Settings {
        servers: vec![url],
        prefix: "millrace.jobs".to_owned(),
        stream: "millrace-jobs".to_owned(),
        credentials: None,
        ca: None,
    }
}

/// What a stream holds: id, subject and body of each message, in order.
async fn stored(
    options: async_nats::ConnectOptions,
    url: &str,
    count: usize,
) -> Vec<(String, String, Value)> {
    let client = options.connect(url).await.unwrap();
    let jetstream = jetstream::new(client);
    let began = Instant::now();
    loop {
        if let Ok(mut stream) = jetstream.get_stream("millrace-jobs").await
            && let Ok(info) = stream.info().await
            && info.state.messages as usize >= count
        {
            let (mut all, last) = (Vec::new(), info.state.last_sequence);
            for sequence in info.state.first_sequence..=last {
                let message = stream.get_raw_message(sequence).await.unwrap();
                let id = message.headers.get("Nats-Msg-Id").unwrap().as_str().to_owned();
                let body = serde_json::from_slice(&message.payload).unwrap();
                all.push((id, message.subject.to_string(), body));
            }
            return all;
        }
        assert!(began.elapsed() < PATIENCE, "{count} events never came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every event once, and those of one job in the order in which they happened.
fn assert_whole(messages: &[(String, String, Value)], count: usize) {
    let ids: BTreeSet<_> = messages.iter().map(|(id, _, _)| id).collect();
    assert_eq!((messages.len(), ids.len()), (count, count), "the stream drops what it has");
    let mut last = BTreeMap::new();
    for (id, subject, body) in messages {
        let number: i64 = id.rsplit('_').next().unwrap().parse().unwrap();
        let job = subject.rsplit_once('.').unwrap().0;
        let before = last.insert(job.to_owned(), number);
        assert!(before.is_none_or(|before| before < number), "{subject}: {before:?}, then {number}");
        let kind = subject.rsplit('.').next().unwrap();
        assert_eq!(body["type"], format!("job.{kind}"));
        assert_eq!(
            body["data"]["job"]["job_id"].as_str().unwrap().replace('.', "%2E"),
            job.rsplit('.').next().unwrap()
        );
        let tenant = subject.split('.').nth(2).unwrap();
        assert!(["acme", "b%2Ec"].contains(&tenant), "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_arrives_in_order_whatever_dies_meanwhile() {
    let mut server = Server::start().unwrap();
    let house = House::open().await;
    let settings = settings(server.url());
    // The sink is known before anything happens: what is from before it is not told.
    assert_eq!(house.store.feed("nats", "nobody", Duration::ZERO).await.unwrap(), Some(0));
    let one = house.feeder("one", &settings).await;
    let two = house.feeder("two", &settings).await;
    let mut count = house.happens(0..30).await;

    // The server goes and comes back with what it had.
    server.kill().unwrap();
    count += house.happens(30..60).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.restart().unwrap();
    count += house.happens(60..90).await;
    stored(async_nats::ConnectOptions::new(), &server.url(), 1).await;

    // Both workers are killed in the middle of it: their lease has to run out.
    one.1.abort();
    two.1.abort();
    server.kill().unwrap();
    count += house.happens(90..120).await;
    server.restart().unwrap();
    let heir = house.feeder("heir", &settings).await;
    count += house.happens(120..140).await;
    let messages = stored(async_nats::ConnectOptions::new(), &server.url(), count).await;
    assert_whole(&messages, count);

    // One that ends in order leaves it to the next at once; a cursor that lost its way repeats, and the stream drops that.
    drop(heir.0);
    heir.1.await.unwrap();
    assert_eq!(
        house.store.feed("nats", "five", Duration::ZERO).await.unwrap(),
        Some(messages_end(&messages))
    );
    let again = Feeder {
        upkeep: House::store(&house.folder).await,
        sink: Arc::new(Nats::connect(settings.clone()).await.unwrap()),
        name: "another sink".to_owned(),
        feeder: "six".to_owned(),
        clock: Clock::default(),
        metrics: Arc::new(Metrics::new().unwrap()),
    };
    let events = house.store_events().await;
    let began = Instant::now();
    loop {
        let (to, why) = again.send(&events).await;
        if to == messages_end(&messages) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{why:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_whole(&stored(async_nats::ConnectOptions::new(), &server.url(), count).await, count);
}

impl House {
    async fn store_events(&self) -> Vec<SinkEvent> {
        self.store.settled(0, 10_000).await.unwrap()
    }
}

fn messages_end(messages: &[(String, String, Value)]) -> i64 {
    messages.iter().map(|(id, _, _)| id.rsplit('_').next().unwrap().parse().unwrap()).max().unwrap()
}

/// A sink that takes nothing of some jobs.
struct Picky(Mutex<Vec<String>>);

#[async_trait]
impl Sink for Picky {
    async fn publish(&self, message: Message) -> Result<(), Error> {
        if message.job_id.as_str() == "j.1" && message.kind != "accepted" {
            return Err(Error("not that one".to_owned()));
        }
        self.0.lock().unwrap().push(message.id);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_sink_is_never_passes_an_event_that_it_has_not() {
    let house = House::open().await;
    house.happens(0..4).await;
    let picky = Arc::new(Picky(Mutex::default()));
    let feeder = Feeder {
        upkeep: House::store(&house.folder).await,
        sink: Arc::clone(&picky) as _,
        name: "picky".to_owned(),
        feeder: "f".to_owned(),
        clock: Clock::default(),
        metrics: Arc::new(Metrics::new().unwrap()),
    };
    let events = house.store_events().await;
    let refused =
        events.iter().find(|event| event.job_id.as_str() == "j.1" && event.kind != "accepted").unwrap();
    let (to, why) = feeder.send(&events).await;
    assert_eq!(why.as_deref(), Some("not that one"));
    assert!(to < refused.seq && events.iter().any(|event| event.seq == to), "{to}");
    let told = picky.0.lock().unwrap().len();
    assert_eq!(told, events.len() - 1, "the jobs beside it are told all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_by_its_certificate() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.signed_by(&key, &issuer).unwrap();
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        std::fs::write(files.path().join(name), text).unwrap();
        files.path().join(name)
    };
    let (crt, key) = (write("crt", own.pem()), write("key", key.serialize_pem()));
    let ca = write("ca", authority_certificate.pem());
    let server = Server::start_with(&format!("tls {{ cert_file: {crt:?}, key_file: {key:?} }}")).unwrap();
    let house = House::open().await;
    assert_eq!(house.store.feed("nats", "nobody", Duration::ZERO).await.unwrap(), Some(0));
    let url = server.url().replace("nats://", "tls://");
    let strange = house.feeder("strange", &settings(url.clone())).await;
    let count = house.happens(0..3).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(strange.0);
    strange.1.await.unwrap();
    assert_eq!(
        house.store.feed("nats", "x", Duration::ZERO).await.unwrap(),
        Some(0),
        "nobody vouches for it"
    );
    let _feeder = house.feeder("f", &Settings { ca: Some(ca.clone()), ..settings(url.clone()) }).await;
    let options = async_nats::ConnectOptions::new().add_root_certificates(ca);
    assert_whole(&stored(options, &url, count).await, count);
}
