//! Requests that two servers could read differently. Each is sent raw; what the worker received tells how we read it.
//!
//! Every one is refused or normalised: the worker's connections carry nothing but whole requests, the one hidden in
//! another is never seen, and the next honest request on the same connections gets its own answer.

use std::time::Duration;

use reqwest::StatusCode;

use super::h2raw;
use crate::fake::{Behaviour, Fake, Seen};
use crate::harness::{Gateway, open, pools};

/// The request that must not be seen.
const HIDDEN: &str = "GET /jobs/hidden HTTP/1.1\r\nhost: h\r\n\r\n";
/// How long nothing must come before an answer counts as whole.
const QUIET: Duration = Duration::from_millis(150);

/// One worker, and a gateway before it.
struct Pair {
    worker: Fake,
    gateway: Gateway,
    honest: usize,
}

impl Pair {
    async fn start() -> Self {
        let worker = Fake::start("aws", "w1").await;
        worker.behave(Behaviour::Echo);
        let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
        gateway.healthy(1).await;
        let mut pair = Self { worker, gateway, honest: 0 };
        pair.next_is_answered_as_itself("nothing").await;
        pair
    }

    /// Sends that, and answers what came back and what the worker saw of it.
    async fn send(&mut self, what: &str, bytes: &[u8]) -> (String, Vec<Seen>) {
        let (answer, seen) = self.send_allowing_pipelined(what, bytes).await;
        assert!(
            seen.iter().all(|seen| !seen.path.contains("hidden")),
            "{what}: the hidden request was seen\n{answer}"
        );
        (answer, seen)
    }

    /// The same where the hidden request honestly stands behind the first.
    async fn send_allowing_pipelined(&mut self, what: &str, bytes: &[u8]) -> (String, Vec<Seen>) {
        let before = self.worker.seen().len();
        let mut client = open(self.gateway.http).await;
        client.send_bytes(bytes).await;
        let answer = String::from_utf8_lossy(&client.quiet(QUIET).await).into_owned();
        let seen = self.worker.seen().split_off(before);
        self.next_is_answered_as_itself(what).await;
        (answer, seen)
    }

    async fn next_is_answered_as_itself(&mut self, after: &str) {
        self.honest += 1;
        let (n, client) = (self.honest, &self.gateway.client);
        let read = client.get(self.gateway.url(&format!("/jobs/honest-{n}"))).send().await.unwrap();
        assert_eq!(read.status(), StatusCode::OK, "after {after}");
        assert_eq!(read.text().await.unwrap(), format!("GET /jobs/honest-{n} 0"), "after {after}");
        let put = client.put(self.gateway.url(&format!("/upload/aws/honest-{n}"))).body("12345").send().await;
        assert_eq!(
            put.unwrap().text().await.unwrap(),
            format!("PUT /upload/aws/honest-{n} 5"),
            "after {after}"
        );
        assert_eq!(self.worker.garbled(), 0, "after {after}, the worker read something that is no request");
    }

