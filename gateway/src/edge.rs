//! The connection before it is a request: how many one address may hold, and how long a header may take.
//!
//! Pingora limits neither: it waits for ever for the bytes that tell HTTP/2 from HTTP/1, and gives a header 60 s per
//! read instead of a deadline. Its connection filter was rejected for the count, because it never learns that a
//! connection has ended.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::debug;

use crate::fleet::Fleet;
use crate::forward;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::tls::Tls;

/// Most connections of one client address. Load balancers come from few addresses, hence so many.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 8192;
/// How long a connection may be unused between two requests.
pub const KEEPALIVE: Duration = Duration::from_secs(60);
/// Requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 128;
/// Requests of a connection that were reset before we looked at them; one more ends it. What "rapid reset" runs into.
const RESETS_UNSEEN_MAX: usize = 20;
/// Requests of a connection that we reset and still remember, so that late frames of theirs are no error.
const RESETS_KEPT_MAX: usize = 32;
/// Requests that a connection may get wrong before it ends.
const ERRORS_MAX: usize = 256;
/// Bytes of one answer that wait for a client that does not read; h2's own default is 400 KiB.
const SEND_BUFFER: usize = 64 * 1024;
/// Bytes that a client may send of one request before they are taken: an upload is as fast as this per round trip,
/// and the default of 64 KiB is slow over an ocean.
const STREAM_WINDOW: u32 = 512 * 1024;
/// The same for all requests of a connection together.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes that a connection reads ahead of us, once it was looked at: whoever reads has room for more and so reads past
/// this. Pingora's own 64 KiB are there for as long as the connection is.
const READ_BUFFER: usize = 2 * 1024;
/// The first bytes by which HTTP/2 is told from HTTP/1: no HTTP/1 method begins so.
const H2_FIRST: &[u8; 3] = b"PRI";

/// What is kept of a connection of HTTP/1 from one request to the next, and until when the next one's header must be there.
#[derive(Debug)]
pub struct Connection {
    /// The address that it came from, as workers are told.
    pub client: Option<HeaderValue>,
    since: Instant,
    /// Until when the header that is waited for must have arrived, in microseconds since then; [`BUSY`] while none is.
    due_us: AtomicU64,
    used: AtomicBool,
}

/// No header is waited for.
const BUSY: u64 = u64::MAX;

impl Connection {
    fn new(client: Option<IpAddr>) -> Self {
        let client = client.map(forward::address);
        let (due_us, used) = (AtomicU64::new(BUSY), AtomicBool::new(false));
        Self { client, since: Instant::now(), due_us, used }
    }

    /// A request is waited for: its header may take so long, and an unused connection's first byte [`KEEPALIVE`] more.
    fn waits(&self, header: Duration) {
        let unused = if self.used.swap(true, Ordering::Relaxed) { KEEPALIVE } else { Duration::ZERO };
        let due = self.since.elapsed() + unused + header;
        self.due_us.store(due.as_micros() as u64, Ordering::Relaxed);
    }

    /// The header has arrived.
    pub fn header_arrived(&self) {
        self.due_us.store(BUSY, Ordering::Relaxed);
    }

    /// Ends when a header is overdue. In the connection's own task, and polled after what waits for headers: whoever tells
    /// of one need wake nobody. One timer for all requests: moving it on costs nothing, while making one costs a lock and
    /// an allocation.
    async fn overdue(&self) {
        let mut sleep = pin!(tokio::time::sleep_until(self.since));
        let mut set = BUSY;
        poll_fn(|context| {
            let due = self.due_us.load(Ordering::Relaxed);
            if due == BUSY {
                return Poll::Pending;
            }
            if due != set {
                sleep.as_mut().reset(self.since + Duration::from_micros(due));
                set = due;
            }
            sleep.as_mut().poll(context)
        })
        .await;
    }
}

/// Takes connections and hands them to the proxy.
#[derive(Clone)]
pub struct Edge {
    proxy: Arc<HttpProxy<Proxy>>,
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    tls: Option<Arc<Tls>>,
}

impl Edge {
    /// An edge before a proxy.
    pub fn new(proxy: HttpProxy<Proxy>, fleet: Arc<Fleet>, metrics: Arc<Metrics>) -> Self {
        Self { proxy: Arc::new(proxy), connections: Arc::default(), fleet, metrics, tls: None }
    }

    /// The same edge, with TLS: an address may hold as many connections to both together.
    #[must_use]
    pub fn with_tls(&self, tls: Arc<Tls>) -> Self {
        Self { tls: Some(tls), ..self.clone() }
    }

