//! What a request asks for, from its method and path alone.

use http::Method;
use millrace_wire::{Code, PoolId, Problem};

/// So many segments of a path tell its route.
const SEGMENTS_MAX: usize = 4;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A job: `POST /process` or `POST /jobs`.
    Submit,
    /// A job whose input is the body: `POST /videos`.
    Video,
    /// A ticket for an upload: `POST /upload/request`.
    UploadRequest,
    /// An upload to the pool that its ticket names: `PUT /upload/POOL/KEY`.
    Upload {
        /// The pool.
        pool: PoolId,
    },
    /// Something about jobs that any worker of the store can say.
    Read,
    /// Bytes of a finished job, or events of a running one: an answer that may be long.
    Media,
    /// The end of a job: `DELETE /jobs/ID`.
    Cancel,
    /// Another wish about a job that ended: `POST /jobs/ID/retry`, `POST /jobs/ID/replicate`.
    Retry,
    /// The web page: `GET /`.
    Page,
    /// A file of the page: `GET /assets/NAME`.
    Asset {
        /// Which.
        name: String,
    },
    /// The operator's view of the pools: `GET /pools`.
    Pools,
    /// The API's description: `GET /openapi.json`.
    OpenApi,
    /// The page of that: `GET /docs`.
    Docs,
    /// `GET /livez`.
    Livez,
    /// `GET /readyz`, and `GET /health`, which means the same.
    Readyz,
}

impl Route {
    /// A metric label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Video => "video",
            Self::UploadRequest => "upload_request",
            Self::Upload { .. } => "upload",
            Self::Read => "read",
            Self::Media => "media",
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Page | Self::Asset { .. } | Self::Pools | Self::OpenApi | Self::Docs => "local",
            Self::Livez | Self::Readyz => "local",
        }
    }

    /// Whether the gateway answers it itself.
    pub fn is_local(&self) -> bool {
        self.as_str() == "local"
    }

    /// Whether a worker accepts a job by it.
    pub fn makes_job(&self) -> bool {
        matches!(self, Self::Submit | Self::Video)
    }

    /// Whether its body may be as large as a video: it is passed on as it comes, counted, and never sent twice.
    pub fn is_upload(&self) -> bool {
        matches!(self, Self::Upload { .. } | Self::Video)
    }

    /// Whether the gateway reads the whole body before it chooses a worker.
    pub fn reads_body(&self) -> bool {
        matches!(self, Self::Submit | Self::UploadRequest)
    }
}

/// Why a request has no route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// No such path.
    NotFound,
    /// The path exists, with these methods.
    Method {
        /// The value of `Allow`.
        allow: &'static str,
    },
}

impl Refused {
    /// The value of `Allow`, if there is one.
    pub fn allow(&self) -> Option<&'static str> {
        match self {
            Self::NotFound => None,
            Self::Method { allow } => Some(allow),
        }
    }

    /// What the client reads.
    pub fn problem(&self, method: &Method, path: &str) -> Problem {
        let path: String = path.chars().take(200).collect();
        match self {
            Self::NotFound => Problem::new(Code::NotFound, format!("{path} is no path of this API")),
            Self::Method { allow } => {
                let detail = format!("{path} takes {allow}, not {method}");
                Problem::new(Code::MethodNotAllowed, detail)
            }
        }
    }
}

