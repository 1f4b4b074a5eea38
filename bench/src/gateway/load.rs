//! The clients: a closed loop of so many connections that send one prepared request after the other.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use super::message;

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

/// What the clients saw of one turn.
#[derive(Debug)]
pub struct Driven<T> {
    /// What `look` said before the first request that counts, and after the last answer.
    pub looks: [T; 2],
    /// The time between the two.
    pub wall: Duration,
}

/// Sends `requests` over `connections` and waits for all answers. Each connection has had an answer before that: what a
/// connection costs once is not a request's. On a thread of its own, the caller's.
///
/// # Errors
/// An answer of another status, or none, or no look: then there is nothing to compare.
pub fn drive<T>(
    to: SocketAddr,
    kind: &Kind,
    connections: usize,
    requests: usize,
    look: impl Fn() -> Result<T>,
) -> Result<Driven<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the clients' runtime")?;
    LocalSet::new().block_on(&runtime, async {
        let all = async {
            let kind = Rc::new(kind.clone());
            let opened = together((0..connections).map(|_| Client::open(to, kind.clone()))).await?;
            let left = Rc::new(Cell::new(requests));
            let before = look()?;
            let started = Instant::now();
            together(opened.into_iter().map(|client| client.run(left.clone()))).await?;
            let wall = started.elapsed();
            Ok(Driven { looks: [before, look()?], wall })
        };
        tokio::time::timeout(PATIENCE, all).await.context("the answers did not all come in time")?
    })
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
