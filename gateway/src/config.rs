//! The routing file: raw TOML → [`Config`], validated as a whole.
//!
//! Every error names file, line, column and key. Unknown keys are refused, so that a misspelt one is seen before it
//! matters. Endpoints are addresses, never names: a name would have to be resolved while the file is swapped, and
//! what DNS says belongs to discovery, not to configuration; [`discover`] names it.

pub mod discover;

pub mod access_log;
pub mod auth;
pub mod https;
pub mod limits;
pub mod rate;

pub mod schema;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use millrace_runtime::config::{Error, File};
use millrace_wire::PoolId;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use toml::Spanned;

pub use discover::Discover;

/// Most pools of one file.
pub const POOLS_MAX: usize = 64;
/// Most endpoints of all pools together, those that discovery finds included.
pub const ENDPOINTS_MAX: usize = 4096;
/// Most further origins of the page: each stands in a header of every answer.
pub const ORIGINS_MAX: usize = 16;
/// Largest admin weight: above it, arithmetic with the smallest capacities would lose its meaning.
pub const WEIGHT_MAX: f64 = 1e6;
/// Largest price, in US dollars, of a gigabyte or of an hour of waiting.
pub const PRICE_MAX: f64 = 1e6;

/// What the gateway runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// How places are compared.
    pub routing: Routing,
    /// How long it waits for what.
    pub timeouts: Timeouts,
    /// How much one request may ask.
    pub limits: limits::Limits,
    /// How often one may ask; without, as often as one likes.
    pub rate: Option<rate::Rate>,
    /// Whom it serves; everybody without.
    pub auth: Option<auth::Auth>,
    /// What is written of requests.
    pub access_log: access_log::AccessLog,
    /// What the web page shows.
    pub page: Page,
    /// The pools, in the file's order.
    pub pools: Vec<Pool>,
}

/// Where the gateway listens. Changing it needs a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// For clients, without TLS.
    pub http: Option<SocketAddr>,
    /// For clients, with TLS. One of the two there is.
    pub https: Option<https::Https>,
    /// For operators; loopback only.
    pub admin: SocketAddr,
}

/// How places are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// US dollars that an hour of a job's waiting costs.
    pub wait_usd_per_hour: f64,
}

/// How long the gateway waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting to a worker.
    pub connect: Duration,
    /// A worker's answer to a submit, between two of its bytes.
    pub submit: Duration,
    /// A worker's answer about jobs; then another worker is asked.
    pub query: Duration,
    /// A worker's media, and a client's upload, between two of their bytes; event streams beat every 10 s.
    pub read: Duration,
    /// A worker's word that an upload is stored, after its last byte.
    pub upload: Duration,
    /// How long an unused connection to a worker stays open.
    pub idle: Duration,
    /// A client's whole job spec.
    pub body: Duration,
    /// A client's whole request header.
    pub header: Duration,
}

/// The web page at `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Whether there is one.
    pub enabled: bool,
    /// Whom the public listener tells of pools and workers. That is for operators: addresses, prices, load. The
    /// default is [`Audience::Local`] where none but this machine can connect, and else nobody. A reverse proxy on the
    /// same machine may ask by a loopback name for whoever asks it: say `false` there.
    pub pools: Audience,
    /// Further origins (`https://HOST`) that the page may upload to and play from, for an object store of its own.
    pub origins: Vec<String>,
}

/// Whom something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Nobody.
    Nobody,
    /// Who asks for this machine by a loopback name. A page elsewhere whose own name was made to lead here (DNS
    /// rebinding) asks by that name.
    Local,
    /// Whoever can connect.
    Anyone,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            submit: Duration::from_secs(10),
            query: Duration::from_secs(3),
            read: Duration::from_secs(20),
            upload: Duration::from_secs(300),
            idle: Duration::from_secs(10),
            body: Duration::from_secs(10),
            header: Duration::from_secs(10),
        }
    }
}

