//! The page at `/` of both listeners, and `/pools`.

use reqwest::{Method, StatusCode, header};

use crate::fake::Fake;
use crate::harness::{Gateway, eventually, http2, pools, problem};

async fn start(section: &str) -> (Gateway, Fake) {
    let worker = Fake::start("aws", "w1").await;
    let gateway = Gateway::start(&format!("{}\n{section}", pools(&[("aws", 1.0, &[&worker])]))).await;
    gateway.healthy(1).await;
    (gateway, worker)
}

/// The addresses of the page's own files, as its HTML names them.
fn assets(html: &str) -> Vec<String> {
    let parts = html.split('"').filter(|part| part.starts_with("/assets/"));
    parts.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_listeners_serve_the_page_and_its_files_from_memory() {
    let (gateway, worker) = start("").await;
    for (url, parts) in [(gateway.url("/"), "jobs pools"), (gateway.admin_url("/"), "pools")] {
        let page = gateway.client.get(&url).send().await.unwrap();
        assert_eq!(page.status(), StatusCode::OK, "{url}");
        let headers = page.headers().clone();
        assert_eq!(headers["content-type"], "text/html; charset=utf-8");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        let policy = headers["content-security-policy"].to_str().unwrap();
        for part in ["default-src 'none'", "script-src 'self';", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        let html = page.text().await.unwrap();
        assert!(html.contains(&format!("data-parts=\"{parts}\"")), "{html}");
        let head = gateway.client.head(&url).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], html.len().to_string().as_str());

        let files = assets(&html);
        assert!(files.len() >= 4, "{files:?}");
        for path in files {
            let address = format!("{}{}", url.trim_end_matches('/'), path);
            let plain = gateway.client.get(&address).send().await.unwrap();
            assert_eq!(plain.status(), StatusCode::OK, "{address}");
            assert!(plain.headers()["cache-control"].to_str().unwrap().contains("immutable"), "{address}");
            let tag = plain.headers()[header::ETAG].clone();
            let size = plain.bytes().await.unwrap().len();
            let again = gateway.client.get(&address).header(header::IF_NONE_MATCH, tag.clone());
            let again = again.send().await.unwrap();
            assert_eq!((again.status(), &again.headers()[header::ETAG]), (StatusCode::NOT_MODIFIED, &tag));
            assert_eq!(again.bytes().await.unwrap().len(), 0);
            let packed = gateway.client.get(&address).header(header::ACCEPT_ENCODING, "gzip");
            let packed = packed.send().await.unwrap();
            assert_eq!(
                (&packed.headers()["content-encoding"], &packed.headers()["vary"]),
                (&"gzip".parse().unwrap(), &"accept-encoding".parse().unwrap())
            );
            assert_ne!(packed.headers()[header::ETAG], tag);
            let mut unpacked = Vec::new();
            let bytes = packed.bytes().await.unwrap();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut unpacked).unwrap();
            assert_eq!(unpacked.len(), size, "{address}");
        }
    }
    assert_eq!(worker.submits().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_does_not_have_is_refused() {
    let (gateway, _worker) = start("").await;
    for client in [&gateway.client, &http2()] {
        for path in [
            "/assets/none.js",
            "/assets/",
            "/assets/../routing.toml",
            "/assets/%2e%2e%2fbuild.rs",
            "/assets/app.js/x",
        ] {
            // A client would resolve the dots itself.
            let url = gateway.url("").parse::<reqwest::Url>().unwrap();
            let mut url = url.clone();
            url.set_path(path);
            let refused = client.get(url).send().await.unwrap();
            assert_eq!(problem(refused).await["code"], "not_found", "{path}");
        }
        for path in ["/", "/assets/app.js", "/pools"] {
            let refused = client.request(Method::POST, gateway.url(path)).body("x").send().await.unwrap();
            assert_eq!(
                (refused.status().as_u16(), &refused.headers()["allow"]),
                (405, &"GET, HEAD".parse().unwrap())
            );
            assert_eq!(problem(refused).await["code"], "method_not_allowed");
        }
    }
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("route=\"none\"") && !metrics.contains("route=\"page\""), "{metrics}");
    let none = gateway.client.get(gateway.admin_url("/assets/none.js")).send().await.unwrap();
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_told_of_as_the_routing_file_says() {
    let (gateway, _worker) = start("").await;
    let told = gateway.client.get(gateway.url("/pools")).send().await.unwrap();
    assert_eq!(
        (&told.headers()["content-type"], &told.headers()["cache-control"]),
        (&"application/json".parse().unwrap(), &"no-store".parse().unwrap())
    );
    let told: serde_json::Value = told.json().await.unwrap();
    let status = gateway.status().await;
    assert_eq!(
        (&told["pools"][0]["name"], &told["version"]),
        (&status["pools"][0]["name"], &status["version"])
    );
    assert_eq!(told["pools"][0]["workers"][0]["report"]["worker"], "w1");
    assert_eq!(gateway.client.head(gateway.url("/pools")).send().await.unwrap().status(), StatusCode::OK);

    // A page elsewhere whose name was made to lead here asks by that name, over either protocol.
    let foreign = |url: String| gateway.client.get(url).header(header::HOST, "evil.example");
    let refused = foreign(gateway.url("/pools")).send().await.unwrap();
    assert_eq!(problem(refused).await["code"], "not_found");
    let page = foreign(gateway.url("/")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("data-parts=\"jobs\""));
    for path in ["/", "/pools", "/status", "/metrics"] {
        let refused = foreign(gateway.admin_url(path)).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
    }
    assert_eq!(http2().get(gateway.url("/pools")).send().await.unwrap().status(), StatusCode::OK);

    let file = std::fs::read_to_string(gateway.file()).unwrap();
    gateway.write(&format!("{file}\n[page]\npools = true\n"));
    eventually("the file is in force", || async { gateway.generation().await == 2 }).await;
    assert_eq!(foreign(gateway.url("/pools")).send().await.unwrap().status(), StatusCode::OK, "said so");
    gateway.write(&format!("{file}\n[page]\npools = false\norigins = [\"https://bucket.example\"]\n"));
    eventually("the file is in force", || async { gateway.generation().await == 3 }).await;
    let silent = gateway.client.get(gateway.url("/pools")).send().await.unwrap();
    assert_eq!(problem(silent).await["code"], "not_found");
    let page = gateway.client.get(gateway.url("/")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("connect-src 'self' https://bucket.example;"), "{policy}");
    assert!(page.text().await.unwrap().contains("data-parts=\"jobs\""));
    let admin = gateway.client.get(gateway.admin_url("/pools")).send().await.unwrap();
    assert_eq!(admin.status(), StatusCode::OK, "the admin listener tells in any case");

    gateway.write(&format!("{file}\n[page]\nenabled = false\n"));
    eventually("the file is in force", || async { gateway.generation().await == 4 }).await;
    for path in ["/", "/assets/app.js"] {
        let off = gateway.client.get(gateway.url(path)).send().await.unwrap();
        assert_eq!(problem(off).await["code"], "not_found", "{path}");
        let off = gateway.client.get(gateway.admin_url(path)).send().await.unwrap();
        assert_eq!(off.status(), StatusCode::NOT_FOUND, "{path}");
    }
}
