//! A request's way through the workers: the first choice, what a failed try means, whether there is another one, and
//! what the client is told when there is none.
//!
//! Knows nothing of Pingora: `proxy` tells it what happened and does what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use millrace_wire::steal::Prices;
use millrace_wire::{Code, JobId, PoolId, Problem, load};
use tracing::debug;

use crate::decisions::{Decisions, Made};
use crate::drain::Drain;
use crate::fleet::Fleet;
use crate::fleet::evidence::{SLOW, Verdict};
use crate::fleet::snapshot::{Sign, Worker};
use crate::fleet::underway::{Reading, Submitting};
use crate::forward::{Budget, Failure, TRIES_MAX, Ticket};
use crate::metrics::Metrics;
use crate::request::Route;
use crate::route::explain::{Reason, Why};
use crate::route::worker::Room;
use crate::route::{self, Chance, Draining, Exclude, Job, Refused};

/// A report as fresh as this is enough beside what answers to reads say.
const REPORT_REST: Duration = Duration::from_millis(100);

/// Chooses workers for requests.
#[derive(Debug)]
pub struct Dispatch {
    /// What is known of the workers.
    pub fleet: Arc<Fleet>,
    /// What is in flight.
    pub drain: Arc<Drain>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How many retries may be under way.
    pub budget: Arc<Budget>,
    /// What was decided of late.
    pub decisions: Arc<Decisions>,
}

/// A request and what has become of it so far.
#[derive(Debug)]
pub struct Request {
    /// What it asks for.
    pub route: Route,
    /// What routing knows of its job.
    pub job: Job,
    /// Its job's id, for a submit.
    pub job_id: Option<JobId>,
    /// By which id the request is found again, for a submit.
    pub request_id: Option<HeaderValue>,
    /// How often it was sent to a worker.
    pub tries: u32,
    /// Where the next try goes.
    pub target: Option<Target>,
    /// The try under way.
    pub trying: Option<Try>,
    /// How the last try failed.
    pub last: Option<Failure>,
    /// What the client is told instead of a worker's answer.
    pub answer: Option<Box<Problem>>,
    exclude: Exclude,
    ticket: Option<Ticket>,
    /// How many tries were answered 429 …
    refusals: u32,
    /// … and the least time after which one of them may be repeated.
    retry_after_min: Option<Duration>,
}

/// A worker that was chosen.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its pool.
    pub pool: PoolId,
    /// Its address.
    pub address: SocketAddr,
    /// What the answer says of it.
    pub sign: Arc<Sign>,
    /// When it was chosen, by the fleet's clock.
    pub at: Duration,
    /// What its certificate names, where it is spoken to over TLS.
    pub tls: Option<Arc<str>>,
    /// Why it was chosen, for a submit.
    pub reason: Option<Reason>,
    /// When another pool may take the job, as the worker is told.
    pub steal: Option<HeaderValue>,
}

/// A try under way; counts at its worker until it is dropped.
#[derive(Debug)]
pub struct Try {
    /// Where.
    pub target: Target,
    /// Since when, by the fleet's clock.
    pub since: Duration,
    submitting: Option<Submitting>,
    _reading: Option<Reading>,
}

/// What must hold of a connection for a request to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeatable {
    /// Nothing of an answer went to the client.
    pub unanswered: bool,
    /// The body is here as a whole, or none of it was read.
    pub whole: bool,
}

impl Request {
    /// A request that has not been anywhere.
    pub fn new(route: Route) -> Self {
        Self {
            route,
            job: Job::default(),
            job_id: None,
            request_id: None,
            tries: 0,
            target: None,
            trying: None,
            last: None,
            answer: None,
            exclude: Exclude::default(),
            ticket: None,
            refusals: 0,
            retry_after_min: None,
        }
    }

    /// Puts the job's id into a problem.
    pub fn name(&self, problem: Problem) -> Problem {
        match &self.job_id {
            Some(job_id) => problem.job(job_id),
            None => problem,
        }
    }

