//! What a job costs, in reference-seconds, before anybody has looked at it; and how fast this worker is.
//!
//! A reference-second is what one slot of the reference machine does in a second. The plan knows a job's work after
//! the probe; before it, the client's hints, the input's size, or else the recent average must do. Speed is learned:
//! reference-seconds done over seconds taken.

use std::sync::Mutex;

use millrace_wire::JobSpec;
use millrace_wire::spec::Resolution;

use crate::ladder;

/// Work of a job about which nothing is known, until jobs have been seen.
const WORK_SECONDS_FIRST: f64 = 60.0;
/// Weight of the newest job in both averages.
const NEWEST: f64 = 0.2;
/// Bits per second assumed of an input whose length nobody told.
const INPUT_BITS_PER_SECOND: f64 = 5e6;
/// Speeds outside are measurement errors (a job of one frame, a suspended machine).
const SPEED: std::ops::RangeInclusive<f64> = 0.02..=50.0;

#[derive(Debug, Clone, Copy)]
struct Averages {
    work_seconds: f64,
    speed: f64,
}

/// Estimates and what was learned.
#[derive(Debug)]
pub struct CostModel(Mutex<Averages>);

impl Default for CostModel {
    fn default() -> Self {
        Self(Mutex::new(Averages { work_seconds: WORK_SECONDS_FIRST, speed: 1.0 }))
    }
}

impl CostModel {
    fn averages(&self) -> std::sync::MutexGuard<'_, Averages> {
        self.0.lock().expect("nothing panics while holding the averages")
    }

    /// Reference-seconds done per slot and second, measured.
    pub fn speed(&self) -> f64 {
        self.averages().speed
    }

    /// Estimate at accept. `input_bytes` is the size of an input in our own store.
    pub fn estimate(&self, spec: &JobSpec, input_bytes: Option<u64>) -> f64 {
        let seconds = spec.duration_hint_s.map(f64::from).or_else(|| {
            let bytes = input_bytes.or(spec.size_hint_bytes)?;
            Some(bytes as f64 * 8.0 / INPUT_BITS_PER_SECOND)
        });
        let Some(seconds) = seconds else { return self.averages().work_seconds };
        let rungs = if spec.resolutions.is_empty() { &Resolution::ALL[..] } else { &spec.resolutions };
        let heights: Vec<u32> = rungs.iter().map(|r| r.height()).collect();
        ladder::work_seconds_guess(seconds, &heights)
    }

    /// Learns from a finished encode: its planned work and the wall seconds it took.
    pub fn learn(&self, work_seconds: f64, wall_seconds: f64) {
        let speed = work_seconds / wall_seconds.max(1e-3);
        let mut averages = self.averages();
        averages.work_seconds += NEWEST * (work_seconds - averages.work_seconds);
        if SPEED.contains(&speed) {
            averages.speed += NEWEST * (speed - averages.speed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(body: &str) -> JobSpec {
        JobSpec::parse(body.as_bytes()).unwrap().0
    }

    #[test]
    fn hints_beat_sizes_beat_the_average() {
        let model = CostModel::default();
        let nothing = model.estimate(&spec(r#"{"input_url":"http://h/v"}"#), None);
        assert_eq!(nothing, WORK_SECONDS_FIRST);
        let hinted = spec(r#"{"input_url":"http://h/v","duration_hint_s":3600,"size_hint_bytes":1}"#);
        assert!(model.estimate(&hinted, Some(1)) > 100.0);
        assert!(model.estimate(&spec(r#"{"input_url":"http://h/v"}"#), Some(1_000_000)) < 20.0);
    }

    #[test]
    fn speed_follows_what_was_measured_and_ignores_nonsense() {
        let model = CostModel::default();
        for _ in 0..50 {
            model.learn(30.0, 60.0);
        }
        assert!((model.speed() - 0.5).abs() < 0.01, "{}", model.speed());
        model.learn(30.0, 0.0);
        assert!((model.speed() - 0.5).abs() < 0.01, "{}", model.speed());
    }
}
