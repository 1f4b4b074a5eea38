//! The one way in, for clients as for operators: who asks, and how often an address may be refused.
//!
//! Anybody can write tokens faster than their signatures can be checked, and each may have the provider asked for newer
//! keys. So what is refused for its key or token is counted by address, apart from what else that asks: a stranger must
//! not stop who is let in beside him. Keys cost nothing to look up, nor do tokens that were found good before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use millrace_wire::{Code, Problem};

use super::{Auth, Principal, Role};
use crate::config::rate::Rate;
use crate::glance::Glance;
use crate::rate::{Limiter, Who, too_often};

/// Where somebody is counted if he is refused.
#[derive(Debug)]
pub struct Strangers<'a> {
    /// Among whom.
    pub limiter: &'a Limiter,
    /// As whom: [`Who::stranger`].
    pub who: Who,
    /// How often he may be: [`crate::config::Config::refusals`].
    pub rate: Rate,
}

impl Auth {
    /// Who asks, if he may do what `needed` may. Where his key may be newer than those that are here, they are asked for.
    ///
    /// # Errors
    /// 401 without a key or token that is good, 403 with one that may not, 429 to strangers who were refused too often, 503
    /// while nobody can tell.
    pub async fn let_in(
        &self,
        headers: &HeaderMap,
        needed: Role,
        strangers: Strangers<'_>,
    ) -> Result<Arc<Principal>, Box<Problem>> {
        // Most are known already, which takes no look at who was refused.
        if let Some(principal) = self.found_good(&Glance::from(headers), needed) {
            return Ok(principal);
        }
        let Strangers { limiter, who, rate } = strangers;
        if self.tokens.is_some()
            && let Err(wait) = limiter.look(&who, &rate, Instant::now())
            && self.has_to_check(headers)
        {
            return Err(self.refused_too_often(&rate, wait));
        }
        let permitted = match self.permit(headers, needed) {
            // On the heap: no request that is let in keeps room for it.
            Err(stop) if stop.may_change && Box::pin(self.look_again()).await => self.permit(headers, needed),
            permitted => permitted,
        };
        permitted.map_err(|stop| {
            // That we cannot tell is no fault of his.
            if stop.problem.code == Code::AuthUnavailable {
                return stop.problem;
            }
            let taken = limiter.take(who, &rate, Instant::now());
            taken.map_or_else(|wait| self.refused_too_often(&rate, wait), |()| stop.problem)
        })
    }

    fn refused_too_often(&self, rate: &Rate, wait: Duration) -> Box<Problem> {
        self.metrics.rate_limited.inc();
        too_often(rate, wait)
    }
}
