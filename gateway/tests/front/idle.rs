//! Connections that do nothing: browsers keep them open, and a gateway holds all of them at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures::StreamExt as _;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use super::h2raw;
use super::tls::{Authority, Files};
use crate::fake::Fake;
use crate::harness::Gateway;

/// What an idle connection may cost, in bytes, whether it speaks HTTP/2, which keeps its tables, or TLS, which keeps its
/// keys and a buffer of records, or both.
const IDLE_BYTES_MAX: u64 = 45 * 1024;
/// Connections of one address of ours; the gateway takes some more.
const PER_ADDRESS: usize = 4000;
/// Connections that are opened at once.
const AT_ONCE: usize = 64;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// The `n`th connection.
async fn connect(to: SocketAddr, n: usize) -> impl Socket + 'static {
    let socket = TcpSocket::new_v4().unwrap();
    let last = u8::try_from(1 + n / PER_ADDRESS).unwrap();
    // Without this a port would be taken for good, and none left for the same port of another address.
    socket.set_reuseaddr(true).unwrap();
    socket.bind((IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0).into()).unwrap();
    let stream = socket.connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Asks once by HTTP/1, and reads the whole answer.
async fn ask_http1(stream: &mut (impl Socket + ?Sized)) {
    stream.write_all(b"GET /jobs/j HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    // TLS keeps what was written until then.
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"{\"ok\":true}") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

/// The same by HTTP/2.
async fn ask_http2(stream: &mut (impl Socket + ?Sized)) {
    let acknowledged = h2raw::frame(h2raw::SETTINGS, h2raw::ACK, 0, &[]);
    stream
        .write_all(&[h2raw::opening(), acknowledged, h2raw::get(1, "/jobs/j", &[])].concat())
        .await
        .unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    loop {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        while let Some(frame) = h2raw::take(&mut answer) {
            if frame.kind == h2raw::DATA && frame.flags & h2raw::END_STREAM != 0 {
                return;
            }
        }
    }
}

/// Holds so many connections open, each after one request; what one of them costs the gateway, in bytes.
async fn cost(
    gateway: &Gateway,
    to: SocketAddr,
    tls: Option<TlsConnector>,
    http2: bool,
    count: usize,
) -> u64 {
    let open = |n: usize| {
        let tls = tls.clone();
        async move {
            let stream = connect(to, n).await;
            let mut stream: Box<dyn Socket> = match tls {
                None => Box::new(stream),
                Some(tls) => Box::new(tls.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap()),
            };
            if http2 {
                ask_http2(&mut stream).await
            } else {
                ask_http1(&mut stream).await
            }
            stream
        }
    };
    // The first ones fill what all share: the runtime, the connections to the worker, the allocator.
    let warm: Vec<_> = futures::stream::iter(0..AT_ONCE).map(open).buffer_unordered(AT_ONCE).collect().await;
    let (before, sockets) = (gateway.resident_kib(), gateway.sockets());
    let idle: Vec<_> = futures::stream::iter(0..count).map(open).buffer_unordered(AT_ONCE).collect().await;
    let after = gateway.resident_kib();
    assert_eq!(idle.len(), count);
    assert!(gateway.sockets() >= sockets + count - AT_ONCE, "all of them are open");
    drop((warm, idle));
    let bytes = after.saturating_sub(before) * 1024 / count as u64;
    println!("http2 {http2}, tls {}: {count} idle connections, {bytes} bytes each", tls.is_some());
    bytes
}

/// Enough files for both ends of what this test opens.
fn make_room(files: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    assert!(
        limit.maximum.is_none_or(|most| most >= files),
        "the hard limit of open files is {limit:?}, wants {files}"
    );
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_are_cheap() {
    make_room(12_000);
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let files = Files::new(&authority.server(2099));
    let gateway = Gateway::start_with_files_max(1024, &files.routing(&[&worker], "")).await;
    gateway.healthy(1).await;
    let bytes = cost(&gateway, gateway.http, None, false, 10_000).await;
    assert!(bytes <= IDLE_BYTES_MAX, "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_of_http2_and_tls_are_as_cheap() {
    make_room(8000);
    let (worker, authority) = (Fake::start("aws", "w1").await, Authority::new());
    let files = Files::new(&authority.server(2099));
    let mut costs = Vec::new();
    for (http2, by_tls) in [(true, false), (false, true), (true, true)] {
        // Each of its own: what one kind has given back, the next would not have to ask for.
        let gateway = Gateway::start(&files.routing(&[&worker], "")).await;
        gateway.healthy(1).await;
        let protocol = if http2 { "h2" } else { "http/1.1" };
        let tls = by_tls.then(|| TlsConnector::from(Arc::new(authority.speaking(protocol))));
        let to = if by_tls { gateway.https.unwrap() } else { gateway.http };
        // The allocator takes memory in large pieces, which fewer connections would have to pay for alone.
        let bytes = cost(&gateway, to, tls, http2, 1000).await;
        costs.push((http2, by_tls, bytes));
    }
    assert!(costs.iter().all(|(_, _, bytes)| *bytes <= IDLE_BYTES_MAX), "{costs:?}");
}
