mod copies;
mod past_the_workers;
mod retry;

use millrace_wire::job::{Job, Outputs, Phase, Rendition};
use millrace_wire::{JobId, JobSpec};
use reqwest::redirect::Policy;

use super::*;
use crate::keys;
use crate::store::{Accepted, Claim, JobRow, Manifest, NewJob, Published, TENANT_DEFAULT};

/// A worker's HTTP side on a store of its own, without a claim loop behind it, and a client that follows nothing.
pub(crate) struct Served {
    pub(crate) url: String,
    pub(crate) app: Arc<App>,
    pub(crate) client: reqwest::Client,
    pub(crate) folder: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut App)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("jobs.db").display());
        let sqlite = Arc::new(store::Sqlite::open(&url, 3).await.unwrap());
        let (store, upkeep): (Arc<dyn Store>, Arc<dyn Upkeep>) = (Arc::clone(&sqlite) as _, sqlite);
        let identity = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
        let room = Room { slots: 1, queue_max: 2 };
        let leases = Arc::new(Leases::new(Duration::from_secs(30)));
        let cost = Arc::new(CostModel::default());
        let load =
            Load::new(identity.clone(), room, Arc::clone(&store), Arc::clone(&leases), Arc::clone(&cost));
        let objects = Objects::open(&folder.path().join("objects")).unwrap();
        let fitness = Fitness::new(
            objects.clone(),
            identity.pool.clone(),
            identity.worker.clone(),
            folder.path().to_owned(),
        );
        let mut app = App {
            store,
            identity,
            objects,
            fitness: Arc::new(fitness),
            load: Arc::new(load),
            leases,
            cost,
            metrics: Arc::new(Metrics::new().unwrap()),
            nudge: Arc::default(),
            clock: Clock::default(),
            room,
            upkeep,
            presign: Presign::All,
            outputs_kept: Duration::from_secs(30 * 86_400),
            uploads_kept: Duration::from_secs(30 * 86_400),
            upload_bytes_max: 1000,
            upload_expiry: Duration::from_secs(60),
            media_expiry: Duration::from_secs(3600),
            media_origins: Origins::Any,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            second_pool: None,
            shunned: Default::default(),
            copy_nudge: Arc::default(),
            public_url: None,
            receivers: Arc::new(Receivers::new(false, Vec::new(), Duration::from_secs(1)).unwrap()),
        };
        change(&mut app);
        let app = Arc::new(app);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = router(Arc::clone(&app));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Self { url, app, client, folder }
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse().unwrap(), format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.ask("GET", path).send().await.unwrap()
    }

    pub(crate) async fn accept(&self, id: &str) -> JobRow {
        let (spec, _) = JobSpec::parse(br#"{"input_url":"http://h/v"}"#).unwrap();
        let (tenant, job_id) = (TENANT_DEFAULT.to_owned(), id.parse().unwrap());
        let new = NewJob { tenant, job_id, spec, work_seconds: 1.0, steal: Default::default(), second: None };
        let room = Room { slots: 99, queue_max: 99 };
        match self.app.store.accept(&new, &self.app.identity, room).await.unwrap() {
            Accepted::Created(row) => row,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn claim(&self) -> Claim {
        self.app.store.claim(&self.app.identity, Duration::from_secs(60)).await.unwrap().unwrap()
    }

    /// Ends a claim with files of the given names; each holds its own name.
    pub(crate) async fn publish(&self, claim: &Claim, outputs: Outputs, names: &[&str]) {
        let prefix = keys::attempt_prefix(claim.part, &claim.lease);
        for name in names {
            let file = self.folder.path().join("file");
            std::fs::write(&file, name).unwrap();
            self.app.objects.put_file(&claim.bucket, &format!("{prefix}/{name}"), &file).await.unwrap();
        }
        let (bucket, warnings) = (claim.bucket.clone(), Vec::new());
        let manifest = Manifest { bucket, prefix, pieces: None, files: names.len(), outputs, warnings };
        assert!(self.app.store.enter(&claim.lease, Phase::Publishing, None).await.unwrap());
        assert_eq!(self.app.store.publish(&claim.lease, &manifest).await.unwrap(), Published::Yes);
    }

    async fn job(&self, id: &str) -> Job {
        serde_json::from_str(&self.get(&format!("/jobs/{id}")).await.text().await.unwrap()).unwrap()
    }

    async fn published(&self, id: &str, outputs: Outputs) -> Outputs {
        self.accept(id).await;
        let claim = self.claim().await;
        let names =
            ["master.m3u8", "720p.m3u8", "seg_0_00001.m4s", "720p.mp4", "audio.m4a", "thumbnails.vtt"];
        self.publish(&claim, outputs, &names).await;
        self.job(id).await.outputs.unwrap()
    }
}

fn outputs() -> Outputs {
    let rendition = Rendition {
        name: "720p".to_owned(),
        width: 1280,
        height: 720,
        bandwidth: 2,
        average_bandwidth: 1,
        codecs: "avc1.64001f".to_owned(),
        frame_rate: 25.0,
        url: Some("720p.m3u8".to_owned()),
        mp4: Some("720p.mp4".to_owned()),
    };
    Outputs { hls: Some("master.m3u8".to_owned()), renditions: vec![rendition], ..Outputs::default() }
}

async fn code(answer: reqwest::Response) -> (u16, Code) {
    assert_eq!(answer.headers()[CONTENT_TYPE], problem::CONTENT_TYPE);
    let status = answer.status().as_u16();
    let problem: Problem = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    (status, problem.code)
}

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn every_error_is_a_problem_and_no_client_can_make_a_worker_look_ill() {
    let served = Served::start().await;
    let long = format!(r#"{{"input_path":"aws/uploads/{}"}}"#, "a".repeat(300));
    for (method, path, body, status, wanted) in [
        ("GET", "/jobs/%ff", "", 400, Code::BadRequest),
        ("DELETE", "/jobs/%ff", "", 400, Code::BadRequest),
        ("GET", "/media/j/%ff", "", 400, Code::BadRequest),
        ("GET", "/media/j/t/%ff", "", 400, Code::BadRequest),
        ("GET", "/media/j/t/n", "", 403, Code::BadSignature),
        ("GET", "/media/%20/t/n", "", 403, Code::BadSignature),
        ("PUT", "/media/j/t/n", "", 405, Code::MethodNotAllowed),
        ("GET", "/jobs/none/events", "", 404, Code::JobNotFound),
        ("GET", "/jobs/%20/events", "", 422, Code::BadJobId),
        ("GET", "/jobs?limit=0", "", 400, Code::BadQuery),
        ("GET", "/jobs?colour=red", "", 400, Code::BadQuery),
        ("GET", "/jobs/%20", "", 422, Code::BadJobId),
        ("GET", "/jobs/none", "", 404, Code::JobNotFound),
        ("GET", "/jobs/j/retry", "", 405, Code::MethodNotAllowed),
        ("PATCH", "/jobs/j", "", 405, Code::MethodNotAllowed),
        ("GET", "/nothing", "", 404, Code::NotFound),
        ("PUT", "/upload/aws/uploads/k/v.mp4", "", 403, Code::BadSignature),
        ("POST", "/jobs", "{", 400, Code::BadJson),
        ("POST", "/jobs", long.as_str(), 422, Code::BadInputPath),
    ] {
        let answer = served.ask(method, path).body(body.to_owned()).send().await.unwrap();
        assert_eq!(code(answer).await, (status, wanted), "{method} {path}");
    }
}

#[tokio::test]
async fn a_media_url_is_found_from_the_job_and_is_a_permission_of_its_own() {
    let served = Served::start().await;
    let hls = served.published("j", outputs()).await.hls.unwrap();
    let direct = served.get("/media/j/master.m3u8?a=b").await;
    assert_eq!((direct.status().as_u16(), header(&direct, "cache-control")), (307, Some("no-store")));
    assert_eq!(header(&direct, "location"), Some(format!("{hls}?a=b").as_str()));

    let playlist = served.get(&hls).await;
    assert_eq!(header(&playlist, "content-type"), Some("application/vnd.apple.mpegurl"));
    assert_eq!(header(&playlist, "cache-control"), Some("no-cache"));
    assert_eq!(playlist.text().await.unwrap(), "master.m3u8");
    let base = hls.strip_suffix("/master.m3u8").unwrap();
    let segment = served.get(&format!("{base}/seg_0_00001.m4s")).await;
    assert_eq!(header(&segment, "content-type"), Some("video/iso.segment"));
    let kept = header(&segment, "cache-control").unwrap();
    let age =
        kept.strip_prefix("public, max-age=").and_then(|rest| rest.strip_suffix(", immutable")).unwrap();
    assert!((3600 - 60..=5400).contains(&age.parse::<u64>().unwrap()), "{kept}");
    let head =
        served.ask("HEAD", &format!("{base}/720p.mp4")).header("range", "bytes=1-2").send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, Some("8")));

    for (range, status, body) in
        [("bytes=1-2", 206, "20"), ("bytes=5-2", 200, "720p.mp4"), ("bytes=-3", 206, "mp4")]
    {
        let answer =
            served.ask("GET", &format!("{base}/720p.mp4")).header("range", range).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.text().await.unwrap().as_str()),
            (status, body),
            "{range}"
        );
    }
    let beyond =
        served.ask("GET", &format!("{base}/720p.mp4")).header("range", "bytes=8-").send().await.unwrap();
    assert_eq!(header(&beyond, "content-range"), Some("bytes */8"));
    assert_eq!(code(beyond).await, (416, Code::BadRange));
}

