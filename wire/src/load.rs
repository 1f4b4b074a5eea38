//! The load report: what a worker says about itself.
//!
//! It travels two ways: as JSON from `GET /load`, and in ORCA's text form on every response, so that Envoy and
//! gRPC can read our workers too. Submitting a job answers in milliseconds and the job runs for minutes, so HTTP
//! latency says nothing about how busy a worker is; this record is the only thing that routing believes.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{PoolId, WorkerId};

/// A worker's own account of its load. Work is counted in reference-seconds: what a job's ladder costs on a
/// reference core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Who speaks.
    pub worker: WorkerId,
    /// Whose pool it claims from.
    pub pool: PoolId,
    /// The job store behind it; a submit whose outcome is unknown may only be repeated where this matches.
    pub store_id: String,
    /// Jobs it can run at once.
    pub slots: u32,
    /// Jobs it runs now.
    pub running: u32,
    /// Jobs it accepted that still wait.
    pub queued: u32,
    /// How many jobs may wait here before it refuses more.
    pub queue_max: u32,
    /// Reference-seconds it holds (running and accepted-but-waiting), less what is done.
    pub work_seconds: f64,
    /// Reference-seconds done per slot and second, measured.
    pub speed: f64,
    /// Jobs that wait in its pool, whoever accepted them.
    pub pool_queued: u32,
    /// Reference-seconds that wait in its pool.
    pub pool_work_seconds: f64,
    /// It takes no new jobs: it is about to end, or lacks what every job needs.
    pub draining: bool,
    /// Given by the store when the worker registered; a restart is a higher one.
    pub incarnation: u64,
    /// Counts up with every report of one incarnation. The highest (incarnation, sequence) wins.
    pub sequence: u64,
}

/// Why a report was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is no ORCA text record.
    #[error("not an ORCA text record: {0}")]
    Syntax(String),
    /// A number that a worker cannot mean: negative, not finite, or zero where that makes no sense.
    #[error("{field} = {got} is not a believable value")]
    Unbelievable {
        /// The metric's name.
        field: &'static str,
        /// What it said.
        got: String,
    },
    /// A metric that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// What a text record must name.
const NUMBERS: [&str; 11] = [
    "slots",
    "running",
    "queued",
    "queue_max",
    "work_seconds",
    "speed",
    "pool_queued",
    "pool_work_seconds",
    "draining",
    "incarnation",
    "sequence",
];

/// Most jobs, running or waiting, that a report may claim; above it the report is refused as a whole. A worker's own
/// queue holds at most 100,000.
pub const COUNT_MAX: u32 = 1_000_000;
/// Most slots that a report may claim: sixteen times what a worker can be told to have.
pub const SLOTS_MAX: u32 = 1024;
/// Most reference-seconds of work that a report may claim (about 30 years).
pub const WORK_SECONDS_MAX: f64 = 1e9;
/// Most reference-seconds per slot and second that a report may claim: twice what a worker believes of itself.
pub const SPEED_MAX: f64 = 100.0;

