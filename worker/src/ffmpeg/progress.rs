//! ffmpeg's own account of how far it is, from `-progress pipe:1`.
//!
//! Only ffmpeg writes to that pipe. Its log on standard error carries titles and other text from the input, which
//! can imitate anything, and is never read for progress.

use std::time::Duration;

/// How far an encode is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    /// Frames of the first rendition that were encoded.
    pub frames: u64,
    /// Media time that was encoded.
    pub media: Duration,
    /// Media seconds per wall second, as ffmpeg measures it.
    pub speed: Option<f64>,
    /// ffmpeg says that it is done.
    pub ended: bool,
}

/// Collects `key=value` lines into one [`Progress`] per block.
#[derive(Debug, Default)]
pub struct Parser {
    block: Progress,
}

impl Parser {
    /// Takes one line; a block's last line (`progress=…`) gives the block.
    pub fn line(&mut self, line: &str) -> Option<Progress> {
        let (key, value) = line.trim().split_once('=')?;
        let value = value.trim();
        match key {
            "frame" => self.block.frames = value.parse().unwrap_or(self.block.frames),
            // `out_time_ms` is in microseconds as well, a known oddity; `N/A` and negative times come first.
            "out_time_us" => {
                let us = value.parse::<i64>().ok().and_then(|us| u64::try_from(us).ok());
                self.block.media = us.map_or(self.block.media, Duration::from_micros);
            }
            "speed" => {
                let speed = value.trim_end_matches('x').trim().parse::<f64>().ok();
                self.block.speed = speed.filter(|speed| speed.is_finite());
            }
            "progress" => {
                self.block.ended = value == "end";
                return Some(self.block);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Vec<Progress> {
        let mut parser = Parser::default();
        text.lines().filter_map(|line| parser.line(line)).collect()
    }

    #[test]
    fn a_block_is_one_progress() {
        let text = "frame=48\nfps=24.1\nstream_0_0_q=28.0\nbitrate=N/A\ntotal_size=N/A\nout_time_us=2000000\n\
                    out_time_ms=2000000\nout_time=00:00:02.000000\ndup_frames=0\nspeed=1.5x\nprogress=continue\n\
                    frame=96\nout_time_us=4000000\nspeed=   2x\nprogress=end\n";
        let want = |frames, media, speed, ended| Progress {
            frames,
            media: Duration::from_secs(media),
            speed: Some(speed),
            ended,
        };
        assert_eq!(parse(text), [want(48, 2, 1.5, false), want(96, 4, 2.0, true)]);
    }

    #[test]
    fn what_is_not_known_yet_is_nothing() {
        let start = parse("frame=0\nout_time_us=-9223372036854775807\nspeed=N/A\nprogress=continue\n");
        assert_eq!(start, [Progress::default()]);
        let none = parse("out_time_us=N/A\nprogress=continue\n");
        assert_eq!(none, [Progress::default()]);
    }

    #[test]
    fn a_title_cannot_end_it() {
        let spoofs = [
            "title=progress=end",
            "  Metadata: progress=end",
            "title           : x progress=end",
            "progress",
        ];
        assert_eq!(parse(&spoofs.join("\n")), []);
    }

    proptest! {
        #[test]
        fn no_line_panics(lines in proptest::collection::vec("[a-z_]{0,12}=?[-0-9a-zA-Z./ ]{0,24}", 0..40)) {
            parse(&lines.join("\n"));
        }
    }
}
