//! `[listen.https]`: where the gateway serves TLS, and with which files.
//!
//! Only the shape is checked here. What the files hold is [`crate::tls`]'s business: a certificate is exchanged while
//! the routing file stays as it is.

use std::net::SocketAddr;
use std::path::PathBuf;

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

/// The TLS listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Https {
    /// Where it listens. Changing it needs a restart.
    pub address: SocketAddr,
    /// The chain, PEM, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key of the first certificate, PEM.
    pub key: PathBuf,
    /// The certificates that clients' own must come from, PEM.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must have one.
    pub client_certificates: ClientCertificates,
}

/// What is asked of clients, where `client_ca` says whom to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// One may be shown; a wrong one is refused.
    Optional,
    /// One must be shown.
    Required,
}

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttps {
    address: Spanned<String>,
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    client_ca: Option<Spanned<PathBuf>>,
    client_certificates: Option<Spanned<ClientCertificates>>,
}

impl RawHttps {
    pub(super) fn validate(self, file: &File) -> Result<Https, Error> {
        let address =
            super::value::address(file, self.address.get_ref(), self.address.span(), "listen.https.address")?;
        // Beside the routing file, wherever the process was started.
        let path = |raw: Spanned<PathBuf>, key: &str| {
            if raw.get_ref().as_os_str().is_empty() {
                return Err(file.error_at(raw.span(), key, "it is empty; it wants the path of a PEM file"));
            }
            let beside = file.path().parent().map(|folder| folder.join(raw.get_ref()));
            Ok(beside.unwrap_or_else(|| raw.get_ref().clone()))
        };
        if let (None, Some(wanted)) = (&self.client_ca, &self.client_certificates) {
            let message =
                "it wants listen.https.client_ca beside it: without that, no client could be believed";
            return Err(file.error_at(wanted.span(), "listen.https.client_certificates", message));
        }
        Ok(Https {
            address,
            certificate: path(self.certificate, "listen.https.certificate")?,
            key: path(self.key, "listen.https.key")?,
            client_ca: self.client_ca.map(|raw| path(raw, "listen.https.client_ca")).transpose()?,
            client_certificates: self
                .client_certificates
                .map_or(ClientCertificates::Required, Spanned::into_inner),
        })
    }
}

/// An error about one of the section's keys, at its place. The resolved section has no places any more, so this reads
/// the file again.
pub fn error(file: &File, key: &str, message: String) -> Error {
    #[derive(Deserialize)]
    struct Sections {
        listen: Section,
    }
    #[derive(Deserialize)]
    struct Section {
        https: std::collections::BTreeMap<String, Spanned<toml::Value>>,
    }
    let full = format!("listen.https.{key}");
    let read: Option<Sections> = toml::from_str(file.text()).ok();
    match read.as_ref().and_then(|read| read.listen.https.get(key)) {
        Some(value) => file.error_at(value.span(), full, message),
        None => file.error(full, message),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Audience, Config};

    fn read(section: &str) -> Result<Config, Error> {
        let text = format!(
            "[listen]\nadmin = \"127.0.0.1:0\"\n{section}\n[[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:9001\"]\n"
        );
        Config::from_file(&File::from_text("/etc/millrace/routing.toml", text))
    }

    #[test]
    fn tls_may_stand_beside_the_plain_listener_or_alone() {
        let https =
            "[listen.https]\naddress = \"0.0.0.0:8443\"\ncertificate = \"a.pem\"\nkey = \"/k/a.key\"\n";
        let config = read(https).unwrap();
        let found = config.listen.https.unwrap();
        assert_eq!(config.listen.http, None);
        assert_eq!(found.certificate, Path::new("/etc/millrace/a.pem"), "beside the routing file");
        assert_eq!((found.key.as_path(), &found.client_ca), (Path::new("/k/a.key"), &None));
        assert_eq!(config.page.pools, Audience::Nobody, "not where everybody can ask");
        let both = read(&format!("http = \"127.0.0.1:0\"\n{https}client_ca = \"ca.pem\"")).unwrap();
        let found = both.listen.https.unwrap();
        assert_eq!(found.client_certificates, ClientCertificates::Required, "a CA alone means it");
        assert!(both.listen.http.is_some() && both.page.pools == Audience::Nobody);
    }

    #[test]
    fn every_error_names_its_line_and_key() {
        let https = "[listen.https]\naddress = \"0.0.0.0:8443\"\ncertificate = \"a.pem\"\nkey = \"a.key\"\n";
        let with = |more: &str| read(&format!("{https}{more}")).unwrap_err().to_string();
        let shown = with("client_certificates = \"optional\"");
        assert!(
            shown.contains(":7:23: listen.https.client_certificates: it wants listen.https.client_ca"),
            "{shown}"
        );
        let shown = with("client_certificates = \"maybe\"\nclient_ca = \"c\"");
        assert!(shown.contains(":7:23: client_certificates: unknown variant `maybe`"), "{shown}");
        let shown = with("chain = \"x\"");
        assert!(shown.contains(":7:1: ") && shown.contains("unknown field `chain`"), "{shown}");
        let shown = read("").unwrap_err().to_string();
        assert!(shown.contains("listen: there is neither http nor https"), "{shown}");
        let shown = read(&https.replace("a.key", "")).unwrap_err().to_string();
        assert!(shown.contains(":6:7: listen.https.key: it is empty"), "{shown}");
        let same = format!("http = \"127.0.0.1:8443\"\n{}", https.replace("0.0.0.0", "127.0.0.1"));
        let shown = read(&same).unwrap_err().to_string();
        assert!(shown.contains("listen.https.address: 127.0.0.1:8443 is listen.http too"), "{shown}");
    }
}
