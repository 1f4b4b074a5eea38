//! Fetching from servers on loopback, well-behaved and otherwise.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::get;
use futures::StreamExt as _;
use millrace_wire::job::FailureCode;
use millrace_worker::failure::{Ended, Failure};
use millrace_worker::source::fetch::{Arrived, FetchSettings, Fetched, Fetcher};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const BODY: &[u8] = b"0123456789abcdef";

fn settings() -> FetchSettings {
    FetchSettings {
        allow_private: vec!["127.0.0.1/32".parse().unwrap()],
        bytes_max: 1000,
        total_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(300),
        redirects_max: 3,
    }
}

/// A server with one page for each way to behave.
async fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let chunked = || async {
        let chunks = futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 100])));
        Body::from_stream(chunks)
    };
    let status = |code: u16| get(move || async move { StatusCode::from_u16(code).unwrap() });
    let to = |target: String| get(move || async move { Redirect::temporary(&target) });
    let app = Router::new()
        .route("/ok", get(|| async { BODY }))
        .route("/empty", get(|| async { "" }))
        .route("/large", get(|| async { vec![0_u8; 1001] }))
        .route("/large-chunked", get(chunked))
        .route("/slow", get(|| async { dribble(20, 40).await }))
        .route("/slow-sized", get(|| async { ([("content-length", "2000")], dribble(20, 40).await) }))
        .route("/403", status(403))
        .route("/404", status(404))
        .route("/429", status(429))
        .route("/500", status(500))
        .route("/304", status(304))
        .route("/loop", to("/loop".to_owned()))
        .route("/hop3", to("/hop2".to_owned()))
        .route("/hop2", to("hop1".to_owned()))
        .route("/hop1", to(format!("http://127.0.0.1:{port}/ok")))
        .route("/hop4", to("/hop3".to_owned()))
        .route("/to-neighbour", to(format!("http://127.0.0.2:{port}/ok")))
        .route("/to-name", to(format!("http://localhost.localdomain.localhost:{port}/ok")))
        .route("/to-metadata", to("http://169.254.169.254/latest/meta-data/".to_owned()))
        .route("/to-file", to("file:///etc/passwd".to_owned()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://127.0.0.1:{port}")
}

/// A server that answers with these bytes, and closes unless it is to hang.
async fn raw(answer: &'static str, hang: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://user:secret@{}/v.mp4?sig=secret", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            if hang {
                held.push(stream);
            }
        }
    });
    url
}

/// Fetches; whatever comes of it, no unfinished file may stay.
async fn fetch(settings: FetchSettings, url: &str) -> Result<Vec<u8>, Failure> {
    let directory = TempDir::new().unwrap();
    let into = directory.path().join("source");
    let fetcher = Fetcher::new(settings).unwrap();
    let fetched = fetcher.fetch(url, &into, &|_| {}, &CancellationToken::new()).await;
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    match fetched {
        Ok(Fetched { bytes }) => {
            let content = std::fs::read(&into).unwrap();
            assert_eq!((bytes, left), (content.len() as u64, 1));
            Ok(content)
        }
        Err(Ended::Failed(failure)) => {
            assert_eq!(left, 0, "an unfinished file stays: {failure}");
            assert!(!failure.to_string().contains("secret"), "{failure}");
            Err(failure)
        }
        Err(Ended::Cancelled) => panic!("nobody cancelled"),
    }
}

#[tokio::test]
async fn a_file_arrives_also_over_redirects() {
    let server = server().await;
    for page in ["ok", "hop1", "hop3"] {
        assert_eq!(fetch(settings(), &format!("{server}/{page}")).await.unwrap(), BODY, "{page}");
    }
}

#[tokio::test]
async fn every_refusal_has_its_code() {
    use FailureCode as Code;
    let server = server().await;
    for (page, code) in [
        ("403", Code::SourceNotFound),
        ("404", Code::SourceNotFound),
        ("429", Code::SourceUnavailable),
        ("500", Code::SourceUnavailable),
        ("304", Code::SourceRedirects),
        ("empty", Code::SourceEmpty),
        ("large", Code::SourceTooLarge),
        ("large-chunked", Code::SourceTooLarge),
        ("loop", Code::SourceRedirects),
        ("hop4", Code::SourceRedirects),
        ("to-file", Code::SourceRedirects),
        ("to-neighbour", Code::SourceAddressRefused),
        ("to-metadata", Code::SourceAddressRefused),
    ] {
        let failure = fetch(settings(), &format!("{server}/{page}")).await.unwrap_err();
        assert_eq!(failure.code, code, "{page}: {failure}");
    }
    let nothing = fetch(settings(), "http://127.0.0.1:1/").await.unwrap_err();
    assert_eq!(nothing.code, Code::SourceUnreachable);
    let nobody = fetch(settings(), "http://no-such-host.invalid/").await.unwrap_err();
    assert_eq!(nobody.code, Code::SourceUnreachable, "{nobody}");
}

