//! Every family of the worker; call sites only increment. Labels are enums or configured names.

mod scratch;

use std::collections::HashMap;
use std::path::PathBuf;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::ffmpeg::Encoded;
use crate::fitness::Lack;
use crate::ladder::Plan;
use crate::store::copies::Kind;
use millrace_wire::{LoadReport, PoolId};
use tracing::debug;

pub use scratch::Usage;

/// The worker's families in a registry of its own.
#[derive(Debug)]
#[expect(missing_docs, reason = "each family says what it is in its help text")]
pub struct Metrics {
    registry: Registry,
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub submits: IntCounterVec,
    pub attempts: IntCounterVec,
    pub failures: IntCounterVec,
    pub leases_lost: IntCounter,
    pub stolen: IntCounterVec,
    pub store_errors: IntCounterVec,
    pub event_streams: IntGauge,
    pub swept: IntCounterVec,
    pub copies: IntCounterVec,
    pub copied_bytes: IntCounterVec,
    pub copies_waiting: IntGauge,
    pub copies_oldest_seconds: Gauge,
    pub moved: IntCounterVec,
    pub webhooks: IntCounterVec,
    pub sink_published: IntCounter,
    pub sink_failures: IntCounter,
    pub sink_lag_seconds: Gauge,
    pub tls_handshakes_failed: IntCounterVec,
    pub certificate_expiry: IntGauge,
    pub certificate_success: IntGauge,
    pub clock_ahead_seconds: Gauge,
    pub lacks: IntGaugeVec,
    pub wait_seconds: Histogram,
    pub encode_seconds: Histogram,
    pub encode_cpu_seconds: prometheus::Counter,
    pub realtime_speed: HistogramVec,
    slots: IntGauge,
    running: IntGauge,
    queued: IntGauge,
    work_seconds: Gauge,
    speed: Gauge,
    pool_queued: IntGauge,
    pool_work_seconds: Gauge,
    draining: IntGauge,
    scratch_used: IntGauge,
    scratch_free: IntGauge,
    scratch: Option<PathBuf>,
}

