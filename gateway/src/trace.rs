//! By which names a request is found again: `x-request-id`, and W3C's `traceparent`.
//!
//! Settled once, so that every hop behind reads the same ones: the worker, our answer, the log. What a client sends is
//! believed only if it is one plain word; it ends up in logs.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;
use rand::Rng as _;

use crate::glance::Glance;

/// The header of a request's id.
pub const REQUEST_ID: &str = "x-request-id";
/// The header of a trace: version, trace, span, flags.
pub const TRACEPARENT: &str = "traceparent";
/// What vendors add to it; means nothing without it.
pub const TRACESTATE: &str = "tracestate";
/// Longest id of a client that is kept.
const REQUEST_ID_MAX: usize = 128;
/// Where what stands in a `traceparent`.
const TRACE: Range<usize> = 3..35;
const SPAN: Range<usize> = 36..52;
const FLAGS: Range<usize> = 53..55;

/// Settles a request's id and trace. A usable id of the client's is kept, and so is its trace, in which we are the next
/// span; else both are fresh.
pub fn adopt(header: &Glance<'_>) -> Names {
    let known = header.traceparent.once().and_then(|value| Trace::parse(value.to_str().ok()?));
    let given = header.request_id.once().filter(|id| is_plain(id.as_bytes())).cloned();
    let mut rng = rand::rng();
    // Written into place and not by `format!`: every request pays for this.
    let mut line = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let mut fill = |place: Range<usize>, bytes: &[u8]| {
        hex::encode_to_slice(bytes, &mut line[place]).expect("two digits for each byte");
    };
    // Neither may be all zero.
    fill(SPAN, &rng.random::<u64>().max(1).to_be_bytes());
    match &known {
        Some(trace) => {
            line[TRACE].copy_from_slice(trace.id.as_bytes());
            line[FLAGS].copy_from_slice(trace.flags.as_bytes());
        }
        None => fill(TRACE, &rng.random::<u128>().max(1).to_be_bytes()),
    }
    // A fresh id is a part of the same text, and shares its memory.
    let line = Bytes::copy_from_slice(&line);
    let value = |text: Bytes| HeaderValue::from_maybe_shared(text).expect("digits and dashes");
    Names {
        request_id: given.unwrap_or_else(|| value(line.slice(TRACE))),
        traceparent: value(line),
        known_trace: known.is_some(),
    }
}

/// A request's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The client's own id, else the trace's.
    pub request_id: HeaderValue,
    /// What is passed on.
    pub traceparent: HeaderValue,
    /// Whether the client began the trace, so that its `tracestate` belongs to it.
    pub known_trace: bool,
}

impl Names {
    /// The id as text.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.to_str().ok()
    }

    /// The trace's id.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent.to_str().ok()?.get(TRACE)
    }
}

struct Trace<'a> {
    id: &'a str,
    flags: &'a str,
}

impl<'a> Trace<'a> {
    /// Reads <https://www.w3.org/TR/trace-context/#traceparent-header>; of a later version, what version 00 knows.
    fn parse(text: &'a str) -> Option<Self> {
        let fields: Vec<&str> = text.split('-').collect();
        let (version, id, span, flags) = match fields.as_slice() {
            ["00", id, span, flags] => ("00", *id, *span, *flags),
            [version, id, span, flags, ..] if *version != "00" => (*version, *id, *span, *flags),
            _ => return None,
        };
        let hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        };
        let nonzero = |text: &str| text.bytes().any(|c| c != b'0');
        let known = hex(version, 2) && version != "ff" && hex(flags, 2);
        (known && hex(id, 32) && nonzero(id) && hex(span, 16) && nonzero(span)).then_some(Self { id, flags })
    }
}

fn is_plain(id: &[u8]) -> bool {
    let plain = |c: &u8| c.is_ascii_alphanumeric() || b"._-".contains(c);
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn with(fields: &[(&'static str, &str)]) -> Names {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        adopt(&Glance::from(&headers))
    }

    #[test]
    fn a_plain_id_is_kept_and_anything_else_is_replaced() {
        assert_eq!(with(&[(REQUEST_ID, "a-B.9_")]).request_id, "a-B.9_");
        let long = "x".repeat(129);
        for bad in ["", "a b", "a\"b", "a/b", "{}", long.as_str()] {
            assert_eq!(with(&[(REQUEST_ID, bad)]).request_id.len(), 32, "{bad:?}");
        }
        assert_eq!(with(&[(REQUEST_ID, "a"), (REQUEST_ID, "b")]).request_id.len(), 32);
        assert_ne!(with(&[]).request_id, with(&[]).request_id);
    }

    #[test]
    fn a_trace_goes_on_with_a_span_of_ours() {
        let given = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let names = with(&[(TRACEPARENT, &given)]);
        let traceparent = names.traceparent.to_str().unwrap();
        assert!(traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-01"));
        assert_ne!(names.traceparent, given, "we are another span");
        assert_eq!((names.request_id.to_str().unwrap(), names.known_trace), (TRACE, true));
        assert_eq!(names.trace_id(), Some(TRACE));
        let later = with(&[(TRACEPARENT, &format!("01-{TRACE}-00f067aa0ba902b7-01-more"))]);
        assert!(
            later.known_trace && later.traceparent.to_str().unwrap().starts_with(&format!("00-{TRACE}-"))
        );
    }

    #[test]
    fn a_trace_that_is_none_is_replaced() {
        let zeros = "0".repeat(32);
        for bad in [
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            "x".to_owned(),
        ] {
            let names = with(&[(TRACEPARENT, &bad)]);
            assert!(!names.known_trace && names.traceparent.len() == 55, "{bad}");
        }
    }
}
