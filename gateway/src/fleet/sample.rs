//! What tests take for a worker's report.

use millrace_wire::LoadReport;

/// An idle worker of that pool: two slots, four places in its queue.
pub(crate) fn report(pool: &str) -> LoadReport {
    LoadReport {
        worker: "w".parse().unwrap(),
        pool: pool.parse().unwrap(),
        store_id: "s".to_owned(),
        slots: 2,
        running: 0,
        queued: 0,
        queue_max: 4,
        work_seconds: 0.0,
        speed: 1.0,
        pool_queued: 0,
        pool_work_seconds: 0.0,
        draining: false,
        incarnation: 1,
        sequence: 1,
    }
}
