//! An S3 server on loopback for tests: `s3s` over a directory, which checks signatures, checksums and conditional puts,
//! and in front of it [faults](Faults) on demand. Not for anything but tests.
//!
//! Beside S3 it takes `PUT /.faults` (a JSON list of [`Fault`], instead of those before) and gives `GET /.seen` (the
//! requests since the last such question), for tests in another process.

mod fault;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::header::IF_NONE_MATCH;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

pub use fault::{Fault, Faults, Seen, What};

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "MILLRACETEST";
/// Its secret.
pub const SECRET_KEY: &str = "a-secret-of-tests-alone";

/// What an answer is made of.
type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// How to serve.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Holds a directory per bucket.
    pub root: PathBuf,
    /// Buckets to create.
    pub buckets: Vec<String>,
}

/// A server that runs until this is dropped.
#[derive(Debug)]
pub struct Server {
    /// `http://HOST:PORT`.
    pub url: String,
    /// What goes wrong.
    pub faults: Faults,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Front {
    s3: S3Service,
    faults: Faults,
    /// Held by conditional writes: the server below looks first and writes then.
    conditional: Arc<Mutex<()>>,
}

impl Server {
    /// Serves on a listener.
    ///
    /// # Errors
    /// The root or a bucket cannot be created.
    pub fn start(listener: TcpListener, settings: &Settings) -> io::Result<Self> {
        for bucket in &settings.buckets {
            std::fs::create_dir_all(settings.root.join(bucket))?;
        }
        let files = s3s_fs::FileSystem::new(&settings.root)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let faults = Faults::default();
        let front = Front { s3: service.build(), faults: faults.clone(), conditional: Arc::default() };
        let url = format!("http://{}", listener.local_addr()?);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                while connections.try_join_next().is_some() {}
                let front = front.clone();
                let service = hyper::service::service_fn(move |request| front.clone().serve(request));
                // What breaks here was broken on purpose, or by the client.
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Ok(Self { url, faults, accepting })
    }
}

fn full(status: StatusCode, kind: &str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed_unsync();
    let answer = Response::builder().status(status).header("content-type", kind).body(body);
    answer.expect("a status and a plain header make an answer")
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "broken on purpose")
}

impl Front {
    async fn serve(self, request: Request<Incoming>) -> Result<Answer, io::Error> {
        match (request.method(), request.uri().path()) {
            (&Method::PUT, "/.faults") => return self.set_faults(request).await,
            (&Method::GET, "/.seen") => {
                let seen = serde_json::to_vec(&self.faults.take_seen()).expect("plain data");
                return Ok(full(StatusCode::OK, "application/json", seen));
            }
            _ => {}
        }
        // Before the question what happens: a set right behind it must not be missed.
        let mut sets = self.faults.sets();
        match self.faults.meet(request.method(), request.uri(), request.headers()) {
            None => self.pass(request.map(s3s::Body::from)).await,
            Some(What::Slow(milliseconds)) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                self.pass(request.map(s3s::Body::from)).await
            }
            Some(What::Hold) => {
                // An error means that nobody can set any more.
                let _ = sets.changed().await;
                self.pass(request.map(s3s::Body::from)).await
            }
            Some(What::Refuse(status, code)) => {
                // Read first: a client that still sends would see a broken connection instead of the answer.
                request.into_body().collect().await.map_err(io::Error::other)?;
                let status = StatusCode::from_u16(status).map_err(io::Error::other)?;
                let text = format!("<Error><Code>{code}</Code><Message>on purpose</Message></Error>");
                Ok(full(status, "application/xml", text))
            }
            Some(What::Corrupt) => {
                let (parts, body) = request.into_parts();
                let mut bytes =
                    BytesMut::from(&body.collect().await.map_err(io::Error::other)?.to_bytes()[..]);
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                self.pass(Request::from_parts(parts, bytes.freeze().into())).await
            }
            Some(What::CutRequest(after)) => {
                let mut body = request.into_body();
                let mut read = 0;
                while read < after {
                    let Some(Ok(frame)) = body.frame().await else { break };
                    read += frame.data_ref().map_or(0, Bytes::len);
                }
                Err(broken())
            }
            Some(What::CutAnswer(after)) => {
                let (parts, body) = self.pass(request.map(s3s::Body::from)).await?.into_parts();
                let whole = body.collect().await?.to_bytes();
                let begin = whole.slice(..after.min(whole.len()));
                // The first bytes are given time to leave: a break right behind them would take them along.
                let end = futures::stream::once(async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(broken())
                });
                let body = StreamBody::new(futures::stream::iter([Ok(Frame::data(begin))]).chain(end));
                Ok(Response::from_parts(parts, body.boxed_unsync()))
            }
            Some(What::LoseAnswer) => {
                self.pass(request.map(s3s::Body::from)).await?.into_body().collect().await?;
                Err(broken())
            }
        }
    }

    async fn pass(&self, request: Request<s3s::Body>) -> Result<Answer, io::Error> {
        let _alone = match request.headers().contains_key(IF_NONE_MATCH) {
            true => Some(self.conditional.lock().await),
            false => None,
        };
        let answer = self.s3.call(request).await.map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()))
    }

    async fn set_faults(&self, request: Request<Incoming>) -> Result<Answer, io::Error> {
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        match serde_json::from_slice(&body) {
            Ok(faults) => {
                self.faults.set(faults);
                Ok(full(StatusCode::NO_CONTENT, "text/plain", ""))
            }
            Err(error) => Ok(full(StatusCode::BAD_REQUEST, "text/plain", error.to_string())),
        }
    }
}
