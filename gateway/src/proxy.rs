//! Translates Pingora's phases into calls of our stages. No policy lives here.
//!
//! A submit: `request_filter` reads and admits it and has [`Dispatch`] make the first choice; `upstream_peer` goes
//! there; whatever fails (`fail_to_connect`, `error_while_proxy`, a refusing status in `upstream_response_filter`) is
//! put to [`Dispatch::again`], and either there is a next choice or the request ends in `fail_to_proxy`.

mod answer;
mod cors;
mod gate;
mod line;
mod phase;
mod session;
mod weigh;

use std::any::Any;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use answer::{Label, send, sign, tell, unexplained};
use async_trait::async_trait;
use bytes::Bytes;
use cors::{Marks, preflight};
use millrace_wire::{Code, Problem};
use phase::{Phase, goes, over, phase};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use session::{answered, client_ip, is_tls};
use tracing::debug;
use weigh::Weighed;

use crate::access_log::AccessLog;
use crate::admission;
use crate::auth::{Auth, Principal};
use crate::config::Config;
use crate::dispatch::{Dispatch, Repeatable, Request};
use crate::drain::InFlight;
use crate::edge::Connection;
use crate::forward::{self, Failure};
use crate::glance::Glance;
use crate::limits::Pace;
use crate::rate::Limiter;
use crate::reload::Reloader;
use crate::request::Route;
use crate::route::Job;
use crate::trace::{self, Names};
use crate::upstream::Upstream;

/// Largest problem of a worker that is completed with a job id; a larger one is replaced.
const PATCH_BYTES_MAX: usize = 64 * 1024;
/// How long the rest of a body that nobody wants is read, so that its connection can be used again.
const LEFTOVER_MAX: Duration = Duration::from_secs(1);
/// The internal error by which a refusing answer is turned into another try.
const TRY_AGAIN: ErrorType = ErrorType::Custom("TryAgain");
/// The internal error by which an upload ends that drips or grows too large.
const CUT_OFF: ErrorType = ErrorType::Custom("CutOff");
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
    /// Counts who uploads how much.
    pub uploads: Limiter,
    /// What workers are shown, and by what they are known.
    pub upstream: Arc<Upstream>,
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
    /// `None` until the header was read.
    names: Option<Names>,
    /// The connection, if it is one of HTTP/1.
    connection: Option<Arc<Connection>>,
    marks: Marks,
    weighed: Option<Weighed>,
}

impl Ctx {
    fn label(&self) -> Label<'_> {
        Label { names: self.names.as_ref(), marks: &self.marks }
    }
}

