//! `[[pools]]`: where work can go, what it costs there, and how it is preferred.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use millrace_runtime::config::{Error, File};
use millrace_wire::PoolId;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use toml::Spanned;

use super::discover::{self, Discover};
use super::upstream_tls::{self, ServerName, UpstreamTls};
use super::value;

/// Most pools of one file.
pub const POOLS_MAX: usize = 64;
/// Most endpoints of all pools together, those that discovery finds included.
pub const ENDPOINTS_MAX: usize = 4096;
/// Largest admin weight: above it, arithmetic with the smallest capacities would lose its meaning.
pub const WEIGHT_MAX: f64 = 1e6;

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
    /// How its workers are known over TLS; without, they are spoken to in plain.
    pub tls: Option<ServerName>,
}

/// One address of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// No new jobs; reads go on.
    pub drain: bool,
}

/// One pool as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPool {
    name: Spanned<String>,
    weight: Option<Spanned<f64>>,
    egress_usd_per_gb: Option<Spanned<f64>>,
    #[serde(default)]
    drain: bool,
    endpoints: Option<Spanned<Vec<Spanned<RawEndpoint>>>>,
    discover: Option<Spanned<discover::Raw>>,
    tls: Option<Spanned<bool>>,
    server_name: Option<Spanned<String>>,
}

/// `"ADDRESS"` or `{ address = "ADDRESS", drain = true }`. Read by hand: an untagged enum would answer a misspelt key
/// with "did not match any variant".
#[derive(Debug)]
pub(super) struct RawEndpoint {
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

pub(super) fn validate(
    raw: Vec<RawPool>,
    section: Option<&UpstreamTls>,
    file: &File,
) -> Result<Vec<Pool>, Error> {
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
        let weight = value::number(file, raw.weight.as_ref(), &key("weight"), 1.0)?;
        if let Some(spanned) = &raw.weight {
            if weight > WEIGHT_MAX {
                let message = format!("{weight} is too much; at most {WEIGHT_MAX}");
                return Err(file.error_at(spanned.span(), key("weight"), message));
            }
            last_weight = Some((spanned.span(), key("weight")));
        }
        let egress_usd_per_gb =
            value::number(file, raw.egress_usd_per_gb.as_ref(), &key("egress_usd_per_gb"), 0.0)?;
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
            let address = value::address(file, &text, span.clone(), &key)?;
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
        let at = format!("pools[{index}]");
        let tls = upstream_tls::of_pool(file, raw.tls, raw.server_name, section, &at)?;
        pools.push(Pool { name, weight, egress_usd_per_gb, drain: raw.drain, endpoints, discover, tls });
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
