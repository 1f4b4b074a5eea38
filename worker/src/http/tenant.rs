//! Whose request it is, as the gateway says.
//!
//! The worker asks nobody for a key: it believes these headers, and the gateway takes them from clients. So whoever can
//! reach a worker directly acts for any tenant that he names. Nobody but gateways may: that is for the network (a
//! loopback address, a network policy, mutual TLS) to see to.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use millrace_wire::{Code, Problem};

use super::Refusal;
use crate::store::TENANT_DEFAULT;

/// The header that names the tenant.
const TENANT: &str = "millrace-tenant";
/// The header that names who asks, for the log.
const PRINCIPAL: &str = "millrace-principal";
/// Longest name of a tenant.
const TENANT_LENGTH_MAX: usize = 64;

/// Whose jobs a request is about: the default's without a header.
pub(super) struct Tenant(pub(super) String);

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let mut named = parts.headers.get_all(TENANT).iter();
        let Some(name) = named.next() else { return Ok(Self(TENANT_DEFAULT.to_owned())) };
        let name = name.to_str().ok().filter(|name| is_tenant(name) && named.next().is_none());
        let refuse = || Problem::new(Code::BadRequest, "millrace-tenant is the gateway's to set, once");
        name.map(|name| Self(name.to_owned())).ok_or_else(|| refuse().into())
    }
}

/// Who asks, if the gateway knows.
pub(super) struct Principal(pub(super) Option<String>);

impl<S: Sync> FromRequestParts<S> for Principal {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.headers.get(PRINCIPAL).and_then(|name| name.to_str().ok()).map(str::to_owned)))
    }
}

/// Whether a text is a tenant's name: it becomes part of keys and of URLs.
pub(super) fn is_tenant(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=TENANT_LENGTH_MAX).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}
