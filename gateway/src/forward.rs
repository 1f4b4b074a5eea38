//! Talking to a worker: the connection, the headers both ways, and whether a failure may be tried again elsewhere.
//!
//! Pingora's own answers were rejected here: its default forbids to retry a POST, its `max_retries` counts tries per
//! request and knows no budget, and none of its upstream timeouts is set.

pub mod fields;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use millrace_wire::{JobId, headers, problem};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorSource, ErrorType};

use crate::auth::Principal;
use crate::config::Timeouts;
use crate::request::Route;
use crate::trace::Names;

/// Most tries of one request, the first included.
pub const TRIES_MAX: u32 = 4;
/// Retries under way may be this share of the requests under way …
pub const BUDGET_SHARE: f64 = 0.2;
/// … but this many always may. Three, as others have it, were too few: of six clients that met a black hole at the same
/// moment the fourth was turned away, with good workers standing by.
pub const BUDGET_MIN: usize = 10;

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: the worker has seen nothing.
    Connect,
    /// The connection broke: it may have seen all of it.
    Broke,
    /// An unused connection was closed under the request's feet: no fault of the worker's.
    BrokeReused,
    /// No answer in time: it may have seen all of it.
    Timeout,
    /// It answered 429.
    Refused,
    /// It answered 503 to a stream or a file and said when to come back: it has no room for one more.
    Busy,
    /// It answered 500, 502, 503 or 504.
    Status(u16),
}

impl Failure {
    /// Reads Pingora's error about an upstream; `None` when the client is at fault or gone.
    pub fn of(error: &Error, reused: bool) -> Option<Self> {
        if matches!(error.esource(), ErrorSource::Downstream) {
            return None;
        }
        Some(match error.root_etype() {
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Self::Timeout,
            _ if reused => Self::BrokeReused,
            _ => Self::Broke,
        })
    }

    /// Reads a worker's header; `None` when it is an answer.
    pub fn of_answer(header: &ResponseHeader, route: &Route) -> Option<Self> {
        match header.status.as_u16() {
            429 => Some(Self::Refused),
            503 if *route == Route::Media && retry_after(header).is_some() => Some(Self::Busy),
            status @ (500 | 502..=504) => Some(Self::Status(status)),
            _ => None,
        }
    }

    /// A metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Broke => "broke",
            Self::BrokeReused => "broke_reused",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Status(_) => "status",
        }
    }

    /// Whether the worker may have done what it was asked.
    pub fn outcome_unknown(self) -> bool {
        !matches!(self, Self::Connect | Self::Refused | Self::Busy)
    }

    /// Whether it tells against the worker.
    pub fn blames_worker(self) -> bool {
        !matches!(self, Self::Refused | Self::Busy | Self::BrokeReused)
    }

    /// Whether a request of this route may be tried again after it, as far as its meaning goes. A submit may: its id
    /// makes it the same job (in the same store, which the choice enforces).
    pub fn retryable(self, route: &Route) -> bool {
        match route {
            Route::Submit | Route::UploadRequest => true,
            Route::Read | Route::Media => !matches!(self, Self::Refused | Self::Status(502 | 504)),
            Route::Upload { .. } | Route::Video | Route::Cancel => self == Self::Connect,
            // The worker that refuses has changed nothing.
            Route::Retry => matches!(self, Self::Connect | Self::Refused),
            _ => false,
        }
    }
}

/// How many retries may be under way: a broken fleet must not get its load multiplied.
#[derive(Debug, Default)]
pub struct Budget {
    retrying: AtomicUsize,
}

impl Budget {
    /// Takes one of the allowed retries, beside `live` requests under way.
    pub fn take(self: &Arc<Self>, live: usize) -> Option<Ticket> {
        let allowed = ((live as f64 * BUDGET_SHARE) as usize).max(BUDGET_MIN);
        let taken = self
            .retrying
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < allowed).then_some(now + 1));
        taken.ok().map(|_| Ticket(self.clone()))
    }
}

