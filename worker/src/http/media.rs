//! Outputs of finished jobs, resolved through the job's row: what was not published does not exist here.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE,
    LOCATION, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_range_header::{EndPosition, StartPosition, SyntacticallyCorrectRange};
use millrace_wire::{Code, Problem};
use serde::Deserialize;

use super::{App, Refusal, Shared, jobs};
use crate::objects::{self, Span};
use crate::store::Manifest;

/// Segments of one attempt never change, but a job's name may be used again once the job is gone: playlists are asked
/// for again each time (an ETag makes that cheap), segments are kept for a day.
fn cache_control(name: &str) -> &'static str {
    if name.ends_with(".m3u8") { "no-cache" } else { "public, max-age=86400" }
}

async fn manifest(app: &App, id: &str) -> Result<Manifest, Refusal> {
    let row = jobs::find(app, id).await?;
    let state = row.state;
    row.manifest.ok_or_else(|| {
        if state.is_final() {
            let detail = format!("job {id} is {} and will have no outputs", state.as_str());
            return Problem::new(Code::JobWithoutOutputs, detail).into();
        }
        let detail = format!("job {id} is {}; its outputs appear when it has succeeded", state.as_str());
        Problem::new(Code::JobNotReady, detail).into()
    })
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "m3u8" => "application/vnd.apple.mpegurl",
        "m4s" => "video/iso.segment",
        "mp4" => "video/mp4",
        _ => "application/octet-stream",
    }
}

/// A single range as RFC 9110 has it. Several ranges or another unit: the whole object, as the RFC allows.
fn span(headers: &HeaderMap, etag: &str) -> Span {
    let Some(range) = headers.get(RANGE).and_then(|v| v.to_str().ok()) else { return Span::All };
    // A range of another version is no range.
    if headers.get(IF_RANGE).is_some_and(|version| version.to_str().ok() != Some(etag)) {
        return Span::All;
    }
    let Ok(parsed) = http_range_header::parse_range_header(range) else { return Span::All };
    match parsed.ranges.as_slice() {
        [SyntacticallyCorrectRange { start, end }] => match (start, end) {
            (StartPosition::Index(first), EndPosition::Index(last)) => Span::Bounded(*first, *last),
            (StartPosition::Index(first), EndPosition::LastByte) => Span::From(*first),
            (StartPosition::FromLast(count), _) => Span::Last(*count),
        },
        _ => Span::All,
    }
}

pub(super) async fn serve(
    State(app): Shared,
    Path((id, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let manifest = manifest(&app, &id).await?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.starts_with('.') || !name.chars().all(plain) {
        return Err(Problem::new(Code::NotFound, "no such file in this job").into());
    }
    let key = format!("{}/{name}", manifest.prefix);
    let missing = |error| match error {
        objects::Error::NotFound => Refusal(Problem::new(Code::NotFound, "no such file in this job")),
        error => error.into(),
    };
    let meta = app.objects.head(&manifest.bucket, &key).await.map_err(missing)?;
    let span = span(&headers, &meta.etag);
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let content = match app.objects.read(&manifest.bucket, &key, &meta, span, known).await {
        Ok(content) => content,
        Err(objects::Error::NotModified) => {
            return Ok((
                StatusCode::NOT_MODIFIED,
                [(ETAG, meta.etag), (CACHE_CONTROL, cache_control(&name).to_owned())],
            )
                .into_response());
        }
        Err(objects::Error::BadRange) => {
            let problem = Problem::new(Code::BadRange, format!("{name} has {} bytes", meta.bytes));
            let mut response = Refusal(problem).into_response();
            let size = format!("bytes */{}", meta.bytes).parse().expect("a legal header value");
            response.headers_mut().insert(CONTENT_RANGE, size);
            return Ok(response);
        }
        Err(error) => return Err(missing(error)),
    };
    let fixed = [
        (CONTENT_TYPE, content_type(&name).to_owned()),
        (CONTENT_LENGTH, (content.range.end - content.range.start).to_string()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (ETAG, content.meta.etag),
        (CACHE_CONTROL, cache_control(&name).to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let body = Body::from_stream(content.stream);
    if span == Span::All {
        return Ok((StatusCode::OK, fixed, body).into_response());
    }
    let part = format!("bytes {}-{}/{}", content.range.start, content.range.end - 1, content.meta.bytes);
    Ok((StatusCode::PARTIAL_CONTENT, fixed, [(CONTENT_RANGE, part)], body).into_response())
}

#[derive(Deserialize)]
pub(super) struct DownloadQuery {
    rendition: Option<String>,
}

/// Leads to the stream: the whole ladder, or one rendition of it.
pub(super) async fn download(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<DownloadQuery>,
) -> Result<Response, Refusal> {
    let outputs = manifest(&app, &id).await?.outputs;
    let name = match query.rendition {
        None => outputs.hls,
        Some(wanted) => {
            let names: Vec<&str> = outputs.renditions.iter().map(|r| r.name.as_str()).collect();
            let found = outputs.renditions.iter().find(|r| r.name == wanted).cloned();
            let found = found.ok_or_else(|| {
                let detail = format!("job {id} has {}", names.join(", "));
                Problem::new(Code::NotFound, detail).field("rendition")
            })?;
            found.mp4.or(found.url)
        }
    };
    let name = name.ok_or_else(|| Problem::new(Code::NotFound, "this job gave nothing to download"))?;
    Ok((StatusCode::FOUND, [(LOCATION, format!("/media/{id}/{name}"))]).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(range: &str) -> Span {
        span(&HeaderMap::from_iter([(RANGE, range.parse().unwrap())]), "\"e\"")
    }

    #[test]
    fn one_range_is_served_and_anything_else_is_the_whole() {
        assert_eq!(asked("bytes=0-9"), Span::Bounded(0, 9));
        assert_eq!(asked("bytes=5-"), Span::From(5));
        assert_eq!(asked("bytes=-5"), Span::Last(5));
        for whole in ["bytes=0-1,3-4", "lines=1-2", "bytes=x", "bytes=9-3"] {
            assert!(matches!(asked(whole), Span::All | Span::Bounded(9, 3)), "{whole}");
        }
    }

    #[test]
    fn a_range_of_another_version_is_the_whole() {
        let headers = HeaderMap::from_iter([
            (RANGE, "bytes=0-9".parse().unwrap()),
            (IF_RANGE, "\"old\"".parse().unwrap()),
        ]);
        assert_eq!(span(&headers, "\"new\""), Span::All);
        assert_eq!(span(&headers, "\"old\""), Span::Bounded(0, 9));
    }
}
