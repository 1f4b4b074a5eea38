//! What is said of requests, and by which names they are found again.

use serde_json::Value;

use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, eventually, gauge, http2, pools};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_one_id_and_one_trace_everywhere() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    for client in [gateway.client.clone(), http2()] {
        let post = client.post(gateway.url("/process")).body("{}").header("tracestate", "a=b");
        let answer = post.header("x-request-id", "mine-1").header("traceparent", TRACE).send().await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], "mine-1");
        let seen = worker.submits().pop().unwrap();
        assert_eq!(seen.header("x-request-id").as_deref(), Some("mine-1"));
        let trace = seen.header("traceparent").unwrap();
        assert!(trace.starts_with(&TRACE[..36]) && trace.ends_with("-01") && trace != TRACE, "{trace}");
        assert_eq!(seen.header("tracestate").as_deref(), Some("a=b"));

        let post = client.post(gateway.url("/process")).body("{}").header("tracestate", "a=b");
        let answer =
            post.header("x-request-id", "no good").header("traceparent", "00-1-2-3").send().await.unwrap();
        let seen = worker.submits().pop().unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!((id.len(), seen.header("x-request-id")), (32, Some(id.clone())));
        assert!(seen.header("traceparent").unwrap().starts_with(&format!("00-{id}-")));
        assert_eq!(seen.header("tracestate"), None, "it belonged to the other trace");
    }
    // Our own answers have one, too.
    for path in ["/livez", "/nothing", "/"] {
        let answer =
            gateway.client.get(gateway.url(path)).header("x-request-id", "mine-2").send().await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], "mine-2", "{path}");
    }
    assert!(gateway.log().contains("mine-1"), "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_has_a_line_without_its_secrets() {
    let worker = Fake::start("aws", "w1").await;
    let file = pools(&[("aws", 1.0, &[&worker])]);
    let gateway = Gateway::start(&format!("{file}[access_log]\nenabled = true\n")).await;
    gateway.healthy(1).await;
    let read = |path: &str| gateway.client.get(gateway.url(path)).header("x-request-id", "r-media").send();
    read("/media/j1/SECRETTOKEN/master.m3u8").await.unwrap();
    let put = gateway.client.put(gateway.url("/upload/aws/k?signature=SECRETSIGNATURE")).body("12345");
    put.send().await.unwrap();
    http2().post(gateway.url("/process")).body("{\"job_id\":\"j1\"}").send().await.unwrap();
    read("/SECRETPATH").await.unwrap();
    worker.behave(Behaviour::Status(500));
    read("/jobs/j2").await.unwrap();
    let lines = || -> Vec<Value> {
        let lines = gateway.output();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    eventually("all lines are there", || async { lines().len() == 5 }).await;
    let lines = lines();
    let shown = gateway.output().join("\n");
    assert!(!shown.contains("SECRET") && !gateway.log().contains("SECRET"), "{shown}\n{}", gateway.log());
    let of = |route: &str| lines.iter().find(|line| line["route"] == route).unwrap();
    let media = of("media");
    assert_eq!((&media["request_id"], &media["status"]), (&"r-media".into(), &200.into()));
    assert_eq!((&media["pool"], &media["sent_bytes"]), (&"aws".into(), &"{\"ok\":true}".len().into()));
    assert_eq!(
        (&media["client"], &media["worker"]),
        (&"127.0.0.1".into(), &worker.address.to_string().into())
    );
    assert_eq!((&of("upload")["received_bytes"], &of("upload")["method"]), (&5.into(), &"PUT".into()));
    let submit = of("submit");
    assert_eq!(
        (&submit["version"], &submit["job_id"], &submit["tls"]),
        (&"2".into(), &"j1".into(), &false.into())
    );
    assert!(submit["seconds"].as_f64().unwrap() > 0.0 && submit["time"].as_f64().unwrap() > 1.7e9);
    assert_eq!((&of("none")["status"], &of("read")["status"]), (&404.into(), &500.into()));

    // Without a sample, failures alone.
    gateway.write(&format!("{file}[access_log]\nenabled = true\nsample = 0.0\n"));
    eventually("the new file is in force", || async { gateway.generation().await == 2 }).await;
    read("/livez").await.unwrap();
    read("/jobs/j3").await.unwrap();
    eventually("the failure is written", || async { gateway.output().len() == 6 }).await;
    assert_eq!(gauge(&gateway.metrics().await, "millrace_gateway_access_log_dropped_total"), 0.0);
    // What was written last is there when the process ends.
    worker.behave(Behaviour::Status(501));
    read("/jobs/j4").await.unwrap();
    gateway.signal("TERM");
    eventually("it ends", || async { gateway.exit_code() == Some(0) }).await;
    eventually("with its last line", || async { gateway.output().len() == 7 }).await;
}
