//! Jobs that a client wants tried again.

use millrace_wire::job::FailureCode;

use super::*;
use crate::store::AttemptEnd;

impl Served {
    /// Lets the job that waits fail until it is dead.
    async fn kill(&self) {
        for _ in 0..3 {
            let claim = self.claim().await;
            let (code, detail) = (FailureCode::ObjectsUnavailable, "why".to_owned());
            let failed = AttemptEnd::Failed { code, detail, retry_after: Duration::ZERO };
            self.app.store.end(&claim.lease, &failed).await.unwrap();
        }
    }

    async fn retry(&self, id: &str) -> reqwest::Response {
        self.ask("POST", &format!("/jobs/{id}/retry")).send().await.unwrap()
    }
}

#[tokio::test]
async fn a_dead_job_waits_again_and_the_worker_looks_at_once() {
    let served = Served::start().await;
    served.accept("j").await;
    assert_eq!(code(served.retry("j").await).await, (409, Code::JobNotRetryable));
    served.kill().await;
    let events = served.get("/jobs/j/events").await.text().await.unwrap();
    assert!(events.contains("event: end"), "{events}");
    let stranger =
        served.ask("POST", "/jobs/j/retry").header("millrace-tenant", "other").send().await.unwrap();
    assert_eq!(code(stranger).await, (404, Code::JobNotFound));

    let answer = served.retry("j").await;
    assert_eq!((answer.status(), header(&answer, "location")), (StatusCode::ACCEPTED, Some("/jobs/j")));
    let job: Job = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!((job.state, job.attempt, job.error), (millrace_wire::job::State::Queued, 3, None));
    tokio::time::timeout(Duration::from_secs(5), served.app.nudge.notified()).await.unwrap();
    assert_eq!(code(served.retry("j").await).await, (409, Code::JobNotRetryable));
    assert_eq!(code(served.retry("nobody").await).await, (404, Code::JobNotFound));
    assert_eq!(code(served.retry("%20").await).await, (422, Code::BadJobId));

    // Whoever followed it to its end reads on from there.
    let claim = served.claim().await;
    served.publish(&claim, outputs(), &["master.m3u8"]).await;
    let seen = events.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap().to_owned();
    let rest = served.ask("GET", "/jobs/j/events").header("last-event-id", seen).send().await.unwrap();
    let rest = rest.text().await.unwrap();
    assert!(rest.contains("\"state\":\"queued\"") && rest.contains("\"state\":\"succeeded\""), "{rest}");
}

#[tokio::test]
async fn a_dead_job_whose_upload_is_gone_says_so() {
    let served = Served::start().await;
    let ticket = served.ask("POST", "/upload/request").body(r#"{"filename":"v.mp4"}"#).send().await.unwrap();
    let ticket: serde_json::Value = serde_json::from_str(&ticket.text().await.unwrap()).unwrap();
    served.client.put(ticket["upload_url"].as_str().unwrap()).body("x").send().await.unwrap();
    let path = ticket["input_path"].as_str().unwrap();
    let body = serde_json::json!({ "input_path": path, "job_id": "j" }).to_string();
    assert_eq!(served.ask("POST", "/jobs").body(body).send().await.unwrap().status(), StatusCode::ACCEPTED);
    served.kill().await;
    let (bucket, key) = keys::split_input_path(path).unwrap();
    served.app.objects.delete(&bucket, key).await.unwrap();
    assert_eq!(code(served.retry("j").await).await, (410, Code::InputGone));
    assert_eq!(served.job("j").await.state, millrace_wire::job::State::Dead, "it stays as it was");
}

#[tokio::test]
async fn a_worker_without_room_or_time_takes_no_retry() {
    let served = Served::start().await;
    served.accept("dead").await;
    served.kill().await;
    for job in ["a", "b", "c"] {
        served.accept(job).await;
    }
    let full = served.retry("dead").await;
    assert!(header(&full, "retry-after").is_some());
    assert_eq!(code(full).await, (429, Code::Saturated));
    served.app.load.drain();
    assert_eq!(code(served.retry("dead").await).await, (503, Code::Draining));
}

#[tokio::test]
async fn a_job_is_worth_more_than_its_prices() {
    let served = Served::start().await;
    for (number, prices) in ["gcp=42,azure=7.5", "gcp", "gcp=NaN", "gcp=-1", "gcp=1,gcp=2"].iter().enumerate()
    {
        let spec = format!(r#"{{"input_url":"http://h/v","job_id":"j{number}"}}"#);
        let answer = served.ask("POST", "/jobs").header(headers::STEAL, *prices).body(spec);
        let answer = answer.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{prices}");
        assert_eq!(header(&answer, headers::STEAL), None);
        // The queue is short.
        assert!(
            served.ask("DELETE", &format!("/jobs/j{number}")).send().await.unwrap().status().is_success()
        );
    }
}
