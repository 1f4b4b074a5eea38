//! What clients do at the object store itself: a real S3 server, and the worker's HTTP side before it.

use millrace_wire::job::{UploadParts, UploadTicket};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, LOCATION, RANGE};
use serde_json::{Value, json};

use super::*;
use crate::objects::conformance::{Stage, noise};

struct Store {
    served: Served,
    stage: Stage,
}

impl Store {
    async fn start(change: impl FnOnce(&mut App)) -> Self {
        let stage = Stage::s3().await;
        let served = Served::with(|app| {
            app.objects = stage.objects.clone();
            app.upload_bytes_max = 100 << 20;
            change(app);
        });
        Self { served: served.await, stage }
    }

    fn url(&self) -> &str {
        &self.stage.server.as_ref().unwrap().url
    }

    async fn ask_json(&self, method: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.served.client.request(method.parse().unwrap(), self.absolute(path));
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.served.url) }
    }

    async fn ticket(&self, body: &Value) -> UploadTicket {
        let (status, ticket) = self.ask_json("POST", "/upload/request", body).await;
        assert_eq!(status, 200, "{ticket}");
        serde_json::from_value(ticket).unwrap()
    }

    /// A plain PUT, as a client without any credentials does it.
    async fn put(&self, url: &str, headers: &[(String, String)], body: Vec<u8>) -> reqwest::Response {
        let mut request = self.served.client.put(url).body(body);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send().await.unwrap()
    }
}

