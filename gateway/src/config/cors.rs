//! `[cors]`: which other sites' pages may use the API. Without it none may; media and events have rules of their own.

use std::time::Duration;

use http::HeaderValue;
use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

use super::value;

/// Most origins.
pub const ORIGINS_MAX: usize = 64;
/// What pages may send, if the file does not say: what the API reads.
const HEADERS: &[&str] = &[
    "authorization",
    "content-type",
    "idempotency-key",
    "last-event-id",
    "range",
    "traceparent",
    "x-api-key",
    "x-request-id",
];
/// With what pages may ask, if the file does not say: what the API takes.
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE"];

/// Which pages may use the API, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Whose pages.
    pub origins: Origins,
    /// Whether a browser may send what it keeps for this origin by itself: cookies, client certificates.
    pub credentials: bool,
    /// The value of `Access-Control-Allow-Methods`.
    pub methods: HeaderValue,
    /// The value of `Access-Control-Allow-Headers`.
    pub headers: HeaderValue,
    /// The value of `Access-Control-Max-Age`, in seconds.
    pub max_age: HeaderValue,
}

/// Whose pages may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// All sites'.
    Any,
    /// These sites', as browsers write them.
    Only(Vec<HeaderValue>),
}

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCors {
    origins: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    credentials: bool,
    methods: Option<Spanned<Vec<Spanned<String>>>>,
    headers: Option<Spanned<Vec<Spanned<String>>>>,
    max_age: Option<Spanned<String>>,
}

impl RawCors {
    pub(super) fn validate(self, file: &File) -> Result<Cors, Error> {
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
        let max_age =
            value::duration(file, self.max_age, "cors.max_age", Duration::from_secs(7200), second, day)?;
        Ok(Cors {
            origins: origins(file, &self.origins, self.credentials)?,
            credentials: self.credentials,
            methods: list(file, self.methods.as_ref(), "methods", METHODS, |name| {
                http::Method::from_bytes(name.as_bytes()).is_ok()
                    && name.bytes().all(|c| c.is_ascii_uppercase())
            })?,
            // `*` would not let `authorization` in, and is a name where credentials are sent.
            headers: list(file, self.headers.as_ref(), "headers", HEADERS, |name| {
                name != "*" && http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            })?,
            max_age: HeaderValue::from(max_age.as_secs()),
        })
    }
}

fn origins(file: &File, raw: &Spanned<Vec<Spanned<String>>>, credentials: bool) -> Result<Origins, Error> {
    let listed = raw.get_ref();
    if listed.is_empty() || listed.len() > ORIGINS_MAX {
        let message = format!("{} origins; it wants 1 to {ORIGINS_MAX}, or no section", listed.len());
        return Err(file.error_at(raw.span(), "cors.origins", message));
    }
    let mut only = Vec::with_capacity(listed.len());
    for (place, raw) in listed.iter().enumerate() {
        let wrong = |message: String| file.error_at(raw.span(), format!("cors.origins[{place}]"), message);
        let text = raw.get_ref().as_str();
        if text == "*" {
            if credentials {
                return Err(wrong(
                    "any site could act for whoever visits it; with credentials, name each".to_owned(),
                ));
            }
            if listed.len() > 1 {
                return Err(wrong("it stands alone: it means all sites".to_owned()));
            }
            return Ok(Origins::Any);
        }
        // It is compared byte by byte with what browsers write, so it must be written like that. `null` is any file and
        // any sandboxed frame.
        let written = reqwest::Url::parse(text).ok().map(|url| url.origin());
        match written
            .filter(|origin| origin.is_tuple() && !text.contains('*') && origin.ascii_serialization() == text)
        {
            Some(_) => only.push(HeaderValue::from_str(text).map_err(|bad| wrong(bad.to_string()))?),
            None => {
                return Err(wrong(format!(
                    "{text:?} is no origin; it wants https://HOST or https://HOST:PORT in lower case, without a path \
                     or a default port, or \"*\" alone"
                )));
            }
        }
    }
    Ok(Origins::Only(only))
}

fn list(
    file: &File,
    raw: Option<&Spanned<Vec<Spanned<String>>>>,
    key: &str,
    default: &[&str],
    good: impl Fn(&str) -> bool,
) -> Result<HeaderValue, Error> {
    let joined = match raw {
        None => default.join(", "),
        Some(raw) => {
            for (place, name) in raw.get_ref().iter().enumerate() {
                if !good(name.get_ref()) {
                    let message = format!("{:?} is none", name.get_ref());
                    return Err(file.error_at(name.span(), format!("cors.{key}[{place}]"), message));
                }
            }
            raw.get_ref().iter().map(|name| name.get_ref().as_str()).collect::<Vec<_>>().join(", ")
        }
    };
    Ok(HeaderValue::from_str(&joined).expect("names of methods and headers are header values"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(section: &str) -> Result<Config, Error> {
        let text = format!(
            "[listen]\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[cors]\n{section}\n\
             [[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:9001\"]\n"
        );
        Config::from_file(&File::from_text("routing.toml", text))
    }

    #[test]
    fn origins_are_what_browsers_write_or_all() {
        let cors =
            read("origins = [\"https://a.example\", \"http://localhost:5173\"]").unwrap().cors.unwrap();
        let Origins::Only(origins) = &cors.origins else { panic!("{cors:?}") };
        assert_eq!(origins, &["https://a.example", "http://localhost:5173"]);
        assert_eq!((cors.max_age.to_str().unwrap(), cors.credentials), ("7200", false));
        assert!(cors.headers.to_str().unwrap().starts_with("authorization, content-type, "));
        assert_eq!(read("origins = [\"*\"]").unwrap().cors.unwrap().origins, Origins::Any);
        let own =
            read("origins = [\"*\"]\nmethods = [\"GET\"]\nheaders = [\"X-Own\"]\nmax_age = \"1m\"").unwrap();
        let own = own.cors.unwrap();
        assert_eq!((own.methods.as_bytes(), own.headers.as_bytes()), (&b"GET"[..], &b"X-Own"[..]));
    }

    #[test]
    fn every_error_names_its_line_and_key() {
        for (section, wants) in [
            ("", "missing field `origins`"),
            ("origins = []", ":5:11: cors.origins: 0 origins"),
            ("origins = [\"*\"]\ncredentials = true", ":5:12: cors.origins[0]: any site could act"),
            ("origins = [\"https://a.example\", \"*\"]", "cors.origins[1]: it stands alone"),
            (
                "origins = [\"https://a.example/\"]",
                ":5:12: cors.origins[0]: \"https://a.example/\" is no origin",
            ),
            ("origins = [\"https://a.example:443\"]", "is no origin"),
            ("origins = [\"https://A.example\"]", "is no origin"),
            ("origins = [\"https://*.example\"]", "is no origin"),
            ("origins = [\"a.example\"]", "is no origin"),
            ("origins = [\"null\"]", "is no origin"),
            ("origins = [\"*\"]\nmethods = [\"get\"]", ":6:12: cors.methods[0]: \"get\" is none"),
            ("origins = [\"*\"]\nheaders = [\"*\"]", ":6:12: cors.headers[0]: \"*\" is none"),
            ("origins = [\"*\"]\nheaders = [\"a: b\"]", "cors.headers[0]"),
            ("origins = [\"*\"]\nmax_age = \"0s\"", ":6:11: cors.max_age: 0s is out of range"),
        ] {
            let shown = read(section).unwrap_err().to_string();
            assert!(shown.contains(wants), "{section} gave {shown}");
        }
    }
}
