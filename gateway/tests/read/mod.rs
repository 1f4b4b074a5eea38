//! Everything that is no submit: reads, uploads, streams of events, and clients that are slow.

use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::StatusCode;

use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, eventually, http2, open, pools, problem};

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_tried_again_and_uploads_stay_in_their_pool() {
    let (aws, gcp) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&aws]), ("gcp", 1.0, &[&gcp])])).await;
    gateway.healthy(2).await;
    aws.behave(Behaviour::Reset);
    for _ in 0..20 {
        let response = gateway.client.get(gateway.url("/jobs/j1?full=1")).send().await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["millrace-worker"]),
            (StatusCode::OK, &"w2".parse().unwrap())
        );
    }
    assert!(aws.seen().iter().any(|seen| seen.path == "/jobs/j1?full=1"), "the broken one was asked, too");

    aws.behave(Behaviour::Accept);
    let bytes = vec![7_u8; 3_000_000];
    let put = gateway
        .client
        .put(gateway.url("/upload/aws/uploads/k/v.mp4?sig=x"))
        .body(bytes.clone())
        .send()
        .await
        .unwrap();
    assert_eq!((put.status(), &put.headers()["millrace-pool"]), (StatusCode::OK, &"aws".parse().unwrap()));
    let seen = aws.seen();
    let upload = seen.iter().find(|seen| seen.method == "PUT").unwrap();
    assert!(upload.body == bytes && upload.path == "/upload/aws/uploads/k/v.mp4?sig=x");
    let nowhere = gateway.client.put(gateway.url("/upload/azure/k")).body("x").send().await.unwrap();
    assert_eq!(nowhere.status(), StatusCode::NOT_FOUND);
    let ticket = gateway.client.post(gateway.url("/upload/request")).body("{}").send().await.unwrap();
    assert_eq!(ticket.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_api_is_a_problem() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    let missing = gateway.client.get(gateway.url("/metrics")).send().await.unwrap();
    assert_eq!(problem(missing).await["code"], "not_found", "metrics are the operator's");
    let method = gateway.client.get(gateway.url("/process")).send().await.unwrap();
    assert_eq!(method.headers()["allow"], "POST");
    assert_eq!(problem(method).await["code"], "method_not_allowed");
    for path in ["/livez", "/health", "/readyz"] {
        gateway.healthy(1).await;
        assert_eq!(gateway.client.get(gateway.url(path)).send().await.unwrap().status(), StatusCode::OK);
    }
    let metrics = gateway.metrics().await;
    for family in
        ["millrace_gateway_requests_total", "millrace_gateway_pool_headroom_ratio", "process_open_fds"]
    {
        assert!(metrics.contains(family), "{family}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_last_data_frame_does_not_desync_the_worker() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    let h2 = http2();
    for n in 0..10 {
        // A streamed body of unknown length ends with an empty DATA frame.
        let pieces = [Ok::<_, std::io::Error>("piece-1;"), Ok("piece-2")];
        let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            piece
        }));
        let put = h2.put(gateway.url(&format!("/upload/aws/k{n}"))).body(body).send().await.unwrap();
        assert_eq!((put.version(), put.status()), (reqwest::Version::HTTP_2, StatusCode::OK), "upload {n}");
        let body = reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>("{}")]));
        assert_eq!(
            h2.post(gateway.url("/process")).body(body).send().await.unwrap().status(),
            StatusCode::ACCEPTED
        );
    }
    let seen = worker.seen();
    assert!(seen.iter().filter(|seen| seen.method == "PUT").all(|seen| seen.body == b"piece-1;piece-2"));
    assert_eq!(worker.garbled(), 0, "nothing but requests on the worker's connections");
    assert!(worker.reused() > 0, "connections to the worker were used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off() {
    let worker = Fake::start("aws", "w1").await;
    let file = pools(&[("aws", 1.0, &[&worker])]);
    let gateway =
        Gateway::start(&format!("{file}\n[timeouts]\nbody = \"500ms\"\nheader = \"700ms\"\n")).await;
    gateway.healthy(1).await;

    let started = Instant::now();
    let mut body = open(gateway.http).await;
    body.send("POST /process HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n").await;
    let dripping = body.drip(b'{', Duration::from_millis(100));
    let head = dripping.await;
    assert!(head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(head.contains("application/problem+json"));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    for first in ["", "GET /livez HTTP/1.1\r\nx: "] {
        let started = Instant::now();
        let mut header = open(gateway.http).await;
        header.send(first).await;
        let head = if first.is_empty() {
            header.head().await
        } else {
            header.drip(b'y', Duration::from_millis(100)).await
        };
        assert_eq!(head, "", "closed without an answer");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    assert_eq!(worker.submits().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_are_sent_and_a_long_stream_tells_nothing_against_its_worker() {
    let worker = Fake::start("aws", "w1").await;
    let every = Duration::from_millis(250);
    worker.behave(Behaviour::Events(every));
    // More than between two events, less than a stream's length.
    let file = format!("{}[timeouts]\nread = \"1s\"\n", pools(&[("aws", 1.0, &[&worker])]));
    let gateway = Gateway::start(&file).await;
    gateway.healthy(1).await;
    for client in [gateway.client.clone(), http2()] {
        let answer = client.get(gateway.url("/jobs/j/events")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let (mut stream, started, mut came) = (answer.bytes_stream(), Instant::now(), Vec::new());
        for n in 1..=6 {
            assert_eq!(stream.next().await.unwrap().unwrap(), format!("data: {n}\n\n"));
            came.push(started.elapsed());
        }
        assert!(came.windows(2).all(|pair| pair[1] - pair[0] > every / 2), "one by one: {came:?}");
        assert!(came[5] > Duration::from_secs(1), "longer than the read timeout: {came:?}");
    }
    eventually("the worker is rid of the readers that left", || async { worker.open() <= 1 }).await;
    let status = gateway.status().await;
    let seen = &status["pools"][0]["workers"][0];
    assert_eq!(seen["healthy"], true);
    assert!(seen["read_latency_ms"].as_f64().unwrap() < 200.0, "the time to the first byte: {seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_no_room_for_a_stream_is_passed_over_and_not_blamed() {
    let (full, free) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&full]), ("gcp", 1.0, &[&free])])).await;
    gateway.healthy(2).await;
    full.behave(Behaviour::Busy);
    for _ in 0..40 {
        let answer = gateway.client.get(gateway.url("/jobs/j/events")).send().await.unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()["millrace-worker"]),
            (StatusCode::OK, &"w2".parse().unwrap())
        );
    }
    assert!(full.seen().len() >= 7, "it would have been ejected: {}", full.seen().len());
    assert!(
        !gateway
            .metrics()
            .await
            .lines()
            .any(|line| line.contains("ejections_total{") && !line.ends_with(" 0"))
    );
    free.behave(Behaviour::Busy);
    let answer = gateway.client.get(gateway.url("/jobs/j/events")).send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "5");
    assert_eq!(problem(answer).await["code"], "too_many_streams");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_elsewhere_may_ask_and_may_read_the_gateways_own_answers() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    for path in ["/media/j/t/master.m3u8", "/download/j", "/jobs/j/events"] {
        let preflight = gateway.client.request(reqwest::Method::OPTIONS, gateway.url(path));
        let answer = preflight.header("origin", "https://a.example").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let seen = worker.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("OPTIONS", path));
        assert_eq!(seen.header("origin").as_deref(), Some("https://a.example"));
    }
    worker.stop();
    let answer = gateway.client.get(gateway.url("/media/j/t/master.m3u8")).send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let job = gateway.client.get(gateway.url("/jobs/j")).send().await.unwrap();
    assert!(!job.headers().contains_key("access-control-allow-origin"));
}
