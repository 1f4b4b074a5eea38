//! What decides the bytes of an encode besides its plan.
//!
//! x264 and the scaler choose their code by the processor, and codes differ in the last bit; so do builds. Asked once at the
//! start, by an encode of two small frames: x264 says in the log which instructions it uses, and in the stream which x264 it
//! is. Threads are no part of it: a plan says how many there are.

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};

/// The encode: its stream to standard output, and the log at the level at which x264 speaks.
pub(super) const ENCODE: [&str; 15] = [
    "-nostdin",
    "-nostats",
    "-loglevel",
    "level+info",
    "-f",
    "lavfi",
    "-i",
    "color=s=64x64:r=25:d=0.08",
    "-c:v",
    "libx264",
    "-threads",
    "1",
    "-f",
    "h264",
    "pipe:1",
];

/// Raised whenever a plan comes to mean other arguments than before: while workers are exchanged, old and new ones may make
/// ranges of one job. 2: a matrix is assumed where the source names none.
const ARGUMENTS: u32 = 2;

/// A fingerprint of what a plan means, the program's version, what x264 says of itself, the instructions it uses, and the
/// architecture.
pub(super) fn of(version: &str, stream: &[String], said: &VecDeque<String>) -> String {
    let between = |text: &str, from: &str, to: &str| {
        let begins = text.find(from)? + from.len();
        let length = text[begins..].find(to)?;
        Some(text[begins..begins + length].to_owned())
    };
    let build = stream.iter().find_map(|line| between(line, "x264 - ", " - H.264")).unwrap_or_default();
    let instructions = said.iter().find_map(|line| line.split_once("using cpu capabilities: "));
    let instructions = instructions.map_or("", |(_, names)| names.trim());
    let whole = format!("{ARGUMENTS}\n{version}\n{build}\n{instructions}\n{}", std::env::consts::ARCH);
    hex::encode(&Sha256::digest(whole)[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_encoder_and_instructions_count_and_the_rest_does_not() {
        let of = |version: &str, stream: &str, said: &str| {
            super::of(version, &["noise".to_owned(), stream.to_owned()], &VecDeque::from([said.to_owned()]))
        };
        let stream = "\u{fffd}x264 - core 164 r3095 baee400 - H.264/MPEG-4 AVC codec - options: cabac=1";
        let said = "[libx264 @ 0x55a56b135240] [info] using cpu capabilities: MMX2 AVX2";
        let one = of("ffmpeg version 5.1.9", stream, said);
        assert_eq!(
            one,
            of("ffmpeg version 5.1.9", &format!("{stream} ref=3"), &said.replace("0x55", "0x77"))
        );
        assert_ne!(one, of("ffmpeg version 6.0", stream, said));
        assert_ne!(one, of("ffmpeg version 5.1.9", &stream.replace("164", "165"), said));
        assert_ne!(one, of("ffmpeg version 5.1.9", stream, &said.replace("AVX2", "AVX2 AVX512")));
        assert_eq!(one.len(), 16);
    }
}
