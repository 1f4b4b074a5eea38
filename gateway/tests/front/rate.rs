//! How often one may ask.

use std::time::{Duration, Instant};

use crate::fake::Fake;
use crate::harness::{Gateway, eventually, gauge, http2, pools, problem};

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let worker = Fake::start("aws", "w1").await;
    let file = pools(&[("aws", 1.0, &[&worker])]);
    let gateway = Gateway::start(&format!("{file}[rate]\nper_second = 2.0\nburst = 5\n")).await;
    gateway.healthy(1).await;
    // Made before: on a busy machine that may take as long as a token needs to come back.
    let other = http2();
    let read = || gateway.client.get(gateway.url("/jobs/j")).send();
    let (started, mut passed) = (Instant::now(), 0);
    let refused = loop {
        let answer = read().await.unwrap();
        if answer.status() == 429 {
            break answer;
        }
        passed += 1;
    };
    let grown = started.elapsed().as_secs_f64() * 2.0;
    assert!(passed >= 5 && f64::from(passed) <= 6.0 + grown, "{passed} passed");
    let after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert_eq!(after, 1);
    assert_eq!(problem(refused).await["code"], "rate_limited");
    assert_eq!(other.get(gateway.url("/jobs/j")).send().await.unwrap().status(), 429, "by any connection");
    assert_eq!(
        gateway.client.get(gateway.url("/livez")).send().await.unwrap().status(),
        200,
        "health is not counted"
    );
    assert!(gauge(&gateway.metrics().await, "millrace_gateway_rate_limited_total") >= 2.0);
    tokio::time::sleep(Duration::from_secs(after)).await;
    assert_eq!(read().await.unwrap().status(), 200, "it kept its word");

    gateway.write(&file);
    eventually("the limit is lifted", || async { gateway.generation().await == 2 }).await;
    for _ in 0..20 {
        assert_eq!(read().await.unwrap().status(), 200);
    }
}
