//! The calls of the README, exactly as they stand there.

use millrace_bench::System;
use millrace_wire::headers;
use millrace_wire::job::{JobPage, State};
use millrace_wire::problem::Code;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::json;

use crate::stage::Stage;

#[tokio::test]
async fn a_posted_video_becomes_one_job_however_often_it_is_posted() {
    let stage = Stage::start(System::builder().pool("aws", 2).pool("gcp", 2)).await;
    let client = &stage.client;
    let url = stage.web.url("/ladder.mp4");
    let body = json!({ "input_url": url, "resolutions": ["1080p", "720p", "480p"], "job_id": "test-job-1" });

    let accepted = client.process(&body).await.unwrap();
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert_eq!(accepted.header("location"), Some("/jobs/test-job-1"));
    let (pool, worker) = (accepted.pool().unwrap(), accepted.worker().unwrap());
    assert!(["aws", "gcp"].contains(&pool) && worker.starts_with(pool), "{pool} {worker}");
    assert_eq!(accepted.header(headers::LOAD), None, "the load report is not for clients");
    assert_eq!(accepted.header(headers::STORE), None, "nor is the store");
    let job = accepted.job().unwrap();
    assert_eq!((job.job_id.as_str(), job.pool.as_str()), ("test-job-1", pool));

    assert_eq!(client.job("test-job-1").await.unwrap().spec, job.spec);
    let page: JobPage = client.get("/jobs").await.unwrap().success().unwrap().json().unwrap();
    assert_eq!(page.jobs.iter().map(|job| job.job_id.as_str()).collect::<Vec<_>>(), ["test-job-1"]);

    let again = client.process(&body).await.unwrap();
    assert_eq!((again.status.as_u16(), again.job().unwrap().created_at), (200, job.created_at.clone()));
    let other = json!({ "input_url": url, "resolutions": ["360p"], "job_id": "test-job-1" });
    let refused = client.process(&other).await.unwrap();
    assert_eq!(refused.status, 409);
    let problem = refused.problem().unwrap();
    assert_eq!((problem.code, problem.job_id.unwrap().as_str()), (Code::JobConflict, "test-job-1"));

    let done = stage.succeeded("test-job-1").await;
    assert_eq!(
        done.outputs.unwrap().renditions.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["480p"]
    );
    assert!(!done.warnings.is_empty(), "the rungs above the source were left out, and it says so");
    let after = client.process(&body).await.unwrap();
    assert_eq!((after.status.as_u16(), after.job().unwrap().state), (200, State::Succeeded));
    assert_eq!(client.jobs().await.unwrap().len(), 1);
    stage.end().await;
}

#[tokio::test]
async fn an_idempotency_key_is_a_job_id_and_without_either_one_is_assigned() {
    let stage = Stage::two_pools().await;
    let client = &stage.client;
    let keyed = async |key: &'static str, body: &serde_json::Value| {
        let headers = HeaderMap::from_iter([
            (headers::IDEMPOTENCY_KEY.parse().unwrap(), HeaderValue::from_static(key)),
            ("content-type".parse().unwrap(), HeaderValue::from_static("application/json")),
        ]);
        client.send(Method::POST, "/jobs", headers, body.to_string()).await.unwrap()
    };
    let nameless = json!({ "input_url": stage.web.url("/small.mp4") });
    let first = keyed("key-1", &nameless).await;
    assert_eq!((first.status.as_u16(), first.job().unwrap().job_id.as_str()), (202, "key-1"));
    let named = keyed("key-1", &stage.web.small_spec("key-1")).await;
    assert_eq!(named.status, 200, "the same job by its other name: {}", named.text());
    let mismatch = keyed("key-1", &stage.web.small_spec("key-2")).await;
    assert_eq!(mismatch.problem().unwrap().code, Code::JobIdMismatch);

    let assigned = client.submit(&nameless).await.unwrap();
    assert_eq!(assigned.job_id.as_str().len(), 36, "a UUID: {}", assigned.job_id);
    assert_ne!(client.submit(&nameless).await.unwrap().job_id, assigned.job_id, "no id, no idempotency");
    for job in client.jobs().await.unwrap() {
        stage.succeeded(job.job_id.as_str()).await;
    }
    stage.end().await;
}

#[tokio::test]
async fn a_list_is_paged_and_filtered() {
    let stage = Stage::two_pools().await;
    for number in 1..=5 {
        stage.client.submit(&stage.web.small_spec(&format!("job-{number}"))).await.unwrap();
    }
    for number in 1..=5 {
        stage.succeeded(&format!("job-{number}")).await;
    }
    let mut seen = Vec::new();
    let mut path = "/jobs?limit=2&status=succeeded".to_owned();
    loop {
        let page: JobPage = stage.client.get(&path).await.unwrap().success().unwrap().json().unwrap();
        assert!(page.jobs.len() <= 2);
        seen.extend(page.jobs.into_iter().map(|job| job.job_id.to_string()));
        let Some(cursor) = page.next_cursor else { break };
        path = format!("/jobs?limit=2&status=succeeded&cursor={cursor}");
    }
    assert_eq!(seen, ["job-5", "job-4", "job-3", "job-2", "job-1"], "the newest first, each once");
    let none: JobPage =
        stage.client.get("/jobs?status=failed").await.unwrap().success().unwrap().json().unwrap();
    assert!(none.jobs.is_empty());
    let bad = stage.client.get("/jobs?status=sleeping").await.unwrap();
    assert_eq!(bad.problem().unwrap().code, Code::BadQuery);
    stage.end().await;
}
