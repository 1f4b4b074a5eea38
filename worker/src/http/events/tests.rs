use std::time::Instant;

use futures::StreamExt as _;
use millrace_wire::job::Phase;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::Semaphore;

use super::super::tests::Served;
use super::*;
use crate::store::{AttemptEnd, Beat, Claim, TENANT_DEFAULT};

/// Longest that anything is waited for.
const PATIENT: Duration = Duration::from_secs(20);

/// One message as it came.
#[derive(Debug, Clone)]
struct Message {
    kind: String,
    id: Option<i64>,
    update: JobUpdate,
}

/// A reader of one stream.
struct Reader {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Reader {
    async fn open(served: &Served, id: &str, last: Option<&str>) -> Self {
        let mut request = served.ask("GET", &format!("/jobs/{id}/events"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(answer.headers()["x-accel-buffering"], "no");
        Self { body: answer.bytes_stream().boxed(), text: String::new() }
    }

    /// The next message; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                let field =
                    |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let Some(data) = field("data") else { continue };
                let id = field("id").map(|id| id.parse().unwrap());
                let update = serde_json::from_str(data).unwrap();
                return Some(Message { kind: field("event").unwrap().to_owned(), id, update });
            }
            let piece = tokio::time::timeout(PATIENT, self.body.next()).await.expect("a message or an end");
            self.text += std::str::from_utf8(&piece?.unwrap()).unwrap();
        }
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            let message = self.next().await.unwrap_or_else(|| panic!("it ended before {what}"));
            if wanted(&message) {
                return message;
            }
        }
    }

    async fn rest(mut self) -> Vec<Message> {
        let mut all = Vec::new();
        while let Some(message) = self.next().await {
            all.push(message);
        }
        all
    }
}

fn ids(messages: &[Message]) -> Vec<i64> {
    messages.iter().filter_map(|message| message.id).collect()
}

async fn beat(served: &Served, claim: &Claim, percent: f64) {
    let progress = Progress { percent, ..Progress::default() };
    let beats = [Beat { lease: claim.lease.clone(), progress }];
    served.app.store.heartbeat(&served.app.identity, &beats, PATIENT).await.unwrap();
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENT, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn every_change_is_told_once_in_order_and_a_reader_that_comes_back_gets_the_rest() {
    let served = Served::start().await;
    let other = served.accept("other").await;
    let foreign = served.app.store.events(&other.uid, 0, 9).await.unwrap()[0].seq;
    served.app.store.cancel(TENANT_DEFAULT, &other.job_id).await.unwrap();
    served.accept("j").await;
    let mut reader = Reader::open(&served, "j", None).await;
    let mut all = vec![reader.next().await.unwrap()];
    assert_eq!((all[0].kind.as_str(), all[0].update.state), ("state", JobState::Queued));
    assert!(all[0].update.worker.is_none());

    let claim = served.claim().await;
    for phase in [Phase::Probing, Phase::Encoding] {
        assert!(served.app.store.enter(&claim.lease, phase, None).await.unwrap());
    }
    all.push(reader.until("it encodes", |m| m.update.phase == Some(Phase::Encoding)).await);
    for percent in [20.0, 60.0] {
        beat(&served, &claim, percent).await;
        let told = reader.until("its progress", |m| m.update.progress.percent == percent).await;
        assert_eq!((told.kind.as_str(), told.id), ("progress", None));
    }
    served.publish(&claim, millrace_wire::job::Outputs::default(), &[]).await;
    let rest = reader.rest().await;
    let (last, end) = (&rest[rest.len() - 2], &rest[rest.len() - 1]);
    assert_eq!((last.kind.as_str(), last.update.state), ("state", JobState::Succeeded));
    assert_eq!((end.kind.as_str(), &end.update, end.id), ("end", &last.update, None));
    assert_eq!(last.update.progress.percent, 100.0);

    let uid = served.app.store.job(TENANT_DEFAULT, &claim.job_id).await.unwrap().unwrap().uid;
    let known: Vec<i64> =
        served.app.store.events(&uid, 0, 99).await.unwrap().iter().map(|event| event.seq).collect();
    for (at, id) in known.iter().enumerate().take(known.len() - 1) {
        let missed = Reader::open(&served, "j", Some(&id.to_string())).await.rest().await;
        assert_eq!(ids(&missed), known[at + 1..], "after {id}");
        assert_eq!(missed.last().unwrap().kind, "end");
        // Each says how the job stood then, not how it stands now.
        let states: Vec<_> =
            missed.iter().map(|message| (message.update.state, message.update.phase)).collect();
        let running = |phase| (JobState::Running, Some(phase));
        let whole = [
            running(Phase::Source),
            running(Phase::Probing),
            running(Phase::Encoding),
            running(Phase::Publishing),
            (JobState::Succeeded, None),
            (JobState::Succeeded, None),
        ];
        assert_eq!(states, whole[at..], "after {id}");
    }
    let last = *known.last().unwrap();
    for done in [last.to_string(), (last + 7).to_string()] {
        let answer = served.ask("GET", "/jobs/j/events").header("last-event-id", done).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["cache-control"]),
            (204, &"no-store".parse().unwrap())
        );
    }
    for unknown in ["", "x", "-1", "0", "1e3", "99999999999999999999", &foreign.to_string()] {
        let told = Reader::open(&served, "j", Some(unknown)).await.rest().await;
        assert_eq!(ids(&told), [last], "{unknown:?} counts as none");
        assert_eq!(told.len(), 2);
    }
}

