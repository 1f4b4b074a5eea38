//! HLS playlists read the plain way, so that what a stream declares can be compared with what it is.

use std::collections::BTreeMap;

/// One line of a master playlist's ladder.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) uri: String,
}

/// A master playlist.
#[derive(Debug)]
pub(crate) struct Master {
    pub(crate) variants: Vec<Variant>,
    /// The one audio playlist.
    pub(crate) audio: Option<String>,
}

/// A media playlist: its init file and, for each segment, seconds and name.
#[derive(Debug)]
pub(crate) struct Media {
    pub(crate) init: String,
    pub(crate) segments: Vec<(f64, String)>,
}

/// Splits `A=1,B="x,y"` at the commas outside quotes.
fn attributes(text: &str) -> BTreeMap<String, String> {
    let mut quoted = false;
    let parts = text.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    let pair = |part: &str| part.split_once('=').map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned()));
    parts.filter_map(pair).collect()
}

impl Variant {
    pub(crate) fn number(&self, attribute: &str) -> f64 {
        self.attributes[attribute].parse().unwrap()
    }
}

impl Master {
    pub(crate) fn parse(text: &str) -> Self {
        let (mut variants, mut audio) = (Vec::new(), None);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("#EXTM3U"));
        while let Some(line) = lines.next() {
            if let Some(rest) = line.strip_prefix("#EXT-X-STREAM-INF:") {
                let uri = lines.next().unwrap().to_owned();
                variants.push(Variant { attributes: attributes(rest), uri });
            } else if let Some(rest) = line.strip_prefix("#EXT-X-MEDIA:") {
                audio = attributes(rest).remove("URI");
            }
        }
        Self { variants, audio }
    }
}

impl Media {
    pub(crate) fn parse(text: &str) -> Self {
        let (mut init, mut segments) = (None, Vec::new());
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("#EXTM3U"));
        while let Some(line) = lines.next() {
            if let Some(rest) = line.strip_prefix("#EXT-X-MAP:") {
                init = attributes(rest).remove("URI");
            } else if let Some(rest) = line.strip_prefix("#EXTINF:") {
                let seconds = rest.split(',').next().unwrap().parse().unwrap();
                segments.push((seconds, lines.next().unwrap().to_owned()));
            }
        }
        assert!(text.trim_end().ends_with("#EXT-X-ENDLIST"), "a finished stream says that it ends");
        Self { init: init.unwrap(), segments }
    }
}

#[test]
fn a_comma_in_quotes_splits_nothing() {
    let found = attributes(r#"BANDWIDTH=7,CODECS="avc1,mp4a",AUDIO="a""#);
    assert_eq!((found["BANDWIDTH"].as_str(), found["CODECS"].as_str(), found.len()), ("7", "avc1,mp4a", 3));
}