const FAST: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
const SLOW: &[f64] = &[0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];
const SPEEDS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A family that is declared wrongly or twice: a defect.
    pub fn new() -> Result<Self, prometheus::Error> {
        Self::with(Registry::new(), None)
    }

    /// Registers everything for a worker of a pool, which stands on all that it tells, with a scratch directory to watch.
    ///
    /// # Errors
    /// A family that is declared wrongly or twice: a defect.
    pub fn of(pool: &PoolId, scratch: PathBuf) -> Result<Self, prometheus::Error> {
        let labels = HashMap::from([("pool".to_owned(), pool.to_string())]);
        Self::with(Registry::new_custom(None, Some(labels))?, Some(scratch))
    }

    fn with(registry: Registry, scratch: Option<PathBuf>) -> Result<Self, prometheus::Error> {
        let name = |name: &str| format!("millrace_worker_{name}");
        let counters = |n: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name(n), help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let gauge = |n: &str, help: &str| {
            let family = IntGauge::new(name(n), help)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let real = |n: &str, help: &str| {
            let family = Gauge::new(name(n), help)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let histogram = |n: &str, help: &str, buckets: &[f64]| {
            let family = Histogram::with_opts(HistogramOpts::new(name(n), help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let histograms = |n: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let family =
                HistogramVec::new(HistogramOpts::new(name(n), help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let counter = |n: &str, help: &str| {
            let family = IntCounter::new(name(n), help)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let leases_lost =
            IntCounter::new(name("leases_lost_total"), "Leases that ended under a running attempt")?;
        registry.register(Box::new(leases_lost.clone()))?;
        let cpu = prometheus::Counter::new(name("encode_cpu_seconds_total"), "CPU seconds that ffmpeg took")?;
        registry.register(Box::new(cpu.clone()))?;
        let lacks = IntGaugeVec::new(
            Opts::new(name("lacks"), "1 while the worker claims nothing for want of it"),
            &["what"],
        )?;
        registry.register(Box::new(lacks.clone()))?;
        Lack::ALL.iter().for_each(|lack| lacks.with_label_values(&[lack.as_str()]).set(0));
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let webhooks = counters(
            "webhooks_total",
            "Webhooks sent, by what came of it: delivered, failed (it is sent again), given_up, gone (the receiver wants none), late (another worker told it)",
            &["outcome"],
        )?;
        // There from the start: a first one that appears as 1 is no increase to Prometheus.
        for outcome in ["delivered", "failed", "given_up", "gone", "late"] {
            webhooks.with_label_values(&[outcome]);
        }
        let copies = counters(
            "copies_total",
            "Copies of inputs and outputs into other pools' buckets, by how a try ended: done, failed (it is made again), released, lost (nobody wants it any more, or another makes it)",
            &["what", "outcome"],
        )?;
        for what in [Kind::Input, Kind::Outputs] {
            for outcome in ["done", "failed", "released", "lost"] {
                copies.with_label_values(&[what.as_str(), outcome]);
            }
        }
        Ok(Self {
            requests: counters("http_requests_total", "Requests by route and status", &["route", "status"])?,
            request_seconds: histograms(
                "http_request_seconds",
                "Seconds to a response's header",
                FAST,
                &["route"],
            )?,
            submits: counters("submits_total", "Submits by what became of them", &["outcome"])?,
            attempts: counters("attempts_total", "Attempts by how they ended", &["outcome"])?,
            failures: counters("failures_total", "Failed attempts by code", &["code"])?,
            leases_lost,
            stolen: counters(
                "stolen_total",
                "Tasks that this worker took from another pool's queue, because they had waited for their price",
                &["from", "to"],
            )?,
            store_errors: counters("store_errors_total", "Calls of the job store that failed", &["kind"])?,
            swept: counters("swept_total", "What was removed from the object store", &["what"])?,
            copies,
            copied_bytes: counters(
                "copied_bytes_total",
                "Bytes that copies took from one pool's bucket (or a url) into another's: what a pool is charged for as egress",
                &["from", "to", "what"],
            )?,
            copies_waiting: gauge(
                "copies_waiting",
                "Copies that wait for a worker, in all pools, as this worker last saw it",
            )?,
            copies_oldest_seconds: real(
                "copies_oldest_seconds",
                "How long the oldest copy that could be made has waited",
            )?,
            moved: counters(
                "moved_total",
                "Jobs moved to another pool's bucket because their own did not answer",
                &["from", "to"],
            )?,
            event_streams: gauge("event_streams", "Event streams that are open")?,
            sink_published: counter("sink_published_total", "Events that the event sink has acknowledged")?,
            sink_failures: counter(
                "sink_failures_total",
                "Looks after which the event sink had not all that was there",
            )?,
            sink_lag_seconds: real(
                "sink_lag_seconds",
                "Age of the oldest event that the event sink does not have yet, as its feeder last saw it",
            )?,
            webhooks,
            tls_handshakes_failed: counters(
                "tls_handshakes_failed_total",
                "TLS handshakes that failed: refused (a wrong certificate, or none), plain (no TLS at all), timeout",
                &["kind"],
            )?,
            certificate_expiry: gauge(
                "certificate_expiry_timestamp_seconds",
                "When the certificate in force ends; 0 without TLS",
            )?,
            certificate_success: gauge(
                "certificate_reload_success",
                "1 when the latest certificate is in force",
            )?,
            clock_ahead_seconds: real(
                "clock_ahead_seconds",
                "How far this machine's clock is ahead of the job store's",
            )?,
            lacks,
            wait_seconds: histogram("wait_seconds", "Seconds that a job waited to be claimed", SLOW)?,
            encode_seconds: histogram("encode_seconds", "Wall seconds of an encode", SLOW)?,
            encode_cpu_seconds: cpu,
            realtime_speed: histograms(
                "realtime_speed",
                "Media seconds per wall second, by the rendition that was part of the encode",
                SPEEDS,
                &["rendition"],
            )?,
            slots: gauge("slots", "Jobs that can run at once")?,
            running: gauge("running", "Jobs that run")?,
            queued: gauge("queued", "Jobs accepted here that nobody claimed yet")?,
            work_seconds: real(
                "work_seconds",
                "Reference-seconds held: running and waiting, less what is done",
            )?,
            speed: real("speed", "Reference-seconds done per slot and second")?,
            pool_queued: gauge("pool_queued", "Jobs that wait in the pool")?,
            pool_work_seconds: real("pool_work_seconds", "Reference-seconds that wait in the pool")?,
            draining: gauge("draining", "1 while no new jobs are taken")?,
            scratch_used: gauge("scratch_used_bytes", "What this worker's jobs take of the scratch space")?,
            scratch_free: gauge("scratch_free_bytes", "What the scratch space's file system still has")?,
            scratch,
            registry,
        })
    }

    /// Counts an encode that ended well.
    pub fn encoded(&self, plan: &Plan, encoded: &Encoded) {
        let wall = encoded.wall.as_secs_f64();
        self.encode_seconds.observe(wall);
        self.encode_cpu_seconds.inc_by(encoded.cpu.as_secs_f64());
        for rung in plan.rungs() {
            self.realtime_speed.with_label_values(&[&rung.name]).observe(plan.duration_s / wall.max(1e-3));
        }
    }

    /// The text of `/metrics`, with the load and the scratch space as they are now. Blocks, on the file system.
    ///
    /// # Errors
    /// A family that cannot be encoded: a defect.
    pub fn text(&self, load: &LoadReport) -> Result<String, prometheus::Error> {
        self.slots.set(load.slots.into());
        self.running.set(load.running.into());
        self.queued.set(load.queued.into());
        self.work_seconds.set(load.work_seconds);
        self.speed.set(load.speed);
        self.pool_queued.set(load.pool_queued.into());
        self.pool_work_seconds.set(load.pool_work_seconds);
        self.draining.set(load.draining.into());
        match self.scratch.as_deref().map(Usage::of) {
            Some(Ok(usage)) => {
                self.scratch_used.set(i64::try_from(usage.used).unwrap_or(i64::MAX));
                self.scratch_free.set(i64::try_from(usage.free).unwrap_or(i64::MAX));
            }
            Some(Err(error)) => debug!(%error, "cannot look at the scratch space"),
            None => {}
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
