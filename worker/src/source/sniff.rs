//! What a file's first bytes say, before any demuxer sees them.
//!
//! A playlist, a web page or an archive gets a clear answer here; ffmpeg would say "Invalid data" or, worse, open
//! what a playlist names. For the MP4 family the boxes at the top level are walked as well: a file cut before its
//! index cannot be told from rubbish by ffmpeg's exit code.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use millrace_wire::job::FailureCode;

use crate::failure::Failure;

/// Bytes that are looked at.
const HEAD_BYTES: usize = 4096;
/// Most boxes at the top level that are walked; a fragmented file has two per fragment.
const BOXES_MAX: usize = 200_000;

/// Refuses what is no media by its first bytes, and an MP4 without its index.
///
/// # Errors
/// `source_empty`, `source_not_media`, `source_truncated`, or `scratch_unavailable` when it cannot be read.
pub fn check(input: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| Failure::scratch("read the fetched source", &error);
    let mut file = File::open(input).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    (&mut file).take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(failed)?;
    if head.is_empty() {
        return Err(Failure::new(FailureCode::SourceEmpty, "the source has zero bytes"));
    }
    if let Some(what) = not_media(&head) {
        return Err(Failure::new(FailureCode::SourceNotMedia, format!("the source is {what}, not a video")));
    }
    if is_mp4(&head) {
        check_boxes(&mut file, bytes)?;
    }
    Ok(bytes)
}

/// What it is instead, in words for the client.
fn not_media(head: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 16] = [
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b", "a gzip file"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!", "a RAR archive"),
        (b"\xfd7zXZ", "an xz file"),
        (b"BZh", "a bzip2 file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"%PDF", "a PDF"),
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"GIF8", "a GIF picture"),
        (b"\x7fELF", "a program"),
        (b"MZ", "a program"),
        (b"-----BEGIN", "a key or certificate"),
        (b"#!", "a script"),
        (b"BM", "a BMP picture"),
    ];
    let text = text_of(head);
    if let Some(text) = &text {
        let start: String = text.chars().take(64).collect::<String>().to_ascii_lowercase();
        let starts = |names: &[&str]| names.iter().any(|name| start.starts_with(name));
        if starts(&["#extm3u", "[playlist]", "ffconcat", "v=0", "#ext-x-"]) {
            return Some("a playlist");
        }
        if starts(&["<!doctype html", "<html", "<head", "<body", "<script", "<!--"]) {
            return Some("an HTML page");
        }
        if starts(&["<?xml", "<mpd", "<svg", "<rss", "<smil", "<error", "<playlist"]) {
            return Some("an XML document");
        }
        if starts(&["{", "["]) {
            return Some("a JSON document");
        }
    }
    let magic = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| *what);
    magic.or_else(|| text.map(|_| "a text file"))
}

/// The head as text, without byte order mark and leading white space, if all of it is text.
fn text_of(head: &[u8]) -> Option<String> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character that was cut at the end of the head is no reason to call it binary.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        // Latin-1 pages: everything printable counts.
        Err(_) => {
            let printable = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0xa0..=0xff);
            return head
                .iter()
                .all(printable)
                .then(|| head.iter().map(|b| char::from(*b)).collect::<String>());
        }
    };
    let plain = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\u{c}');
    text.chars().all(plain).then(|| text.trim_start().to_owned())
}

fn is_mp4(head: &[u8]) -> bool {
    head.get(4..8).is_some_and(|kind| {
        matches!(kind, b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free" | b"skip" | b"pnot")
    })
}

/// Walks the boxes at the top level: the index must be there.
fn check_boxes(file: &mut File, bytes: u64) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::scratch("read the fetched source", &error);
    let mut at = 0_u64;
    for _ in 0..BOXES_MAX {
        if at + 8 > bytes {
            break;
        }
        let mut header = [0_u8; 16];
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        let length = if at + 16 <= bytes { 16 } else { 8 };
        file.read_exact(&mut header[..length]).map_err(failed)?;
        let (size, rest) = header.split_at(4);
        let size = match u32::from_be_bytes(size.try_into().expect("four bytes")) {
            0 => bytes - at,
            1 if length == 16 => u64::from_be_bytes(header[8..].try_into().expect("eight bytes")),
            size => u64::from(size),
        };
        if &rest[..4] == b"moov" {
            // Whether all of it is there is for the demuxer to say; that it began is enough to ask.
            return if size > bytes - at { Err(truncated("within its index")) } else { Ok(()) };
        }
        if size < 8 {
            break;
        }
        at = at.saturating_add(size);
    }
    Err(truncated("before its index (moov)"))
}

