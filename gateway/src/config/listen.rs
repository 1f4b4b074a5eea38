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
    /// For operators; loopback only.
    pub admin: SocketAddr,
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
}

impl RawListen {
    pub(super) fn validate(self, file: &File) -> Result<Listen, Error> {
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
