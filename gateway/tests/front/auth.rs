//! API keys: who may ask for what, and what workers learn of it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use reqwest::StatusCode;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::fake::Fake;
use crate::harness::{Gateway, check, eventually, gauge, pools, problem};

fn key(name: &str) -> String {
    format!("{name}-{}", "k".repeat(32))
}

fn line(name: &str, role: &str, key: &str) -> String {
    format!("{name} {role} acme {}\n", hex::encode(Sha256::digest(key)))
}

fn routing(worker: &Fake, keys: &Path) -> String {
    format!("{}[auth]\nkeys = {keys:?}\n[access_log]\nenabled = true\n", pools(&[("aws", 1.0, &[worker])]))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_its_part_and_workers_learn_who_asked() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let keys = folder.path().join("keys");
    let roles = ["viewer", "creator", "admin", "operator"];
    let lines: String = roles.iter().map(|role| line(role, role, &key(role))).collect();
    std::fs::write(&keys, lines + &line("short", "operator", "short")).unwrap();
    let gateway = Gateway::start(&routing(&worker, &keys)).await;
    gateway.healthy(1).await;
    let ask = |method: &str, path: &str| {
        gateway.client.request(method.parse().unwrap(), gateway.url(path)).body("{}")
    };

    for (method, path) in
        [("GET", "/jobs/j"), ("POST", "/jobs"), ("GET", "/media/j/master.m3u8"), ("GET", "/pools")]
    {
        let answer = ask(method, path).send().await.unwrap();
        assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"millrace\"", "{method} {path}");
        assert_eq!(problem(answer).await["code"], "unauthenticated");
    }
    for (header, value) in [
        ("authorization", format!("Bearer {}", key("nobody"))),
        ("authorization", format!("Basic {}", key("viewer"))),
        ("authorization", "Bearer short".to_owned()),
        ("x-api-key", String::new()),
    ] {
        let answer = ask("GET", "/jobs/j").header(header, &value).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{header}: {value}");
    }
    let twice = ask("GET", "/jobs/j").bearer_auth(key("viewer")).header("x-api-key", key("operator"));
    assert_eq!(twice.send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "which of the two?");
    assert_eq!(worker.seen().len(), 0, "none of these was sent");
    // What carries its own permission, and what is nobody's secret.
    for (method, path) in [
        ("GET", "/media/j/token/master.m3u8"),
        ("PUT", "/upload/aws/k?signature=x"),
        ("GET", "/livez"),
        ("OPTIONS", "/jobs/j/events"),
    ] {
        assert_eq!(ask(method, path).send().await.unwrap().status(), StatusCode::OK, "{method} {path}");
    }

    for (rank, role) in roles.iter().enumerate() {
        for (method, path, least) in
            [("GET", "/jobs/j", 0), ("POST", "/process", 1), ("DELETE", "/jobs/j", 1), ("GET", "/pools", 3)]
        {
            let request =
                ask(method, path).header("millrace-tenant", "evil").header("millrace-principal", "evil");
            let answer = request.bearer_auth(key(role)).send().await.unwrap();
            if rank < least {
                assert_eq!(problem(answer).await["code"], "forbidden", "{role}: {method} {path}");
                continue;
            }
            assert!(answer.status().is_success(), "{role}: {method} {path} {}", answer.status());
            if path == "/pools" {
                continue;
            }
            let seen = worker.seen().pop().unwrap();
            let told = ["millrace-principal", "millrace-tenant", "authorization", "x-api-key"]
                .map(|name| seen.header(name));
            assert_eq!(
                told,
                [Some((*role).to_owned()), Some("acme".to_owned()), None, None],
                "the key stays here"
            );
        }
    }
    let shown = gateway.output().join("\n") + &gateway.log();
    assert!(shown.contains("\"principal\":\"creator\"") && !shown.contains("kkkk"), "{shown}");
    let refused = "millrace_gateway_auth_refused_total{code=\"unauthenticated\"}";
    assert!(gauge(&gateway.metrics().await, refused) >= 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_good_key_is_refused_so_often_and_no_more_on_both_listeners_without_a_rate() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let keys = folder.path().join("keys");
    std::fs::write(&keys, line("op", "operator", &key("op"))).unwrap();
    let file = routing(&worker, &keys);
    let file = file.replacen("admin = \"127.0.0.1:0\"\n", "admin = \"127.0.0.1:0\"\nadmin_auth = true\n", 1);
    let gateway = Gateway::start(&file).await;
    let (public, admin) = (gateway.url("/jobs"), gateway.admin_url("/status"));
    let served = async || {
        let answer = gateway.client.get(&public).bearer_auth(key("op")).send().await.unwrap();
        answer.status().is_success()
    };
    eventually("the worker is healthy", served).await;
    for url in [&public, &admin] {
        let (started, refused) = (Instant::now(), AtomicUsize::new(0));
        // Several at once: one after the other they might be slower than what is allowed.
        let guess = async |n: usize| loop {
            let answer =
                gateway.client.get(url).bearer_auth(key(&format!("guess-{n}"))).send().await.unwrap();
            match answer.status() {
                StatusCode::UNAUTHORIZED => refused.fetch_add(1, Ordering::SeqCst),
                _ => return answer,
            };
        };
        let last = futures::future::join_all((0..16).map(guess)).await.pop().unwrap();
        let (refused, grown) = (refused.into_inner() as f64, started.elapsed().as_secs_f64() * 50.0);
        assert!((500.0..=501.0 + grown).contains(&refused), "{refused} guesses, {grown} came back: {url}");
        assert_eq!(last.headers()["retry-after"], "1", "{url}");
        assert_eq!(problem(last).await["code"], "rate_limited", "{url}");
        let known = gateway.client.get(url).bearer_auth(key("op")).send().await.unwrap();
        assert!(known.status().is_success(), "{url}: who has a key is let in beside him");
    }
    for _ in 0..600 {
        assert!(served().await, "and as often as he likes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_while_it_runs_and_a_bad_file_changes_nothing() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let keys = folder.path().join("keys");
    std::fs::write(&keys, line("old", "viewer", &key("old"))).unwrap();
    let file = routing(&worker, &keys);
    let gateway = Gateway::start(&file).await;
    gateway.healthy(1).await;
    let may = async |who: &str| {
        let read = gateway.client.get(gateway.url("/jobs")).header("x-api-key", key(who));
        read.send().await.unwrap().status().is_success()
    };
    assert!(may("old").await && !may("new").await);
    std::fs::write(&keys, line("new", "viewer", &key("new"))).unwrap();
    eventually("the new key works", || may("new")).await;
    assert!(!may("old").await, "the old one is withdrawn");

    std::fs::write(&keys, format!("new viewer acme {}", key("in-plain-text"))).unwrap();
    let told = async || {
        let ready = gateway.client.get(gateway.admin_url("/readyz")).send().await.unwrap();
        ready.json::<Value>().await.unwrap()["auth"]["error"].as_str().unwrap_or_default().to_owned()
    };
    eventually("the bad file is told", || async { told().await.contains("keys:1: the hash is no SHA-256") })
        .await;
    assert!(may("new").await);
    assert!(!gateway.log().contains("kkkk"), "{}", gateway.log());
    assert_eq!(gauge(&gateway.metrics().await, "millrace_gateway_auth_keys_reload_success"), 0.0);
    let (code, _, err) = check(&["check", gateway.file().to_str().unwrap()]);
    assert!(
        code == 2 && err.contains("auth.keys: ") && err.contains("keys:1: the hash is no SHA-256"),
        "{err}"
    );

    gateway.write(&file.replace("[auth]\n", "").replace(&format!("keys = {keys:?}\n"), ""));
    let opened = gateway.reload().await;
    assert!(problem(opened).await["detail"].as_str().unwrap().contains("auth: changing it needs a restart"));
    assert!(!may("old").await, "the door stays shut");
}
