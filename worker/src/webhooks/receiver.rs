//! Who may be told, and the sending itself.
//!
//! A client chooses the URL, so the same holds as for sources: an address is checked where it is connected to, redirects
//! are not followed, and the environment's proxies are ignored. Of an answer only its head counts; its body is not read.

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use url::{Host, Url};

use super::secret::Secrets;
use crate::source::address::{Allowed, Refused};
use crate::source::resolve::{Lookup, Resolver};

/// For one connection, name look-up and handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its name, the same however often it is sent.
    pub id: String,
    /// JSON.
    pub body: Vec<u8>,
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the job's owner reads.
    pub detail: String,
    /// When the receiver wants it again, if it said so.
    pub retry_after: Option<Duration>,
    /// It wants none any more.
    pub gone: bool,
}

impl Refusal {
    fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), retry_after: None, gone: false }
    }
}

/// Speaks to receivers.
pub struct Receivers {
    signs: bool,
    timeout: Duration,
    /// Over TLS: what is public, and the networks that are allowed besides.
    secure: (Client, Allowed),
    /// Without: those networks alone.
    plain: (Client, Allowed),
    has_plain: bool,
}

impl Receivers {
    /// Without `signs` there are none. Networks of `allow_private` may be told although they are private, and in plain HTTP.
    ///
    /// # Errors
    /// When the TLS stack cannot be set up.
    pub fn new(signs: bool, allow_private: Vec<IpNet>, timeout: Duration) -> Result<Self, reqwest::Error> {
        Self::resolving(signs, allow_private, timeout, None)
    }

    /// The same, with somebody else to ask for addresses than the system.
    pub(crate) fn resolving(
        signs: bool,
        allow_private: Vec<IpNet>,
        timeout: Duration,
        lookup: Option<&Lookup>,
    ) -> Result<Self, reqwest::Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let has_plain = !allow_private.is_empty();
        let client = |allowed: Allowed| {
            let resolver = match lookup {
                None => Resolver::system(allowed.clone()),
                Some(lookup) => Resolver::asking(allowed.clone(), Arc::clone(lookup)),
            };
            let client = Client::builder()
                .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(Arc::new(resolver))
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .referer(false)
                .timeout(timeout)
                .connect_timeout(CONNECT_TIMEOUT.min(timeout))
                .pool_max_idle_per_host(0)
                .build()?;
            Ok::<_, reqwest::Error>((client, allowed))
        };
        let secure = client(Allowed::new(allow_private.clone()))?;
        let plain = client(Allowed::only(allow_private))?;
        Ok(Self { signs, timeout, secure, plain, has_plain })
    }

    /// Whether a job may name this URL. Names are looked up when they are told, not here.
    ///
    /// # Errors
    /// Why not, as a client reads it.
    pub fn check(&self, url: &str) -> Result<(), String> {
        if !self.signs {
            return Err(
                "webhook_url: this deployment tells nobody, because its workers have no secret to sign with \
                        (--webhook-secret-file)"
                    .to_owned(),
            );
        }
        self.target(url).map(drop).map_err(|refusal| format!("webhook_url {}", refusal.detail))
    }

    /// The URL and by which client it is told. An address in the URL itself is never resolved, so it is checked here.
    fn target(&self, url: &str) -> Result<(Url, &Client), Refusal> {
        let url = Url::parse(url).map_err(|_| Refusal::new("is no URL that can be read"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::new("must hold no user and no password: the signature says who sends"));
        }
        let (client, allowed) = match url.scheme() {
            "https" => &self.secure,
            "http" if self.has_plain => &self.plain,
            _ => return Err(Refusal::new("must be https")),
        };
        let address = match url.host() {
            Some(Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
            Some(Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
            Some(Host::Domain(_)) => None,
            None => return Err(Refusal::new("must name a host")),
        };
        if let Some(address) = address {
            allowed.check(address).map_err(|refused| address_refused(&refused))?;
        }
        Ok((url, client))
    }

    /// Sends a message once, signed as of `now`.
    ///
    /// # Errors
    /// It was not taken: any answer but 2xx, or none.
    pub async fn send(
        &self,
        url: &str,
        message: &Message,
        secrets: &Secrets,
        now: jiff::Timestamp,
    ) -> Result<(), Refusal> {
        let (url, client) = self.target(url)?;
        let timestamp = now.as_second();
        let signature = secrets.sign(&message.id, timestamp, &message.body);
        let sent = client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(message.body.clone())
            .send();
        let answer = sent.await.map_err(|error| self.broken(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Err(Refusal {
            detail: format!("the receiver answered {}", status.as_u16()),
            retry_after: after.map(Duration::from_secs),
            gone: status.as_u16() == 410,
        })
    }

    fn broken(&self, error: &reqwest::Error) -> Refusal {
        let mut causes = std::iter::successors(error.source(), |cause| (*cause).source());
        if let Some(refused) = causes.find_map(|cause| cause.downcast_ref::<Refused>()) {
            return address_refused(refused);
        }
        if distrusted(error) {
            return Refusal::new("the receiver's certificate is not trusted");
        }
        Refusal::new(match (error.is_timeout(), error.is_connect()) {
            (true, _) => {
                format!("the receiver did not answer within {}", humantime::format_duration(self.timeout))
            }
            (_, true) => "the receiver could not be reached".to_owned(),
            _ => "the connection to the receiver broke".to_owned(),
        })
    }
}

/// Whether TLS ended with a certificate that is not believed. What it says stands inside of errors of the connection, not
/// behind them.
fn distrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match inside {
        Some(inside) => distrusted(inside),
        None => error.source().is_some_and(distrusted),
    }
}

fn address_refused(refused: &Refused) -> Refusal {
    Refusal::new(match refused.reason {
        "public" => "leads out of the networks that may be told without TLS: must be https".to_owned(),
        reason => format!("leads to an address that is refused: {reason}"),
    })
}
