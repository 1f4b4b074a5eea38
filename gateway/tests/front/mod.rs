//! What stands between clients and the API: TLS, bounds, and the bytes that are no honest request.

pub(crate) mod tls;
