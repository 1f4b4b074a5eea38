//! `[upstream_tls]`: whom the gateway believes to be a worker, and what it shows workers of itself.
//!
//! There is no key that turns verification off. A worker is known by the server name that its pool says, else by the
//! section's, else by its own address, which then stands in its certificate: an empty name would verify nothing in
//! Pingora, so none can be said. Discovery finds addresses, not names, so what it finds is known in the same way.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use millrace_runtime::config::{Error, File};
use millrace_runtime::tls::{Client, Pair};
use rustls::pki_types::DnsName;
use serde::Deserialize;
use toml::Spanned;

use super::value;

/// What certificates of workers have to name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerName {
    /// This name.
    Dns(Arc<str>),
    /// The IP address that is connected to.
    Address,
}

impl ServerName {
    /// What the certificate of the worker at that address names. Never empty.
    pub fn of(&self, address: SocketAddr) -> Arc<str> {
        match self {
            Self::Dns(name) => name.clone(),
            Self::Address => address.ip().to_string().into(),
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Address => f.write_str("its address"),
        }
    }
}

/// The section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The CA, and the gateway's own certificate.
    pub files: Client,
    /// How workers are known whose pool says nothing else.
    pub server_name: ServerName,
}

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstreamTls {
    ca: Spanned<PathBuf>,
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
    server_name: Option<Spanned<String>>,
}

impl RawUpstreamTls {
    pub(super) fn validate(self, file: &File) -> Result<UpstreamTls, Error> {
        let path = |raw, key: &str| value::path(file, raw, &format!("upstream_tls.{key}"));
        let alone = |raw: &Spanned<PathBuf>, key: &str, other: &str| {
            let message = format!("it wants upstream_tls.{other} beside it");
            file.error_at(raw.span(), format!("upstream_tls.{key}"), message)
        };
        let own = match (self.certificate, self.key) {
            (None, None) => None,
            (Some(certificate), None) => return Err(alone(&certificate, "certificate", "key")),
            (None, Some(key)) => return Err(alone(&key, "key", "certificate")),
            (Some(certificate), Some(key)) => {
                Some(Pair { certificate: path(certificate, "certificate")?, key: path(key, "key")? })
            }
        };
        let name = self.server_name.map(|raw| name(file, &raw, "upstream_tls.server_name")).transpose()?;
        Ok(UpstreamTls {
            files: Client { ca: path(self.ca, "ca")?, own },
            server_name: name.unwrap_or(ServerName::Address),
        })
    }
}

/// A pool's `tls` and `server_name`; `pool` is its key, `pools[0]`.
pub(super) fn of_pool(
    file: &File,
    tls: Option<Spanned<bool>>,
    server_name: Option<Spanned<String>>,
    section: Option<&UpstreamTls>,
    pool: &str,
) -> Result<Option<ServerName>, Error> {
    let own = server_name.as_ref().map(|raw| name(file, raw, &format!("{pool}.server_name"))).transpose()?;
    let Some(tls) = tls.filter(|tls| *tls.get_ref()) else {
        return match server_name {
            None => Ok(None),
            Some(raw) => {
                let message = "it wants tls = true beside it: without TLS nobody is known by a name";
                Err(file.error_at(raw.span(), format!("{pool}.server_name"), message))
            }
        };
    };
    let Some(section) = section else {
        let message = "it wants a section [upstream_tls] with the workers' ca: without that, no worker could be believed";
        return Err(file.error_at(tls.span(), format!("{pool}.tls"), message));
    };
    Ok(Some(own.unwrap_or_else(|| section.server_name.clone())))
}

fn name(file: &File, raw: &Spanned<String>, key: &str) -> Result<ServerName, Error> {
    let text = raw.get_ref().as_str();
    if text.parse::<IpAddr>().is_ok() {
        let message = format!(
            "{text:?} is an address; left out, each worker is known by its own, and a name is one like \"workers.internal\""
        );
        return Err(file.error_at(raw.span(), key, message));
    }
    // Pingora would look for another name than one with an underscore.
    if DnsName::try_from(text).is_err() || text.contains('_') {
        let message = format!("{text:?} is no DNS name; it wants one like \"workers.internal\"");
        return Err(file.error_at(raw.span(), key, message));
    }
    Ok(ServerName::Dns(text.into()))
}

