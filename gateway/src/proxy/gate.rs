//! What a request passes before anything is done for it: its size, its path, who asks, and how often.

use std::time::Instant;

use http::header::TRANSFER_ENCODING;
use millrace_wire::{Code, Problem};
use pingora::proxy::Session;

use super::cors::Marks;
use super::session::client_ip;
use super::{Ctx, Proxy};
use crate::auth;
use crate::decisions;
use crate::dispatch::Request;
use crate::limits;
use crate::rate::Who;
use crate::request::{self, Route};

/// A request that goes no further.
pub(super) struct Stop {
    pub(super) problem: Box<Problem>,
    /// The methods that the path knows, where it is the method that is wrong.
    pub(super) allow: Option<&'static str>,
    /// Whether it may pass once [`crate::auth::Auth::look_again`] has.
    pub(super) may_change: bool,
}

impl From<Box<Problem>> for Stop {
    fn from(problem: Box<Problem>) -> Self {
        Self { problem, allow: None, may_change: false }
    }
}

impl From<auth::Stop> for Stop {
    fn from(auth::Stop { problem, may_change }: auth::Stop) -> Self {
        Self { problem, allow: None, may_change }
    }
}

impl Proxy {
    /// Tells `ctx` where the request wants to go, and who asks.
    pub(super) async fn gate(&self, session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
        match (self.pass(session, ctx), &self.auth) {
            // Its key may be newer than those that are here.
            (Err(Stop { may_change: true, .. }), Some(auth)) if Box::pin(auth.look_again()).await => {
                self.pass(session, ctx)
            }
            (passed, _) => passed,
        }
    }

    fn pass(&self, session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
        let header = session.req_header();
        ctx.marks = Marks::of(ctx.config.cors.as_ref(), &header.headers);
        limits::check(header.raw_path(), &header.headers, &ctx.config.limits)?;
        let chunked = header.headers.contains_key(TRANSFER_ENCODING);
        if chunked {
            // Pingora's parser takes a bare LF for part of a chunk's extension, and no size for 0. A proxy in front may
            // see the end of the body elsewhere; then nothing behind our end of it must be read as a request.
            session.set_keepalive(None);
        }
        let header = session.req_header();
        let path = header.uri.path();
        let route = request::classify(&header.method, path).map_err(|refused| Stop {
            problem: Box::new(refused.problem(&header.method, path)),
            allow: refused.allow(),
            may_change: false,
        })?;
        let request = ctx.request.insert(Request::new(route));
        if request.route == Route::Media {
            ctx.marks = Marks::default();
        }
        if request.route.reads_body() {
            request.request_id = decisions::request_id(&header.headers);
        }
        if let Some(auth) = &self.auth {
            ctx.principal = auth.admit(&request.route, &header.method, path, &header.headers)?;
        }
        if !matches!(request.route, Route::Livez | Route::Readyz) {
            self.count(session, ctx)?;
        }
        self.weigh(session, ctx)?;
        Ok(())
    }

    /// Counts the request with whoever asks.
    fn count(&self, session: &Session, ctx: &Ctx) -> Result<(), Box<Problem>> {
        let Some(rate) = &ctx.config.rate else { return Ok(()) };
        let who = match &ctx.principal {
            Some(principal) => Who::Principal(principal.id.clone()),
            None => client_ip(session).map_or(Who::Rest, Who::address),
        };
        self.rate.take(who, rate, Instant::now()).map_err(|wait| {
            self.dispatch.metrics.rate_limited.inc();
            let detail = format!("at most {} requests per second, {} at once", rate.per_second, rate.burst);
            Box::new(Problem::new(Code::RateLimited, detail).retry_after(wait.as_secs_f64().ceil() as u64))
        })
    }
}
