//! Jobs that are tried once more when all their attempts are used up.

use axum::Router;
use axum::routing::get;
use millrace_bench::System;
use millrace_wire::job::{FailureCode, State};
use millrace_wire::problem::Code;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, SMALL, Stage, clip};

#[tokio::test]
async fn a_dead_job_is_done_after_all_once_its_source_is_back() {
    let builder = System::builder().pool("aws", 1).pool("gcp", 1).worker_arg("--attempts-max", "1");
    let stage = Stage::start(builder).await;
    let retry = async |id: &str| stage.client.post(&format!("/jobs/{id}/retry"), &Value::Null).await.unwrap();
    // Nobody listens there, for now.
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("http://{address}/v.mp4");
    stage.client.submit(&json!({ "job_id": "away", "input_url": url })).await.unwrap();
    let dead = stage.client.wait_final("away", PATIENCE).await.unwrap();
    assert_eq!((dead.state, dead.error.unwrap().code), (State::Dead, FailureCode::SourceUnreachable));

    let bytes = std::fs::read(clip(&SMALL).await).unwrap();
    let router = Router::new().route("/v.mp4", get(async move || bytes.clone()));
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let again = retry("away").await.success().unwrap();
    assert_eq!((again.status.as_u16(), again.header("location")), (202, Some("/jobs/away")));
    let done = stage.succeeded("away").await;
    assert_eq!((done.attempt, done.error), (2, None));
    assert_eq!(retry("away").await.problem().unwrap().code, Code::JobNotRetryable);
    assert_eq!(retry("nobody").await.problem().unwrap().code, Code::JobNotFound);

    // What lies at a URL may be another file by now: it is looked at again, and is as it was.
    stage.client.submit(&json!({ "job_id": "gone", "input_url": stage.web.url("/gone.mp4") })).await.unwrap();
    assert_eq!(stage.client.wait_final("gone", PATIENCE).await.unwrap().state, State::Failed);
    retry("gone").await.success().unwrap();
    let failed = stage
        .client
        .wait_for("gone", "failed again", PATIENCE, |job| job.attempt == 2 && job.state.is_final());
    assert_eq!(failed.await.unwrap().error.unwrap().code, FailureCode::SourceNotFound);
    server.abort();
    stage.end().await;
}
