//! What players and pages ask of the gateway: events while a job runs, and media by URL alone.

use std::time::Duration;

use futures::StreamExt;
use millrace_bench::{Client, System};
use millrace_wire::job::{JobUpdate, Phase, State};
use millrace_wire::problem::Code;
use reqwest::redirect::Policy;
use reqwest::{Method, Response};

use crate::stage::{PATIENCE, Stage};

/// One message of a stream.
#[derive(Debug, Clone)]
struct Message {
    kind: String,
    id: Option<String>,
    update: JobUpdate,
}

fn browser() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap()
}

async fn listen(client: &Client, job: &str, last: Option<&str>) -> Response {
    let request = browser().get(client.url(&format!("/jobs/{job}/events")).unwrap());
    let request = match last {
        Some(last) => request.header("last-event-id", last),
        None => request,
    };
    request.send().await.unwrap()
}

/// Everything that a stream says until it ends.
async fn all(answer: Response) -> Vec<Message> {
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let (mut stream, mut text) = (answer.bytes_stream(), String::new());
    let read = async {
        while let Some(piece) = stream.next().await {
            text += std::str::from_utf8(&piece.unwrap()).unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the stream ends with its job");
    let message = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let update = serde_json::from_str(field("data")?).unwrap();
        Some(Message { kind: field("event")?.to_owned(), id: field("id").map(str::to_owned), update })
    };
    text.split("\n\n").filter_map(message).collect()
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().filter_map(|message| message.id.as_deref()).collect()
}

#[tokio::test]
async fn a_job_is_told_while_it_runs_and_again_to_who_comes_back() {
    let stage = Stage::start(System::builder().pool("aws", 2).worker_arg("--threads", "1")).await;
    let held = ["held-1", "held-2"];
    for id in held {
        stage.client.submit(&stage.web.held_spec(id)).await.unwrap();
    }
    for id in held {
        let runs = |job: &millrace_wire::job::Job| job.state == State::Running;
        stage.client.wait_for(id, "running", PATIENCE, runs).await.unwrap();
    }
    stage.client.submit(&stage.web.heavy_spec("heavy")).await.unwrap();
    // Through the gateway, and at both workers: the one that will run it knows more, and says nothing else.
    let workers: Vec<String> = stage.system.workers().map(str::to_owned).collect();
    let mut streams = vec![listen(&stage.client, "heavy", None).await];
    for worker in &workers {
        streams.push(listen(&stage.system.worker_client(worker).unwrap(), "heavy", None).await);
    }
    let reading: Vec<_> = streams.into_iter().map(|stream| tokio::spawn(all(stream))).collect();
    stage.web.release();
    let mut told = Vec::new();
    for reading in reading {
        told.push(reading.await.unwrap());
    }
    for messages in &told {
        let states: Vec<_> = messages
            .iter()
            .filter(|message| message.kind == "state")
            .map(|message| (message.update.state, message.update.phase))
            .collect();
        let running = |phase| (State::Running, Some(phase));
        let wanted = [
            (State::Queued, None),
            running(Phase::Source),
            running(Phase::Probing),
            running(Phase::Encoding),
            running(Phase::Publishing),
            (State::Succeeded, None),
        ];
        assert_eq!(states, wanted);
        let percents: Vec<f64> = messages.iter().map(|message| message.update.progress.percent).collect();
        assert!(percents.windows(2).all(|pair| pair[0] <= pair[1]), "{percents:?}");
        let progress: Vec<_> = messages.iter().filter(|message| message.kind == "progress").collect();
        assert!(progress.len() >= 2, "{messages:?}");
        assert!(progress.iter().all(|message| message.id.is_none() && message.update.worker.is_some()));
        assert!(progress.iter().any(|message| message.update.progress.eta_seconds.is_some()), "{progress:?}");
        assert_eq!(messages.last().unwrap().kind, "end");
        assert_eq!(ids(messages), ids(&told[0]));
    }

    let known = ids(&told[0]);
    let missed = all(listen(&stage.client, "heavy", Some(known[2])).await).await;
    assert_eq!(ids(&missed), known[3..]);
    assert_eq!(missed.last().unwrap().kind, "end");
    let over = listen(&stage.client, "heavy", known.last().copied()).await;
    assert_eq!(over.status(), 204);
    stage.end().await;
}

#[tokio::test]
async fn a_worker_that_stops_hands_its_readers_on() {
    let mut stage = Stage::start(System::builder().pool("aws", 2).worker_arg("--threads", "1")).await;
    let (_, worker) = stage.encoding("heavy").await;
    let stream = listen(&stage.system.worker_client(&worker).unwrap(), "heavy", None).await;
    let reading = tokio::spawn(all(stream));
    stage.system.stop_worker(&worker).await.unwrap();
    let before = reading.await.unwrap();
    let last = ids(&before).last().copied().unwrap().to_owned();
    let after = all(listen(&stage.client, "heavy", Some(&last)).await).await;
    let end = after.last().unwrap();
    assert_eq!((end.kind.as_str(), end.update.state), ("end", State::Succeeded));
    let number = |id: &&str| id.parse::<i64>().unwrap();
    let (seen, more) = (ids(&before), ids(&after));
    let numbers: Vec<i64> = seen.iter().chain(&more).map(number).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "none twice, in order: {numbers:?}");
    stage.end().await;
}

