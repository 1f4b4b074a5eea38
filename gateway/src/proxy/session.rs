//! What stands in a session, asked in one place.

use std::net::IpAddr;

use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use crate::trace;

/// Whether anything of an answer went to the client; "continue" is none.
pub(super) fn answered(session: &Session) -> bool {
    session.response_written().is_some_and(|header| !header.status.is_informational())
}

/// The address that a request came from.
pub(super) fn client_ip(session: &Session) -> Option<IpAddr> {
    session.client_addr().and_then(|address| address.as_inet()).map(|inet| inet.ip())
}

/// Whether a request came by TLS.
pub(super) fn is_tls(session: &Session) -> bool {
    session.digest().is_some_and(|digest| digest.ssl_digest.is_some())
}

/// Forgets how the client spelled the names of its fields: they mean the same in lower case, and Pingora would keep a
/// second map of them up to date with each change and copy it with the header.
fn forget_case(header: &mut RequestHeader) {
    let target = header.uri.path_and_query().map(|target| target.as_str().as_bytes());
    // Of any other form of target the parts know only the path.
    if header.has_case() && target == Some(header.raw_path()) {
        let nothing = http::Request::new(()).into_parts().0;
        let parts: http::request::Parts = std::mem::replace(header, nothing.into()).into();
        *header = parts.into();
    }
}

/// The same for a worker's answer.
pub(super) fn forget_case_of_answer(header: &mut ResponseHeader) {
    if header.has_case() {
        let nothing = http::Response::new(()).into_parts().0;
        let parts: http::response::Parts = std::mem::replace(header, nothing.into()).into();
        *header = parts.into();
    }
}

/// Puts a request's names into its own header, where all that follows reads them.
pub(super) fn name(header: &mut RequestHeader) -> Result<()> {
    forget_case(header);
    let names = trace::adopt(&header.headers);
    header.insert_header(trace::REQUEST_ID, names.request_id)?;
    header.insert_header(trace::TRACEPARENT, names.traceparent)?;
    if !names.known_trace {
        header.remove_header(trace::TRACESTATE);
    }
    Ok(())
}

/// A request's id, once it has one.
pub(super) fn request_id(session: &Session) -> Option<&http::HeaderValue> {
    session.req_header().headers.get(trace::REQUEST_ID)
}
