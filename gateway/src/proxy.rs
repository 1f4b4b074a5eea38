//! Translates Pingora's phases into calls of our stages. No policy lives here.
//!
//! A submit: [`Proxy::request_filter`] reads and admits it and makes the first choice; `upstream_peer` goes there;
//! whatever fails (`fail_to_connect`, `error_while_proxy`, a refusing status in `upstream_response_filter`) asks
//! [`Proxy::again`], which settles the try and makes the next choice, or lets the request end in `fail_to_proxy`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use millrace_wire::{Code, JobId, PoolId, Problem, headers, problem};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::any::Any;
use std::net::SocketAddr;
use tracing::{debug, info, warn};

use crate::admission;
use crate::config::Config;
use crate::drain::{Drain, InFlight};
use crate::edge;
use crate::fleet::{Fleet, Reading, Submitting, Verdict};
use crate::forward::{self, Budget, Failure, TRIES_MAX, Ticket};
use crate::metrics::Metrics;
use crate::request::{self, Route};
use crate::route::explain::{Reason, Refusal, Why};
use crate::route::{self, Draining, Exclude, Job};

/// Largest problem of a worker that is completed with a job id; a larger one is replaced.
const PATCH_BYTES_MAX: usize = 64 * 1024;
/// Reason of the internal error by which a refusing answer is turned into another try.
const TRY_AGAIN: ErrorType = ErrorType::Custom("TryAgain");
/// Reason of the internal error by which a worker's answer is replaced by our own.
const OWN_ANSWER: ErrorType = ErrorType::Custom("OwnAnswer");

/// The gateway as Pingora sees it.
pub struct Proxy {
    /// What is known of the workers.
    pub fleet: Arc<Fleet>,
    /// What is in flight.
    pub drain: Arc<Drain>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How many retries may be under way.
    pub budget: Arc<Budget>,
}

/// A request on its way.
pub struct Ctx {
    started: Instant,
    _in_flight: InFlight,
    config: Arc<Config>,
    route: Option<Route>,
    job: Job,
    job_id: Option<JobId>,
    exclude: Exclude,
    tries: u32,
    /// Where the next try goes.
    target: Option<Target>,
    /// Where the present try is.
    trying: Option<Try>,
    ticket: Option<Ticket>,
    last: Option<Failure>,
    least_retry_after: Option<Duration>,
    /// What the client is told when the request ends without a worker's answer.
    answer: Option<Box<Problem>>,
    /// An error body that is being completed with the job's id.
    patch: Option<Vec<u8>>,
    patch_status: u16,
    status: u16,
}

#[derive(Debug, Clone)]
struct Target {
    pool: PoolId,
    address: SocketAddr,
    worker: Option<String>,
    reason: Option<Reason>,
}

struct Try {
    target: Target,
    since: Instant,
    submitting: Option<Submitting>,
    _reading: Option<Reading>,
}

impl Proxy {
    /// Chooses where the request goes next.
    fn choose(&self, ctx: &mut Ctx) -> std::result::Result<Target, Box<Problem>> {
        let (snapshot, now) = (self.fleet.snapshot(), self.fleet.now());
        let rng = &mut rand::rng();
        let (pool, draining) = match &ctx.route {
            Some(Route::Submit | Route::UploadRequest) => {
                return match route::submit(&snapshot, &ctx.job, &ctx.exclude, now, rng) {
                    Ok(decision) => {
                        let labels = [decision.pool.as_str(), decision.reason.as_str()];
                        self.metrics.decisions.with_label_values(&labels).inc();
                        Ok(Target {
                            pool: decision.pool,
                            address: decision.address,
                            worker: decision.worker.map(String::from),
                            reason: Some(decision.reason),
                        })
                    }
                    Err(refusal) => Err(Box::new(self.refused(ctx, &refusal))),
                };
            }
            Some(Route::Upload { pool }) => (Some(pool), Draining::LastResort),
            _ => (None, Draining::Welcome),
        };
        if let Some(pool) = pool
            && snapshot.pool(pool).is_none()
        {
            let detail = format!("there is no pool {pool}; ask for a new upload URL");
            return Err(Box::new(Problem::new(Code::NotFound, detail)));
        }
        let found = route::read(&snapshot, pool, draining, &ctx.exclude, now, rng)
            .and_then(|address| snapshot.find(address));
        let Some((pool, worker)) = found else {
            return Err(Box::new(Problem::new(Code::NoHealthyWorker, "no worker is left that could answer")));
        };
        let name = worker.id().map(|id| id.as_str().to_owned());
        Ok(Target { pool: pool.id.clone(), address: worker.address, worker: name, reason: None })
    }

