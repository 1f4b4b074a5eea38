//! How much somebody may upload.

use sha2::{Digest as _, Sha256};

use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, eventually, gauge, http2, open, pools, problem};

async fn started(more: &str) -> (Fake, Gateway) {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&format!("{}{more}", pools(&[("aws", 1.0, &[&worker])]))).await;
    gateway.healthy(1).await;
    (worker, gateway)
}

/// A body of that many bytes whose length is not announced.
fn unannounced(bytes: usize) -> reqwest::Body {
    let pieces = (0..bytes / 1000).map(|_| Ok::<_, std::io::Error>(vec![1_u8; 1000]));
    reqwest::Body::wrap_stream(futures::stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_has_a_largest_size_announced_or_not() {
    let (worker, gateway) = started("[limits]\nupload_bytes = 100000\n").await;
    for client in [&gateway.client, &http2()] {
        let put = |body: reqwest::Body| client.put(gateway.url("/upload/aws/k")).body(body).send();
        assert_eq!(put(vec![1; 100_000].into()).await.unwrap().status(), 200);
        assert_eq!(put(unannounced(100_000)).await.unwrap().status(), 200);
        let before = worker.seen().len();
        let large = put(vec![1; 100_001].into()).await.unwrap();
        let large = problem(large).await;
        assert_eq!(large["code"], "upload_too_large");
        assert_eq!(large["detail"], "an upload has at most 100000 bytes");
        // The refusal may come while the client still sends; then it may not see it.
        if let Ok(answer) = put(unannounced(3_000_000)).await {
            assert_eq!(problem(answer).await["code"], "upload_too_large");
        }
        assert_eq!(worker.seen().len(), before, "the worker never had the whole");
    }
    // Raw, so that the answer is read whatever was sent.
    let mut client = open(gateway.http).await;
    let piece = format!("186a0\r\n{}\r\n", "x".repeat(100_000));
    client.send("PUT /upload/aws/k HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.send(&piece).await;
    client.send("1\r\nx\r\n").await;
    let answer = String::from_utf8_lossy(&client.rest().await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("upload_too_large"), "{answer}");
    let shown = "millrace_gateway_uploads_limited_total{code=\"upload_too_large\"}";
    assert!(gauge(&gateway.metrics().await, shown) >= 5.0);
    assert_eq!(gateway.submit("{}").await.status(), 202, "nothing else has that limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_of_uploads_is_counted_by_key_or_address_and_what_did_not_come_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, key) = (folder.path().join("keys"), "k".repeat(32));
    std::fs::write(&keys, format!("a creator t {}\n", hex::encode(Sha256::digest(&key)))).unwrap();
    let (_worker, gateway) =
        started(&format!("[limits]\nupload_bytes_per_hour = 1000000\n[auth]\nkeys = {keys:?}\n")).await;
    let put = |bytes: usize| gateway.client.put(gateway.url("/upload/aws/k")).body(vec![1; bytes]);
    let more = put(1_000_001).send().await.unwrap();
    assert_eq!(problem(more).await["code"], "upload_too_large", "no hour has as many");

    // A client that goes away in the middle has taken what it sent.
    let mut client = open(gateway.http).await;
    client.send("PUT /upload/aws/k HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\nxxxx").await;
    let in_flight = async || {
        let ready = gateway.client.get(gateway.admin_url("/readyz")).send().await.unwrap();
        ready.json::<serde_json::Value>().await.unwrap()["in_flight"] == 1
    };
    eventually("it is under way", in_flight).await;
    // In a second less than 300 bytes come back.
    assert_eq!(put(100_000).send().await.unwrap().status(), 429, "all that it announced is taken");
    drop(client);
    let given_back = async || put(100_000).send().await.is_ok_and(|answer| answer.status() == 200);
    eventually("it is given back", given_back).await;

    assert_eq!(put(800_000).send().await.unwrap().status(), 200);
    let refused = put(200_000).send().await.unwrap();
    let after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((300..=400).contains(&after), "a tenth of an hour: {after}");
    let refused = problem(refused).await;
    assert_eq!((&refused["code"], &refused["status"]), (&"upload_quota".into(), &429.into()));
    assert_eq!(put(200_000).bearer_auth(&key).send().await.unwrap().status(), 200, "a key has its own");
    assert_eq!(put(200_000).bearer_auth("no such key").send().await.unwrap().status(), 429);
    assert_eq!(put(900_000).bearer_auth(&key).send().await.unwrap().status(), 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_video_goes_unread_to_a_pool_with_room_and_is_sent_once() {
    let (busy, free) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    busy.load(|load| (load.running, load.queued, load.work_seconds) = (2, 4, 900.0));
    let routing = pools(&[("aws", 1.0, &[&busy]), ("gcp", 1.0, &[&free])]);
    let gateway = Gateway::start(&format!("{routing}[limits]\nupload_bytes = 300000\n")).await;
    gateway.healthy(2).await;
    let post = |bytes: usize| gateway.client.post(gateway.url("/videos?title=x")).body(vec![b'{'; bytes]);

    for client in [&gateway.client, &http2()] {
        let sent =
            client.post(gateway.url("/videos?title=x")).body(vec![b'{'; 200_000]).send().await.unwrap();
        assert!(sent.status().is_success());
        assert_eq!(sent.headers()["millrace-pool"], "gcp");
        let seen = free.seen().pop().unwrap();
        assert_eq!((seen.path.as_str(), seen.body.len()), ("/videos?title=x", 200_000));
        assert_eq!(seen.header("idempotency-key"), None, "its body may name it");
    }
    assert!(post(10).header("idempotency-key", "mine").send().await.unwrap().status().is_success());
    assert_eq!(free.seen().pop().unwrap().header("idempotency-key").as_deref(), Some("mine"));
    assert!(busy.seen().is_empty());
    assert_eq!(problem(post(300_001).send().await.unwrap()).await["code"], "upload_too_large");
    let named = problem(post(10).header("idempotency-key", ".").send().await.unwrap()).await;
    assert_eq!(named["code"], "bad_job_id");

    let before = free.seen().len();
    for behaviour in [Behaviour::Status(503), Behaviour::Reset, Behaviour::Full(7)] {
        free.behave(behaviour);
        let failed = post(100_000).send().await.unwrap();
        assert!(matches!(failed.status().as_u16(), 429 | 502 | 503), "{behaviour:?}: {failed:?}");
    }
    assert_eq!(
        (free.seen().len(), busy.seen().len()),
        (before + 3, 0),
        "who has read of it has the only one"
    );
}
