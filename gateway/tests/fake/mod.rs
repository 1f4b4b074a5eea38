//! A worker made of a socket: it reads HTTP/1 strictly, records what it reads, and answers as it is told.
//!
//! By hand rather than on an HTTP stack, so that it can break off in the middle of a header, and so that a byte too
//! many on a connection is seen and not forgiven.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_wire::{Code, LoadReport, Problem};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What a worker does with everything but probes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Behaviour {
    /// 202 for submits, 200 for the rest.
    Accept,
    /// The same, after a while.
    Slow(Duration),
    /// The same, with a load report that cannot be.
    Unbelievable,
    /// 429 to submits, while every report says that it is idle, or nonsense; reads are answered after a while.
    Lie(Lie, Duration),
    /// 429 with that `Retry-After`.
    Full(u64),
    /// That status, with a body that is no problem.
    Status(u16),
    /// 503 with a problem of its own.
    StoreUnavailable,
    /// 503 with a `Retry-After`, as for a stream too many.
    Busy,
    /// A stream of events, one each time that has passed.
    Events(Duration),
    /// 200 with that many bytes.
    Large(usize),
    /// 200 that says what was asked: method, path, and the length of the body.
    Echo,
    /// The connection closes instead of an answer.
    Reset,
    /// The connection closes in the middle of the answer's header.
    PartialHeader,
    /// No answer.
    Hang,
}

/// What is wrong with a load report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Lie {
    /// Less than no work.
    Negative,
    /// A speed that is no number.
    NotANumber,
    /// More slots and speed than there are.
    Huge,
    /// Idle, under a sequence number of long ago.
    Stale,
}

impl Lie {
    /// The report as JSON and as ORCA.
    fn tell(self, honest: &LoadReport) -> (String, String) {
        let mut load = LoadReport { running: 0, queued: 0, work_seconds: 0.0, ..honest.clone() };
        match self {
            Self::Negative => load.work_seconds = -1e6,
            Self::NotANumber => load.speed = f64::NAN,
            Self::Huge => (load.slots, load.speed) = (u32::MAX, 1e300),
            Self::Stale => load.sequence = 1,
        }
        // JSON has no such number; what is written is no JSON then.
        let json = serde_json::to_string(&load).unwrap().replace("\"speed\":null", "\"speed\":NaN");
        (json, load.to_orca())
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }
}

/// A fake worker; stops when dropped.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    load: Mutex<LoadReport>,
    seen: Mutex<Vec<Seen>>,
    garbled: AtomicUsize,
    reused: AtomicUsize,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    tls: Mutex<Option<TlsAcceptor>>,
    stop: CancellationToken,
}

/// A connection, with TLS or without.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

