//! The clients: a closed loop of so many connections that send one prepared request after the other.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};

use super::{message, upstream};

/// Longest time for all requests of one turn.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is sent, and what must come back.
#[derive(Debug, Clone)]
pub struct Kind {
    /// `read` or `submit`.
    pub name: &'static str,
    /// The whole request.
    pub bytes: Vec<u8>,
    /// The status of every answer.
    pub status: u16,
}

impl Kind {
    /// A client's question for its job.
    pub fn read(token: &str) -> Self {
        let head = head("GET /jobs/0199c0de-0000-7000-8000-000000000001", token);
        Self { name: "read", bytes: format!("{head}\r\n").into_bytes(), status: 200 }
    }

    /// A client's job, as one with a few wishes sends it: about 400 bytes.
    pub fn submit(token: &str) -> Self {
        let body = r#"{"input_url":"https://media.example/in/2026/01/01/holiday-by-the-sea-final-cut-2.mp4","resolutions":["1080p","720p","480p","360p"],"output_format":["hls","mp4"],"priority":"normal","segment_seconds":4,"thumbnails":true,"duration_hint_s":183,"size_hint_bytes":114623512,"retention_days":30,"webhook_url":"https://app.example/hooks/millrace","labels":{"project":"holiday","customer":"4711"}}"#;
        let head = head("POST /jobs", token);
        let length = body.len();
        let text = format!("{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
        Self { name: "submit", bytes: text.into_bytes(), status: 202 }
    }
}

fn head(start: &str, token: &str) -> String {
    format!(
        "{start} HTTP/1.1\r\nhost: video.example\r\nuser-agent: millrace-bench/1\r\naccept: application/json\r\n\
         accept-encoding: identity\r\nauthorization: Bearer {token}\r\n"
    )
}

/// The far end of all connections, the clients' and the workers', on one thread.
///
/// While requests run it never sleeps. On loopback, whoever sends pays for waking the receiver, an interrupt to another core that
/// costs more than the rest of the sending; no proxy pays that in the field, and how often it would here depends on how
/// slow the proxy itself is.
pub struct FarEnd {
    turns: mpsc::UnboundedSender<Turn>,
    /// The workers' endpoints with their pools.
    pub endpoints: Vec<(String, SocketAddr)>,
}

struct Turn {
    to: SocketAddr,
    kind: Kind,
    connections: usize,
    requests: usize,
    opened: oneshot::Sender<()>,
    go: oneshot::Receiver<()>,
    ended: oneshot::Sender<Result<Duration>>,
}

impl FarEnd {
    /// Starts the thread and its workers.
    ///
    /// # Errors
    /// No thread, or no port, is to be had.
    pub async fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the far end's runtime")?;
        let (turns, mut wanted) = mpsc::unbounded_channel::<Turn>();
        let (began, begun) = oneshot::channel();
        let run = move || {
            LocalSet::new().block_on(&runtime, async {
                if began.send(upstream::begin().await).is_err() {
                    return;
                }
                while let Some(turn) = wanted.recv().await {
                    turn.run().await;
                }
            });
        };
        thread::Builder::new().name("far end".to_owned()).spawn(run).context("start the far end")?;
        let endpoints = begun.await.context("the far end ended")??;
        Ok(Self { turns, endpoints })
    }

    /// Sends `requests` over `connections` and waits for all answers; answers how long that took, and what `look` said
    /// before the first and after the last. Each connection has had an answer before that: what a connection costs once is
    /// not a request's.
    ///
    /// # Errors
    /// An answer of another status, or none, or no look: then there is nothing to compare.
    pub async fn drive<T>(
        &self,
        to: SocketAddr,
        kind: &Kind,
        [connections, requests]: [usize; 2],
        look: impl Fn() -> Result<T>,
    ) -> Result<(Duration, [T; 2])> {
        let ((opened, open), (start, go), (ended, end)) =
            (oneshot::channel(), oneshot::channel(), oneshot::channel());
        let turn = Turn { to, kind: kind.clone(), connections, requests, opened, go, ended };
        self.turns.send(turn).ok().context("the far end ended")?;
        if open.await.is_err() {
            let why = end.await.context("the far end ended")?;
            return Err(why.err().context("no connection was opened")?);
        }
        let before = look()?;
        // Whoever does not hear it has ended, and says why.
        let _ = start.send(());
        let wall = end.await.context("the far end ended")??;
        Ok((wall, [before, look()?]))
    }
}

impl Turn {
    async fn run(self) {
        let Self { to, kind, connections, requests, opened, go, ended } = self;
        let awake = tokio::task::spawn_local(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let all = async {
            let kind = Rc::new(kind);
            let clients = together((0..connections).map(|_| Client::open(to, kind.clone()))).await?;
            let left = Rc::new(Cell::new(requests));
            // Whoever does not wait for it any more has gone, and so has what is sent after it.
            let _ = opened.send(());
            go.await.context("nobody measures any more")?;
            let started = Instant::now();
            together(clients.into_iter().map(|client| client.run(left.clone()))).await?;
            Ok(started.elapsed())
        };
        let all = tokio::time::timeout(PATIENCE, all).await;
        awake.abort();
        let _ = ended.send(all.context("the answers did not all come in time").flatten());
    }
}

async fn together<T: 'static>(
    all: impl Iterator<Item = impl Future<Output = Result<T>> + 'static>,
) -> Result<Vec<T>> {
    let mut tasks = JoinSet::new();
    for one in all {
        tasks.spawn_local(one);
    }
    let mut ended = Vec::with_capacity(tasks.len());
    while let Some(one) = tasks.join_next().await {
        ended.push(one.context("a client panicked")??);
    }
    Ok(ended)
}

struct Client {
    kind: Rc<Kind>,
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn open(to: SocketAddr, kind: Rc<Kind>) -> Result<Self> {
        let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let mut client = Self { kind, stream, buffer: vec![0; 16 * 1024] };
        client.ask().await?;
        Ok(client)
    }

    async fn run(mut self, left: Rc<Cell<usize>>) -> Result<()> {
        while let Some(less) = left.get().checked_sub(1) {
            left.set(less);
            self.ask().await?;
        }
        Ok(())
    }

    async fn ask(&mut self) -> Result<()> {
        let Self { kind, stream, buffer } = self;
        stream.write_all(&kind.bytes).await.context("send a request")?;
        let status = answer(stream, buffer).await?;
        if status != kind.status {
            let said = String::from_utf8_lossy(buffer);
            let said: String = said.chars().take_while(|c| *c != '\0').take(600).collect();
            bail!("a {} was answered with {status}, not {}:\n{said}", kind.name, kind.status);
        }
        Ok(())
    }
}

async fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<u16> {
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            bail!("an answer is longer than {filled} bytes");
        }
        match stream.read(&mut buffer[filled..]).await.context("read an answer")? {
            0 => bail!("the connection ended before its answer"),
            more => filled += more,
        }
        if let Some(head) = message::head(&buffer[..filled])
            && head.end + head.body <= filled
        {
            return Ok(head.status);
        }
    }
}