#[tokio::test]
async fn a_token_that_is_wrong_tells_nothing_and_one_that_is_old_says_so() {
    let served = Served::start().await;
    let hls = served.published("j", outputs()).await.hls.unwrap();
    served.published("other", outputs()).await;
    let token = hls.split('/').nth(3).unwrap();
    for path in [
        format!("/media/other/{token}/master.m3u8"),
        format!("/media/nobody/{token}/master.m3u8"),
        format!("/media/j/{token}0/master.m3u8"),
        format!("/media/j/{token}0/none.m4s"),
    ] {
        let answer = served.get(&path).await;
        assert_eq!(header(&answer, "cache-control"), Some("no-store"));
        assert_eq!(code(answer).await, (403, Code::BadSignature), "{path}");
    }
    let row = served.app.store.job(TENANT_DEFAULT, &"j".parse::<JobId>().unwrap()).await.unwrap().unwrap();
    let past = jiff::Timestamp::now().as_second() - 100;
    let old =
        token::issue(served.app.store.signing_key(), TENANT_DEFAULT, &row.uid, past, Duration::from_secs(10));
    for name in ["master.m3u8", "none.m4s"] {
        let answer = served.get(&format!("/media/j/{old}/{name}")).await;
        assert_eq!(header(&answer, "cache-control"), Some("no-store"));
        assert_eq!(code(answer).await, (403, Code::MediaExpired), "{name}");
    }
    for name in ["none.m4s", ".hidden", "..%2Fsecret", "a%00b"] {
        let answer = served.get(&format!("/media/j/{token}/{name}")).await;
        assert_eq!(code(answer).await, (404, Code::NotFound), "{name}");
    }
    // Nobody holds a token of a job without outputs yet; who guesses that there is one learns nothing.
    served.accept("waits").await;
    assert_eq!(code(served.get("/media/waits/master.m3u8").await).await, (409, Code::JobNotReady));
    assert_eq!(code(served.get(&format!("/media/waits/{token}/x.m4s")).await).await.1, Code::BadSignature);
}