impl Fake {
    pub(crate) async fn start(pool: &str, worker: &str) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), pool, worker).await
    }

    pub(crate) async fn start_at(address: SocketAddr, pool: &str, worker: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        // As many as the kernel allows: a test may send hundreds of requests at once, and a lost SYN costs a second.
        let listener = socket.listen(u32::from(u16::MAX)).unwrap();
        let address = listener.local_addr().unwrap();
        let load = LoadReport {
            worker: worker.parse().unwrap(),
            pool: pool.parse().unwrap(),
            store_id: "store-1".to_owned(),
            slots: 2,
            running: 0,
            queued: 0,
            queue_max: 4,
            work_seconds: 0.0,
            speed: 1.0,
            pool_queued: 0,
            pool_work_seconds: 0.0,
            draining: false,
            incarnation: 1,
            sequence: 0,
        };
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(Behaviour::Accept),
            load: Mutex::new(load),
            seen: Mutex::default(),
            garbled: AtomicUsize::new(0),
            reused: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            tls: Mutex::default(),
            stop: CancellationToken::new(),
        });
        tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared }
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// Speaks TLS on new connections, by that configuration.
    pub(crate) fn tls(&self, config: Arc<rustls::ServerConfig>) {
        *self.shared.tls.lock().unwrap() = Some(TlsAcceptor::from(config));
    }

    /// TLS connections that were made.
    pub(crate) fn handshakes(&self) -> usize {
        self.shared.handshakes.load(Ordering::SeqCst)
    }

    pub(crate) fn load(&self, change: impl FnOnce(&mut LoadReport)) {
        change(&mut self.shared.load.lock().unwrap());
    }

    /// Everything but probes, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(crate) fn submits(&self) -> Vec<Seen> {
        let submit = |seen: &Seen| seen.path == "/process" || (seen.path == "/jobs" && seen.method == "POST");
        self.seen().into_iter().filter(submit).collect()
    }

    /// Bytes that were no request, counted by connection.
    pub(crate) fn garbled(&self) -> usize {
        self.shared.garbled.load(Ordering::SeqCst)
    }

    /// Requests other than the first of a connection, probes not counted.
    pub(crate) fn reused(&self) -> usize {
        self.shared.reused.load(Ordering::SeqCst)
    }

    /// Open connections.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Closes the listener and every connection, as a killed process would.
    pub(crate) fn stop(&self) {
        self.shared.stop.cancel();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let stream = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            let tls = shared.tls.lock().unwrap().clone();
            let stream: Box<dyn Socket> = match tls {
                None => Box::new(stream),
                Some(tls) => {
                    let Ok(stream) = tls.accept(stream).await else {
                        shared.open.fetch_sub(1, Ordering::SeqCst);
                        return;
                    };
                    shared.handshakes.fetch_add(1, Ordering::SeqCst);
                    Box::new(stream)
                }
            };
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = serve(Connection { stream, buffer: Vec::new(), bodiless: false }, &shared) => {}
            }
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn serve(mut connection: Connection, shared: &Shared) {
    let mut count = 0;
    loop {
        let seen = match connection.request().await {
            Ok(Some(seen)) => seen,
            Ok(None) => return,
            Err(Garbled) => {
                shared.garbled.fetch_add(1, Ordering::SeqCst);
                return;
            }
        };
        let report = {
            let mut load = shared.load.lock().unwrap();
            load.sequence += 1;
            load.clone()
        };
        let behaviour = *shared.behaviour.lock().unwrap();
        let (json, orca) = match behaviour {
            Behaviour::Lie(lie, _) => lie.tell(&report),
            _ => (serde_json::to_string(&report).unwrap(), report.to_orca()),
        };
        if seen.path == "/load" {
            let body = json;
            connection.answer(200, "", &body).await;
            continue;
        }
        if count > 0 {
            shared.reused.fetch_add(1, Ordering::SeqCst);
        }
        count += 1;
        connection.bodiless = seen.method == "HEAD";
        let submit = seen.path == "/process" || seen.path == "/jobs";
        let echo = format!("{} {} {}", seen.method, seen.path, seen.body.len());
        shared.seen.lock().unwrap().push(seen);
        let mut orca = orca;
        let success = if submit { 202 } else { 200 };
        if behaviour == Behaviour::Unbelievable {
            orca = orca.replace("speed=1", "speed=NaN");
        }
        let headers = format!("endpoint-load-metrics: {orca}\r\nmillrace-store: {}\r\n", report.store_id);
        match behaviour {
            Behaviour::Accept | Behaviour::Unbelievable => {
                connection.answer(success, &headers, "{\"ok\":true}").await
            }
            Behaviour::Slow(wait) => {
                tokio::time::sleep(wait).await;
                connection.answer(success, &headers, "{\"ok\":true}").await;
            }
            Behaviour::Lie(_, wait) => {
                tokio::time::sleep(wait).await;
                connection.answer(if submit { 429 } else { 200 }, &headers, "{\"ok\":true}").await;
            }
            Behaviour::Full(after) => {
                connection.answer(429, &format!("{headers}retry-after: {after}\r\n"), "{}").await;
            }
            Behaviour::Status(status) => connection.answer(status, &headers, "it hurts").await,
            Behaviour::StoreUnavailable => {
                let problem = Problem::new(Code::StoreUnavailable, "the disk is full").to_json();
                let headers = format!("{headers}content-type: application/problem+json\r\n");
                connection.answer(503, &headers, &problem).await;
            }
            Behaviour::Busy => {
                let headers =
                    format!("{headers}retry-after: 5\r\ncontent-type: application/problem+json\r\n");
                let problem = Problem::new(Code::TooManyStreams, "full").to_json();
                connection.answer(503, &headers, &problem).await;
            }
            Behaviour::Events(every) => {
                let kind = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";
                let mut piece = format!("HTTP/1.1 200 X\r\n{kind}{headers}\r\n");
                for n in 1.. {
                    if connection.stream.write_all(piece.as_bytes()).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(every).await;
                    let event = format!("data: {n}\n\n");
                    piece = format!("{:x}\r\n{event}\r\n", event.len());
                }
            }
            Behaviour::Large(bytes) => connection.answer(200, &headers, &"x".repeat(bytes)).await,
            Behaviour::Echo => connection.answer(success, &headers, &echo).await,
            Behaviour::Reset => return,
            Behaviour::PartialHeader => {
                connection.stream.write_all(b"HTTP/1.1 202 Acc").await.unwrap();
                connection.stream.flush().await.unwrap();
                return;
            }
            Behaviour::Hang => std::future::pending::<()>().await,
        }
    }
}

