//! `[listen.https]`: where the gateway serves TLS, and with which files.
//!
//! Only the shape is checked here. What the files hold is [`millrace_runtime::tls`]'s business: a certificate is exchanged while
//! the routing file stays as it is.

use std::net::SocketAddr;
use std::path::PathBuf;

use millrace_runtime::config::{Error, File};
use millrace_runtime::tls::{Clients, Pair, Server};
use serde::Deserialize;
use toml::Spanned;

use super::value;

/// The TLS listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Https {
    /// Where it listens. Changing it needs a restart.
    pub address: SocketAddr,
    /// Its certificate, and whom it believes.
    pub files: Server,
}

/// What clients may speak, the first one preferred.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttps {
    address: Spanned<String>,
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    client_ca: Option<Spanned<PathBuf>>,
    client_certificates: Option<Spanned<Clients>>,
}

impl RawHttps {
    pub(super) fn validate(self, file: &File) -> Result<Https, Error> {
        let address =
            value::address(file, self.address.get_ref(), self.address.span(), "listen.https.address")?;
        if let (None, Some(wanted)) = (&self.client_ca, &self.client_certificates) {
            let message =
                "it wants listen.https.client_ca beside it: without that, no client could be believed";
            return Err(file.error_at(wanted.span(), "listen.https.client_certificates", message));
        }
        let path = |raw, key: &str| value::path(file, raw, &format!("listen.https.{key}"));
        let own = Pair { certificate: path(self.certificate, "certificate")?, key: path(self.key, "key")? };
        let client_ca = self.client_ca.map(|raw| path(raw, "client_ca")).transpose()?;
        let clients = self.client_certificates.map_or(Clients::Required, Spanned::into_inner);
        Ok(Https { address, files: Server { own, client_ca, clients, alpn: ALPN } })
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
        assert_eq!(found.files.own.certificate, Path::new("/etc/millrace/a.pem"), "beside the routing file");
        assert_eq!((found.files.own.key.as_path(), &found.files.client_ca), (Path::new("/k/a.key"), &None));
        assert_eq!(config.page.pools, Audience::Nobody, "not where everybody can ask");
        let both = read(&format!("http = \"127.0.0.1:0\"\n{https}client_ca = \"ca.pem\"")).unwrap();
        let found = both.listen.https.unwrap();
        assert_eq!(found.files.clients, Clients::Required, "a CA alone means it");
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
