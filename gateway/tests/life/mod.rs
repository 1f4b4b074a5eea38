//! The gateway's own life: reloads, drains, its end, and its command line.

use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::Value;

use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, check, eventually, gauge, pools, problem};

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_fail_no_request_and_leave_nothing_behind() {
    let (one, two, three) =
        (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await, Fake::start("gcp", "w3").await);
    // Unused connections end soon, so that the test need not wait for them.
    let timeouts = |file: &str| format!("{file}[timeouts]\nidle = \"1s\"\n");
    let small = timeouts(&pools(&[("aws", 1.0, &[&one]), ("gcp", 1.0, &[&two])]));
    let large = timeouts(&pools(&[("aws", 3.0, &[&one]), ("gcp", 1.0, &[&two, &three])]));
    let gateway = Gateway::start(&small).await;
    gateway.healthy(2).await;

    let load = gateway.load(4);
    gateway.write(&large);
    eventually("the changed file is in force", || async { gateway.generation().await == 2 }).await;
    gateway.healthy(3).await;
    gateway.signal("HUP");
    eventually("SIGHUP reloads", || async { gateway.generation().await == 3 }).await;
    gateway.write(&small);
    eventually("the first file is in force again", || async { gateway.generation().await == 4 }).await;

    let settled = || async {
        let metrics = gateway.metrics().await;
        (gateway.sockets(), gauge(&metrics, "millrace_gateway_probe_tasks"))
    };
    eventually("the third worker is forgotten", || async { settled().await.1 == 2.0 && three.open() == 0 })
        .await;
    let before = settled().await;
    for n in 0..50 {
        gateway.write(if n % 2 == 0 { &large } else { &small });
        let reloaded = gateway.client.post(gateway.admin_url("/reload")).send().await.unwrap();
        assert_eq!(reloaded.status(), StatusCode::OK);
    }
    eventually("the third worker is forgotten again", || async {
        settled().await.1 == 2.0 && three.open() == 0
    })
    .await;
    let (requests, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new(), "of {requests}");
    assert!(requests > 100, "{requests} requests are no load");
    eventually("as many sockets as before, or fewer", || async { settled().await.0 <= before.0 }).await;
    assert_eq!(gateway.exit_code(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_keeps_the_old_one_and_says_where_it_is_bad() {
    let worker = Fake::start("aws", "w1").await;
    let good = pools(&[("aws", 1.0, &[&worker])]);
    let gateway = Gateway::start(&good).await;
    gateway.healthy(1).await;
    gateway.write(&good.replace("weight = 1", "weight = -1"));
    let line = good.lines().position(|line| line.starts_with("weight")).unwrap() + 1;
    let wants = format!("routing.toml:{line}:10: pools[0].weight: -1 is out of range");
    eventually("the error shows in /readyz", || async {
        let ready: Value =
            gateway.client.get(gateway.admin_url("/readyz")).send().await.unwrap().json().await.unwrap();
        ready["ready"] == true
            && ready["config"]["error"].as_str().is_some_and(|error| error.contains(&wants))
    })
    .await;
    assert!(gateway.metrics().await.contains("millrace_gateway_config_reload_success 0"));
    assert!(gateway.log().contains(&wants), "{}", gateway.log());
    let refused = gateway.client.post(gateway.admin_url("/reload")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problem(refused).await["detail"].as_str().unwrap().contains(&wants));
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);

    gateway.write(&good.replacen("127.0.0.1:0", "127.0.0.1:1", 1));
    let moved = gateway.client.post(gateway.admin_url("/reload")).send().await.unwrap();
    assert!(problem(moved).await["detail"].as_str().unwrap().contains(
        "routing.toml:2:8: listen.http: changing it from 127.0.0.1:0 to 127.0.0.1:1 needs a restart"
    ));
    gateway.write(&good);
    eventually("the good file is back", || async {
        gateway.metrics().await.contains("config_reload_success 1")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_in_flight() {
    let worker = Fake::start("aws", "w1").await;
    worker.behave(Behaviour::Slow(Duration::from_millis(1500)));
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    let slow = tokio::spawn(gateway.client.post(gateway.url("/process")).body("{}").send());
    eventually("the submit is at the worker", || async { worker.submits().len() == 1 }).await;
    gateway.signal("TERM");
    eventually("it is unready", || async {
        let ready = gateway.client.get(gateway.admin_url("/readyz")).send().await;
        ready.is_ok_and(|ready| ready.status() == StatusCode::SERVICE_UNAVAILABLE)
    })
    .await;
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED, "unready, but still accepting");
    assert_eq!(slow.await.unwrap().unwrap().status(), StatusCode::ACCEPTED);
    eventually("it ends by itself", || async { gateway.exit_code() == Some(0) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_events_holds_no_drain() {
    let worker = Fake::start("aws", "w1").await;
    worker.behave(Behaviour::Events(Duration::from_millis(50)));
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    let answer = gateway.client.get(gateway.url("/jobs/j/events")).send().await.unwrap();
    let mut stream = answer.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let started = Instant::now();
    gateway.signal("TERM");
    while stream.next().await.is_some_and(|piece| piece.is_ok()) {}
    eventually("it ends by itself", || async { gateway.exit_code() == Some(0) }).await;
    // The lame duck's time, and not the drain's.
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    assert!(gateway.log().contains("nothing is in flight"), "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_checks_and_shows() {
    let worker = Fake::start("aws", "w1").await;
    let good = pools(&[("aws", 1.0, &[&worker])]);
    let gateway = Gateway::start(&good).await;
    gateway.healthy(1).await;
    let (code, out, _) = check(&["check", gateway.file().to_str().unwrap()]);
    assert_eq!((code, out.trim_end().ends_with("routing.toml: ok, 1 pool, 1 endpoint")), (0, true), "{out}");
    let (code, out, _) = check(&["status", "--admin", &gateway.admin.to_string()]);
    assert!(code == 0 && out.contains("aws (weight 1)") && out.contains("w1 127.0.0.1:"), "{out}");
    gateway.write(&good.replace("name", "nmae"));
    let (code, _, err) = check(&["check", gateway.file().to_str().unwrap()]);
    assert!(code == 2 && err.contains("unknown field `nmae`"), "{err}");
    assert_eq!(check(&["run", "--config", "/nonexistent.toml"]).0, 2);
    assert_eq!(check(&["status", "--admin", "127.0.0.1:1"]).0, 1);
    assert_eq!(check(&["frobnicate"]).0, 2);
}