impl Proxy {
    fn again(&self, session: &mut Session, ctx: &mut Ctx, failure: Failure) -> bool {
        let Some(request) = &mut ctx.request else { return false };
        let whole = match &request.route {
            route if route.is_upload() => session.body_bytes_read() == 0,
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
        let announced = admission::announced(&session.req_header().headers);
        let body = admission::read(&mut Downstream(session), announced, deadline).await?;
        if request.route == Route::Submit {
            let admitted = admission::admit(&body, &session.req_header().headers)
                .map_err(admission::Refused::Problem)?;
            request.job = Job::new(&admitted.head);
            request.job_id = Some(admitted.job_id);
        }
        Ok(())
    }

    /// Makes the client's header one for the worker.
    fn ask(&self, session: &Session, header: &mut RequestHeader, ctx: &Ctx) -> Result<()> {
        let (Some(request), Some(names)) = (&ctx.request, &ctx.names) else { return Ok(()) };
        let known = ctx.connection.as_ref().and_then(|connection| connection.client.clone());
        let sender = forward::Sender {
            address: known.or_else(|| client_ip(session).map(forward::address)),
            tls: is_tls(session),
            secret: self.auth.is_some(),
            principal: ctx.principal.as_deref(),
            names,
        };
        let steal = request.trying.as_ref().and_then(|trying| trying.target.steal.as_ref());
        forward::request_header(header, &request.route, sender, request.job_id.as_ref(), steal)
    }

    /// A piece of the client's body goes to the worker.
    fn upload(&self, body: &mut Option<Bytes>, end_of_stream: bool, ctx: &mut Ctx) -> Result<()> {
        let uploads = |request: &Request| request.route.is_upload();
        if let Some(piece) = body.as_ref().filter(|_| ctx.request.as_ref().is_some_and(uploads)) {
            let (least, window) = (ctx.config.limits.upload_bytes_per_second, ctx.config.timeouts.read);
            let refused = if !end_of_stream && !ctx.pace.keeps(Instant::now(), piece.len(), least, window) {
                let detail = format!("an upload brings at least {least} bytes per second");
                Err(Box::new(Problem::new(Code::BodyTimeout, detail)))
            } else {
                self.weigh_piece(ctx, piece.len())
            };
            if let (Err(problem), Some(request)) = (refused, &mut ctx.request) {
                request.answer = Some(problem);
                return Err(Error::explain(CUT_OFF, "the upload goes no further").into_down());
            }
        }
        // An empty last piece (HTTP/2's empty DATA frame) would be written as a second terminator of the chunked body
        // to the worker, and the next request on that connection would begin with it (pingora #935).
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        Ok(())
    }

    /// The worker's header has come.
    fn hear(&self, session: &mut Session, header: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        if header.status.is_informational() {
            return Ok(());
        }
        let Some(request) = &mut ctx.request else { return Ok(()) };
        let Some(target) = request.trying.as_ref().map(|trying| &trying.target) else { return Ok(()) };
        let address = target.address;
        let report = sign(ctx.names.as_ref(), header, target);
        let now = self.dispatch.fleet.now();
        if let Some((orca, store)) = report
            && let Err(error) = self.dispatch.heard(request, now, address, &orca, &store)
        {
            self.dispatch.metrics.unbelievable_reports.with_label_values(&["response"]).inc();
            debug!(%address, %error, "load report not believed");
        }
        let status = header.status.as_u16();
        match Failure::of_answer(header, &request.route).filter(|failure| failure.retryable(&request.route)) {
            None => self.dispatch.answered(request, now, status),
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
        if request.route == Route::Media && forward::is_event_stream(header) {
            ctx.in_flight = None;
        }
        ctx.marks.put(header)
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

/// Phases in which nothing is waited for are no `async fn`: each would be a future on the heap, for every request.
#[async_trait]
impl ProxyHttp for Proxy {
    /// On the heap: Pingora hands it from one future into the next.
    type CTX = Box<Ctx>;

    /// None: Pingora's own would compress nothing, for its price.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    fn new_ctx(&self) -> Box<Ctx> {
        Box::new(Ctx {
            started: Instant::now(),
            in_flight: Some(self.dispatch.drain.enter()),
            config: self.dispatch.fleet.config(),
            request: None,
            patch: None,
            pace: Pace::default(),
            principal: None,
            names: None,
            connection: None,
            marks: Marks::default(),
            weighed: None,
        })
    }

    /// Told before each request, with what the edge knows of its connection.
    fn on_connection_reuse(
        &self,
        _: &mut Session,
        ctx: &mut Box<Ctx>,
        connection: Box<dyn Any + Send + Sync>,
    ) {
        ctx.connection = connection.downcast::<Arc<Connection>>().ok().map(|connection| *connection);
        if let Some(connection) = &ctx.connection {
            connection.header_arrived();
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<bool> {
        session.set_write_timeout(Some(ctx.config.timeouts.read));
        session.set_read_timeout(Some(ctx.config.timeouts.read));
        session.set_total_drain_timeout(Some(LEFTOVER_MAX));
        let header = session.req_header();
        let seen = Glance::from(&header.headers);
        ctx.names = Some(trace::adopt(&seen));
        if let Some(preflight) = ctx.config.cors.as_ref().and_then(|cors| preflight(cors, header)) {
            let label = Label { names: ctx.names.as_ref(), marks: &Marks::default() };
            send(session, preflight?, Bytes::new(), label).await?;
            return Ok(true);
        }
        let (chunked, read) = (seen.transfer_encoding, self.read(header, &seen, ctx));
        if chunked {
            // Pingora's parser takes a bare LF for part of a chunk's extension, and no size for 0. A proxy in front may
            // see the end of the body elsewhere; then nothing behind our end of it must be read as a request.
            session.set_keepalive(None);
        }
        let passed = match read {
            Ok(needed) => self.gate(session, needed, ctx).await,
            Err(stop) => Err(stop),
        };
        if let Err(stop) = passed {
            tell(session, &stop.problem, stop.allow, ctx.label()).await?;
            return Ok(true);
        }
        let Ctx { request: Some(request), config, marks, names, .. } = &mut **ctx else {
            return Err(Error::explain(ErrorType::InternalError, "a request passed without a route"));
        };
        let label = Label { names: names.as_ref(), marks };
        if request.route.is_local() {
            self.local(session, &request.route, config, label).await?;
            return Ok(true);
        }
        if request.route.reads_body() {
            match self.admit(session, request, config.timeouts.body).await {
                Ok(()) => {}
                Err(admission::Refused::Problem(problem)) => {
                    tell(session, &problem, None, label).await?;
                    return Ok(true);
                }
                Err(admission::Refused::Broken(broken)) => {
                    return Err(Error::explain(ErrorType::ReadError, broken.to_string()).into_down());
                }
            }
        }
        if request.route == Route::Video {
            let headers = &session.req_header().headers;
            match admission::unread(headers) {
                Ok((job_id, head)) => (request.job_id, request.job) = (job_id, Job::new(&head)),
                Err(problem) => {
                    tell(session, &problem, None, label).await?;
                    return Ok(true);
                }
            }
        }
        match self.dispatch.choose(request) {
            Ok(target) => {
                request.target = Some(target);
                Ok(false)
            }
            Err(problem) => {
                tell(session, &problem, None, label).await?;
                Ok(true)
            }
        }
    }

    /// What [`ProxyHttp::request_filter`] lets through always goes.
    fn proxy_upstream_filter<'a, 'b, 'c, 'async_trait>(
        &'a self,
        _: &'b mut Session,
        _: &'c mut Box<Ctx>,
    ) -> Phase<'async_trait, Result<bool>>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        Self: 'async_trait,
    {
        goes()
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Box<Ctx>) -> Result<Box<HttpPeer>> {
        let unchosen = || Error::explain(ErrorType::InternalError, "no target was chosen");
        let request = ctx.request.as_mut().ok_or_else(unchosen)?;
        let (address, name) = self.dispatch.begin(request).ok_or_else(unchosen)?;
        let mut peer = Box::new(self.upstream.peer(address, name.as_deref()).ok_or_else(unchosen)?);
        forward::bound(&mut peer, &request.route, &ctx.config.timeouts);
        Ok(peer)
    }

    fn early_request_filter<'a, 'b, 'c, 'async_trait>(
        &'a self,
        _: &'b mut Session,
        _: &'c mut Box<Ctx>,
    ) -> Phase<'async_trait>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        Self: 'async_trait,
    {
        phase(Ok(()))
    }

    fn connected_to_upstream<'a, 'b, 'c, 'd, 'e, 'async_trait>(
        &'a self,
        _: &'b mut Session,
        _: bool,
        _: &'c HttpPeer,
        _: RawFd,
        _: Option<&'d Digest>,
        _: &'e mut Box<Ctx>,
    ) -> Phase<'async_trait>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        'd: 'async_trait,
        'e: 'async_trait,
        Self: 'async_trait,
    {
        phase(Ok(()))
    }

    fn upstream_request_filter<'a, 'b, 'c, 'd, 'async_trait>(
        &'a self,
        session: &'b mut Session,
        header: &'c mut RequestHeader,
        ctx: &'d mut Box<Ctx>,
    ) -> Phase<'async_trait>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        'd: 'async_trait,
        Self: 'async_trait,
    {
        phase(self.ask(session, header, ctx))
    }

    fn request_body_filter<'a, 'b, 'c, 'd, 'async_trait>(
        &'a self,
        _: &'b mut Session,
        body: &'c mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &'d mut Box<Ctx>,
    ) -> Phase<'async_trait>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        'd: 'async_trait,
        Self: 'async_trait,
    {
        phase(self.upload(body, end_of_stream, ctx))
    }

    fn upstream_response_filter<'a, 'b, 'c, 'd, 'async_trait>(
        &'a self,
        session: &'b mut Session,
        header: &'c mut ResponseHeader,
        ctx: &'d mut Box<Ctx>,
    ) -> Phase<'async_trait>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        'd: 'async_trait,
        Self: 'async_trait,
    {
        phase(self.hear(session, header, ctx))
    }

    fn response_filter<'a, 'b, 'c, 'd, 'async_trait>(
        &'a self,
        _: &'b mut Session,
        _: &'c mut ResponseHeader,
        _: &'d mut Box<Ctx>,
    ) -> Phase<'async_trait>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        'd: 'async_trait,
        Self: 'async_trait,
    {
        phase(Ok(()))
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Ctx>,
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
        ctx: &mut Box<Ctx>,
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
        ctx: &mut Box<Ctx>,
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

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Box<Ctx>) -> FailToProxy {
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
        if let Err(error) = tell(session, &problem, None, ctx.label()).await {
            debug!(%error, "the client did not wait for its problem");
        }
        FailToProxy { error_code: problem.status, can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Box<Ctx>, error: &Error) -> bool {
        // Told to the client and counted; `logging` has the line.
        ctx.request.as_ref().is_some_and(|request| request.last.is_some())
            || *error.root_etype() == OWN_ANSWER
            || matches!(error.esource(), ErrorSource::Downstream)
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Box<Ctx>, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    fn logging<'a, 'b, 'c, 'd, 'async_trait>(
        &'a self,
        session: &'b mut Session,
        e: Option<&'c Error>,
        ctx: &'d mut Box<Ctx>,
    ) -> Phase<'async_trait, ()>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        'c: 'async_trait,
        'd: 'async_trait,
        Self: 'async_trait,
    {
        self.settle(ctx);
        self.log(session, e, ctx);
        over()
    }
}