#[tokio::test]
async fn a_media_url_plays_by_itself_until_it_expires() {
    let builder = System::builder().pool("aws", 1).worker_arg("--media-expiry", "4s");
    let stage = Stage::start(builder).await;
    stage.client.submit(&stage.web.small_spec("small")).await.unwrap();
    stage.succeeded("small").await;
    let fresh = async || stage.client.job("small").await.unwrap().outputs.unwrap().hls.unwrap();
    let browser = browser();
    let ask = async |method: Method, path: &str, header: (&str, &str)| {
        let url = stage.client.url(path).unwrap();
        let request = browser.request(method, url).header("origin", "https://a.example");
        request.header(header.0, header.1).send().await.unwrap()
    };
    let none = ("accept", "*/*");

    let direct = ask(Method::GET, "/media/small/master.m3u8", none).await;
    assert_eq!(
        (direct.status().as_u16(), &direct.headers()["cache-control"]),
        (307, &"no-store".parse().unwrap())
    );
    let led = direct.headers()["location"].to_str().unwrap().to_owned();
    let playlist = ask(Method::GET, &led, none).await;
    assert_eq!(playlist.status(), 200);
    assert_eq!(playlist.headers()["content-type"], "application/vnd.apple.mpegurl");
    assert_eq!(playlist.headers()["access-control-allow-origin"], "*");

    let hls = fresh().await;
    let segment = hls.replace("master.m3u8", "seg_0_00001.m4s");
    let part = ask(Method::GET, &segment, ("range", "bytes=0-9")).await;
    assert_eq!(
        (part.status().as_u16(), &part.headers()["content-type"]),
        (206, &"video/iso.segment".parse().unwrap())
    );
    assert!(part.headers()["cache-control"].to_str().unwrap().ends_with(", immutable"));
    let preflight = ask(Method::OPTIONS, &segment, ("access-control-request-headers", "range")).await;
    assert!(preflight.status().is_success());
    assert_eq!(preflight.headers()["access-control-allow-origin"], "*");

    let expired = async |path: &str| {
        let answer = stage.client.get(path).await.unwrap();
        (!answer.status.is_success()).then(|| answer.problem().unwrap().code)
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let code = loop {
        if let Some(code) = expired(&hls).await {
            break code;
        }
        assert!(tokio::time::Instant::now() < deadline, "it never expires");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(code, Code::MediaExpired);
    assert_eq!(expired(&segment).await, Some(Code::MediaExpired));
    let renewed = fresh().await;
    assert_ne!(renewed, hls);
    stage.client.get(&renewed).await.unwrap().success().unwrap();
    stage.end().await;
}