fn code(answer: &(StatusCode, Value)) -> &str {
    answer.1["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_small_file_is_put_once_into_the_store_and_is_an_input_then() {
    let store = Store::start(|app| app.upload_bytes_max = 1000).await;
    let ticket = store.ticket(&json!({ "filename": "v.mp4" })).await;
    assert!(ticket.upload_url.starts_with(store.url()) && ticket.parts.is_none(), "{ticket:?}");
    let headers: Vec<_> = ticket.headers.clone().into_iter().collect();
    assert_eq!(headers, [("if-none-match".to_owned(), "*".to_owned())]);
    let spec = json!({ "input_path": ticket.input_path });
    assert_eq!(code(&store.ask_json("POST", "/jobs", &spec).await), "bad_input_path");
    let other = ticket.upload_url.replace("v.mp4", "w.mp4");
    for (url, headers) in [(&ticket.upload_url, &[][..]), (&other, &headers[..])] {
        assert_eq!(store.put(url, headers, b"x".to_vec()).await.status(), 403, "not as it was signed");
    }
    assert_eq!(store.put(&ticket.upload_url, &headers, b"first".to_vec()).await.status(), 200);
    assert_eq!(store.put(&ticket.upload_url, &headers, b"second".to_vec()).await.status(), 412, "once");
    let (status, job) = store.ask_json("POST", "/jobs", &spec).await;
    assert_eq!(status, 202, "{job}");

    // A URL of the store's own takes what it is given; the job does not.
    let large = store.ticket(&json!({ "filename": "large" })).await;
    assert_eq!(store.put(&large.upload_url, &headers, vec![0; 1001]).await.status(), 200);
    let refused = store.ask_json("POST", "/jobs", &json!({ "input_path": large.input_path })).await;
    assert_eq!((code(&refused), refused.0.as_u16()), ("upload_too_large", 413));
    for (body, wanted) in [
        (json!({ "filename": "v", "bytes": 1001 }), "upload_too_large"),
        (json!({ "filename": "v", "bytes": 0 }), "bad_field"),
        (json!({ "filename": "v", "resumable": true }), "bad_field"),
    ] {
        assert_eq!(code(&store.ask_json("POST", "/upload/request", &body).await), wanted, "{body}");
    }
}

#[tokio::test]
async fn a_large_file_goes_in_parts_is_taken_up_again_and_completed_once() {
    let store = Store::start(|_| {}).await;
    let bytes = noise((16 << 20) + 5, 1);
    let ticket = store.ticket(&json!({ "filename": "v.mp4", "bytes": bytes.len(), "resumable": true })).await;
    let parts = ticket.parts.clone().unwrap();
    assert_eq!((ticket.method.as_str(), parts.count, parts.part_bytes), ("POST", 2, 16 << 20));
    assert!(ticket.upload_url.starts_with(&store.served.url) && parts.arrived.is_empty());
    assert!(parts.urls.iter().all(|part| part.url.starts_with(store.url())));
    let (first, second) = (bytes[..16 << 20].to_vec(), bytes[16 << 20..].to_vec());
    let session = ticket.upload_url.as_str();
    let status = async || -> UploadParts {
        serde_json::from_value(store.ask_json("GET", session, &json!(null)).await.1).unwrap()
    };

    // The second part arrives, the first is cut short, and the client forgets everything but the session's URL.
    assert_eq!(store.put(&parts.urls[1].url, &[], second).await.status(), 200);
    assert_eq!(store.put(&parts.urls[0].url, &[], first[..100].to_vec()).await.status(), 200);
    assert_eq!(code(&store.ask_json("POST", session, &json!({})).await), "upload_incomplete");
    let seen = status().await;
    assert_eq!(seen.arrived.iter().map(|part| (part.number, part.bytes)).collect::<Vec<_>>(), [(2, 5)]);
    assert_eq!(seen.urls.iter().map(|part| part.number).collect::<Vec<_>>(), [1]);
    let sent = store.put(&seen.urls[0].url, &[], first).await;
    assert_eq!(sent.status(), 200);
    assert!(status().await.urls.is_empty());

    // This server's list of parts has no ETags, so the client's count. (What they are it does not compare.)
    assert_eq!(code(&store.ask_json("POST", session, &json!({})).await), "bad_field");
    let etags = json!({ "etags": [sent.headers()["etag"].to_str().unwrap(), "\"of the second\""] });
    for _ in 0..2 {
        let done = store.ask_json("POST", session, &etags).await;
        assert_eq!(done.0, 200, "{done:?}");
        assert_eq!(done.1, json!({ "input_path": ticket.input_path, "bytes": bytes.len() }));
    }
    assert_eq!(code(&store.ask_json("GET", session, &json!(null)).await), "upload_exists");
    let (pool, key) = keys::split_input_path(&ticket.input_path).unwrap();
    let into = store.served.folder.path().join("fetched");
    store.stage.objects.get_file(&pool, key, &into, u64::MAX, &|_, _| {}).await.unwrap();
    assert!(std::fs::read(into).unwrap() == bytes);

    for forged in [
        session.replace("sig=", "sig=00"),
        session.replace("bytes=", "bytes=1"),
        session.replace("expires=", "expires=9"),
        session.replace("parts=", "parts=x"),
        session.replace("v.mp4", "w.mp4"),
        session.split('?').next().unwrap().to_owned(),
    ] {
        for method in ["GET", "POST"] {
            let answer = store.ask_json(method, &forged, &json!({})).await;
            assert_eq!(code(&answer), "bad_signature", "{method} {forged}");
        }
    }
}

#[tokio::test]
async fn where_clients_go_through_the_workers_the_store_is_not_shown_to_them() {
    let store = Store::start(|app| app.presign = Presign::Off).await;
    let ticket = store.ticket(&json!({ "filename": "v.mp4", "bytes": 11, "resumable": true })).await;
    assert!(ticket.upload_url.starts_with(&store.served.url) && ticket.parts.is_none(), "{ticket:?}");
    assert_eq!(store.put(&ticket.upload_url, &[], b"hello world".to_vec()).await.status(), 201);
    assert_eq!(store.put(&ticket.upload_url, &[], b"hello again".to_vec()).await.status(), 409);
    let outputs = store
        .served
        .published("j", Outputs { hls: Some("master.m3u8".to_owned()), ..Outputs::default() })
        .await;
    let segment = outputs.hls.unwrap().replace("master.m3u8", "seg_0_00001.m4s");
    let answer = store.served.get(&segment).await;
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "seg_0_00001.m4s"));
}

