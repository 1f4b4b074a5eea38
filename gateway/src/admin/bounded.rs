//! Connections of operators, of probes and of Prometheus: so many at once, and none that keeps us waiting for ever.
//!
//! axum's server has no deadline and no bound of its own, and these listeners may be reachable from everywhere: who
//! opened connections and said nothing would take the process's descriptors away from clients. A deadline of hyper's
//! would need a server of our own, so the connections themselves have one.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Most connections of one listener; who comes then waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
/// How long a client may take for a whole request, or to take more of an answer; longest that a connection is unused.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listener with such connections.
pub(super) struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

/// Who connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for Bounded {
    type Io = Timely<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let room = self.room.clone().acquire_owned().await.expect("nobody closes it");
        let (stream, from) = Listener::accept(&mut self.listener).await;
        (Timely::new(stream, Some(room)), from)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that breaks when its client lets us wait. Only what we write gives it more time: who sends a request
/// byte by byte has no more for it than others.
pub(super) struct Timely<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl<S> Timely<S> {
    fn new(stream: S, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { stream, deadline: Box::pin(tokio::time::sleep(PATIENCE)), _room: room }
    }

    /// What waiting comes to.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn wrote(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.wait(context),
            Poll::Ready(written) => {
                self.deadline.as_mut().reset(Instant::now() + PATIENCE);
                Poll::Ready(written)
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timely<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, into) {
            Poll::Pending => self.wait(context),
            read => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timely<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.wrote(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Pending => self.wait(context),
            flushed => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(context) {
            Poll::Pending => self.wait(context),
            shut => shut,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_drips_has_no_more_time_than_others_and_an_answer_gives_it_anew() {
        let (mut client, ours) = tokio::io::duplex(64);
        let (mut ours, started) = (Timely::new(ours, None), Instant::now());
        let dripping = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let mut byte = [0];
        for _ in 0..20 {
            assert_eq!(ours.read(&mut byte).await.unwrap(), 1);
        }
        ours.write_all(b"answer").await.unwrap();
        let answered = started.elapsed();
        let broke = loop {
            if let Err(broke) = ours.read(&mut byte).await {
                break broke;
            }
        };
        assert_eq!(broke.kind(), io::ErrorKind::TimedOut);
        let since = started.elapsed().checked_sub(answered).unwrap();
        assert!(since >= PATIENCE && since < PATIENCE + Duration::from_secs(1), "{since:?}");
        dripping.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_his_answer_is_left() {
        let (_client, ours) = tokio::io::duplex(64);
        let broke = Timely::new(ours, None).write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(broke.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_listener_has_room_for_so_many() {
        let mut listener = Bounded::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        listener.room = Arc::new(Semaphore::new(1));
        let address = listener.local_addr().unwrap();
        let _clients =
            [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let (first, _) = listener.accept().await;
        assert_eq!(listener.room.available_permits(), 0);
        drop(first);
        assert_eq!(listener.room.available_permits(), 1);
        listener.accept().await;
    }
}
