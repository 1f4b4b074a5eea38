//! A worker that does no work: it answers `GET /load`, a read and a submit as a worker does, from bytes made before, with
//! a load report that is new each time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use millrace_wire::{LoadReport, headers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::message;

/// The pools, and how many workers each has.
pub const POOLS: [(&str, usize); 2] = [("aws", 2), ("gcp", 2)];
/// The job that every answer tells of, about 1 KiB.
const JOB: &str = r#"{"job_id":"0199c0de-0000-7000-8000-000000000001","state":"running","created_at":"2026-01-01T00:00:00Z","started_at":"2026-01-01T00:00:01Z","progress":0.42,"stage":"encoding","pool":"aws","worker":"aws-0","attempt":1,"spec":{"input_url":"https://media.example/in/2026/01/01/holiday-by-the-sea-final-cut-2.mp4","resolutions":["1080p","720p","480p","360p"],"output_format":["hls","mp4"],"priority":"normal","durability":"single","segment_seconds":4,"thumbnails":true,"retention_days":30,"labels":{"project":"holiday","customer":"4711"}},"source":{"duration_s":183.4,"width":1920,"height":1080,"frame_rate":"30000/1001","video_codec":"h264","audio_codec":"aac","bytes":114623512},"outputs":{"hls":"/media/0199c0de-0000-7000-8000-000000000001/master.m3u8","poster":"/media/0199c0de-0000-7000-8000-000000000001/poster.jpg","thumbnails":"/media/0199c0de-0000-7000-8000-000000000001/thumbnails.vtt"},"work":{"estimate_s":231.7,"done_s":97.3},"warnings":[],"links":{"events":"/jobs/0199c0de-0000-7000-8000-000000000001/events"}}"#;

struct Worker {
    report: LoadReport,
    sequence: AtomicU64,
}

impl Worker {
    fn new(pool: &str, number: usize) -> Result<Self> {
        let report = LoadReport {
            worker: format!("{pool}-{number}").parse().context("name a worker")?,
            pool: pool.parse().context("name a pool")?,
            store_id: "0199c0de-0000-7000-8000-00000000beef".to_owned(),
            slots: 4,
            running: 1,
            queued: 0,
            queue_max: 64,
            work_seconds: 134.4,
            speed: 0.97,
            pool_queued: 0,
            pool_work_seconds: 0.0,
            draining: false,
            incarnation: 17,
            sequence: 0,
        };
        Ok(Self { report, sequence: AtomicU64::new(1) })
    }

    fn report(&self) -> LoadReport {
        LoadReport { sequence: self.sequence.fetch_add(1, Ordering::Relaxed), ..self.report.clone() }
    }
}

/// The head of an answer up to its load report, which is all that changes, and what follows.
struct Prepared {
    before: String,
    after: String,
}

impl Prepared {
    fn new(status: &str, more: &str) -> Self {
        let length = JOB.len();
        Self {
            before: format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n{}: ",
                headers::LOAD
            ),
            after: format!(
                "\r\n{}: 0199c0de-0000-7000-8000-00000000beef\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n{JOB}",
                headers::STORE
            ),
        }
    }
}

/// Begins to serve, for as long as the runtime lives; answers all endpoints with their pools.
///
/// # Errors
/// No port is to be had.
pub async fn begin() -> Result<Vec<(String, SocketAddr)>> {
    let mut endpoints = Vec::new();
    for (pool, workers) in POOLS {
        for number in 0..workers {
            let listener = TcpListener::bind("127.0.0.1:0").await.context("take a port")?;
            endpoints.push((pool.to_owned(), listener.local_addr().context("read the port")?));
            tokio::spawn(accept(listener, Arc::new(Worker::new(pool, number)?)));
        }
    }
    Ok(endpoints)
}

async fn accept(listener: TcpListener, worker: Arc<Worker>) {
    loop {
        // A connection that was gone again before it was taken is nobody's loss.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve(stream, worker.clone()));
    }
}

async fn serve(mut stream: TcpStream, worker: Arc<Worker>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let read = Prepared::new("200 OK", "");
    let submitted = Prepared::new("202 Accepted", "location: /jobs/0199c0de-0000-7000-8000-000000000001\r\n");
    let (mut buffer, mut filled) = (vec![0; 16 * 1024], 0);
    let mut answer = Vec::with_capacity(4096);
    loop {
        let head = match message::head(&buffer[..filled]) {
            Some(head) if head.end + head.body <= filled => head,
            _ => match stream.read(&mut buffer[filled..]).await {
                Ok(0) | Err(_) => return,
                Ok(more) => {
                    filled += more;
                    continue;
                }
            },
        };
        answer.clear();
        let request = &buffer[..head.end];
        if request.starts_with(b"GET /load ") {
            let report = serde_json::to_string(&worker.report()).expect("a report is plain data");
            let length = report.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            answer.extend_from_slice(head.as_bytes());
            answer.extend_from_slice(report.as_bytes());
        } else {
            let prepared = if request.starts_with(b"POST ") { &submitted } else { &read };
            answer.extend_from_slice(prepared.before.as_bytes());
            answer.extend_from_slice(worker.report().to_orca().as_bytes());
            answer.extend_from_slice(prepared.after.as_bytes());
        }
        let end = head.end + head.body;
        buffer.copy_within(end..filled, 0);
        filled -= end;
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}