#[tokio::test]
async fn a_long_history_is_told_page_by_page_and_progress_begins_again_with_an_attempt() {
    let served = Served::start().await;
    let row = served.accept("j").await;
    for _ in 0..PAGE {
        let claim = served.claim().await;
        served.app.store.end(&claim.lease, &AttemptEnd::Released).await.unwrap();
    }
    let claim = served.claim().await;
    beat(&served, &claim, 30.0).await;
    let first = served.app.store.events(&row.uid, 0, 1).await.unwrap()[0].seq;
    let mut reader = Reader::open(&served, "j", Some(&first.to_string())).await;
    let mut seen = Vec::new();
    for _ in 0..=2 * PAGE {
        seen.extend(reader.next().await.unwrap().id);
    }
    assert!(seen.len() == 2 * PAGE as usize + 1 && seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
    let told = reader.next().await.unwrap();
    assert_eq!(
        (told.kind.as_str(), told.update.progress.percent, told.update.attempt),
        ("progress", 30.0, PAGE + 1)
    );

    // What runs here is told from here, and the row that lags behind takes nothing back.
    let running = served.app.leases.enter(&claim.lease, &claim.job_id, 1.0, tokio::time::Instant::now());
    running.progress(Progress { percent: 77.0, ..Progress::default() });
    reader.until("the worker's own progress", |m| m.update.progress.percent == 77.0).await;
    assert!(served.app.store.enter(&claim.lease, Phase::Publishing, None).await.unwrap());
    let publishing = reader.until("the phase", |m| m.update.phase == Some(Phase::Publishing)).await;
    assert_eq!((publishing.kind.as_str(), publishing.update.progress.percent), ("state", 77.0));

    served.app.leases.leave(&claim.lease);
    served.app.store.end(&claim.lease, &AttemptEnd::Released).await.unwrap();
    let again = served.claim().await;
    let told = reader.until("another attempt", |m| m.update.attempt == PAGE + 2).await;
    assert_eq!((told.update.progress.percent, again.lease.epoch), (0.0, u64::from(PAGE) + 2));
}

#[tokio::test]
async fn streams_are_bounded_and_leave_nothing_when_their_readers_go() {
    let served = Served::with(|app| app.streams = Arc::new(Semaphore::new(2))).await;
    served.accept("j").await;
    let open = || served.app.metrics.event_streams.get();
    for _ in 0..5 {
        let mut readers =
            vec![Reader::open(&served, "j", None).await, Reader::open(&served, "j", None).await];
        for reader in &mut readers {
            reader.next().await.unwrap();
        }
        assert_eq!(open(), 2);
        let refused = served.get("/jobs/j/events").await;
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["retry-after"]),
            (503, &"5".parse().unwrap())
        );
        assert_eq!(open(), 2);
        drop(readers);
        eventually("both streams are gone", || open() == 0 && served.app.streams.available_permits() == 2)
            .await;
    }
}

#[tokio::test]
async fn a_worker_that_drains_ends_its_streams_and_the_reader_goes_on_elsewhere() {
    let served = Served::start().await;
    served.accept("j").await;
    let mut reader = Reader::open(&served, "j", None).await;
    let first = reader.next().await.unwrap();
    served.app.load.drain();
    let rest = reader.rest().await;
    assert!(rest.iter().all(|message| message.kind != "end"), "{rest:?}");
    // Whoever comes to a worker that drains, because there is no other, still learns what is new.
    served.claim().await;
    let rest = Reader::open(&served, "j", Some(&first.id.unwrap().to_string())).await.rest().await;
    assert_eq!(rest.iter().map(|message| message.update.state).collect::<Vec<_>>(), [JobState::Running]);
}

#[tokio::test]
async fn a_stream_outlives_a_store_that_is_away() {
    let served = Served::start().await;
    served.accept("j").await;
    let mut reader = Reader::open(&served, "j", None).await;
    let mut all = vec![reader.next().await.unwrap()];
    let url = format!("sqlite:{}", served.folder.path().join("jobs.db").display());
    let mut store = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("ALTER TABLE event RENAME TO away").execute(&mut store).await.unwrap();
    let errors = || served.app.metrics.store_errors.with_label_values(&["unavailable"]).get();
    eventually("it asked twice in vain", || errors() >= 2).await;
    let refused = served.get("/jobs/j/events").await;
    assert_eq!(refused.status(), 503, "a new one is told");
    sqlx::query("ALTER TABLE away RENAME TO event").execute(&mut store).await.unwrap();
    let claim = served.claim().await;
    served.publish(&claim, millrace_wire::job::Outputs::default(), &[]).await;
    all.extend(reader.rest().await);
    let seen = ids(&all);
    assert!(seen.len() == 4 && seen.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
}

#[tokio::test]
async fn a_reader_that_reads_nothing_costs_one_page() {
    let served = Served::start().await;
    let row = served.accept("j").await;
    for _ in 0..PAGE {
        let claim = served.claim().await;
        served.app.store.end(&claim.lease, &AttemptEnd::Released).await.unwrap();
    }
    let app = Arc::clone(&served.app);
    let _open = Open::new(&app).map_err(|_| ()).unwrap();
    let ready = VecDeque::new();
    let tenant = TENANT_DEFAULT.to_owned();
    let mut listener =
        Listener { app, tenant, row, after: 0, told: None, ready, rests: false, ended: false, _open };
    drop(listener.next().await.unwrap());
    assert_eq!(listener.ready.len(), PAGE as usize - 1);
}
