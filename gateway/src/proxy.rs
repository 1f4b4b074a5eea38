//! Translates Pingora's phases into calls of our stages. No policy lives here.
//!
//! A submit: `request_filter` reads and admits it and has [`Dispatch`] make the first choice; `upstream_peer` goes
//! there; whatever fails (`fail_to_connect`, `error_while_proxy`, a refusing status in `upstream_response_filter`) is
//! put to [`Dispatch::again`], and either there is a next choice or the request ends in `fail_to_proxy`.

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use millrace_wire::{Code, Problem, headers, problem};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use tracing::{debug, info, warn};

use crate::access_log::{self, AccessLog, Record};
use crate::admin::status::Status;
use crate::admission;
use crate::auth::{self, Auth, Principal};
use crate::config::{self, Config};
use crate::decisions;
use crate::dispatch::{Dispatch, Repeatable, Request, Target};
use crate::drain::InFlight;
use crate::edge;
use crate::forward::{self, Failure};
use crate::limits::{self, Pace};
use crate::page::{self, Parts};
use crate::rate::{Limiter, Who};
use crate::reload::Reloader;
use crate::request::{self, Route};
use crate::route::Job;
use crate::trace;

/// Largest problem of a worker that is completed with a job id; a larger one is replaced.
const PATCH_BYTES_MAX: usize = 64 * 1024;
/// How long the rest of a body that nobody wants is read, so that its connection can be used again.
const LEFTOVER_MAX: Duration = Duration::from_secs(1);
/// The internal error by which a refusing answer is turned into another try.
const TRY_AGAIN: ErrorType = ErrorType::Custom("TryAgain");
/// The internal error by which a worker's answer is replaced by our own.
const OWN_ANSWER: ErrorType = ErrorType::Custom("OwnAnswer");

/// The gateway as Pingora sees it.
#[derive(Debug)]
pub struct Proxy {
    /// Chooses workers.
    pub dispatch: Dispatch,
    /// Knows which routing file is in force.
    pub reloader: Arc<Reloader>,
    /// Writes a line of each request.
    pub access_log: Arc<AccessLog>,
    /// Knows who may ask, where not everybody may.
    pub auth: Option<Arc<Auth>>,
    /// Counts who asks how often.
    pub rate: Limiter,
}

/// A request as Pingora carries it from phase to phase.
#[derive(Debug)]
pub struct Ctx {
    started: Instant,
    /// Given up for a stream of events: it has no end of its own that a drain could wait for, and its reader comes back.
    in_flight: Option<InFlight>,
    config: Arc<Config>,
    /// `None` until the path was read, and for paths that are not in the API.
    request: Option<Request>,
    /// A worker's problem that is being completed with the job's id, and its status.
    patch: Option<(u16, Vec<u8>)>,
    pace: Pace,
    principal: Option<Arc<Principal>>,
}

impl Proxy {
    fn again(&self, session: &mut Session, ctx: &mut Ctx, failure: Failure) -> bool {
        let Some(request) = &mut ctx.request else { return false };
        let whole = match &request.route {
            Route::Upload { .. } => session.body_bytes_read() == 0,
            _ => session.is_body_done() && !session.retry_buffer_truncated(),
        };
        self.dispatch.again(request, failure, Repeatable { unanswered: !answered(session), whole })
    }

    async fn admit(
        &self,
        session: &mut Session,
        request: &mut Request,
        deadline: Duration,
    ) -> std::result::Result<(), admission::Refused> {
        if session.req_header().headers.contains_key(http::header::EXPECT) && !session.is_http2() {
            let continued = session.write_continue_response().await;
            continued.map_err(|error| admission::Refused::Broken(admission::Broken(error.to_string())))?;
        }
        session.enable_retry_buffering();
        let header = session.req_header().headers.clone();
        let body = admission::read(&mut Downstream(session), &header, deadline).await?;
        if request.route == Route::Submit {
            let admitted = admission::admit(&body, &header).map_err(admission::Refused::Problem)?;
            request.job = Job::new(&admitted.head);
            request.job_id = Some(admitted.job_id);
        }
        Ok(())
    }

