//! What goes wrong with an operator's request: `application/problem+json` (RFC 9457), with codes of the admin
//! listener's own. What a client of the API can read is [`millrace_wire::Problem`].

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use millrace_wire::problem::CONTENT_TYPE;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fleet::steer::Refused;

/// An error as an operator's program reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    status: StatusCode,
    body: Value,
}

impl Problem {
    /// A problem with a stable `code`.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        let body = json!({
            "type": "about:blank",
            "title": title,
            "status": status.as_u16(),
            "code": code,
            "detail": detail.into(),
        });
        Self { status, body }
    }

    /// With one more member.
    pub fn with(mut self, member: &'static str, value: impl Into<Value>) -> Self {
        self.body[member] = value.into();
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, CONTENT_TYPE)], self.body.to_string()).into_response()
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        let problem = |status, code, title| Self::new(status, code, title, detail.clone());
        match refused {
            Refused::Stale { now } => {
                problem(StatusCode::PRECONDITION_FAILED, "stale", "Somebody else changed the overrides first")
                    .with("etag", now)
            }
            Refused::Unknown(_) => problem(StatusCode::NOT_FOUND, "unknown_target", "No such pool or worker"),
            Refused::Ambiguous(_) => {
                problem(StatusCode::CONFLICT, "ambiguous_target", "The name means more than one thing")
            }
            Refused::Bad { field, .. } => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, "bad_field", "A field has a value it cannot have")
                    .with("field", field)
            }
            Refused::Full => problem(StatusCode::CONFLICT, "too_many_overrides", "Too many overrides"),
        }
    }
}

/// Whether a request says that its body is JSON, as every change must.
///
/// It is asked for on purpose, even where nothing is read from the body: a web page may send text to the loopback address
/// from an operator's browser without asking, but JSON only after a preflight, which is never answered.
///
/// # Errors
/// What it says instead.
pub fn must_be_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        let detail = format!("the body is {kind:?}; it must be application/json");
        let (status, title) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not JSON");
        return Err(Problem::new(status, "not_json", title, detail));
    }
    Ok(())
}

/// Reads a request's JSON body.
///
/// # Errors
/// What is wrong with it.
pub fn read<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    must_be_json(headers)?;
    serde_json::from_slice(body).map_err(|error| {
        let title = "The body is not what this path wants";
        Problem::new(StatusCode::BAD_REQUEST, "bad_json", title, error.to_string())
    })
}
