//! One case: what a client sends, and what a server may do about it.
//!
//! What counts is what the public suites count: a connection error is a GOAWAY with the right code or a connection that
//! closes, a stream error may be made one of the connection (RFC 9113, 5.4.2), and frames that are no answer to the case
//! (acknowledgements, windows) are passed over.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::front::h2raw::{self, ACK, END_STREAM, Frame};

/// Error codes (7).
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const FLOW_CONTROL_ERROR: u32 = 3;
pub(super) const STREAM_CLOSED: u32 = 5;
pub(super) const FRAME_SIZE_ERROR: u32 = 6;
pub(super) const REFUSED_STREAM: u32 = 7;
pub(super) const CANCEL: u32 = 8;
pub(super) const COMPRESSION_ERROR: u32 = 9;

/// What a server may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Want {
    /// Its settings come first of all.
    SettingsFirst,
    /// It acknowledges our settings.
    SettingsAck,
    /// It answers a ping that carries this.
    Pong([u8; 8]),
    /// The same, or it closes.
    PongOrClosed([u8; 8]),
    /// It answers the stream with 200.
    Answer(u32),
    /// The next piece of the body has that length.
    DataOf(usize),
    /// The stream's answer is whole.
    Ended(u32),
    /// GOAWAY with one of these codes, or it closes.
    ConnectionError(&'static [u32]),
    /// The same, or RST_STREAM with one of them.
    StreamError(&'static [u32]),
    /// GOAWAY with that code and nothing less.
    GoAway(u32),
    /// RST_STREAM with that code and nothing else.
    Reset(u32, u32),
    /// It closes.
    Closed,
}

enum Step {
    Send(Vec<u8>),
    SendBy(fn(&Theirs) -> Vec<u8>),
    Wait(Want),
}

/// The limits that a server has told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theirs {
    /// How large the table of its decoder is.
    pub(super) table: u32,
    /// How many streams it takes at once, if it has said so.
    pub(super) streams: Option<u32>,
    /// How large a frame may be.
    pub(super) frame: u32,
}

impl Theirs {
    fn of(settings: &Frame) -> Self {
        let mut theirs = Self { table: 4096, streams: None, frame: 16_384 };
        for one in settings.payload.chunks_exact(6) {
            let value = u32::from_be_bytes([one[2], one[3], one[4], one[5]]);
            match u16::from_be_bytes([one[0], one[1]]) {
                1 => theirs.table = value,
                3 => theirs.streams = Some(value),
                5 => theirs.frame = value,
                _ => {}
            }
        }
        theirs
    }
}

/// A case.
pub(super) struct Case {
    /// The section, and its sentence in short.
    pub(super) name: &'static str,
    shakes_hands: bool,
    steps: Vec<Step>,
}

/// A case on a connection whose settings are settled.
pub(super) fn case(name: &'static str) -> Case {
    Case { name, shakes_hands: true, steps: Vec::new() }
}

/// A case on a connection of which nothing has been sent.
pub(super) fn bare(name: &'static str) -> Case {
    Case { name, shakes_hands: false, steps: Vec::new() }
}

impl Case {
    /// Sends frames, all at once.
    pub(super) fn sends<const N: usize>(mut self, frames: [Vec<u8>; N]) -> Self {
        self.steps.push(Step::Send(frames.into_iter().flatten().collect()));
        self
    }

    /// Sends what the server's own limits say.
    pub(super) fn sends_by(mut self, bytes: fn(&Theirs) -> Vec<u8>) -> Self {
        self.steps.push(Step::SendBy(bytes));
        self
    }

    /// Waits for that. The last one is the case's point; those before only bring the connection there.
    pub(super) fn wants(mut self, want: Want) -> Self {
        self.steps.push(Step::Wait(want));
        self
    }

    /// Runs it on a new connection; nothing may take longer than `patience` to come.
    ///
    /// # Errors
    /// What was wanted, and what came instead.
    pub(super) async fn run(&self, stream: impl Socket + 'static, patience: Duration) -> Result<(), String> {
        let mut connection = Connection {
            stream: Box::new(stream),
            buffer: Vec::new(),
            frames: 0,
            came: Vec::new(),
            patience,
        };
        let theirs = if self.shakes_hands { Some(connection.shake_hands().await?) } else { None };
        for step in &self.steps {
            match (step, &theirs) {
                (Step::Send(bytes), _) => connection.send(bytes).await,
                (Step::SendBy(bytes), Some(theirs)) => connection.send(&bytes(theirs)).await,
                (Step::SendBy(_), None) => return Err("no limits are known without a handshake".to_owned()),
                (Step::Wait(want), _) => connection.wait(*want).await?,
            }
        }
        Ok(())
    }
}

/// What a connection runs over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

enum Event {
    Frame(Frame),
    Closed,
    Nothing,
}

