//! `[timeouts]`: how long the gateway waits for what.

use std::time::Duration;

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

use super::value;

/// How long the gateway waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting to a worker.
    pub connect: Duration,
    /// A worker's answer to a submit, between two of its bytes.
    pub submit: Duration,
    /// A worker's answer about jobs; then another worker is asked.
    pub query: Duration,
    /// A worker's media, and a client's upload, between two of their bytes; event streams beat every 10 s.
    pub read: Duration,
    /// A worker's word that an upload is stored, after its last byte.
    pub upload: Duration,
    /// How long an unused connection to a worker stays open.
    pub idle: Duration,
    /// A client's whole job spec.
    pub body: Duration,
    /// A client's whole request header.
    pub header: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            submit: Duration::from_secs(10),
            query: Duration::from_secs(3),
            read: Duration::from_secs(20),
            upload: Duration::from_secs(300),
            idle: Duration::from_secs(10),
            body: Duration::from_secs(10),
            header: Duration::from_secs(10),
        }
    }
}

/// The section as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTimeouts {
    connect: Option<Spanned<String>>,
    submit: Option<Spanned<String>>,
    query: Option<Spanned<String>>,
    read: Option<Spanned<String>>,
    upload: Option<Spanned<String>>,
    idle: Option<Spanned<String>>,
    body: Option<Spanned<String>>,
    header: Option<Spanned<String>>,
}

impl RawTimeouts {
    pub(super) fn validate(self, file: &File) -> Result<Timeouts, Error> {
        let or = Timeouts::default();
        let (ms, second, minute, hour) = (1, 1000, 60_000, 3_600_000);
        let read = |raw: Option<Spanned<String>>, key: &str, default, min_ms, max_ms| {
            value::duration(
                file,
                raw,
                key,
                default,
                Duration::from_millis(min_ms),
                Duration::from_millis(max_ms),
            )
        };
        Ok(Timeouts {
            connect: read(self.connect, "timeouts.connect", or.connect, 10 * ms, minute)?,
            submit: read(self.submit, "timeouts.submit", or.submit, 50 * ms, 10 * minute)?,
            query: read(self.query, "timeouts.query", or.query, 50 * ms, minute)?,
            read: read(self.read, "timeouts.read", or.read, 50 * ms, hour)?,
            upload: read(self.upload, "timeouts.upload", or.upload, second, hour)?,
            idle: read(self.idle, "timeouts.idle", or.idle, second, hour)?,
            body: read(self.body, "timeouts.body", or.body, 50 * ms, 10 * minute)?,
            header: read(self.header, "timeouts.header", or.header, 50 * ms, 10 * minute)?,
        })
    }
}
