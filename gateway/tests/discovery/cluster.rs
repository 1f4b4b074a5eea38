//! A Kubernetes API server made of axum: it lists the EndpointSlices that the test sets, and streams the events it is
//! told to: over plain HTTP as `kubectl proxy` does, or over TLS to whom has the token, as a cluster does to its pods.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Stops when dropped.
pub(crate) struct Cluster {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    slices: Mutex<Vec<Value>>,
    /// What a list is answered with instead.
    refuse: Mutex<Option<StatusCode>>,
    delay: Mutex<Duration>,
    watchers: Mutex<Vec<mpsc::UnboundedSender<Result<String, std::io::Error>>>>,
    lists: AtomicUsize,
    watches: AtomicUsize,
    /// What must be shown, if anything.
    token: Mutex<Option<String>>,
    unknown: AtomicUsize,
    stop: CancellationToken,
}

/// An endpoint of a slice: its address and pod, `ready` and `terminating`.
pub(crate) fn endpoint(address: &str, pod: &str, ready: bool, terminating: bool) -> Value {
    json!({
        "addresses": [address],
        "conditions": { "ready": ready, "serving": ready, "terminating": terminating },
        "targetRef": { "kind": "Pod", "uid": pod },
    })
}

pub(crate) fn slice(name: &str, family: &str, port: u16, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "media", "resourceVersion": "2", "uid": name,
            "labels": { "kubernetes.io/service-name": "workers" },
        },
        "addressType": family,
        "ports": [{ "name": "metrics", "port": 1, "protocol": "TCP" }, { "name": "http", "port": port, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

/// A listener that shakes hands with one client after the other.
struct Shaking(tokio::net::TcpListener, tokio_rustls::TlsAcceptor);

impl axum::serve::Listener for Shaking {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (socket, from) = self.0.accept().await.unwrap();
            if let Ok(stream) = self.1.accept(socket).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Cluster {
    pub(crate) async fn start(slices: Vec<Value>) -> Self {
        Self::serve(slices, None).await
    }

    /// One that speaks TLS and wants that token.
    pub(crate) async fn secure(slices: Vec<Value>, tls: Arc<rustls::ServerConfig>, token: &str) -> Self {
        let cluster = Self::serve(slices, Some(tls)).await;
        cluster.expect(token);
        cluster
    }

    /// Only who shows that token is answered from now on.
    pub(crate) fn expect(&self, token: &str) {
        *self.shared.token.lock().unwrap() = Some(format!("Bearer {token}"));
    }

    /// Requests of somebody without the token.
    pub(crate) fn unknown(&self) -> usize {
        self.shared.unknown.load(Ordering::SeqCst)
    }

    async fn serve(slices: Vec<Value>, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { slices: Mutex::new(slices), ..Shared::default() });
        let app = Router::new()
            .route("/apis/discovery.k8s.io/v1/namespaces/media/endpointslices", get(answer))
            .with_state(shared.clone());
        let stop = shared.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            match tls {
                None => axum::serve(listener, app).await,
                Some(tls) => axum::serve(Shaking(listener, tls.into()), app).await,
            }
        }));
        Self { address, shared }
    }

    /// What the next list says.
    pub(crate) fn set(&self, slices: Vec<Value>) {
        *self.shared.slices.lock().unwrap() = slices;
    }

    pub(crate) fn refuse(&self, with: Option<StatusCode>) {
        *self.shared.refuse.lock().unwrap() = with;
    }

    pub(crate) fn delay(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }

    /// Sends an event to every watch: `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    pub(crate) fn send(&self, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        self.shared.watchers.lock().unwrap().retain(|watcher| watcher.send(Ok(line.clone())).is_ok());
    }

    /// Breaks every watch off in the middle of a line.
    pub(crate) fn reset(&self) {
        for watcher in self.shared.watchers.lock().unwrap().drain(..) {
            let _ = watcher.send(Ok("{\"type\":\"MODI".to_owned()));
            let _ = watcher.send(Err(std::io::Error::other("reset")));
        }
    }

    pub(crate) fn lists(&self) -> usize {
        self.shared.lists.load(Ordering::SeqCst)
    }

    pub(crate) fn watches(&self) -> usize {
        self.shared.watches.load(Ordering::SeqCst)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.watchers.lock().unwrap().clear();
    }
}

/// The API's own shape of an error.
pub(crate) fn status(code: u16, reason: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": format!("it is {reason}"), "reason": reason, "code": code,
    })
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let token = shared.token.lock().unwrap().clone();
    if token.is_some_and(|token| headers.get("authorization").is_none_or(|shown| shown != &token)) {
        shared.unknown.fetch_add(1, Ordering::SeqCst);
        return (StatusCode::UNAUTHORIZED, Json(status(401, "Unauthorized"))).into_response();
    }
    assert_eq!(query["labelSelector"], "kubernetes.io/service-name=workers");
    let refuse = *shared.refuse.lock().unwrap();
    if let Some(code) = refuse {
        return (code, Json(status(code.as_u16(), "Forbidden"))).into_response();
    }
    if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let (send, mut receive) = mpsc::unbounded_channel();
        shared.watchers.lock().unwrap().push(send);
        shared.watches.fetch_add(1, Ordering::SeqCst);
        let lines = futures::stream::poll_fn(move |context| receive.poll_recv(context));
        // A first empty piece, so that the header leaves at once.
        let first = futures::stream::once(async { Ok::<_, std::io::Error>(String::new()) });
        return Response::new(Body::from_stream(first.chain(lines)));
    }
    let delay = *shared.delay.lock().unwrap();
    tokio::time::sleep(delay).await;
    shared.lists.fetch_add(1, Ordering::SeqCst);
    let slices = shared.slices.lock().unwrap().clone();
    let list = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
        "metadata": { "resourceVersion": "1" }, "items": slices,
    });
    Json(list).into_response()
}
