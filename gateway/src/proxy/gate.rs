//! What a request passes before anything is done for it: its size, its path, who asks, and how often.
//!
//! What is refused for its key or token is counted, too, by its address, and apart from what that asks without either:
//! a stranger must not stop the players beside him.

use std::time::{Duration, Instant};

use http::header::TRANSFER_ENCODING;
use millrace_wire::{Code, Problem};
use pingora::proxy::Session;

use super::cors::Marks;
use super::session::client_ip;
use super::{Ctx, Proxy};
use crate::auth;
use crate::config::rate::Rate;
use crate::decisions;
use crate::dispatch::Request;
use crate::limits;
use crate::rate::{self, Who};
use crate::request::{self, Route};

/// A request that goes no further.
pub(super) struct Stop {
    pub(super) problem: Box<Problem>,
    /// The methods that the path knows, where it is the method that is wrong.
    pub(super) allow: Option<&'static str>,
    /// Whether it may pass once [`crate::auth::Auth::look_again`] has.
    pub(super) may_change: bool,
    /// Whether it is who asks, or that nobody knows him, that is wrong. That we cannot tell is no fault of his.
    pub(super) stranger: bool,
}

impl From<Box<Problem>> for Stop {
    fn from(problem: Box<Problem>) -> Self {
        Self { problem, allow: None, may_change: false, stranger: false }
    }
}

impl From<auth::Stop> for Stop {
    fn from(auth::Stop { problem, may_change }: auth::Stop) -> Self {
        let stranger = problem.code != Code::AuthUnavailable;
        Self { problem, allow: None, may_change, stranger }
    }
}

impl Proxy {
    /// Tells `ctx` where the request wants to go, and who asks.
    pub(super) async fn gate(&self, session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
        let passed = match (self.pass(session, ctx), &self.auth) {
            // Its key may be newer than those that are here.
            (Err(Stop { may_change: true, .. }), Some(auth)) if Box::pin(auth.look_again()).await => {
                self.pass(session, ctx)
            }
            (passed, _) => passed,
        };
        if let (Err(Stop { stranger: true, .. }), Some(rate)) = (&passed, &ctx.config.rate) {
            let taken = self.rate.take(stranger(session), rate, Instant::now());
            taken.map_err(|wait| self.too_often(rate, wait))?;
        }
        passed
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
            stranger: false,
        })?;
        let request = ctx.request.insert(Request::new(route));
        if request.route == Route::Media {
            ctx.marks = Marks::default();
        }
        if request.route.reads_body() {
            request.request_id = decisions::request_id(&header.headers);
        }
        if let Some(auth) = &self.auth {
            if let Some(rate) = &ctx.config.rate
                && auth::needed(&request.route, &header.method, path).is_some()
                && let Err(wait) = self.rate.look(&stranger(session), rate, Instant::now())
                && auth.has_to_check(&header.headers)
            {
                // Anybody can write tokens faster than their signatures can be checked. Keys cost nothing, and tokens that
                // were found good before: who has those is let in beside a stranger at the same address.
                return Err(self.too_often(rate, wait).into());
            }
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
        self.rate.take(who, rate, Instant::now()).map_err(|wait| self.too_often(rate, wait))
    }

    fn too_often(&self, rate: &Rate, wait: Duration) -> Box<Problem> {
        self.dispatch.metrics.rate_limited.inc();
        rate::too_often(rate, wait)
    }
}

/// Who is counted for what is refused for want of a good key or token.
fn stranger(session: &Session) -> Who {
    client_ip(session).map_or(Who::Rest, Who::stranger)
}
