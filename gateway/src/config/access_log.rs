//! `[access_log]`: whether a line is written per request, and for how many.

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

/// What is written of requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AccessLog {
    /// Whether anything is.
    pub enabled: bool,
    /// The share of requests that get a line, 0–1. Those that failed by a server's fault always do.
    pub sample: f64,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { enabled: false, sample: 1.0 }
    }
}

/// The section as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccessLog {
    enabled: Option<bool>,
    sample: Option<Spanned<f64>>,
}

impl RawAccessLog {
    pub(super) fn validate(&self, file: &File) -> Result<AccessLog, Error> {
        let or = AccessLog::default();
        let sample = self.sample.as_ref().map_or(or.sample, |raw| *raw.get_ref());
        if let Some(raw) = &self.sample
            && !(0.0..=1.0).contains(&sample)
        {
            let message = format!("{sample} is no share; it wants a number from 0 to 1");
            return Err(file.error_at(raw.span(), "access_log.sample", message));
        }
        Ok(AccessLog { enabled: self.enabled.unwrap_or(or.enabled), sample })
    }
}