impl LoadReport {
    /// Whether `self` was said later than `other` by the same worker.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.incarnation, self.sequence) > (other.incarnation, other.sequence)
    }

    /// Running jobs over slots, 0–1.
    pub fn utilization(&self) -> f64 {
        if self.slots == 0 { 1.0 } else { (f64::from(self.running) / f64::from(self.slots)).min(1.0) }
    }

    /// Refuses numbers that would poison arithmetic downstream. Call it on everything that came over a socket.
    pub fn validate(self) -> Result<Self, Error> {
        let counts = [
            ("slots", self.slots, SLOTS_MAX),
            ("running", self.running, COUNT_MAX),
            ("queued", self.queued, COUNT_MAX),
            ("queue_max", self.queue_max, COUNT_MAX),
            ("pool_queued", self.pool_queued, COUNT_MAX),
        ];
        for (field, got, max) in counts {
            if got > max {
                return Err(Error::Unbelievable { field, got: got.to_string() });
            }
        }
        let sums = [
            ("work_seconds", self.work_seconds, 0.0, WORK_SECONDS_MAX),
            ("pool_work_seconds", self.pool_work_seconds, 0.0, WORK_SECONDS_MAX),
            ("speed", self.speed, 1e-6, SPEED_MAX),
        ];
        for (field, got, min, max) in sums {
            if !(min..=max).contains(&got) {
                return Err(Error::Unbelievable { field, got: got.to_string() });
            }
        }
        if self.slots == 0 {
            return Err(Error::Unbelievable { field: "slots", got: "0".to_owned() });
        }
        Ok(self)
    }

    /// The value of the `endpoint-load-metrics` header: ORCA's native text form.
    pub fn to_orca(&self) -> String {
        let mut text = format!("TEXT application_utilization={:.4}", self.utilization());
        let metrics: [(&str, f64); 11] = [
            ("slots", f64::from(self.slots)),
            ("running", f64::from(self.running)),
            ("queued", f64::from(self.queued)),
            ("queue_max", f64::from(self.queue_max)),
            ("work_seconds", self.work_seconds),
            ("speed", self.speed),
            ("pool_queued", f64::from(self.pool_queued)),
            ("pool_work_seconds", self.pool_work_seconds),
            ("draining", f64::from(u8::from(self.draining))),
            ("incarnation", self.incarnation as f64),
            ("sequence", self.sequence as f64),
        ];
        for (name, value) in metrics {
            write!(text, ", named_metrics.{name}={value}").expect("writing to a String cannot fail");
        }
        text
    }

    /// Reads [`Self::to_orca`]'s text; names and store come from the side that knows whom it asked.
    pub fn from_orca(text: &str, worker: &WorkerId, pool: &PoolId, store_id: &str) -> Result<Self, Error> {
        let body = text
            .strip_prefix("TEXT")
            .ok_or_else(|| Error::Syntax("it does not start with TEXT".to_owned()))?;
        // In the order of `NUMBERS`. No map: this is read with every answer of a worker.
        let mut found = [None; NUMBERS.len()];
        let (mut rest, mut next) = (Some(body), 0);
        while let Some(text) = rest {
            let text = text.trim_ascii_start();
            let named = text.strip_prefix("named_metrics.").unwrap_or(text);
            // Our workers write them in this order.
            let expected = NUMBERS.get(next).and_then(|name| named.strip_prefix(name)?.strip_prefix('='));
            let (place, value) = match expected {
                Some(value) => (Some(next), value),
                None => {
                    let pair = cut(text, b',').map_or(text, |(pair, _)| pair);
                    let (name, _) = cut(pair, b'=')
                        .ok_or_else(|| Error::Syntax(format!("{:?} has no '='", pair.trim_ascii_end())))?;
                    let value = &text[name.len() + 1..];
                    let name = name.strip_prefix("named_metrics.").unwrap_or(name).trim_ascii_end();
                    (NUMBERS.iter().position(|known| *known == name), value)
                }
            };
            let (value, more) = cut(value, b',').map_or((value, None), |(value, more)| (value, Some(more)));
            rest = more;
            let value = value.trim_ascii();
            let number = decimal(value).or_else(|| value.parse().ok());
            let number = number.ok_or_else(|| Error::Syntax(format!("{value:?} is no number")))?;
            if let Some(place) = place {
                found[place] = Some(number);
                next = place + 1;
            }
        }
        let number = |field: &'static str| {
            let place = NUMBERS.iter().position(|known| *known == field);
            place.and_then(|place| found[place]).ok_or(Error::Missing(field))
        };
        let count = |field: &'static str| {
            let got = number(field)?;
            if (0.0..=f64::from(COUNT_MAX)).contains(&got) {
                Ok(got as u32)
            } else {
                Err(Error::Unbelievable { field, got: got.to_string() })
            }
        };
        let serial = |field: &'static str| {
            let got = number(field)?;
            if (0.0..9e15).contains(&got) {
                Ok(got as u64)
            } else {
                Err(Error::Unbelievable { field, got: got.to_string() })
            }
        };
        Self {
            worker: worker.clone(),
            pool: pool.clone(),
            store_id: store_id.to_owned(),
            slots: count("slots")?,
            running: count("running")?,
            queued: count("queued")?,
            queue_max: count("queue_max")?,
            work_seconds: number("work_seconds")?,
            speed: number("speed")?,
            pool_queued: count("pool_queued")?,
            pool_work_seconds: number("pool_work_seconds")?,
            draining: number("draining")? != 0.0,
            incarnation: serial("incarnation")?,
            sequence: serial("sequence")?,
        }
        .validate()
    }
}