    fn refused(&self, ctx: &Ctx, refusal: &Refusal) -> Problem {
        self.metrics.refusals.with_label_values(&[refusal.why.as_str()]).inc();
        let problem = match refusal.why {
            Why::Saturated => {
                let after = refusal.retry_after_s.unwrap_or(1);
                let detail = "every worker's slots and queue are full; post again later with the same job_id";
                Problem::new(Code::Saturated, detail).retry_after(after)
            }
            Why::Exhausted if ctx.last.is_some() => return self.failed(ctx),
            Why::Exhausted | Why::Unhealthy => {
                let detail =
                    "no pool has a healthy worker; nothing was accepted, post again with the same job_id";
                Problem::new(Code::NoHealthyWorker, detail)
            }
            Why::Draining => {
                let detail = "every healthy worker is being drained; post again with the same job_id";
                Problem::new(Code::Draining, detail)
            }
        };
        ctx.name(problem)
    }

    /// What the client reads after the last try failed.
    fn failed(&self, ctx: &Ctx) -> Problem {
        let problem = match ctx.last {
            Some(Failure::Refused) => {
                let jitter = rand::Rng::random_range(&mut rand::rng(), 0.8..=1.2);
                let wait_s = ctx.least_retry_after.map_or(1.0, |after| after.as_secs_f64());
                let detail =
                    "every worker that could take the job refused it; post again later with the same job_id";
                Problem::new(Code::Saturated, detail).retry_after(route::retry_after_s(wait_s, jitter))
            }
            Some(Failure::Connect) => Problem::new(Code::NoHealthyWorker, "no worker could be reached"),
            Some(Failure::Timeout) => {
                Problem::new(Code::UpstreamTimeout, "the worker did not answer in time")
            }
            Some(Failure::Broke | Failure::BrokeReused | Failure::Status(_)) => {
                Problem::new(Code::UpstreamFailed, "the worker broke off before its answer was complete")
            }
            None => Problem::new(Code::Internal, "the request failed inside the gateway"),
        };
        ctx.name(problem)
    }

    /// Settles a failed try and, if another one is allowed and has somewhere to go, chooses where.
    fn again(&self, session: &mut Session, ctx: &mut Ctx, failure: Failure) -> bool {
        let Some(route) = ctx.route.clone() else { return false };
        let submit = route.reads_body();
        if let Some(tried) = ctx.trying.take() {
            let address = tried.target.address;
            if failure.blames_worker() && self.fleet.judge(address, Verdict::Failed, None) {
                self.metrics.ejections.with_label_values(&[tried.target.pool.as_str()]).inc();
            }
            if failure.outcome_unknown() && submit && ctx.exclude.store.is_none() {
                // Without a report there is no store to match, and no worker matches "".
                let snapshot = self.fleet.snapshot();
                let report = snapshot.find(address).and_then(|(_, worker)| worker.report.as_ref());
                ctx.exclude.store =
                    Some(report.map(|report| report.load.store_id.clone()).unwrap_or_default());
            }
            if failure == Failure::BrokeReused {
                ctx.exclude.tried.retain(|known| *known != address);
            }
            if let Some(submitting) = tried.submitting
                && failure.outcome_unknown()
            {
                submitting.timed_out();
            }
            debug!(%address, failure = failure.as_str(), tries = ctx.tries, "try failed");
        }
        // A 429 after an unknown outcome must not hide that the job may have been accepted somewhere.
        ctx.last = match ctx.last {
            Some(known) if known.outcome_unknown() && failure == Failure::Refused => Some(known),
            _ => Some(failure),
        };
        let written = session.response_written().is_some_and(|header| !header.status.is_informational());
        let whole = match &route {
            Route::Upload { .. } => session.body_bytes_read() == 0,
            _ => session.is_body_done() && !session.retry_buffer_truncated(),
        };
        if written || !whole || !failure.retryable(&route) || ctx.tries >= TRIES_MAX {
            return false;
        }
        if ctx.ticket.is_none() {
            ctx.ticket = self.budget.take(self.drain.live());
            if ctx.ticket.is_none() {
                self.metrics.retries_denied.inc();
                return false;
            }
        }
        match self.choose(ctx) {
            Ok(target) => {
                self.metrics.retries.with_label_values(&[failure.as_str()]).inc();
                ctx.target = Some(target);
                true
            }
            Err(problem) => {
                ctx.answer = Some(problem);
                false
            }
        }
    }