fn truncated(place: &str) -> Failure {
    let detail =
        format!("the source is an MP4 file that ends {place}: it was cut, or its upload is not complete");
    Failure::new(FailureCode::SourceTruncated, detail)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn code(content: &[u8]) -> Option<FailureCode> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        check(file.path()).err().map(|failure| failure.code)
    }

    #[test]
    fn what_is_no_video_is_named() {
        let cases: [(&[u8], &str); 12] = [
            (b"#EXTM3U\n#EXT-X-VERSION:3\nhttp://127.0.0.1/x\n", "a playlist"),
            (b"\xef\xbb\xbf\n #EXTM3U\n", "a playlist"),
            (b"ffconcat version 1.0\nfile /etc/passwd\n", "a playlist"),
            (b"<!DOCTYPE html><html>", "an HTML page"),
            (b"\n\n  <HTML lang=de>caf\xe9", "an HTML page"),
            (b"<?xml version='1.0'?><Error>", "an XML document"),
            (b"{\"error\": 1}", "a JSON document"),
            (b"hello there, this is no video", "a text file"),
            (b"PK\x03\x04\x00\x00", "a ZIP archive"),
            (b"\x89PNG\r\n\x1a\n\0\0", "a PNG picture"),
            (b"%PDF-1.7\n\x80\x81", "a PDF"),
            (b"\x7fELF\x02\x01", "a program"),
        ];
        for (head, what) in cases {
            assert_eq!(not_media(head), Some(what), "{:?}", String::from_utf8_lossy(head));
            assert_eq!(code(head), Some(FailureCode::SourceNotMedia));
        }
        assert_eq!(code(b""), Some(FailureCode::SourceEmpty));
    }

    #[test]
    fn containers_pass() {
        let heads: [&[u8]; 5] = [
            b"\x1a\x45\xdf\xa3\x01\0\0\0",
            b"RIFF\x24\0\0\0AVI LIST",
            b"\x47\x40\0\x10\0\0\xb0\x0d",
            b"OggS\0\x02",
            b"FLV\x01\x05\0\0\0\x09",
        ];
        for head in heads {
            assert_eq!(code(head), None, "{head:?}");
        }
    }

    #[test]
    fn an_mp4_needs_its_index() {
        let atom =
            |size: u32, kind: &[u8], body: usize| [&size.to_be_bytes()[..], kind, &vec![0xff; body]].concat();
        let ftyp = atom(16, b"ftyp", 8);
        assert_eq!(code(&[ftyp.clone(), atom(24, b"moov", 16)].concat()), None);
        assert_eq!(code(&[ftyp.clone(), atom(12, b"mdat", 4), atom(8, b"moov", 0)].concat()), None);
        let cut = Some(FailureCode::SourceTruncated);
        assert_eq!(code(&ftyp), cut);
        assert_eq!(code(&[ftyp.clone(), atom(5000, b"mdat", 100)].concat()), cut);
        assert_eq!(code(&[ftyp.clone(), atom(5000, b"moov", 100)].concat()), cut);
        let large = [&1_u32.to_be_bytes()[..], b"mdat", &24_u64.to_be_bytes(), &[0xff; 8]].concat();
        assert_eq!(code(&[ftyp, large, atom(8, b"moov", 0)].concat()), None);
    }

    proptest::proptest! {
        #[test]
        fn no_content_panics(content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = code(&content);
            let _ = code(&[b"\0\0\0\x08ftyp".to_vec(), content].concat());
        }
    }
}
