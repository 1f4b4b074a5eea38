//! What the metrics tell of pools.

use reqwest::StatusCode;

use crate::fake::Fake;
use crate::harness::{Gateway, gauge, pools};

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_leaves_its_pool_is_counted_in_bytes_and_dollars() {
    let (aws, gcp) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    aws.load(|report| report.pool_work_seconds = 90.0);
    let file = pools(&[("aws", 0.0, &[&aws]), ("gcp", 1.0, &[&gcp])]);
    let file = file.replacen("name = \"aws\"\n", "name = \"aws\"\negress_usd_per_gb = 0.09\n", 1);
    let gateway = Gateway::start(&file).await;
    gateway.healthy(2).await;
    let (bytes, usd) = (
        "millrace_gateway_egress_bytes_total{from=\"aws\",to=\"gcp\"}",
        "millrace_gateway_egress_usd_total{from=\"aws\",to=\"gcp\"}",
    );
    let before = gateway.metrics().await;
    assert_eq!((gauge(&before, bytes), gauge(&before, usd)), (0.0, 0.0), "born at zero");

    let there = "{\"input_path\":\"aws/0197/a.mp4\",\"size_hint_bytes\":2000000000}";
    let here = "{\"input_path\":\"gcp/0197/a.mp4\",\"size_hint_bytes\":2000000000}";
    let nobodys = "{\"input_path\":\"elsewhere/0197/a.mp4\",\"size_hint_bytes\":2000000000}";
    for body in [there, here, nobodys] {
        assert_eq!(gateway.submit(body).await.status(), StatusCode::ACCEPTED);
    }
    let after = gateway.metrics().await;
    assert_eq!(gauge(&after, bytes), 2e9);
    assert!((gauge(&after, usd) - 0.18).abs() < 1e-9, "{}", gauge(&after, usd));
    assert!(!after.contains("elsewhere"), "a client cannot make series");
    assert_eq!(gauge(&after, "millrace_gateway_submit_first_byte_seconds_count{pool=\"gcp\"}"), 3.0);
    assert_eq!(gauge(&after, "millrace_gateway_pool_backlog_seconds{pool=\"aws\"}"), 90.0);
    assert_eq!(gauge(&after, "millrace_gateway_pool_share_ratio{pool=\"gcp\"}"), 1.0);
    assert!(gauge(&after, "millrace_gateway_pool_cost_seconds{pool=\"gcp\"}") > 0.0);
    assert_eq!(gauge(&after, "millrace_gateway_pool_wait_seconds{pool=\"gcp\"}"), 0.0);
    assert!(after.contains("millrace_gateway_endpoint_first_byte_seconds{endpoint="));
}