    /// What the gateway answers itself.
    async fn local(&self, session: &mut Session, route: &Route, config: &Config) -> Result<()> {
        if matches!(route, Route::Page | Route::Asset { .. } | Route::Pools) {
            return self.page(session, route, &config.page).await;
        }
        let unready = match route {
            Route::Readyz => self.dispatch.drain.unready(&self.dispatch.fleet),
            _ => None,
        };
        let (status, body) = match unready {
            None => (200, serde_json::json!({ "status": "ok" })),
            Some(reason) => (503, serde_json::json!({ "status": "unready", "reason": reason })),
        };
        write(session, status, "application/json", body.to_string(), &[]).await
    }
}

impl Proxy {
    fn write_line(&self, session: &Session, ctx: &Ctx, route: &'static str, status: u16) {
        let header = session.req_header();
        let request = ctx.request.as_ref();
        let target = request.and_then(|request| Some(&request.trying.as_ref()?.target));
        self.access_log.write(&Record {
            time: access_log::now_s(),
            request_id: request_id(session).and_then(|id| id.to_str().ok()),
            trace_id: header.headers.get(trace::TRACEPARENT).and_then(trace::trace_id),
            principal: ctx.principal.as_ref().map(|principal| principal.name.as_str()),
            client: client_ip(session),
            version: if session.is_http2() { "2" } else { "1" },
            tls: is_tls(session),
            method: header.method.as_str(),
            route,
            status,
            received_bytes: session.body_bytes_read(),
            sent_bytes: session.body_bytes_sent(),
            seconds: ctx.started.elapsed().as_secs_f64(),
            pool: target.map(|target| target.pool.as_str()),
            worker: target.map(|target| target.address),
            tries: request.map_or(0, |request| request.tries),
            job_id: request.and_then(|request| Some(request.job_id.as_ref()?.as_str())),
        });
    }

    async fn page(&self, session: &mut Session, route: &Route, page: &config::Page) -> Result<()> {
        let asked = session.req_header();
        let tells = page::tells(page, &asked.uri, &asked.headers);
        let response = match route {
            Route::Page if tells => page::index(page, Parts::All, &asked.headers),
            Route::Page => page::index(page, Parts::Jobs, &asked.headers),
            Route::Asset { name } => page::asset(page, name, asked.uri.query(), &asked.headers),
            Route::Pools if tells => {
                let generation = self.reloader.state().generation;
                Some(page::pools(&Status::of(&self.dispatch.fleet, generation)))
            }
            _ => None,
        };
        let Some(response) = response else {
            let problem = request::Refused::NotFound.problem(&asked.method, asked.uri.path());
            return tell(session, &problem, None).await;
        };
        let (parts, body) = response.into_parts();
        let mut header = ResponseHeader::from(parts);
        if header.status != http::StatusCode::NOT_MODIFIED {
            header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
        }
        send(session, header, body).await
    }
}

/// A session's body, as admission reads it.
struct Downstream<'a>(&'a mut Session);

