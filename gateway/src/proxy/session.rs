//! What stands in a session, asked in one place.

use std::net::IpAddr;

use pingora::Result;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use crate::forward::{self, fields};
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

/// Puts a request's names into its own header, where all that follows reads them.
pub(super) fn name(header: &mut RequestHeader) -> Result<()> {
    let names = trace::adopt(&header.headers);
    fields::change(header, |fields| {
        // Room for what a worker's copy gets beside them, or the map would grow once more.
        fields.reserve(2 + forward::OURS_MAX);
        fields.insert(&fields::REQUEST_ID, names.request_id);
        fields.insert(&fields::TRACEPARENT, names.traceparent);
        if !names.known_trace {
            fields.remove(&fields::TRACESTATE);
        }
    })
}

/// A request's id, once it has one.
pub(super) fn request_id(session: &Session) -> Option<&http::HeaderValue> {
    session.req_header().headers.get(&fields::REQUEST_ID)
}