    /// A worker answered 429 with this `Retry-After`.
    pub fn refused_for(&mut self, after: Option<Duration>) {
        let after = after.unwrap_or(Duration::from_secs(1));
        self.refusals += 1;
        self.retry_after_min = Some(self.retry_after_min.map_or(after, |least| least.min(after)));
    }

    /// When the job may be posted again, in seconds, by what those say who refused it.
    fn retry_after_s(&self) -> u64 {
        let (least, most) = (1.0 - route::RETRY_AFTER_JITTER, 1.0 + route::RETRY_AFTER_JITTER);
        let jitter = rand::Rng::random_range(&mut Chance, least..=most);
        route::retry_after_s(self.retry_after_min.map_or(1.0, |after| after.as_secs_f64()), jitter)
    }

    /// Why it goes nowhere, by what it has met: who answered 429 is full, though his report may not say so yet.
    fn as_met(&self, refused: Refused) -> Refused {
        match refused.why {
            Why::Exhausted if self.tries > 0 && self.refusals >= self.tries => {
                Refused { why: Why::Saturated, retry_after_s: Some(self.retry_after_s()) }
            }
            _ => refused,
        }
    }

    /// The client left: whether the worker has the job is its own secret for now.
    pub fn abandoned(&mut self) {
        if let Some(submitting) = self.trying.take().and_then(|trying| trying.submitting) {
            submitting.timed_out();
        }
    }

    /// What the client reads after the last try failed.
    pub fn failed(&self) -> Problem {
        self.name(match self.last {
            Some(Failure::Refused) => {
                let detail =
                    "every worker that could take the job refused it; post again later with the same job_id";
                Problem::new(Code::Saturated, detail).retry_after(self.retry_after_s())
            }
            Some(Failure::Connect) => Problem::new(Code::NoHealthyWorker, "no worker could be reached"),
            Some(Failure::Timeout) => {
                Problem::new(Code::UpstreamTimeout, "the worker did not answer in time")
            }
            Some(Failure::Broke | Failure::BrokeReused | Failure::Busy | Failure::Status(_)) => {
                Problem::new(Code::UpstreamFailed, "the worker broke off before its answer was complete")
            }
            None => Problem::new(Code::Internal, "the request failed inside the gateway"),
        })
    }
}

impl Dispatch {
    /// Chooses where the request goes next.
    ///
    /// # Errors
    /// What the client is told.
    pub fn choose(&self, request: &Request) -> Result<Target, Box<Problem>> {
        match &request.route {
            Route::Submit | Route::Video | Route::UploadRequest => self.choose_for_job(request),
            Route::Upload { pool } => {
                if !self.fleet.view().has_pool(pool) {
                    let detail = format!("there is no pool {pool}; ask for a new upload URL");
                    return Err(Box::new(Problem::new(Code::NotFound, detail)));
                }
                self.choose_for_read(request, Some(pool), Draining::LastResort)
            }
            Route::Retry => self.choose_for_read(request, None, Draining::LastResort),
            _ => self.choose_for_read(request, None, Draining::Welcome),
        }
    }

    fn choose_for_job(&self, request: &Request) -> Result<Target, Box<Problem>> {
        let now = self.fleet.now();
        let view = self.fleet.view_at(now);
        let outcome = view.submit(&request.job, &request.exclude, &mut Chance);
        let outcome = outcome.map_err(|refused| request.as_met(refused));
        self.decisions.keep(Made {
            at: SystemTime::now(),
            job_id: request.job_id.clone(),
            request_id: request.request_id.clone(),
            tries: request.tries,
            view: view.clone(),
            job: request.job.clone(),
            exclude: request.exclude.clone(),
            outcome,
        });
        match outcome {
            Ok(choice) => {
                let pool = view.pool(choice.pool);
                let labels = [pool.as_str(), choice.reason.as_str()];
                self.metrics.decisions.with_label_values(&labels).inc();
                let mut target = self.target(now, pool, choice.address, Some(choice.reason));
                if request.route.makes_job() {
                    let prices = Prices::of(view.steal_prices(&request.job, choice.pool));
                    let text = (!prices.is_empty()).then(|| prices.to_string());
                    target.steal = text.map(|text| text.parse().expect("names and numbers"));
                }
                Ok(target)
            }
            Err(refused) => Err(Box::new(self.refused(request, refused))),
        }
    }

