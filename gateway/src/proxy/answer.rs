//! What the gateway says itself, and what it writes on workers' answers.

use bytes::Bytes;
use http::HeaderValue;
use millrace_wire::{Code, Problem, problem};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::Proxy;
use super::cors::Marks;
use crate::admin::status::Status;
use crate::config::{self, Config};
use crate::dispatch::Target;
use crate::forward::fields;
use crate::page::{self, Parts};
use crate::request::{self, Route};
use crate::trace::{self, Names};

/// What is written on every answer to a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label<'a> {
    pub(super) names: Option<&'a Names>,
    pub(super) marks: &'a Marks,
}

impl Proxy {
    /// What the gateway answers itself.
    pub(super) async fn local(
        &self,
        session: &mut Session,
        route: &Route,
        config: &Config,
        label: Label<'_>,
    ) -> Result<()> {
        if !matches!(route, Route::Livez | Route::Readyz) {
            return self.page(session, route, &config.page, label).await;
        }
        let unready = match route {
            Route::Readyz => self.dispatch.drain.unready(&self.dispatch.fleet),
            _ => None,
        };
        let (status, body) = match unready {
            None => (200, serde_json::json!({ "status": "ok" })),
            Some(reason) => (503, serde_json::json!({ "status": "unready", "reason": reason })),
        };
        write(session, status, "application/json", body.to_string(), &[], label).await
    }

    async fn page(
        &self,
        session: &mut Session,
        route: &Route,
        page: &config::Page,
        label: Label<'_>,
    ) -> Result<()> {
        let asked = session.req_header();
        let tells = page::tells(page, &asked.uri, &asked.headers);
        let response = match route {
            Route::Page if tells => page::index(page, Parts::All, &asked.headers),
            Route::Page => page::index(page, Parts::Jobs, &asked.headers),
            Route::Asset { name } => page::asset(page, name, asked.uri.query(), &asked.headers),
            Route::Docs => page::docs(page, &asked.headers),
            Route::OpenApi => Some(page::openapi(&asked.headers)),
            Route::Pools if tells => {
                let generation = self.reloader.state().generation;
                Some(page::pools(&Status::of(&self.dispatch.fleet, generation)))
            }
            _ => None,
        };
        let Some(response) = response else {
            let problem = request::Refused::NotFound.problem(&asked.method, asked.uri.path());
            return tell(session, &problem, None, label).await;
        };
        let (parts, body) = response.into_parts();
        let mut header = ResponseHeader::from(parts);
        if header.status != http::StatusCode::NOT_MODIFIED {
            header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
        }
        // The page and its files are for this site alone.
        let marks = if *route == Route::Pools { label.marks } else { &Marks::default() };
        send(session, header, body, Label { marks, ..label }).await
    }
}

async fn write(
    session: &mut Session,
    status: u16,
    content_type: &str,
    body: String,
    more: &[(&'static str, String)],
    label: Label<'_>,
) -> Result<()> {
    let mut header = ResponseHeader::build(status, Some(4 + more.len()))?;
    header.insert_header(http::header::CONTENT_TYPE, content_type)?;
    header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    header.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    for (name, value) in more {
        header.insert_header(*name, value.as_str())?;
    }
    send(session, header, Bytes::from(body), label).await
}

/// Answers with that, and without the body if only the header was asked for, or if there is none.
pub(super) async fn send(
    session: &mut Session,
    header: ResponseHeader,
    body: Bytes,
    label: Label<'_>,
) -> Result<()> {
    if !session.is_body_done() {
        // What is left of the body would be read as the next request.
        session.set_keepalive(None);
    }
    let bodiless = session.req_header().method == http::Method::HEAD || body.is_empty();
    let mut header = header;
    if let Some(names) = label.names {
        header.insert_header(trace::REQUEST_ID, names.request_id.clone())?;
    }
    label.marks.put(&mut header)?;
    session.write_response_header(Box::new(header), bodiless).await?;
    if !bodiless {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

/// Answers with a problem.
pub(super) async fn tell(
    session: &mut Session,
    problem: &Problem,
    allow: Option<&'static str>,
    label: Label<'_>,
) -> Result<()> {
    let mut more = Vec::new();
    if let Some(after) = problem.retry_after_s {
        more.push(("retry-after", after.to_string()));
    }
    if problem.code == Code::Unauthenticated {
        more.push(("www-authenticate", "Bearer realm=\"millrace\"".to_owned()));
    }
    if let Some(allow) = allow {
        more.push(("allow", allow.to_owned()));
    }
    let header = session.req_header();
    if request::classify(&header.method, header.uri.path()) == Ok(Route::Media) {
        // Without this a player on another site sees a broken network. A problem is no secret, so every page may read it.
        more.push(("access-control-allow-origin", "*".to_owned()));
        more.push(("access-control-expose-headers", "retry-after".to_owned()));
    }
    write(session, problem.status, problem::CONTENT_TYPE, problem.to_json(), &more, label).await
}

/// Says on a worker's response which request it answers and where it comes from, and takes its load report out, which is
/// for us: ORCA text and store id.
pub(super) fn sign(
    names: Option<&Names>,
    header: &mut ResponseHeader,
    target: &Target,
) -> Option<(HeaderValue, HeaderValue)> {
    fields::change_answer(header, |fields| {
        let (load, store) = (fields.remove(&fields::LOAD), fields.remove(&fields::STORE));
        if let Some(names) = names {
            fields.insert(&fields::REQUEST_ID, names.request_id.clone());
        }
        fields.insert(&fields::POOL, target.sign.pool.clone());
        fields.insert(&fields::WORKER, target.sign.worker.clone());
        match target.reason {
            Some(reason) => fields.insert(&fields::DECISION, HeaderValue::from_static(reason.as_str())),
            None => fields.remove(&fields::DECISION),
        };
        load.zip(store)
    })
}

/// For a worker's error that says nothing itself.
pub(super) fn unexplained(status: u16) -> Problem {
    let code = match status {
        502 => Code::UpstreamFailed,
        503 => Code::NoHealthyWorker,
        504 => Code::UpstreamTimeout,
        _ => Code::Internal,
    };
    Problem { status, ..Problem::new(code, "the worker failed and did not say why") }
}
