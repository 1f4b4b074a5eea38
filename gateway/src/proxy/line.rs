//! A request's end: its metrics, its line of the access log and its line of our own.

use pingora::Error;
use pingora::proxy::Session;
use tracing::{debug, info, warn};

use super::session::{client_ip, is_tls};
use super::{Ctx, Proxy};
use crate::access_log::{self, AccessLog, Record};
use crate::forward::Failure;
use crate::request::Route;
use crate::trace::Names;

impl Proxy {
    pub(super) fn log(&self, session: &Session, e: Option<&Error>, ctx: &Ctx) {
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
        metrics.requests.ended(route, class, elapsed.as_secs_f64());
        if AccessLog::wants(&ctx.config.access_log, status) {
            self.write_line(session, ctx, route, status);
        }
        let error = e.map(tracing::field::display);
        let request_id = ctx.names.as_ref().and_then(Names::request_id);
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
            Route::Submit | Route::Video if status >= 500 => {
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
            // What goes as it should is the access log's to tell, if there is one: its lines make no request wait.
            Route::Submit | Route::Video if status >= 400 || tries != 1 || !ctx.config.access_log.enabled => {
                info!(request_id, job_id, status, pool, address, tries, cause, ?elapsed, "submit")
            }
            _ => debug!(request_id, route, status, pool, address, tries, cause, ?elapsed, error, "request"),
        }
    }

    fn write_line(&self, session: &Session, ctx: &Ctx, route: &'static str, status: u16) {
        let header = session.req_header();
        let request = ctx.request.as_ref();
        let target = request.and_then(|request| Some(&request.trying.as_ref()?.target));
        self.access_log.write(&Record {
            time: access_log::now_s(),
            request_id: ctx.names.as_ref().and_then(Names::request_id),
            trace_id: ctx.names.as_ref().and_then(Names::trace_id),
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
}