#[tokio::test]
async fn loopback_is_refused_by_address_and_by_name_unless_allowed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = FetchSettings { allow_private: Vec::new(), ..settings() };
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0"] {
        let failure = fetch(closed.clone(), &format!("http://{host}:{port}/ok")).await.unwrap_err();
        assert_eq!(failure.code, FailureCode::SourceAddressRefused, "{host}: {failure}");
    }
    let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(accepted.is_err(), "something connected");
    let open = FetchSettings {
        allow_private: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        ..settings()
    };
    let url = server().await.replace("127.0.0.1", "localhost");
    assert_eq!(fetch(open, &format!("{url}/ok")).await.unwrap(), BODY, "a name that is allowed");
}

#[tokio::test]
async fn a_server_that_stops_is_given_up() {
    let stalls = raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789", true).await;
    let started = Instant::now();
    let failure = fetch(settings(), &stalls).await.unwrap_err();
    assert_eq!(failure.code, FailureCode::SourceTimeout, "{failure}");
    assert!(started.elapsed() < Duration::from_secs(3));
    let patient = FetchSettings {
        stall_timeout: Duration::from_secs(60),
        total_timeout: Duration::from_millis(300),
        ..settings()
    };
    let failure = fetch(patient, &stalls).await.unwrap_err();
    assert_eq!(failure.code, FailureCode::SourceTimeout, "{failure}");
    let short = FetchSettings { connect_timeout: Duration::from_millis(200), ..settings() };
    let silent = fetch(short, &raw("", true).await).await.unwrap_err();
    assert_eq!(silent.code, FailureCode::SourceTimeout, "{silent}");
}

#[tokio::test]
async fn a_body_that_ends_early_may_be_tried_again() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "nonsense\r\n\r\n",
        "",
    ] {
        let failure = fetch(settings(), &raw(answer, false).await).await.unwrap_err();
        assert_eq!(failure.code, FailureCode::SourceUnreachable, "{answer:?}: {failure}");
        assert!(!failure.is_permanent());
    }
}

#[tokio::test]
async fn a_scratch_directory_that_is_missing_is_the_workers_fault() {
    let server = server().await;
    let fetcher = Fetcher::new(settings()).unwrap();
    let into = std::path::Path::new("/no/such/directory/source");
    match fetcher.fetch(&format!("{server}/ok"), into, &|_| {}, &CancellationToken::new()).await {
        Err(Ended::Failed(failure)) => assert_eq!(failure.code, FailureCode::ScratchUnavailable),
        other => panic!("{other:?}"),
    }
}

/// Chunks of a hundred bytes, each so many milliseconds after the one before.
async fn dribble(chunks: u32, apart_ms: u64) -> Body {
    let chunks = futures::stream::iter(0..chunks).then(move |_| async move {
        tokio::time::sleep(Duration::from_millis(apart_ms)).await;
        Ok::<_, std::io::Error>(vec![b'x'; 100])
    });
    Body::from_stream(chunks)
}

#[tokio::test]
async fn a_fetch_says_now_and_then_how_far_it_is() {
    let server = server().await;
    for (page, announced) in [("slow", None), ("slow-sized", Some(2000))] {
        let directory = TempDir::new().unwrap();
        let fetcher = Fetcher::new(FetchSettings { bytes_max: 5000, ..settings() }).unwrap();
        let seen: Mutex<Vec<(Instant, Arrived)>> = Mutex::default();
        let report = |arrived| seen.lock().unwrap().push((Instant::now(), arrived));
        let into = directory.path().join("source");
        fetcher.fetch(&format!("{server}/{page}"), &into, &report, &CancellationToken::new()).await.unwrap();
        let seen = seen.into_inner().unwrap();
        let bytes: Vec<u64> = seen.iter().map(|(_, arrived)| arrived.bytes).collect();
        assert!(seen.iter().all(|(_, arrived)| arrived.announced == announced), "{seen:?}");
        assert_eq!((bytes[0], bytes[bytes.len() - 1]), (0, 2000));
        assert!(bytes.is_sorted() && bytes.len() > 3, "it says so on the way: {bytes:?}");
        let between = &seen[..seen.len() - 1];
        let often = between.windows(2).any(|pair| pair[1].0 - pair[0].0 < Duration::from_millis(195));
        assert!(!often, "{seen:?}");
    }
}

#[tokio::test]
async fn a_cancelled_fetch_leaves_nothing() {
    let url = raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789", true).await;
    let directory = TempDir::new().unwrap();
    let patient = FetchSettings {
        stall_timeout: Duration::from_secs(60),
        total_timeout: Duration::from_secs(60),
        ..settings()
    };
    let (cancel, into) = (CancellationToken::new(), directory.path().join("source"));
    let fetcher = Fetcher::new(patient).unwrap();
    let (fetching, into_of) = (cancel.clone(), into.clone());
    let task = tokio::spawn(async move { fetcher.fetch(&url, &into_of, &|_| {}, &fetching).await });
    let part = directory.path().join("source.part");
    while !part.exists() {
        assert!(!task.is_finished());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cancel.cancel();
    assert_eq!(task.await.unwrap(), Err(Ended::Cancelled));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
