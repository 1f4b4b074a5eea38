//! A Kubernetes service of the gateway's own cluster as a source: its EndpointSlices, watched.
//!
//! The watch lists, follows, and lists again when the server forgot where it was (410 Gone) or the connection broke,
//! with the back-off of Kubernetes's own clients; meanwhile what is known stays. A list that has no endpoints is
//! believed at once: unlike a zone of DNS, the API server knows.
//!
//! An endpoint that is ready is there; one that terminates is drained, ready or not, until it leaves its slice: its
//! worker ends what it has and answers reads as long as the probes find it. A pod of two families is in a slice of each
//! and is one worker still: IPv4 counts. An address in two slices, which happens while the controller moves it, is
//! drained if either says so.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use tokio::time::Instant;

use super::{Discovery, Outcome, Round, plausible};
use crate::config::discover::Kubernetes;
use crate::config::{ENDPOINTS_MAX, Endpoint};

/// The label by which a slice says whose it is.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// How long the first list may take until that is said; it is waited for all the same.
pub const LIST_MAX: Duration = Duration::from_secs(10);
/// Before another try to make a client, when the pod's service account cannot be read.
const RETRY: Duration = Duration::from_secs(5);

type Events = BoxStream<'static, Result<Event<EndpointSlice>, watcher::Error>>;

/// A service that is followed.
pub struct Source {
    of: Kubernetes,
    /// The API server, and who the gateway is there; without, as the pod's service account says.
    server: Option<kube::Config>,
    events: Option<Events>,
    due: Option<Instant>,
    /// By the slice's name.
    slices: HashMap<String, EndpointSlice>,
    /// The list that is being made.
    listing: HashMap<String, EndpointSlice>,
    /// There has been a whole list.
    listed: bool,
}

#[async_trait]
impl Discovery for Source {
    async fn next(&mut self) -> Round {
        if let Some(due) = self.due.take() {
            tokio::time::sleep_until(due).await;
        }
        let started = Instant::now();
        loop {
            let events = match &mut self.events {
                Some(events) => events,
                None => match watch(&self.of, self.server.clone()) {
                    Ok(events) => self.events.insert(events),
                    Err(error) => {
                        self.due = Some(Instant::now() + RETRY);
                        return failed(&format!("no client: {}", chain(&*error)));
                    }
                },
            };
            let event = if self.listed {
                events.next().await
            } else {
                match tokio::time::timeout_at(started + LIST_MAX, events.next()).await {
                    Ok(event) => event,
                    Err(_) => return failed(&format!("no list within {} s", LIST_MAX.as_secs())),
                }
            };
            match event {
                Some(Ok(event)) => {
                    if self.take(event) {
                        return self.round();
                    }
                }
                Some(Err(error)) => {
                    if unauthorized(&error) {
                        // The token of the service account was exchanged. A client reads it again within a minute;
                        // another client does so at once.
                        self.events = None;
                        self.listed = false;
                        self.due = Some(Instant::now() + RETRY);
                    }
                    return failed(&chain(&error));
                }
                None => self.events = None,
            }
        }
    }
}

impl Source {
    /// A source that has not been asked.
    pub fn new(of: Kubernetes) -> Self {
        let (slices, listing) = (HashMap::new(), HashMap::new());
        Self { of, server: None, events: None, due: None, slices, listing, listed: false }
    }

    /// A source that asks that API server, whatever the pod's service account says.
    #[must_use]
    pub fn at(self, server: kube::Config) -> Self {
        Self { server: Some(server), ..self }
    }

    /// Takes an event in; answers whether the slices are now other ones, and all.
    fn take(&mut self, event: Event<EndpointSlice>) -> bool {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(slice) => {
                self.listing.insert(slice.name_any(), slice);
            }
            Event::InitDone => {
                self.slices = std::mem::take(&mut self.listing);
                self.listed = true;
                return true;
            }
            Event::Apply(slice) => {
                self.slices.insert(slice.name_any(), slice);
                return self.listed;
            }
            Event::Delete(slice) => {
                self.slices.remove(&slice.name_any());
                return self.listed;
            }
        }
        false
    }

    fn round(&self) -> Round {
        let (endpoints, error) = endpoints(self.slices.values(), &self.of.port);
        let count = endpoints.len();
        let outcome = match (count, &error) {
            (count, _) if count > ENDPOINTS_MAX => {
                let error = format!("{count} endpoints are too many; at most {ENDPOINTS_MAX}");
                return Round { endpoints: None, outcome: Outcome::Refused, error: Some(error) };
            }
            (0, _) => Outcome::Empty,
            (_, Some(_)) => Outcome::Refused,
            (_, None) => Outcome::Good,
        };
        let error = error.or_else(|| (count == 0).then(|| "the service has no endpoints".to_owned()));
        Round { endpoints: Some(endpoints), outcome, error }
    }
}

