//! `discover` of a pool: where its endpoints come from, beside those that the file lists.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::rr::Name;
use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

use super::value::{address, duration};

/// Least time between two lookups, and most, unless the file says otherwise.
pub const TTL_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a name that had addresses has to be without any until the pool is believed to be empty.
pub const EMPTY_AFTER: Duration = Duration::from_secs(60);

/// A source of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discover {
    /// A name in DNS.
    Dns(Dns),
    /// A service of the gateway's own cluster.
    Kubernetes(Kubernetes),
}

/// The EndpointSlices of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// The service's namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// The name of its port; empty for one without a name.
    pub port: String,
    /// The API server's address, of a `kubectl proxy`; by default the pod's service account is used.
    pub api: Option<SocketAddr>,
}

/// A name in DNS, and how it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The name. One that ends with a dot is complete; any other one is looked for in the system's search domains, too,
    /// unless `resolver` is given.
    pub name: Name,
    /// What it is asked for.
    pub record: Record,
    /// Least time between two lookups, whatever the records' TTL.
    pub min_ttl: Duration,
    /// Most time between two lookups, whatever the records' TTL.
    pub max_ttl: Duration,
    /// How long it has to be without addresses until that is believed.
    pub empty_after: Duration,
    /// Asked instead of the system's resolvers.
    pub resolver: Option<SocketAddr>,
}

/// What a name is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A and AAAA; all addresses have this port.
    Address {
        /// The port.
        port: u16,
    },
    /// SRV, and then A and AAAA of the targets.
    Service,
}