    /// How much its connections read and write at once. TLS reads ahead by itself.
    pub fn buffers(&self) -> L4BufferSettings {
        L4BufferSettings::default().read(if self.tls.is_some() { 0 } else { READ_BUFFER })
    }

    fn count(&self, address: IpAddr) -> Option<Counted> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(address).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Counted { address, connections: self.connections.clone() })
    }
}

/// One connection of an address, until it is dropped.
struct Counted {
    address: IpAddr,
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.address);
            }
        }
    }
}

#[async_trait]
impl ServerApp for Edge {
    /// Goes on in a task of its own: Pingora's keeps nine kilobytes for a handshake of its own kind for as long as it
    /// lives, and nobody waits for either.
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        tokio::spawn(self.clone().carry(stream, shutdown.clone()));
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

impl Edge {
    /// A connection's whole life.
    async fn carry(self: Arc<Self>, mut stream: Stream, shutdown: ShutdownWatch) -> Option<Stream> {
        let digest = stream.get_socket_digest();
        let address = digest.as_ref().and_then(|digest| digest.peer_addr()?.as_inet()).map(|inet| inet.ip());
        let _counted = match address {
            Some(address) => match self.count(address) {
                Some(counted) => Some(counted),
                None => {
                    self.metrics.connections_refused.inc();
                    return None;
                }
            },
            None => None,
        };
        let deadline = self.fleet.config().timeouts.header;
        let http2 = if let Some(tls) = &self.tls {
            stream = tls.handshake(stream, deadline).await?;
            matches!(stream.selected_alpn_proto(), Some(ALPN::H2))
        } else {
            let mut first = [0; H2_FIRST.len()];
            match tokio::time::timeout(deadline, stream.try_peek(&mut first)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
            first == *H2_FIRST
        };
        if !http2 {
            let connection = Arc::new(Connection::new(address));
            let app = Arc::new(Timed::new(&self, Begins::Http1(connection.clone())));
            let requests = app.process_new(stream, &shutdown);
            tokio::select! {
                biased;
                ended = requests => return ended,
                () = connection.overdue() => {
                    debug!("the header did not arrive in time: connection closed");
                    return None;
                }
            }
        }
        // Nothing in Pingora bounds the time until a connection of HTTP/2 begins.
        let begun = Arc::new(Notify::new());
        let app = Arc::new(Timed::new(&self, Begins::Http2(begun.clone())));
        let mut connection = app.process_new(stream, &shutdown);
        // On the heap and gone once it has begun, so that an idle connection keeps no room for it.
        let began = Box::pin(tokio::time::timeout(KEEPALIVE + deadline, begun.notified()));
        tokio::select! {
            biased;
            ended = &mut connection => return ended,
            began = began => began.ok()?,
        }
        connection.await
    }
}

/// The proxy for one connection, which is told of each request that begins.
struct Timed {
    proxy: Arc<HttpProxy<Proxy>>,
    fleet: Arc<Fleet>,
    options: HttpServerOptions,
    begins: Begins,
}

/// Who is told that a request begins.
enum Begins {
    /// Its header is waited for.
    Http1(Arc<Connection>),
    /// It begins with its header.
    Http2(Arc<Notify>),
}

impl Timed {
    fn new(edge: &Edge, begins: Begins) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2c = matches!(begins, Begins::Http2(_));
        options.h2_idle_timeout = Some(KEEPALIVE);
        Self { proxy: edge.proxy.clone(), fleet: edge.fleet.clone(), options, begins }
    }
}

#[async_trait]
impl HttpServerApp for Timed {
    /// What `async fn` would be, written out: its future would keep room for the whole session until the connection ends,
    /// which by then has long been moved into Pingora's own.
    fn process_new_http<'a, 'b, 'async_trait>(
        self: &'a Arc<Self>,
        mut session: ServerSession,
        shutdown: &'b ShutdownWatch,
    ) -> Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        Self: 'async_trait,
    {
        match &self.begins {
            Begins::Http1(connection) => {
                connection.waits(self.fleet.config().timeouts.header);
                // What `Proxy::on_connection_reuse` gets.
                session.set_connection_user_context(Some(Box::new(connection.clone())));
            }
            Begins::Http2(begun) => begun.notify_one(),
        }
        self.proxy.process_new_http(session, shutdown)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    fn h2_options(&self) -> Option<H2Options> {
        let header_bytes = self.fleet.config().limits.header_bytes;
        let mut options = H2Options::new();
        options
            .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
            .max_concurrent_reset_streams(RESETS_KEPT_MAX)
            .max_local_error_reset_streams(Some(ERRORS_MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Some(options)
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
