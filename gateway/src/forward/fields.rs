//! Changing header fields for less: on the plain map, by names that were parsed once.
//!
//! Pingora's own way keeps how each name was spelled in a second map, and parses and copies a name with each change: a
//! thousand instructions per field, and a request has eleven. Here the spelling is forgotten; names mean the same in
//! lower case, in which HTTP/2 sends them anyway.

use http::{HeaderMap, HeaderName};
use millrace_wire::headers;
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use crate::{auth, trace};

/// [`trace::REQUEST_ID`]
pub static REQUEST_ID: HeaderName = HeaderName::from_static(trace::REQUEST_ID);
/// [`trace::TRACEPARENT`]
pub static TRACEPARENT: HeaderName = HeaderName::from_static(trace::TRACEPARENT);
/// [`trace::TRACESTATE`]
pub static TRACESTATE: HeaderName = HeaderName::from_static(trace::TRACESTATE);
/// [`auth::API_KEY`]
pub static API_KEY: HeaderName = HeaderName::from_static(auth::API_KEY);
/// [`auth::PRINCIPAL`]
pub static PRINCIPAL: HeaderName = HeaderName::from_static(auth::PRINCIPAL);
/// [`auth::TENANT`]
pub static TENANT: HeaderName = HeaderName::from_static(auth::TENANT);
/// [`headers::POOL`]
pub static POOL: HeaderName = HeaderName::from_static(headers::POOL);
/// [`headers::WORKER`]
pub static WORKER: HeaderName = HeaderName::from_static(headers::WORKER);
/// [`headers::DECISION`]
pub static DECISION: HeaderName = HeaderName::from_static(headers::DECISION);
/// [`headers::STEAL`]
pub static STEAL: HeaderName = HeaderName::from_static(headers::STEAL);
/// [`headers::LOAD`]
pub static LOAD: HeaderName = HeaderName::from_static(headers::LOAD);
/// [`headers::STORE`]
pub static STORE: HeaderName = HeaderName::from_static(headers::STORE);
/// [`headers::IDEMPOTENCY_KEY`]
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(headers::IDEMPOTENCY_KEY);
/// Whether a client asked by TLS.
pub static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// A client's address.
pub static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Changes a request's fields; their spelling is forgotten.
///
/// # Errors
/// Never for a header that was parsed: its target is parsed once more if only the header itself knows it.
pub fn change<T>(header: &mut RequestHeader, change: impl FnOnce(&mut HeaderMap) -> T) -> Result<T> {
    let target = header.uri.path_and_query().map(|target| target.as_str().as_bytes());
    // Parts know only a URI; of a target in another form (`GET http://host/path`) that is not all.
    let verbatim = (target != Some(header.raw_path())).then(|| header.raw_path().to_vec());
    let nothing = http::Request::new(()).into_parts().0;
    let mut parts: http::request::Parts = std::mem::replace(header, nothing.into()).into();
    let changed = change(&mut parts.headers);
    *header = parts.into();
    if let Some(target) = verbatim {
        header.set_raw_path(&target)?;
    }
    Ok(changed)
}

/// Changes an answer's fields; their spelling is forgotten.
pub fn change_answer<T>(header: &mut ResponseHeader, change: impl FnOnce(&mut HeaderMap) -> T) -> T {
    let nothing = http::Response::new(()).into_parts().0;
    let mut parts: http::response::Parts = std::mem::replace(header, nothing.into()).into();
    let changed = change(&mut parts.headers);
    *header = parts.into();
    changed
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_request_is_the_same_but_for_what_was_changed() {
        for target in ["/jobs/a?b=c", "/", "*", "http://host/path?q=1", "http://host", "/caf\u{e9}"] {
            let mut header = RequestHeader::build("POST", target.as_bytes(), None).unwrap();
            header.append_header("X-One", "1").unwrap();
            header.append_header("x-one", "2").unwrap();
            let before = header.clone();
            change(&mut header, |fields| fields.insert(&POOL, HeaderValue::from_static("aws"))).unwrap();
            assert_eq!(header.raw_path(), before.raw_path(), "{target}");
            assert_eq!(header.raw_path_is_utf8(), before.raw_path_is_utf8(), "{target}");
            assert_eq!((&header.uri, &header.method), (&before.uri, &before.method), "{target}");
            assert_eq!(header.version, before.version);
            assert_eq!(header.headers.get_all("x-one").iter().count(), 2);
            assert_eq!(header.headers["millrace-pool"], "aws");
        }
    }

    #[test]
    fn an_answer_is_the_same_but_for_what_was_changed() {
        let mut header = ResponseHeader::build(206, None).unwrap();
        header.append_header("ETag", "\"a\"").unwrap();
        let removed = change_answer(&mut header, |fields| fields.remove(&LOAD));
        assert_eq!((removed, header.status.as_u16()), (None, 206));
        assert_eq!(header.headers["etag"], "\"a\"");
    }
}
