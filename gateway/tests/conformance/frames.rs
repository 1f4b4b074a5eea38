//! The frames that the cases are made of.

use crate::front::h2raw::{self, CONTINUATION, END_HEADERS, END_STREAM, HEADERS};

/// What a file is read by; a worker answers it with a body of some bytes.
pub(super) const PATH: &str = "/jobs/j";
/// Where a file is written to.
pub(super) const UPLOAD: &str = "/upload/aws/k";

/// One field of a header.
pub(super) fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The fields of a request that reads, and more.
pub(super) fn asking(more: &[(&str, &str)]) -> Vec<(String, String)> {
    let more = more.iter().map(|(name, value)| field(name, value));
    h2raw::request("GET", PATH).into_iter().chain(more).collect()
}

/// The same for one that writes.
pub(super) fn writing(more: &[(&str, &str)]) -> Vec<(String, String)> {
    let more = more.iter().map(|(name, value)| field(name, value));
    h2raw::request("PUT", UPLOAD).into_iter().chain(more).collect()
}

/// A whole request that reads.
pub(super) fn get(stream: u32) -> Vec<u8> {
    h2raw::headers(stream, &asking(&[]), true)
}

/// The header of one that writes; its body may follow.
pub(super) fn put(stream: u32) -> Vec<u8> {
    h2raw::headers(stream, &writing(&[]), false)
}

/// A header of its own making.
pub(super) fn headers(stream: u32, fields: &[(String, String)]) -> Vec<u8> {
    h2raw::headers(stream, fields, true)
}

/// A header whose block is of its own making.
pub(super) fn block(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    h2raw::frame(HEADERS, flags, stream, block)
}

/// The block of a request that reads.
pub(super) fn asking_block() -> Vec<u8> {
    h2raw::block(&asking(&[]))
}

/// A header that is not at its end yet.
pub(super) fn unfinished(stream: u32, end_stream: bool) -> Vec<u8> {
    block(u8::from(end_stream), stream, &asking_block())
}

/// A few fields more, as CONTINUATION.
pub(super) fn continuation(stream: u32, end: bool) -> Vec<u8> {
    let flags = if end { END_HEADERS } else { 0 };
    h2raw::frame(CONTINUATION, flags, stream, &h2raw::block(&[field("x-more", "of it")]))
}

pub(super) fn ping(data: [u8; 8]) -> Vec<u8> {
    h2raw::frame(h2raw::PING, 0, 0, &data)
}

/// Which stream it depends on, whether alone, and a weight less one (RFC 7540, 6.3).
pub(super) fn weight(on: u32, alone: bool, weight: u8) -> Vec<u8> {
    let on = if alone { on | 1 << 31 } else { on };
    [&on.to_be_bytes()[..], &[weight]].concat()
}

pub(super) fn priority(stream: u32, of: &[u8]) -> Vec<u8> {
    h2raw::frame(h2raw::PRIORITY, 0, stream, of)
}

pub(super) fn reset(stream: u32, code: u32) -> Vec<u8> {
    h2raw::frame(h2raw::RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(super) fn window(stream: u32, more: u32) -> Vec<u8> {
    h2raw::frame(h2raw::WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

pub(super) fn goaway(stream: u32, code: u32) -> Vec<u8> {
    h2raw::frame(h2raw::GOAWAY, 0, stream, &[[0; 4], code.to_be_bytes()].concat())
}

/// A frame of a kind that nobody has defined.
pub(super) fn unknown() -> Vec<u8> {
    h2raw::frame(0x16, 0, 0, &[0; 8])
}

/// Both flags of a request that is only a header.
pub(super) const WHOLE: u8 = END_HEADERS | END_STREAM;
