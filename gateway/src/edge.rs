//! The connection before it is a request: how many one address may hold, and how long a header may take.
//!
//! Pingora limits neither: it waits for ever for the bytes that tell HTTP/2 from HTTP/1, and gives a header 60 s per
//! read instead of a deadline. Its connection filter was rejected for the count, because it never learns that a
//! connection has ended.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::sync::Notify;
use tracing::debug;

use crate::fleet::Fleet;
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

tokio::task_local! {
    /// Told once the header of the request that this task waits for has arrived.
    static HEADER: Arc<AtomicBool>;
}

/// Says that the header of this task's request has arrived.
pub fn header_arrived() {
    // Outside of an edge (HTTP/2 streams begin with their header) nobody waits.
    let _ = HEADER.try_with(|arrived| arrived.store(true, Ordering::Relaxed));
}

/// Marks a connection that has carried a request already.
#[derive(Debug)]
pub struct Reused;

/// Takes connections and hands them to the proxy.
#[derive(Clone)]
pub struct Edge {
    proxy: Arc<HttpProxy<Proxy>>,
    http1: Arc<Timed>,
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    tls: Option<Arc<Tls>>,
}

impl Edge {
    /// An edge before a proxy.
    pub fn new(proxy: HttpProxy<Proxy>, fleet: Arc<Fleet>, metrics: Arc<Metrics>) -> Self {
        let proxy = Arc::new(proxy);
        let http1 = Arc::new(Timed::new(&proxy, &fleet, None));
        Self { proxy, http1, connections: Arc::default(), fleet, metrics, tls: None }
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
        self.http1.http_cleanup().await;
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
            return self.http1.process_new(stream, &shutdown).await;
        }
        // Nothing in Pingora bounds the time until a connection of HTTP/2 begins.
        let begun = Arc::new(Notify::new());
        let app = Arc::new(Timed::new(&self.proxy, &self.fleet, Some(begun.clone())));
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

/// Ends after `deadline`, and never once `arrived`. In the same task: whoever sets that need wake nobody.
async fn until(arrived: &AtomicBool, deadline: Duration) {
    let mut sleep = pin!(tokio::time::sleep(deadline));
    poll_fn(
        |context| if arrived.load(Ordering::Relaxed) { Poll::Pending } else { sleep.as_mut().poll(context) },
    )
    .await;
}

/// The proxy with a deadline for each request's header.
struct Timed {
    proxy: Arc<HttpProxy<Proxy>>,
    fleet: Arc<Fleet>,
    options: HttpServerOptions,
    /// For a connection of HTTP/2, told once it carries a request.
    begun: Option<Arc<Notify>>,
}

impl Timed {
    fn new(proxy: &Arc<HttpProxy<Proxy>>, fleet: &Arc<Fleet>, begun: Option<Arc<Notify>>) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2c = begun.is_some();
        options.h2_idle_timeout = Some(KEEPALIVE);
        Self { proxy: proxy.clone(), fleet: fleet.clone(), options, begun }
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
        if let Some(begun) = &self.begun {
            begun.notify_one();
        }
        let context = session.take_connection_user_context();
        let unused = if context.is_some() { KEEPALIVE } else { Duration::ZERO };
        session.set_connection_user_context(context);
        let deadline = unused + self.fleet.config().timeouts.header;
        let arrived = Arc::new(AtomicBool::new(false));
        let request = HEADER.scope(arrived.clone(), self.proxy.process_new_http(session, shutdown));
        Box::pin(async move {
            // The request first: it says when the header is there, and then the time is not looked at any more.
            tokio::select! {
                biased;
                reused = request => reused,
                () = until(&arrived, deadline) => {
                    debug!(?deadline, "the header did not arrive in time: connection closed");
                    None
                }
            }
        })
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
