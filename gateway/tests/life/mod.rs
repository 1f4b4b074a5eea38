//! The gateway's own life: reloads, drains, its end, and its command line.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::Value;

use crate::discovery::server::Server;
use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, Load, check, eventually, gauge, pools, problem, roots_from};

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
        let reloaded = gateway.reload().await;
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

/// What a gateway holds: open files, tasks, and KiB of memory.
#[derive(Debug, Clone, Copy)]
struct Held {
    files: usize,
    tasks: f64,
    resident_kib: u64,
}

async fn held(gateway: &Gateway) -> Held {
    let metrics = gateway.metrics().await;
    Held {
        files: std::fs::read_dir(gateway.proc("fd")).unwrap().count(),
        tasks: gauge(&metrics, "millrace_gateway_tasks"),
        resident_kib: gateway.resident_kib(),
    }
}

/// Ends the load, waits until every connection that it used has ended, and tells what is left.
async fn left(gateway: &Gateway, load: Load, workers: &[&Fake]) -> (Held, usize) {
    let (requests, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new(), "of {requests}");
    eventually("nothing but probes is open", || async {
        let metrics = gateway.metrics().await;
        // One connection of the prober's to each worker that is configured.
        workers.iter().map(|worker| worker.open()).sum::<usize>() <= 2
            && gauge(&metrics, "millrace_gateway_probe_tasks") == 2.0
    })
    .await;
    // The clients' own connections end with them, a little later than they.
    let last = Cell::new(held(gateway).await);
    eventually("two looks see the same", || async {
        let now = held(gateway).await;
        let before = last.replace(now);
        (now.files, now.tasks) == (before.files, before.tasks)
    })
    .await;
    (last.get(), requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_reloads_under_load_leave_nothing_behind() {
    let dns = Server::start().await;
    let (one, two, three) =
        (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await, Fake::start("gcp", "w3").await);
    let other = Fake::start("azure", "w5").await;
    // Found by its address, so it needs no port of its own.
    let found = Fake::start_at(SocketAddr::from(([127, 0, 0, 9], 0)), "gcp", "w4").await;
    dns.addresses("w.example.", &["127.0.0.9"], 1);
    let end = "[timeouts]\nidle = \"1s\"\n";
    let plain = pools(&[("aws", 1.0, &[&one]), ("gcp", 1.0, &[&two])]) + end;
    let discovered = pools(&[("aws", 1.0, &[&one]), ("gcp", 1.0, &[&two])]).replace(
        &format!("endpoints = [\"{}\"]", two.address),
        &format!(
            "discover = {{ dns = \"w.example\", port = {}, resolver = \"{}\", min_ttl = \"100ms\", max_ttl = \"1s\" }}",
            found.address.port(),
            dns.address
        ),
    ) + end;
    assert!(discovered.contains("discover"));
    let files = [
        plain.clone(),
        // Another weight and one more worker.
        pools(&[("aws", 3.0, &[&one]), ("gcp", 1.0, &[&two, &three])]) + end,
        // A pool less.
        pools(&[("aws", 1.0, &[&one])]) + end,
        discovered,
        // Another pool.
        pools(&[("aws", 1.0, &[&one]), ("gcp", 1.0, &[&two]), ("azure", 2.0, &[&other])]) + end,
        // Bad ones: what was in force stays.
        "[[pools]]\nname = ".to_owned(),
        plain.replace("weight = 1", "weight = -1"),
    ];
    let mut gateway = Gateway::start(&plain).await;
    // A pool of connections to the admin listener would be counted as the gateway's.
    gateway.client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    let gateway = gateway;
    gateway.healthy(2).await;
    let workers = [&one, &two, &three, &found, &other];

    let mut reloaded = 0;
    let mut reload = async |load: Load, until: usize| {
        while reloaded < until {
            let file = &files[reloaded % files.len()];
            gateway.write(file);
            let answer = gateway.reload().await;
            let bad = file.starts_with("[[") || file.contains("-1");
            let wants = if bad { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
            assert_eq!(answer.status(), wants, "{file}\n{}", answer.text().await.unwrap());
            reloaded += 1;
        }
        // Ends with what it began with: the same workers, the same pools.
        gateway.write(&plain);
        gateway.reload().await;
        left(&gateway, load, &workers).await
    };
    let load = gateway.load(4);
    eventually("the load is under way", || async { one.submits().len() + two.submits().len() > 100 }).await;
    let (after_20, _) = reload(load, 20).await;
    let (after_200, requests) = reload(gateway.load(4), 200).await;
    println!("after 20: {after_20:?}, after 200: {after_200:?}, {requests} requests meanwhile");
    assert!(requests > 200, "{requests} requests are no load");
    assert!(after_200.resident_kib <= after_20.resident_kib + 5 * 1024, "{after_20:?} {after_200:?}");
    let equal = |held: Held| (held.files, held.tasks) == (after_20.files, after_20.tasks);
    eventually("as many files and tasks as after 20", || async { equal(held(&gateway).await) }).await;
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
    let refused = gateway.reload().await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problem(refused).await["detail"].as_str().unwrap().contains(&wants));
    assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);

    gateway.write(&good.replacen("127.0.0.1:0", "127.0.0.1:1", 1));
    let moved = gateway.reload().await;
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

#[tokio::test]
async fn a_system_without_ca_certificates_is_good_enough_for_plain_workers() {
    let worker = Fake::start("aws", "aws-1").await;
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage.pem");
    std::fs::write(&garbage, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    for file in ["/dev/null", "/nonexistent.pem", garbage.to_str().unwrap()] {
        let gateway = Gateway::start_with_roots(file, &pools(&[("aws", 1.0, &[&worker])])).await;
        gateway.healthy(1).await;
        let accepted = gateway.client.post(gateway.url("/process")).body("{}").send().await.unwrap();
        assert_eq!(accepted.status(), 202, "{file}");
        let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_millrace-gateway"));
        let status = roots_from(&mut status, file).args(["status", "--admin", &gateway.admin.to_string()]);
        let output = status.output().unwrap();
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn keys_behind_tls_want_ca_certificates_and_say_so() {
    let worker = Fake::start("aws", "aws-1").await;
    let jwt = "[auth.jwt]\nissuer = \"https://id.example\"\naudience = [\"millrace\"]\n\
        jwks = \"https://id.example/jwks.json\"\n";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routing.toml");
    std::fs::write(&file, pools(&[("aws", 1.0, &[&worker])]) + jwt).unwrap();
    for roots in ["/dev/null", "/nonexistent.pem"] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_millrace-gateway"));
        let output = roots_from(&mut command, roots).args(["run", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains("https://id.example/jwks.json") && said.contains("CA cert"), "{roots}: {said}");
        assert!(!said.contains("builder error") && !said.contains("panicked"), "{roots}: {said}");
    }
}
