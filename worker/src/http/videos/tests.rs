use std::collections::BTreeSet;

use axum::http::header::CONTENT_TYPE;
use millrace_wire::job::State as JobState;
use millrace_wire::spec::Resolution;

use super::*;
use crate::http::tests::Served;

const BOUNDARY: &str = "----edge";

/// A form of parts: name, file name and bytes.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, bytes) in parts {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

impl Served {
    async fn post_form(&self, path: &str, body: Vec<u8>) -> reqwest::Response {
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        self.ask("POST", path).header(CONTENT_TYPE, kind).body(body).send().await.unwrap()
    }

    async fn post_file(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        self.ask("POST", path).header(CONTENT_TYPE, "video/mp4").body(body).send().await.unwrap()
    }

    /// How many objects there are, staged ones included.
    fn objects(&self) -> usize {
        fn count(folder: &std::path::Path) -> usize {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let count =
                |entry: std::fs::DirEntry| if entry.path().is_dir() { count(&entry.path()) } else { 1 };
            entries.map(count).sum()
        }
        count(&self.folder.path().join("objects"))
    }

    /// How many uploads the store knows.
    async fn uploads(&self) -> i64 {
        let url = format!("sqlite:{}", self.folder.path().join("jobs.db").display());
        let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM upload").fetch_one(&mut connection).await.unwrap()
    }
}

async fn video(answer: reqwest::Response) -> Video {
    let text = answer.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

async fn problem(answer: reqwest::Response) -> (u16, Code, Option<String>) {
    let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
    let problem: Problem = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (status, problem.code, problem.field)
}

#[tokio::test]
async fn a_file_is_a_job_in_one_call() {
    let served = Served::with(|app| app.room.queue_max = 99).await;
    let spec = r#"{"resolutions":["720p"],"labels":{"team":"red"}}"#;
    let path =
        format!("/videos?title=The%20Sea&filename=../my%20clip.mp4&job_id=sea&spec={}", urlencoded(spec));
    let answer = served.post_file(&path, b"bytes".to_vec()).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()),
        (202, "/videos/sea")
    );
    let posted = video(answer).await;
    assert_eq!(
        (posted.title.as_deref(), posted.state, posted.duration_s),
        (Some("The Sea"), JobState::Queued, None)
    );
    assert_eq!(posted.links["job"], "/jobs/sea");
    let claim = served.claim().await;
    assert_eq!(claim.spec.resolutions, [Resolution::P720]);
    let Input::Path(input) = &claim.spec.input else { panic!("{:?}", claim.spec) };
    let (bucket, key) = keys::split_input_path(input).unwrap();
    assert!(key.ends_with("/my-clip.mp4"), "{key}");
    assert_eq!(served.app.objects.head(&bucket, key).await.unwrap().bytes, 5);

    // A form, in the order in which browsers may send it.
    let parts: [(&str, Option<&str>, &[u8]); 3] = [
        ("file", Some("v.mp4"), b"\r\n--\r\n----edg"),
        ("spec", None, br#"{"crf":20}"#),
        ("title", None, b"Two"),
    ];
    let answer = served.post_form("/videos", form(&parts)).await;
    assert_eq!(answer.status(), 202);
    let posted = video(answer).await;
    let row = served.app.store.job("default", &posted.video_id).await.unwrap().unwrap();
    assert_eq!((row.spec.crf, row.spec.title.as_deref()), (Some(20), Some("Two")));
    let Input::Path(input) = &row.spec.input else { panic!("{row:?}") };
    let (bucket, key) = keys::split_input_path(input).unwrap();
    assert_eq!(served.app.objects.head(&bucket, key).await.unwrap().bytes, 13);
    assert_eq!(served.objects(), 2);
}

fn urlencoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn posted_again_it_is_the_same_video_and_nothing_is_stored_twice() {
    let served = Served::with(|app| app.room.queue_max = 99).await;
    let post = async |path: &str| served.post_file(path, b"bytes".to_vec()).await;
    assert_eq!(post("/videos?job_id=a&title=x").await.status(), 202);
    let again = post("/videos?job_id=a&title=x").await;
    assert_eq!((again.status().as_u16(), video(again).await.video_id.as_str()), (200, "a"));
    assert_eq!(problem(post("/videos?job_id=a&title=y").await).await.1, Code::JobConflict);
    let parts: [(&str, Option<&str>, &[u8]); 2] = [("file", Some("v"), b"bytes"), ("title", None, b"x")];
    assert_eq!(served.post_form("/videos?job_id=a", form(&parts)).await.status(), 200, "as a form, too");
    let other: [(&str, Option<&str>, &[u8]); 2] = [("file", Some("v"), b"bytes"), ("title", None, b"y")];
    let conflict = served.post_form("/videos?job_id=a", form(&other)).await;
    assert_eq!(problem(conflict).await.1, Code::JobConflict, "what comes behind the file counts");
    assert_eq!(post("/videos?job_id=bare").await.status(), 202);
    let long = "x".repeat(257);
    for (title, code) in [("y", Code::JobConflict), (long.as_str(), Code::BadField)] {
        let parts = [("file", Some("v"), &b"bytes"[..]), ("title", None, title.as_bytes())];
        let refused = served.post_form("/videos?job_id=bare", form(&parts)).await;
        assert_eq!(problem(refused).await.1, code, "the file alone would be the same");
    }
    let parts = [("file", Some("v"), &b"bytes"[..])];
    assert_eq!(served.post_form("/videos?job_id=bare", form(&parts)).await.status(), 200);
    let keyed =
        served.ask("POST", "/videos?title=x").header("idempotency-key", "a").body("bytes").send().await;
    assert_eq!(keyed.unwrap().status(), 200);
    let both =
        served.ask("POST", "/videos?job_id=b").header("idempotency-key", "a").body("bytes").send().await;
    assert_eq!(problem(both.unwrap()).await.1, Code::JobIdMismatch);
    let at_once = (0..6).map(|_| post("/videos?job_id=together"));
    let mut answers: Vec<u16> =
        futures::future::join_all(at_once).await.into_iter().map(|answer| answer.status().as_u16()).collect();
    answers.sort_unstable();
    assert_eq!(answers, [200, 200, 200, 200, 200, 202]);
    assert_eq!((served.objects(), served.uploads().await), (3, 3));
}