#[tokio::test]
async fn a_download_is_the_best_file_there_is() {
    let served = Served::start().await;
    let base = |outputs: &Outputs| outputs.hls.clone().unwrap().replace("master.m3u8", "");
    let all = base(&served.published("all", outputs()).await);
    let mut streamed = outputs();
    streamed.renditions[0].mp4 = None;
    let streamed = base(&served.published("streamed", streamed).await);
    for (path, leads_to) in [
        ("/download/all", format!("{all}720p.mp4?download")),
        ("/download/all?rendition=720p", format!("{all}720p.mp4?download")),
        ("/download/streamed", format!("{streamed}master.m3u8")),
        ("/download/streamed?rendition=720p", format!("{streamed}720p.m3u8")),
    ] {
        let answer = served.get(path).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "location")), (302, Some(leads_to.as_str())));
        let file = served.get(&leads_to).await;
        let saved = header(&file, "content-disposition");
        let wanted = leads_to.ends_with("?download").then_some("attachment; filename=\"all-720p.mp4\"");
        assert_eq!((file.status().as_u16(), saved), (200, wanted), "{leads_to}");
    }
    let unknown = served.get("/download/all?rendition=240p").await;
    assert_eq!(code(unknown).await, (404, Code::NotFound));
}

#[tokio::test]
async fn pages_elsewhere_may_read_media_errors_and_redirects_included() {
    let served = Served::start().await;
    let hls = served.published("j", outputs()).await.hls.unwrap();
    let paths = [
        (hls.as_str(), 200),
        ("/media/j/master.m3u8", 307),
        ("/media/nobody/master.m3u8", 404),
        ("/media/j/t/x", 403),
        ("/media/j/%ff", 400),
        ("/download/j", 302),
        ("/jobs/j/events", 200),
        ("/jobs/nobody/events", 404),
    ];
    for (path, status) in paths {
        let answer = served.ask("GET", path).header("origin", "https://a.example").send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(header(&answer, "access-control-allow-origin"), Some("*"), "{path}");
        assert_eq!(header(&answer, "timing-allow-origin"), Some("*"), "{path}");
        assert_eq!(header(&answer, "cross-origin-resource-policy"), Some("cross-origin"), "{path}");
        let exposed = header(&answer, "access-control-expose-headers").unwrap();
        for name in ["content-length", "content-range", "accept-ranges", "etag", "content-type", "date"] {
            assert!(exposed.contains(name), "{path}: {exposed}");
        }
        let preflight = served
            .ask("OPTIONS", path)
            .header("origin", "https://a.example")
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "range,last-event-id")
            .send()
            .await
            .unwrap();
        assert!(preflight.status().is_success(), "{path}: {}", preflight.status());
        assert_eq!(header(&preflight, "access-control-allow-origin"), Some("*"));
        assert_eq!(header(&preflight, "access-control-max-age"), Some("7200"));
        let allowed = header(&preflight, "access-control-allow-headers").unwrap();
        for name in ["range", "if-none-match", "if-range", "last-event-id", "cache-control"] {
            assert!(allowed.contains(name), "{allowed}");
        }
    }
    // A job's own answers are for who asked, not for any page.
    let job = served.ask("GET", "/jobs/j").header("origin", "https://a.example").send().await.unwrap();
    assert_eq!(header(&job, "access-control-allow-origin"), None);
}

