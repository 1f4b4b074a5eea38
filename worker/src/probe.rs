//! `probe`: asks the worker beside it whether it is alive or ready, over its own listener.
//!
//! Kubernetes' own probes show no certificate, so a worker that asks for one cannot be probed by them. Giving the
//! kubelet a certificate is not to be had; giving workers' certificates the right to be clients would let every worker
//! command every other; a second listener would be one more thing to guard. So a worker believes its own certificate
//! besides its clients', and the probe in turn believes no other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_runtime::tls::{Pair, itself};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Most of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Does it answer?
    Live,
    /// Would it take a job?
    Ready,
}

impl Question {
    fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
        }
    }
}

/// Asks the worker that listens on `listen`, with TLS where it has a pair of files of its own.
///
/// # Errors
/// It does not answer in time, is another one, or says no; what it says is in the error.
pub async fn ask(
    question: Question,
    listen: SocketAddr,
    own: Option<Pair>,
    patience: Duration,
) -> anyhow::Result<()> {
    let address = reachable(listen);
    ensure!(address.port() != 0, "--listen has port 0: a probe has to know the port");
    let asked = async {
        let socket = TcpStream::connect(address).await.context("cannot connect")?;
        match own {
            None => exchange(socket, question).await,
            Some(pair) => {
                let config =
                    itself::connecting(&pair).map_err(|bad| anyhow::anyhow!(crate::tls::flagged(&bad)))?;
                let name = ServerName::IpAddress(address.ip().into());
                let socket = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
                exchange(socket.context("no TLS with it")?, question).await
            }
        }
    };
    let answer = tokio::time::timeout(patience, asked).await;
    let answer = answer.with_context(|| format!("no answer within {patience:?}")).and_then(|answer| answer);
    let answer = answer.with_context(|| format!("cannot ask {address} for {}", question.path()))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    ensure!(status == "200", "{address} answers {} with {status}: {body}", question.path());
    Ok(())
}

/// An address that says "everywhere" is reached on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn exchange(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    question: Question,
) -> anyhow::Result<String> {
    let request = format!("GET {} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n", question.path());
    socket.write_all(request.as_bytes()).await.context("cannot send")?;
    let mut answer = Vec::new();
    match socket.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await {
        // It may close without a farewell of TLS; what came before counts.
        Err(_) if !answer.is_empty() => {}
        read => drop(read.context("cannot read")?),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everywhere_is_reached_on_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9000"), "127.0.0.1:9000");
        assert_eq!(reached("[::]:9000"), "[::1]:9000");
        assert_eq!(reached("10.1.2.3:9000"), "10.1.2.3:9000");
    }

    #[tokio::test]
    async fn who_answers_other_than_200_or_never_is_not_ready() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ready = |patience| ask(Question::Ready, address, None, patience);
        // Nobody accepts: the kernel connects, and nothing is said.
        let silent = ready(Duration::from_millis(50)).await.unwrap_err();
        assert!(format!("{silent:#}").contains("no answer within 50ms"), "{silent:#}");
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nstore").await;
            }
        });
        let said = ready(Duration::from_secs(10)).await.unwrap_err().to_string();
        assert!(said.ends_with("answers /readyz with 503: store"), "{said}");
        let nowhere = ask(Question::Live, ([127, 0, 0, 1], 0).into(), None, Duration::from_secs(1)).await;
        assert!(nowhere.unwrap_err().to_string().contains("--listen has port 0"));
    }
}
