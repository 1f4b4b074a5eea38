//! Lines of bounded length from a pipe.
//!
//! ffmpeg's output carries text of the input. Reading "until newline" would let a file without one fill the memory.

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest line that is kept; the rest of a longer one is dropped.
pub const LINE_BYTES_MAX: usize = 2048;

/// Reads lines, each at most [`LINE_BYTES_MAX`] bytes; `\r` ends a line too.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    chunk: Box<[u8]>,
    /// What of `chunk` is read and not yet handed out.
    unread: std::ops::Range<usize>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of `from`.
    pub fn new(from: R) -> Self {
        Self { from, chunk: vec![0; 16 * 1024].into(), unread: 0..0, line: Vec::new() }
    }

    /// The next line that is not empty; none at the end. Safe to cancel: nothing read is lost.
    ///
    /// # Errors
    /// When the pipe cannot be read.
    pub async fn next(&mut self) -> std::io::Result<Option<String>> {
        loop {
            while let Some(at) = self.unread.next() {
                match self.chunk[at] {
                    b'\n' | b'\r' if self.line.is_empty() => {}
                    b'\n' | b'\r' => return Ok(Some(self.take())),
                    byte if self.line.len() < LINE_BYTES_MAX => self.line.push(byte),
                    _ => {}
                }
            }
            let length = self.from.read(&mut self.chunk).await?;
            if length == 0 {
                return Ok((!self.line.is_empty()).then(|| self.take()));
            }
            self.unread = 0..length;
        }
    }

    fn take(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_complete() {
        let long = "x".repeat(LINE_BYTES_MAX * 20);
        let text = format!("a\n\nb\rc\r\n{long}\nlast");
        let mut lines = Lines::new(text.as_bytes());
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        assert_eq!(all.iter().map(String::len).collect::<Vec<_>>(), [1, 1, 1, LINE_BYTES_MAX, 4]);
        assert_eq!(all[4], "last");
    }
}
