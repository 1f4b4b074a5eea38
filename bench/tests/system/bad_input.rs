//! Input that is wrong in every way we know: each has its stable code, and nobody falls over.

use millrace_bench::System;
use millrace_wire::job::{FailureCode, Job, State};
use millrace_wire::problem::Code;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, Stage};

#[tokio::test]
async fn a_bad_request_is_refused_with_its_code_and_field() {
    let stage = Stage::two_pools().await;
    let url = stage.web.url("/small.mp4");
    let cases: [(Value, u16, Code, &str); 12] = [
        (json!({"input_url": url, "colour": "red"}), 422, Code::UnknownField, "colour"),
        (json!({"input_url": url, "resolutions": ["8k"]}), 422, Code::BadResolution, "resolutions"),
        (json!({"input_url": url, "resolutions": []}), 422, Code::BadField, "resolutions"),
        (json!({"input_url": url, "job_id": "../etc/passwd"}), 422, Code::BadJobId, "job_id"),
        (json!({"input_url": url, "job_id": ".hidden"}), 422, Code::BadJobId, "job_id"),
        (json!({"input_url": url, "job_id": "x".repeat(65)}), 422, Code::BadJobId, "job_id"),
        (json!({"input_url": "file:///etc/passwd"}), 422, Code::BadField, "input_url"),
        (json!({"resolutions": ["360p"]}), 422, Code::BadField, "input_url"),
        (json!({"input_path": "../../etc/passwd"}), 422, Code::BadInputPath, "input_path"),
        (json!({"input_path": "aws/../../etc/passwd"}), 422, Code::BadInputPath, "input_path"),
        (json!({"input_path": "/etc/passwd"}), 422, Code::BadInputPath, "input_path"),
        (json!({"input_path": "aws/uploads/nothing/there.mp4"}), 422, Code::BadInputPath, "input_path"),
    ];
    for (body, status, code, field) in cases {
        let answer = stage.client.process(&body).await.unwrap();
        let problem = answer.problem().unwrap();
        assert_eq!(
            (problem.status, problem.code, problem.field.as_deref()),
            (status, code, Some(field)),
            "{body}"
        );
    }

    let raw = async |body: String| {
        stage.client.send(Method::POST, "/process", HeaderMap::new(), body).await.unwrap().problem().unwrap()
    };
    assert_eq!(raw("{".to_owned()).await.code, Code::BadJson);
    assert_eq!(raw("[]".to_owned()).await.code, Code::BadJson);
    let large = json!({"input_url": url, "labels": {"a": "x".repeat(66_000)}});
    let problem = raw(large.to_string()).await;
    assert_eq!((problem.status, problem.code), (413, Code::SpecTooLarge));

    for path in ["/jobs/nobody", "/media/nobody/master.m3u8"] {
        let problem = stage.client.get(path).await.unwrap().problem().unwrap();
        assert_eq!(problem.code, Code::JobNotFound, "{path}");
    }
    assert_eq!(stage.client.get("/nowhere").await.unwrap().problem().unwrap().code, Code::NotFound);
    assert!(stage.client.jobs().await.unwrap().is_empty(), "none of them became a job");
    stage.end().await;
}

#[tokio::test]
async fn a_bad_source_fails_its_job_with_its_code_and_nothing_else() {
    let stage =
        Stage::start(System::builder().pool("aws", 1).pool("gcp", 1).worker_arg("--queue-max", "32")).await;
    // A port that was free a moment ago and that nobody listens on.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases = [
        ("unreachable", format!("http://{unused}/v.mp4"), FailureCode::SourceUnreachable),
        ("no-such-host", "http://no-such-host.invalid/v.mp4".to_owned(), FailureCode::SourceUnreachable),
        ("not-found", stage.web.url("/nothing.mp4"), FailureCode::SourceNotFound),
        ("gone", stage.web.url("/gone.mp4"), FailureCode::SourceNotFound),
        ("html", stage.web.url("/html.mp4"), FailureCode::SourceNotMedia),
        ("playlist", stage.web.url("/playlist.mp4"), FailureCode::SourceNotMedia),
        ("cut", stage.web.url("/cut.mp4"), FailureCode::SourceTruncated),
        ("empty", stage.web.url("/empty.mp4"), FailureCode::SourceEmpty),
    ];
    for (id, url, _) in &cases {
        stage.client.submit(&json!({ "job_id": id, "input_url": url })).await.unwrap();
    }
    stage.client.submit(&stage.web.small_spec("good")).await.unwrap();
    for (id, _, code) in &cases {
        // What may pass is tried again; its first failure shows meanwhile.
        let failed = |job: &Job| job.error.is_some() && (job.state.is_final() || !code.is_permanent());
        let job = stage.client.wait_for(id, "failed", PATIENCE, failed).await.unwrap();
        let error = job.error.unwrap();
        assert_eq!(error.code, *code, "{id}: {}", error.detail);
        assert!(!error.detail.contains("/scratch/"), "{id}: a path of the worker's: {}", error.detail);
        if code.is_permanent() {
            assert_eq!((job.state, job.attempt), (State::Failed, 1), "{id}");
        }
        let media = stage.client.get(&format!("/media/{id}/master.m3u8")).await.unwrap();
        let expected = if job.state.is_final() { Code::JobWithoutOutputs } else { Code::JobNotReady };
        assert_eq!(media.problem().unwrap().code, expected, "{id}");
    }
    stage.succeeded("good").await;
    stage.end().await;
}

#[tokio::test]
async fn private_addresses_are_refused_unless_they_are_allowed() {
    let builder = System::builder().pool("aws", 1).without_worker_arg("--allow-private-sources");
    let stage = Stage::start(builder.worker_arg("--queue-max", "32")).await;
    let port = stage.web.url("").rsplit_once(':').unwrap().1.to_owned();
    let urls = [
        stage.web.url("/small.mp4"),
        format!("http://localhost:{port}/small.mp4"),
        format!("http://[::1]:{port}/small.mp4"),
        format!("http://2130706433:{port}/small.mp4"),
        format!("http://[::ffff:127.0.0.1]:{port}/small.mp4"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/v.mp4".to_owned(),
        "http://0.0.0.0/v.mp4".to_owned(),
    ];
    for (number, url) in urls.iter().enumerate() {
        stage
            .client
            .submit(&json!({ "job_id": format!("private-{number}"), "input_url": url }))
            .await
            .unwrap();
    }
    for (number, url) in urls.iter().enumerate() {
        let job = stage.client.wait_final(&format!("private-{number}"), PATIENCE).await.unwrap();
        let code = job.error.map(|error| error.code);
        assert_eq!((job.state, code), (State::Failed, Some(FailureCode::SourceAddressRefused)), "{url}");
    }
    stage.end().await;
}
