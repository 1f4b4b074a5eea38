//! What a request passes before anything is done for it: its size, its path, who asks, and how often.

use std::time::Instant;

use millrace_wire::Problem;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::cors::Marks;
use super::session::client_ip;
use super::{Ctx, Proxy};
use crate::auth::{self, Role, Strangers};
use crate::dispatch::Request;
use crate::glance::Glance;
use crate::limits;
use crate::rate::{self, Who};
use crate::request::{self, Route};

/// A request that goes no further.
pub(super) struct Stop {
    pub(super) problem: Box<Problem>,
    /// The methods that the path knows, where it is the method that is wrong.
    pub(super) allow: Option<&'static str>,
}

impl From<Box<Problem>> for Stop {
    fn from(problem: Box<Problem>) -> Self {
        Self { problem, allow: None }
    }
}

impl Proxy {
    /// Tells `ctx` who asks, if `needed` says who may and [`Proxy::read`] did not know him, and counts the request.
    pub(super) async fn gate(
        &self,
        session: &Session,
        needed: Option<Role>,
        ctx: &mut Ctx,
    ) -> Result<(), Stop> {
        if let (Some(auth), Some(needed), None) = (&self.auth, needed, &ctx.principal) {
            let who = client_ip(session).map_or(Who::Rest, Who::stranger);
            let strangers = Strangers { limiter: &self.rate, who, rate: ctx.config.refusals() };
            let headers = &session.req_header().headers;
            ctx.principal = Some(auth.let_in(headers, needed, strangers).await?);
        }
        let health = |request: &Request| matches!(request.route, Route::Livez | Route::Readyz);
        if !ctx.request.as_ref().is_some_and(health) {
            self.count(session, ctx)?;
        }
        self.weigh(session, ctx)?;
        Ok(())
    }

    /// Tells `ctx` where the request wants to go, and who asks if he is known already; says who may, if not everybody.
    pub(super) fn read(
        &self,
        header: &RequestHeader,
        seen: &Glance<'_>,
        ctx: &mut Ctx,
    ) -> Result<Option<Role>, Stop> {
        ctx.marks = Marks::of(ctx.config.cors.as_ref(), &header.headers);
        limits::check(header.raw_path(), seen, &ctx.config.limits)?;
        let path = header.uri.path();
        let route = request::classify(&header.method, path).map_err(|refused| Stop {
            problem: Box::new(refused.problem(&header.method, path)),
            allow: refused.allow(),
        })?;
        let request = ctx.request.insert(Request::new(route));
        if request.route == Route::Media {
            ctx.marks = Marks::default();
        }
        if request.route.reads_body() {
            request.request_id = ctx.names.as_ref().map(|names| names.request_id.clone());
        }
        let needed = auth::needed(&request.route, &header.method, path);
        if let (Some(auth), Some(needed)) = (&self.auth, needed) {
            ctx.principal = auth.found_good(seen, needed);
        }
        Ok(needed)
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
            rate::too_often(rate, wait)
        })
    }
}
