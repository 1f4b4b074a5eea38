//! The real gateway binary against small fake workers whose answers are scripted.

// `cfg(test)` always holds here; it tells clippy that these helpers may unwrap, too.
#[cfg(test)]
mod discovery;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod front;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod page;
#[cfg(test)]
mod upstream;

use std::time::{Duration, Instant};

use fake::{Behaviour, Fake};
use futures::StreamExt;
use harness::{Gateway, check, eventually, http2, open, pools, problem, submit_body};
use reqwest::StatusCode;
use serde_json::Value;

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
    let told = problem(response).await;
    assert_eq!((&told["code"], &told["job_id"]), (&"saturated".into(), &"j1".into()));
    assert_eq!((first.submits().len(), second.submits().len()), (1, 1));

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
    assert_eq!(seen.header("x-forwarded-host").as_deref(), Some("video.example"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!((seen.header("millrace-pool"), seen.header("endpoint-load-metrics")), (None, None));

    worker.behave(Behaviour::Unbelievable);
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
    assert!(
        gateway.metrics().await.contains("millrace_gateway_unbelievable_reports_total{via=\"response\"} 1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_tried_again_and_uploads_stay_in_their_pool() {
    let (aws, gcp) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&aws]), ("gcp", 1.0, &[&gcp])])).await;
    gateway.healthy(2).await;
    aws.behave(Behaviour::Reset);
    for _ in 0..20 {
        let response = gateway.client.get(gateway.url("/jobs/j1?full=1")).send().await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["millrace-worker"]),
            (StatusCode::OK, &"w2".parse().unwrap())
        );
    }
    assert!(aws.seen().iter().any(|seen| seen.path == "/jobs/j1?full=1"), "the broken one was asked, too");

    aws.behave(Behaviour::Accept);
    let bytes = vec![7_u8; 3_000_000];
    let put = gateway
        .client
        .put(gateway.url("/upload/aws/uploads/k/v.mp4?sig=x"))
        .body(bytes.clone())
        .send()
        .await
        .unwrap();
    assert_eq!((put.status(), &put.headers()["millrace-pool"]), (StatusCode::OK, &"aws".parse().unwrap()));
    let seen = aws.seen();
    let upload = seen.iter().find(|seen| seen.method == "PUT").unwrap();
    assert!(upload.body == bytes && upload.path == "/upload/aws/uploads/k/v.mp4?sig=x");
    let nowhere = gateway.client.put(gateway.url("/upload/azure/k")).body("x").send().await.unwrap();
    assert_eq!(nowhere.status(), StatusCode::NOT_FOUND);
    let ticket = gateway.client.post(gateway.url("/upload/request")).body("{}").send().await.unwrap();
    assert_eq!(ticket.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_api_is_a_problem() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    let missing = gateway.client.get(gateway.url("/metrics")).send().await.unwrap();
    assert_eq!(problem(missing).await["code"], "not_found", "metrics are the operator's");
    let method = gateway.client.get(gateway.url("/process")).send().await.unwrap();
    assert_eq!(method.headers()["allow"], "POST");
    assert_eq!(problem(method).await["code"], "method_not_allowed");
    for path in ["/livez", "/health", "/readyz"] {
        gateway.healthy(1).await;
        assert_eq!(gateway.client.get(gateway.url(path)).send().await.unwrap().status(), StatusCode::OK);
    }
    let metrics = gateway.metrics().await;
    for family in
        ["millrace_gateway_requests_total", "millrace_gateway_pool_headroom_ratio", "process_open_fds"]
    {
        assert!(metrics.contains(family), "{family}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_last_data_frame_does_not_desync_the_worker() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    let h2 = http2();
    for n in 0..10 {
        // A streamed body of unknown length ends with an empty DATA frame.
        let pieces = [Ok::<_, std::io::Error>("piece-1;"), Ok("piece-2")];
        let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            piece
        }));
        let put = h2.put(gateway.url(&format!("/upload/aws/k{n}"))).body(body).send().await.unwrap();
        assert_eq!((put.version(), put.status()), (reqwest::Version::HTTP_2, StatusCode::OK), "upload {n}");
        let body = reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>("{}")]));
        assert_eq!(
            h2.post(gateway.url("/process")).body(body).send().await.unwrap().status(),
            StatusCode::ACCEPTED
        );
    }
    let seen = worker.seen();
    assert!(seen.iter().filter(|seen| seen.method == "PUT").all(|seen| seen.body == b"piece-1;piece-2"));
    assert_eq!(worker.garbled(), 0, "nothing but requests on the worker's connections");
    assert!(worker.reused() > 0, "connections to the worker were used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off() {
    let worker = Fake::start("aws", "w1").await;
    let file = pools(&[("aws", 1.0, &[&worker])]);
    let gateway =
        Gateway::start(&format!("{file}\n[timeouts]\nbody = \"500ms\"\nheader = \"700ms\"\n")).await;
    gateway.healthy(1).await;

    let started = Instant::now();
    let mut body = open(gateway.http).await;
    body.send("POST /process HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n").await;
    let dripping = body.drip(b'{', Duration::from_millis(100));
    let head = dripping.await;
    assert!(head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(head.contains("application/problem+json"));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    for first in ["", "GET /livez HTTP/1.1\r\nx: "] {
        let started = Instant::now();
        let mut header = open(gateway.http).await;
        header.send(first).await;
        let head = if first.is_empty() {
            header.head().await
        } else {
            header.drip(b'y', Duration::from_millis(100)).await
        };
        assert_eq!(head, "", "closed without an answer");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    assert_eq!(worker.submits().len(), 0);
}

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
        (gateway.sockets(), harness::gauge(&metrics, "millrace_gateway_probe_tasks"))
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
async fn events_come_as_they_are_sent_and_a_long_stream_tells_nothing_against_its_worker() {
    let worker = Fake::start("aws", "w1").await;
    let every = Duration::from_millis(250);
    worker.behave(Behaviour::Events(every));
    // More than between two events, less than a stream's length.
    let file = format!("{}[timeouts]\nread = \"1s\"\n", pools(&[("aws", 1.0, &[&worker])]));
    let gateway = Gateway::start(&file).await;
    gateway.healthy(1).await;
    for client in [gateway.client.clone(), http2()] {
        let answer = client.get(gateway.url("/jobs/j/events")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let (mut stream, started, mut came) = (answer.bytes_stream(), Instant::now(), Vec::new());
        for n in 1..=6 {
            assert_eq!(stream.next().await.unwrap().unwrap(), format!("data: {n}\n\n"));
            came.push(started.elapsed());
        }
        assert!(came.windows(2).all(|pair| pair[1] - pair[0] > every / 2), "one by one: {came:?}");
        assert!(came[5] > Duration::from_secs(1), "longer than the read timeout: {came:?}");
    }
    eventually("the worker is rid of the readers that left", || async { worker.open() <= 1 }).await;
    let status = gateway.status().await;
    let seen = &status["pools"][0]["workers"][0];
    assert_eq!(seen["healthy"], true);
    assert!(seen["read_latency_ms"].as_f64().unwrap() < 200.0, "the time to the first byte: {seen}");
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
async fn a_worker_with_no_room_for_a_stream_is_passed_over_and_not_blamed() {
    let (full, free) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&full]), ("gcp", 1.0, &[&free])])).await;
    gateway.healthy(2).await;
    full.behave(Behaviour::Busy);
    for _ in 0..40 {
        let answer = gateway.client.get(gateway.url("/jobs/j/events")).send().await.unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()["millrace-worker"]),
            (StatusCode::OK, &"w2".parse().unwrap())
        );
    }
    assert!(full.seen().len() >= 7, "it would have been ejected: {}", full.seen().len());
    assert!(
        !gateway
            .metrics()
            .await
            .lines()
            .any(|line| line.contains("ejections_total{") && !line.ends_with(" 0"))
    );
    free.behave(Behaviour::Busy);
    let answer = gateway.client.get(gateway.url("/jobs/j/events")).send().await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "5");
    assert_eq!(problem(answer).await["code"], "too_many_streams");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_elsewhere_may_ask_and_may_read_the_gateways_own_answers() {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&worker])])).await;
    gateway.healthy(1).await;
    for path in ["/media/j/t/master.m3u8", "/download/j", "/jobs/j/events"] {
        let preflight = gateway.client.request(reqwest::Method::OPTIONS, gateway.url(path));
        let answer = preflight.header("origin", "https://a.example").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let seen = worker.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("OPTIONS", path));
        assert_eq!(seen.header("origin").as_deref(), Some("https://a.example"));
    }
    worker.stop();
    let answer = gateway.client.get(gateway.url("/media/j/t/master.m3u8")).send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let job = gateway.client.get(gateway.url("/jobs/j")).send().await.unwrap();
    assert!(!job.headers().contains_key("access-control-allow-origin"));
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
