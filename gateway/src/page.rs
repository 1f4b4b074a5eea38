//! The page at `/`: a web page to upload, watch and play with, and to see the pools, served from memory.
//!
//! Its files are part of the binary (`build.rs` gathers them), so there is nothing to deploy beside it and nothing that
//! could be of another version. Nothing in it comes from elsewhere, and the policy that goes with it allows nothing else.
//!
//! Both listeners serve it. The admin listener has no jobs, so its page shows the pools alone; the public one shows the
//! pools if `[page] pools` says so. What is asked for and what is answered are plain `http` types: Pingora has the one
//! listener and axum the other.

use std::net::IpAddr;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Uri};
use http::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use crate::admin::status::Status;
use crate::config::{self, Audience};

/// What stays the same for as long as its address does: the address names the content.
const FOREVER: &str = "public, max-age=31536000, immutable";
/// What is asked for again each time, and mostly answered with 304.
const REVALIDATE: &str = "no-cache";

/// What the API's page may do. Swagger UI sets styles on elements and has pictures in its style sheet.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// Whether hls.js was there when this was built. Without it a browser plays streams only if it can by itself.
pub const PLAYS_HLS: bool = files::HAS_PLAYER;

mod files {
    use super::Asset;

    include!(concat!(env!("OUT_DIR"), "/page.rs"));
}

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    /// Of the content: another content has another tag.
    tag: &'static str,
    plain: &'static [u8],
    gzip: &'static [u8],
}

/// What a listener has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Jobs and pools.
    All,
    /// Jobs, and no word on pools.
    Jobs,
    /// The admin listener: pools, and no jobs.
    Pools,
}

/// Whether the public listener tells of the pools to who asked with this header.
pub fn tells(page: &config::Page, uri: &Uri, headers: &HeaderMap) -> bool {
    match page.pools {
        Audience::Nobody => false,
        Audience::Local => is_local(uri, headers),
        Audience::Anyone => true,
    }
}

