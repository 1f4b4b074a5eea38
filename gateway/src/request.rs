//! What a request asks for, from its method and path alone.

use http::Method;
use millrace_wire::{Code, PoolId, Problem};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A job: `POST /process` or `POST /jobs`.
    Submit,
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
            Self::UploadRequest => "upload_request",
            Self::Upload { .. } => "upload",
            Self::Read => "read",
            Self::Media => "media",
            Self::Cancel => "cancel",
            Self::Page | Self::Asset { .. } | Self::Pools | Self::OpenApi | Self::Docs => "local",
            Self::Livez | Self::Readyz => "local",
        }
    }

    /// Whether the gateway answers it itself.
    pub fn is_local(&self) -> bool {
        self.as_str() == "local"
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
    let segments: Vec<&str> = path.strip_prefix('/').ok_or(Refused::NotFound)?.split('/').collect();
    let take = |allow: &'static str, routes: &[(Method, Route)]| {
        let found = routes.iter().find(|(wanted, _)| wanted == method);
        found.map(|(_, route)| route.clone()).ok_or(Refused::Method { allow })
    };
    let (get, head) = (Method::GET, Method::HEAD);
    let reading = |route: Route| [(get.clone(), route.clone()), (head.clone(), route)];
    match segments.as_slice() {
        ["process"] => take("POST", &[(Method::POST, Route::Submit)]),
        ["jobs"] => {
            let [get, head] = reading(Route::Read);
            take("GET, HEAD, POST", &[get, head, (Method::POST, Route::Submit)])
        }
        ["jobs", id] if !id.is_empty() => {
            let [get, head] = reading(Route::Read);
            take("GET, HEAD, DELETE", &[get, head, (Method::DELETE, Route::Cancel)])
        }
        // Pages elsewhere ask with OPTIONS whether they may; the worker knows.
        ["jobs", id, "events"] | ["download", id] | ["media", id, _, ..] if !id.is_empty() => {
            let [get, head] = reading(Route::Media);
            take("GET, HEAD, OPTIONS", &[get, head, (Method::OPTIONS, Route::Media)])
        }
        ["upload", "request"] => take("POST", &[(Method::POST, Route::UploadRequest)]),
        ["upload", pool, key, ..] if !key.is_empty() => {
            let pool = pool.parse().map_err(|_| Refused::NotFound)?;
            // GET and POST are for what comes in parts, past the workers: how far it is, and that it is all there.
            let upload = Route::Upload { pool };
            let all = [Method::GET, Method::PUT, Method::POST].map(|method| (method, upload.clone()));
            take("GET, POST, PUT", &all)
        }
        [""] => take("GET, HEAD", &reading(Route::Page)),
        ["assets", name] => take("GET, HEAD", &reading(Route::Asset { name: (*name).to_owned() })),
        ["pools"] => take("GET, HEAD", &reading(Route::Pools)),
        ["openapi.json"] => take("GET, HEAD", &reading(Route::OpenApi)),
        ["docs"] => take("GET, HEAD", &reading(Route::Docs)),
        ["livez"] => take("GET, HEAD", &reading(Route::Livez)),
        ["readyz" | "health"] => take("GET, HEAD", &reading(Route::Readyz)),
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
            (Method::GET, "/jobs/a/events", Route::Media),
            (Method::OPTIONS, "/jobs/a/events", Route::Media),
            (Method::GET, "/download/a", Route::Media),
            (Method::OPTIONS, "/download/a", Route::Media),
            (Method::OPTIONS, "/media/a/t/720p.m3u8", Route::Media),
            (Method::GET, "/media/a/720p/seg-1.m4s", Route::Media),
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
            "/media/a",
            "/upload/aws",
            "/upload/.x/k",
            "jobs",
        ] {
            assert_eq!(classify(&Method::GET, path), Err(Refused::NotFound), "{path}");
        }
        assert_eq!(classify(&Method::GET, "/process"), Err(Refused::Method { allow: "POST" }));
        assert_eq!(
            classify(&Method::OPTIONS, "/jobs/a"),
            Err(Refused::Method { allow: "GET, HEAD, DELETE" })
        );
        assert_eq!(classify(&Method::PATCH, "/jobs/a"), Err(Refused::Method { allow: "GET, HEAD, DELETE" }));
    }
}
