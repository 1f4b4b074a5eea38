//! What stands in a session, asked in one place.

use std::net::IpAddr;

use pingora::proxy::Session;

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
