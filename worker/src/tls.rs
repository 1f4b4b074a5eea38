//! TLS before the worker's HTTP: handshakes beside each other, each bounded, with the certificate in force.
//!
//! With a client CA this is where a worker tells the gateway from everybody else, so nothing of a request is read
//! before. axum keeps serving and stopping as without TLS: it only gets its connections from here. A server of its own
//! (`axum-server`) was rejected, because its shutdown is another one.

use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use millrace_runtime::tls::{Bad, Followed, Loaded, Seen, Server};
use millrace_wire::{Code, Problem, problem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::metrics::Metrics;

/// What a worker speaks over TLS, as it does without.
pub const ALPN: &[&[u8]] = &[b"http/1.1"];
/// Between two looks at the files.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// Longest handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once; who comes then waits in the kernel's queue.
const HANDSHAKES_MAX: usize = 1024;
/// The first byte of a client that speaks TLS: a handshake record.
const HANDSHAKE_RECORD: u8 = 0x16;
/// How long a client that does not may take to read why it is refused.
const FAREWELL: Duration = Duration::from_millis(500);

/// The certificate in force.
pub struct Tls {
    files: Server,
    in_force: Mutex<TlsAcceptor>,
    followed: Mutex<Followed<Server>>,
    metrics: Arc<Metrics>,
}

impl Tls {
    /// Serves with these files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn open(files: Server, metrics: Arc<Metrics>) -> Result<Self, Bad> {
        let (followed, Loaded { made, expires_unix_s }) = Followed::open(&files)?;
        metrics.certificate_expiry.set(expires_unix_s);
        metrics.certificate_success.set(1);
        let in_force = Mutex::new(TlsAcceptor::from(made));
        Ok(Self { files, in_force, followed: Mutex::new(followed), metrics })
    }

    fn look(&self) {
        let seen = Seen::at(&self.files);
        match self.followed.lock().unwrap_or_else(PoisonError::into_inner).saw(seen) {
            None => {}
            Some(Ok(Loaded { made, expires_unix_s })) => {
                *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = TlsAcceptor::from(made);
                self.metrics.certificate_expiry.set(expires_unix_s);
                self.metrics.certificate_success.set(1);
                info!(expires_unix_s, "certificate reloaded");
            }
            Some(Err(bad)) => {
                self.metrics.certificate_success.set(0);
                error!(error = %flagged(&bad), "certificate not reloaded; the one in force stays");
            }
        }
    }

    /// A connection that has shaken hands, if it has in time.
    async fn shake(&self, socket: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let failed = |kind: &str| self.metrics.tls_handshakes_failed.with_label_values(&[kind]).inc();
        let shaking = async {
            let mut first = [0];
            if socket.peek(&mut first).await? == 1 && first[0] != HANDSHAKE_RECORD {
                refuse(socket).await;
                failed("plain");
                return Ok(None);
            }
            // An answer's last piece is small; it shall not wait for an acknowledgement.
            socket.set_nodelay(true)?;
            let acceptor = self.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone();
            acceptor.accept(socket).await.map(Some)
        };
        match tokio::time::timeout(HANDSHAKE, shaking).await {
            Ok(Ok(stream)) => return stream,
            Ok(Err(error)) => {
                debug!(%from, %error, "TLS handshake failed");
                failed("refused");
            }
            Err(_) => {
                debug!(%from, "TLS handshake did not end in time");
                failed("timeout");
            }
        }
        None
    }
}

/// What is wrong, under the flag that names the file.
pub fn flagged(bad: &Bad) -> String {
    format!("--tls-{}: {}", bad.key.replace('_', "-"), bad.message)
}

/// Tells who speaks HTTP without TLS what is wrong, since an alert would tell him nothing.
async fn refuse(mut socket: TcpStream) {
    let body = Problem::new(Code::BadRequest, "this worker speaks TLS; ask it by https").to_json();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        problem::CONTENT_TYPE,
        body.len()
    );
    let told = async {
        socket.write_all(answer.as_bytes()).await?;
        socket.shutdown().await?;
        // Closing before all is read would reset the connection, and take the answer along.
        let mut rest = [0; 1024];
        while socket.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(FAREWELL, told).await;
}

/// Connections that have shaken hands, as axum takes them.
struct Shaken {
    address: SocketAddr,
    connections: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    accepting: JoinHandle<()>,
}

impl Shaken {
    /// Shakes hands with who connects to `listener`, until it is dropped.
    fn listen(listener: TcpListener, tls: Arc<Tls>) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (shaken, connections) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, tls, shaken));
        Ok(Self { address, connections, accepting })
    }
}

async fn accept(
    mut listener: TcpListener,
    tls: Arc<Tls>,
    shaken: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let mut shaking = JoinSet::new();
    loop {
        tokio::select! {
            (socket, from) = Listener::accept(&mut listener), if shaking.len() < HANDSHAKES_MAX => {
                let tls = Arc::clone(&tls);
                shaking.spawn(async move { Some((tls.shake(socket, from).await?, from)) });
            }
            Some(done) = shaking.join_next() => {
                let Ok(Some(connection)) = done else { continue };
                if shaken.send(connection).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Listener for Shaken {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.connections.recv().await.expect("the accepting task ends with this listener only")
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for Shaken {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves over TLS until `done`, and follows the files meanwhile.
///
/// # Errors
/// The listener has no address.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<Tls>,
    router: Router,
    done: CancellationToken,
) -> std::io::Result<()> {
    let shaken = Shaken::listen(listener, Arc::clone(&tls))?;
    let serving = axum::serve(shaken, router).with_graceful_shutdown(done.clone().cancelled_owned());
    let mut serving = std::pin::pin!(serving.into_future());
    tokio::select! {
        served = &mut serving => return served,
        () = follow(tls, done) => {}
    }
    serving.await
}

async fn follow(tls: Arc<Tls>, stop: CancellationToken) {
    let mut look = tokio::time::interval(INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
        }
        let tls = Arc::clone(&tls);
        // A secret may lie on a network file system; what goes wrong is logged and counted where it arises.
        let _ = tokio::task::spawn_blocking(move || tls.look()).await;
    }
}

#[cfg(test)]
mod tests;
