//! The routing file: raw TOML → [`Config`], validated as a whole.
//!
//! Every error names file, line, column and key. Unknown keys are refused, so that a misspelt one is seen before it
//! matters. Endpoints are addresses, never names: a name would have to be resolved while the file is swapped, and
//! what DNS says belongs to discovery, not to configuration; [`discover`] names it.

pub mod access_log;
pub mod auth;
pub mod cors;
pub mod discover;
pub mod https;
pub mod limits;
pub mod listen;
pub mod page;
pub mod pools;
pub mod rate;
pub mod schema;
pub mod timeouts;
pub mod upstream_tls;
mod value;

use std::path::Path;

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

pub use discover::Discover;
pub use listen::Listen;
pub use page::{Audience, Page};
pub use pools::{ENDPOINTS_MAX, Endpoint, POOLS_MAX, Pool, WEIGHT_MAX};
pub use timeouts::Timeouts;
pub use value::PRICE_MAX;

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
    /// Which other sites' pages may use the API; none without.
    pub cors: Option<cors::Cors>,
    /// What is written of requests.
    pub access_log: access_log::AccessLog,
    /// What the web page shows.
    pub page: Page,
    /// How it speaks TLS to workers, where a pool says so.
    pub upstream_tls: Option<upstream_tls::UpstreamTls>,
    /// The pools, in the file's order.
    pub pools: Vec<Pool>,
}

/// How places are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// US dollars that an hour of a job's waiting costs.
    pub wait_usd_per_hour: f64,
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

    /// How often one address may be refused for a key or token that is no good.
    pub fn refusals(&self) -> rate::Rate {
        self.rate.unwrap_or(rate::REFUSALS)
    }

    /// How many endpoints the file lists, in all pools.
    pub fn endpoint_count(&self) -> usize {
        self.pools.iter().map(|pool| pool.endpoints.len()).sum()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: listen::RawListen,
    #[serde(default)]
    routing: RawRouting,
    #[serde(default)]
    timeouts: timeouts::RawTimeouts,
    #[serde(default)]
    limits: limits::RawLimits,
    rate: Option<rate::RawRate>,
    auth: Option<auth::RawAuth>,
    cors: Option<cors::RawCors>,
    #[serde(default)]
    access_log: access_log::RawAccessLog,
    #[serde(default)]
    page: page::RawPage,
    upstream_tls: Option<upstream_tls::RawUpstreamTls>,
    #[serde(default)]
    pools: Vec<pools::RawPool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRouting {
    wait_usd_per_hour: Option<Spanned<f64>>,
}

impl Raw {
    fn validate(self, file: &File) -> Result<Config, Error> {
        let listen = self.listen.validate(file, self.auth.is_some())?;
        let wait =
            value::number(file, self.routing.wait_usd_per_hour.as_ref(), "routing.wait_usd_per_hour", 1.0)?;
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
        let cors = self.cors.map(|raw| raw.validate(file)).transpose()?;
        let page = self.page.validate(file, &listen)?;
        let upstream_tls = self.upstream_tls.map(|raw| raw.validate(file)).transpose()?;
        let pools = pools::validate(self.pools, upstream_tls.as_ref(), file)?;
        Ok(Config {
            listen,
            routing: Routing { wait_usd_per_hour: wait },
            timeouts,
            limits,
            rate,
            auth,
            cors,
            access_log,
            page,
            upstream_tls,
            pools,
        })
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
        let rate::Rate { per_second, burst } = config.refusals();
        assert!(
            text.contains(&format!("at most {per_second} per second and {burst} at once")),
            "it tells that default"
        );
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