impl admission::Body for Downstream<'_> {
    async fn next(&mut self) -> std::result::Result<Option<Bytes>, admission::Broken> {
        let read = self.0.downstream_session.read_request_body().await;
        read.map_err(|error| admission::Broken(error.to_string()))
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        edge::header_arrived();
        Ctx {
            started: Instant::now(),
            in_flight: Some(self.dispatch.drain.enter()),
            config: self.dispatch.fleet.config(),
            request: None,
            patch: None,
            pace: Pace::default(),
            principal: None,
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        session.set_write_timeout(Some(ctx.config.timeouts.read));
        session.set_read_timeout(Some(ctx.config.timeouts.read));
        session.set_total_drain_timeout(Some(LEFTOVER_MAX));
        name(session.req_header_mut())?;
        let header = session.req_header();
        if let Err(problem) = limits::check(header.raw_path(), &header.headers, &ctx.config.limits) {
            tell(session, &problem, None).await?;
            return Ok(true);
        }
        if header.headers.contains_key(http::header::TRANSFER_ENCODING) {
            // Pingora's parser takes a bare LF for part of a chunk's extension, and no size for 0. A proxy in front may
            // see the end of the body elsewhere; then nothing behind our end of it must be read as a request.
            session.set_keepalive(None);
        }
        let (method, path) =
            (session.req_header().method.clone(), session.req_header().uri.path().to_owned());
        let route = match request::classify(&method, &path) {
            Ok(route) => route,
            Err(refused) => {
                tell(session, &refused.problem(&method, &path), refused.allow()).await?;
                return Ok(true);
            }
        };
        let request = ctx.request.insert(Request::new(route.clone()));
        request.request_id = decisions::request_id(&session.req_header().headers);
        if let Some(auth) = &self.auth {
            match auth.admit(&route, &method, &path, &session.req_header().headers) {
                Ok(principal) => ctx.principal = principal,
                Err(problem) => {
                    tell(session, &problem, None).await?;
                    return Ok(true);
                }
            }
        }
        let counted = !matches!(route, Route::Livez | Route::Readyz);
        if let Some(rate) = ctx.config.rate.as_ref().filter(|_| counted) {
            let who = match &ctx.principal {
                Some(principal) => Who::Principal(principal.name.clone()),
                None => client_ip(session).map_or(Who::Rest, Who::address),
            };
            if let Err(wait) = self.rate.take(who, rate, Instant::now()) {
                self.dispatch.metrics.rate_limited.inc();
                let detail =
                    format!("at most {} requests per second, {} at once", rate.per_second, rate.burst);
                let seconds = wait.as_secs_f64().ceil() as u64;
                tell(session, &Problem::new(Code::RateLimited, detail).retry_after(seconds), None).await?;
                return Ok(true);
            }
        }
        if route.is_local() {
            self.local(session, &route, &ctx.config).await?;
            return Ok(true);
        }
        if route.reads_body() {
            match self.admit(session, request, ctx.config.timeouts.body).await {
                Ok(()) => {}
                Err(admission::Refused::Problem(problem)) => {
                    tell(session, &problem, None).await?;
                    return Ok(true);
                }
                Err(admission::Refused::Broken(broken)) => {
                    return Err(Error::explain(ErrorType::ReadError, broken.to_string()).into_down());
                }
            }
        }
        match self.dispatch.choose(request) {
            Ok(target) => {
                request.target = Some(target);
                Ok(false)
            }
            Err(problem) => {
                tell(session, &problem, None).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let unchosen = || Error::explain(ErrorType::InternalError, "no target was chosen");
        let request = ctx.request.as_mut().ok_or_else(unchosen)?;
        let address = self.dispatch.begin(request).ok_or_else(unchosen)?;
        Ok(Box::new(forward::peer(address, &request.route, &ctx.config.timeouts)))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        header: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let (client, tls) = (client_ip(session), is_tls(session));
        let Some(request) = &ctx.request else { return Ok(()) };
        forward::request_header(header, &request.route, client, tls, request.job_id.as_ref())?;
        if self.auth.is_some() {
            // The key is for us alone.
            header.remove_header(&http::header::AUTHORIZATION);
            header.remove_header(auth::API_KEY);
        }
        if let Some(principal) = &ctx.principal {
            header.insert_header(auth::PRINCIPAL, principal.name.as_str())?;
            header.insert_header(auth::TENANT, principal.tenant.as_str())?;
            header.insert_header(auth::ROLE, principal.role.as_str())?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let (Some(piece), Some(request)) = (&body, &mut ctx.request)
            && matches!(request.route, Route::Upload { .. })
            && !end_of_stream
        {
            let (least, window) = (ctx.config.limits.upload_bytes_per_second, ctx.config.timeouts.read);
            if !ctx.pace.keeps(Instant::now(), piece.len(), least, window) {
                let detail = format!("an upload brings at least {least} bytes per second");
                request.answer = Some(Box::new(Problem::new(Code::BodyTimeout, detail)));
                return Err(Error::explain(ErrorType::ReadTimedout, "the upload drips").into_down());
            }
        }
        // An empty last piece (HTTP/2's empty DATA frame) would be written as a second terminator of the chunked body
        // to the worker, and the next request on that connection would begin with it (pingora #935).
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        header: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if header.status.is_informational() {
            return Ok(());
        }
        let Some(request) = &mut ctx.request else { return Ok(()) };
        let Some(target) = request.trying.as_ref().map(|trying| trying.target.clone()) else { return Ok(()) };
        if let Some((orca, store)) = forward::take_report(header)
            && let Err(error) = self.dispatch.fleet.heard(target.address, &orca, &store)
        {
            self.dispatch.metrics.unbelievable_reports.with_label_values(&["response"]).inc();
            debug!(address = %target.address, %error, "load report not believed");
        }
        let status = header.status.as_u16();
        match Failure::of_answer(header, &request.route).filter(|failure| failure.retryable(&request.route)) {
            None => self.dispatch.answered(request, status),
            Some(failure) => {
                if failure == Failure::Refused {
                    request.refused_for(forward::retry_after(header));
                }
                if self.again(session, ctx, failure) {
                    let mut error = Error::new_up(TRY_AGAIN);
                    error.set_retry(true);
                    return Err(error);
                }
                if failure == Failure::Refused {
                    return Err(Error::new_up(OWN_ANSWER));
                }
                // The worker's own answer says more than ours would: it goes through.
            }
        }
        let Some(request) = &mut ctx.request else { return Ok(()) };
        request.answer = None;
        if status >= 500 && request.job_id.is_some() {
            if !forward::is_problem(header) {
                request.answer = Some(Box::new(request.name(unexplained(status))));
                return Err(Error::new_up(OWN_ANSWER));
            }
            ctx.patch = Some((status, Vec::new()));
            header.remove_header(&http::header::CONTENT_LENGTH);
        }
        // What is left of a body that was refused early would be read as the next request: say that the connection ends.
        if self.dispatch.drain.draining() || !session.is_body_done() {
            session.set_keepalive(None);
        }
        if forward::is_event_stream(header) {
            ctx.in_flight = None;
        }
        carry_id(session, header)?;
        sign(header, &target)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        if let (Some((status, patch)), Some(request)) = (&mut ctx.patch, &ctx.request) {
            if let Some(piece) = body.take() {
                let room = (PATCH_BYTES_MAX + 1).saturating_sub(patch.len());
                patch.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            if end_of_stream {
                let read = serde_json::from_slice(patch).unwrap_or_else(|_| unexplained(*status));
                *body = Some(Bytes::from(request.name(read).to_json()));
                ctx.patch = None;
            }
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        let again = self.again(session, ctx, Failure::Connect);
        e.set_retry(again);
        e
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        let mut e = e.more_context(format!("Peer: {peer}"));
        // The first two are settled where the answer was read.
        let again = if *e.root_etype() == TRY_AGAIN {
            true
        } else if *e.root_etype() == OWN_ANSWER {
            false
        } else if let Some(failure) = Failure::of(&e, client_reused) {
            self.again(session, ctx, failure)
        } else {
            if let Some(request) = &mut ctx.request {
                request.abandoned();
            }
            false
        };
        e.set_retry(again);
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let downstream = matches!(e.esource(), ErrorSource::Downstream);
        let gone = downstream
            && matches!(
                e.etype(),
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed
            );
        if gone || answered(session) {
            return FailToProxy { error_code: if gone { 0 } else { 502 }, can_reuse_downstream: false };
        }
        let problem = match ctx.request.as_mut().map(|request| (request.answer.take(), request)) {
            Some((Some(problem), _)) => *problem,
            Some((None, request)) if !downstream => request.failed(),
            _ => Problem::new(Code::BadRequest, "the request is not well-formed HTTP"),
        };
        // Pingora drops the client's connection after any failed try; a client that was not told would send its next
        // request into the reset.
        session.set_keepalive(None);
        if let Err(error) = tell(session, &problem, None).await {
            debug!(%error, "the client did not wait for its problem");
        }
        FailToProxy { error_code: problem.status, can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Ctx, error: &Error) -> bool {
        // Told to the client and counted; `logging` has the line.
        ctx.request.as_ref().is_some_and(|request| request.last.is_some())
            || *error.root_etype() == OWN_ANSWER
            || matches!(error.esource(), ErrorSource::Downstream)
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    fn persist_connection_context(
        &self,
        _session: &Session,
        _ctx: &Ctx,
    ) -> Option<Box<dyn Any + Send + Sync>> {
        Some(Box::new(edge::Reused))
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        let status = session.response_written().map_or(0, |header| header.status.as_u16());
        let class = match status {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        // A stream of events lasts as long as its job: among the files it would hide how long those take.
        let route = match &ctx.request {
            Some(_) if ctx.in_flight.is_none() => "events",
            Some(request) => request.route.as_str(),
            None => "none",
        };
        let elapsed = ctx.started.elapsed();
        let metrics = &self.dispatch.metrics;
        metrics.requests.with_label_values(&[route, class]).inc();
        metrics.request_seconds.with_label_values(&[route]).observe(elapsed.as_secs_f64());
        if AccessLog::wants(&ctx.config.access_log, status) {
            self.write_line(session, ctx, route, status);
        }
        let error = e.map(tracing::field::display);
        let request_id = request_id(session).and_then(|id| id.to_str().ok());
        let Some(request) = &ctx.request else {
            debug!(request_id, status, ?elapsed, error, "request");
            return;
        };
        let (job_id, tries) = (request.job_id.as_ref().map(tracing::field::display), request.tries);
        let cause = request.last.map(Failure::as_str);
        let target = request.trying.as_ref().map(|trying| &trying.target);
        let pool = target.map(|target| tracing::field::display(&target.pool));
        let address = target.map(|target| tracing::field::display(target.address));
        match request.route {
            Route::Submit if status >= 500 => {
                warn!(
                    request_id,
                    job_id,
                    status,
                    pool,
                    address,
                    tries,
                    cause,
                    ?elapsed,
                    error,
                    "submit failed"
                );
            }
            Route::Submit => {
                info!(request_id, job_id, status, pool, address, tries, cause, ?elapsed, "submit")
            }
            _ => debug!(request_id, route, status, pool, address, tries, cause, ?elapsed, error, "request"),
        }
    }
}

/// Whether anything of an answer went to the client; "continue" is none.
fn answered(session: &Session) -> bool {
    session.response_written().is_some_and(|header| !header.status.is_informational())
}

/// The address that a request came from.
fn client_ip(session: &Session) -> Option<IpAddr> {
    session.client_addr().and_then(|address| address.as_inet()).map(|inet| inet.ip())
}

/// Whether a request came by TLS.
fn is_tls(session: &Session) -> bool {
    session.digest().is_some_and(|digest| digest.ssl_digest.is_some())
}

async fn write(
    session: &mut Session,
    status: u16,
    content_type: &str,
    body: String,
    more: &[(&'static str, String)],
) -> Result<()> {
    let mut header = ResponseHeader::build(status, Some(4 + more.len()))?;
    header.insert_header(http::header::CONTENT_TYPE, content_type)?;
    header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    header.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    for (name, value) in more {
        header.insert_header(*name, value.as_str())?;
    }
    send(session, header, Bytes::from(body)).await
}

/// Answers with that, and without the body if only the header was asked for, or if there is none.
async fn send(session: &mut Session, header: ResponseHeader, body: Bytes) -> Result<()> {
    if !session.is_body_done() {
        // What is left of the body would be read as the next request.
        session.set_keepalive(None);
    }
    let bodiless = session.req_header().method == http::Method::HEAD || body.is_empty();
    let mut header = header;
    carry_id(session, &mut header)?;
    session.write_response_header(Box::new(header), bodiless).await?;
    if !bodiless {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

async fn tell(session: &mut Session, problem: &Problem, allow: Option<&'static str>) -> Result<()> {
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
    write(session, problem.status, problem::CONTENT_TYPE, problem.to_json(), &more).await
}

/// Puts a request's names into its own header, where all that follows reads them.
fn name(header: &mut RequestHeader) -> Result<()> {
    let names = trace::adopt(&header.headers);
    header.insert_header(trace::REQUEST_ID, names.request_id)?;
    header.insert_header(trace::TRACEPARENT, names.traceparent)?;
    if !names.known_trace {
        header.remove_header(trace::TRACESTATE);
    }
    Ok(())
}

/// A request's id, once it has one.
fn request_id(session: &Session) -> Option<&http::HeaderValue> {
    session.req_header().headers.get(trace::REQUEST_ID)
}

/// Says on a response which request it answers.
fn carry_id(session: &Session, header: &mut ResponseHeader) -> Result<()> {
    match request_id(session) {
        Some(id) => header.insert_header(trace::REQUEST_ID, id.clone()),
        None => Ok(()),
    }
}

/// Says on a response where it comes from.
fn sign(header: &mut ResponseHeader, target: &Target) -> Result<()> {
    header.insert_header(headers::POOL, target.pool.as_str())?;
    let worker = target.worker.clone().unwrap_or_else(|| target.address.to_string());
    header.insert_header(headers::WORKER, worker)?;
    match target.reason {
        Some(reason) => header.insert_header(headers::DECISION, reason.as_str())?,
        None => drop(header.remove_header(headers::DECISION)),
    }
    Ok(())
}

/// For a worker's error that says nothing itself.
fn unexplained(status: u16) -> Problem {
    let code = match status {
        502 => Code::UpstreamFailed,
        503 => Code::NoHealthyWorker,
        504 => Code::UpstreamTimeout,
        _ => Code::Internal,
    };
    Problem { status, ..Problem::new(code, "the worker failed and did not say why") }
}
