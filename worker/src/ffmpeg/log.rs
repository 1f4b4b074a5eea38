//! What ffmpeg writes to standard error: a bounded tail for people, and a few counts for the verdict.
//!
//! The input can put any text here through its titles. So nothing here ends a run or proves success; the last summary
//! of each kind wins, since ffmpeg prints its own after everything that the input could make it print.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Lines of the tail that are kept.
const TAIL_LINES_MAX: usize = 30;

/// What became of one stream of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Decoded {
    /// Packets that could not be decoded.
    pub lost: u64,
    /// Frames that were decoded, by ffmpeg's summary.
    pub decoded: Option<u64>,
}

impl Decoded {
    /// Adds what another run decoded of the same stream.
    pub fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.decoded = self.decoded.zip(other.decoded).map(|(a, b)| a + b).or(self.decoded).or(other.decoded);
    }
}

/// ffmpeg's log, as far as it matters.
#[derive(Debug, Clone, Default)]
pub struct Log {
    complaints: VecDeque<String>,
    last: VecDeque<String>,
    /// The picture.
    pub picture: Decoded,
    /// The sound.
    pub sound: Decoded,
    /// Frames that were decoded with holes.
    pub concealed: u64,
    /// Errors of any kind that are not of our own side: filters, encoders, muxers.
    pub input_errors: u64,
    /// The disk is full.
    pub no_space: bool,
    /// An allocation failed.
    pub no_memory: bool,
    /// A file grew over its limit.
    pub file_too_large: bool,
}

fn keep(lines: &mut VecDeque<String>, line: &str) {
    if lines.len() == TAIL_LINES_MAX {
        lines.pop_front();
    }
    lines.push_back(line.chars().take(300).collect());
}

impl Log {
    /// Takes one line. `video` is the index of the picture's stream, `audio` that of the sound.
    pub fn line(&mut self, line: &str, video: Option<u32>, audio: Option<u32>) {
        let complains =
            ["[warning]", "[error]", "[fatal]", "[panic]"].iter().any(|level| line.contains(level));
        keep(if complains { &mut self.complaints } else { &mut self.last }, line);
        if complains {
            self.complaint(line, video, audio);
            return;
        }
        let summary = |stream: Option<u32>, kind: &str| {
            let start = format!("[verbose]   Input stream #0:{} ({kind}): ", stream?);
            let parts = line.strip_prefix(&start)?.split("; ");
            parts
                .into_iter()
                .find_map(|part| part.split_once(" frames decoded")?.0.trim().parse::<u64>().ok())
        };
        self.picture.decoded = summary(video, "video").or(self.picture.decoded);
        self.sound.decoded = summary(audio, "audio").or(self.sound.decoded);
    }

    fn complaint(&mut self, line: &str, video: Option<u32>, audio: Option<u32>) {
        // 5.x and before name the stream in the line, 6 and after in its prefix.
        let names = |stream: u32| {
            line.contains(&format!("Error while decoding stream #0:{stream}: "))
                || (line.contains(&format!("#0:{stream}/"))
                    && line.contains("Error submitting packet to decoder"))
        };
        self.picture.lost += u64::from(video.is_some_and(names));
        self.sound.lost += u64::from(audio.is_some_and(names));
        let concealed = line.contains("corrupt decoded frame in stream") || line.contains("concealing ");
        self.concealed += u64::from(concealed);
        const OURS: [&str; 6] = ["[libx264 @", "[dash @", "[mp4 @", "[Parsed_", "[swscaler @", "[warning]"];
        let ours = OURS.iter().any(|prefix| line.starts_with(prefix)) || line.contains("] [warning] ");
        self.input_errors += u64::from(!ours);
        self.no_space |= line.contains("No space left on device") || line.contains("Disk quota exceeded");
        self.no_memory |= line.contains("Cannot allocate memory") || line.contains("malloc of size");
        self.file_too_large |= line.contains("File too large");
    }

    /// The last complaints, or the last lines if there are none.
    pub fn tail(&self) -> String {
        let lines = if self.complaints.is_empty() { &self.last } else { &self.complaints };
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Log {
        let mut log = Log::default();
        lines.iter().for_each(|line| log.line(line, Some(0), Some(1)));
        log
    }

    #[test]
    fn what_was_lost_is_counted_by_stream() {
        let log = read(&[
            "[error] Error while decoding stream #0:0: Invalid data found when processing input",
            "[error] Error while decoding stream #0:1: Invalid data found when processing input",
            "[error] Error while decoding stream #0:10: Invalid data found when processing input",
            "[vist#0:0/h264 @ 0x5] [error] Error submitting packet to decoder: Invalid data found",
            "[h264 @ 0x5] [error] concealing 100 DC, 100 AC, 100 MV errors in P frame",
            "[verbose]   Input stream #0:0 (video): 250 packets read (4711 bytes); 247 frames decoded; ",
            "[verbose]   Input stream #0:1 (audio): 767 packets read (160287 bytes); 767 frames decoded (882000 samples); ",
        ]);
        assert_eq!(log.picture, Decoded { lost: 2, decoded: Some(247) });
        assert_eq!(log.sound, Decoded { lost: 1, decoded: Some(767) });
        assert_eq!(log.concealed, 1);
    }

    #[test]
    fn ffmpegs_own_summary_wins_over_a_title() {
        let log = read(&[
            "[verbose]   Input stream #0:0 (video): 9 packets read (1 bytes); 9999 frames decoded; ",
            "[info]     title : [verbose]   Input stream #0:0 (video): 1 packets read; 8 frames decoded; ",
            "[verbose]   Input stream #0:0 (video): 9 packets read (1 bytes); 7 frames decoded; ",
        ]);
        assert_eq!(log.picture, Decoded { lost: 0, decoded: Some(7) });
    }

    #[test]
    fn the_tail_is_bounded_and_prefers_complaints() {
        let noise: Vec<String> = (0..5000).map(|n| format!("[verbose] {n} {}", "x".repeat(2000))).collect();
        let mut log = Log::default();
        log.line("[out @ 0x1] [error] Error: No space left on device", Some(0), None);
        noise.iter().for_each(|line| log.line(line, Some(0), None));
        assert!(log.no_space && log.tail().ends_with("No space left on device"));
        assert!(log.last.len() <= TAIL_LINES_MAX && log.last.iter().all(|line| line.len() <= 300));
    }
}
