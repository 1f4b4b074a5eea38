//! HTTP/2 frames by hand (RFC 9113), for what no client library sends.

/// Kinds of frames (6.1 to 6.10).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags of frames; which kinds know which, their sections say.
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

/// What every connection of a client begins with (3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The preface, and settings that change nothing.
pub(crate) fn opening() -> Vec<u8> {
    [PREFACE, &settings(&[])].concat()
}

/// Settings: identifier and value of each (6.5).
pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let one = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &values.iter().flat_map(one).collect::<Vec<u8>>())
}

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A request's header: literals without indexing (RFC 7541, 6.2.2), in as many frames as it takes.
pub(crate) fn headers(stream: u32, fields: &[(String, String)], end: bool) -> Vec<u8> {
    let block = block(fields);
    let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
    let mut bytes = Vec::new();
    for (n, piece) in pieces.iter().enumerate() {
        let last = if n + 1 == pieces.len() { END_HEADERS } else { 0 };
        let (kind, flags) = if n == 0 { (HEADERS, last | u8::from(end)) } else { (CONTINUATION, last) };
        bytes.extend(frame(kind, flags, stream, piece));
    }
    bytes
}

/// Fields, each a literal without indexing.
pub(crate) fn block(fields: &[(String, String)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A length with a prefix of seven bits (RFC 7541, 5.1).
fn integer(value: usize, block: &mut Vec<u8>) {
    if value < 127 {
        block.push(u8::try_from(value).unwrap());
        return;
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// A piece of a body.
pub(crate) fn data(stream: u32, bytes: &[u8], end: bool) -> Vec<u8> {
    frame(DATA, u8::from(end), stream, bytes)
}

/// What each request says first, in that order: `:method`, `:scheme`, `:path`, `:authority`.
pub(crate) fn request(method: &str, path: &str) -> Vec<(String, String)> {
    [(":method", method), (":scheme", "http"), (":path", path), (":authority", "h")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// `GET path`.
pub(crate) fn get(stream: u32, path: &str, more: &[(String, String)]) -> Vec<u8> {
    let mut fields = request("GET", path);
    fields.extend_from_slice(more);
    headers(stream, &fields, true)
}

/// A frame as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// Takes the first frame out of what came, once it is whole.
pub(crate) fn take(bytes: &mut Vec<u8>) -> Option<Frame> {
    let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = &bytes[..] else { return None };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    let payload = rest.get(..length)?.to_vec();
    let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
    let frame = Frame { kind: *kind, flags: *flags, stream, payload };
    bytes.drain(..9 + length);
    Some(frame)
}

/// The frames in what came.
pub(crate) fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut bytes = bytes.to_vec();
    std::iter::from_fn(|| take(&mut bytes)).collect()
}
