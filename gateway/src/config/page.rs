//! `[page]`: what the web page shows, and to whom.

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

use super::Listen;

/// Most further origins of the page: each stands in a header of every answer.
pub const ORIGINS_MAX: usize = 16;

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

/// The section as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPage {
    enabled: Option<bool>,
    pools: Option<bool>,
    #[serde(default)]
    origins: Vec<Spanned<String>>,
}

impl RawPage {
    pub(super) fn validate(self, file: &File, listen: &Listen) -> Result<Page, Error> {
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
