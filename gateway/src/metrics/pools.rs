//! What is told of pools: how they stand, how soon they answer, and what it costs that an input leaves one.
//!
//! How they stand is read off the fleet when somebody asks for the metrics; only submits count anything by themselves.

use prometheus::{Counter, CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use crate::admin::status::Status;
use crate::route::Job;

/// The families, registered.
#[derive(Debug)]
pub struct Pools {
    /// Seconds until a pool would start one more job.
    wait: GaugeVec,
    /// Reference-seconds that wait in a pool's queue, by its newest report.
    backlog: GaugeVec,
    /// F of a job of which nothing is known, in seconds: what routing compares.
    cost: GaugeVec,
    /// Share of new jobs that a pool would get now, 0–1.
    share: GaugeVec,
    /// Seconds to the first byte of an endpoint's answers to reads, as routing weighs them.
    endpoint_first_byte: GaugeVec,
    /// Seconds to the first byte of a submit's answer, by pool.
    submit_first_byte: HistogramVec,
    /// Bytes of inputs that jobs were sent away from, by where they lie and where the job went.
    egress_bytes: IntCounterVec,
    /// What that costs, in US dollars.
    egress_usd: CounterVec,
}

impl Pools {
    /// Registers them.
    ///
    /// # Errors
    /// When a name is taken already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let options = |name: &str, help: &str| Opts::new(format!("millrace_gateway_{name}"), help);
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let family = GaugeVec::new(options(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let times = HistogramOpts::from(options("submit_first_byte_seconds", "To a submit's first byte"))
            .buckets(prometheus::exponential_buckets(0.001, 2.5, 10)?);
        let submit_first_byte = HistogramVec::new(times, &["pool"])?;
        registry.register(Box::new(submit_first_byte.clone()))?;
        let moved = options("egress_bytes_total", "Estimated bytes of inputs that jobs were sent away from");
        let egress_bytes = IntCounterVec::new(moved, &["from", "to"])?;
        registry.register(Box::new(egress_bytes.clone()))?;
        let paid = options("egress_usd_total", "What moving them costs by the routing file's prices");
        let egress_usd = CounterVec::new(paid, &["from", "to"])?;
        registry.register(Box::new(egress_usd.clone()))?;
        Ok(Self {
            wait: gauges("pool_wait_seconds", "Until it would start one more job", &["pool"])?,
            backlog: gauges("pool_backlog_seconds", "Reference-seconds that wait in its queue", &["pool"])?,
            cost: gauges("pool_cost_seconds", "F of a job of which nothing is known", &["pool"])?,
            share: gauges("pool_share_ratio", "Share of new jobs that it would get now", &["pool"])?,
            endpoint_first_byte: gauges(
                "endpoint_first_byte_seconds",
                "To the first byte of its answers to reads, as routing weighs them",
                &["pool", "endpoint"],
            )?,
            submit_first_byte,
            egress_bytes,
            egress_usd,
        })
    }

    /// A worker of a pool has answered a submit after `seconds`.
    pub fn submit_answered(&self, pool: &str, seconds: f64) {
        self.submit_first_byte.with_label_values(&[pool]).observe(seconds);
    }

    /// A worker of `to` has accepted a job. Its input is counted where it lies elsewhere; `usd_per_gb` is that pool's
    /// price, if there still is such a pool.
    pub fn accepted(&self, job: &Job, to: &str, usd_per_gb: impl FnOnce(&str) -> Option<f64>) {
        let Some(from) = job.input_pool.as_ref().map(|from| from.as_str()).filter(|from| *from != to) else {
            return;
        };
        // A name that is no pool's is a client's invention, and would make a series.
        let Some(price) = usd_per_gb(from) else { return };
        // What a client claims of its input can be beyond all reason; saturating is what `as` does.
        self.egress_bytes.with_label_values(&[from, to]).inc_by((job.input_gb * 1e9) as u64);
        add(&self.egress_usd.with_label_values(&[from, to]), job.input_gb * price);
    }

    /// Sets what is read off the fleet, for pools and endpoints that exist now and no others.
    pub fn show(&self, status: &Status) {
        for vector in [&self.wait, &self.backlog, &self.cost, &self.share, &self.endpoint_first_byte] {
            vector.reset();
        }
        for pool in &status.pools {
            let name = pool.name.as_str();
            self.backlog.with_label_values(&[name]).set(pool.backlog_s);
            // Of a pool without workers neither is known, and a 0 would look like the best of all.
            if pool.capacity > 0.0 {
                self.wait.with_label_values(&[name]).set(pool.wait_s);
                self.cost.with_label_values(&[name]).set(pool.cost_s);
            }
            self.share.with_label_values(&[name]).set(pool.share);
            for worker in pool.workers.iter().filter(|worker| worker.healthy) {
                let endpoint = worker.address.to_string();
                let gauge = self.endpoint_first_byte.with_label_values(&[name, &endpoint]);
                gauge.set(worker.read_latency_ms / 1e3);
            }
            // Born at zero: of a counter that appears with a value Prometheus knows no increase.
            let priced = status.pools.iter().filter(|from| from.egress_usd_per_gb > 0.0);
            for from in priced.filter(|from| from.name != pool.name) {
                let labels = [from.name.as_str(), name];
                self.egress_bytes.with_label_values(&labels);
                self.egress_usd.with_label_values(&labels);
            }
        }
    }
}

/// Adds what is a number and not negative; a counter panics at anything else.
fn add(counter: &Counter, by: f64) {
    if by.is_finite() && by > 0.0 {
        counter.inc_by(by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(input_pool: &str, input_gb: f64) -> Job {
        Job { input_pool: Some(input_pool.parse().expect("a pool's name")), input_gb, ..Job::default() }
    }

    #[test]
    fn only_what_leaves_a_known_pool_costs() {
        let pools = Pools::new(&Registry::new()).expect("names are new");
        let price = |from: &str| (from == "aws").then_some(0.09);
        pools.accepted(&job("aws", 2.0), "gcp", price);
        pools.accepted(&job("aws", 2.0), "aws", price);
        pools.accepted(&job("nobody", 2.0), "gcp", price);
        pools.accepted(&Job::default(), "gcp", price);
        assert_eq!(pools.egress_bytes.with_label_values(&["aws", "gcp"]).get(), 2_000_000_000);
        assert!((pools.egress_usd.with_label_values(&["aws", "gcp"]).get() - 0.18).abs() < 1e-9);
        assert_eq!(pools.egress_bytes.with_label_values(&["aws", "aws"]).get(), 0);
        assert_eq!(pools.egress_bytes.with_label_values(&["nobody", "gcp"]).get(), 0);
    }

    #[test]
    fn sizes_beyond_all_reason_harm_nothing() {
        let pools = Pools::new(&Registry::new()).expect("names are new");
        for gb in [f64::INFINITY, f64::NAN, -1.0, 1e300] {
            pools.accepted(&job("aws", gb), "gcp", |_| Some(0.09));
        }
        assert!(pools.egress_usd.with_label_values(&["aws", "gcp"]).get().is_finite());
    }
}
