//! What the packets of a stream say, one at a time and in bounded memory.
//!
//! Headers lie and are often absent (a browser's recorder writes no duration at all), so length, frame count and
//! keyframes come from here.

/// What was seen of one stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Seen {
    /// Packets, those included that only fill the decoder before the first shown frame.
    pub packets: u64,
    /// Packets that are shown.
    pub frames: u64,
    /// Shown packets at which decoding can start.
    pub keyframes: u64,
    /// Timestamp of the first, in seconds on the container's clock.
    pub start_s: Option<f64>,
    /// End of the last.
    pub end_s: f64,
    /// Timestamps of keyframes, in the order of the file, none nearer than [`KEYFRAMES_APART_SECONDS`] to the one before.
    pub keyframes_s: Vec<f64>,
    /// A keyframe came with an earlier timestamp than one before it: time does not run forward in this file.
    pub disordered: bool,
    last_start_s: f64,
    last_duration_s: f64,
    last_keyframe_s: Option<f64>,
    gaps: Gaps,
    /// From the latest frame but one to the latest, less what reordered frames since have been shown in.
    step: (f64, f64),
}

/// Times without a frame.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Gaps {
    max_s: f64,
    /// Those longer than [`PAUSE_SECONDS`], and how long all of them are.
    pauses: u64,
    paused_s: f64,
}

impl Gaps {
    fn with(self, gap_s: f64) -> Self {
        let pauses = gap_s > PAUSE_SECONDS;
        Self {
            max_s: self.max_s.max(gap_s),
            pauses: self.pauses + u64::from(pauses),
            paused_s: self.paused_s + if pauses { gap_s } else { 0.0 },
        }
    }
}

/// Frames that are farther apart have a pause between them, if few are.
const PAUSE_SECONDS: f64 = 2.0;
/// In so many steps from frame to frame at least there is one pause at most, or pauses are what the stream is made of.
const STEPS_PER_PAUSE: u64 = 10;
/// Keyframes nearer than this are not remembered: a day of film has at most so many seconds of them.
pub const KEYFRAMES_APART_SECONDS: f64 = 1.0;

/// One line of ffprobe's `-show_packets`, compact, without keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packet {
    /// Its stream's index.
    pub stream: usize,
    /// Presentation time, else decoding time, in seconds.
    pub time_s: Option<f64>,
    /// In seconds, if the container knows.
    pub duration_s: Option<f64>,
    /// Decoding can start here.
    pub key: bool,
    /// Decoded, but not shown.
    pub discarded: bool,
}

/// What ffprobe is asked for; [`Packet::parse`] reads it.
pub const ENTRIES: &str = "packet=stream_index,pts_time,dts_time,duration_time,flags";

impl Packet {
    /// Reads `0|0.033367|0.033367|0.033367|K_`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.trim().split('|');
        let stream = fields.next()?.parse().ok()?;
        let mut seconds = || {
            let text = fields.next()?;
            Some(text.parse::<f64>().ok().filter(|seconds| seconds.is_finite()))
        };
        let (pts, dts, duration) = (seconds()?, seconds()?, seconds()?);
        let flags = fields.next()?;
        Some(Self {
            stream,
            time_s: pts.or(dts),
            duration_s: duration.filter(|seconds| *seconds > 0.0),
            key: flags.contains('K'),
            discarded: flags.contains('D'),
        })
    }
}

impl Seen {
    /// Takes the next packet of the stream.
    pub fn add(&mut self, packet: Packet) {
        self.packets += 1;
        if packet.discarded {
            return;
        }
        self.frames += 1;
        self.keyframes += u64::from(packet.key);
        let Some(time) = packet.time_s else { return };
        if packet.key {
            self.keyframe(time);
        }
        let first = self.start_s.is_none();
        self.start_s = Some(self.start_s.map_or(time, |start| start.min(time)));
        if first || time > self.last_start_s {
            if !first {
                self.gaps = self.all_gaps();
                self.step = (self.last_start_s, time);
            }
            self.last_start_s = time;
            self.last_duration_s = packet.duration_s.unwrap_or(0.0);
        } else if self.step.0 < time && time < self.step.1 {
            let (from, to) = self.step;
            self.step = if time - from > to - time { (from, time) } else { (time, to) };
        }
        self.end_s = self.end_s.max(time + packet.duration_s.unwrap_or(0.0));
        if first {
            self.end_s = time + packet.duration_s.unwrap_or(0.0);
        }
    }

    fn keyframe(&mut self, time: f64) {
        self.disordered |= self.last_keyframe_s.is_some_and(|last| time < last);
        self.last_keyframe_s = Some(time);
        if self.keyframes_s.last().is_none_or(|last| time - last >= KEYFRAMES_APART_SECONDS) {
            self.keyframes_s.push(time);
        }
    }

