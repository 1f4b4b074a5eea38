//! A job in parts: what its tasks are, and what is said about them.
//!
//! A job begins with one task. Where that one finds the source long, it commits a plan and further tasks in its place
//! ([`super::Store::split`]): ranges of the picture and the sound, which any worker of the pool may take, each with a lease
//! and attempts of its own. Each leaves a result ([`super::Store::commit`]), and with the last of them comes the task that
//! puts them together and publishes. From the split to its end such a job is running, whoever works at it.
//!
//! How fast such a job is: what a worker has done of its ranges in a second of working at one, times how many are worked at
//! now. So it follows the workers that come and go, waiting is no slowness, and the end of a range no standstill. Between two
//! ranges, while nobody works at one, it is what it was.

use serde::{Deserialize, Serialize};

use super::{Error, Lease};
use crate::ffmpeg::args;

/// Which part of a job a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// All of it, or, of a long one, its source and its plan: the first task of every job.
    Whole,
    /// One range of the picture, counted from 0.
    Range(u32),
    /// The sound.
    Sound,
    /// Putting it together and publishing it.
    Finish,
}

impl Part {
    /// As a task's row has it.
    pub(super) fn read(kind: &str, ordinal: i64) -> Result<Self, Error> {
        let wrong = || Error::Corrupt(format!("task {kind:?} {ordinal}"));
        match (kind, u32::try_from(ordinal).map_err(|_| wrong())?) {
            ("video", 0) => Ok(Self::Whole),
            ("video", ordinal) => Ok(Self::Range(ordinal - 1)),
            ("audio", 0) => Ok(Self::Sound),
            ("finalize", 0) => Ok(Self::Finish),
            _ => Err(wrong()),
        }
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Whole | Self::Range(_) => "video",
            Self::Sound => "audio",
            Self::Finish => "finalize",
        }
    }

    pub(super) fn ordinal(self) -> i64 {
        match self {
            Self::Range(index) => i64::from(index) + 1,
            _ => 0,
        }
    }

    /// The folder below a job's that its attempts write into.
    pub fn folder(self) -> String {
        match self {
            Self::Whole => "video".to_owned(),
            Self::Range(index) => format!("range-{index:05}"),
            Self::Sound => "audio".to_owned(),
            Self::Finish => "finalize".to_owned(),
        }
    }
}

/// A task that a plan asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewPart {
    /// Which.
    pub part: Part,
    /// Reference-seconds.
    pub work_seconds: f64,
    /// What it counts for in the job's progress, in seconds of media.
    pub media_s: f64,
}

/// What the commit of a part came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// It is done, now or in an earlier try whose answer was lost.
    Yes,
    /// The lease is somebody else's, or the job is over or about to be.
    No,
    /// Another encoder was first: an equal one has to do this again.
    Again,
}

/// A part that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Which.
    pub part: Part,
    /// The claim that did it.
    pub lease: Lease,
    /// What it left, as it was committed.
    pub result: String,
}

/// Whose segments a job's outputs are that was made in parts. Small whatever the length: a number for each range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pieces {
    /// Renditions of the picture; the sound is the next one.
    pub pictures: usize,
    /// Segments of each range but the last.
    pub segments: usize,
    /// For each range, the attempt that made it.
    pub ranges: Vec<u64>,
    /// The attempt that made the sound, and the last of its segments that is as it left it.
    pub sound: Option<(u64, usize)>,
    /// The last of a picture's segments that is as its range left it, if not all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures_to: Option<usize>,
}

impl Pieces {
    /// The part and the attempt that a segment of that name is of; none of what the finalizer wrote itself.
    pub fn of(&self, name: &str) -> Option<(Part, u64)> {
        let (rendition, number) = args::parse_segment_name(name)?;
        if rendition < self.pictures {
            if self.pictures_to.is_some_and(|last| number > last) {
                return None;
            }
            let range =
                (number.checked_sub(1)? / self.segments.max(1)).min(self.ranges.len().checked_sub(1)?);
            return Some((Part::Range(u32::try_from(range).ok()?), self.ranges[range]));
        }
        let (attempt, last) = self.sound.filter(|_| rendition == self.pictures)?;
        (number <= last).then_some((Part::Sound, attempt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_found_with_whom_made_it() {
        let (sound, pictures_to) = (Some((2, 50)), None);
        let pieces = Pieces { pictures: 2, segments: 15, ranges: vec![1, 3, 1], sound, pictures_to };
        let of = |rendition, number| pieces.of(&args::segment_name(rendition, number));
        assert_eq!(of(0, 15), Some((Part::Range(0), 1)));
        assert_eq!(of(1, 16), Some((Part::Range(1), 3)));
        assert_eq!(of(1, 53), Some((Part::Range(2), 1)), "the last one is longer");
        assert_eq!((of(2, 50), of(2, 51), of(3, 1)), (Some((Part::Sound, 2)), None, None));
        for name in
            ["init_0.mp4", "seg_0_00000.m4s", "master.m3u8", "seg_0_.m4s", "seg_0_1_1.m4s", "seg_0_00001.mp4"]
        {
            assert_eq!(pieces.of(name), None, "{name}");
        }
        let joined = Pieces { pictures_to: Some(52), ..pieces.clone() };
        let of = |number| joined.of(&args::segment_name(1, number));
        assert_eq!((of(52), of(53)), (Some((Part::Range(2), 1)), None), "the last two are one now");
        let manifest = crate::store::Manifest {
            bucket: "aws".parse().unwrap(),
            prefix: "jobs/u/finalize/a2".to_owned(),
            pieces: Some(pieces),
            files: 1,
            outputs: Default::default(),
            warnings: Vec::new(),
        };
        assert_eq!(manifest.key("seg_1_00016.m4s"), "jobs/u/range-00001/a3/seg_1_00016.m4s");
        assert_eq!(manifest.key("init_1.mp4"), "jobs/u/finalize/a2/init_1.mp4");
    }

    #[test]
    fn a_part_is_read_as_it_was_written() {
        for part in [Part::Whole, Part::Range(0), Part::Range(41), Part::Sound, Part::Finish] {
            assert_eq!(Part::read(part.kind(), part.ordinal()).unwrap(), part);
        }
        assert!(Part::read("audio", 1).is_err() && Part::read("probe", 0).is_err());
        assert_eq!(Part::Range(41).folder(), "range-00041");
    }
}