/// One pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Its name, which its workers report too.
    pub name: PoolId,
    /// The operator's preference; 0 gives it no new jobs.
    pub weight: f64,
    /// US dollars per gigabyte that leaves it.
    pub egress_usd_per_gb: f64,
    /// No new jobs; reads and ticketed uploads go on.
    pub drain: bool,
    /// Its workers, as far as the file lists them.
    pub endpoints: Vec<Endpoint>,
    /// Where others come from.
    pub discover: Option<Discover>,
}

/// One address of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// No new jobs; reads go on.
    pub drain: bool,
}

impl Config {
    /// Reads and validates a routing file.
    ///
    /// # Errors
    /// The first thing wrong, with its place.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_file(&File::read(path)?)
    }

    /// Validates a routing file that is already in memory.
    ///
    /// # Errors
    /// The first thing wrong, with its place.
    pub fn from_file(file: &File) -> Result<Self, Error> {
        file.parse::<Raw>()?.validate(file)
    }

    /// How many endpoints the file lists, in all pools.
    pub fn endpoint_count(&self) -> usize {
        self.pools.iter().map(|pool| pool.endpoints.len()).sum()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: RawListen,
    #[serde(default)]
    routing: RawRouting,
    #[serde(default)]
    timeouts: RawTimeouts,
    #[serde(default)]
    limits: limits::RawLimits,
    rate: Option<rate::RawRate>,
    auth: Option<auth::RawAuth>,
    #[serde(default)]
    access_log: access_log::RawAccessLog,
    #[serde(default)]
    page: RawPage,
    #[serde(default)]
    pools: Vec<RawPool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    http: Option<Spanned<String>>,
    https: Option<https::RawHttps>,
    admin: Spanned<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRouting {
    wait_usd_per_hour: Option<Spanned<f64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTimeouts {
    connect: Option<Spanned<String>>,
    submit: Option<Spanned<String>>,
    query: Option<Spanned<String>>,
    read: Option<Spanned<String>>,
    upload: Option<Spanned<String>>,
    idle: Option<Spanned<String>>,
    body: Option<Spanned<String>>,
    header: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPage {
    enabled: Option<bool>,
    pools: Option<bool>,
    #[serde(default)]
    origins: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPool {
    name: Spanned<String>,
    weight: Option<Spanned<f64>>,
    egress_usd_per_gb: Option<Spanned<f64>>,
    #[serde(default)]
    drain: bool,
    endpoints: Option<Spanned<Vec<Spanned<RawEndpoint>>>>,
    discover: Option<Spanned<discover::Raw>>,
}

/// `"ADDRESS"` or `{ address = "ADDRESS", drain = true }`. Read by hand: an untagged enum would answer a misspelt key
/// with "did not match any variant".
#[derive(Debug)]
struct RawEndpoint {
    address: String,
    drain: bool,
}

impl<'de> Deserialize<'de> for RawEndpoint {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            address: String,
            #[serde(default)]
            drain: bool,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RawEndpoint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an address like \"10.0.0.1:9001\" or { address = \"10.0.0.1:9001\", drain = true }",
                )
            }
            fn visit_str<E: de::Error>(self, address: &str) -> Result<RawEndpoint, E> {
                Ok(RawEndpoint { address: address.to_owned(), drain: false })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawEndpoint, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawEndpoint { address: table.address, drain: table.drain })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Raw {
    fn validate(self, file: &File) -> Result<Config, Error> {
        let listen = self.listen.validate(file)?;
        let wait = number(file, self.routing.wait_usd_per_hour.as_ref(), "routing.wait_usd_per_hour", 1.0)?;
        if let Some(raw) = &self.routing.wait_usd_per_hour
            && wait <= 0.0
        {
            let message = format!("{wait} is free waiting; it must be above 0");
            return Err(file.error_at(raw.span(), "routing.wait_usd_per_hour", message));
        }
        let timeouts = self.timeouts.validate(file)?;
        let limits = self.limits.validate(file)?;
        let access_log = self.access_log.validate(file)?;
        let rate = self.rate.map(|raw| raw.validate(file)).transpose()?;
        let auth = self.auth.map(|raw| raw.validate(file)).transpose()?;
        let page = self.page.validate(file, &listen)?;
        let pools = validate_pools(self.pools, file)?;
        Ok(Config {
            listen,
            routing: Routing { wait_usd_per_hour: wait },
            timeouts,
            limits,
            rate,
            auth,
            access_log,
            page,
            pools,
        })
    }
}

impl RawListen {
    fn validate(self, file: &File) -> Result<Listen, Error> {
        let http = self.http.map(|raw| address(file, raw.get_ref(), raw.span(), "listen.http"));
        let http = http.transpose()?;
        let https = self.https.map(|raw| raw.validate(file)).transpose()?;
        let public = [http, https.as_ref().map(|https| https.address)];
        if public == [None, None] {
            return Err(file.error("listen", "there is neither http nor https; clients need one of them"));
        }
        if let Some(http) = http
            && public[1] == Some(http)
            && http.port() != 0
        {
            return Err(https::error(file, "address", format!("{http} is listen.http too")));
        }
        let admin = address(file, self.admin.get_ref(), self.admin.span(), "listen.admin")?;
        if !admin.ip().is_loopback() {
            let message = format!(
                "{admin} is reachable from elsewhere, and the admin listener asks nobody for a token; \
                 it must be a loopback address like 127.0.0.1:{}",
                admin.port()
            );
            return Err(file.error_at(self.admin.span(), "listen.admin", message));
        }
        if public.contains(&Some(admin)) && admin.port() != 0 {
            let message = format!("{admin} is an address for clients too");
            return Err(file.error_at(self.admin.span(), "listen.admin", message));
        }
        Ok(Listen { http, https, admin })
    }
}

impl Listen {
    /// Whether clients can only be on this machine.
    pub fn is_loopback(&self) -> bool {
        let addresses = [self.http, self.https.as_ref().map(|https| https.address)];
        addresses.into_iter().flatten().all(|address| address.ip().is_loopback())
    }
}

impl RawTimeouts {
    fn validate(self, file: &File) -> Result<Timeouts, Error> {
        let or = Timeouts::default();
        let (ms, second, minute, hour) = (1, 1000, 60_000, 3_600_000);
        let read = |raw: Option<Spanned<String>>, key: &str, default, min_ms, max_ms| {
            duration(file, raw, key, default, Duration::from_millis(min_ms), Duration::from_millis(max_ms))
        };
        Ok(Timeouts {
            connect: read(self.connect, "timeouts.connect", or.connect, 10 * ms, minute)?,
            submit: read(self.submit, "timeouts.submit", or.submit, 50 * ms, 10 * minute)?,
            query: read(self.query, "timeouts.query", or.query, 50 * ms, minute)?,
            read: read(self.read, "timeouts.read", or.read, 50 * ms, hour)?,
            upload: read(self.upload, "timeouts.upload", or.upload, second, hour)?,
            idle: read(self.idle, "timeouts.idle", or.idle, second, hour)?,
            body: read(self.body, "timeouts.body", or.body, 50 * ms, 10 * minute)?,
            header: read(self.header, "timeouts.header", or.header, 50 * ms, 10 * minute)?,
        })
    }
}

impl RawPage {
    fn validate(self, file: &File, listen: &Listen) -> Result<Page, Error> {
        if self.origins.len() > ORIGINS_MAX {
            let message = format!("{} are too many; at most {ORIGINS_MAX}", self.origins.len());
            return Err(file.error("page.origins", message));
        }
        let mut origins = Vec::with_capacity(self.origins.len());
        for (place, raw) in self.origins.into_iter().enumerate() {
            let host =
                raw.get_ref().strip_prefix("https://").or_else(|| raw.get_ref().strip_prefix("http://"));
            // It becomes part of a header with a syntax of its own, so nothing else may be in it.
            let plain = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
            if !host.is_some_and(|host| !host.is_empty() && host.chars().all(plain)) {
                let message = format!(
                    "{:?} is no origin; it wants https://HOST or https://HOST:PORT without a path",
                    raw.get_ref()
                );
                return Err(file.error_at(raw.span(), format!("page.origins[{place}]"), message));
            }
            origins.push(raw.into_inner());
        }
        Ok(Page {
            enabled: self.enabled.unwrap_or(true),
            pools: match self.pools {
                Some(true) => Audience::Anyone,
                None if listen.is_loopback() => Audience::Local,
                _ => Audience::Nobody,
            },
            origins,
        })
    }
}

fn validate_pools(raw: Vec<RawPool>, file: &File) -> Result<Vec<Pool>, Error> {
    if raw.is_empty() {
        return Err(file.error("pools", "there is none; a gateway wants at least one [[pools]]"));
    }
    if raw.len() > POOLS_MAX {
        return Err(file.error("pools", format!("{} are too many; at most {POOLS_MAX}", raw.len())));
    }
    let mut owners: BTreeMap<SocketAddr, PoolId> = BTreeMap::new();
    let mut pools: Vec<Pool> = Vec::with_capacity(raw.len());
    let mut last_weight = None;
    for (index, raw) in raw.into_iter().enumerate() {
        let key = |name: &str| format!("pools[{index}].{name}");
        let name: PoolId = raw.name.get_ref().parse().map_err(|error: millrace_wire::id::BadName| {
            file.error_at(raw.name.span(), key("name"), error.to_string())
        })?;
        if pools.iter().any(|pool| pool.name == name) {
            return Err(file.error_at(
                raw.name.span(),
                key("name"),
                format!("{name} is the name of an earlier pool"),
            ));
        }
        let weight = number(file, raw.weight.as_ref(), &key("weight"), 1.0)?;
        if let Some(spanned) = &raw.weight {
            if weight > WEIGHT_MAX {
                let message = format!("{weight} is too much; at most {WEIGHT_MAX}");
                return Err(file.error_at(spanned.span(), key("weight"), message));
            }
            last_weight = Some((spanned.span(), key("weight")));
        }
        let egress_usd_per_gb = number(file, raw.egress_usd_per_gb.as_ref(), &key("egress_usd_per_gb"), 0.0)?;
        let discover = raw.discover.map(|raw| discover::Raw::validate(raw, file, &format!("pools[{index}]")));
        let discover = discover.transpose()?;
        let place = raw.endpoints.as_ref().map_or_else(|| raw.name.span(), Spanned::span);
        let listed = raw.endpoints.map(Spanned::into_inner).unwrap_or_default();
        if listed.is_empty() && discover.is_none() {
            let message = format!("pool {name} has none; it wants at least one address, or `discover`");
            return Err(file.error_at(place, key("endpoints"), message));
        }
        let mut endpoints = Vec::with_capacity(listed.len());
        for (place, spanned) in listed.into_iter().enumerate() {
            let (span, key) = (spanned.span(), format!("pools[{index}].endpoints[{place}]"));
            let RawEndpoint { address: text, drain } = spanned.into_inner();
            let address = address(file, &text, span.clone(), &key)?;
            if address.port() == 0 {
                return Err(file.error_at(span, key, format!("{address} has port 0, where nobody answers")));
            }
            if let Some(owner) = owners.insert(address, name.clone()) {
                let message = format!("{address} is already an endpoint of pool {owner}");
                return Err(file.error_at(span, key, message));
            }
            if owners.len() > ENDPOINTS_MAX {
                let message = format!("more than {ENDPOINTS_MAX} endpoints");
                return Err(file.error_at(span, key, message));
            }
            endpoints.push(Endpoint { address, drain });
        }
        pools.push(Pool { name, weight, egress_usd_per_gb, drain: raw.drain, endpoints, discover });
    }
    if let Some((span, key)) = last_weight
        && pools.iter().all(|pool| pool.weight == 0.0)
    {
        return Err(file.error_at(
            span,
            key,
            "every pool's weight is 0, so no job could go anywhere; one must be above 0",
        ));
    }
    Ok(pools)
}

fn address(file: &File, text: &str, span: std::ops::Range<usize>, key: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| {
        let message = format!("{text:?} is no address; it wants IP:PORT, like 127.0.0.1:9001 or [::1]:9001");
        file.error_at(span, key, message)
    })
}

fn number(file: &File, raw: Option<&Spanned<f64>>, key: &str, default: f64) -> Result<f64, Error> {
    let Some(raw) = raw else { return Ok(default) };
    let got = *raw.get_ref();
    if (0.0..=PRICE_MAX).contains(&got) {
        return Ok(got);
    }
    Err(file.error_at(
        raw.span(),
        key,
        format!("{got} is out of range; it wants a number from 0 to {PRICE_MAX}"),
    ))
}

fn duration(
    file: &File,
    raw: Option<Spanned<String>>,
    key: &str,
    default: Duration,
    min: Duration,
    max: Duration,
) -> Result<Duration, Error> {
    let Some(raw) = raw else { return Ok(default) };
    let span = raw.span();
    let text = raw.into_inner();
    let wants = format!(
        "it wants a time from {} to {}, like \"1500ms\" or \"10s\"",
        humantime::format_duration(min),
        humantime::format_duration(max)
    );
    match humantime::parse_duration(&text) {
        Ok(got) if (min..=max).contains(&got) => Ok(got),
        Ok(_) => Err(file.error_at(span, key, format!("{text} is out of range; {wants}"))),
        Err(_) => Err(file.error_at(span, key, format!("{text:?} is no time; {wants}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[listen]
http = "127.0.0.1:0"
admin = "127.0.0.1:0"
[[pools]]
name = "aws"
endpoints = ["127.0.0.1:9001", { address = "127.0.0.1:9002", drain = true }]
[[pools]]
name = "gcp"
weight = 2
egress_usd_per_gb = 0.12
drain = true
endpoints = ["[::1]:9001"]
"#;

    fn read(text: &str) -> Result<Config, Error> {
        Config::from_file(&File::from_text("routing.toml", text))
    }

    #[test]
    fn the_shape_reads_with_its_defaults() {
        let config = read(GOOD).unwrap();
        assert_eq!(config.timeouts, Timeouts::default());
        assert_eq!(config.routing.wait_usd_per_hour, 1.0);
        assert_eq!(config.endpoint_count(), 3);
        assert_eq!((config.pools[0].weight, config.pools[1].weight), (1.0, 2.0));
        assert!(config.pools[0].endpoints[1].drain && config.pools[1].drain);
    }

    #[test]
    fn the_example_file_is_valid() {
        let text = include_str!("../routing.example.toml");
        let config = Config::from_file(&File::from_text("routing.example.toml", text)).unwrap();
        assert_eq!(config.timeouts, Timeouts::default(), "the example shows the defaults");
        assert_eq!(config.limits, limits::Limits::default(), "the example shows the defaults");
        assert_eq!(config.access_log, access_log::AccessLog::default(), "the example shows the defaults");
        assert_eq!(config.pools.len(), 2);
    }

    #[test]
    fn pools_are_shown_in_public_only_where_nobody_else_can_ask_unless_said_so() {
        let page = |http: &str, page: &str| {
            let file =
                GOOD.replacen("127.0.0.1:0", http, 1).replacen("[[pools]]", &format!("{page}\n[[pools]]"), 1);
            read(&file).unwrap().page
        };
        for (http, section, pools) in [
            ("127.0.0.1:0", "", Audience::Local),
            ("[::1]:0", "", Audience::Local),
            ("0.0.0.0:8080", "", Audience::Nobody),
            ("[::]:8080", "", Audience::Nobody),
            ("127.0.0.1:0", "[page]\npools = false", Audience::Nobody),
            ("0.0.0.0:8080", "[page]\npools = true", Audience::Anyone),
        ] {
            assert_eq!(page(http, section).pools, pools, "{http} {section}");
        }
        assert!(page("0.0.0.0:8080", "").enabled && !page("127.0.0.1:0", "[page]\nenabled = false").enabled);
        let origins = page("127.0.0.1:0", "[page]\norigins = [\"https://b.example:9000\"]").origins;
        assert_eq!(origins, ["https://b.example:9000"]);
    }

    #[test]
    fn every_error_names_its_line_and_key() {
        let cases = [
            ("name = \"gcp\"", "name = \"aws\"", ":9:8: pools[1].name: aws is the name of an earlier pool"),
            (
                "\"[::1]:9001\"",
                "\"127.0.0.1:9001\"",
                ":13:14: pools[1].endpoints[0]: 127.0.0.1:9001 is already",
            ),
            ("\"[::1]:9001\"", "", ":13:13: pools[1].endpoints: pool gcp has none"),
            (
                "\"[::1]:9001\"",
                "\"worker-1:9001\"",
                ":13:14: pools[1].endpoints[0]: \"worker-1:9001\" is no address",
            ),
            ("\"[::1]:9001\"", "\"127.0.0.1:0\"", ":13:14: pools[1].endpoints[0]: 127.0.0.1:0 has port 0"),
            ("weight = 2", "weight = -1", ":10:10: pools[1].weight: -1 is out of range"),
            ("weight = 2", "weight = nan", ":10:10: pools[1].weight: NaN is out of range"),
            ("weight = 2", "weight = \"x\"", ":10:10: weight: invalid type: string"),
            ("0.12", "inf", ":11:21: pools[1].egress_usd_per_gb: inf is out of range"),
            ("drain = true }", "drian = true }", ":7:62: endpoints: unknown field `drian`"),
            ("[[pools]]", "colour = 1\n[[pools]]", "unknown field `colour`"),
            (
                "[[pools]]",
                "[routing]\nwait_usd_per_hour = 0\n[[pools]]",
                ":6:21: routing.wait_usd_per_hour: 0 is free",
            ),
            (
                "[[pools]]",
                "[timeouts]\nsubmit = \"1h\"\n[[pools]]",
                ":6:10: timeouts.submit: 1h is out of range",
            ),
            (
                "[[pools]]",
                "[page]\norigins = [\"https://b.example; script-src *\"]\n[[pools]]",
                ":6:12: page.origins[0]: \"https://b.example; script-src *\" is no origin",
            ),
            (
                "[[pools]]",
                "[timeouts]\nread = \"soon\"\n[[pools]]",
                ":6:8: timeouts.read: \"soon\" is no time",
            ),
            (
                "admin = \"127.0.0.1:0\"",
                "admin = \"0.0.0.0:1\"",
                ":4:9: listen.admin: 0.0.0.0:1 is reachable",
            ),
            (
                "[[pools]]",
                "[access_log]\nsample = 1.5\n[[pools]]",
                ":6:10: access_log.sample: 1.5 is no share",
            ),
            (
                "[[pools]]",
                "[rate]\nper_second = 0\nburst = 1\n[[pools]]",
                ":6:14: rate.per_second: 0 is out of range",
            ),
            (
                "[[pools]]",
                "[rate]\nper_second = 1\nburst = 0\n[[pools]]",
                ":7:9: rate.burst: 0 is out of range",
            ),
            ("http = \"127.0.0.1:0\"", "http = \"here\"", ":3:8: listen.http: \"here\" is no address"),
        ];
        for (from, to, wants) in cases {
            let shown = read(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(shown.starts_with("routing.toml:"), "{shown}");
            assert!(shown.contains(wants), "{to:?} gave {shown:?}, not {wants:?}");
        }
        let idle = GOOD.replace("weight = 2", "weight = 0").replacen(
            "name = \"aws\"",
            "name = \"aws\"\nweight = 0",
            1,
        );
        let shown = read(&idle).unwrap_err().to_string();
        assert!(shown.contains(":11:10: pools[1].weight: every pool's weight is 0"), "{shown}");
        let none = GOOD.split("[[pools]]").next().unwrap();
        assert!(read(none).unwrap_err().to_string().contains("pools: there is none"));
    }
}