    /// Gives the last packet a duration, if the container had none for it.
    pub fn close(&mut self, duration_s: f64) {
        if self.frames > 0 && self.last_duration_s == 0.0 {
            self.end_s = self.end_s.max(self.last_start_s + duration_s);
        }
    }

    /// From the first packet to the end of the last.
    pub fn length_s(&self) -> f64 {
        self.start_s.map_or(0.0, |start| (self.end_s - start).max(0.0))
    }

    /// Longest time without a new frame.
    pub fn gap_max_s(&self) -> f64 {
        self.all_gaps().max_s
    }

    fn all_gaps(&self) -> Gaps {
        self.gaps.with(self.step.1 - self.step.0)
    }

    /// Shown packets per second, once there are two; in pauses none are expected.
    pub fn rate(&self) -> Option<f64> {
        let Gaps { pauses, paused_s, .. } = self.all_gaps();
        let (steps, span) = (self.frames.saturating_sub(1), self.last_start_s - self.start_s?);
        let (steps, span) = match pauses * STEPS_PER_PAUSE <= steps {
            true => (steps - pauses, span - paused_s),
            false => (steps, span),
        };
        (steps > 0 && span > 0.0).then(|| steps as f64 / span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lines: &[&str]) -> Seen {
        let mut seen = Seen::default();
        lines.iter().for_each(|line| seen.add(Packet::parse(line).unwrap()));
        seen
    }

    #[test]
    fn reordered_frames_and_a_preroll() {
        let seen = seen(&[
            "0|-0.040000|-0.040000|0.040000|KD",
            "0|0.000000|-0.080000|0.040000|K_",
            "0|0.120000|-0.040000|0.040000|__",
            "0|0.040000|0.000000|0.040000|__",
            "0|0.080000|0.040000|0.040000|__",
        ]);
        assert_eq!((seen.packets, seen.frames, seen.keyframes), (5, 4, 1));
        assert!(
            (seen.length_s() - 0.16).abs() < 1e-9 && (seen.rate().unwrap() - 25.0).abs() < 1e-6,
            "{seen:?}"
        );
    }

    #[test]
    fn no_durations_and_a_gap() {
        let mut seen = seen(&["0|1.0|N/A|N/A|K__", "0|N/A|1.5|N/A|___", "0|9.5|N/A|N/A|___"]);
        assert_eq!((seen.start_s, seen.gap_max_s(), seen.end_s), (Some(1.0), 8.0, 9.5));
        seen.close(0.5);
        assert_eq!(seen.length_s(), 9.0);
    }

    /// Frames at these times, in the order of the file.
    fn at(times: impl IntoIterator<Item = f64>) -> Seen {
        let lines: Vec<String> = times.into_iter().map(|time| format!("0|{time}|N/A|N/A|___")).collect();
        seen(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn a_pause_is_no_part_of_the_rate_unless_all_are_pauses() {
        let second = |from: f64| (0..25).map(move |n| from + f64::from(n) / 25.0);
        let paused = at(second(0.0).chain(second(11.0)));
        assert!((paused.rate().unwrap() - 25.0).abs() < 1e-6, "{paused:?}");
        assert!((paused.gap_max_s() - 10.04).abs() < 1e-6, "{paused:?}");
        let slides = at((0..30).map(|n| f64::from(n) * 10.0));
        assert!((slides.rate().unwrap() - 0.1).abs() < 1e-6, "{slides:?}");
        assert_eq!(at([3.0]).rate(), None);
    }

    #[test]
    fn frames_that_are_shown_before_one_that_came_earlier_leave_no_gap() {
        let reordered =
            at((0..20).flat_map(|n| [0.0, -2.0, -3.0, -1.0].map(|back| f64::from(n) * 4.0 + back)));
        assert!(reordered.gap_max_s() <= 2.0, "{reordered:?}");
        assert!((reordered.rate().unwrap() - 1.0).abs() < 0.1, "{reordered:?}");
        assert_eq!(at([0.0, 90.0, 1.0, 2.0]).gap_max_s(), 88.0, "a gap with frames at its beginning");
    }

    #[test]
    fn keyframes_are_remembered_a_second_apart_and_their_disorder_is_noticed() {
        let all_intra: Vec<String> =
            (0..250).map(|n| format!("0|{}|{0}|0.04|K__", f64::from(n) / 25.0)).collect();
        let lines: Vec<&str> = all_intra.iter().map(String::as_str).collect();
        let mut seen = seen(&lines);
        assert_eq!((seen.keyframes, seen.keyframes_s.len(), seen.disordered), (250, 10, false));
        seen.add(Packet::parse("0|3.0|3.0|0.04|K__").unwrap());
        assert!(seen.disordered, "two recordings one after the other");
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line in "[0-9a-zA-Z|./:_-]{0,40}") {
            if let Some(packet) = Packet::parse(&line) {
                Seen::default().add(packet);
            }
        }
    }
}
