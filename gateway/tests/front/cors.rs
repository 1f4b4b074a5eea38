//! Which other sites' pages may use the API.

use reqwest::{Response, StatusCode};
use serde_json::Value;

use crate::fake::{Behaviour, Fake};
use crate::harness::{Gateway, eventually, http2, pools, problem};

const LISTED: &str = "https://app.example";

fn said(answer: &Response, name: &str) -> Vec<String> {
    answer.headers().get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

fn allowed(answer: &Response) -> Vec<String> {
    said(answer, "access-control-allow-origin")
}

fn preflight(
    gateway: &Gateway,
    client: &reqwest::Client,
    path: &str,
    origin: &str,
    method: &str,
) -> reqwest::RequestBuilder {
    let asked = client.request(reqwest::Method::OPTIONS, gateway.url(path));
    asked
        .header("origin", origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "authorization,content-type")
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_list_may_use_the_api_and_others_read_nothing() {
    let (worker, folder) = (Fake::start("aws", "w1").await, tempfile::tempdir().unwrap());
    let keys = folder.path().join("keys");
    std::fs::write(&keys, format!("a viewer t {}\n", "0".repeat(64))).unwrap();
    let auth = format!("[auth]\nkeys = {keys:?}\n");
    let file = pools(&[("aws", 1.0, &[&worker])]);
    let section = format!("[cors]\norigins = [{LISTED:?}, \"http://localhost:5173\"]\nmax_age = \"10m\"\n");
    let gateway = Gateway::start(&format!("{file}{section}{auth}")).await;
    gateway.healthy(1).await;

    for client in [&gateway.client, &http2()] {
        for (path, method) in [
            ("/jobs", "POST"),
            ("/jobs", "GET"),
            ("/jobs/j", "DELETE"),
            ("/upload/aws/k", "PUT"),
            ("/process", "PATCH"),
            ("/jobs/j/events", "GET"),
            ("/download/j", "GET"),
        ] {
            let answer = preflight(&gateway, client, path, LISTED, method).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{method} {path}");
            assert_eq!(allowed(&answer), [LISTED]);
            assert!(said(&answer, "access-control-allow-headers")[0].contains("authorization"));
            assert!(said(&answer, "access-control-allow-methods")[0].contains("DELETE"));
            assert_eq!(said(&answer, "access-control-max-age"), ["600"]);
            assert_eq!(said(&answer, "access-control-allow-credentials"), [""; 0]);
            assert!(said(&answer, "vary")[0].contains("origin"));
        }
    }
    assert_eq!(worker.seen().len(), 0, "none of them went on");
    for origin in
        ["https://evil.example", "https://app.example.evil.example", "null", "HTTPS://APP.EXAMPLE", "*"]
    {
        let answer = preflight(&gateway, &gateway.client, "/jobs", origin, "POST").send().await.unwrap();
        assert_eq!((answer.status(), allowed(&answer)), (StatusCode::NO_CONTENT, vec![]), "{origin}");
        let read = gateway.client.get(gateway.url("/livez")).header("origin", origin).send().await.unwrap();
        assert_eq!((read.status(), allowed(&read)), (StatusCode::OK, vec![]), "{origin}");
        assert_eq!(said(&read, "vary"), ["origin"], "a cache must not give it to a page of the list");
    }
    let twice = gateway.client.get(gateway.url("/livez")).header("origin", LISTED).header("origin", LISTED);
    assert_eq!(allowed(&twice.send().await.unwrap()), [""; 0]);
    // What is no preflight stays what it was.
    let plain =
        gateway.client.request(reqwest::Method::OPTIONS, gateway.url("/jobs")).header("origin", LISTED);
    assert_eq!(problem(plain.send().await.unwrap()).await["code"], "method_not_allowed");
    let nowhere = preflight(&gateway, &gateway.client, "/nowhere", LISTED, "GET").send().await.unwrap();
    assert_eq!(nowhere.status(), StatusCode::NOT_FOUND);

    let asked = gateway.client.get(gateway.url("/jobs")).header("origin", LISTED).send().await.unwrap();
    assert_eq!((asked.status(), allowed(&asked)), (StatusCode::UNAUTHORIZED, vec![LISTED.to_owned()]));
    let exposed = &said(&asked, "access-control-expose-headers")[0];
    assert!(
        ["location", "retry-after", "x-request-id", "millrace-pool"]
            .iter()
            .all(|name| exposed.contains(name))
    );
    for path in ["/", "/assets/app.js"] {
        let page = gateway.client.get(gateway.url(path)).header("origin", LISTED).send().await.unwrap();
        assert_eq!((page.status(), allowed(&page)), (StatusCode::OK, vec![]), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_answers_and_our_own_problems_are_marked_once_and_media_is_the_workers_business() {
    let worker = Fake::start("aws", "w1").await;
    let file = pools(&[("aws", 1.0, &[&worker])]);
    let gateway =
        Gateway::start(&format!("{file}[cors]\norigins = [{LISTED:?}]\ncredentials = true\n")).await;
    gateway.healthy(1).await;
    let ask = |method: &str, path: &str| {
        gateway.client.request(method.parse().unwrap(), gateway.url(path)).header("origin", LISTED).body("{}")
    };
    for behaviour in
        [Behaviour::Accept, Behaviour::Status(500), Behaviour::StoreUnavailable, Behaviour::Full(3)]
    {
        worker.behave(behaviour);
        for (method, path) in [("POST", "/jobs"), ("GET", "/jobs/j"), ("POST", "/upload/request")] {
            let answer = ask(method, path).send().await.unwrap();
            assert_eq!(allowed(&answer), [LISTED], "{behaviour:?} {method} {path} {}", answer.status());
            assert_eq!(said(&answer, "access-control-allow-credentials"), ["true"]);
            assert_eq!(said(&answer, "vary"), ["origin"]);
        }
    }
    worker.behave(Behaviour::Accept);
    let media = ask("GET", "/media/j/token/master.m3u8").send().await.unwrap();
    assert_eq!(allowed(&media), [""; 0], "this worker says nothing");
    worker.behave(Behaviour::Reset);
    let broken = ask("GET", "/media/j/token/master.m3u8").send().await.unwrap();
    assert_eq!(allowed(&broken), ["*"], "our own word on media is for all, as before");
    assert_eq!(allowed(&ask("GET", &format!("/media/{}", "x".repeat(9000))).send().await.unwrap()).len(), 1);
    worker.behave(Behaviour::Accept);
    let other = preflight(&gateway, &gateway.client, "/jobs/j/events", "https://other.example", "GET");
    let before = worker.seen().len();
    assert_eq!(other.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(worker.seen().len(), before + 1, "the worker may have another list");

    gateway.write(&format!("{file}[cors]\norigins = [\"*\"]\n"));
    eventually("the list is exchanged", || async { gateway.generation().await == 2 }).await;
    let anyone = gateway.client.get(gateway.url("/jobs/j")).header("origin", "https://other.example");
    let anyone = anyone.send().await.unwrap();
    assert_eq!((allowed(&anyone), said(&anyone, "vary")), (vec!["*".to_owned()], vec![]));
    gateway.write(&file);
    eventually("the list is gone", || async { gateway.generation().await == 3 }).await;
    let answer = preflight(&gateway, &gateway.client, "/jobs", LISTED, "POST").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "method_not_allowed");
}