#[tokio::test]
async fn readers_are_led_to_the_store_for_what_names_nothing_and_nowhere_once_it_is_deleted() {
    let store = Store::start(|_| {}).await;
    let outputs = Outputs { hls: Some("master.m3u8".to_owned()), ..Outputs::default() };
    let hls = store.served.published("j", outputs).await.hls.unwrap();
    let of = |name: &str| hls.replace("master.m3u8", name);
    for inline in ["master.m3u8", "720p.m3u8", "thumbnails.vtt"] {
        let answer = store.served.get(&of(inline)).await;
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, inline));
    }
    let location = async |method: &str, path: &str| {
        let answer = store.served.ask(method, path).send().await.unwrap();
        assert_eq!(answer.status(), 307, "{path}");
        let url = answer.headers()[LOCATION].to_str().unwrap().to_owned();
        assert!(url.starts_with(store.url()), "{url}");
        url
    };
    for (name, kind) in
        [("seg_0_00001.m4s", "video/iso.segment"), ("720p.mp4", "video/mp4"), ("audio.m4a", "audio/mp4")]
    {
        let answer = store.served.client.get(location("GET", &of(name)).await).send().await.unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], kind);
        assert_eq!(answer.text().await.unwrap(), name);
    }
    let url = location("GET", &of("seg_0_00001.m4s")).await;
    let part = store.served.client.get(&url).header(RANGE, "bytes=4-4").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.text().await.unwrap().as_str()), (206, "0"));
    let head = location("HEAD", &of("seg_0_00001.m4s")).await;
    assert_eq!(store.served.client.head(head).send().await.unwrap().status(), 200);
    assert!(
        location("GET", &of("720p.mp4?download")).await.contains("response-content-disposition=attachment")
    );
    assert_eq!(store.served.get(&of("none.m4s")).await.status(), 307, "the store says that there is none");
    // A wrong token is led nowhere.
    let forged = of("seg_0_00001.m4s").replacen("-", "-0", 1);
    assert_eq!(store.served.get(&forged).await.status(), 403);

    // Deleting needs its own wish; then everybody is told, and the URL that somebody still holds works until the bytes go.
    let late = store.ask_json("DELETE", "/jobs/j", &json!(null)).await;
    assert_eq!(code(&late), "job_finished");
    for _ in 0..2 {
        let (status, job) = store.ask_json("DELETE", "/jobs/j?outputs", &json!(null)).await;
        assert_eq!(
            (status.as_u16(), &job["outputs"], &job["state"]),
            (200, &Value::Null, &json!("succeeded"))
        );
        // As times and not as texts: of 0.480 s only "48" is written.
        let until: jiff::Timestamp = job["outputs_until"].as_str().unwrap().parse().unwrap();
        assert!(until <= jiff::Timestamp::now(), "{job}");
    }
    for gone in [
        of("master.m3u8"),
        of("seg_0_00001.m4s"),
        "/media/j/master.m3u8".to_owned(),
        "/download/j".to_owned(),
    ] {
        let answer = store.ask_json("GET", &gone, &json!(null)).await;
        assert_eq!((answer.0.as_u16(), code(&answer)), (410, "outputs_gone"), "{gone}");
    }
    assert_eq!(store.served.client.get(&url).send().await.unwrap().status(), 200);
    store.served.accept("waits").await;
    assert_eq!(code(&store.ask_json("DELETE", "/jobs/waits?outputs", &json!(null)).await), "job_not_ready");
    assert_eq!(
        code(&store.ask_json("DELETE", "/jobs/nobody?outputs=1", &json!(null)).await),
        "job_not_found"
    );
}
