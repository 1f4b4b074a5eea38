//! Two pools with a bucket each on a real S3 server, in a process of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_bench::process::{Process, Spawner, Spec};
use millrace_bench::{Client, System};
use millrace_object_server::{ACCESS_KEY, Fault, SECRET_KEY, Seen, What};
use millrace_wire::job::{FailureCode, Job, State, UploadTicket};
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, HeaderMap};
use serde_json::json;

use crate::playlist::{Master, Media};
use crate::stage::{PATIENCE, SMALL, Stage, clip};

/// The server's process, and where its files and credentials are.
pub(crate) struct Store {
    pub(crate) process: Process,
    client: Client,
    folder: tempfile::TempDir,
    _spawner: Spawner,
}

impl Store {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spawner = Spawner::new(env!("CARGO_BIN_EXE_millrace-bench").into()).unwrap();
        let root = folder.path().join("s3");
        let args =
            ["object-server", "--root", root.to_str().unwrap(), "--bucket", "in-aws", "--bucket", "in-gcp"];
        let spec = Spec {
            name: "object-server".to_owned(),
            program: env!("CARGO_BIN_EXE_millrace-bench").into(),
            args: args.map(Into::into).to_vec(),
            logs: folder.path().to_owned(),
        };
        let mut process = spawner.start(spec).unwrap();
        let ready = process.ready(PATIENCE).await.unwrap();
        let client = Client::new(&ready.http).unwrap();
        let store = Self { process, client, folder, _spawner: spawner };
        store.write_credentials(SECRET_KEY);
        store
    }

    /// Puts a secret into the file in which workers find their credentials.
    pub(crate) fn write_credentials(&self, secret: &str) -> PathBuf {
        let path = self.folder.path().join("credentials");
        let text = format!("[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={secret}\n");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn url(&self) -> String {
        self.client.url("/").unwrap().to_string()
    }

    /// `--objects`: a bucket for each pool.
    pub(crate) fn places(&self) -> String {
        let credentials = self.folder.path().join("credentials");
        self.places_with(&credentials, "")
    }

    /// The same with a file of credentials and what else is said of both places.
    pub(crate) fn places_with(&self, credentials: &Path, more: &str) -> String {
        let credentials = credentials.display();
        let query = format!("endpoint={}&region=eu-west-1&credentials={credentials}{more}", self.url());
        format!("aws=s3://in-aws/millrace?{query},gcp=s3://in-gcp?{query}")
    }

    pub(crate) fn files(&self, bucket: &str) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path.display().to_string()) }
            }
        }
        let mut found = Vec::new();
        walk(&self.folder.path().join("s3").join(bucket), &mut found);
        found
    }

    pub(crate) async fn set(&self, faults: &[Fault]) {
        let body = serde_json::to_vec(faults).unwrap();
        self.client.send(Method::PUT, "/.faults", HeaderMap::new(), body).await.unwrap().success().unwrap();
    }

    pub(crate) async fn seen(&self) -> Vec<Seen> {
        self.client.get("/.seen").await.unwrap().success().unwrap().json().unwrap()
    }
}

async fn stage(store: &Store) -> Stage {
    let builder = System::builder().pool("aws", 1).pool("gcp", 1).worker_arg("--presign", "all");
    Stage::start(builder.worker_arg("--objects", &store.places())).await
}

pub(crate) async fn upload(stage: &Stage, store: &Store) -> UploadTicket {
    let ticket = stage.client.upload_ticket("clip.mp4", "video/mp4").await.unwrap();
    assert!(ticket.upload_url.starts_with(&store.url()), "past the gateway: {ticket:?}");
    let put = stage.client.put_file(&ticket, "video/mp4", &clip(&SMALL).await, |_| {}).await.unwrap();
    put.success().unwrap();
    ticket
}

