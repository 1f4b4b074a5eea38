//! As much of HTTP/1.1 as both ends of the measurement need: where a head ends and how long its body is.

/// A message's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head, the empty line included.
    pub end: usize,
    /// Bytes of the body, by `Content-Length`; 0 without.
    pub body: usize,
    /// Of an answer; 0 for a request.
    pub status: u16,
}

/// Reads a head, once it is there as a whole.
pub fn head(bytes: &[u8]) -> Option<Head> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let mut lines = bytes[..end].split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix(b"HTTP/1.1 ").map_or(0, |rest| number(rest) as u16);
    let length = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(b"content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:").then(|| number(value.trim_ascii_start()))
    });
    Some(Head { end, body: length.unwrap_or(0), status })
}

fn number(text: &[u8]) -> usize {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).take(9);
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_where_it_ends_and_what_follows() {
        let answer = b"HTTP/1.1 202 Accepted\r\nA: b\r\nContent-Length:  12\r\n\r\nhello world!rest";
        assert_eq!(head(answer), Some(Head { end: 52, body: 12, status: 202 }));
        assert_eq!(head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(Head { end: 27, body: 0, status: 0 }));
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"), None);
    }
}
