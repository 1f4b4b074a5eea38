//! Submits: which worker gets one, what happens when that worker fails, and what the client is told.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;

use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, eventually, gauge, http2, open, pools, problem, submit_body};

/// Two pools of one worker each; the first is preferred so much that every submit goes there first.
async fn preferred(behaviour: Behaviour) -> (Gateway, Fake, Fake) {
    let (first, second) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    first.behave(behaviour);
    let file = pools(&[("aws", 1e5, &[&first]), ("gcp", 1e-3, &[&second])]);
    let gateway = Gateway::start(&format!("{file}\n[timeouts]\nsubmit = \"300ms\"\n")).await;
    gateway.healthy(2).await;
    (gateway, first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submit_that_fails_goes_to_another_worker_with_the_same_id_and_body() {
    for behaviour in [
        Behaviour::Full(9),
        Behaviour::Reset,
        Behaviour::PartialHeader,
        Behaviour::Hang,
        Behaviour::Status(503),
    ] {
        let (gateway, first, second) = preferred(behaviour).await;
        let body = submit_body(65_536);
        let started = Instant::now();
        let response = gateway.client.post(gateway.url("/process")).body(body.clone()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED, "{behaviour:?}");
        assert!(started.elapsed() < Duration::from_secs(3), "{behaviour:?} took {:?}", started.elapsed());
        let headers = response.headers();
        assert_eq!(
            (&headers["millrace-pool"], &headers["millrace-worker"]),
            (&"gcp".parse().unwrap(), &"w2".parse().unwrap())
        );
        assert_eq!(headers["millrace-decision"], "retry");
        let (one, other) = (first.submits(), second.submits());
        assert_eq!((one.len(), other.len()), (1, 1), "{behaviour:?}");
        assert_eq!(one[0].header("idempotency-key"), other[0].header("idempotency-key"));
        assert!(one[0].header("idempotency-key").is_some_and(|id| id.len() == 36));
        assert!(
            one[0].body == body.as_bytes() && other[0].body == body.as_bytes(),
            "{behaviour:?} changed the body"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_told_when_another_pool_may_take_the_job_and_clients_can_neither_say_nor_see_it() {
    let (gateway, first, second) = preferred(Behaviour::Accept).await;
    // A minute of work, and twice as much there.
    second.load(|load| load.speed = 0.5);
    let told = || first.submits().last().and_then(|seen| seen.header("millrace-steal"));
    eventually("the price of a slower pool", async || {
        let forged = gateway.client.post(gateway.url("/jobs")).header("millrace-steal", "gcp=0");
        let answer = forged.body("{}").send().await.unwrap();
        assert_eq!((answer.status(), answer.headers().get("millrace-steal")), (StatusCode::ACCEPTED, None));
        told().as_deref() == Some("gcp=60")
    })
    .await;
    // Who takes no jobs steals none.
    gateway.write(&pools(&[("aws", 1e5, &[&first]), ("gcp", 0.0, &[&second])]));
    eventually("no price for a pool without weight", async || {
        gateway.submit("{}").await;
        told().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_gone_is_passed_over_before_the_probes_know() {
    let (gateway, first, second) = preferred(Behaviour::Accept).await;
    first.stop();
    let response = gateway.submit("{\"job_id\":\"j1\"}").await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(second.submits()[0].header("idempotency-key").as_deref(), Some("j1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_read_whole_and_no_larger_than_the_limit() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;

    let large = gateway.client.post(gateway.url("/jobs")).body(submit_body(65_537)).send().await.unwrap();
    assert_eq!(problem(large).await["code"], "spec_too_large");
    let pieces: Vec<_> = submit_body(65_536).into_bytes().chunks(1000).map(<[u8]>::to_vec).collect();
    let stream = futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    let chunked = gateway
        .client
        .post(gateway.url("/jobs"))
        .body(reqwest::Body::wrap_stream(stream))
        .send()
        .await
        .unwrap();
    assert_eq!(chunked.status(), StatusCode::ACCEPTED);
    assert_eq!(worker.submits()[0].body, submit_body(65_536).as_bytes());

    let started = Instant::now();
    let body = "{\"job_id\":\"patient\"}";
    let head = format!(
        "POST /process HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = open(gateway.http).await;
    client.send(&head).await;
    assert!(client.head().await.starts_with("HTTP/1.1 100"));
    client.send(body).await;
    assert!(client.head().await.starts_with("HTTP/1.1 202"));
    assert!(started.elapsed() < Duration::from_millis(700), "{:?}", started.elapsed());
    assert_eq!(worker.submits()[1].header("expect"), None);
    assert_eq!(worker.submits()[1].header("idempotency-key").as_deref(), Some("patient"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_settled_before_routing() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    let post = |body: &'static str, key: &'static str| {
        gateway.client.post(gateway.url("/jobs")).header("idempotency-key", key).body(body).send()
    };
    let differing = post("{\"job_id\":\"a\"}", "b").await.unwrap();
    assert_eq!(problem(differing).await["code"], "job_id_mismatch");
    assert_eq!(problem(post("{", "b").await.unwrap()).await["code"], "bad_json");
    assert_eq!(problem(post("{}", "a/b").await.unwrap()).await["code"], "bad_job_id");
    assert_eq!(post("{}", "b").await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(worker.submits().len(), 1, "what is refused here is not sent");
    assert_eq!(worker.submits()[0].header("idempotency-key").as_deref(), Some("b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_worker_refuses_the_client_learns_when_to_come_back() {
    let (gateway, first, second) = preferred(Behaviour::Full(100)).await;
    second.behave(Behaviour::Full(50));
    let response = gateway.submit("{\"job_id\":\"j1\"}").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((40..=60).contains(&after), "{after} is not 50 ± 20 %");
    let told_after = after;
    let told = problem(response).await;
    assert_eq!((&told["code"], &told["job_id"]), (&"saturated".into(), &"j1".into()));
    assert_eq!((first.submits().len(), second.submits().len()), (1, 1));
    // Their reports say that they have room; what they answered says more.
    let decided = gateway.client.get(gateway.admin_url("/decisions/j1")).send().await.unwrap();
    let decided: Value = decided.json().await.unwrap();
    let last = &decided.as_array().unwrap().last().unwrap()["refused"];
    assert_eq!(last["why"], "saturated", "{decided}");
    assert!(last["retry_after_s"].as_u64().is_some_and(|after| after == told_after), "{decided}");
    let refused = "millrace_gateway_routing_refusals_total{reason=\"saturated\"}";
    assert_eq!(gauge(&gateway.metrics().await, refused), 1.0);

    // Once their reports say so, nobody has to be asked.
    for fake in [&first, &second] {
        fake.load(|load| {
            (load.running, load.queued, load.work_seconds) = (load.slots, load.queue_max, 600.0)
        });
    }
    eventually("both pools are seen to be full", || async {
        gateway.status().await["pools"].as_array().unwrap().iter().all(|pool| pool["rejected"] == "saturated")
    })
    .await;
    let response = gateway.submit("{}").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((240..=360).contains(&after), "{after} is not 300 ± 20 %");
    assert!(problem(response).await["job_id"].is_string());
    assert_eq!((first.submits().len(), second.submits().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_worker_beside_one_that_is_gone_is_full_and_not_gone() {
    let (gateway, first, second) = preferred(Behaviour::Full(100)).await;
    second.stop();
    // Whether it is known to be gone, or found out by this very job.
    for _ in 0..2 {
        let response = gateway.submit("{}").await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((80..=120).contains(&after), "{after} is not 100 ± 20 %");
        assert_eq!(problem(response).await["code"], "saturated");
        gateway.healthy(1).await;
    }
    assert_eq!(first.submits().len(), 2);

    let (gateway, first, second) = preferred(Behaviour::Accept).await;
    second.behave(Behaviour::Full(100));
    first.stop();
    let response = gateway.submit("{}").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS, "in the other order, too");
    assert_eq!(second.submits().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_full_workers_than_there_are_tries_are_full_to_the_client() {
    let mut workers = Vec::new();
    for n in 0..6 {
        workers.push(Fake::start("aws", &format!("w{n}")).await);
        workers[n].behave(Behaviour::Full(30));
    }
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &workers.iter().collect::<Vec<_>>())])).await;
    gateway.healthy(6).await;
    let response = gateway.submit("{}").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((24..=36).contains(&after), "{after} is not 30 ± 20 %");
    assert_eq!(problem(response).await["code"], "saturated");
    assert_eq!(workers.iter().map(|worker| worker.submits().len()).sum::<usize>(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_gets_nothing_and_the_other_gets_it_all() {
    let (gateway, first, second) = preferred(Behaviour::Accept).await;
    first.load(|load| (load.running, load.queued) = (load.slots, load.queue_max));
    eventually("the first pool is seen to be full", || async {
        gateway.status().await["pools"][0]["rejected"] == "saturated"
    })
    .await;
    for _ in 0..10 {
        let response = gateway.submit("{}").await;
        assert_eq!(
            (response.status(), &response.headers()["millrace-pool"]),
            (StatusCode::ACCEPTED, &"gcp".parse().unwrap())
        );
    }
    assert_eq!((first.submits().len(), second.submits().len()), (0, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_fleet_is_a_fast_503_that_names_the_job() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    worker.stop();
    gateway.healthy(0).await;
    let started = Instant::now();
    let response = gateway.submit("{}").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let told = problem(response).await;
    assert_eq!(told["code"], "no_healthy_worker");
    assert_eq!(told["job_id"].as_str().map(str::len), Some(36));
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_not_repeated_in_another_store() {
    let (gateway, first, second) = preferred(Behaviour::Hang).await;
    second.load(|load| load.store_id = "another".to_owned());
    eventually("the other store is known", || async {
        gateway.status().await["pools"][1]["workers"][0]["report"]["store_id"] == "another"
    })
    .await;
    let response = gateway.submit("{\"job_id\":\"j1\"}").await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    let told = problem(response).await;
    assert_eq!((&told["code"], &told["job_id"]), (&"upstream_timeout".into(), &"j1".into()));
    assert_eq!((first.submits().len(), second.submits().len()), (1, 0));
    // A refusal is a known outcome: any store will do.
    first.behave(Behaviour::Full(1));
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_keeps_failing_is_ejected_and_nobody_notices() {
    let (bad, good) = (Fake::start("aws", "bad").await, Fake::start("aws", "good").await);
    bad.behave(Behaviour::Status(500));
    // The good one has work, so that the bad one stays attractive in spite of its failures.
    good.load(|load| (load.running, load.work_seconds, load.queue_max) = (2, 600.0, 1000));
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&bad, &good])])).await;
    gateway.healthy(2).await;
    for n in 0..20 {
        let response = gateway.submit(&format!("{{\"job_id\":\"j{n}\"}}")).await;
        assert_eq!(response.status(), StatusCode::ACCEPTED, "job j{n}");
    }
    assert_eq!((bad.submits().len(), good.submits().len()), (5, 20), "five failures in a row, and no more");
    assert!(gateway.status().await["pools"][0]["workers"][0]["ejected_s"].as_f64().unwrap() > 20.0);
    assert!(gateway.metrics().await.contains("millrace_gateway_ejections_total{pool=\"aws\"} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_no_other_worker_mends_names_the_job() {
    let bad = Fake::start("aws", "bad").await;
    bad.behave(Behaviour::Status(500));
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&bad])])).await;
    gateway.healthy(1).await;
    let response = gateway.submit("{\"job_id\":\"j1\"}").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(problem(response).await["job_id"], "j1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_own_problem_goes_through_with_the_jobs_id() {
    let worker = Fake::start("aws", "w1").await;
    worker.behave(Behaviour::StoreUnavailable);
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    for client in [&gateway.client, &http2()] {
        let submit = client.post(gateway.url("/jobs")).body("{\"job_id\":\"j1\"}").send().await.unwrap();
        assert_eq!(
            (submit.status().as_u16(), &submit.headers()["millrace-worker"]),
            (503, &"w1".parse().unwrap())
        );
        let told = problem(submit).await;
        assert_eq!((&told["code"], &told["job_id"]), (&"store_unavailable".into(), &"j1".into()));
        assert_eq!(told["detail"], "the disk is full");
        let read = client.get(gateway.url("/jobs/j1")).send().await.unwrap();
        assert_eq!(problem(read).await["code"], "store_unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_set_replaced_and_stripped() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    let forged = gateway.client.post(gateway.url("/jobs")).body("{}");
    let forged = forged
        .header("host", "video.example")
        .header("x-forwarded-for", "6.6.6.6")
        .header("millrace-pool", "x");
    let response = forged.header("endpoint-load-metrics", "TEXT a=1").send().await.unwrap();
    for name in ["endpoint-load-metrics", "millrace-store"] {
        assert!(!response.headers().contains_key(name), "{name} is no client's business");
    }
    assert_eq!(
        (&response.headers()["millrace-pool"], &response.headers()["millrace-decision"]),
        (&"aws".parse().unwrap(), &"only".parse().unwrap())
    );
    let seen = &worker.submits()[0];
    assert_eq!(seen.header("host").as_deref(), Some("video.example"));
    assert_eq!(seen.header("x-forwarded-host"), None);
    assert_eq!(seen.header("x-forwarded-proto"), None, "only TLS is told");
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!((seen.header("millrace-pool"), seen.header("endpoint-load-metrics")), (None, None));

    worker.behave(Behaviour::Unbelievable);
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
    assert!(
        gateway.metrics().await.contains("millrace_gateway_unbelievable_reports_total{via=\"response\"} 1")
    );
}
