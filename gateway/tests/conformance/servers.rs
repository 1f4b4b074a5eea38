//! What the cases run against beside the gateway: the proxy that it is made of, and two servers that are wrong.

use std::net::SocketAddr;
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::proxy::{ProxyHttp, Session, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::front::h2raw::{self, ACK};

/// A proxy that does nothing but what Pingora does by itself.
struct Raw(SocketAddr);

#[async_trait]
impl ProxyHttp for Raw {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

/// Starts it before that worker, with HTTP/2 on plain connections, until the channel closes.
pub(super) async fn raw_pingora(worker: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut proxy = http_proxy(&Arc::new(ServerConf::default()), Raw(worker));
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    proxy.server_options = Some(options);
    let (close, closed) = watch::channel(false);
    let mut fds = Fds::new();
    fds.add(address.to_string(), listener.into_raw_fd());
    let fds: ListenFds = Arc::new(fds.into());
    let mut service = Service::new("raw".to_owned(), proxy);
    service.add_tcp(&address.to_string());
    tokio::spawn(async move { service.start_service(Some(fds), closed, 1).await });
    (address, close)
}

/// How a server is wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wrong {
    /// It settles the connection, and then hears nothing and says nothing.
    Deaf,
    /// It speaks no HTTP/2.
    Garbage,
}

/// Starts a server that is wrong.
pub(super) async fn wrong(how: Wrong) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, how));
        }
    });
    address
}

/// Reads to the client's end, so that nothing but its end closes the connection.
async fn serve(mut stream: TcpStream, how: Wrong) {
    let settings = h2raw::settings(&[(3, 100)]);
    let greeting = match how {
        Wrong::Deaf => [settings, h2raw::frame(h2raw::SETTINGS, ACK, 0, &[])].concat(),
        Wrong::Garbage => b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_vec(),
    };
    // Who has gone already wanted nothing.
    if stream.write_all(&greeting).await.is_ok() {
        let mut piece = [0; 16_384];
        while stream.read(&mut piece).await.is_ok_and(|length| length > 0) {}
    }
}
