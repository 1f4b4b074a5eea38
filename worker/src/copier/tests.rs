use millrace_object_server::{Fault, What};
use millrace_wire::job::{Outputs, Phase, State};
use millrace_wire::{JobId, JobSpec};

use super::*;
use crate::objects::conformance::{Stage, aws, noise};
use crate::source::fetch::FetchSettings;
use crate::store::copies::Copies as _;
use crate::store::{Accepted, NewJob, Published, Room, Sqlite, Store as _, TENANT_DEFAULT};

const LEASE: Duration = Duration::from_secs(30);

fn gcp() -> PoolId {
    "gcp".parse().unwrap()
}

/// A store of jobs, one of objects, and who copies.
struct House {
    stage: Stage,
    store: Arc<Sqlite>,
    copier: Copier,
    bytes: Vec<u8>,
}

impl House {
    async fn new() -> Self {
        let stage = Stage::s3().await;
        let url = format!("sqlite:{}", stage.folder.path().join("jobs.db").display());
        let store = Arc::new(Sqlite::open(&url, 3).await.unwrap());
        let identity = store.register(&"w1".parse().unwrap(), &aws()).await.unwrap();
        let fetcher = Fetcher::new(FetchSettings {
            allow_private: vec!["127.0.0.0/8".parse().unwrap()],
            ..FetchSettings::default()
        });
        let copier = Copier {
            upkeep: Arc::clone(&store) as _,
            objects: stage.objects.clone(),
            fetcher: fetcher.unwrap(),
            identity,
            reach: Reach { pools: stage.objects.pools(), store_replicated: true },
            lease: LEASE,
            bytes_max: 1 << 30,
            scratch: stage.folder.path().join("scratch"),
            nudge: Arc::default(),
            metrics: Arc::new(Metrics::new().unwrap()),
        };
        let (bytes, file) = (noise(9_000_000, 1), stage.folder.path().join("source"));
        std::fs::write(&file, &bytes).unwrap();
        stage.objects.put_file(&aws(), "uploads/k/v.mp4", &file).await.unwrap();
        Self { stage, store, copier, bytes }
    }

    async fn accept(&self, id: &str, spec: &str) -> String {
        let (spec, _) = JobSpec::parse(spec.as_bytes()).unwrap();
        let (tenant, job_id) = (TENANT_DEFAULT.to_owned(), id.parse().unwrap());
        let (steal, second) = (Default::default(), Some(gcp()));
        let new = NewJob { tenant, job_id, spec, work_seconds: 1.0, steal, second };
        let room = Room { slots: 99, queue_max: 99 };
        match self.store.accept(&new, &self.copier.identity, room).await.unwrap() {
            Accepted::Created(row) => row.uid,
            other => panic!("{other:?}"),
        }
    }

    /// Makes what there is to copy; answers how many tries that took.
    async fn copy_all(&self) -> u32 {
        let mut tries = 0;
        while let Some(claim) =
            self.store.claim_copy(&self.copier.identity, &self.copier.reach, LEASE).await.unwrap()
        {
            self.copier.one(&claim, Instant::now(), &CancellationToken::new()).await;
            tries += 1;
        }
        tries
    }

    async fn copies(&self, uid: &str) -> Vec<crate::store::copies::CopyRow> {
        self.store.copies(&[uid.to_owned()]).await.unwrap().remove(uid).unwrap_or_default()
    }

    async fn in_gcp(&self, key: &str) -> Option<Vec<u8>> {
        let into = self.stage.folder.path().join("read");
        self.stage.objects.get_file(&gcp(), key, &into, u64::MAX, &|_, _| {}).await.ok()?;
        Some(std::fs::read(into).unwrap())
    }

    async fn publish(&self, files: &[&str]) -> Manifest {
        let claim = self.store.claim(&self.copier.identity, LEASE).await.unwrap().unwrap();
        let prefix = keys::attempt_prefix(claim.part, &claim.lease);
        for name in files {
            let file = self.stage.folder.path().join("file");
            std::fs::write(&file, name).unwrap();
            let key = format!("{prefix}/{name}");
            self.stage.objects.put_file(&claim.bucket, &key, &file).await.unwrap();
        }
        let (bucket, outputs) = (claim.bucket.clone(), Outputs::default());
        let manifest =
            Manifest { bucket, prefix, pieces: None, files: files.len(), outputs, warnings: Vec::new() };
        assert!(self.store.enter(&claim.lease, Phase::Publishing, None).await.unwrap());
        assert_eq!(self.store.publish(&claim.lease, &manifest).await.unwrap(), Published::Yes);
        manifest
    }
}

