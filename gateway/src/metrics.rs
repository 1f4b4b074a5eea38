//! Every metric family of the gateway. Call sites only increment; labels are enums or configured names.

pub mod pools;

use std::sync::OnceLock;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry,
};

/// What a request is counted as.
const ROUTES: [&str; 10] =
    ["submit", "upload_request", "upload", "read", "media", "cancel", "retry", "local", "events", "none"];
/// How it ended.
const CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "none"];

/// Requests and their times, by route. Looked up once each: a family finds its member by hashing labels under a lock.
#[derive(Debug)]
pub struct Requests {
    count: IntCounterVec,
    seconds: HistogramVec,
    counts: [[OnceLock<IntCounter>; CLASSES.len()]; ROUTES.len()],
    times: [OnceLock<Histogram>; ROUTES.len()],
}

impl Requests {
    fn new(count: IntCounterVec, seconds: HistogramVec) -> Self {
        Self { count, seconds, counts: Default::default(), times: Default::default() }
    }

    /// One has ended after `seconds`.
    pub fn ended(&self, route: &'static str, class: &'static str, seconds: f64) {
        let place = |of: &[&str], label| of.iter().position(|known| *known == label);
        match (place(&ROUTES, route), place(&CLASSES, class)) {
            (Some(at), Some(class_at)) => {
                let count = || self.count.with_label_values(&[route, class]);
                self.counts[at][class_at].get_or_init(count).inc();
                let time = || self.seconds.with_label_values(&[route]);
                self.times[at].get_or_init(time).observe(seconds);
            }
            _ => {
                self.count.with_label_values(&[route, class]).inc();
                self.seconds.with_label_values(&[route]).observe(seconds);
            }
        }
    }
}

/// The families, registered.
#[derive(Debug)]
pub struct Metrics {
    /// Requests by route and status class, and their seconds from header to end.
    pub requests: Requests,
    /// Requests that are being worked on.
    pub in_flight: IntGauge,
    /// Where submits went, by pool and reason.
    pub decisions: IntCounterVec,
    /// Submits that went nowhere, by reason.
    pub refusals: IntCounterVec,
    /// Tries after the first, by what had gone wrong.
    pub retries: IntCounterVec,
    /// Retries that the budget forbade.
    pub retries_denied: IntCounter,
    /// Workers ejected, by pool.
    pub ejections: IntCounterVec,
    /// Failed probes, by kind.
    pub probe_failures: IntCounterVec,
    /// Load reports that were not believed, by how they came.
    pub unbelievable_reports: IntCounterVec,
    /// What came of asking a pool's source for endpoints, by pool and result.
    pub discovery_lookups: IntCounterVec,
    /// Endpoints in force, by pool and whether the file or a source brought them.
    pub discovery_endpoints: GaugeVec,
    /// Seconds since a pool's source had its last good answer.
    pub discovery_age: GaugeVec,
    /// Probe tasks.
    pub probe_tasks: IntGauge,
    /// Tasks that the runtime holds.
    pub tasks: IntGauge,
    /// Connections refused because their address has too many.
    pub connections_refused: IntCounter,
    /// Lines of the access log that nobody took in time.
    pub access_log_dropped: IntCounter,
    /// Requests refused because their key or address asks too often.
    pub rate_limited: IntCounter,
    /// Uploads refused for their size, by problem code.
    pub uploads_limited: IntCounterVec,
    /// Requests refused for who asked, by problem code.
    pub auth_refused: IntCounterVec,
    /// API keys in force.
    pub auth_keys: IntGauge,
    /// 1 when the latest file of keys is in force, else 0.
    pub auth_keys_success: IntGauge,
    /// Keys in force that tokens are checked with.
    pub auth_jwks_keys: IntGauge,
    /// 1 when the latest set of such keys is in force, else 0.
    pub auth_jwks_success: IntGauge,
    /// What came of asking for that set, by outcome.
    pub auth_jwks_fetches: IntCounterVec,
    /// Tokens looked up among those that were checked already, by result: `hit` or `miss`.
    pub auth_tokens: IntCounterVec,
    /// TLS handshakes that clients did not manage.
    pub tls_handshakes_failed: IntCounter,
    /// When the certificate in force ends, in Unix seconds; 0 without TLS.
    pub certificate_expiry: IntGauge,
    /// 1 when the latest certificate is in force, else 0.
    pub certificate_success: IntGauge,
    /// When the certificate shown to workers ends, else the first of their CAs, in Unix seconds; 0 without either.
    pub upstream_certificate_expiry: IntGauge,
    /// 1 when the latest files of `[upstream_tls]` are in force, else 0.
    pub upstream_certificate_success: IntGauge,
    /// 1 for an endpoint that answers, else 0.
    pub endpoint_healthy: GaugeVec,
    /// Free share of a pool's capacity, 0–1.
    pub pool_headroom: GaugeVec,
    /// A pool's admin weight; 0 while it drains.
    pub pool_weight: GaugeVec,
    /// A pool's capacity in reference-seconds per second.
    pub pool_capacity: GaugeVec,
    /// What moving a gigabyte out of a pool costs, in US dollars.
    pub pool_egress_usd: GaugeVec,
    /// How pools stand, answer and cost.
    pub pools: pools::Pools,
    /// Counts up with every routing file put in force.
    pub reload_generation: IntGauge,
    /// 1 when the last reload succeeded, else 0.
    pub reload_success: IntGauge,
    /// When the last successful reload was, in Unix seconds.
    pub reload_timestamp: Gauge,
}

