//! Outputs of finished jobs, resolved through the job's row: what was not published does not exist here.
//!
//! Who may read a job reads its media by plain name and is led to a URL with a [`token`] in it; that URL works for a
//! player that can send nothing, until it expires, and so do the relative names in the playlists behind it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_range_header::{EndPosition, StartPosition, SyntacticallyCorrectRange};
use millrace_wire::job::Outputs;
use millrace_wire::{Code, JobId, Problem};
use serde::Deserialize;

use super::tenant::Tenant;
use super::token::{self, Invalid};
use super::{App, Refusal, Shared, jobs, nearest};
use crate::objects::{self, Span};
use crate::store::{JobRow, Manifest};

/// Longest that a cache keeps a file, whatever its URL still allows: what an operator takes down is gone in a day.
const FILE_AGE_MAX_S: i64 = 86_400;

/// How long a URL of the object store's own holds, where readers are sent there.
const PRESIGNED_FOR: Duration = Duration::from_secs(3600);
/// How long such an answer is kept: much shorter, since temporary credentials may end before the URL does.
const REDIRECT_AGE_MAX_S: i64 = 60;

/// Manifests and their like are served here: what they name is relative to where they came from, and a URL of the
/// object store's has no place for a permission that reaches those names.
fn goes_past_the_workers(name: &str) -> bool {
    matches!(extension(name), "m4s" | "mp4" | "m4a" | "jpg")
}

/// Nothing under one token ever changes. Files are kept as long as the token holds; playlists and their like are asked
/// for again each time (an ETag makes that cheap), because with them a playback begins, and one that begins should
/// find what is there now.
fn cache_control(name: &str, seconds_left: i64) -> String {
    match extension(name) {
        "m3u8" | "mpd" | "vtt" => "no-cache".to_owned(),
        _ => format!("public, max-age={}, immutable", seconds_left.min(FILE_AGE_MAX_S)),
    }
}

fn now(app: &App) -> i64 {
    app.clock.now().as_second()
}

/// The path below which a job's files can be read by whoever is told of it.
pub(super) fn base(app: &App, tenant: &str, job_id: &JobId, job_uid: &str) -> String {
    let token = token::issue(app.store.signing_key(), tenant, job_uid, now(app), app.media_expiry);
    format!("/media/{job_id}/{token}")
}

async fn published(app: &App, row: JobRow) -> Result<Manifest, Refusal> {
    if row.manifest.is_some() && !app.upkeep.outputs_gone(std::slice::from_ref(&row.uid)).await?.is_empty() {
        let detail = format!("the outputs of job {} were deleted, or kept no longer", row.job_id);
        return Err(Problem::new(Code::OutputsGone, detail).job(&row.job_id).into());
    }
    let (id, state) = (row.job_id, row.state);
    row.manifest.ok_or_else(|| {
        if state.is_final() {
            let detail = format!("job {id} is {} and will have no outputs", state.as_str());
            return Problem::new(Code::JobWithoutOutputs, detail).into();
        }
        let detail = format!("job {id} is {}; its outputs appear when it has succeeded", state.as_str());
        Problem::new(Code::JobNotReady, detail).into()
    })
}

fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// A plain name: nothing hidden, and no way into another folder.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.starts_with('.') && name.chars().all(plain)
}

/// A single range as RFC 9110 has it, and of GET only (14.2). Several ranges or another unit: the whole object, as the
/// RFC allows; and a range whose end is before its start is none (14.1.1).
fn span(method: &Method, headers: &HeaderMap, etag: &str) -> Span {
    if *method != Method::GET {
        return Span::All;
    }
    let Some(range) = headers.get(RANGE).and_then(|v| v.to_str().ok()) else { return Span::All };
    // A range of another version is no range.
    if headers.get(IF_RANGE).is_some_and(|version| version.to_str().ok() != Some(etag)) {
        return Span::All;
    }
    let Ok(parsed) = http_range_header::parse_range_header(range) else { return Span::All };
    match parsed.ranges.as_slice() {
        [SyntacticallyCorrectRange { start, end }] => match (start, end) {
            (StartPosition::Index(first), EndPosition::Index(last)) if last < first => Span::All,
            (StartPosition::Index(first), EndPosition::Index(last)) => Span::Bounded(*first, *last),
            (StartPosition::Index(first), EndPosition::LastByte) => Span::From(*first),
            (StartPosition::FromLast(count), _) => Span::Last(*count),
        },
        _ => Span::All,
    }
}

