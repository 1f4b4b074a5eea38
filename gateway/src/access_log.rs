//! One JSON line per request on standard output, for machines; standard error has what operators read.
//!
//! Requests hand their line to a thread of its own and never wait: if whoever reads the output is slower than the
//! requests come, lines are dropped and counted. A request's path is never written, only its route: paths hold the
//! tokens of media and the signatures of uploads.

use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use serde::Serialize;

use crate::config::access_log::AccessLog as Settings;

/// Lines that may wait; about 4 MB.
const LINES_MAX: usize = 8192;

/// What is written of a request.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    /// When it ended, in Unix seconds.
    pub time: f64,
    /// Its id, which the answer carries too.
    pub request_id: Option<&'a str>,
    /// Its trace.
    pub trace_id: Option<&'a str>,
    /// The name of the key that asked.
    pub principal: Option<&'a str>,
    /// The address that sent it.
    pub client: Option<std::net::IpAddr>,
    /// The HTTP version.
    pub version: &'static str,
    /// Whether it came by TLS.
    pub tls: bool,
    /// The method.
    pub method: &'a str,
    /// What was asked for; `none` is what the API does not have.
    pub route: &'static str,
    /// The answer's status; 0 without one.
    pub status: u16,
    /// Bytes of the request's body.
    pub received_bytes: usize,
    /// Bytes of the answer's body.
    pub sent_bytes: usize,
    /// From header to end.
    pub seconds: f64,
    /// Where it went.
    pub pool: Option<&'a str>,
    /// To whom.
    pub worker: Option<std::net::SocketAddr>,
    /// Tries, the first included.
    pub tries: u32,
    /// The job, where the request is a submit.
    pub job_id: Option<&'a str>,
}

/// Where lines go.
#[derive(Debug)]
pub struct AccessLog {
    lines: SyncSender<Told>,
    dropped: IntCounter,
}

#[derive(Debug)]
enum Told {
    Line(String),
    /// Everything before this is written when the sender is told.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Writes to `out` from a thread of its own, and counts in `dropped` what it cannot.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn new(out: impl Write + Send + 'static, dropped: IntCounter) -> std::io::Result<Self> {
        let (lines, told) = sync_channel(LINES_MAX);
        let lost = dropped.clone();
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write(&told, out, &lost))?;
        Ok(Self { lines, dropped })
    }

    /// Whether a request of that status gets a line.
    pub fn wants(settings: &Settings, status: u16) -> bool {
        let failed = status == 0 || status >= 500;
        settings.enabled
            && (failed
                || settings.sample >= 1.0
                || rand::Rng::random::<f64>(&mut rand::rng()) < settings.sample)
    }

    /// Writes a line, some time.
    pub fn write(&self, record: &Record<'_>) {
        let line = serde_json::to_string(record).expect("a record is plain data");
        if self.lines.try_send(Told::Line(line)).is_err() {
            self.dropped.inc();
        }
    }

    /// Waits until everything so far is written, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if self.lines.try_send(Told::Flush(done)).is_ok() {
            // Either it is done or it takes too long.
            let _ = written.recv_timeout(patience);
        }
    }
}

/// Now, in Unix seconds.
pub fn now_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn write(told: &Receiver<Told>, out: impl Write, lost: &IntCounter) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    loop {
        let next = match told.try_recv() {
            Ok(next) => next,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                // Nobody may read; requests go on all the same.
                let _ = out.flush();
                let Ok(next) = told.recv() else { return };
                next
            }
        };
        match next {
            Told::Line(line) => {
                if out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).is_err() {
                    lost.inc();
                }
            }
            Told::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing until it may.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_costs_lines_and_no_time() {
        let dropped = IntCounter::new("dropped", "lines").unwrap();
        let (_held, stuck) = std::sync::mpsc::channel();
        let log = AccessLog::new(Stuck(stuck), dropped.clone()).unwrap();
        let record = Record {
            time: now_s(),
            request_id: Some("r"),
            trace_id: None,
            principal: None,
            client: None,
            version: "1.1",
            tls: false,
            method: "GET",
            route: "read",
            status: 200,
            received_bytes: 0,
            sent_bytes: 0,
            seconds: 0.1,
            pool: None,
            worker: None,
            tries: 1,
            job_id: None,
        };
        let started = std::time::Instant::now();
        for _ in 0..3 * LINES_MAX {
            log.write(&record);
        }
        log.flush(Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(dropped.get() >= LINES_MAX as u64, "{}", dropped.get());
    }

    #[test]
    fn failures_are_always_written_and_the_rest_by_share() {
        let settings = |enabled, sample| Settings { enabled, sample };
        assert!(!AccessLog::wants(&settings(false, 1.0), 500));
        assert!(AccessLog::wants(&settings(true, 0.0), 503) && AccessLog::wants(&settings(true, 0.0), 0));
        assert!(!AccessLog::wants(&settings(true, 0.0), 404) && AccessLog::wants(&settings(true, 1.0), 404));
        let some = (0..10_000).filter(|_| AccessLog::wants(&settings(true, 0.1), 200)).count();
        assert!((700..1300).contains(&some), "{some} of 10000 are no tenth");
    }
}
