//! Header names that cross the gateway.

/// The worker's load report in ORCA's text form, on every response of a worker; the gateway strips it.
pub const LOAD: &str = "endpoint-load-metrics";
/// The id of the job store behind a worker, beside [`LOAD`]; the gateway strips it.
pub const STORE: &str = "millrace-store";
/// The pool that answered; set by the gateway on every proxied response.
pub const POOL: &str = "millrace-pool";
/// The worker that answered; set by the gateway on every proxied response.
pub const WORKER: &str = "millrace-worker";
/// A client's own name for a submit; means the same as the body's `job_id`.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Seconds that a submitted job must wait before each other pool may take it: [`crate::steal::Prices`]; from the gateway to
/// the worker alone.
pub const STEAL: &str = "millrace-steal";
/// Why the gateway chose this pool and worker, as a short label.
pub const DECISION: &str = "millrace-decision";