/// Leads who may read the job to a URL that a player can use.
pub(super) async fn direct(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Path((id, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let row = jobs::find(&app, &tenant, &id).await?;
    let base = base(&app, &tenant, &row.job_id, &row.uid);
    published(&app, row).await?;
    if !is_plain(&name) {
        return Err(no_such_file());
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    // 307: what was asked is asked again, HEAD and a range included.
    Ok((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location(format!("{base}/{name}{query}"))?)])
        .into_response())
}

fn location(path: String) -> Result<HeaderValue, Refusal> {
    let refuse = |_| Problem::new(Code::BadRequest, "the query cannot be read").into();
    HeaderValue::try_from(path).map_err(refuse)
}

fn no_such_file() -> Refusal {
    Problem::new(Code::NotFound, "no such file in this job").into()
}

/// The row behind a tokened URL and how many seconds the token still holds. A wrong token is a wrong token whether or
/// not there is such a job or file: until it is right, the path tells nothing.
async fn permitted(app: &App, id: &str, token: &str) -> Result<(JobRow, i64), Refusal> {
    let forged = || {
        let detail = "use media URLs exactly as GET /jobs/{job_id} gives them";
        Refusal::from(Problem::new(Code::BadSignature, detail))
    };
    let id: JobId = id.parse().map_err(|_| forged())?;
    // A player sends no header that could say whose job it is: the token does.
    let tenant = token::tenant(token).ok_or_else(forged)?;
    let row = app.store.job(tenant, &id).await?;
    let uid = row.as_ref().map_or("", |row| row.uid.as_str());
    let left = match token::seconds_left(app.store.signing_key(), uid, token, now(app)) {
        Ok(left) => left,
        Err(Invalid::Forged) => return Err(forged()),
        Err(Invalid::Expired) => {
            let detail = format!("read GET /jobs/{id} again for fresh URLs");
            return Err(Problem::new(Code::MediaExpired, detail).job(&id).into());
        }
    };
    Ok((row.ok_or_else(forged)?, left))
}

pub(super) async fn serve(
    State(app): Shared,
    method: Method,
    Path((id, token, name)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (row, seconds_left) = permitted(&app, &id, &token).await?;
    let uid = row.uid.clone();
    let manifest = published(&app, row).await?;
    if !is_plain(&name) {
        return Err(no_such_file());
    }
    let key = manifest.key(&name);
    let saved = asks_for_a_file(query.as_deref()).then(|| format!("{id}-{name}"));
    let missing = |error| match error {
        objects::Error::NotFound => no_such_file(),
        error => error.into(),
    };
    if app.presign.downloads()
        && goes_past_the_workers(&name)
        && let Some(url) = app
            .objects
            .sign_read(
                method.clone(),
                &nearest::pick(&app, &manifest, &uid).await?,
                &key,
                PRESIGNED_FOR,
                saved.as_deref(),
            )
            .await?
    {
        let cached = format!("public, max-age={}", seconds_left.min(REDIRECT_AGE_MAX_S));
        let headers = [(LOCATION, location(url.into())?), (CACHE_CONTROL, location(cached)?)];
        return Ok((StatusCode::TEMPORARY_REDIRECT, headers).into_response());
    }
    let (pool, meta) = nearest::find(&app, &manifest, &uid, &key).await?.map_err(missing)?;
    let span = span(&method, &headers, &meta.etag);
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let cache_control = cache_control(&name, seconds_left);
    let content = match app.objects.read(&pool, &key, &meta, span, known).await {
        Ok(content) => content,
        Err(objects::Error::NotModified) => {
            return Ok((StatusCode::NOT_MODIFIED, [(ETAG, meta.etag), (CACHE_CONTROL, cache_control)])
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
        (CONTENT_TYPE, objects::content_type(&name).to_owned()),
        (CONTENT_LENGTH, (content.range.end - content.range.start).to_string()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (ETAG, content.meta.etag),
        (CACHE_CONTROL, cache_control),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let body = Body::from_stream(content.stream);
    let part =
        format!("bytes {}-{}/{}", content.range.start, content.range.end.max(1) - 1, content.meta.bytes);
    let mut response = match span {
        Span::All => (StatusCode::OK, fixed, body).into_response(),
        _ => (StatusCode::PARTIAL_CONTENT, fixed, [(CONTENT_RANGE, part)], body).into_response(),
    };
    if let Some(saved) = saved {
        // Job ids and file names are plain characters: nothing in there needs quoting.
        let saved = format!("attachment; filename=\"{saved}\"");
        let saved = saved.parse().expect("plain names are legal in a header");
        response.headers_mut().insert(CONTENT_DISPOSITION, saved);
    }
    Ok(response)
}

/// Whether the query has a `download` in it, with or without a value.
fn asks_for_a_file(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("download")))
}

#[derive(Deserialize)]
pub(super) struct DownloadQuery {
    rendition: Option<String>,
}

/// Leads to what is best to keep: the highest rendition as one file, the sound as one file, else the stream. Or to one
/// rendition (`audio` is the sound), as a file where there is one.
pub(super) async fn download(
    State(app): Shared,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    Query(query): Query<DownloadQuery>,
) -> Result<Response, Refusal> {
    let row = jobs::find(&app, &tenant, &id).await?;
    let base = base(&app, &tenant, &row.job_id, &row.uid);
    let outputs = published(&app, row).await?.outputs;
    let name = match query.rendition {
        None => best(&outputs),
        Some(wanted) => {
            let sound = outputs.audio.iter().map(|audio| ("audio", [&audio.mp4, &audio.url]));
            let all = outputs.renditions.iter().map(|one| (one.name.as_str(), [&one.mp4, &one.url]));
            let all: Vec<_> = all.chain(sound).collect();
            let found = all.iter().find(|(name, _)| *name == wanted).ok_or_else(|| {
                let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
                let detail = format!("job {id} has {}", names.join(", "));
                Refusal::from(Problem::new(Code::NotFound, detail).field("rendition"))
            })?;
            found.1.into_iter().flatten().next()
        }
    };
    let name = name.ok_or_else(|| Problem::new(Code::NotFound, "this job gave nothing to download"))?;
    let kept = matches!(extension(name), "mp4" | "m4a");
    let query = if kept { "?download" } else { "" };
    Ok((StatusCode::FOUND, [(LOCATION, format!("{base}/{name}{query}"))]).into_response())
}

fn best(outputs: &Outputs) -> Option<&String> {
    let top = outputs.renditions.first().and_then(|top| top.mp4.as_ref());
    let sound = outputs.audio.as_ref().and_then(|audio| audio.mp4.as_ref());
    top.or(sound).or(outputs.hls.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(range: &str) -> Span {
        span(&Method::GET, &HeaderMap::from_iter([(RANGE, range.parse().unwrap())]), "\"e\"")
    }

    #[test]
    fn one_range_is_served_and_anything_else_is_the_whole() {
        assert_eq!(asked("bytes=0-9"), Span::Bounded(0, 9));
        assert_eq!(asked("bytes=5-"), Span::From(5));
        assert_eq!(asked("bytes=-5"), Span::Last(5));
        for whole in ["bytes=0-1,3-4", "lines=1-2", "bytes=x", "bytes=9-3", "bytes=5-2", "bytes=1-0"] {
            assert_eq!(asked(whole), Span::All, "{whole}");
        }
        let headers = HeaderMap::from_iter([(RANGE, "bytes=0-9".parse().unwrap())]);
        assert_eq!(span(&Method::HEAD, &headers, "\"e\""), Span::All);
    }

    #[test]
    fn files_are_kept_as_long_as_their_url_holds_and_playlists_asked_for_again() {
        assert_eq!(cache_control("seg_0_00001.m4s", 90), "public, max-age=90, immutable");
        assert_eq!(cache_control("720p.mp4", 1_000_000), "public, max-age=86400, immutable");
        for again in ["master.m3u8", "manifest.mpd", "thumbnails.vtt"] {
            assert_eq!(cache_control(again, 90), "no-cache");
        }
    }

    #[test]
    fn download_is_a_word_of_the_query() {
        assert!(asks_for_a_file(Some("download")) && asks_for_a_file(Some("a=b&download=1")));
        assert!(!asks_for_a_file(None) && !asks_for_a_file(Some("downloads&x=download")));
    }

    #[test]
    fn a_range_of_another_version_is_the_whole() {
        let headers = HeaderMap::from_iter([
            (RANGE, "bytes=0-9".parse().unwrap()),
            (IF_RANGE, "\"old\"".parse().unwrap()),
        ]);
        assert_eq!(span(&Method::GET, &headers, "\"new\""), Span::All);
        assert_eq!(span(&Method::GET, &headers, "\"old\""), Span::Bounded(0, 9));
    }
}