    /// It is refused, and the worker never hears of it.
    async fn refused(&mut self, what: &str, request: &str) {
        let (answer, seen) = self.send(what, request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(answer.is_empty() || status.starts_with('4'), "{what} was answered with {answer}");
        // An upload's header may be on its way when its body turns out to be bad; then it is cut off, not completed.
        assert!(seen.is_empty(), "{what}: the worker saw {seen:?}");
    }

    /// It is read as one request, whose body the worker gets as `body`.
    async fn read_as(&mut self, what: &str, request: &str, body: &[u8]) {
        let (answer, seen) = self.send(what, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 20"), "{what} was answered with {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
        assert_eq!(seen.len(), 1, "{what}: {seen:?}");
        assert_eq!(String::from_utf8_lossy(&seen[0].body), String::from_utf8_lossy(body), "{what}");
        let both =
            seen[0].header("content-length").is_some() && seen[0].header("transfer-encoding").is_some();
        assert!(!both, "{what}: the worker has to choose between two lengths");
    }
}

fn put(headers: &str, body: &str) -> String {
    format!("PUT /upload/aws/k HTTP/1.1\r\nhost: h\r\n{headers}\r\n{body}")
}

fn post(headers: &str, body: &str) -> String {
    format!("POST /process HTTP/1.1\r\nhost: h\r\n{headers}\r\n{body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lengths_are_read_as_one_and_the_connection_ends() {
    let mut pair = Pair::start().await;
    let last = format!("0\r\n\r\n{HIDDEN}");
    let whole = last.len();
    let te = "transfer-encoding: chunked\r\n";
    // CL.TE: the length covers what lies behind the last chunk.
    pair.read_as("CL.TE", &put(&format!("content-length: {whole}\r\n{te}"), &last), b"").await;
    pair.read_as("TE.CL order", &put(&format!("{te}content-length: {whole}\r\n"), &last), b"").await;
    let spec = format!("2\r\n{{}}\r\n{last}");
    pair.read_as("CL.TE submit", &post(&format!("content-length: {}\r\n{te}", spec.len()), &spec), b"{}")
        .await;
    // TE.CL: the length ends within the first chunk.
    let chunk = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
    let request = put(&format!("content-length: 4\r\n{te}"), &chunk);
    pair.read_as("TE.CL", &request, HIDDEN.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_encoding_in_disguise_is_refused() {
    let mut pair = Pair::start().await;
    let last = format!("0\r\n\r\n{HIDDEN}");
    for disguise in [
        "transfer-encoding: xchunked",
        "transfer-encoding : chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: x",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: identity",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding:\r\n chunked",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding\u{0}: chunked",
        "transfer-encoding: chunk\u{0}ed",
        "transfer-encoding: chunked\rx: y",
        "transfer-encoding",
        "transfer encoding: chunked",
    ] {
        pair.refused(disguise, &put(&format!("{disguise}\r\n"), &last)).await;
        let both = format!("content-length: {}\r\n{disguise}\r\n", last.len());
        pair.refused(&format!("{disguise} beside a length"), &put(&both, &last)).await;
    }
    let old = put("transfer-encoding: chunked\r\n", &last).replace("HTTP/1.1\r\nhost", "HTTP/1.0\r\nhost");
    pair.refused("HTTP/1.0 with chunks", &old).await;
    pair.read_as(
        "another case and a tab",
        &put("Transfer-ENCODING:\tChunked\r\nconnection: close\r\n", &last),
        b"",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_no_number_is_refused() {
    let mut pair = Pair::start().await;
    for length in [
        "-5",
        "+5",
        "0x5",
        "5a",
        "5 5",
        "",
        "5,6",
        "5;5",
        "5.0",
        "1e1",
        "\u{b}5",
        "99999999999999999999999",
        "५",
    ] {
        pair.refused(&format!("length {length:?}"), &put(&format!("content-length: {length}\r\n"), "hello"))
            .await;
    }
    pair.refused("two lengths", &put("content-length: 5\r\ncontent-length: 6\r\n", "hello!")).await;
    pair.refused("two lengths in one", &put("content-length: 5, 6\r\n", "hello!")).await;
    pair.refused("a length with a space", &put("content-length : 5\r\n", "hello")).await;
    pair.refused("a folded length", &put("content-length: 5\r\n 0\r\n", "hello")).await;
    pair.read_as(
        "the same length twice",
        &put("content-length: 5\r\ncontent-length: 5\r\n", "hello"),
        b"hello",
    )
    .await;
    // What a proxy drops because `Connection` names it must not be the length.
    pair.read_as(
        "a length named hop by hop",
        &put("connection: content-length\r\ncontent-length: 5\r\n", "hello"),
        b"hello",
    )
    .await;
    let get = format!("GET /jobs/j HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{HIDDEN}", HIDDEN.len());
    pair.read_as("a read with a body", &get, HIDDEN.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_read_strictly() {
    let mut pair = Pair::start().await;
    let chunked = |body: &str| put("transfer-encoding: chunked\r\n", body);
    for size in ["-5", "+5", "0x5", "g", "5 5", "fffffffffffffffff", "5\u{0}", "5\r", " 5"] {
        pair.refused(&format!("chunk size {size:?}"), &chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")))
            .await;
    }
    pair.refused("a chunk longer than it says", &chunked("5\r\nhello!\r\n0\r\n\r\n")).await;
    pair.refused("a chunk shorter than it says", &chunked("6\r\nhello\r\n0\r\n\r\n")).await;
    // An extension that one server ends at the LF and another, as ours, at the CRLF: what comes later, as from a proxy
    // that still sends what it takes for the body, is no request.
    let size = format!("{:x}", HIDDEN.len());
    assert_eq!(size.len(), 2);
    let spill = chunked(&format!("2;\nxx\r\n{size}\r\n0\r\n\r\n"));
    pair.read_as("an extension with a bare LF", &spill, size.as_bytes()).await;
    pair.read_as("and all of it at once", &format!("{spill}{HIDDEN}"), size.as_bytes()).await;
    for request in [spill, chunked("\r\nhello\r\n0\r\n\r\n"), chunked("5\r\nhello\r\n0\r\n\r\n")] {
        let mut client = open(pair.gateway.http).await;
        client.send(&request).await;
        let head = client.head().await;
        assert!(
            head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("connection: close"),
            "{head}"
        );
        client.try_send(HIDDEN.as_bytes()).await;
        let rest = client.rest().await;
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{rest:?}");
    }
    assert!(pair.worker.seen().iter().all(|seen| !seen.path.contains("hidden")));
    pair.refused("chunks that end with LF", &chunked("5\nhello\n0\n\n")).await;
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(100_000));
    pair.refused("an endless extension", &chunked(&long)).await;
    pair.read_as("extensions", &chunked("5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n"), b"hello").await;
    // The parser takes no size for the size 0, and what follows for trailers. It ends there for the worker, too.
    pair.read_as("an empty chunk size", &chunked("\r\nhello\r\n0\r\n\r\n"), b"").await;
    let trailers = "5\r\nhello\r\n0\r\ncontent-length: 50\r\ntransfer-encoding: chunked\r\nx: y\r\n\r\n";
    pair.read_as("trailers that look like lengths", &chunked(trailers), b"hello").await;
    pair.refused("a spec's bad chunk", &post("transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_lines_have_one_meaning() {
    let mut pair = Pair::start().await;
    let get = |lines: &str| format!("GET /jobs/j HTTP/1.1\r\n{lines}\r\n");
    for (what, request) in [
        ("obs-fold", get("host: h\r\nx: a\r\n b\r\n")),
        ("a folded first line", get(" host: h\r\n")),
        ("a space before the colon", get("host : h\r\n")),
        ("two hosts", get("host: h\r\nhost: h\r\n")),
        ("two hosts, one folded", get("host: h\r\n host: i\r\n")),
        ("a line without a colon", get("host: h\r\nx\r\n")),
        ("a NUL", get("host: h\r\nx: a\u{0}b\r\n")),
        ("a bare CR", get("host: h\r\nx: a\rb: c\r\n")),
        ("an empty name", get("host: h\r\n: x\r\n")),
        (
            "another host in the target",
            "GET http://evil.example/jobs/j HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        ),
        ("userinfo in the target", "GET http://h@evil.example/jobs/j HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()),
        ("no version", format!("GET /jobs/j\r\nhost: h\r\n\r\n{HIDDEN}")),
        ("HTTP/2 as text", "GET /jobs/j HTTP/2.0\r\nhost: h\r\n\r\n".to_owned()),
        ("a tunnel", format!("CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n{HIDDEN}")),
        ("a method of none", format!(" /jobs/j HTTP/1.1\r\nhost: h\r\n\r\n{HIDDEN}")),
    ] {
        pair.refused(what, &request).await;
    }
    // Bare LF ends a line (RFC 9112, 2.2 allows it), in the same place for us and for the worker.
    pair.read_as("bare LF", "GET /jobs/j HTTP/1.1\nhost: h\n\n", b"").await;
    let hiding = "PUT /upload/aws/k HTTP/1.1\r\nhost: h\r\nx: y\ncontent-length: 5\r\n\r\nhello";
    pair.read_as("a length behind a bare LF", hiding, b"hello").await;
    let upgrade = format!(
        "{}{HIDDEN}",
        get(
            "host: h\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
        )
    );
    let (answer, seen) = pair.send_allowing_pipelined("an upgrade to h2c", upgrade.as_bytes()).await;
    assert!(!answer.contains(" 101 "), "{answer}");
    assert!(seen.iter().all(|seen| seen.header("upgrade").is_none()), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_requests_that_would_be_two_in_http1_are_refused() {
    let mut pair = Pair::start().await;
    let with = |name: &str, value: &str| {
        let mut fields = h2raw::request("PUT", "/upload/aws/bad");
        fields.push((name.to_owned(), value.to_owned()));
        fields
    };
    let hidden = format!("0\r\n\r\n{HIDDEN}");
    for (what, fields) in [
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("connection", with("connection", "content-length")),
        ("a length that is too long", with("content-length", "5000")),
        ("two lengths", [with("content-length", "45"), with("content-length", "3").split_off(4)].concat()),
        ("a line end in a value", with("x", "y\r\ntransfer-encoding: chunked")),
        ("a line end in a name", with("x: y\r\ntransfer-encoding", "chunked")),
        ("a capital in a name", with("Transfer-Encoding", "chunked")),
        ("a colon in a name", with("transfer-encoding:", "chunked")),
        ("another host", with("host", "evil.example")),
        ("a pseudo-header of its own", with(":evil", "x")),
        ("a path twice", with(":path", "/jobs/hidden")),
        (
            "a line end in the path",
            h2raw::request("PUT", "/upload/aws/bad HTTP/1.1\r\nhost: h\r\n\r\nGET /jobs/hidden"),
        ),
        ("a space in the path", h2raw::request("PUT", "/upload/aws/bad HTTP/1.1 x")),
        ("an absolute path", h2raw::request("PUT", "http://evil.example/upload/aws/bad")),
        (
            "a line end in the method",
            h2raw::request("GET /jobs/hidden HTTP/1.1\r\nhost: h\r\n\r\nPUT", "/upload/aws/bad"),
        ),
    ] {
        let mut bytes = h2raw::opening();
        bytes.extend(h2raw::headers(1, &fields, false));
        bytes.extend(h2raw::data(1, hidden.as_bytes(), true));
        let (_, seen) = pair.send(what, &bytes).await;
        assert!(seen.is_empty(), "{what}: the worker saw {seen:?}");
    }
    // A length of 0 ends the request for the worker before its body turns out to be there: it gets none of it.
    let mut bytes = h2raw::opening();
    bytes.extend(h2raw::headers(1, &with("content-length", "0"), false));
    bytes.extend(h2raw::data(1, hidden.as_bytes(), true));
    let (_, seen) = pair.send("a length that is too short", &bytes).await;
    assert!(seen.iter().all(|seen| seen.body.is_empty()), "{seen:?}");
    // An honest one in the same hand-writing, so that the others were refused for what they say.
    let mut bytes = h2raw::opening();
    bytes.extend(h2raw::headers(1, &with("x", "y"), false));
    bytes.extend(h2raw::data(1, b"hello", false));
    bytes.extend(h2raw::data(1, b"", true));
    let (_, seen) = pair.send("an honest one", &bytes).await;
    assert_eq!((seen.len(), seen[0].body.as_slice()), (1, b"hello".as_slice()));
}
