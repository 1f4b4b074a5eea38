//! What an operator does to a running gateway: overrides, explanations, differences, the audit log, the command line.

mod keys;
mod pools;

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{Gateway, check, eventually, pools, problem};

/// Two pools of one worker each.
async fn two() -> (Gateway, Fake, Fake) {
    let (first, second) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    let gateway = Gateway::start(&pools(&[("aws", 1.0, &[&first]), ("gcp", 1.0, &[&second])])).await;
    gateway.healthy(2).await;
    (gateway, first, second)
}

async fn post(gateway: &Gateway, path: &str, body: Value) -> reqwest::Response {
    gateway.client.post(gateway.admin_url(path)).json(&body).send().await.unwrap()
}

async fn get(gateway: &Gateway, path: &str) -> Value {
    gateway.client.get(gateway.admin_url(path)).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_gets_no_job_and_its_reads_go_on_until_the_drain_ends_on_time() {
    let (gateway, first, second) = two().await;
    let asked = Instant::now();
    let drained = post(&gateway, "/drain", json!({ "target": "w1", "ttl": "2s" })).await;
    assert_eq!(drained.status(), StatusCode::OK);
    for _ in 0..20 {
        assert_eq!(gateway.submit("{}").await.status(), StatusCode::ACCEPTED);
        let read = gateway.client.get(gateway.url("/jobs")).send().await.unwrap();
        assert!(read.status().is_success());
    }
    if asked.elapsed() < Duration::from_secs(2) {
        assert_eq!((first.submits().len(), second.submits().len()), (0, 20));
        let status = gateway.status().await;
        let set = &status["overrides"][0];
        assert_eq!((&set["target"], &set["change"]), (&json!(first.address.to_string()), &json!("drain")));
        assert!(set["until"].is_string() && set["by"]["peer"].is_string(), "{set}");
    }
    let reads = first.seen().iter().filter(|seen| seen.method == "GET").count();
    assert!(reads > 0, "a drained worker is as good for reads as any");
    eventually("the drain has ended", || async {
        get(&gateway, "/overrides").await["overrides"].as_array().unwrap().is_empty()
    })
    .await;
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(6), "it took {took:?}");
    eventually("it gets jobs again", || async {
        gateway.submit("{}").await;
        !first.submits().is_empty()
    })
    .await;
    let actions: Vec<Value> = get(&gateway, "/audit").await.as_array().unwrap().clone();
    let last = actions.last().unwrap();
    assert_eq!((&last["action"], &last["by"]["name"]), (&json!("expire"), &json!("time")));
    assert_eq!((&last["before"]["drain"], &last["after"]["drain"]), (&json!(true), &json!(false)));
    assert!(gateway.log().contains("expire done"), "the log is the record that lasts");
}