struct Connection {
    stream: Box<dyn Socket>,
    buffer: Vec<u8>,
    frames: usize,
    /// Everything that came, for whoever reads why a case failed.
    came: Vec<String>,
    patience: Duration,
}

impl Connection {
    async fn send(&mut self, bytes: &[u8]) {
        // Where the server has closed already, what is read next says so.
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let _ = tokio::time::timeout(self.patience, sent).await;
    }

    async fn next(&mut self) -> Event {
        let until = tokio::time::Instant::now() + self.patience;
        let mut piece = vec![0; 16_384];
        loop {
            if let Some(frame) = h2raw::take(&mut self.buffer) {
                self.frames += 1;
                let Frame { kind, flags, stream, payload } = &frame;
                let start = &payload[..payload.len().min(16)];
                self.came.push(format!(
                    "frame {kind} flags {flags:#x} stream {stream} length {} {start:?}",
                    payload.len()
                ));
                return Event::Frame(frame);
            }
            match tokio::time::timeout_at(until, self.stream.read(&mut piece)).await {
                Err(_) => return Event::Nothing,
                Ok(Ok(0) | Err(_)) => {
                    self.came.push("the connection's end".to_owned());
                    return Event::Closed;
                }
                Ok(Ok(length)) => self.buffer.extend_from_slice(&piece[..length]),
            }
        }
    }

    async fn shake_hands(&mut self) -> Result<Theirs, String> {
        self.send(&h2raw::opening()).await;
        let (mut theirs, mut acknowledged) = (None, false);
        while theirs.is_none() || !acknowledged {
            match self.next().await {
                Event::Frame(frame) if frame.kind == h2raw::SETTINGS && frame.flags & ACK == 0 => {
                    theirs = Some(Theirs::of(&frame));
                    self.send(&h2raw::frame(h2raw::SETTINGS, ACK, 0, &[])).await;
                }
                Event::Frame(frame) if frame.kind == h2raw::SETTINGS => acknowledged = true,
                Event::Frame(_) => {}
                Event::Closed | Event::Nothing => {
                    return Err(self.missed("settings and their acknowledgement"));
                }
            }
        }
        theirs.ok_or_else(|| self.missed("settings"))
    }

    async fn wait(&mut self, want: Want) -> Result<(), String> {
        loop {
            let settled = match self.next().await {
                Event::Frame(frame) => want.judges(&frame, self.frames == 1),
                Event::Closed => Some(want.allows_end()),
                Event::Nothing => Some(false),
            };
            match settled {
                Some(true) => return Ok(()),
                Some(false) => return Err(self.missed(&format!("{want:?}"))),
                None => {}
            }
        }
    }

    fn missed(&self, wanted: &str) -> String {
        format!("wanted {wanted}, came: {}", self.came.join("; "))
    }
}

impl Want {
    /// Whether a frame is what is wanted; `None` when it says nothing about that.
    fn judges(self, frame: &Frame, first: bool) -> Option<bool> {
        let Frame { kind, flags, stream, payload } = frame;
        let code =
            |at: usize| payload.get(at..at + 4).map(|code| code.try_into().map_or(0, u32::from_be_bytes));
        let gone =
            |codes: &[u32]| *kind == h2raw::GOAWAY && code(4).is_some_and(|code| codes.contains(&code));
        let reset =
            |codes: &[u32]| *kind == h2raw::RST_STREAM && code(0).is_some_and(|code| codes.contains(&code));
        let holds = match self {
            Self::SettingsFirst => return Some(first && *kind == h2raw::SETTINGS && flags & ACK == 0),
            Self::SettingsAck => *kind == h2raw::SETTINGS && flags & ACK != 0,
            Self::Pong(data) | Self::PongOrClosed(data) => {
                *kind == h2raw::PING && flags & ACK != 0 && *payload == data
            }
            Self::Answer(wanted) => {
                // `:status: 200` is entry 8 of the static table; the size of the dynamic one may be told before it.
                let status = payload.iter().find(|byte| **byte & 0xe0 != 0x20);
                return (*kind == h2raw::HEADERS && *stream == wanted).then_some(status == Some(&0x88));
            }
            Self::DataOf(length) => {
                return (*kind == h2raw::DATA).then_some(payload.len() == length);
            }
            Self::Ended(wanted) => {
                let carries = [h2raw::DATA, h2raw::HEADERS].contains(kind);
                carries && *stream == wanted && flags & END_STREAM != 0
            }
            Self::ConnectionError(codes) => gone(codes),
            Self::StreamError(codes) => gone(codes) || reset(codes),
            Self::GoAway(code) => gone(&[code]),
            Self::Reset(wanted, code) => *stream == wanted && reset(&[code]),
            Self::Closed => false,
        };
        holds.then_some(true)
    }

    fn allows_end(self) -> bool {
        matches!(self, Self::PongOrClosed(_) | Self::ConnectionError(_) | Self::StreamError(_) | Self::Closed)
    }
}