    async fn admit(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> std::result::Result<(), admission::Refused> {
        if session.req_header().headers.contains_key(http::header::EXPECT) && !session.is_http2() {
            let continued = session.write_continue_response().await;
            continued.map_err(|error| admission::Refused::Broken(admission::Broken(error.to_string())))?;
        }
        session.enable_retry_buffering();
        let header = session.req_header().headers.clone();
        let body = admission::read(&mut Downstream(session), &header, ctx.config.timeouts.body).await?;
        if ctx.route == Some(Route::Submit) {
            let admitted = admission::admit(&body, &header).map_err(admission::Refused::Problem)?;
            ctx.job = Job::new(&admitted.head);
            ctx.job_id = Some(admitted.job_id);
        }
        Ok(())
    }

    async fn local(&self, session: &mut Session, route: &Route) -> Result<()> {
        let unready = match route {
            Route::Readyz => self.drain.unready(&self.fleet),
            _ => None,
        };
        let (status, body) = match unready {
            None => (200, serde_json::json!({ "status": "ok" })),
            Some(reason) => (503, serde_json::json!({ "status": "unready", "reason": reason })),
        };
        write(session, status, "application/json", body.to_string(), &[]).await
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

impl Ctx {
    /// Puts the job's id into a problem.
    fn name(&self, problem: Problem) -> Problem {
        match &self.job_id {
            Some(job_id) => problem.job(job_id),
            None => problem,
        }
    }
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
    if !session.is_body_done() {
        // What is left of the body would be read as the next request.
        session.set_keepalive(None);
    }
    let bodiless = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(header), bodiless).await?;
    if !bodiless {
        session.write_response_body(Some(Bytes::from(body)), true).await?;
    }
    Ok(())
}

async fn tell(
    session: &mut Session,
    ctx: &mut Ctx,
    problem: &Problem,
    allow: Option<&'static str>,
) -> Result<()> {
    let mut more = Vec::new();
    if let Some(after) = problem.retry_after_s {
        more.push(("retry-after", after.to_string()));
    }
    if let Some(allow) = allow {
        more.push(("allow", allow.to_owned()));
    }
    ctx.status = problem.status;
    write(session, problem.status, problem::CONTENT_TYPE, problem.to_json(), &more).await
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        edge::header_arrived();
        let in_flight = self.drain.enter();
        Ctx {
            started: Instant::now(),
            _in_flight: in_flight,
            config: self.fleet.config(),
            route: None,
            job: Job::default(),
            job_id: None,
            exclude: Exclude::default(),
            tries: 0,
            target: None,
            trying: None,
            ticket: None,
            last: None,
            least_retry_after: None,
            answer: None,
            patch: None,
            patch_status: 0,
            status: 0,
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        session.set_write_timeout(Some(ctx.config.timeouts.read));
        session.set_read_timeout(Some(ctx.config.timeouts.read));
        session.set_total_drain_timeout(Some(Duration::from_secs(1)));
        let (method, path) =
            (session.req_header().method.clone(), session.req_header().uri.path().to_owned());
        let route = match request::classify(&method, &path) {
            Ok(route) => route,
            Err(refused) => {
                let allow = match refused {
                    request::Refused::Method { allow } => Some(allow),
                    request::Refused::NotFound => None,
                };
                tell(session, ctx, &refused.problem(&method, &path), allow).await?;
                return Ok(true);
            }
        };
        ctx.route = Some(route.clone());
        if matches!(route, Route::Livez | Route::Readyz) {
            self.local(session, &route).await?;
            return Ok(true);
        }
        if route.reads_body() {
            match self.admit(session, ctx).await {
                Ok(()) => {}
                Err(admission::Refused::Problem(problem)) => {
                    tell(session, ctx, &problem, None).await?;
                    return Ok(true);
                }
                Err(admission::Refused::Broken(broken)) => {
                    return Err(Error::explain(ErrorType::ReadError, broken.to_string()).into_down());
                }
            }
        }
        match self.choose(ctx) {
            Ok(target) => ctx.target = Some(target),
            Err(problem) => {
                tell(session, ctx, &problem, None).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let (Some(target), Some(route)) = (ctx.target.take(), &ctx.route) else {
            // Pingora goes round once more after an error of its own that says "retry": we have not chosen again.
            return Err(Error::explain(ErrorType::InternalError, "no target was chosen"));
        };
        let peer = forward::peer(target.address, route, &ctx.config.timeouts);
        let address = target.address;
        ctx.tries += 1;
        ctx.exclude.tried.push(address);
        let submitting = (*route == Route::Submit).then(|| self.fleet.submitting(address, ctx.job.work_s));
        let reading = submitting.is_none().then(|| self.fleet.reading(address));
        ctx.trying = Some(Try { target, since: Instant::now(), submitting, _reading: reading });
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        header: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let client = session.client_addr().and_then(|address| address.as_inet()).map(|inet| inet.ip());
        let Some(route) = &ctx.route else { return Ok(()) };
        forward::request_header(header, route, client, ctx.job_id.as_ref())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        _ctx: &mut Ctx,
    ) -> Result<()> {
        // An empty last piece (HTTP/2's empty DATA frame) would be written as a second terminator of the chunked body
        // to the worker, and the next request on that connection would begin with it.
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
        let Some(address) = ctx.trying.as_ref().map(|trying| trying.target.address) else { return Ok(()) };
        if let Some((orca, store)) = forward::take_report(header)
            && let Err(error) = self.fleet.heard(address, &orca, &store)
        {
            self.metrics.unbelievable_reports.with_label_values(&["response"]).inc();
            debug!(%address, %error, "load report not believed");
        }
        let status = header.status.as_u16();
        let submit = ctx.route.as_ref().is_some_and(Route::reads_body);
        if let Some(failure) = Failure::of_status(status)
            && ctx.route.as_ref().is_some_and(|route| failure.retryable(route))
        {
            if failure == Failure::Refused {
                let after = forward::retry_after(header).unwrap_or(Duration::from_secs(1));
                ctx.least_retry_after = Some(ctx.least_retry_after.map_or(after, |least| least.min(after)));
                self.fleet.judge(address, Verdict::Answered, None);
            }
            let target = ctx.trying.as_ref().map(|trying| trying.target.clone());
            if self.again(session, ctx, failure) {
                let mut error = Error::new_up(TRY_AGAIN);
                error.set_retry(true);
                return Err(error);
            }
            if failure == Failure::Refused {
                if ctx.answer.is_none() {
                    ctx.answer = Some(Box::new(self.failed(ctx)));
                }
                return Err(Error::new_up(OWN_ANSWER));
            }
            // The worker's own answer says more than ours would: it goes through.
            ctx.answer = None;
            if let Some(target) = target {
                sign(header, &target)?;
            }
        } else if let Some(trying) = ctx.trying.as_mut() {
            let failed = matches!(status, 500 | 502 | 503 | 504);
            let latency = (!submit).then(|| trying.since.elapsed());
            let verdict = if failed { Verdict::Failed } else { Verdict::Answered };
            if self.fleet.judge(address, verdict, latency) {
                self.metrics.ejections.with_label_values(&[trying.target.pool.as_str()]).inc();
            }
            // Answered: from here on it is in the worker's own report.
            trying.submitting = None;
            sign(header, &trying.target)?;
        }
        if submit && ctx.job_id.is_some() && status >= 500 {
            ctx.patch_status = status;
            if !forward::is_problem(header) {
                ctx.answer = Some(Box::new(ctx.name(unexplained(status))));
                return Err(Error::new_up(OWN_ANSWER));
            }
            ctx.patch = Some(Vec::new());
            header.remove_header(&http::header::CONTENT_LENGTH);
        }
        if self.drain.draining() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        if let Some(patch) = &mut ctx.patch {
            if let Some(piece) = body.take() {
                let room = (PATCH_BYTES_MAX + 1).saturating_sub(patch.len());
                patch.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            if end_of_stream {
                *body = Some(Bytes::from(completed(ctx)));
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
            // The client left: whether the worker has the job is its own secret for now.
            if let Some(submitting) = ctx.trying.take().and_then(|trying| trying.submitting) {
                submitting.timed_out();
            }
            false
        };
        e.set_retry(again);
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let gone = matches!(e.esource(), ErrorSource::Downstream)
            && matches!(
                e.etype(),
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed
            );
        let written = session.response_written().is_some_and(|header| !header.status.is_informational());
        if gone || written {
            return FailToProxy { error_code: if gone { 0 } else { 502 }, can_reuse_downstream: false };
        }
        let problem = match ctx.answer.take() {
            Some(problem) => *problem,
            None if matches!(e.esource(), ErrorSource::Downstream) => {
                Problem::new(Code::BadRequest, "the request is not well-formed HTTP")
            }
            None => self.failed(ctx),
        };
        // Pingora drops the client's connection after any failed try; a client that was not told would send its next
        // request into the reset.
        session.set_keepalive(None);
        if let Err(error) = tell(session, ctx, &problem, None).await {
            debug!(%error, "the client did not wait for its problem");
        }
        FailToProxy { error_code: problem.status, can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _session: &Session, ctx: &Ctx, error: &Error) -> bool {
        // Told to the client and counted; `logging` has the line.
        *error.root_etype() == OWN_ANSWER
            || ctx.last.is_some()
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
        let status = session.response_written().map_or(ctx.status, |header| header.status.as_u16());
        let route = ctx.route.as_ref().map_or("none", Route::as_str);
        let class = match status {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        let elapsed = ctx.started.elapsed();
        self.metrics.requests.with_label_values(&[route, class]).inc();
        self.metrics.request_seconds.with_label_values(&[route]).observe(elapsed.as_secs_f64());
        let (job_id, tries) = (ctx.job_id.as_ref().map(tracing::field::display), ctx.tries);
        let cause = ctx.last.map(Failure::as_str);
        let error = e.map(tracing::field::display);
        if ctx.route == Some(Route::Submit) {
            let target = ctx.trying.as_ref().map(|trying| &trying.target);
            let pool = target.map(|target| tracing::field::display(&target.pool));
            let address = target.map(|target| tracing::field::display(target.address));
            if status >= 500 {
                warn!(job_id, status, pool, address, tries, cause, ?elapsed, error, "submit failed");
            } else {
                info!(job_id, status, pool, address, tries, cause, ?elapsed, "submit");
            }
        } else {
            debug!(route, status, tries, cause, ?elapsed, error, "request");
        }
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

/// A worker's error body with the job's id in it.
fn completed(ctx: &Ctx) -> String {
    let read = ctx.patch.as_deref().and_then(|body| serde_json::from_slice::<Problem>(body).ok());
    ctx.name(read.unwrap_or_else(|| unexplained(ctx.patch_status))).to_json()
}

fn unexplained(status: u16) -> Problem {
    let code = match status {
        502 => Code::UpstreamFailed,
        503 => Code::NoHealthyWorker,
        504 => Code::UpstreamTimeout,
        _ => Code::Internal,
    };
    Problem { status, ..Problem::new(code, "the worker failed and did not say why") }
}