#[tokio::test]
async fn only_the_pages_that_were_named_may_read() {
    let listed = Origins::Only(vec!["https://a.example".parse().unwrap()]);
    let served = Served::with(|app| app.media_origins = listed).await;
    for (origin, allowed) in [("https://a.example", Some("https://a.example")), ("https://b.example", None)] {
        let answer = served.ask("GET", "/media/j/t/x").header("origin", origin).send().await.unwrap();
        assert_eq!(header(&answer, "access-control-allow-origin"), allowed);
        assert_eq!(header(&answer, "timing-allow-origin"), Some("https://a.example"));
        assert!(
            header(&answer, "vary").is_some_and(|vary| vary.contains("origin")),
            "caches must tell them apart"
        );
    }
}

#[tokio::test]
async fn a_tenant_sees_its_own_jobs_alone() {
    let served = Served::start().await;
    let by =
        |tenant: &str, method: &str, path: &str| served.ask(method, path).header("millrace-tenant", tenant);
    let submit = r#"{"input_url":"http://h/v","job_id":"same"}"#;
    for tenant in ["acme", "other"] {
        let answer = by(tenant, "POST", "/jobs").body(submit).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{tenant}: an id is its tenant's");
    }
    let outputs = Outputs { hls: Some("master.m3u8".to_owned()), duration_s: 1.0, ..Outputs::default() };
    for _ in 0..2 {
        let claim = served.claim().await;
        served.publish(&claim, outputs.clone(), &["master.m3u8"]).await;
    }
    let read = async |tenant: &str, path: &str| by(tenant, "GET", path).send().await.unwrap();
    let link = async |tenant: &str| -> String {
        let job: Job = serde_json::from_str(&read(tenant, "/jobs/same").await.text().await.unwrap()).unwrap();
        job.outputs.unwrap().hls.unwrap()
    };
    let links = [link("acme").await, link("other").await];
    assert_ne!(links[0], links[1]);
    for link in &links {
        assert_eq!(
            served.get(link).await.status(),
            StatusCode::OK,
            "whoever has {link} needs to say nothing"
        );
        assert_eq!(read("third", link).await.status(), StatusCode::OK, "nor does it matter what he says");
    }
    // One tenant's permission with another's name, or with one more.
    for forged in [
        links[0].replace("-acme/", "-other/"),
        links[0].replace("-acme/", "/"),
        links[0].replace("-acme/", "-acme-x/"),
    ] {
        assert_ne!(forged, links[0]);
        assert_eq!(served.get(&forged).await.status(), StatusCode::FORBIDDEN, "{forged}");
    }
    for tenant in ["third", "default", "Acme"] {
        for path in ["/jobs/same", "/jobs/same/events", "/download/same", "/media/same/master.m3u8"] {
            assert_eq!(read(tenant, path).await.status(), StatusCode::NOT_FOUND, "{tenant} {path}");
        }
        assert_eq!(by(tenant, "DELETE", "/jobs/same").send().await.unwrap().status(), StatusCode::NOT_FOUND);
        let page: serde_json::Value =
            serde_json::from_str(&read(tenant, "/jobs").await.text().await.unwrap()).unwrap();
        assert_eq!(page["jobs"].as_array().unwrap().len(), 0);
    }
    let page: serde_json::Value =
        serde_json::from_str(&read("acme", "/jobs").await.text().await.unwrap()).unwrap();
    assert_eq!(page["jobs"].as_array().unwrap().len(), 1);
    assert!(page["jobs"][0]["outputs"]["hls"].as_str().unwrap().contains("-acme/"));
    assert!(read("acme", "/download/same").await.headers()["location"].to_str().unwrap().contains("-acme/"));
    let events = read("acme", "/jobs/same/events").await.text().await.unwrap();
    assert!(events.contains("event: end"), "{events}");
    assert_eq!(
        served.get("/jobs/same").await.status(),
        StatusCode::NOT_FOUND,
        "without a header: the default's"
    );
    for bad in ["", "a/b", ".", "a b", &"x".repeat(65)] {
        assert_eq!(read(bad, "/jobs").await.status(), StatusCode::BAD_REQUEST, "{bad:?}");
    }
    let twice = by("acme", "GET", "/jobs").header("millrace-tenant", "other").send().await.unwrap();
    assert_eq!(twice.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_upload_is_an_input_of_its_own_tenant_alone() {
    let served = Served::start().await;
    let by = |tenant: &str, path: &str| served.ask("POST", path).header("millrace-tenant", tenant);
    let mut paths = Vec::new();
    for tenant in ["acme", "default"] {
        let ticket = by(tenant, "/upload/request").body(r#"{"filename":"v.mp4"}"#).send().await.unwrap();
        let ticket: serde_json::Value = serde_json::from_str(&ticket.text().await.unwrap()).unwrap();
        let put = served.client.put(ticket["upload_url"].as_str().unwrap()).body("x").send().await.unwrap();
        assert_eq!(put.status(), StatusCode::CREATED, "{tenant}");
        paths.push((tenant, ticket["input_path"].as_str().unwrap().to_owned()));
    }
    for (owner, path) in &paths {
        for tenant in ["acme", "default", "other"] {
            let body = serde_json::json!({ "input_path": path, "job_id": "j" }).to_string();
            let answer = by(tenant, "/jobs").body(body).send().await.unwrap();
            let may = tenant == *owner;
            let wants = if may { StatusCode::ACCEPTED } else { StatusCode::UNPROCESSABLE_ENTITY };
            assert_eq!(answer.status(), wants, "{tenant} {path}");
            if !may {
                assert!(answer.text().await.unwrap().contains("nothing was uploaded there"));
            }
        }
    }
}
