//! Work that waits in a busy pool while another one is idle.

use std::time::Duration;

use millrace_bench::System;
use millrace_wire::job::{Job, State};
use serde_json::json;

use crate::stage::{PATIENCE, SMALL, Stage, clip};

/// What the first pool's bytes cost to leave, at one US dollar for an hour of waiting.
const USD_PER_GB: f64 = 0.09;

/// What a job whose input has so many bytes must have waited in the first pool before the second takes it.
fn price(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / 1e9 * USD_PER_GB * 3600.0)
}

#[tokio::test]
async fn a_job_moves_to_an_idle_pool_once_it_has_waited_for_its_price_and_not_before() {
    let mut stage = Stage::start(System::builder().pool("aws", 1).pool("gcp", 1)).await;
    let before = stage.system.generation().await.unwrap();
    // Every submit goes to the one pool, however busy it is and however idle the other one.
    stage.system.rewrite_routing(|routing| routing.pool("gcp").weight = 1e-12).unwrap();
    stage.system.wait_reloaded(before, PATIENCE).await.unwrap();
    stage.client.submit(&stage.web.held_spec("held")).await.unwrap();
    let runs = |job: &Job| job.state == State::Running;
    let held = stage.client.wait_for("held", "running", PATIENCE, runs).await.unwrap();
    assert_eq!(held.pool.as_str(), "aws");

    let ticket = stage.client.upload_ticket("clip.mp4", "video/mp4").await.unwrap();
    assert!(ticket.input_path.starts_with("aws/"), "{ticket:?}");
    let put = stage.client.put_file(&ticket, "video/mp4", &clip(&SMALL).await, |_| {}).await.unwrap();
    put.success().unwrap();
    let spec = |id: &str, bytes: u64| json!({ "job_id": id, "input_path": ticket.input_path, "size_hint_bytes": bytes });
    let (cheap, dear) = (15_000_000, 10_000_000_000);
    for (id, bytes) in [("dear", dear), ("cheap", cheap)] {
        let answer = stage.client.process(&spec(id, bytes)).await.unwrap().success().unwrap();
        assert_eq!((answer.pool(), answer.header("millrace-steal")), (Some("aws"), None), "{id}");
    }
    let done = stage.succeeded("cheap").await;
    assert_eq!((done.pool.as_str(), done.attempt), ("gcp", 1));
    let time = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    let waited = time(&done.started_at.unwrap()).duration_since(time(&done.created_at)).as_secs_f64();
    assert!(
        waited >= price(cheap).as_secs_f64(),
        "it moved after {waited} s, at a price of {:?}",
        price(cheap)
    );
    let stays = stage.client.job("dear").await.unwrap();
    assert_eq!((stays.state, stays.pool.as_str()), (State::Queued, "aws"), "older, but not worth its price");

    let metrics = stage.system.worker_client("gcp-1").unwrap().get("/metrics").await.unwrap().text();
    assert!(
        metrics.contains(r#"millrace_worker_stolen_total{from="aws",to="gcp",pool="gcp"} 1"#),
        "{metrics}"
    );
    let events = stage.client.get("/jobs/cheap/events").await.unwrap().text();
    assert!(events.contains("\"pool\":\"gcp\""), "{events}");
    stage.web.release();
    assert_eq!(stage.succeeded("dear").await.pool.as_str(), "aws");
    stage.end().await;
}
