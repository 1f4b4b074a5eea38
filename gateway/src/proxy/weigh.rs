//! How much somebody may upload: in one piece, and in an hour.
//!
//! What a request announces is taken before a byte is read, and what did not come is given back at its end. Without an
//! announcement each piece is taken as it comes. A signed upload needs no key, but who shows one is counted by it.

use std::time::Instant;

use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use millrace_wire::{Code, Problem};
use pingora::proxy::Session;

use super::session::client_ip;
use super::{Ctx, Proxy};
use crate::auth::API_KEY;
use crate::config::limits::Limits;
use crate::rate::Who;

/// What an upload has taken.
#[derive(Debug)]
pub(super) struct Weighed {
    /// Whose bytes they are.
    who: Who,
    /// What `Content-Length` says.
    announced: Option<u64>,
    came: u64,
}

impl Proxy {
    /// Takes what an upload announces.
    pub(super) fn weigh(&self, session: &Session, ctx: &mut Ctx) -> Result<(), Box<Problem>> {
        let limits = &ctx.config.limits;
        let upload = ctx.request.as_ref().is_some_and(|request| request.route.is_upload());
        if !upload || (limits.upload_bytes.is_none() && limits.upload_bytes_per_hour.is_none()) {
            return Ok(());
        }
        let headers = &session.req_header().headers;
        let shows = [AUTHORIZATION.as_str(), API_KEY].into_iter().any(|name| headers.contains_key(name));
        if let Some(auth) = self.auth.as_ref().filter(|_| shows && ctx.principal.is_none()) {
            // A bad one is none: the URL's signature is what permits it.
            ctx.principal = auth.known(headers);
        }
        let who = match &ctx.principal {
            Some(principal) => Who::Principal(principal.id.clone()),
            None => client_ip(session).map_or(Who::Rest, Who::address),
        };
        let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let taken_of =
            self.take_bytes(limits, who.clone(), announced.unwrap_or(0), announced.unwrap_or(0))?;
        // What is given back must not go to his own, if they were taken of all.
        let who = if announced.is_some() { taken_of } else { who };
        ctx.weighed = Some(Weighed { who, announced, came: 0 });
        Ok(())
    }

    /// Takes a piece of an upload that came.
    pub(super) fn weigh_piece(&self, ctx: &mut Ctx, bytes: usize) -> Result<(), Box<Problem>> {
        let Some(weighed) = &mut ctx.weighed else { return Ok(()) };
        weighed.came = weighed.came.saturating_add(bytes as u64);
        match weighed.announced {
            Some(_) => Ok(()),
            None => {
                let (limits, who) = (&ctx.config.limits, weighed.who.clone());
                self.take_bytes(limits, who, bytes as u64, weighed.came).map(drop)
            }
        }
    }

    /// Gives back what was announced and did not come.
    pub(super) fn settle(&self, ctx: &Ctx) {
        let Some(Weighed { who, announced: Some(announced), came }) = &ctx.weighed else { return };
        if let Some(hourly) = ctx.config.limits.upload_bytes_per_hour {
            self.uploads.give_back(who, announced.saturating_sub(*came), hourly, Instant::now());
        }
    }

    /// Takes bytes of an upload that has that many as a whole; says whose they were.
    fn take_bytes(&self, limits: &Limits, who: Who, bytes: u64, whole: u64) -> Result<Who, Box<Problem>> {
        let refuse = |code, detail| {
            self.dispatch.metrics.uploads_limited.with_label_values(&[Code::as_str(code)]).inc();
            Problem::new(code, detail)
        };
        let largest = limits.upload_bytes.into_iter().chain(limits.upload_bytes_per_hour).min();
        if let Some(largest) = largest.filter(|largest| whole > *largest) {
            let detail = format!("an upload has at most {largest} bytes");
            return Err(Box::new(refuse(Code::UploadTooLarge, detail)));
        }
        let Some(hourly) = limits.upload_bytes_per_hour else { return Ok(who) };
        self.uploads.take_bytes(who, bytes, hourly, Instant::now()).map_err(|wait| {
            let problem = refuse(Code::UploadQuota, format!("at most {hourly} bytes of uploads per hour"));
            Box::new(problem.retry_after(wait.as_secs_f64().ceil() as u64))
        })
    }
}