macro_rules! registered {
    ($registry:expr, $type:ident, $name:literal, $help:literal $(, $labels:expr)?) => {{
        let metric = $type::new(Opts::new(concat!("millrace_gateway_", $name), $help).into() $(, $labels)?)?;
        $registry.register(Box::new(metric.clone()))?;
        metric
    }};
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// When a name is taken already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = HistogramOpts::new("millrace_gateway_request_seconds", "From header to end")
            .buckets(prometheus::exponential_buckets(0.001, 2.5, 13)?);
        let request_seconds = HistogramVec::new(seconds, &["route"])?;
        registry.register(Box::new(request_seconds.clone()))?;
        let labels = &["route", "status"];
        let requests = registered!(registry, IntCounterVec, "requests_total", "Requests", labels);
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("millrace_gateway_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("millrace_gateway_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let reload_timestamp = Gauge::new(
            "millrace_gateway_config_reload_success_timestamp_seconds",
            "When the routing file in force was read",
        )?;
        registry.register(Box::new(reload_timestamp.clone()))?;
        Ok(Self {
            requests: Requests::new(requests, request_seconds),
            in_flight: gauge("requests_in_flight", "Requests being worked on")?,
            decisions: registered!(
                registry,
                IntCounterVec,
                "routing_decisions_total",
                "Where submits went",
                &["pool", "reason"]
            ),
            refusals: registered!(
                registry,
                IntCounterVec,
                "routing_refusals_total",
                "Submits that went nowhere",
                &["reason"]
            ),
            retries: registered!(
                registry,
                IntCounterVec,
                "retries_total",
                "Tries after the first",
                &["cause"]
            ),
            retries_denied: counter("retries_denied_total", "Retries that the budget forbade")?,
            ejections: registered!(
                registry,
                IntCounterVec,
                "ejections_total",
                "Workers ejected as outliers",
                &["pool"]
            ),
            probe_failures: registered!(
                registry,
                IntCounterVec,
                "probe_failures_total",
                "Failed probes",
                &["kind"]
            ),
            unbelievable_reports: registered!(
                registry,
                IntCounterVec,
                "unbelievable_reports_total",
                "Load reports not believed",
                &["via"]
            ),
            discovery_lookups: registered!(
                registry,
                IntCounterVec,
                "discovery_lookups_total",
                "Questions to a pool's source",
                &["pool", "result"]
            ),
            discovery_endpoints: registered!(
                registry,
                GaugeVec,
                "discovery_endpoints",
                "Endpoints in force",
                &["pool", "source"]
            ),
            discovery_age: registered!(
                registry,
                GaugeVec,
                "discovery_last_good_answer_age_seconds",
                "Age of the source's last good answer",
                &["pool"]
            ),
            tasks: gauge("tasks", "Tasks of the runtime, one of each connection among them")?,
            probe_tasks: gauge("probe_tasks", "Endpoints being probed")?,
            connections_refused: counter(
                "connections_refused_total",
                "Connections over the limit of their address",
            )?,
            access_log_dropped: counter("access_log_dropped_total", "Lines that nobody took in time")?,
            rate_limited: counter("rate_limited_total", "Requests of who asks too often")?,
            uploads_limited: registered!(
                registry,
                IntCounterVec,
                "uploads_limited_total",
                "Uploads refused for their size",
                &["code"]
            ),
            auth_refused: registered!(
                registry,
                IntCounterVec,
                "auth_refused_total",
                "Requests refused for who asked",
                &["code"]
            ),
            auth_keys: gauge("auth_keys", "API keys in force")?,
            auth_keys_success: gauge(
                "auth_keys_reload_success",
                "1 when the latest file of keys is in force",
            )?,
            auth_jwks_keys: gauge("auth_jwks_keys", "Keys in force that tokens are checked with")?,
            auth_jwks_success: gauge("auth_jwks_success", "1 when the latest set of those keys is in force")?,
            auth_jwks_fetches: registered!(
                registry,
                IntCounterVec,
                "auth_jwks_fetches_total",
                "Questions for the set of keys",
                &["outcome"]
            ),
            auth_tokens: registered!(
                registry,
                IntCounterVec,
                "auth_tokens_total",
                "Tokens looked up among those checked already",
                &["result"]
            ),
            tls_handshakes_failed: counter("tls_handshakes_failed_total", "TLS handshakes that failed")?,
            certificate_expiry: gauge(
                "certificate_expiry_timestamp_seconds",
                "When the certificate in force ends; 0 without TLS",
            )?,
            certificate_success: gauge(
                "certificate_reload_success",
                "1 when the latest certificate is in force",
            )?,
            upstream_certificate_expiry: gauge(
                "upstream_certificate_expiry_timestamp_seconds",
                "When the certificate shown to workers ends, else the first of their CAs; 0 without TLS to workers",
            )?,
            upstream_certificate_success: gauge(
                "upstream_certificate_reload_success",
                "1 when the latest certificates of TLS to workers are in force",
            )?,
            endpoint_healthy: registered!(
                registry,
                GaugeVec,
                "endpoint_healthy",
                "1 when it answers",
                &["pool", "endpoint"]
            ),
            pool_headroom: registered!(
                registry,
                GaugeVec,
                "pool_headroom_ratio",
                "Free share of its capacity",
                &["pool"]
            ),
            pool_weight: registered!(
                registry,
                GaugeVec,
                "pool_weight",
                "Admin weight; 0 while it drains",
                &["pool"]
            ),
            pool_capacity: registered!(
                registry,
                GaugeVec,
                "pool_capacity_reference_seconds_per_second",
                "Capacity",
                &["pool"]
            ),
            pool_egress_usd: registered!(
                registry,
                GaugeVec,
                "pool_egress_usd_per_gb",
                "Price of a gigabyte that leaves it",
                &["pool"]
            ),
            pools: pools::Pools::new(registry)?,
            reload_generation: gauge("config_reload_generation", "Routing files put in force")?,
            reload_success: gauge("config_reload_success", "1 when the last reload succeeded")?,
            reload_timestamp,
        })
    }

    /// Sets the gauges that show the fleet, for pools and endpoints that exist now and no others. Called when
    /// somebody reads: a gauge nobody reads need not be kept.
    pub fn show(&self, status: &crate::admin::status::Status) {
        let vectors = [
            &self.endpoint_healthy,
            &self.pool_headroom,
            &self.pool_weight,
            &self.pool_capacity,
            &self.pool_egress_usd,
            &self.discovery_endpoints,
            &self.discovery_age,
        ];
        vectors.into_iter().for_each(GaugeVec::reset);
        self.pools.show(status);
        for pool in &status.pools {
            let label = [pool.name.as_str()];
            self.pool_headroom.with_label_values(&label).set(pool.headroom);
            self.pool_weight.with_label_values(&label).set(if pool.drain { 0.0 } else { pool.weight });
            self.pool_capacity.with_label_values(&label).set(pool.capacity);
            self.pool_egress_usd.with_label_values(&label).set(pool.egress_usd_per_gb);
            let found = pool.source.as_ref().map_or(0, |source| source.endpoints);
            let listed = pool.workers.len().saturating_sub(found);
            self.discovery_endpoints.with_label_values(&[label[0], "static"]).set(listed as f64);
            if let Some(source) = &pool.source {
                self.discovery_endpoints
                    .with_label_values(&[label[0], source.kind.as_str()])
                    .set(found as f64);
                if let Some(age_s) = source.good_age_s {
                    self.discovery_age.with_label_values(&label).set(age_s);
                }
            }
            for worker in &pool.workers {
                let address = worker.address.to_string();
                let healthy = self.endpoint_healthy.with_label_values(&[pool.name.as_str(), &address]);
                healthy.set(f64::from(u8::from(worker.healthy)));
            }
        }
    }
}