#[tokio::test]
async fn what_is_not_accepted_leaves_nothing() {
    let served = Served::with(|app| app.room.queue_max = 99).await;
    let file: (&str, Option<&str>, &[u8]) = ("file", Some("v.mp4"), b"bytes");
    let large = vec![b'x'; 1001];
    for (path, status, code, field) in [
        ("/videos?spec=%7B", 400, Code::BadJson, Some("spec")),
        ("/videos?spec=%7B%22colour%22%3A1%7D", 422, Code::UnknownField, Some("colour")),
        ("/videos?spec=%7B%22input_url%22%3A%22http%3A%2F%2Fh%22%7D", 422, Code::BadField, Some("input_url")),
        ("/videos?spec=%7B%22title%22%3A%22a%22%7D&title=b", 422, Code::BadField, Some("title")),
        (
            "/videos?spec=%7B%22webhook_url%22%3A%22https%3A%2F%2Fh%2F%22%7D",
            422,
            Code::BadField,
            Some("webhook_url"),
        ),
        ("/videos?title=", 422, Code::BadField, Some("title")),
        ("/videos?job_id=%20", 422, Code::BadJobId, Some("job_id")),
        ("/videos?colour=red", 400, Code::BadQuery, Some("query")),
        ("/videos?filename=", 400, Code::BadQuery, Some("filename")),
    ] {
        let answer = served.post_file(path, b"bytes".to_vec()).await;
        assert_eq!(problem(answer).await, (status, code, field.map(str::to_owned)), "{path}");
    }
    assert_eq!(problem(served.post_file("/videos", large.clone()).await).await.1, Code::UploadTooLarge);
    assert_eq!(problem(served.post_file("/videos", Vec::new()).await).await.1, Code::UploadIncomplete);
    let json = served
        .ask("POST", "/videos")
        .header(CONTENT_TYPE, "application/json")
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(problem(json).await.1, Code::UnsupportedMediaType);
    for (parts, code) in [
        (vec![("spec", None, &b"{}"[..])], Code::BadField),
        (vec![file, ("spec", None, b"{")], Code::BadJson),
        (vec![file, ("spec", None, br#"{"crf":1}"#)], Code::BadField),
        (vec![file, file], Code::BadRequest),
        (vec![("spec", None, b"{}"), ("spec", None, b"{}"), file], Code::BadRequest),
        (vec![file, ("other", None, b"x")], Code::UnknownField),
        (vec![("file", None, &large[..])], Code::UploadTooLarge),
        (vec![("file", None, b"")], Code::UploadIncomplete),
        (vec![file, ("title", None, &large[..])], Code::BadField),
    ] {
        let names: Vec<&str> = parts.iter().map(|part| part.0).collect();
        let answer = served.post_form("/videos", form(&parts)).await;
        assert_eq!(problem(answer).await.1, code, "{names:?}");
    }
    // Forms that are none: cut off at every place, no boundary, and a header that never ends.
    let whole = form(&[("spec", None, b"{}"), file]);
    for end in 0..whole.len() - 4 {
        let answer = served.post_form("/videos", whole[..end].to_vec()).await;
        assert_eq!(answer.status(), 400, "{end} of {}", whole.len());
    }
    let kind = "multipart/form-data";
    let bare =
        served.ask("POST", "/videos").header(CONTENT_TYPE, kind).body(whole.clone()).send().await.unwrap();
    assert_eq!(problem(bare).await.1, Code::BadRequest);
    let endless = [format!("--{BOUNDARY}\r\nx: ").into_bytes(), vec![b'y'; 3 << 20]].concat();
    // It is refused while it is still being sent.
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let sent = served.ask("POST", "/videos").header(CONTENT_TYPE, kind).body(endless).send().await;
    if let Ok(answer) = sent {
        assert_eq!(problem(answer).await.1, Code::BadRequest);
    }
    // A sender that goes away in the middle.
    let pieces = [Ok(Bytes::from_static(b"by")), Err(std::io::Error::other("gone"))];
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let gone = served.ask("POST", "/videos").header(CONTENT_TYPE, "video/mp4").body(body).send().await;
    assert!(gone.is_err());
    let began = tokio::time::Instant::now();
    while (served.objects(), served.uploads().await) != (0, 0) {
        assert!(began.elapsed() < Duration::from_secs(10), "{} objects stay", served.objects());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listed: VideoPage = serde_json::from_str(&served.get("/videos").await.text().await.unwrap()).unwrap();
    assert!(listed.videos.is_empty());
}

#[tokio::test]
async fn there_is_no_room_before_the_bytes_come() {
    let served = Served::with(|app| (app.room.slots, app.room.queue_max) = (0, 0)).await;
    let full = problem(served.post_file("/videos", b"bytes".to_vec()).await).await;
    assert_eq!((full.0, full.1), (429, Code::Saturated));
    served.app.load.drain();
    assert_eq!(problem(served.post_file("/videos", b"bytes".to_vec()).await).await.1, Code::Draining);
    assert_eq!((served.objects(), served.uploads().await), (0, 0));
}

#[tokio::test]
async fn a_connection_whose_bytes_nobody_read_is_said_to_end() {
    let served = Served::with(|app| app.room.queue_max = 99).await;
    let said = |answer: &reqwest::Response| {
        (
            answer.status().as_u16(),
            answer.headers().get("connection").map(|said| said.to_str().unwrap().to_owned()),
        )
    };
    let refused = served.ask("POST", "/videos?job_id=v").header(CONTENT_TYPE, "image/png").body("bytes");
    assert_eq!(said(&refused.send().await.unwrap()), (415, Some("close".to_owned())));
    assert_eq!(said(&served.post_file("/videos?job_id=v", "bytes").await), (202, None));
    assert_eq!(said(&served.post_file("/videos?job_id=v", "bytes").await), (200, Some("close".to_owned())));
    assert_eq!(
        said(&served.ask("GET", "/jobs/none").send().await.unwrap()),
        (404, None),
        "there was no body"
    );
    let read = served.ask("POST", "/jobs").body("{").send().await.unwrap();
    assert_eq!(said(&read), (400, None), "it was read, and then refused");
}

#[tokio::test]
async fn videos_are_found_by_words_page_by_page_and_by_their_tenant_alone() {
    let served = Served::with(|app| app.room.queue_max = 99).await;
    for (tenant, id, title) in [
        ("default", "one", "Holiday at the sea"),
        ("default", "two", "holiday in the hills"),
        ("other", "three", "Holiday elsewhere"),
    ] {
        let path = format!("/videos?job_id={id}&title={}", urlencoded(title));
        let post = served.ask("POST", &path).header("millrace-tenant", tenant).body("bytes");
        assert_eq!(post.send().await.unwrap().status(), 202, "{id}");
    }
    let find = async |tenant: &str, query: &str| -> (Vec<String>, Option<String>) {
        let asked = served.ask("GET", &format!("/videos{query}")).header("millrace-tenant", tenant);
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{query}");
        let page: VideoPage = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        (page.videos.into_iter().map(|video| video.video_id.to_string()).collect(), page.next_cursor)
    };
    for (tenant, query, wanted) in [
        ("default", "", vec!["two", "one"]),
        ("default", "?q=", vec!["two", "one"]),
        ("default", "?q=holiday", vec!["two", "one"]),
        ("default", "?q=HOLI", vec!["two", "one"]),
        ("default", "?q=sea%20holiday", vec!["one"]),
        ("other", "?q=holiday", vec!["three"]),
        ("nobody", "?q=holiday", vec![]),
        ("default", "?q=%22%27%29%3B--%20DROP%20TABLE", vec![]),
        ("default", "?q=%2A%2A%2A", vec![]),
        ("default", "?q=%00", vec![]),
        ("default", "?q=sea%00%22%20OR%20%28hol%2A", vec![]),
    ] {
        assert_eq!(find(tenant, query).await.0, wanted, "{tenant} {query}");
    }
    let (mut seen, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let (page, next) = find("default", &format!("?q=holiday&limit=1{cursor}")).await;
        assert_eq!(page.len(), 1);
        seen.extend(page);
        let Some(next) = next else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen.len(), 2);
    for query in [
        "?limit=0",
        "?cursor=x",
        "?colour=red",
        &format!("?q={}", "a%20".repeat(33)),
        &format!("?q={}", "a".repeat(257)),
    ] {
        assert_eq!(problem(served.get(&format!("/videos{query}")).await).await.1, Code::BadQuery, "{query}");
    }
    assert_eq!(problem(served.get("/videos/three").await).await.1, Code::JobNotFound, "another's");
    let one = video(served.get("/videos/one").await).await;
    assert_eq!(one.title.as_deref(), Some("Holiday at the sea"));
}
