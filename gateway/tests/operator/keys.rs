//! An admin listener that asks for keys, and one that has metrics alone.

use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};

use crate::fake::Fake;
use crate::harness::{Gateway, check, gauge, pools, problem};

fn routing(worker: &Fake, listen: &str, more: &str) -> String {
    let file = pools(&[("aws", 1.0, &[worker])]);
    file.replacen("admin = \"127.0.0.1:0\"\n", listen, 1) + more
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_show_a_key_that_the_audit_log_names_and_metrics_need_none() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let key = |role: &str| format!("{role}-{}", "k".repeat(32));
    let line = |role: &str| format!("{role}-1 {role} acme {}\n", hex::encode(Sha256::digest(key(role))));
    let keys = folder.path().join("keys");
    std::fs::write(&keys, line("operator") + &line("admin")).unwrap();
    let listen = "admin = \"0.0.0.0:0\"\nmetrics = \"0.0.0.0:0\"\n";
    let gateway = Gateway::start(&routing(&worker, listen, &format!("[auth]\nkeys = {keys:?}\n"))).await;
    let admin = |path: &str| format!("http://127.0.0.1:{}{path}", gateway.admin.port());
    let client = &gateway.client;

    for path in ["/status", "/readyz", "/metrics", "/pools", "/overrides", "/audit", "/explain", "/nothing"] {
        let answer = client.get(admin(path)).send().await.unwrap();
        assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"millrace\"", "{path}");
        assert_eq!(problem(answer).await["code"], "unauthenticated", "{path}");
        let answer = client.get(admin(path)).bearer_auth(key("admin")).send().await.unwrap();
        assert_eq!(problem(answer).await["code"], "forbidden", "{path}");
    }
    let refused_so_far = async || {
        let metrics = format!("http://127.0.0.1:{}/metrics", gateway.metrics.unwrap().port());
        let shown = client.get(metrics).send().await.unwrap().text().await.unwrap();
        gauge(&shown, "millrace_gateway_auth_refused_total{code=\"unauthenticated\"}")
    };
    let refused = client.post(admin("/drain")).json(&serde_json::json!({ "target": "aws" })).send().await;
    assert_eq!(refused.unwrap().status(), StatusCode::UNAUTHORIZED);
    for path in ["/", "/livez"] {
        let before = refused_so_far().await;
        assert_eq!(client.get(admin(path)).send().await.unwrap().status(), StatusCode::OK, "{path}");
        assert!(refused_so_far().await == before, "{path}: who is let in was not refused");
    }

    // By any name: who has a key is no page that somebody's browser happened to open.
    let asked = client.get(admin("/status")).header("host", "gateway.example").bearer_auth(key("operator"));
    assert_eq!(asked.send().await.unwrap().status(), StatusCode::OK);

    let file = folder.path().join("operator.key");
    std::fs::write(&file, key("operator") + "\n").unwrap();
    let at = admin("");
    let drain = ["drain", "aws", "--ttl", "1h", "--admin", &at];
    let (code, _, error) = check(&drain);
    assert_eq!(code, 1);
    assert!(error.contains("--key-file"), "{error}");
    let (code, out, error) = check(&[&drain[..], &["--key-file", file.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{out}{error}");
    let (_, audited, _) = check(&["audit", "--admin", &at, "--key-file", file.to_str().unwrap()]);
    assert!(audited.contains("drain aws by operator-1 from 127.0.0.1"), "{audited}");
    let (code, _, error) = check(&["status", "--admin", &at, "--key-file", "/nowhere"]);
    assert!(code == 2 && error.contains("--key-file /nowhere: No such file"), "{error}");

    let metrics = |path: &str| format!("http://127.0.0.1:{}{path}", gateway.metrics.unwrap().port());
    for (path, wants) in [("/metrics", "millrace_gateway_"), ("/livez", "ok\n"), ("/readyz", "ok\n")] {
        let text = client.get(metrics(path)).send().await.unwrap().text().await.unwrap();
        assert!(text.contains(wants), "{path}: {text}");
    }
    for path in ["/status", "/pools", "/audit", "/"] {
        let answer = client.get(metrics(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_at_the_admin_listener_has_to_wait_and_who_has_a_key_has_not() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let (keys, key) = (folder.path().join("keys"), "k".repeat(32));
    std::fs::write(&keys, format!("op operator t {}\n", hex::encode(Sha256::digest(&key)))).unwrap();
    let more = format!("[auth]\nkeys = {keys:?}\n[rate]\nper_second = 0.01\nburst = 3\n");
    let listen = "admin = \"127.0.0.1:0\"\nadmin_auth = true\nmetrics = \"127.0.0.1:0\"\n";
    let gateway = Gateway::start(&routing(&worker, listen, &more)).await;
    let ask = |key: &str| gateway.client.get(gateway.admin_url("/status")).bearer_auth(key).send();
    for _ in 0..3 {
        assert_eq!(ask("guess").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    let refused = ask("guess").await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(problem(refused).await["code"], "rate_limited");
    for _ in 0..5 {
        assert_eq!(ask(&key).await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn an_admin_listener_for_everybody_is_refused_by_the_key_that_opens_it() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let file = folder.path().join("routing.toml");
    for (listen, wants) in [
        (
            "admin = \"0.0.0.0:1\"\n",
            ":3:9: listen.admin: 0.0.0.0:1 is reachable from elsewhere; it wants [auth]",
        ),
        (
            "admin = \"127.0.0.1:1\"\nadmin_auth = true\n",
            ":4:14: listen.admin_auth: it asks for keys, and there is no",
        ),
        (
            "admin = \"127.0.0.1:1\"\nmetrics = \"127.0.0.1:1\"\n",
            ":4:11: listen.metrics: 127.0.0.1:1 is another",
        ),
    ] {
        std::fs::write(&file, routing(&worker, listen, "")).unwrap();
        let (code, _, error) = check(&["check", file.to_str().unwrap()]);
        assert!(code == 2 && error.contains(wants), "{error} is not {wants}");
    }
}
