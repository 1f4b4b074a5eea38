//! Videos posted in one call, and who is told what becomes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_bench::System;
use millrace_bench::nats::Nats;
use millrace_wire::job::{Job, JobEvent, State, WebhookState};
use millrace_wire::video::{Video, VideoPage};
use serde_json::json;

use crate::stage::{PATIENCE, SMALL, Stage, clip};

const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test]
async fn a_posted_file_becomes_a_video_that_is_found_and_shown() {
    let stage = Stage::two_pools().await;
    let file = std::fs::read(clip(&SMALL).await).unwrap();
    let kind = |kind: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]);

    let path = "/videos?title=Rain%20on%20the%20roof&job_id=rain&filename=rain.mp4";
    let posted = stage.client.send(Method::POST, path, kind("video/mp4"), file.clone()).await.unwrap();
    assert_eq!(
        (posted.status, posted.header("location")),
        (StatusCode::ACCEPTED, Some("/videos/rain")),
        "{}",
        posted.text()
    );
    let again = stage.client.send(Method::POST, path, kind("video/mp4"), file.clone()).await.unwrap();
    assert_eq!((again.status, again.json::<Video>().unwrap().video_id.as_str()), (StatusCode::OK, "rain"));

    let part = |name: &str, more: &str| {
        format!("--edge\r\ncontent-disposition: form-data; name=\"{name}\"{more}\r\n\r\n")
    };
    let (spec_head, file_head) = (part("spec", ""), part("file", "; filename=\"a.mp4\""));
    let form = [
        spec_head.as_bytes(),
        br#"{"labels":{"place":"Roof"},"output_format":"mp4"}"#,
        b"\r\n",
        file_head.as_bytes(),
        &file,
        b"\r\n--edge--\r\n",
    ];
    let posted = stage
        .client
        .send(Method::POST, "/videos", kind("multipart/form-data; boundary=edge"), form.concat())
        .await;
    let form = posted.unwrap().success().unwrap().json::<Video>().unwrap();

    for id in ["rain", form.video_id.as_str()] {
        stage.succeeded(id).await;
        let video: Video = stage.client.get(&format!("/videos/{id}")).await.unwrap().json().unwrap();
        assert_eq!((video.state, video.width, video.height), (State::Succeeded, Some(320), Some(180)));
        assert!((video.duration_s.unwrap() - SMALL.seconds).abs() < 0.1 && video.bytes.unwrap() > 1000);
        let poster = stage.client.get(&video.poster.unwrap()).await.unwrap().success().unwrap();
        assert_eq!(poster.header("content-type"), Some("image/jpeg"));
        assert_eq!((video.hls.is_some(), video.renditions.len()), (id == "rain", 1));
    }
    let found = async |query: &str| {
        let page: VideoPage = stage.client.get(&format!("/videos?q={query}")).await.unwrap().json().unwrap();
        page.videos.into_iter().map(|video| video.video_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(found("roof").await, [form.video_id.as_str(), "rain"]);
    assert_eq!(found("RAIN").await, ["rain"]);
    assert!(found("snow").await.is_empty() && found("%27%22%3B").await.is_empty());
    stage.end().await;
}

/// What a receiver got: by message, the jobs' states.
#[derive(Default)]
struct Receiver {
    is_ill: AtomicBool,
    got: Mutex<BTreeMap<String, Vec<(String, State)>>>,
}

impl Receiver {
    async fn start(self: &Arc<Self>) -> String {
        let receiver = Arc::clone(self);
        let told = post(move |headers: HeaderMap, body: axum::body::Bytes| async move {
            let field = |name: &str| headers[name].to_str().unwrap().to_owned();
            let (id, signature) = (field("webhook-id"), field("webhook-signature"));
            let signed = [id.as_bytes(), b".", field("webhook-timestamp").as_bytes(), b".", &body].concat();
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &STANDARD.decode(SECRET).unwrap());
            if signature != format!("v1,{}", STANDARD.encode(ring::hmac::sign(&key, &signed))) {
                return StatusCode::FORBIDDEN;
            }
            if receiver.is_ill.load(Ordering::SeqCst) {
                return StatusCode::INTERNAL_SERVER_ERROR;
            }
            let event: JobEvent<Job> = serde_json::from_slice(&body).unwrap();
            let told = (event.data.job_id.to_string(), event.data.state);
            receiver.got.lock().unwrap().entry(id).or_default().push(told);
            StatusCode::NO_CONTENT
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/told", listener.local_addr().unwrap());
        let app = axum::Router::new().route("/told", told);
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }
}

#[tokio::test]
async fn who_is_told_is_told_everything_whoever_dies() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("whsec_{SECRET}\n")).unwrap();
    let mut nats = Nats::start().unwrap();
    let builder = System::builder().pool("aws", 1).pool("gcp", 1);
    let builder = builder.worker_arg("--lease", "2s").worker_arg("--heartbeat", "500ms");
    let builder = builder.worker_arg("--webhook-secret-file", secret.to_str().unwrap());
    let builder =
        builder.worker_arg("--allow-private-webhooks", "127.0.0.1/32").worker_arg("--webhook-pause", "200ms");
    let mut stage = Stage::start(builder.worker_arg("--events", &nats.url())).await;
    let receiver = Arc::<Receiver>::default();
    receiver.is_ill.store(true, Ordering::SeqCst);
    let url = receiver.start().await;

    let mut ids = Vec::new();
    for n in 0..4 {
        let mut spec = stage.web.small_spec(&format!("told-{n}"));
        spec["webhook_url"] = json!(url);
        if n == 3 {
            spec["input_url"] = json!("http://127.0.0.1:1/nothing");
        }
        ids.push(stage.client.submit(&spec).await.unwrap().job_id.to_string());
    }
    stage.succeeded("told-0").await;
    nats.kill().unwrap();
    let victim = stage.system.workers().next().unwrap().to_owned();
    stage.system.kill9_worker(&victim).await.unwrap();
    stage.client.cancel("told-3").await.unwrap();
    for id in ["told-1", "told-2"] {
        stage.succeeded(id).await;
    }
    let waits = stage.client.wait_for("told-1", "pending", PATIENCE, |job| {
        job.webhook
            .as_ref()
            .is_some_and(|webhook| webhook.state == WebhookState::Pending && webhook.tries > 1)
    });
    let detail = waits.await.unwrap().webhook.unwrap().detail;
    assert_eq!(detail.as_deref(), Some("the receiver answered 500"));
    nats.restart().unwrap();
    stage.system.restart_worker(&victim).await.unwrap();
    receiver.is_ill.store(false, Ordering::SeqCst);

    for id in &ids {
        let told = stage.client.wait_for(id, "told", PATIENCE, |job| {
            job.webhook.as_ref().is_some_and(|webhook| webhook.state == WebhookState::Delivered)
        });
        told.await.unwrap();
    }
    {
        let got = receiver.got.lock().unwrap();
        assert_eq!(got.len(), 4, "{got:?}");
        let told: BTreeMap<_, _> = got.values().map(|told| told[0].clone()).collect();
        let state = |id: &str| if id == "told-3" { State::Cancelled } else { State::Succeeded };
        let wanted: BTreeMap<_, _> = ids.iter().map(|id| (id.clone(), state(id))).collect();
        assert_eq!(told, wanted);
    }

    // The stream has them all, each once, and those of a job in order.
    let client = async_nats::connect(nats.url()).await.unwrap();
    let jetstream = jetstream::new(client);
    let mut is_whole = false;
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_whole {
        assert!(tokio::time::Instant::now() < deadline, "{kinds:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Ok(mut stream) = jetstream.get_stream("millrace-jobs").await else { continue };
        let state = stream.info().await.unwrap().state.clone();
        kinds.clear();
        let mut names = BTreeSet::new();
        for sequence in state.first_sequence..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            assert!(names.insert(message.headers.get("Nats-Msg-Id").unwrap().to_string()));
            let subject: Vec<&str> = message.subject.split('.').collect();
            assert_eq!(subject[..3], ["millrace", "jobs", "default"]);
            kinds.entry(subject[3].to_owned()).or_default().push(subject[4].to_owned());
        }
        let ended =
            |kinds: &Vec<String>| matches!(kinds.last().map(String::as_str), Some("succeeded" | "cancelled"));
        is_whole = kinds.len() == 4 && kinds.values().all(ended);
    }
    for (job, kinds) in &kinds {
        assert_eq!(kinds[0], "accepted", "{job}: {kinds:?}");
        assert_eq!(
            kinds.iter().filter(|kind| *kind == "succeeded" || *kind == "cancelled").count(),
            1,
            "{job}"
        );
    }
    stage.end().await;
}
