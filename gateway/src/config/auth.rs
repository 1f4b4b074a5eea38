//! `[auth]`: whom the gateway believes, by API keys or by tokens. Without it nobody is asked who he is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

use super::value;
use crate::auth::{Role, is_plain};

/// Whom the gateway serves. Changing it needs a restart, so that no reload opens or shuts the door by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// The file of keys; [`crate::auth::load`] says what is in it.
    pub keys: Option<PathBuf>,
    /// Which tokens are good.
    pub jwt: Option<Jwt>,
}

/// Which JSON Web Tokens are good, and what they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// Where the keys are that they are signed with.
    pub jwks: Jwks,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must be, or have among others; at least one.
    pub audience: Vec<String>,
    /// How far the issuer's clock may be off.
    pub leeway: Duration,
    /// The claim with a principal's name. Beginning with `/` it is a JSON Pointer.
    pub name_claim: String,
    /// The claim with its roles.
    pub role_claim: String,
    /// The claim with its tenant.
    pub tenant_claim: String,
    /// What the role claim's values mean here; empty: they are our roles' own names.
    pub roles: BTreeMap<String, Role>,
    /// The role of tokens without that claim.
    pub role: Option<Role>,
    /// The tenant of tokens without that claim.
    pub tenant: Option<String>,
}

/// Where a set of keys is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jwks {
    /// A file beside the routing file, followed.
    File(PathBuf),
    /// An address, asked again after what its answers say, within bounds.
    Url {
        /// `https`; `http` on loopback only.
        url: reqwest::Url,
        /// The certificates that its own must come from, PEM; those of the system without.
        ca: Option<PathBuf>,
        /// Least time between two answers.
        min_refresh: Duration,
        /// Most time between two answers.
        max_refresh: Duration,
    },
}

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    keys: Option<Spanned<PathBuf>>,
    jwt: Option<Spanned<RawJwt>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJwt {
    jwks: Spanned<String>,
    ca: Option<Spanned<PathBuf>>,
    min_refresh: Option<Spanned<String>>,
    max_refresh: Option<Spanned<String>>,
    issuer: Spanned<String>,
    audience: Spanned<Vec<String>>,
    leeway: Option<Spanned<String>>,
    name_claim: Option<Spanned<String>>,
    role_claim: Option<Spanned<String>>,
    tenant_claim: Option<Spanned<String>>,
    #[serde(default)]
    roles: BTreeMap<String, Role>,
    role: Option<Role>,
    tenant: Option<Spanned<String>>,
}

impl RawAuth {
    pub(super) fn validate(self, file: &File) -> Result<Auth, Error> {
        if self.keys.is_none() && self.jwt.is_none() {
            let message = "it has neither keys nor jwt, so nobody could ask for anything";
            return Err(file.error("auth", message));
        }
        let keys = self.keys.map(|raw| path(file, &raw, "auth.keys")).transpose()?;
        let jwt = self.jwt.map(|raw| raw.into_inner().validate(file)).transpose()?;
        Ok(Auth { keys, jwt })
    }
}

fn path(file: &File, raw: &Spanned<PathBuf>, key: &str) -> Result<PathBuf, Error> {
    if raw.get_ref().as_os_str().is_empty() {
        return Err(file.error_at(raw.span(), key, "it is empty; it wants the path of a file"));
    }
    let beside = file.path().parent().map(|folder| folder.join(raw.get_ref()));
    Ok(beside.unwrap_or_else(|| raw.get_ref().clone()))
}

