//! What was measured, what it comes to, and whether that is within the limits. Pure.

use serde::Serialize;

/// The whole ladder from one decode, beside one process per rendition.
const LADDER_OF_SEPARATE_MAX: f64 = 0.90;
/// The worker's encode, cage and progress included, beside the same command by hand.
const ENCODE_OF_LADDER_MAX: f64 = 1.03;
/// All that a job costs, beside the bare command.
const WHOLE_OF_LADDER_MAX: f64 = 1.08;
/// How much less SSIM a rendition may have than one made by a process of its own.
const SSIM_LOSS_MAX: f64 = 0.001;
/// How many bytes it may have, of those of one made by a process of its own.
const BYTES_OF_SEPARATE_MAX: f64 = 1.01;

/// What a command by hand cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// User and system time, all processes.
    pub cpu_s: f64,
    /// From start to end.
    pub wall_s: f64,
}

/// What a job cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct JobCost {
    /// User and system time of the worker and all its children, from submit to rest.
    pub cpu_s: f64,
    /// From accepted to finished.
    pub wall_s: f64,
    /// Of it: the worker itself.
    pub worker_cpu_s: f64,
    /// Of it: the process that encodes, the building of its cage included.
    pub encode_cpu_s: f64,
    /// The same by the worker's own account, where it gives one.
    pub encode_said_cpu_s: Option<f64>,
    /// Of it: all other children.
    pub other_cpu_s: f64,
    /// What the worker had estimated, in reference-seconds.
    pub estimate_s: f64,
}

/// Everything once, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Round {
    /// One ffmpeg by hand.
    pub ladder: Cost,
    /// One ffmpeg for each rendition by hand, one after the other.
    pub separate: Cost,
    /// A job as a client gets it that asks for nothing special.
    pub job: JobCost,
    /// A job with progressive files beside the stream.
    pub job_mp4: JobCost,
}

/// One rendition's quality and size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// `720p`.
    pub rendition: String,
    /// Published, beside the scaled source; 1 is the same picture.
    pub ssim: f64,
    /// Made by a process of its own.
    pub ssim_separate: f64,
    /// Of all segments that were published.
    pub bytes: u64,
    /// Of all segments that a process of its own made.
    pub bytes_separate: u64,
}

/// The middle and the ends of several values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Between these two lies the middle half.
    pub quartiles: [f64; 2],
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            return Self { median: f64::NAN, min: f64::NAN, max: f64::NAN, quartiles: [f64::NAN; 2] };
        };
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        let quartiles = [1, 3].map(|quarters| values[(values.len() - 1) * quarters / 4]);
        Self { median, min: *min, max: *max, quartiles }
    }
}

/// One limit and what it was held against.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// `ladder ÷ separate`, `SSIM of 720p`, …
    pub what: String,
    /// What was found. Of rounds: the ratio of the two medians.
    pub found: f64,
    /// The same of each round alone, from the smallest to the largest; none for what is the same every time.
    pub rounds: Option<Spread>,
    /// `≤ 0.90`, as text.
    pub limit: String,
    /// Whether it holds.
    pub holds: bool,
}

/// The verdicts on CPU time.
pub fn cpu_verdicts(rounds: &[Round]) -> Vec<Verdict> {
    let ladder = |round: &Round| round.ladder.cpu_s;
    vec![
        ratio("ladder ÷ separate", rounds, ladder, |round| round.separate.cpu_s, LADDER_OF_SEPARATE_MAX),
        ratio("encode task ÷ ladder", rounds, |round| round.job.encode_cpu_s, ladder, ENCODE_OF_LADDER_MAX),
        ratio("whole job ÷ ladder", rounds, |round| round.job.cpu_s, ladder, WHOLE_OF_LADDER_MAX),
    ]
}

fn ratio(
    what: &str,
    rounds: &[Round],
    above: impl Fn(&Round) -> f64,
    below: impl Fn(&Round) -> f64,
    max: f64,
) -> Verdict {
    let median = |of: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(of)).median;
    let found = median(&above) / median(&below);
    Verdict {
        what: what.to_owned(),
        found,
        rounds: Some(Spread::of(rounds.iter().map(|round| above(round) / below(round)))),
        limit: format!("≤ {max:.2}"),
        // Written so that no number at all breaks it as well.
        holds: found <= max,
    }
}

