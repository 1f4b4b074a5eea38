//! Clients that ask for too much, or take too long.

use std::time::{Duration, Instant};

use super::h2raw;
use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, eventually, http2, open, pools, problem};

const QUIET: Duration = Duration::from_millis(300);
/// GOAWAY's code for "enhance your calm".
const CALM: [u8; 4] = [0, 0, 0, 11];

async fn started(more: &str) -> (Fake, Gateway) {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&format!("{}{more}", pools(&[("aws", 1.0, &[&worker])]))).await;
    gateway.healthy(1).await;
    (worker, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_targets_have_a_limit() {
    let (worker, gateway) = started("").await;
    for client in [gateway.client.clone(), http2()] {
        let get = |path: &str| client.get(gateway.url(path));
        let long = get(&format!("/jobs?cursor={}", "x".repeat(9000))).send().await.unwrap();
        assert_eq!(long.status(), 414);
        assert_eq!(problem(long).await["code"], "uri_too_long");
        let mut many = get("/jobs");
        for n in 0..120 {
            many = many.header(format!("x-{n}"), "y");
        }
        assert_eq!(problem(many.send().await.unwrap()).await["code"], "header_too_large");
        let fits = get("/jobs").header("x", "y".repeat(30_000)).send().await.unwrap();
        assert_eq!(fits.status(), 202, "below the limit");
        // HTTP/2 says so by itself, without a body.
        let large = get("/jobs").header("x", "y".repeat(70_000)).send().await.unwrap();
        assert_eq!(large.status(), 431);
    }
    assert_eq!(worker.seen().len(), 2, "what is refused here is not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_lines_or_a_header_without_end_are_refused() {
    let (worker, gateway) = started("").await;
    for (line, count) in [
        ("x: y\r\n", 10_000),
        ("x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", 40_000),
    ] {
        let mut client = open(gateway.http).await;
        let header = format!("GET /jobs HTTP/1.1\r\nhost: h\r\n{}", line.repeat(count));
        // The refusal may come while we still send.
        client.try_send(header.as_bytes()).await;
        let answer = String::from_utf8_lossy(&client.quiet(QUIET).await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let lines: Vec<(String, String)> = (0..10_000).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    let mut client = open(gateway.http).await;
    client.try_send(&[h2raw::opening(), h2raw::get(1, "/jobs", &lines)].concat()).await;
    client.quiet(QUIET).await;
    assert_eq!(gateway.submit("{}").await.status(), 202, "nobody else notices");
    assert_eq!(worker.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_what_it_asks_is_told_to_calm_down() {
    let (worker, gateway) = started("").await;
    worker.behave(Behaviour::Hang);
    let mut client = open(gateway.http).await;
    let mut bytes = h2raw::opening();
    for n in 0..2000_u32 {
        bytes.extend(h2raw::get(2 * n + 1, "/jobs/j", &[]));
        bytes.extend(h2raw::frame(h2raw::RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]));
    }
    client.try_send(&bytes).await;
    let came = h2raw::frames(&client.quiet(QUIET).await);
    // A reset connection may have eaten the farewell; that it ended counts.
    let told = came.iter().any(|one| one.kind == h2raw::GOAWAY && one.payload.get(4..8) == Some(&CALM));
    assert!(told || !client.try_send(&h2raw::get(9001, "/jobs/j", &[])).await, "{came:?}");
    assert!(worker.seen().len() < 500, "{} of 2000 requests reached the worker", worker.seen().len());
    worker.behave(Behaviour::Accept);
    assert_eq!(gateway.submit("{}").await.status(), 202);
    eventually("nothing of it is left at the worker", || async { worker.open() <= 2 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_requests_at_once_and_no_more() {
    let (worker, gateway) = started("").await;
    worker.behave(Behaviour::Hang);
    let mut client = open(gateway.http).await;
    let mut bytes = h2raw::opening();
    for n in 0..300_u32 {
        bytes.extend(h2raw::get(2 * n + 1, "/jobs/j/events", &[]));
    }
    client.send_bytes(&bytes).await;
    let came = h2raw::frames(&client.quiet(QUIET).await);
    let settings = came.iter().find(|one| one.kind == h2raw::SETTINGS).unwrap();
    assert!(settings.payload.chunks(6).any(|one| one == [0, 3, 0, 0, 0, 128]), "it says so: {settings:?}");
    assert!(
        settings.payload.chunks(6).any(|one| one == [0, 6, 0, 0, 128, 0]),
        "and how large a header: {settings:?}"
    );
    assert!(worker.seen().len() <= 128, "{}", worker.seen().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_drips_is_cut_off_and_frees_the_worker() {
    let (worker, gateway) = started("[timeouts]\nread = \"600ms\"\n").await;
    let idle = worker.open();
    let started = Instant::now();
    let mut client = open(gateway.http).await;
    client.send("PUT /upload/aws/k HTTP/1.1\r\nhost: h\r\ncontent-length: 5000\r\n\r\n").await;
    let head = client.drip(b'x', Duration::from_millis(50)).await;
    assert!(head.starts_with("HTTP/1.1 408") && head.contains("problem+json"), "{head}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    eventually("the worker is rid of it", || async { worker.open() <= idle }).await;
    assert_eq!(worker.seen().len(), 0, "it never had the whole");
    let put = gateway.client.put(gateway.url("/upload/aws/k")).body(vec![1; 2_000_000]).send().await.unwrap();
    assert_eq!(put.status(), 200, "an honest one passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_off_and_frees_the_worker() {
    let (worker, gateway) = started("[timeouts]\nread = \"700ms\"\n").await;
    worker.behave(Behaviour::Large(30_000_000));
    let idle = worker.open();
    let started = Instant::now();
    // HTTP/1; HTTP/2 within its window; HTTP/2 that allows everything and takes nothing.
    let mut generous = [h2raw::PREFACE, &h2raw::settings(&[(4, 0x7fff_ffff)])].concat();
    generous.extend(h2raw::frame(h2raw::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
    let get = h2raw::get(1, "/media/j/t/v.mp4", &[]);
    let requests = [
        b"GET /media/j/t/v.mp4 HTTP/1.1\r\nhost: h\r\n\r\n".to_vec(),
        [h2raw::opening(), get.clone()].concat(),
        [generous, get].concat(),
    ];
    let mut clients = Vec::new();
    for request in requests {
        let mut client = open(gateway.http).await;
        client.send_bytes(&request).await;
        clients.push(client);
    }
    eventually("all three are under way", || async { worker.seen().len() == 3 }).await;
    eventually("the worker is rid of them", || async { worker.open() <= idle }).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // The first has its connection closed: what it reads now is not the whole.
    let came = clients[0].rest().await.len();
    assert!(came < 30_000_000, "{came}");
}