/// Whether the request is to `localhost` or a loopback address, by whatever port: what a browser says there is what
/// stands in its address bar, so a name that was made to lead here is seen.
pub fn is_local(uri: &Uri, headers: &HeaderMap) -> bool {
    // HTTP/2 has it in the request's target.
    let said = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(Ok(authority)) = said.or(uri.authority().map(Authority::as_str)).map(str::parse::<Authority>)
    else {
        return false;
    };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// The page itself; `None` when it is switched off.
pub fn index(page: &config::Page, parts: Parts, headers: &HeaderMap) -> Option<Response<Bytes>> {
    let place = match parts {
        Parts::All => 0,
        Parts::Jobs => 1,
        Parts::Pools => 2,
    };
    let asset = files::INDEX.get(place).filter(|_| page.enabled)?;
    let mut response = answer(asset, headers, REVALIDATE);
    let policy = HeaderValue::from_str(&policy(&page.origins)).ok()?;
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    Some(response)
}

/// The page of the API's description; `None` when pages are switched off.
pub fn docs(page: &config::Page, headers: &HeaderMap) -> Option<Response<Bytes>> {
    page.enabled.then(|| {
        let mut response = answer(&files::DOCS, headers, REVALIDATE);
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
        response
    })
}

/// The API's description.
pub fn openapi(headers: &HeaderMap) -> Response<Bytes> {
    static DOCUMENT: LazyLock<(Bytes, String)> = LazyLock::new(|| {
        let text = millrace_wire::openapi::document().to_string();
        let tag = format!("\"{}\"", hex::encode(&Sha256::digest(&text)[..8]));
        (text.into(), tag)
    });
    let (text, tag) = &*DOCUMENT;
    let same = is_known(headers, tag);
    let mut response = Response::new(if same { Bytes::new() } else { text.clone() });
    if same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(REVALIDATE));
    headers.insert(header::ETAG, HeaderValue::from_str(tag).expect("a tag is hexadecimal"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // It is the same for everybody, and other sites' tools may read it.
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// A file of the page by its name; `None` when there is no such file, or no page.
pub fn asset(
    page: &config::Page,
    name: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Option<Response<Bytes>> {
    let asset = files::ASSETS.iter().find(|asset| asset.name == name).filter(|_| page.enabled)?;
    let current = query.and_then(|query| query.strip_prefix("v=")) == Some(files::VERSION);
    Some(answer(asset, headers, if current { FOREVER } else { REVALIDATE }))
}

/// The operator's view as JSON, as of now.
pub fn pools(status: &Status) -> Response<Bytes> {
    let body = serde_json::to_vec(status).expect("a status is plain data");
    let mut response = Response::new(Bytes::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What the page may do: use what this origin serves, and `origins` for uploads and media, and nothing else.
///
/// hls.js runs its demuxer in a worker and feeds the video from a blob, hence `blob:`.
fn policy(origins: &[String]) -> String {
    let more: String = origins.iter().map(|origin| format!(" {origin}")).collect();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:{more}; \
         media-src 'self' blob:{more}; connect-src 'self'{more}; worker-src 'self' blob:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
}

fn answer(asset: &Asset, asked: &HeaderMap, cache: &'static str) -> Response<Bytes> {
    let gzip = takes_gzip(asked);
    let tag = format!("\"{}{}\"", asset.tag, if gzip { "-gz" } else { "" });
    let same = is_known(asked, &tag);
    let body = match (same, gzip) {
        (true, _) => &[][..],
        (false, true) => asset.gzip,
        (false, false) => asset.plain,
    };
    let mut response = Response::new(Bytes::from_static(body));
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    put(header::CACHE_CONTROL, cache);
    put(header::VARY, "accept-encoding");
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(header::REFERRER_POLICY, "no-referrer");
    if !same {
        put(header::CONTENT_TYPE, asset.kind);
        if gzip {
            put(header::CONTENT_ENCODING, "gzip");
        }
    }
    headers.insert(header::ETAG, HeaderValue::from_str(&tag).expect("a tag is hexadecimal"));
    if same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response
}

/// Whether `Accept-Encoding` names gzip (or anything) and does not forbid it (RFC 9110, 12.5.3).
fn takes_gzip(asked: &HeaderMap) -> bool {
    let mut star = false;
    let values = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for coding in values.flat_map(|value| value.split(',')) {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().trim_start_matches("q=").parse::<f32>().unwrap_or(0.0);
        match name.trim() {
            name if name.eq_ignore_ascii_case("gzip") => return weight > 0.0,
            "*" => star = weight > 0.0,
            _ => {}
        }
    }
    star
}

/// Whether `If-None-Match` has this tag, weak or not (RFC 9110, 13.1.2).
fn is_known(asked: &HeaderMap, tag: &str) -> bool {
    let values = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.trim_start_matches("W/") == tag
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_theirs(asset: &Asset) -> bool {
        ["hls.", "swagger-ui"].iter().any(|library| asset.name.starts_with(library))
    }

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    fn shown() -> config::Page {
        config::Page { enabled: true, pools: Audience::Anyone, origins: Vec::new() }
    }

    #[test]
    fn a_name_that_was_made_to_lead_here_is_told_apart() {
        for (host, local) in [
            ("localhost:8080", true),
            ("LOCALHOST", true),
            ("127.0.0.1:8080", true),
            ("127.8.8.8", true),
            ("[::1]:8080", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(is_local(&Uri::from_static("/"), &headers(&[(header::HOST, host)])), local, "{host}");
        }
        assert!(is_local(&Uri::from_static("http://localhost:1/pools"), &HeaderMap::new()));
        assert!(!is_local(&Uri::from_static("http://evil.example/pools"), &HeaderMap::new()));
        assert!(!is_local(&Uri::from_static("/pools"), &HeaderMap::new()));
    }

    #[test]
    fn each_listener_gets_the_page_with_its_parts() {
        for (parts, says) in [
            (Parts::All, "data-parts=\"jobs pools\""),
            (Parts::Jobs, "data-parts=\"jobs\""),
            (Parts::Pools, "data-parts=\"pools\""),
        ] {
            let page = index(&shown(), parts, &HeaderMap::new()).unwrap();
            assert!(std::str::from_utf8(page.body()).unwrap().contains(says), "{parts:?}");
        }
        let off = config::Page { enabled: false, ..shown() };
        assert!(index(&off, Parts::All, &HeaderMap::new()).is_none());
        assert!(asset(&off, "app.js", None, &HeaderMap::new()).is_none());
    }

    #[test]
    fn every_address_in_the_page_is_served_and_has_the_version() {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let mut sources = vec![text(index(&shown(), Parts::All, &HeaderMap::new()).unwrap().body())];
        let own = |asset: &&Asset| asset.name.ends_with(".js") && !is_theirs(asset);
        sources.extend(files::ASSETS.iter().filter(own).map(|a| text(&Bytes::from_static(a.plain))));
        let mut found = 0;
        for source in &sources {
            let imports = source.match_indices("from \"./").map(|(at, from)| &source[at + from.len()..]);
            let links = source.match_indices("\"/assets/").map(|(at, from)| &source[at + from.len()..]);
            for rest in imports.chain(links) {
                let address = rest.split('"').next().unwrap();
                let (name, query) = address.split_once('?').unwrap_or_else(|| panic!("{address}"));
                let served = asset(&shown(), name, Some(query), &HeaderMap::new());
                let served = served.unwrap_or_else(|| panic!("{address} is not there"));
                assert_eq!(served.headers()[header::CACHE_CONTROL], FOREVER, "{address}");
                found += 1;
            }
        }
        assert!(found > 10, "only {found} addresses found");
    }

    #[test]
    fn nothing_of_our_own_is_inline_or_from_elsewhere() {
        let page = index(&shown(), Parts::All, &HeaderMap::new()).unwrap();
        let html = String::from_utf8(page.body().to_vec()).unwrap();
        for forbidden in ["<style", " style=", " onclick=", "http://", "https://", "<script>", "//cdn"] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        let own: usize =
            files::ASSETS.iter().filter(|asset| !is_theirs(asset)).map(|asset| asset.plain.len()).sum();
        assert!(own + html.len() < 72 * 1024, "the page has grown to {} bytes", own + html.len());
    }

    #[test]
    fn gzip_is_what_was_asked_for_and_the_same_content() {
        for (accepts, gzip) in [
            ("gzip", true),
            ("br;q=1.0, GZIP;q=0.8", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("identity", false),
            ("br", false),
            ("gzip;q=much", false),
        ] {
            let asked = headers(&[(header::ACCEPT_ENCODING, accepts)]);
            let response = asset(&shown(), "app.js", None, &asked).unwrap();
            assert_eq!(response.headers().contains_key(header::CONTENT_ENCODING), gzip, "{accepts}");
            assert_eq!(response.headers()[header::CACHE_CONTROL], REVALIDATE);
        }
        for asset in files::ASSETS.iter().chain(&files::INDEX) {
            let mut unpacked = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(asset.gzip), &mut unpacked).unwrap();
            assert!(unpacked == asset.plain, "{}", asset.name);
        }
    }

    #[test]
    fn a_known_tag_is_answered_without_the_content() {
        let first = asset(&shown(), "style.css", None, &HeaderMap::new()).unwrap();
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
            let mut asked = HeaderMap::new();
            asked.insert(header::IF_NONE_MATCH, known.parse().unwrap());
            let again = asset(&shown(), "style.css", None, &asked).unwrap();
            assert_eq!((again.status(), again.body().len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
            assert_eq!(again.headers()[header::ETAG], tag);
        }
        // The packed form is another representation, so its tag is another.
        let mut asked = headers(&[(header::ACCEPT_ENCODING, "gzip")]);
        asked.insert(header::IF_NONE_MATCH, tag.parse().unwrap());
        assert_eq!(asset(&shown(), "style.css", None, &asked).unwrap().status(), StatusCode::OK);
    }

    #[test]
    fn further_origins_are_for_uploads_and_media_alone() {
        let policy = policy(&["https://bucket.example".to_owned()]);
        let with = |directive: &str| {
            let part = policy.split("; ").find(|part| part.starts_with(directive)).unwrap();
            part.contains("https://bucket.example")
        };
        assert!(with("connect-src") && with("media-src") && with("img-src"));
        assert!(!with("script-src") && !with("style-src") && !with("default-src") && !with("worker-src"));
    }
}
