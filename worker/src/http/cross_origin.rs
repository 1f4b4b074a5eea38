//! What lets a player on somebody else's page read media and events: CORS, on every answer, errors and redirects
//! included. Without it a page cannot even tell an expired URL from a broken network.

use std::time::Duration;

use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderName,
    IF_NONE_MATCH, IF_RANGE, RANGE, RETRY_AFTER,
};
use axum::http::{HeaderValue, Method};
use axum::response::Response;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::Origins;

/// How long a browser need not ask again whether it may ask. Browsers cap it themselves, Chromium at two hours.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(7200);

/// Answers preflights and marks answers for the pages that may read them.
pub(super) fn cors(origins: &Origins) -> CorsLayer {
    let allowed = match origins {
        Origins::Any => AllowOrigin::any(),
        Origins::Only(origins) => AllowOrigin::list(origins.clone()),
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::OPTIONS])
        .allow_headers([
            RANGE,
            IF_NONE_MATCH,
            IF_RANGE,
            HeaderName::from_static("last-event-id"),
            CACHE_CONTROL,
        ])
        .expose_headers([CONTENT_LENGTH, CONTENT_RANGE, ACCEPT_RANGES, ETAG, CONTENT_TYPE, DATE, RETRY_AFTER])
        .max_age(PREFLIGHT_MAX_AGE)
}

/// Marks an answer for what CORS does not cover: pages that are isolated may embed it, and players may see how long it
/// took, which is how they choose a rendition. Who says nothing of caching has nothing to cache.
pub(super) async fn mark(timing: HeaderValue, mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("cross-origin"));
    headers.insert("timing-allow-origin", timing);
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The value of `Timing-Allow-Origin`.
pub(super) fn timing(origins: &Origins) -> HeaderValue {
    match origins {
        Origins::Any => HeaderValue::from_static("*"),
        Origins::Only(origins) => {
            let listed: Vec<&[u8]> = origins.iter().map(HeaderValue::as_bytes).collect();
            HeaderValue::from_bytes(&listed.join(&b", "[..])).expect("header values joined are one")
        }
    }
}
