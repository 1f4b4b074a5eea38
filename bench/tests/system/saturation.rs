//! More work than room.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_bench::System;
use millrace_wire::job::State;
use millrace_wire::problem::Code;
use tokio::time::Instant;

use crate::stage::{PATIENCE, Stage};

/// Per worker: one job in its slot and two in its queue.
const ROOM: usize = 3;

#[tokio::test]
async fn a_full_pool_sends_work_to_the_other_and_two_full_pools_refuse_without_losing_any() {
    let stage =
        Stage::start(System::builder().pool("aws", 1).pool("gcp", 1).worker_arg("--queue-max", "2")).await;
    let mut accepted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        let id = format!("held-{}", accepted.values().map(Vec::len).sum::<usize>());
        let answer = stage.client.process(&stage.web.held_spec(&id)).await.unwrap();
        if answer.status == 429 {
            // Refused before an accepted job has moved from the queue to its slot: there is room in a moment.
            if stage.count(State::Running).await == 2 && stage.count(State::Queued).await == 2 * (ROOM - 1) {
                break (id, answer);
            }
        } else {
            assert_eq!(answer.status, 202, "{}", answer.text());
            accepted.entry(answer.pool().unwrap().to_owned()).or_default().push(id);
        }
        assert!(Instant::now() < deadline, "never saturated: {accepted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let rooms: Vec<usize> = accepted.values().map(Vec::len).collect();
    assert_eq!(rooms, [ROOM, ROOM], "both pools are used to the brim: {accepted:?}");

    let (id, answer) = refused;
    let problem = answer.problem().unwrap();
    assert_eq!((problem.code, problem.job_id.unwrap().as_str()), (Code::Saturated, id.as_str()));
    let wait = answer.retry_after().unwrap().as_secs();
    assert!((1..=300).contains(&wait), "Retry-After: {wait}");
    assert_eq!(problem.retry_after_s, Some(wait));
    let listed = stage.client.jobs().await.unwrap();
    assert!(listed.iter().all(|job| job.job_id.as_str() != id), "a refused job does not exist");
    let nameless = serde_json::json!({ "input_url": stage.web.url("/held.mp4"), "priority": "live" });
    let problem = stage.client.process(&nameless).await.unwrap().problem().unwrap();
    assert!(problem.job_id.is_some(), "the assigned id comes back, to post again with");

    stage.web.release();
    for id in accepted.values().flatten() {
        stage.succeeded(id).await;
    }
    // What was refused is welcome now, under the same id.
    stage.client.submit(&stage.web.held_spec(&id)).await.unwrap();
    stage.succeeded(&id).await;
    assert_eq!(stage.client.jobs().await.unwrap().len(), 2 * ROOM + 1);
    stage.end().await;
}