#[tokio::test]
async fn an_upload_and_what_a_url_leads_to_are_copied_whole() {
    let house = House::new().await;
    let bytes = house.bytes.clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v.mp4", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/v.mp4", axum::routing::get(async move || bytes));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let by_path = house.accept("path", r#"{"input_path":"aws/uploads/k/v.mp4","durability":"dual"}"#).await;
    let by_url = house.accept("url", &format!(r#"{{"input_url":"{url}","durability":"dual"}}"#)).await;
    assert_eq!(house.copy_all().await, 2);
    for uid in [&by_path, &by_url] {
        let copies = house.copies(uid).await;
        let (claim, _) = copies[0].done.unwrap();
        assert_eq!(copies[0].bytes, Some(house.bytes.len() as u64));
        assert!(house.in_gcp(&keys::second_input(uid, claim)).await.unwrap() == house.bytes);
    }
    let hash = house.copies(&by_url).await[0].sha256.clone();
    assert_eq!(hash, Some(hex::encode(Sha256::digest(&house.bytes))));
    assert!(!house.copier.scratch.join("copy").exists());
    assert_eq!(std::fs::read_dir(&house.copier.scratch).unwrap().count(), 0, "no scratch is left");
    server.abort();
}

#[tokio::test]
async fn a_copy_that_fails_says_so_and_is_made_again() {
    let house = House::new().await;
    let uid = house.accept("j", r#"{"input_path":"aws/uploads/k/v.mp4","durability":"dual"}"#).await;
    let faults = &house.stage.server.as_ref().unwrap().faults;
    faults.set(vec![Fault::new(
        &http::Method::PUT,
        "input-a1",
        100,
        What::Refuse(403, "AccessDenied".into()),
    )]);
    assert_eq!(house.copy_all().await, 1, "another try waits");
    let copies = house.copies(&uid).await;
    assert!(copies[0].done.is_none() && copies[0].detail.as_ref().unwrap().contains("credentials"));
    assert!(house.in_gcp(&keys::second_input(&uid, 1)).await.is_none());
    faults.set(Vec::new());
    let deadline = Instant::now() + Duration::from_secs(20);
    while house.copy_all().await == 0 {
        assert!(Instant::now() < deadline, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let copies = house.copies(&uid).await;
    assert_eq!((copies[0].done.unwrap().0, &copies[0].detail), (2, &None));
}

#[tokio::test]
async fn outputs_are_copied_where_another_try_left_off_and_only_when_all_are_there() {
    let house = House::new().await;
    let id: JobId = "j".parse().unwrap();
    let uid = house.accept("j", r#"{"input_path":"aws/uploads/k/v.mp4","replicate":["gcp"]}"#).await;
    let names = ["master.m3u8", "init_0.mp4", "seg_0_00001.m4s", "seg_0_00002.m4s"];
    let manifest = house.publish(&names).await;
    let faults = &house.stage.server.as_ref().unwrap().faults;
    // One file is missing where they were published: nothing says that the copy is whole.
    let gone = manifest.key("seg_0_00002.m4s");
    house.stage.objects.delete(&aws(), &gone).await.unwrap();
    house.copy_all().await;
    assert!(house.copies(&uid).await[0].done.is_none());
    let file = house.stage.folder.path().join("file");
    std::fs::write(&file, "seg_0_00002.m4s").unwrap();
    house.stage.objects.put_file(&aws(), &gone, &file).await.unwrap();
    house
        .stage
        .objects
        .replicate((&aws(), &manifest.key(names[0])), (&gcp(), &manifest.key(names[0])), 99, false)
        .await
        .unwrap();
    drop(faults.take_seen());
    let deadline = Instant::now() + Duration::from_secs(20);
    while house.copies(&uid).await[0].done.is_none() {
        assert!(Instant::now() < deadline, "it is not tried again");
        house.copy_all().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for name in names {
        assert_eq!(house.in_gcp(&manifest.key(name)).await.unwrap(), name.as_bytes());
    }
    let put = faults.take_seen().into_iter().filter(|seen| seen.method == "PUT").count();
    assert_eq!(put, 3, "what was there was not copied again");
    let job = house.store.job(TENANT_DEFAULT, &id).await.unwrap().unwrap();
    assert_eq!(job.state, State::Succeeded);
}

#[tokio::test]
async fn a_copier_that_loses_its_claim_stops() {
    let house = House::new().await;
    house.accept("j", r#"{"input_path":"aws/uploads/k/v.mp4","durability":"dual"}"#).await;
    let faults = &house.stage.server.as_ref().unwrap().faults;
    faults.set(vec![Fault::new(&http::Method::PUT, "input-a1", 1, What::Hold)]);
    let short = Duration::from_millis(400);
    let copier = Copier { lease: short, ..house.copier };
    let claim = house.store.claim_copy(&copier.identity, &copier.reach, short).await.unwrap().unwrap();
    let until = CancellationToken::new();
    let copying = copier.one(&claim, Instant::now(), &until);
    let cancelled = async {
        tokio::time::sleep(short * 3).await;
        let still = house.store.renew_copy(&claim.lease, short).await.unwrap();
        assert!(still, "it was kept while it was made");
        house.store.cancel(TENANT_DEFAULT, &claim.job_id).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(copying, cancelled) }).await.unwrap();
    assert_eq!(copier.metrics.copies.with_label_values(&["input", "lost"]).get(), 1);
}
