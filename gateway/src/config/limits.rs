//! `[limits]`: how much one request may ask of the gateway before anybody has judged it.

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

/// How much one request may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's target and header fields together.
    pub header_bytes: usize,
    /// Header fields of a request.
    pub headers: usize,
    /// Bytes of a request's target.
    pub uri_bytes: usize,
    /// Bytes of an upload; without, as many as its URL allows.
    pub upload_bytes: Option<u64>,
    /// Bytes of all uploads of one key or address in an hour; without, as many as one likes.
    pub upload_bytes_per_hour: Option<u64>,
    /// Bytes per second that an upload must bring on average, over `timeouts.read`.
    pub upload_bytes_per_second: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 32 * 1024,
            headers: 100,
            uri_bytes: 8 * 1024,
            upload_bytes: None,
            upload_bytes_per_hour: None,
            upload_bytes_per_second: 1024,
        }
    }
}

/// The section as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    header_bytes: Option<Spanned<i64>>,
    headers: Option<Spanned<i64>>,
    uri_bytes: Option<Spanned<i64>>,
    upload_bytes: Option<Spanned<i64>>,
    upload_bytes_per_hour: Option<Spanned<i64>>,
    upload_bytes_per_second: Option<Spanned<i64>>,
}

impl RawLimits {
    pub(super) fn validate(self, file: &File) -> Result<Limits, Error> {
        let or = Limits::default();
        let read = |raw: Option<Spanned<i64>>, key: &str, default: usize, min: usize, max: usize| {
            let Some(raw) = raw else { return Ok(default) };
            let got = *raw.get_ref();
            let fits = usize::try_from(got).ok().filter(|got| (min..=max).contains(got));
            fits.ok_or_else(|| {
                let message = format!("{got} is out of range; it wants a whole number from {min} to {max}");
                file.error_at(raw.span(), format!("limits.{key}"), message)
            })
        };
        let some = |raw: Option<Spanned<i64>>, key: &str| {
            let read = raw.map(|raw| read(Some(raw), key, 0, 1, 1 << 50).map(|bytes| bytes as u64));
            read.transpose()
        };
        Ok(Limits {
            upload_bytes: some(self.upload_bytes, "upload_bytes")?,
            upload_bytes_per_hour: some(self.upload_bytes_per_hour, "upload_bytes_per_hour")?,
            // Pingora itself reads at most 1 MiB and 256 fields before anything else can look.
            header_bytes: read(self.header_bytes, "header_bytes", or.header_bytes, 1024, 512 * 1024)?,
            headers: read(self.headers, "headers", or.headers, 8, 256)?,
            uri_bytes: read(self.uri_bytes, "uri_bytes", or.uri_bytes, 256, 64 * 1024)?,
            upload_bytes_per_second: read(
                self.upload_bytes_per_second,
                "upload_bytes_per_second",
                or.upload_bytes_per_second,
                1,
                1 << 30,
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn limits_are_read_and_an_error_names_its_line_and_key() {
        let read = |section: &str| {
            let text = format!(
                "[listen]\nhttp = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[limits]\n{section}\n\
                 [[pools]]\nname = \"aws\"\nendpoints = [\"127.0.0.1:9001\"]\n"
            );
            Config::from_file(&File::from_text("routing.toml", text))
        };
        assert_eq!(read("").unwrap().limits, Limits::default());
        assert_eq!(read("uri_bytes = 300\nheaders = 9").unwrap().limits.uri_bytes, 300);
        for (section, wants) in [
            (
                "headers = 257",
                ":5:11: limits.headers: 257 is out of range; it wants a whole number from 8 to 256",
            ),
            ("uri_bytes = -1", ":5:13: limits.uri_bytes: -1 is out of range"),
            ("header_bytes = 1e9", ":5:16: header_bytes: invalid type: floating point"),
            ("upload_bytes = 0", ":5:16: limits.upload_bytes: 0 is out of range"),
            ("upload_bytes_per_hour = -1", ":5:25: limits.upload_bytes_per_hour: -1 is out of range"),
            ("upload_bytes_per_second = 0", ":5:27: limits.upload_bytes_per_second: 0 is out of range"),
            ("heders = 1", "unknown field `heders`"),
        ] {
            let shown = read(section).unwrap_err().to_string();
            assert!(shown.contains(wants), "{shown} is not {wants}");
        }
    }
}