    fn choose_for_read(
        &self,
        request: &Request,
        pool: Option<&PoolId>,
        draining: Draining,
    ) -> Result<Target, Box<Problem>> {
        let now = self.fleet.now();
        let view = self.fleet.view_at(now);
        let Some(chosen) = view.read(pool, draining, &request.exclude, &mut Chance) else {
            let detail = "no worker is left that could answer";
            return Err(Box::new(Problem::new(Code::NoHealthyWorker, detail)));
        };
        Ok(self.target(now, view.pool(chosen.pool), chosen.address, None))
    }

    fn target(&self, at: Duration, pool: &PoolId, address: SocketAddr, reason: Option<Reason>) -> Target {
        let known = |worker: &Worker| (worker.sign.clone(), worker.tls.clone());
        let (sign, tls) = self.fleet.of(address, known).unwrap_or_default();
        let sign = sign.unwrap_or_else(|| Sign::new(pool.as_str(), &address.to_string()));
        Target { pool: pool.clone(), address, sign, at, tls, reason, steal: None }
    }

    fn refused(&self, request: &Request, refused: Refused) -> Problem {
        self.metrics.refusals.with_label_values(&[refused.why.as_str()]).inc();
        request.name(match refused.why {
            // A job that may have been accepted somewhere was not simply refused.
            _ if request.last.is_some_and(Failure::outcome_unknown) => return request.failed(),
            Why::Exhausted if request.last.is_some() => return request.failed(),
            Why::Saturated => {
                let after = refused.retry_after_s.unwrap_or(1);
                let detail = "every worker's slots and queue are full; post again later with the same job_id";
                Problem::new(Code::Saturated, detail).retry_after(after)
            }
            Why::Exhausted | Why::Unhealthy => {
                let detail =
                    "no pool has a healthy worker; nothing was accepted, post again with the same job_id";
                Problem::new(Code::NoHealthyWorker, detail)
            }
            Why::Draining => {
                let detail = "every healthy worker is being drained; post again with the same job_id";
                Problem::new(Code::Draining, detail)
            }
        })
    }

    /// The next try begins: answers where, and what the certificate there has to name. `None` when nothing was chosen.
    pub fn begin(&self, request: &mut Request) -> Option<(SocketAddr, Option<Arc<str>>)> {
        let target = request.target.take()?;
        let (address, tls, since) = (target.address, target.tls.clone(), target.at);
        request.tries += 1;
        request.exclude.tried.push(address);
        let submitting =
            (request.route == Route::Submit).then(|| self.fleet.submitting(address, request.job.work_s));
        let reading = submitting.is_none().then(|| self.fleet.reading(address));
        request.trying = Some(Try { target, since, submitting, _reading: reading });
        Some((address, tls))
    }

    /// A worker's answer carried a report, as of `now`. That of a read is believed unheard while another one is fresh: it costs more
    /// than all else that is done for a read, and says little that is new. A submit's says where its job went.
    ///
    /// # Errors
    /// The report is not believable.
    pub fn heard(
        &self,
        request: &Request,
        now: Duration,
        address: SocketAddr,
        orca: &HeaderValue,
        store: &HeaderValue,
    ) -> Result<(), load::Error> {
        let rest = if request.route.reads_body() { Duration::ZERO } else { REPORT_REST };
        self.fleet.heard_after(now, rest, address, || match (orca.to_str(), store.to_str()) {
            (Ok(orca), Ok(store)) => Ok((orca, store)),
            _ => Err(load::Error::Syntax("it is no text".to_owned())),
        })
    }