#[tokio::test(flavor = "multi_thread")]
async fn overrides_survive_reloads_and_who_knows_an_old_state_changes_nothing() {
    let (gateway, first, second) = two().await;
    let seen = get(&gateway, "/overrides").await["etag"].as_str().unwrap().to_owned();
    let set = post(&gateway, "/weight", json!({ "target": "gcp", "weight": 0.25 })).await;
    assert_ne!(set.headers()["etag"], seen);
    let stale = gateway
        .client
        .post(gateway.admin_url("/drain"))
        .header("if-match", &seen)
        .json(&json!({ "target": "aws" }))
        .send()
        .await
        .unwrap();
    assert_eq!(problem(stale).await["code"], "stale");

    gateway.write(&pools(&[("gcp", 7.0, &[&second]), ("aws", 2.0, &[&first])]));
    eventually("the file is in force", || async { gateway.generation().await == 2 }).await;
    let weight = |status: &Value, place: usize| status["pools"][place]["weight"].as_f64().unwrap();
    let status = gateway.status().await;
    assert_eq!((weight(&status, 0), weight(&status, 1)), (0.25, 2.0));

    let removed = gateway.client.delete(gateway.admin_url("/overrides/gcp")).send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::OK);
    assert_eq!(weight(&gateway.status().await, 0), 7.0, "the file's weight of now is in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_order_is_a_problem_and_changes_nothing() {
    let (gateway, _first, _second) = two().await;
    let drain = gateway.admin_url("/drain");
    // As a web page in an operator's browser could send it without asking.
    let form = gateway.client.post(&drain).header("content-type", "text/plain").body("{\"target\":\"aws\"}");
    let form = form.send().await.unwrap();
    assert_eq!(form.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(problem(form).await["code"], "not_json");
    let known = gateway.generation().await;
    for kind in ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"] {
        let reload =
            gateway.client.post(gateway.admin_url("/reload")).header("origin", "https://evil.example");
        let reload = if kind.is_empty() { reload } else { reload.header("content-type", kind) };
        let refused = reload.header("sec-fetch-site", "cross-site").send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
        assert_eq!(problem(refused).await["code"], "not_json", "{kind}");
    }
    let preflight = gateway.client.request(reqwest::Method::OPTIONS, gateway.admin_url("/reload"));
    let preflight = preflight
        .header("origin", "https://evil.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type");
    let answer = preflight.send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"), "{answer:?}");
    assert_eq!(gateway.generation().await, known);
    let tried = get(&gateway, "/audit").await;
    assert_eq!(tried, json!([]), "none of it came to anything");
    assert_eq!(gateway.reload().await.status(), StatusCode::OK);
    for (path, body, code) in [
        ("/drain", json!({ "target": "azure" }), "unknown_target"),
        ("/drain", json!({ "target": "aws", "tll": "3s" }), "bad_json"),
        ("/drain", json!({ "target": "aws", "ttl": "soon" }), "bad_field"),
        ("/drain", json!({ "target": "aws", "ttl": "900ms" }), "bad_field"),
        ("/drain", json!({ "target": "aws", "weight": 2 }), "bad_field"),
        ("/weight", json!({ "target": "aws" }), "bad_field"),
        ("/weight", json!({ "target": "aws", "weight": -1 }), "bad_field"),
        ("/weight", json!({ "target": "w1", "weight": 1 }), "bad_field"),
        ("/weight", json!({ "target": "aws", "weight": "much" }), "bad_json"),
    ] {
        let told = problem(post(&gateway, path, body.clone()).await).await;
        assert_eq!(told["code"], code, "{body}: {told}");
    }
    assert_eq!(get(&gateway, "/overrides").await["overrides"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_drains_weighs_lists_and_takes_back() {
    let (gateway, first, _second) = two().await;
    let admin = gateway.admin.to_string();
    let run = |arguments: &[&str]| check(&[arguments, &["--admin", &admin]].concat());
    let (code, out, err) = run(&["drain", "aws", "--ttl", "30m"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("aws: takes no new jobs, weight 1 (before: takes jobs, weight 1)"), "{out}");
    let (code, _, err) = run(&["weight", "gcp", "0"]);
    assert!(code == 0 && err.contains("warning: no pool takes jobs now"), "{err}");
    let (_, out, _) = run(&["status"]);
    assert!(out.contains("override: aws drain by ") && out.contains("override: gcp weight 0 by "), "{out}");
    let (_, out, _) = run(&["overrides"]);
    assert!(out.contains("weight 0") && out.lines().count() == 3, "{out}");
    let (code, out, _) = run(&["overrides", "--json"]);
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, listed["overrides"].as_array().unwrap().len()), (0, 2));
    let (code, _, err) = run(&["undrain", "aws", "--if-match", "\"0-0\""]);
    assert!(code == 1 && err.contains("have changed since"), "{err}");
    let etag = listed["etag"].as_str().unwrap();
    assert_eq!(run(&["undrain", "aws", "--if-match", etag]).0, 0);
    assert_eq!(run(&["overrides", "--remove", "gcp"]).0, 0);
    let address = first.address.to_string();
    assert_eq!(run(&["drain", &address]).0, 0);
    assert_eq!(run(&["overrides", "--remove", &address]).0, 0);
    let (_, out, _) = run(&["overrides"]);
    assert!(out.starts_with("no overrides"), "{out}");
    let (code, _, err) = run(&["drain", "azure"]);
    assert!(code == 2 && err.contains("the pools are aws, gcp"), "{err}");
    assert_eq!(run(&["overrides", "--remove", "../status?x"]).0, 2);
    assert_eq!(check(&["drain", "aws", "--admin", "127.0.0.1:1"]).0, 1);
    assert_eq!(check(&["drain", "aws", "--admin", "ftp://h"]).0, 2);
    let (_, out, _) = run(&["audit"]);
    assert!(out.contains("drain aws by ") && out.contains("refused: the overrides have changed"), "{out}");
    for command in ["drain", "undrain", "weight", "overrides", "audit", "status"] {
        assert_eq!(check(&[command, "--help"]).0, 0);
    }
}

/// F as the record's own terms say.
fn f_s(terms: &Value) -> f64 {
    let term = |name: &str| terms[name].as_f64().unwrap();
    2.0 * (term("wait_s") + term("age_s"))
        + term("job_s")
        + term("round_trip_s")
        + term("egress_s")
        + term("failing_s")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_nobody_sent_is_explained_with_terms_that_add_up() {
    let (first, second) = (Fake::start("aws", "w1").await, Fake::start("gcp", "w2").await);
    let routing = pools(&[("aws", 1.0, &[&first]), ("gcp", 1.0, &[&second])]);
    let priced = routing.replace("weight = 1\n", "weight = 1\negress_usd_per_gb = 0.09\n");
    let gateway = Gateway::start(&priced).await;
    gateway.healthy(2).await;
    second.load(|load| load.draining = true);
    eventually("the gateway has heard that one drains", || async {
        gateway.status().await["pools"][1]["workers"][0]["rejected"] == "draining"
    })
    .await;
    let asked = json!({ "spec": { "duration_hint_s": 60 }, "input_pool": "gcp", "priority": "batch" });
    let told: Value = post(&gateway, "/explain", asked).await.json().await.unwrap();
    assert_eq!((&told["job"]["priority"], &told["job"]["input_pool"]), (&json!("batch"), &json!("gcp")));
    assert_eq!((&told["chosen"]["pool"], &told["chosen"]["reason"]), (&json!("aws"), &json!("only")));
    assert_eq!(told["chosen"]["worker"], "w1");
    let pools = told["pools"].as_array().unwrap();
    assert!((pools[0]["f_s"].as_f64().unwrap() - f_s(&pools[0]["terms"])).abs() < 1e-9);
    // 60 s at 5 Mbit/s are 0.0375 GB: at $0.09 and $1 per hour of waiting, 12.15 s.
    assert!((pools[0]["terms"]["egress_s"].as_f64().unwrap() - 12.15).abs() < 0.01, "{}", pools[0]);
    assert_eq!((&pools[0]["share"], &pools[1]["share"]), (&json!(1.0), &json!(0.0)));
    assert_eq!(
        (&pools[1]["rejected"], &pools[1]["workers"][0]["rejected"]),
        (&json!("no_usable_worker"), &json!("draining"))
    );
    assert_eq!((first.submits().len(), second.submits().len()), (0, 0), "nothing was sent");
    for (body, field) in [
        (json!({ "input_pool": "azure" }), "input_pool"),
        (json!({ "duration_hint_s": 0 }), "duration_hint_s"),
        (json!({ "spec": { "priority": "now" } }), "spec"),
    ] {
        assert_eq!(problem(post(&gateway, "/explain", body).await).await["field"], field);
    }
    let admin = gateway.admin.to_string();
    let arguments = ["explain", "--input-pool", "gcp", "--duration-hint", "1m", "--admin", &admin];
    let (code, out, err) = check(&arguments);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("goes to aws w1 127.0.0.1:") && out.contains("12.15"), "{out}");
    assert!(out.contains("no: no usable worker") && out.contains("no: draining"), "{out}");
    assert_eq!(check(&["explain", "--spec", "/nonexistent", "--admin", &admin]).0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_was_made_is_explained_try_by_try() {
    let (gateway, first, second) = two().await;
    first.behave(crate::fake::Behaviour::Full(9));
    post(&gateway, "/weight", json!({ "target": "aws", "weight": 1e6 })).await;
    let sent = gateway.client.post(gateway.url("/process")).header("x-request-id", "req-7_e.x");
    let sent = sent.body("{\"job_id\":\"j1\"}").send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::ACCEPTED);
    assert_eq!((first.submits().len(), second.submits().len()), (1, 1));
    let told = get(&gateway, "/decisions/j1").await;
    let tries = told.as_array().unwrap();
    assert_eq!((tries.len(), &tries[0]["tries"], &tries[1]["tries"]), (2, &json!(0), &json!(1)));
    assert_eq!((&tries[0]["chosen"]["worker"], &tries[0]["request_id"]), (&json!("w1"), &json!("req-7_e.x")));
    assert_eq!(
        (&tries[1]["chosen"]["worker"], &tries[1]["chosen"]["reason"]),
        (&json!("w2"), &json!("retry"))
    );
    assert_eq!(tries[1]["pools"][0]["workers"][0]["rejected"], "tried");
    let admin = gateway.admin.to_string();
    for id in ["j1", "req-7_e.x"] {
        let (code, out, err) = check(&["explain", "--request-id", id, "--admin", &admin]);
        assert_eq!((code, err.as_str()), (0, ""), "{id}");
        assert!(out.contains("job j1, decided ") && out.contains("no: tried"), "{out}");
    }
    let (code, _, err) = check(&["explain", "--request-id", "j2", "--admin", &admin]);
    assert!(code == 2 && err.contains("no decision about \"j2\" is known"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_shown_before_it_is_made_and_stays_on_record_after() {
    let (gateway, first, second) = two().await;
    let admin = gateway.admin.to_string();
    let diff = |file: &str| check(&["diff", file, "--admin", &admin]);
    let other = gateway.file().with_file_name("other.toml");
    let other = other.to_str().unwrap();
    let wanted = pools(&[("aws", 2.5, &[&first]), ("gcp", 1.0, &[&second])]);
    assert_eq!(diff(gateway.file().to_str().unwrap()), (0, String::new(), String::new()));
    std::fs::write(other, &wanted).unwrap();
    post(&gateway, "/weight", json!({ "target": "gcp", "weight": 3 })).await;
    let (code, out, _) = diff(other);
    let overridden = "overridden, whatever the file says: weight of gcp\n";
    assert_eq!((code, out), (1, format!("~ pools.aws.weight: 1.0 -> 2.5\n{overridden}").replace("1.0", "1")));
    std::fs::write(other, wanted.replace("http = \"127.0.0.1:0\"", "http = \"127.0.0.1:9\"")).unwrap();
    let (code, out, _) = diff(other);
    assert!(code == 1 && out.contains("listen.http: 127.0.0.1:0 -> 127.0.0.1:9  (needs a restart)"), "{out}");
    std::fs::write(other, wanted.replace("weight", "wieght")).unwrap();
    let (code, _, err) = diff(other);
    assert!(code == 2 && err.contains("other.toml:") && err.contains("unknown field `wieght`"), "{err}");
    assert_eq!(diff("/nonexistent").0, 2);
    assert_eq!(check(&["diff", other, "--admin", "127.0.0.1:1"]).0, 2);
    assert_eq!(gateway.generation().await, 1, "nothing was changed");

    gateway.write(&wanted);
    eventually("the file is in force", || async { gateway.generation().await == 2 }).await;
    gateway.write(&wanted.replace("name", "nmae"));
    let reload = || gateway.client.post(gateway.admin_url("/reload")).header("millrace-actor", "ann");
    let refused = reload().header("content-type", "application/json").send().await.unwrap();
    assert_eq!(problem(refused).await["code"], "bad_config");
    let entries = get(&gateway, "/audit").await;
    let reloads: Vec<&Value> =
        entries.as_array().unwrap().iter().filter(|entry| entry["action"] == "reload").collect();
    assert_eq!(reloads[0]["by"]["name"], "the routing file");
    assert_eq!(reloads[0]["after"]["changes"], json!(["~ pools.aws.weight: 1 -> 2.5"]));
    let last = reloads.last().unwrap();
    assert!(last["refused"].as_str().unwrap().contains("unknown field `nmae`"), "{last}");
    assert_eq!(last["before"], last["after"]);
}

#[test]
fn the_command_line_prints_the_schema_of_the_routing_file() {
    let (code, out, _) = check(&["schema"]);
    let schema: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &schema["type"]), (0, &json!("object")));
    assert!(schema["properties"]["pools"]["items"]["properties"]["weight"]["description"].is_string());
}