/// The endpoints of all slices, and what is wrong with some of them.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &str,
) -> (Vec<Endpoint>, Option<String>) {
    let mut error = None;
    let mut wrong = |slice: &EndpointSlice, why: String| {
        error.get_or_insert_with(|| format!("slice {}: {why}", slice.name_any()));
    };
    // By address: whether it is drained, and the pod.
    let mut found: BTreeMap<SocketAddr, (bool, Option<&str>)> = BTreeMap::new();
    for slice in slices {
        let listed = slice.endpoints.iter();
        let mut ports = slice.ports.iter().flatten();
        let named = ports.find(|known| {
            known.name.as_deref().unwrap_or_default() == port
                && known.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
        });
        let number = named.and_then(|named| named.port).and_then(|number| u16::try_from(number).ok());
        let Some(number) = number.filter(|number| *number != 0) else {
            // A service without pods has slices without ports.
            if !slice.endpoints.is_empty() {
                wrong(slice, format!("it has no port {port:?}"));
            }
            continue;
        };
        for endpoint in listed {
            let said = |read: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
                endpoint.conditions.as_ref().and_then(read)
            };
            let terminating = said(|conditions| conditions.terminating).unwrap_or(false);
            // Nothing said counts as ready, says the API.
            if !terminating && !said(|conditions| conditions.ready).unwrap_or(true) {
                continue;
            }
            let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.uid.as_deref());
            // All addresses of one endpoint reach the same pod.
            match endpoint.addresses.first().map(|text| text.parse::<IpAddr>()) {
                Some(Ok(ip)) if plausible(ip) => {
                    let known = found.entry((ip.to_canonical(), number).into()).or_insert((false, pod));
                    known.0 |= terminating;
                }
                Some(_) => wrong(slice, format!("{:?} is no address of a worker", endpoint.addresses[0])),
                None => wrong(slice, "an endpoint has no address".to_owned()),
            }
        }
    }
    let v4: Vec<&str> =
        found.iter().filter(|(at, _)| at.is_ipv4()).filter_map(|(_, (_, pod))| *pod).collect();
    let v4: std::collections::HashSet<&str> = v4.into_iter().collect();
    let twin = |at: &SocketAddr, pod: Option<&str>| at.is_ipv6() && pod.is_some_and(|pod| v4.contains(pod));
    let kept = found.iter().filter(|(at, (_, pod))| !twin(at, *pod));
    (kept.map(|(address, (drain, _))| Endpoint { address: *address, drain: *drain }).collect(), error)
}

fn watch(
    of: &Kubernetes,
    server: Option<kube::Config>,
) -> Result<Events, Box<dyn std::error::Error + Send + Sync>> {
    let mut config = match (server, of.api) {
        (Some(server), _) => server,
        (None, Some(api)) => kube::Config::new(format!("http://{api}").parse()?),
        (None, None) => kube::Config::incluster()?,
    };
    // The watch comes back by itself.
    config.default_retry = false;
    let api: Api<EndpointSlice> = Api::namespaced(Client::try_from(config)?, &of.namespace);
    let wanted = watcher::Config::default().labels(&format!("{SERVICE_LABEL}={}", of.service));
    Ok(watcher::watcher(api, wanted).default_backoff().boxed())
}

/// Whether the API server does not know us (any more).
fn unauthorized(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error)
    | watcher::Error::WatchStartFailed(error)
    | watcher::Error::WatchFailed(error)) = error
    else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 401)
}

fn failed(why: &str) -> Round {
    Round { endpoints: None, outcome: Outcome::Failed, error: Some(why.to_owned()) }
}

/// An error with its causes: the outer ones say only what was tried.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    text
}