    /// The worker has answered, and the answer goes to the client, as of `now`.
    pub fn answered(&self, request: &mut Request, now: Duration, status: u16) {
        let Some(trying) = &mut request.trying else { return };
        let elapsed = now.saturating_sub(trying.since);
        let verdict = match status {
            500 | 502 | 503 | 504 => Verdict::Failed,
            _ if request.route.reads_body() && elapsed >= SLOW => Verdict::Slow,
            _ => Verdict::Answered,
        };
        // How long an upload takes is its sender's doing.
        let is_read = !(request.route.reads_body() || request.route.is_upload());
        let latency = is_read.then_some(elapsed);
        if trying.submitting.is_some() {
            self.metrics.pools.submit_answered(trying.target.pool.as_str(), elapsed.as_secs_f64());
        }
        // What was known already, and is answered by 200, moves nothing.
        if request.route.makes_job() && status == 202 {
            let price = |from: &str| self.fleet.view().egress_usd_per_gb(from);
            self.metrics.pools.accepted(&request.job, trying.target.pool.as_str(), price);
        }
        // From here on the job is in the worker's own report.
        trying.submitting = None;
        self.judge(&trying.target, now, verdict, latency);
    }

    fn judge(&self, target: &Target, now: Duration, verdict: Verdict, latency: Option<Duration>) {
        if self.fleet.judge(target.address, now, verdict, latency) {
            self.metrics.ejections.with_label_values(&[target.pool.as_str()]).inc();
        }
    }

    /// The try failed: settles it and, if another one is allowed and has somewhere to go, chooses where.
    pub fn again(&self, request: &mut Request, failure: Failure, repeatable: Repeatable) -> bool {
        self.settle(request, failure);
        if !(repeatable.unanswered && repeatable.whole && failure.retryable(&request.route))
            || request.tries >= TRIES_MAX
        {
            return false;
        }
        if request.ticket.is_none() {
            request.ticket = self.budget.take(self.drain.live());
        }
        if request.ticket.is_none() {
            self.metrics.retries_denied.inc();
            return false;
        }
        match self.choose(request) {
            Ok(target) => {
                self.metrics.retries.with_label_values(&[failure.as_str()]).inc();
                request.target = Some(target);
                true
            }
            Err(problem) => {
                request.answer = Some(problem);
                false
            }
        }
    }

    /// Whether a worker that refused a job says that it has room for it: the refusal's own report is heard already.
    fn contradicts(&self, request: &Request, address: SocketAddr) -> bool {
        let room = |worker: &Worker| {
            let report = worker.report.as_ref();
            report.is_some_and(|report| Room::of(report, 0).takes(request.job.priority))
        };
        request.route == Route::Submit && self.fleet.of(address, room).unwrap_or(false)
    }

    fn settle(&self, request: &mut Request, failure: Failure) {
        request.last = match request.last {
            // A later refusal must not hide that the job may have been accepted somewhere.
            Some(known) if known.outcome_unknown() && !failure.outcome_unknown() => Some(known),
            // Nor somebody who is away that another one is there and full.
            Some(Failure::Refused) if failure == Failure::Connect => Some(Failure::Refused),
            _ => Some(failure),
        };
        let Some(tried) = request.trying.take() else { return };
        let address = tried.target.address;
        debug!(%address, failure = failure.as_str(), tries = request.tries, "try failed");
        let now = self.fleet.now();
        match failure {
            // Closed while unused: the worker itself was not tried.
            Failure::BrokeReused => request.exclude.tried.retain(|known| *known != address),
            Failure::Refused if self.contradicts(request, address) => {
                request.exclude.disbelieved.push(address);
                self.judge(&tried.target, now, Verdict::Contradicted, None);
            }
            Failure::Refused | Failure::Busy => self.judge(&tried.target, now, Verdict::Answered, None),
            _ => self.judge(&tried.target, now, Verdict::Failed, None),
        }
        if !failure.outcome_unknown() {
            return;
        }
        if request.route.reads_body() && request.exclude.store.is_none() {
            // Without a report there is no store to match, and no worker's store is "".
            let store_id = |worker: &Worker| Some(worker.report.as_ref()?.load.store_id.clone());
            let store = self.fleet.of(address, store_id).flatten();
            request.exclude.store = Some(store.unwrap_or_default());
        }
        if let Some(submitting) = tried.submitting {
            submitting.timed_out();
        }
    }
}