/// What stands before and after the first such character. For texts as short as these quicker than `split_once`, which
/// gets ready for long ones.
fn cut(text: &str, at: u8) -> Option<(&str, &str)> {
    let place = text.as_bytes().iter().position(|byte| *byte == at)?;
    Some((&text[..place], &text[place + 1..]))
}

/// A number of at most fifteen digits, which most are.
fn decimal(text: &str) -> Option<f64> {
    let digits = (1..=15).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.bytes().fold(0_u64, |sum, byte| 10 * sum + u64::from(byte - b'0')) as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report() -> LoadReport {
        LoadReport {
            worker: "w1".parse().unwrap(),
            pool: "aws".parse().unwrap(),
            store_id: "s".to_owned(),
            slots: 2,
            running: 1,
            queued: 3,
            queue_max: 8,
            work_seconds: 12.5,
            speed: 0.8,
            pool_queued: 4,
            pool_work_seconds: 99.0,
            draining: false,
            incarnation: 7,
            sequence: 42,
        }
    }

    fn parse(text: &str) -> Result<LoadReport, Error> {
        LoadReport::from_orca(text, &"w1".parse().unwrap(), &"aws".parse().unwrap(), "s")
    }

    #[test]
    fn a_report_survives_the_header() {
        assert_eq!(parse(&report().to_orca()).unwrap(), report());
    }

    #[test]
    fn order_and_spaces_say_nothing() {
        let text = report().to_orca();
        let mut pairs: Vec<String> = text["TEXT ".len()..].split(", ").map(str::to_owned).collect();
        pairs.reverse();
        pairs.push(" unknown = 7 ".to_owned());
        assert_eq!(parse(&format!("TEXT {}", pairs.join(","))).unwrap(), report());
        let spaced: Vec<String> =
            pairs.iter().map(|pair| format!("  {} ", pair.replace('=', " = "))).collect();
        assert_eq!(parse(&format!("TEXT{}", spaced.join(","))).unwrap(), report());
        let plain = text.replace("named_metrics.", "").replace("sequence=42", "sequence=9007199254740");
        assert_eq!(parse(&plain).unwrap().sequence, 9_007_199_254_740);
        for bad in ["TEXT slots", "TEXT slots=", "TEXT slots=1x", "TEXT slots=1,,running=1", "TEXT =", "TEXT"]
        {
            assert!(matches!(parse(bad), Err(Error::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn wrong_numbers_are_refused_as_a_whole() {
        for (from, to) in [
            ("work_seconds=12.5", "work_seconds=NaN"),
            ("work_seconds=12.5", "work_seconds=-1"),
            ("speed=0.8", "speed=0"),
            ("speed=0.8", "speed=inf"),
            ("slots=2", "slots=0"),
            ("slots=2", "slots=1e30"),
            ("slots=2", "slots=1025"),
            ("speed=0.8", "speed=100.1"),
            ("queue_max=8", "queue_max=1000001"),
            ("running=1", "running=-1"),
        ] {
            let text = report().to_orca().replacen(from, to, 1);
            assert!(matches!(parse(&text), Err(Error::Unbelievable { .. })), "{text}");
        }
        assert!(matches!(parse("BIN abc"), Err(Error::Syntax(_))));
        assert!(matches!(parse("TEXT slots=1"), Err(Error::Missing(_))));
    }

    #[test]
    fn what_the_largest_worker_can_say_is_believed() {
        // The bounds of a worker's settings, and of what it learns of its speed.
        let largest = LoadReport { slots: 64, running: 64, queue_max: 100_000, speed: 50.0, ..report() };
        assert_eq!(parse(&largest.to_orca()), Ok(largest));
    }

    #[test]
    fn a_restarted_worker_outranks_its_past() {
        let old = LoadReport { incarnation: 1, sequence: 900, ..report() };
        let new = LoadReport { incarnation: 2, sequence: 1, ..report() };
        assert!(new.supersedes(&old) && !old.supersedes(&new) && !new.supersedes(&new));
    }

    proptest! {
        #[test]
        fn no_header_text_panics(text in ".{0,200}") {
            let _ = parse(&text);
            let _ = parse(&format!("TEXT {text}"));
        }
    }
}
