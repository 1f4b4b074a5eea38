//! How large a request's header may be, and how slow an upload.
//!
//! Pingora reads up to 1 MiB and 256 fields of an HTTP/1 header and answers anything beyond with a bare 400; below
//! that it judges nothing, so this does. HTTP/2 has its limit in the connection's settings as well.

use std::time::{Duration, Instant};

use millrace_wire::{Code, Problem};

use crate::config::limits::Limits;
use crate::glance::Glance;

/// Whether a request's target (path and query as they came) and fields are within bounds.
///
/// # Errors
/// What the client reads.
pub fn check(target: &[u8], header: &Glance<'_>, limits: &Limits) -> Result<(), Box<Problem>> {
    if target.len() > limits.uri_bytes {
        let detail = format!("path and query have {} bytes; at most {}", target.len(), limits.uri_bytes);
        return Err(Box::new(Problem::new(Code::UriTooLong, detail)));
    }
    if header.fields > limits.headers {
        let detail = format!("{} header fields; at most {}", header.fields, limits.headers);
        return Err(Box::new(Problem::new(Code::HeaderTooLarge, detail)));
    }
    let bytes = target.len() + header.bytes;
    if bytes > limits.header_bytes {
        let detail = format!("the header has {bytes} bytes; at most {}", limits.header_bytes);
        return Err(Box::new(Problem::new(Code::HeaderTooLarge, detail)));
    }
    Ok(())
}

/// How fast an upload comes, window by window.
#[derive(Debug, Default)]
pub struct Pace {
    window: Option<(Instant, usize)>,
}

impl Pace {
    /// That many bytes came `now`: whether they are enough, over windows of the read timeout. That itself ends a sender of
    /// nothing at all, so whoever stalls as long as he may and then sends what he missed is within the pace.
    pub fn keeps(&mut self, now: Instant, bytes: usize, bytes_per_second: usize, window: Duration) -> bool {
        let (since, came) = self.window.get_or_insert((now, 0));
        *came = came.saturating_add(bytes);
        let passed = now.saturating_duration_since(*since);
        if passed < window {
            return true;
        }
        let enough = *came as f64 >= bytes_per_second as f64 * passed.as_secs_f64();
        self.window = Some((now, 0));
        enough
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn a_header_is_bounded_by_target_fields_and_bytes() {
        let limits = Limits { header_bytes: 1000, headers: 10, uri_bytes: 300, ..Limits::default() };
        let fields = |count: usize, value: usize| {
            let mut headers = HeaderMap::new();
            for _ in 0..count {
                headers.append("x", "v".repeat(value).parse().unwrap());
            }
            headers
        };
        let refused = |target: usize, headers: &HeaderMap| {
            check(&vec![b'/'; target], &Glance::from(headers), &limits).err().map(|problem| problem.code)
        };
        assert_eq!(refused(300, &fields(10, 10)), None);
        assert_eq!(refused(301, &fields(0, 0)), Some(Code::UriTooLong));
        assert_eq!(refused(1, &fields(11, 1)), Some(Code::HeaderTooLarge));
        assert_eq!(refused(100, &fields(9, 95)), None, "exactly 1000");
        assert_eq!(refused(101, &fields(9, 95)), Some(Code::HeaderTooLarge));
    }

    #[test]
    fn an_upload_may_stall_but_not_drip() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let run = |piece: usize, every: u32, pieces: u32| {
            let mut pace = Pace::default();
            (0..pieces).all(|n| pace.keeps(start + second * every * n, piece, 1024, second * 20))
        };
        assert!(run(20 * 1024, 19, 100), "bursts with long waits between");
        assert!(run(1024, 1, 1000));
        assert!(!run(1, 1, 40), "a byte per second");
        assert!(run(1, 1, 20), "that needs a window to be seen");
    }
}