impl Discover {
    /// The key that names it in the file, and a metric label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dns(Dns { record: Record::Address { .. }, .. }) => "dns",
            Self::Dns(Dns { record: Record::Service, .. }) => "dns_srv",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

impl fmt::Display for Discover {
    /// As an operator sees it: `dns workers.example. port 9000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(Dns { name, record: Record::Address { port }, .. }) => {
                write!(f, "dns {name} port {port}")
            }
            Self::Dns(Dns { name, record: Record::Service, .. }) => write!(f, "dns_srv {name}"),
            Self::Kubernetes(Kubernetes { namespace, service, port, .. }) => {
                write!(f, "kubernetes {namespace}/{service} port {port}")
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    dns: Option<Spanned<String>>,
    dns_srv: Option<Spanned<String>>,
    port: Option<Spanned<u16>>,
    min_ttl: Option<Spanned<String>>,
    max_ttl: Option<Spanned<String>>,
    empty_after: Option<Spanned<String>>,
    resolver: Option<Spanned<String>>,
    kubernetes: Option<RawKubernetes>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKubernetes {
    namespace: Spanned<String>,
    service: Spanned<String>,
    port: Spanned<String>,
    api: Option<Spanned<String>>,
}

impl RawKubernetes {
    fn validate(self, file: &File, discover: &str) -> Result<Discover, Error> {
        let key = |name: &str| format!("{discover}.kubernetes.{name}");
        let label = |raw: Spanned<String>, name: &str, empty: bool| {
            let text = raw.get_ref().as_str();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let edges = text.starts_with('-') || text.ends_with('-');
            if text.len() > 63 || edges || !text.chars().all(plain) || (text.is_empty() && !empty) {
                let message = format!("{text:?} is no name; it wants one like \"workers\"");
                return Err(file.error_at(raw.span(), key(name), message));
            }
            Ok(raw.into_inner())
        };
        let api = match self.api {
            None => None,
            Some(raw) => {
                let server = address(file, raw.get_ref(), raw.span(), &key("api"))?;
                if !server.ip().is_loopback() || server.port() == 0 {
                    let message = format!(
                        "{server} is no kubectl proxy; it speaks HTTP without TLS, so it wants a loopback address"
                    );
                    return Err(file.error_at(raw.span(), key("api"), message));
                }
                Some(server)
            }
        };
        Ok(Discover::Kubernetes(Kubernetes {
            namespace: label(self.namespace, "namespace", false)?,
            service: label(self.service, "service", false)?,
            port: label(self.port, "port", true)?,
            api,
        }))
    }
}

impl Raw {
    /// `pool` is the pool's key, `pools[0]`.
    pub(super) fn validate(raw: Spanned<Self>, file: &File, pool: &str) -> Result<Discover, Error> {
        let (span, raw) = (raw.span(), raw.into_inner());
        let key = |name: &str| format!("{pool}.discover.{name}");
        if let Some(kubernetes) = raw.kubernetes {
            let times = [&raw.min_ttl, &raw.max_ttl, &raw.empty_after, &raw.resolver];
            let texts = times.into_iter().chain([&raw.dns, &raw.dns_srv]).flatten().map(Spanned::span);
            if let Some(span) = texts.chain(raw.port.as_ref().map(Spanned::span)).next() {
                let message = "this belongs to DNS, and kubernetes stands here; a pool has one source";
                return Err(file.error_at(span, format!("{pool}.discover"), message));
            }
            return kubernetes.validate(file, &format!("{pool}.discover"));
        }
        let (name, record) = match (raw.dns, raw.dns_srv, raw.port) {
            (Some(dns), None, Some(port)) => {
                if *port.get_ref() == 0 {
                    return Err(file.error_at(port.span(), key("port"), "0 is a port where nobody answers"));
                }
                (name(file, &dns, &key("dns"))?, Record::Address { port: *port.get_ref() })
            }
            (Some(dns), None, None) => {
                let message = "addresses come without a port; it wants port beside it, like port = 9000";
                return Err(file.error_at(dns.span(), key("dns"), message));
            }
            (None, Some(srv), None) => (name(file, &srv, &key("dns_srv"))?, Record::Service),
            (None, Some(_), Some(port)) => {
                let message = "SRV records bring their ports; it stands beside dns only";
                return Err(file.error_at(port.span(), key("port"), message));
            }
            (Some(_), Some(srv), _) => {
                let message = "dns stands there already; a pool has one name";
                return Err(file.error_at(srv.span(), key("dns_srv"), message));
            }
            (None, None, _) => {
                let message = "it names no source; it wants dns with port, dns_srv, or kubernetes";
                return Err(file.error_at(span, format!("{pool}.discover"), message));
            }
        };
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let ceiling_span = raw.max_ttl.as_ref().or(raw.min_ttl.as_ref()).map(Spanned::span);
        let least = Duration::from_millis(100);
        let min_ttl = duration(file, raw.min_ttl, &key("min_ttl"), TTL_BOUNDS.0, least, hour)?;
        let max_ttl = duration(file, raw.max_ttl, &key("max_ttl"), TTL_BOUNDS.1, second, hour)?;
        if max_ttl < min_ttl {
            let message = format!(
                "{} is below min_ttl, {}",
                humantime::format_duration(max_ttl),
                humantime::format_duration(min_ttl)
            );
            return Err(file.error_at(ceiling_span.unwrap_or(span), key("max_ttl"), message));
        }
        let empty_after =
            duration(file, raw.empty_after, &key("empty_after"), EMPTY_AFTER, Duration::ZERO, hour)?;
        let resolver = match raw.resolver {
            None => None,
            Some(raw) => {
                let server = address(file, raw.get_ref(), raw.span(), &key("resolver"))?;
                if server.port() == 0 {
                    return Err(file.error_at(raw.span(), key("resolver"), "it has port 0; DNS is at 53"));
                }
                Some(server)
            }
        };
        Ok(Discover::Dns(Dns { name, record, min_ttl, max_ttl, empty_after, resolver }))
    }
}

fn name(file: &File, raw: &Spanned<String>, key: &str) -> Result<Name, Error> {
    let wrong = |message| file.error_at(raw.span(), key, message);
    let text = raw.get_ref().as_str();
    if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
        return Err(wrong(format!("{text:?} is an address; those stand in `endpoints`")));
    }
    // `Name` would read escapes and take spaces; none of that is ever meant here.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match Name::from_ascii(text) {
        Ok(name) if name.num_labels() > 0 && text.chars().all(plain) => Ok(name),
        _ => Err(wrong(format!("{text:?} is no DNS name; it wants one like \"workers.example\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(pool: &str) -> Result<Config, Error> {
        let text = format!(
            "listen = {{ http = \"127.0.0.1:0\", admin = \"127.0.0.1:0\" }}\n[[pools]]\nname = \"aws\"\n{pool}"
        );
        Config::from_file(&File::from_text("routing.toml", text))
    }

    #[test]
    fn a_source_reads_with_its_defaults_beside_a_list_and_without_one() {
        let config = read("discover = { dns = \"w.example\", port = 9000 }").unwrap();
        assert!(config.pools[0].endpoints.is_empty());
        let discover = config.pools[0].discover.clone().unwrap();
        assert_eq!(discover.to_string(), "dns w.example port 9000");
        let Discover::Dns(dns) = discover else { panic!("not DNS") };
        assert_eq!((dns.min_ttl, dns.max_ttl), TTL_BOUNDS);
        assert_eq!((dns.empty_after, dns.resolver), (EMPTY_AFTER, None));
        let both = read(
            "endpoints = [\"127.0.0.1:1\"]\n[pools.discover]\ndns_srv = \"_http._tcp.w.example.\"\nresolver = \"[::1]:53\"",
        )
        .unwrap();
        assert_eq!(both.pools[0].endpoints.len(), 1);
        let Some(Discover::Dns(dns)) = &both.pools[0].discover else { panic!("no source") };
        assert_eq!(dns.record, Record::Service);
        assert_eq!(dns.resolver, Some("[::1]:53".parse().unwrap()));
        let cluster = "{ namespace = \"media\", service = \"workers\", port = \"http\" }";
        let config = read(&format!("discover = {{ kubernetes = {cluster} }}")).unwrap();
        let discover = config.pools[0].discover.as_ref().unwrap();
        assert_eq!(discover.to_string(), "kubernetes media/workers port http");
    }

    #[test]
    fn every_error_names_its_line_and_key() {
        let cases = [
            ("", ":3:8: pools[0].endpoints: pool aws has none"),
            ("endpoints = []", ":4:13: pools[0].endpoints: pool aws has none"),
            ("discover = {}", ":4:12: pools[0].discover: it names no source"),
            ("discover = { port = 1 }", ":4:12: pools[0].discover: it names no source"),
            ("discover = { dns = \"w\" }", ":4:20: pools[0].discover.dns: addresses come without a port"),
            ("discover = { dns = \"w\", port = 0 }", ":4:32: pools[0].discover.port: 0 is a port where"),
            ("discover = { dns = \"w\", port = 65536 }", ":4:32: discover: invalid value: integer `65536`"),
            ("discover = { dns_srv = \"w\", port = 1 }", ":4:36: pools[0].discover.port: SRV records bring"),
            (
                "discover = { dns = \"w\", dns_srv = \"w\", port = 1 }",
                ":4:35: pools[0].discover.dns_srv: dns stands there already",
            ),
            (
                "discover = { dns = \"10.0.0.1\", port = 1 }",
                ":4:20: pools[0].discover.dns: \"10.0.0.1\" is an address",
            ),
            ("discover = { dns = \"\", port = 1 }", ":4:20: pools[0].discover.dns: \"\" is no DNS name"),
            ("discover = { dns = \"a b\", port = 1 }", "pools[0].discover.dns: \"a b\" is no DNS name"),
            ("discover = { dns = \"a..b\", port = 1 }", "pools[0].discover.dns: \"a..b\" is no DNS name"),
            ("discover = { dns = \".\", port = 1 }", "pools[0].discover.dns: \".\" is no DNS name"),
            (
                "discover = { dns_srv = \"w\", min_ttl = \"0s\" }",
                ":4:39: pools[0].discover.min_ttl: 0s is out of range",
            ),
            (
                "discover = { dns_srv = \"w\", min_ttl = \"9s\", max_ttl = \"8s\" }",
                ":4:55: pools[0].discover.max_ttl: 8s is below min_ttl, 9s",
            ),
            (
                "discover = { dns_srv = \"w\", min_ttl = \"2m\" }",
                ":4:39: pools[0].discover.max_ttl: 1m is below min_ttl, 2m",
            ),
            (
                "discover = { dns_srv = \"w\", resolver = \"ns1\" }",
                ":4:40: pools[0].discover.resolver: \"ns1\" is no address",
            ),
            ("discover = { dns_srv = \"w\", ttl = \"1s\" }", "unknown field `ttl`"),
            ("discover = { kubernetes = { namespace = \"n\", service = \"s\" } }", "missing field `port`"),
            (
                "discover = { kubernetes = { namespace = \"n\", service = \"a/b\", port = \"\" } }",
                ":4:56: pools[0].discover.kubernetes.service: \"a/b\" is no name",
            ),
            (
                "discover = { kubernetes = { namespace = \"n\", service = \"s\", port = \"\", api = \"10.0.0.1:1\" } }",
                "pools[0].discover.kubernetes.api: 10.0.0.1:1 is no kubectl proxy",
            ),
            (
                "discover = { dns = \"w\", kubernetes = { namespace = \"n\", service = \"s\", port = \"\" } }",
                ":4:20: pools[0].discover: this belongs to DNS",
            ),
        ];
        for (pool, wants) in cases {
            let shown = read(pool).unwrap_err().to_string();
            assert!(shown.starts_with("routing.toml:"), "{shown}");
            assert!(shown.contains(wants), "{pool:?} gave {shown:?}, not {wants:?}");
        }
    }
}