/// One retry under way, until it is dropped.
#[derive(Debug)]
pub struct Ticket(Arc<Budget>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Fields that each request to a worker has and a client's has not: its id, its trace, its sender.
const ALWAYS: usize = 3;
/// Fields that tell a worker who asks.
const ASKS: usize = 2;

/// Sets every timeout of a connection to a worker.
pub fn bound(peer: &mut HttpPeer, route: &Route, timeouts: &Timeouts) {
    let answer = match route {
        Route::Submit | Route::UploadRequest | Route::Cancel | Route::Retry => timeouts.submit,
        Route::Read => timeouts.query,
        Route::Upload { .. } | Route::Video => timeouts.upload,
        _ => timeouts.read,
    };
    peer.options.connection_timeout = Some(timeouts.connect);
    peer.options.total_connection_timeout = Some(timeouts.connect);
    peer.options.read_timeout = Some(answer);
    peer.options.write_timeout = Some(answer);
    peer.options.idle_timeout = Some(timeouts.idle);
    peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
}

/// Who sent a request.
#[derive(Debug, Clone)]
pub struct Sender<'a> {
    /// Its [`address`].
    pub address: Option<HeaderValue>,
    /// Whether it came by TLS.
    pub tls: bool,
    /// What nobody but us may see is in the request.
    pub secret: bool,
    /// Who it is.
    pub principal: Option<&'a Principal>,
    /// By what the request is known.
    pub names: &'a Names,
}

/// A client's address as workers are told.
pub fn address(of: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&of.to_string()).expect("digits, dots and colons")
}

/// Makes a client's request header one for a worker. The host that the client asked goes on as it came, or for HTTP/2 as
/// its authority, so nothing else has to tell of it.
///
/// # Errors
/// Never for a header that was parsed.
pub fn request_header(
    header: &mut RequestHeader,
    route: &Route,
    sender: Sender<'_>,
    job_id: Option<&JobId>,
    steal: Option<&HeaderValue>,
) -> Result<(), Box<Error>> {
    // What only we say, what is secret, and what belongs to a trace that the client did not begin.
    let drops = |name: &HeaderName| {
        let text = name.as_str();
        match text.as_bytes().first() {
            Some(b'm') => text.starts_with("millrace-"),
            Some(b'x') => text.starts_with("x-forwarded-") || (sender.secret && *name == fields::API_KEY),
            Some(b'e') => text == headers::LOAD,
            Some(b't') => !sender.names.known_trace && *name == fields::TRACESTATE,
            _ => false,
        }
    };
    // A name's characters.
    let value = |text: &str| HeaderValue::from_str(text).expect("a plain word");
    fields::change(header, |fields| {
        // One look at all of them: nearly no client sends one.
        if fields.keys().any(drops) {
            let forged: Vec<HeaderName> = fields.keys().filter(|name| drops(name)).cloned().collect();
            forged.iter().for_each(|name| drop(fields.remove(name)));
        }
        if route.reads_body() {
            // The body is here already; a worker asked to say "continue" would only say it to nobody.
            fields.remove(http::header::EXPECT);
        }
        if sender.secret {
            fields.remove(http::header::AUTHORIZATION);
        }
        // The map grows once at most.
        let asks = if sender.principal.is_some() { ASKS } else { 0 };
        let more = [sender.tls, job_id.is_some(), steal.is_some()].map(usize::from);
        fields.reserve(ALWAYS + asks + more.iter().sum::<usize>());
        fields.insert(&fields::REQUEST_ID, sender.names.request_id.clone());
        fields.insert(&fields::TRACEPARENT, sender.names.traceparent.clone());
        if sender.tls {
            // Where it is not there, it was http.
            fields.insert(&fields::FORWARDED_PROTO, HeaderValue::from_static("https"));
        }
        if let Some(client) = sender.address {
            fields.insert(&fields::FORWARDED_FOR, client);
        }
        if let Some(job_id) = job_id {
            fields.insert(&fields::IDEMPOTENCY_KEY, value(job_id.as_str()));
        }
        if let Some(steal) = steal {
            fields.insert(&fields::STEAL, steal.clone());
        }
        if let Some(principal) = sender.principal {
            let [name, tenant] = principal.headers();
            fields.insert(&fields::PRINCIPAL, name);
            fields.insert(&fields::TENANT, tenant);
        }
    })
}

/// Whether a worker's error explains itself: a problem with a body.
pub fn is_problem(header: &ResponseHeader) -> bool {
    let kind = header.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let empty = header.headers.get(http::header::CONTENT_LENGTH).is_some_and(|length| length == "0");
    kind.is_some_and(|kind| kind.starts_with(problem::CONTENT_TYPE)) && !empty
}