/// Reads method and path (without its query).
///
/// # Errors
/// No such path, or not with this method.
pub fn classify(method: &Method, path: &str) -> Result<Route, Refused> {
    // Of a longer path only its begin counts.
    let (mut parts, mut count) = ([""; SEGMENTS_MAX], 0);
    let mut rest = Some(path.strip_prefix('/').ok_or(Refused::NotFound)?);
    for place in &mut parts {
        let Some(text) = rest else { break };
        (*place, rest) = match memchr::memchr(b'/', text.as_bytes()) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        count += 1;
    }
    let gets = matches!(*method, Method::GET | Method::HEAD);
    let posts = *method == Method::POST;
    let only = |allow: &'static str, route: Option<Route>| route.ok_or(Refused::Method { allow });
    match &parts[..count] {
        ["process"] => only("POST", posts.then_some(Route::Submit)),
        ["jobs"] => {
            let reads = gets.then_some(Route::Read);
            only("GET, HEAD, POST", reads.or(posts.then_some(Route::Submit)))
        }
        ["jobs", id] if !id.is_empty() => {
            let reads = gets.then_some(Route::Read);
            only("GET, HEAD, DELETE", reads.or((*method == Method::DELETE).then_some(Route::Cancel)))
        }
        ["jobs", id, "retry" | "replicate"] if !id.is_empty() => only("POST", posts.then_some(Route::Retry)),
        // Pages elsewhere ask with OPTIONS whether they may; the worker knows.
        ["jobs", id, "events"] | ["download", id] | ["media", id, _, ..] if !id.is_empty() => {
            let takes = gets || *method == Method::OPTIONS;
            only("GET, HEAD, OPTIONS", takes.then_some(Route::Media))
        }
        ["videos"] => {
            let reads = gets.then_some(Route::Read);
            only("GET, HEAD, POST", reads.or(posts.then_some(Route::Video)))
        }
        ["videos", id] if !id.is_empty() => only("GET, HEAD", gets.then_some(Route::Read)),
        ["upload", "request"] => only("POST", posts.then_some(Route::UploadRequest)),
        ["upload", pool, key, ..] if !key.is_empty() => {
            let pool = pool.parse().map_err(|_| Refused::NotFound)?;
            // GET and POST are for what comes in parts, past the workers: how far it is, and that it is all there.
            let takes = posts || matches!(*method, Method::GET | Method::PUT);
            only("GET, POST, PUT", takes.then_some(Route::Upload { pool }))
        }
        [""] => only("GET, HEAD", gets.then_some(Route::Page)),
        ["assets", name] => only("GET, HEAD", gets.then(|| Route::Asset { name: (*name).to_owned() })),
        ["pools"] => only("GET, HEAD", gets.then_some(Route::Pools)),
        ["openapi.json"] => only("GET, HEAD", gets.then_some(Route::OpenApi)),
        ["docs"] => only("GET, HEAD", gets.then_some(Route::Docs)),
        ["livez"] => only("GET, HEAD", gets.then_some(Route::Livez)),
        ["readyz" | "health"] => only("GET, HEAD", gets.then_some(Route::Readyz)),
        _ => Err(Refused::NotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_the_api_has_its_route() {
        let aws = || Route::Upload { pool: "aws".parse().unwrap() };
        for (method, path, route) in [
            (Method::POST, "/process", Route::Submit),
            (Method::POST, "/jobs", Route::Submit),
            (Method::GET, "/jobs", Route::Read),
            (Method::HEAD, "/jobs/a", Route::Read),
            (Method::DELETE, "/jobs/a", Route::Cancel),
            (Method::POST, "/jobs/a/retry", Route::Retry),
            (Method::POST, "/jobs/a/replicate", Route::Retry),
            (Method::GET, "/jobs/a/events", Route::Media),
            (Method::OPTIONS, "/jobs/a/events", Route::Media),
            (Method::GET, "/download/a", Route::Media),
            (Method::OPTIONS, "/download/a", Route::Media),
            (Method::OPTIONS, "/media/a/t/720p.m3u8", Route::Media),
            (Method::GET, "/media/a/720p/seg-1.m4s", Route::Media),
            (Method::GET, "/media/a/t/b/c/d/e/f", Route::Media),
            (Method::POST, "/videos", Route::Video),
            (Method::GET, "/videos", Route::Read),
            (Method::HEAD, "/videos/a", Route::Read),
            (Method::POST, "/upload/request", Route::UploadRequest),
            (Method::PUT, "/upload/aws/uploads/k/v.mp4", aws()),
            (Method::GET, "/upload/aws/uploads/k/v.mp4", aws()),
            (Method::POST, "/upload/aws/uploads/k/v.mp4", aws()),
            (Method::GET, "/", Route::Page),
            (Method::HEAD, "/assets/app.js", Route::Asset { name: "app.js".to_owned() }),
            (Method::GET, "/pools", Route::Pools),
            (Method::GET, "/openapi.json", Route::OpenApi),
            (Method::HEAD, "/docs", Route::Docs),
            (Method::GET, "/livez", Route::Livez),
            (Method::GET, "/health", Route::Readyz),
        ] {
            assert_eq!(classify(&method, path), Ok(route), "{method} {path}");
        }
    }

    #[test]
    fn what_is_not_in_the_api_is_refused() {
        for path in [
            "",
            "//",
            "/metrics",
            "/status",
            "/assets/a/b",
            "/jobs/",
            "/jobs/a/b",
            "/jobs//retry",
            "/videos/",
            "/videos/a/b",
            "/jobs/a/retry/b",
            "/media/a",
            "/upload/aws",
            "/upload/.x/k",
            "jobs",
        ] {
            assert_eq!(classify(&Method::GET, path), Err(Refused::NotFound), "{path}");
        }
        assert_eq!(classify(&Method::GET, "/jobs/a/retry"), Err(Refused::Method { allow: "POST" }));
        assert_eq!(classify(&Method::GET, "/process"), Err(Refused::Method { allow: "POST" }));
        assert_eq!(
            classify(&Method::OPTIONS, "/jobs/a"),
            Err(Refused::Method { allow: "GET, HEAD, DELETE" })
        );
        assert_eq!(classify(&Method::PATCH, "/jobs/a"), Err(Refused::Method { allow: "GET, HEAD, DELETE" }));
    }
}
