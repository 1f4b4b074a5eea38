//! `[rate]`: how often one key, or one address without a key, may ask, and how often one address may be refused for a
//! key or token that is no good. Without it they ask as often as they like, and are refused as [`REFUSALS`] says.

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

/// How often one may ask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Requests per second, over time.
    pub per_second: f64,
    /// Requests at once.
    pub burst: u32,
}

/// How often one address may be refused for its key or token, unless `[rate]` says: many times what a program with an
/// expired token does, even behind a load balancer with others like it, and too few to keep a core busy with signatures.
pub const REFUSALS: Rate = Rate { per_second: 50.0, burst: 500 };

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRate {
    per_second: Spanned<f64>,
    burst: Spanned<i64>,
}

impl RawRate {
    pub(super) fn validate(&self, file: &File) -> Result<Rate, Error> {
        let (per_second, burst) = (*self.per_second.get_ref(), *self.burst.get_ref());
        if !(0.001..=1e6).contains(&per_second) {
            let message = format!("{per_second} is out of range; it wants a number from 0.001 to 1000000");
            return Err(file.error_at(self.per_second.span(), "rate.per_second", message));
        }
        match u32::try_from(burst).ok().filter(|burst| (1..=1_000_000).contains(burst)) {
            Some(burst) => Ok(Rate { per_second, burst }),
            None => {
                let message = format!("{burst} is out of range; it wants a whole number from 1 to 1000000");
                Err(file.error_at(self.burst.span(), "rate.burst", message))
            }
        }
    }
}
