//! Single values of the file, each with the error that says what it wants.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use millrace_runtime::config::{Error, File};
use toml::Spanned;

/// Largest price, in US dollars, of a gigabyte or of an hour of waiting.
pub const PRICE_MAX: f64 = 1e6;

pub(super) fn address(file: &File, text: &str, span: Range<usize>, key: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| {
        let message = format!("{text:?} is no address; it wants IP:PORT, like 127.0.0.1:9001 or [::1]:9001");
        file.error_at(span, key, message)
    })
}

/// A file's path: beside the routing file, wherever the process was started.
pub(super) fn path(file: &File, raw: Spanned<PathBuf>, key: &str) -> Result<PathBuf, Error> {
    if raw.get_ref().as_os_str().is_empty() {
        return Err(file.error_at(raw.span(), key, "it is empty; it wants the path of a PEM file"));
    }
    let beside = file.path().parent().map(|folder| folder.join(raw.get_ref()));
    Ok(beside.unwrap_or_else(|| raw.into_inner()))
}

pub(super) fn number(file: &File, raw: Option<&Spanned<f64>>, key: &str, default: f64) -> Result<f64, Error> {
    let Some(raw) = raw else { return Ok(default) };
    let got = *raw.get_ref();
    if (0.0..=PRICE_MAX).contains(&got) {
        return Ok(got);
    }
    Err(file.error_at(
        raw.span(),
        key,
        format!("{got} is out of range; it wants a number from 0 to {PRICE_MAX}"),
    ))
}

pub(super) fn duration(
    file: &File,
    raw: Option<Spanned<String>>,
    key: &str,
    default: Duration,
    min: Duration,
    max: Duration,
) -> Result<Duration, Error> {
    let Some(raw) = raw else { return Ok(default) };
    let span = raw.span();
    let text = raw.into_inner();
    let wants = format!(
        "it wants a time from {} to {}, like \"1500ms\" or \"10s\"",
        humantime::format_duration(min),
        humantime::format_duration(max)
    );
    match humantime::parse_duration(&text) {
        Ok(got) if (min..=max).contains(&got) => Ok(got),
        Ok(_) => Err(file.error_at(span, key, format!("{text} is out of range; {wants}"))),
        Err(_) => Err(file.error_at(span, key, format!("{text:?} is no time; {wants}"))),
    }
}