/// Whether an answer is a stream of events.
pub fn is_event_stream(header: &ResponseHeader) -> bool {
    let kind = header.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

/// `Retry-After` in seconds, when a worker gave one.
pub fn retry_after(header: &ResponseHeader) -> Option<Duration> {
    let value = header.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    value.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::glance::Glance;
    use crate::trace;

    #[test]
    fn the_budget_is_a_fifth_of_the_live_and_at_least_ten() {
        let budget = Arc::new(Budget::default());
        let taken: Vec<_> = (0..99).map_while(|_| budget.take(1)).collect();
        assert_eq!(taken.len(), 10);
        let more: Vec<_> = (0..99).map_while(|_| budget.take(100)).collect();
        assert_eq!(more.len(), 10);
        drop((taken, more));
        assert_eq!(budget.retrying.load(Ordering::Acquire), 0);
    }

    #[test]
    fn forged_headers_are_replaced() {
        let mut header = RequestHeader::build("POST", b"/jobs", None).unwrap();
        for (name, value) in [
            ("host", "video.example"),
            ("Millrace-Pool", "x"),
            ("Millrace-Steal", "aws=0"),
            ("endpoint-load-metrics", "TEXT a=1"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-proto", "https"),
            ("expect", "100-continue"),
            ("authorization", "Bearer a"),
            ("x-api-key", "a"),
            ("tracestate", "a=1"),
        ] {
            header.append_header(name, value).unwrap();
        }
        let id: JobId = "a".parse().unwrap();
        let address = "10.0.0.9".parse().ok().map(address);
        let names = trace::adopt(&Glance::from(&header.headers));
        let sender = Sender { address, tls: false, secret: true, principal: None, names: &names };
        let steal = HeaderValue::from_static("gcp=42");
        request_header(&mut header, &Route::Submit, sender, Some(&id), Some(&steal)).unwrap();
        let get = |name: &str| header.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!((get("host"), get("x-forwarded-host")), (Some("video.example"), None));
        assert_eq!(get("x-forwarded-for"), Some("10.0.0.9"));
        assert_eq!(get("x-forwarded-proto"), None, "only TLS is told");
        assert_eq!((get("idempotency-key"), get("millrace-steal")), (Some("a"), Some("gcp=42")));
        assert_eq!(get("x-request-id"), names.request_id());
        assert_eq!(get("traceparent"), names.traceparent.to_str().ok());
        for gone in
            ["millrace-pool", "endpoint-load-metrics", "expect", "authorization", "x-api-key", "tracestate"]
        {
            assert_eq!(get(gone), None, "{gone}");
        }
    }

    #[test]
    fn what_may_be_tried_again() {
        let upload = Route::Upload { pool: "aws".parse().unwrap() };
        assert!(Failure::Timeout.retryable(&Route::Submit) && Failure::Timeout.outcome_unknown());
        assert!(Failure::Refused.retryable(&Route::Submit) && !Failure::Refused.outcome_unknown());
        assert!(Failure::Status(503).retryable(&Route::Read) && !Failure::Refused.retryable(&Route::Read));
        assert!(Failure::Connect.retryable(&upload) && !Failure::Broke.retryable(&upload));
        assert!(!Failure::Broke.retryable(&Route::Cancel) && !Failure::Broke.retryable(&Route::Retry));
        assert!(Failure::Refused.retryable(&Route::Retry) && !Failure::Status(503).retryable(&Route::Retry));
        let answer = |status| ResponseHeader::build(status, None).unwrap();
        let (read, media) = (Route::Read, Route::Media);
        let failed = Failure::of_answer(&answer(500), &Route::Submit);
        assert!(failed.is_some_and(|failure| failure.retryable(&Route::Submit)));
        assert_eq!(Failure::of_answer(&answer(501), &read), None, "no other worker knows better");
        assert_eq!(Failure::of_answer(&answer(503), &media), Some(Failure::Status(503)));
        let mut full = answer(503);
        full.insert_header("retry-after", "5").unwrap();
        assert_eq!(Failure::of_answer(&full, &read), Some(Failure::Status(503)));
        let busy = Failure::of_answer(&full, &media).unwrap();
        assert_eq!(busy, Failure::Busy);
        assert!(busy.retryable(&media) && !busy.blames_worker() && !busy.outcome_unknown());
    }
}