/// The verdicts on quality and size, of the rendition that fares worst.
pub fn quality_verdicts(quality: &[Quality]) -> Vec<Verdict> {
    let loss = |quality: &Quality| quality.ssim_separate - quality.ssim;
    let growth = |quality: &Quality| quality.bytes as f64 / quality.bytes_separate as f64;
    let worst = |of: &dyn Fn(&Quality) -> f64| quality.iter().max_by(|a, b| of(a).total_cmp(&of(b)));
    let verdict = |what: &str, of: &dyn Fn(&Quality) -> f64, max: f64, limit: String| {
        let (name, found) = worst(of).map_or(("none", f64::NAN), |quality| (&quality.rendition, of(quality)));
        Verdict { what: format!("{what}, {name}"), found, rounds: None, limit, holds: found <= max }
    };
    vec![
        // What ffmpeg prints has six decimals: a millionth more is rounding.
        verdict("SSIM lost at worst", &loss, SSIM_LOSS_MAX + 1e-6, format!("≤ {SSIM_LOSS_MAX}")),
        verdict(
            "bytes ÷ separate at worst",
            &growth,
            BYTES_OF_SEPARATE_MAX,
            format!("≤ {BYTES_OF_SEPARATE_MAX:.2}"),
        ),
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn round(ladder: f64, separate: f64, encode: f64, whole: f64) -> Round {
        let cost = |cpu_s| Cost { cpu_s, wall_s: cpu_s / 2.0 };
        let job = JobCost {
            cpu_s: whole,
            wall_s: whole / 2.0,
            worker_cpu_s: 0.1,
            encode_cpu_s: encode,
            encode_said_cpu_s: Some(encode),
            other_cpu_s: whole - encode - 0.1,
            estimate_s: 9.0,
        };
        Round { ladder: cost(ladder), separate: cost(separate), job, job_mp4: job }
    }

    pub(crate) fn quality(ssim: f64, bytes: u64) -> Quality {
        Quality { rendition: "720p".into(), ssim, ssim_separate: 0.98, bytes, bytes_separate: 1000 }
    }

    fn held(verdicts: &[Verdict]) -> Vec<bool> {
        verdicts.iter().map(|verdict| verdict.holds).collect()
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let of = |values: &[f64]| {
            let spread = Spread::of(values.iter().copied());
            (spread.median, spread.min, spread.max)
        };
        assert_eq!(of(&[3.0, 1.0, 100.0]), (3.0, 1.0, 100.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
        assert_eq!(of(&[7.0]), (7.0, 7.0, 7.0));
    }

    #[test]
    fn a_ratio_is_of_the_medians_and_one_bad_round_does_not_decide() {
        let good = round(10.0, 12.0, 10.2, 10.7);
        let verdicts = cpu_verdicts(&[good, round(10.0, 10.0, 20.0, 30.0), good]);
        assert_eq!(held(&verdicts), [true, true, true]);
        let rounds = verdicts[2].rounds.unwrap();
        assert!((rounds.max - 3.0).abs() < 1e-9 && (rounds.min - 1.07).abs() < 1e-9, "{rounds:?}");
    }

    #[test]
    fn each_limit_can_be_broken() {
        assert_eq!(held(&cpu_verdicts(&[round(10.0, 11.0, 10.0, 10.0)])), [false, true, true]);
        assert_eq!(held(&cpu_verdicts(&[round(10.0, 12.0, 10.4, 10.7)])), [true, false, true]);
        assert_eq!(held(&cpu_verdicts(&[round(10.0, 12.0, 10.3, 10.9)])), [true, true, false]);
        assert_eq!(held(&cpu_verdicts(&[])), [false, false, false], "nothing measured is nothing shown");
        assert_eq!(held(&quality_verdicts(&[quality(0.979, 1010)])), [true, true]);
        let worst = quality_verdicts(&[quality(0.98, 1011), quality(0.9789, 1000)]);
        assert_eq!(held(&worst), [false, false], "the worst of all, each in its own way");
        assert_eq!(held(&quality_verdicts(&[])), [false, false]);
    }
}
