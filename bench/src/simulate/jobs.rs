//! What arrives in a day: when, how long, how well that is known, and where its input lies.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp, LogNormal, Pareto};

/// Reference-seconds per gigabyte of input: a full ladder costs 1.95 reference-seconds per second of source
/// (`route::Job`'s own estimate), and a second of source is 0.625 MB.
const WORK_S_PER_GB: f64 = 1.95 / 0.000_625;

/// How long jobs are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    /// Lognormal with this σ.
    LogNormal(f64),
    /// Exponential.
    Exponential,
    /// Pareto with this shape, cut at a hundred means.
    Pareto(f64),
}

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// How long jobs are.
    pub lengths: Lengths,
    /// Their mean work, in reference-seconds.
    pub mean_work_s: f64,
    /// Share of jobs whose client tells a length or a size.
    pub hinted: f64,
    /// σ of the lognormal error of an estimate made of such a hint.
    pub hint_error: f64,
    /// Share of jobs whose input lies in a pool's bucket, evenly over the pools; the rest come by URL.
    pub stored: f64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            lengths: Lengths::LogNormal(1.0),
            mean_work_s: 120.0,
            hinted: 1.0,
            hint_error: 0.3,
            stored: 0.8,
        }
    }
}

/// One job of the day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// When a client posts it, in seconds.
    pub at_s: f64,
    /// Its work, in reference-seconds.
    pub work_s: f64,
    /// What is known of that before it is probed; `None` without a hint.
    pub hint_s: Option<f64>,
    /// The pool whose bucket holds its input.
    pub input_pool: Option<usize>,
    /// Its input, in gigabytes.
    pub input_gb: f64,
    /// The gateway that it is posted to.
    pub gateway: usize,
}

impl Workload {
    /// Poisson arrivals of `work_rate` reference-seconds per second for `seconds`, over so many pools and gateways.
    pub fn draw(&self, work_rate: f64, seconds: f64, pools: usize, gateways: usize, seed: u64) -> Vec<Job> {
        let mut rng = StdRng::seed_from_u64(seed);
        let gap = Exp::new(work_rate / self.mean_work_s).expect("a rate above 0");
        let error = LogNormal::new(0.0, self.hint_error).expect("a finite error");
        let (mut jobs, mut at_s) = (Vec::new(), 0.0);
        loop {
            at_s += gap.sample(&mut rng);
            if at_s >= seconds {
                return jobs;
            }
            let work_s = self.length(&mut rng);
            // Drawn in any case, so that workloads that differ in one number are otherwise the same day.
            let (hinted, error_by) = (rng.random::<f64>() < self.hinted, error.sample(&mut rng));
            let (stored, pool) = (rng.random::<f64>() < self.stored, rng.random_range(0..pools));
            jobs.push(Job {
                at_s,
                work_s,
                hint_s: hinted.then_some(work_s * error_by),
                input_pool: stored.then_some(pool),
                input_gb: work_s / WORK_S_PER_GB,
                gateway: rng.random_range(0..gateways),
            });
        }
    }

    fn length(&self, rng: &mut StdRng) -> f64 {
        let mean = self.mean_work_s;
        let length = match self.lengths {
            // The mean of a lognormal is exp(μ + σ²/2).
            Lengths::LogNormal(sigma) => {
                LogNormal::new(mean.ln() - sigma * sigma / 2.0, sigma).expect("a finite σ").sample(rng)
            }
            Lengths::Exponential => Exp::new(1.0 / mean).expect("a mean above 0").sample(rng),
            // The mean of a Pareto is scale · shape ÷ (shape − 1); the cut takes little of it.
            Lengths::Pareto(shape) => {
                Pareto::new(mean * (shape - 1.0) / shape, shape).expect("a shape above 1").sample(rng)
            }
        };
        length.clamp(1.0, 100.0 * mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_the_work_that_was_asked_for_and_is_the_same_each_time() {
        for lengths in [Lengths::LogNormal(1.0), Lengths::Exponential, Lengths::Pareto(2.2)] {
            let workload = Workload { lengths, ..Workload::default() };
            let day = workload.draw(60.0, 400_000.0, 2, 8, 1);
            let rate = day.iter().map(|job| job.work_s).sum::<f64>() / 400_000.0;
            assert!((rate / 60.0 - 1.0).abs() < 0.04, "{rate} for {lengths:?}");
            assert_eq!(day, workload.draw(60.0, 400_000.0, 2, 8, 1));
        }
    }
}
