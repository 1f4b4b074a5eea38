//! `[listen]`: where clients and operators reach the gateway.

use std::net::SocketAddr;

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

use super::{https, value};

/// Where the gateway listens. Changing it needs a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// For clients, without TLS.
    pub http: Option<SocketAddr>,
    /// For clients, with TLS. One of the two there is.
    pub https: Option<https::Https>,
    /// For operators: on loopback, or with keys.
    pub admin: SocketAddr,
    /// Whether operators must show a key of `[auth]` whose role is operator.
    pub admin_auth: bool,
    /// For Prometheus and for probes, who have no key: `/metrics`, `/livez` and `/readyz` alone.
    pub metrics: Option<SocketAddr>,
}

impl Listen {
    /// Whether clients can only be on this machine.
    pub fn is_loopback(&self) -> bool {
        let addresses = [self.http, self.https.as_ref().map(|https| https.address)];
        addresses.into_iter().flatten().all(|address| address.ip().is_loopback())
    }
}

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListen {
    http: Option<Spanned<String>>,
    https: Option<https::RawHttps>,
    admin: Spanned<String>,
    admin_auth: Option<Spanned<bool>>,
    metrics: Option<Spanned<String>>,
}

impl RawListen {
    /// `keys`: whether there is an `[auth]` section to ask for keys by.
    pub(super) fn validate(self, file: &File, keys: bool) -> Result<Listen, Error> {
        let http = self.http.map(|raw| value::address(file, raw.get_ref(), raw.span(), "listen.http"));
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
        let admin = value::address(file, self.admin.get_ref(), self.admin.span(), "listen.admin")?;
        let elsewhere = !admin.ip().is_loopback();
        let admin_auth = self.admin_auth.as_ref().map_or(elsewhere, |raw| *raw.get_ref());
        if elsewhere && !(admin_auth && keys) {
            let message = format!(
                "{admin} is reachable from elsewhere; it wants [auth] and no `admin_auth = false`, so that only \
                 operators' keys are served, or a loopback address like 127.0.0.1:{}",
                admin.port()
            );
            return Err(file.error_at(self.admin.span(), "listen.admin", message));
        }
        if let Some(raw) = self.admin_auth.filter(|_| admin_auth && !keys) {
            let message = "it asks for keys, and there is no [auth] that says which";
            return Err(file.error_at(raw.span(), "listen.admin_auth", message));
        }
        if public.contains(&Some(admin)) && admin.port() != 0 {
            let message = format!("{admin} is an address for clients too");
            return Err(file.error_at(self.admin.span(), "listen.admin", message));
        }
        let metrics = match self.metrics {
            None => None,
            Some(raw) => {
                let metrics = value::address(file, raw.get_ref(), raw.span(), "listen.metrics")?;
                if [public[0], public[1], Some(admin)].contains(&Some(metrics)) && metrics.port() != 0 {
                    let message = format!("{metrics} is another listener's address");
                    return Err(file.error_at(raw.span(), "listen.metrics", message));
                }
                Some(metrics)
            }
        };
        Ok(Listen { http, https, admin, admin_auth, metrics })
    }
}
