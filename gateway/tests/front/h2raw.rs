//! HTTP/2 frames by hand (RFC 9113), for what no client library sends.

/// The preface, and settings that change nothing.
pub(crate) fn opening() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes
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
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend(text.as_bytes());
        }
    }
    let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
    let mut bytes = Vec::new();
    for (n, piece) in pieces.iter().enumerate() {
        let last = if n + 1 == pieces.len() { 4 } else { 0 };
        let (kind, flags) = if n == 0 { (1, last | u8::from(end)) } else { (9, last) };
        bytes.extend(frame(kind, flags, stream, piece));
    }
    bytes
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
    frame(0, u8::from(end), stream, bytes)
}

/// `GET path`.
pub(crate) fn get(stream: u32, path: &str, more: &[(String, String)]) -> Vec<u8> {
    let mut fields: Vec<(String, String)> =
        [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "h")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
    fields.extend_from_slice(more);
    headers(stream, &fields, true)
}

/// The frames in what came: kind, stream, payload.
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, s0, s1, s2, s3, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(payload) = rest.get(..length) else { break };
        frames.push((*kind, u32::from_be_bytes([*s0, *s1, *s2, *s3]), payload.to_vec()));
        bytes = &rest[length..];
    }
    frames
}
