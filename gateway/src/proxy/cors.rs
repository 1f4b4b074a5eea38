//! What lets pages of other sites use the API: CORS, by the list of `[cors]`.
//!
//! Media and events carry what workers say of that, and nothing of ours beside it, or there would be two answers. Their
//! preflights are answered here for the pages of the list, because only the gateway knows that they may carry a key.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use crate::config::cors::{Cors, Origins};
use crate::request::{self, Route};

/// What pages may read of an answer beside what they always may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "location, retry-after, x-request-id, etag, millrace-pool, millrace-worker, millrace-decision",
);
/// What says that an answer is another one for another site.
const BY_ORIGIN: HeaderValue = HeaderValue::from_static("origin");

/// What is written on an answer for the page that asked.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// The value of `Access-Control-Allow-Origin`, if the page may read the answer.
    allowed: Option<HeaderValue>,
    credentials: bool,
    /// Whether the answer would be another one for another site.
    varies: bool,
}

/// The page of `[cors]` that asks, if one does and may.
fn allowed(cors: &Cors, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let origin = origins.next().filter(|_| origins.next().is_none())?;
    match &cors.origins {
        Origins::Any => Some(HeaderValue::from_static("*")),
        Origins::Only(listed) => listed.iter().find(|known| *known == origin).cloned(),
    }
}

impl Marks {
    /// What is written on answers to a request with these headers.
    pub(super) fn of(cors: Option<&Cors>, headers: &HeaderMap) -> Self {
        let Some(cors) = cors else { return Self::default() };
        let varies = matches!(cors.origins, Origins::Only(_));
        Self { allowed: allowed(cors, headers), credentials: cors.credentials, varies }
    }

    /// Writes them.
    pub(super) fn put(&self, header: &mut ResponseHeader) -> Result<()> {
        if self.varies {
            header.append_header(VARY, BY_ORIGIN)?;
        }
        let Some(origin) = &self.allowed else { return Ok(()) };
        header.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())?;
        header.insert_header(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED)?;
        if self.credentials {
            header.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")?;
        }
        Ok(())
    }
}

/// The answer to a browser that asks whether a page may ask (Fetch, 4.8), if it is ours to give.
pub(super) fn preflight(cors: &Cors, asked: &RequestHeader) -> Option<Result<ResponseHeader>> {
    if asked.method != Method::OPTIONS {
        return None;
    }
    let wanted = asked.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    asked.headers.get(ORIGIN)?;
    let wanted = Method::from_bytes(wanted.as_bytes()).ok()?;
    // A path that takes other methods is answered, too: the request itself says it better.
    let route = match request::classify(&wanted, asked.uri.path()) {
        Err(request::Refused::NotFound) => return None,
        Ok(route) => Some(route),
        Err(request::Refused::Method { .. }) => None,
    };
    let origin = allowed(cors, &asked.headers);
    if route == Some(Route::Media) && origin.is_none() {
        return None;
    }
    Some(answer(cors, origin))
}

fn answer(cors: &Cors, origin: Option<HeaderValue>) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(204, Some(8))?;
    header.insert_header(
        VARY,
        HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"),
    )?;
    if let Some(origin) = origin {
        header.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin)?;
        header.insert_header(ACCESS_CONTROL_ALLOW_METHODS, cors.methods.clone())?;
        header.insert_header(ACCESS_CONTROL_ALLOW_HEADERS, cors.headers.clone())?;
        header.insert_header(ACCESS_CONTROL_MAX_AGE, cors.max_age.clone())?;
        if cors.credentials {
            header.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")?;
        }
    }
    Ok(header)
}
