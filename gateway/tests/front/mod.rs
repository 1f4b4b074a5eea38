//! What stands between clients and the API: TLS, bounds, and the bytes that are no honest request.

mod auth;
mod bounds;
mod cors;
pub(crate) mod h2raw;
mod idle;
mod jwt;
mod logging;
mod rate;
mod smuggling;
pub(crate) mod tls;
mod uploads;