#[tokio::test]
async fn a_file_goes_past_the_workers_into_its_pools_bucket_and_plays_from_there() {
    let store = Store::start().await;
    let stage = stage(&store).await;
    let ticket = upload(&stage, &store).await;
    stage.client.submit(&json!({ "job_id": "j", "input_path": ticket.input_path })).await.unwrap();
    let job = stage.succeeded("j").await;
    let outputs = job.outputs.unwrap();
    assert!((outputs.duration_s - SMALL.seconds).abs() < 0.1);
    assert!(job.outputs_until > job.finished_at);

    // What it made lies in the bucket of the pool that accepted it, whoever ran it.
    let events = stage.client.get("/jobs/j/events").await.unwrap().text();
    let accepted = if events.contains("\"pool\":\"gcp\"") { "in-gcp" } else { "in-aws" };
    let holds = |bucket: &str| store.files(bucket).iter().filter(|file| file.contains("/jobs/")).count();
    assert!(holds(accepted) > 3, "{:?} {:?}", store.files("in-aws"), store.files("in-gcp"));
    assert_eq!(holds("in-aws").min(holds("in-gcp")), 0, "and nowhere else");

    // Playlists come through the gateway, segments from the store itself.
    let hls = outputs.hls.unwrap();
    let text = async |path: &str| stage.client.get(path).await.unwrap().success().unwrap().text();
    let master = Master::parse(&text(&hls).await);
    let playlist = Media::parse(&text(&hls.replace("master.m3u8", &master.variants[0].uri)).await);
    store.seen().await;
    let segment = stage.client.get(&hls.replace("master.m3u8", &playlist.segments[0].1)).await.unwrap();
    let segment = segment.success().unwrap();
    assert!(segment.pool().is_none(), "the store's own answer: {:?}", segment.headers);
    assert_eq!(&segment.body[4..8], b"styp");
    assert_eq!(segment.header("content-type"), Some("video/iso.segment"));
    let seen = store.seen().await;
    assert_eq!(seen.len(), 1, "the worker did not even look: {seen:?}");
    assert!(seen[0].target.contains("X-Amz-Signature"), "{seen:?}");

    let deleted = stage.client.send(Method::DELETE, "/jobs/j?outputs", HeaderMap::new(), Vec::new()).await;
    assert!(deleted.unwrap().success().unwrap().job().unwrap().outputs.is_none());
    assert_eq!(stage.client.get(&hls).await.unwrap().status, 410);
    stage.end().await;
    drop(store.process);
}

#[tokio::test]
async fn a_large_file_goes_in_parts_through_nobody() {
    let store = Store::start().await;
    let stage = stage(&store).await;
    let bytes = std::fs::read(clip(&SMALL).await).unwrap();
    let asked = json!({ "filename": "clip.mp4", "bytes": bytes.len(), "resumable": true });
    let ticket: UploadTicket =
        stage.client.post("/upload/request", &asked).await.unwrap().success().unwrap().json().unwrap();
    let parts = ticket.parts.unwrap();
    assert!(ticket.upload_url.starts_with(stage.system.gateway_url()), "{}", ticket.upload_url);
    let length = HeaderMap::from_iter([(CONTENT_LENGTH, bytes.len().into())]);
    let put = stage.client.send(Method::PUT, &parts.urls[0].url, length, bytes.clone()).await.unwrap();
    let etag = put.success().unwrap().header("etag").unwrap().to_owned();
    let status = stage.client.get(&ticket.upload_url).await.unwrap().success().unwrap();
    assert!(status.text().contains("\"arrived\":[{\"number\":1"), "{}", status.text());
    let done = stage.client.post(&ticket.upload_url, &json!({ "etags": [etag] })).await.unwrap();
    done.success().unwrap();
    stage.client.submit(&json!({ "job_id": "j", "input_path": ticket.input_path })).await.unwrap();
    stage.succeeded("j").await;
    stage.end().await;
}

#[tokio::test]
async fn a_store_that_refuses_is_waited_for_and_shows_nothing_by_halves() {
    let store = Store::start().await;
    let stage = stage(&store).await;
    let ticket = upload(&stage, &store).await;
    let spec = |id: &str| json!({ "job_id": id, "input_path": ticket.input_path });
    let on_jobs = |times, what| Fault::new(&Method::PUT, "/jobs/", times, what);

    // What passes by itself costs no attempt.
    store
        .set(&[
            on_jobs(2, What::Refuse(503, "SlowDown".to_owned())),
            on_jobs(1, What::Refuse(500, "InternalError".to_owned())),
            on_jobs(1, What::Corrupt),
            on_jobs(1, What::LoseAnswer),
        ])
        .await;
    stage.client.submit(&spec("bumpy")).await.unwrap();
    assert_eq!(stage.succeeded("bumpy").await.attempt, 1);

    // What does not has a code, waits for its next attempt, and publishes nothing meanwhile.
    store.set(&[on_jobs(100_000, What::Refuse(400, "ExpiredToken".to_owned()))]).await;
    stage.client.submit(&spec("denied")).await.unwrap();
    let waits = |job: &Job| job.state == State::RetryWait;
    let job = stage.client.wait_for("denied", "waiting for another try", PATIENCE, waits).await.unwrap();
    assert_eq!(job.error.unwrap().code, FailureCode::ObjectsDenied);
    assert!(job.outputs.is_none());
    assert_eq!(stage.client.get("/media/denied/master.m3u8").await.unwrap().status, 409);
    store.set(&[]).await;
    let again = |job: &Job| job.state == State::Succeeded;
    let job =
        stage.client.wait_for("denied", "done after all", Duration::from_secs(90), again).await.unwrap();
    assert_eq!(job.attempt, 2);
    stage.end().await;
}