/// Whether only this machine can answer there. Of names only the one that cannot lead elsewhere (RFC 6761, 6.3).
fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl RawJwt {
    fn validate(self, file: &File) -> Result<Jwt, Error> {
        let text = |raw: Spanned<String>, key: &str| match raw.get_ref().as_str() {
            "" => Err(file.error_at(raw.span(), format!("auth.jwt.{key}"), "it is empty")),
            _ => Ok(raw.into_inner()),
        };
        let named = |raw: Option<Spanned<String>>, key: &str, default: &str| {
            raw.map_or_else(|| Ok(default.to_owned()), |raw| text(raw, key))
        };
        let place = self.audience.span();
        let audience = self.audience.into_inner();
        if audience.is_empty() || audience.iter().any(String::is_empty) {
            let message = "it wants at least one name, and none that is empty: who asks says whom he asks";
            return Err(file.error_at(place, "auth.jwt.audience", message));
        }
        if let Some(tenant) = self.tenant.as_ref().filter(|tenant| !is_plain(tenant.get_ref())) {
            let message = format!("{:?} is no tenant; it has 1 to 64 of A-Z a-z 0-9 . _ -", tenant.get_ref());
            return Err(file.error_at(tenant.span(), "auth.jwt.tenant", message));
        }
        let (seconds, day) = (Duration::from_secs, Duration::from_secs(24 * 3600));
        let min = value::duration(
            file,
            self.min_refresh.clone(),
            "auth.jwt.min_refresh",
            seconds(60),
            seconds(1),
            day,
        )?;
        let max = value::duration(
            file,
            self.max_refresh.clone(),
            "auth.jwt.max_refresh",
            seconds(3600).max(min),
            min,
            day,
        )?;
        let url = ["http://", "https://"].iter().any(|scheme| self.jwks.get_ref().starts_with(scheme));
        let jwks = if url {
            let url = reqwest::Url::parse(self.jwks.get_ref()).map_err(|bad| {
                file.error_at(self.jwks.span(), "auth.jwt.jwks", format!("it is no URL: {bad}"))
            })?;
            if !url.username().is_empty() || url.password().is_some() {
                let message =
                    "it holds a name or password, which do not belong into this file; such keys are public";
                return Err(file.error_at(self.jwks.span(), "auth.jwt.jwks", message));
            }
            if url.scheme() == "http" && !is_loopback(&url) {
                let host = url.host_str().unwrap_or_default();
                let message = format!(
                    "http://{host} is asked without TLS, and who answers in its place lets in whom he likes; it wants \
                     https, or http on a loopback address"
                );
                return Err(file.error_at(self.jwks.span(), "auth.jwt.jwks", message));
            }
            let ca = self.ca.map(|raw| path(file, &raw, "auth.jwt.ca")).transpose()?;
            Jwks::Url { url, ca, min_refresh: min, max_refresh: max }
        } else {
            let useless = [
                ("ca", self.ca.as_ref().map(Spanned::span)),
                ("min_refresh", self.min_refresh.as_ref().map(Spanned::span)),
                ("max_refresh", self.max_refresh.as_ref().map(Spanned::span)),
            ];
            if let Some((key, span)) = useless.into_iter().find_map(|(key, span)| Some((key, span?))) {
                let message = "it is for a URL in auth.jwt.jwks; a file is looked at all the time";
                return Err(file.error_at(span, format!("auth.jwt.{key}"), message));
            }
            let raw = Spanned::new(self.jwks.span(), PathBuf::from(self.jwks.into_inner()));
            Jwks::File(path(file, &raw, "auth.jwt.jwks")?)
        };
        Ok(Jwt {
            jwks,
            issuer: text(self.issuer, "issuer")?,
            audience,
            leeway: value::duration(
                file,
                self.leeway,
                "auth.jwt.leeway",
                seconds(30),
                Duration::ZERO,
                seconds(300),
            )?,
            name_claim: named(self.name_claim, "name_claim", "sub")?,
            role_claim: named(self.role_claim, "role_claim", "role")?,
            tenant_claim: named(self.tenant_claim, "tenant_claim", "tenant")?,
            roles: self.roles,
            role: self.role,
            tenant: self.tenant.map(Spanned::into_inner),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn read(section: &str) -> Result<Config, Error> {
        let text = format!(
            "[listen]\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{section}\n\
             [[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:9001\"]\n"
        );
        Config::from_file(&File::from_text("/etc/millrace/routing.toml", text))
    }

    const JWT: &str = "[auth.jwt]\njwks = \"https://id.example/keys\"\nissuer = \"i\"\naudience = [\"a\"]\n";

    #[test]
    fn keys_and_tokens_may_stand_alone_or_beside_each_other() {
        let auth = read(&format!("[auth]\nkeys = \"k\"\n{JWT}")).unwrap().auth.unwrap();
        assert_eq!(auth.keys.as_deref(), Some(Path::new("/etc/millrace/k")));
        let jwt = auth.jwt.unwrap();
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let url = "https://id.example/keys".parse().unwrap();
        assert_eq!(jwt.jwks, Jwks::Url { url, ca: None, min_refresh: minute, max_refresh: hour });
        let claims = [jwt.name_claim.as_str(), &jwt.role_claim, &jwt.tenant_claim];
        assert_eq!((claims, jwt.leeway), (["sub", "role", "tenant"], Duration::from_secs(30)));
        let file = read(&JWT.replace("https://id.example/keys", "jwks.json")).unwrap().auth.unwrap();
        assert_eq!(file.jwt.unwrap().jwks, Jwks::File("/etc/millrace/jwks.json".into()));
        assert!(file.keys.is_none());
    }

    #[test]
    fn keys_come_without_tls_only_from_this_machine() {
        let asked = |url: &str| read(&JWT.replace("https://id.example/keys", url));
        for url in ["http://127.0.0.1:9/k", "http://127.8.9.1/k", "http://[::1]:9/k", "http://LOCALHOST/k"] {
            assert!(asked(url).is_ok(), "{url}");
        }
        for url in [
            "http://id.example/k",
            "http://10.0.0.1/k",
            "http://localhost.example/k",
            "http://127.0.0.1.example/k",
            "http://127.0.0.1@id.example/k",
            "http://[::ffff:10.0.0.1]/k",
            "http://0.0.0.0/k",
        ] {
            let shown = asked(url).unwrap_err().to_string();
            assert!(shown.contains(":5:8: auth.jwt.jwks: "), "{url} gave {shown}");
        }
        let shown = asked("http://id.example/k").unwrap_err().to_string();
        assert!(shown.contains("http://id.example is asked without TLS") && shown.contains("wants https"));
    }

    #[test]
    fn every_error_names_its_line_and_key() {
        for (section, wants) in [
            ("[auth]\n".to_owned(), "auth: it has neither keys nor jwt"),
            ("[auth]\nkeys = \"\"".to_owned(), ":5:8: auth.keys: it is empty"),
            (JWT.replace("\"i\"", "\"\""), ":6:10: auth.jwt.issuer: it is empty"),
            (JWT.replace("[\"a\"]", "[]"), ":7:12: auth.jwt.audience: it wants at least one name"),
            (JWT.replace("issuer = \"i\"\n", ""), "missing field `issuer`"),
            (JWT.replace("audience = [\"a\"]\n", ""), "missing field `audience`"),
            (JWT.replace("id.example", "["), ":5:8: auth.jwt.jwks: it is no URL"),
            (
                JWT.replace("id.example", "me:secret@id.example"),
                ":5:8: auth.jwt.jwks: it holds a name or password",
            ),
            (format!("{JWT}leeway = \"1h\""), ":8:10: auth.jwt.leeway: 1h is out of range"),
            (format!("{JWT}min_refresh = \"0s\""), ":8:15: auth.jwt.min_refresh: 0s is out of range"),
            (
                format!("{JWT}min_refresh = \"2h\"\nmax_refresh = \"1h\""),
                ":9:15: auth.jwt.max_refresh: 1h is out of range; it wants a time from 2h",
            ),
            (format!("{JWT}role = \"root\""), ":8:8: role: unknown variant `root`"),
            (format!("{JWT}roles = {{ x = \"root\" }}"), "unknown variant `root`"),
            (format!("{JWT}tenant = \"a/b\""), ":8:10: auth.jwt.tenant: \"a/b\" is no tenant"),
            (format!("{JWT}algorithm = \"none\""), "unknown field `algorithm`"),
            (
                JWT.replace("https://id.example/keys", "f") + "ca = \"c\"",
                ":8:6: auth.jwt.ca: it is for a URL in auth.jwt.jwks",
            ),
        ] {
            let shown = read(&section).unwrap_err().to_string();
            assert!(shown.contains(wants), "{section} gave {shown}");
        }
    }
}