struct Connection {
    stream: Box<dyn Socket>,
    buffer: Vec<u8>,
    /// The last request was HEAD.
    bodiless: bool,
}

/// What came is no HTTP/1 request.
struct Garbled;

impl Connection {
    async fn answer(&mut self, status: u16, headers: &str, body: &str) {
        let length = body.len();
        let body = if self.bodiless { "" } else { body };
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
        // The gateway may have hung up; that shows on its side.
        let _ = self.stream.write_all(answer.as_bytes()).await;
    }

    async fn more(&mut self) -> bool {
        let mut piece = vec![0; 65536];
        match self.stream.read(&mut piece).await {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&piece[..n]);
                true
            }
        }
    }

    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let rest = self.buffer.split_off(at + end.len());
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < n {
            if !self.more().await {
                return None;
            }
        }
        let rest = self.buffer.split_off(n);
        Some(std::mem::replace(&mut self.buffer, rest))
    }

    async fn request(&mut self) -> Result<Option<Seen>, Garbled> {
        let Some(head) = self.until(b"\r\n\r\n").await else {
            return if self.buffer.is_empty() { Ok(None) } else { Err(Garbled) };
        };
        let head = String::from_utf8(head).map_err(|_| Garbled)?;
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().ok_or(Garbled)?.split(' ');
        let (Some(method), Some(path), Some("HTTP/1.1")) = (first.next(), first.next(), first.next()) else {
            return Err(Garbled);
        };
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())).ok_or(Garbled))
            .collect::<Result<_, _>>()?;
        let mut seen = Seen { method: method.to_owned(), path: path.to_owned(), headers, body: Vec::new() };
        if let Some(length) = seen.header("content-length") {
            let Some(body) = self.exactly(length.parse().map_err(|_| Garbled)?).await else {
                return Ok(None);
            };
            seen.body = body;
        } else if seen.header("transfer-encoding").is_some() {
            loop {
                let Some(size) = self.until(b"\r\n").await else { return Ok(None) };
                let size = String::from_utf8(size).map_err(|_| Garbled)?;
                let size = usize::from_str_radix(size.trim_end(), 16).map_err(|_| Garbled)?;
                let Some(chunk) = self.exactly(size + 2).await else { return Ok(None) };
                if !chunk.ends_with(b"\r\n") {
                    return Err(Garbled);
                }
                if size == 0 {
                    break;
                }
                seen.body.extend_from_slice(&chunk[..size]);
            }
        }
        Ok(Some(seen))
    }
}