/// An error about one of the section's keys, at its place. The resolved section has no places any more, so this reads
/// the file again.
pub fn error(file: &File, key: &str, message: String) -> Error {
    #[derive(Deserialize)]
    struct Sections {
        upstream_tls: std::collections::BTreeMap<String, Spanned<toml::Value>>,
    }
    let full = format!("upstream_tls.{key}");
    let read: Option<Sections> = toml::from_str(file.text()).ok();
    match read.as_ref().and_then(|read| read.upstream_tls.get(key)) {
        Some(value) => file.error_at(value.span(), full, message),
        None => file.error(full, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(section: &str, pool: &str) -> Result<Config, Error> {
        let text = format!(
            "listen = {{ http = \"127.0.0.1:0\", admin = \"127.0.0.1:0\" }}\n{section}\n[[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:1\"]\n{pool}"
        );
        Config::from_file(&File::from_text("/etc/millrace/routing.toml", text))
    }

    #[test]
    fn a_worker_is_known_by_its_pools_name_or_the_sections_or_its_address() {
        let name = |section: &str, pool: &str| {
            let config = read(&format!("[upstream_tls]\nca = \"ca.pem\"\n{section}"), pool).unwrap();
            config.pools[0].tls.as_ref().map(|name| name.of("[::1]:9000".parse().unwrap()).to_string())
        };
        let section = "server_name = \"workers.internal\"";
        assert_eq!(name(section, ""), None, "a section alone changes no pool");
        assert_eq!(name(section, "tls = false"), None);
        assert_eq!(name("", "tls = true").as_deref(), Some("::1"));
        assert_eq!(name(section, "tls = true").as_deref(), Some("workers.internal"));
        assert_eq!(name(section, "tls = true\nserver_name = \"a.b\"").as_deref(), Some("a.b"));
        let config = read("[upstream_tls]\nca = \"ca.pem\"\ncertificate = \"c\"\nkey = \"/k\"", "").unwrap();
        let files = config.upstream_tls.unwrap().files;
        assert_eq!(files.ca, PathBuf::from("/etc/millrace/ca.pem"), "beside the routing file");
        assert_eq!(files.own.unwrap().key, PathBuf::from("/k"));
    }

    #[test]
    fn every_error_names_its_line_and_key() {
        let section = "[upstream_tls]\nca = \"ca.pem\"";
        let cases = [
            ("", "tls = true", ":6:7: pools[0].tls: it wants a section [upstream_tls]"),
            (section, "server_name = \"a.b\"", "pools[0].server_name: it wants tls = true"),
            (section, "tls = true\nserver_name = \"\"", ":8:15: pools[0].server_name: \"\" is no DNS name"),
            (section, "tls = true\nserver_name = \"a b\"", "pools[0].server_name: \"a b\" is no DNS name"),
            (
                section,
                "tls = true\nserver_name = \"10.0.0.1\"",
                "pools[0].server_name: \"10.0.0.1\" is an address",
            ),
            (section, "tls = 1", "invalid type"),
            ("[upstream_tls]", "", "missing field `ca`"),
            ("[upstream_tls]\nca = \"\"", "", ":3:6: upstream_tls.ca: it is empty"),
            (
                "[upstream_tls]\nca = \"a\"\nkey = \"k\"",
                "",
                ":4:7: upstream_tls.key: it wants upstream_tls.certificate",
            ),
            (
                "[upstream_tls]\nca = \"a\"\ncertificate = \"k\"",
                "",
                ":4:15: upstream_tls.certificate: it wants upstream_tls.key",
            ),
            ("[upstream_tls]\nca = \"a\"\nverify = false", "", "unknown field `verify`"),
            (
                "[upstream_tls]\nca = \"a\"\nserver_name = \"\"",
                "",
                ":4:15: upstream_tls.server_name: \"\" is no",
            ),
        ];
        for (section, pool, wants) in cases {
            let shown = read(section, pool).unwrap_err().to_string();
            assert!(shown.starts_with("/etc/millrace/routing.toml:"), "{shown}");
            assert!(shown.contains(wants), "{section:?} {pool:?} gave {shown:?}, not {wants:?}");
        }
    }
}
