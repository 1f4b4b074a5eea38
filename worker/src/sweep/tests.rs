use std::time::Instant;

use millrace_object_server::{Fault, What};
use millrace_wire::JobSpec;
use millrace_wire::job::{FailureCode, Outputs, Phase};

use super::*;
use crate::objects::conformance::{Stage, aws};
use crate::store::copies::{Copies as _, CopyEnd, Reach};
use crate::store::{
    Accepted, AttemptEnd, Claim, Identity, Manifest, NewJob, NewUpload, Published, Room, Sqlite, Store as _,
};

const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
/// Nothing is past its time.
const KEEP: Rules = Rules { outputs_kept: LONG, uploads_kept: LONG, lost_kept: LONG, delete_after: LONG };

/// A store of jobs, one of objects, and who sweeps.
struct House {
    stage: Stage,
    store: Arc<Sqlite>,
    by: Identity,
}

impl House {
    async fn new(stage: Stage) -> Self {
        let url = format!("sqlite:{}", stage.folder.path().join("jobs.db").display());
        let store = Arc::new(Sqlite::open(&url, 3).await.unwrap());
        let by = store.register(&"w1".parse().unwrap(), &aws()).await.unwrap();
        Self { stage, store, by }
    }

    /// One of each kind of object store.
    async fn each() -> [Self; 2] {
        [Self::new(Stage::directory()).await, Self::new(Stage::s3().await).await]
    }

    async fn sweep(&self, rules: Rules) -> Result<usize, Error> {
        self.sweep_as("w1 1", rules).await
    }

    async fn sweep_as(&self, name: &str, rules: Rules) -> Result<usize, Error> {
        let sweeper = Sweeper {
            upkeep: Arc::clone(&self.store) as _,
            objects: self.stage.objects.clone(),
            pool: aws(),
            name: name.to_owned(),
            rules,
            every: LONG,
            metrics: Arc::new(Metrics::new().unwrap()),
        };
        sweeper.pass().await
    }

    async fn accept(&self, id: &str, spec: &str) {
        let (spec, _) = JobSpec::parse(spec.as_bytes()).unwrap();
        let (tenant, job_id) = (store::TENANT_DEFAULT.to_owned(), id.parse().unwrap());
        let new = NewJob {
            tenant,
            job_id,
            spec,
            work_seconds: 1.0,
            steal: Default::default(),
            second: "gcp".parse().ok(),
        };
        let accepted = self.store.accept(&new, &self.by, Room { slots: 99, queue_max: 99 }).await.unwrap();
        assert!(matches!(accepted, Accepted::Created(_)));
    }

    async fn claim(&self) -> Claim {
        self.store.claim(&self.by, Duration::from_secs(60)).await.unwrap().unwrap()
    }

    async fn put(&self, key: &str) {
        let file = self.stage.folder.path().join("file");
        std::fs::write(&file, key).unwrap();
        self.stage.objects.put_file(&aws(), key, &file).await.unwrap();
    }

    async fn has(&self, key: &str) -> bool {
        match self.stage.objects.head(&aws(), key).await {
            Ok(_) => true,
            Err(objects::Error::NotFound) => false,
            Err(error) => panic!("{error}"),
        }
    }

    async fn publish(&self, claim: &Claim) -> String {
        let prefix = keys::attempt_prefix(claim.part, &claim.lease);
        let key = format!("{prefix}/master.m3u8");
        self.put(&key).await;
        let outputs = Outputs { duration_s: 1.0, bytes: 1, ..Outputs::default() };
        let manifest = Manifest {
            bucket: claim.bucket.clone(),
            prefix,
            pieces: None,
            files: 1,
            outputs,
            warnings: Vec::new(),
        };
        assert!(self.store.enter(&claim.lease, Phase::Publishing, None).await.unwrap());
        assert_eq!(self.store.publish(&claim.lease, &manifest).await.unwrap(), Published::Yes);
        key
    }

    async fn fail(&self, claim: &Claim) {
        let (code, detail) = (FailureCode::EncodeFailed, String::new());
        let end = AttemptEnd::Failed { code, detail, retry_after: Duration::ZERO };
        self.store.end(&claim.lease, &end).await.unwrap();
    }

    async fn upload(&self, key: &str, parts: Option<String>, until_ms: i64) {
        let upload = NewUpload { bucket: aws(), key: key.to_owned(), parts, until_ms };
        self.store.enter_upload(&upload, Duration::ZERO).await.unwrap();
    }

    async fn wait(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition().await {
            assert!(Instant::now() < deadline, "never saw: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn what_a_lost_attempt_wrote_goes_twice_and_what_a_live_lease_writes_stays() {
    for house in House::each().await {
        house.accept("j", r#"{"input_url":"http://h/v"}"#).await;
        let lost = house.claim().await;
        let of_lost = format!("{}/seg_0_00001.m4s", keys::attempt_prefix(lost.part, &lost.lease));
        house.put(&of_lost).await;
        house.fail(&lost).await;
        let live = house.claim().await;
        let of_live = format!("{}/seg_0_00001.m4s", keys::attempt_prefix(live.part, &live.lease));
        house.put(&of_live).await;
        let now = Rules { lost_kept: Duration::ZERO, ..KEEP };
        assert_eq!(house.sweep(KEEP).await.unwrap(), 0, "not yet");
        assert_eq!(house.sweep(now).await.unwrap(), 1);
        assert!(!house.has(&of_lost).await && house.has(&of_live).await);
        // A zombie that wrote on is swept behind, once.
        house.put(&of_lost).await;
        assert_eq!(house.sweep(now).await.unwrap(), 1);
        assert!(!house.has(&of_lost).await);
        assert_eq!(house.sweep(now).await.unwrap(), 0);
        let published = house.publish(&live).await;
        assert_eq!(house.sweep(now).await.unwrap(), 0);
        assert!(house.has(&published).await && house.has(&of_live).await);
    }
}

#[tokio::test]
async fn outputs_are_gone_for_readers_first_and_their_bytes_go_later() {
    for house in House::each().await {
        let mut keys = Vec::new();
        for (id, own) in [("default", ""), ("own", r#","retention_days":1"#)] {
            house.accept(id, &format!(r#"{{"input_url":"http://h/v"{own}}}"#)).await;
            let claim = house.claim().await;
            keys.push((house.publish(&claim).await, claim.lease.job_uid));
        }
        let uids: Vec<String> = keys.iter().map(|(_, uid)| uid.clone()).collect();
        let gone = async || house.store.outputs_gone(&uids).await.unwrap().into_keys().collect::<Vec<_>>();
        assert_eq!(house.sweep(KEEP).await.unwrap(), 0);
        assert!(gone().await.is_empty());
        let expired = Rules { outputs_kept: Duration::ZERO, ..KEEP };
        assert_eq!(house.sweep(expired).await.unwrap(), 0);
        assert_eq!(gone().await, [uids[0].clone()], "the other says itself how long");
        assert!(house.has(&keys[0].0).await, "readers still have URLs");
        let removing = Rules { delete_after: Duration::ZERO, ..KEEP };
        assert_eq!(house.sweep(removing).await.unwrap(), 1);
        assert!(!house.has(&keys[0].0).await && house.has(&keys[1].0).await);
        assert_eq!(house.sweep(removing).await.unwrap(), 0, "once");
    }
}

#[tokio::test]
async fn an_upload_goes_when_no_job_reads_it_and_comes_back_when_one_does() {
    for house in House::each().await {
        for key in ["uploads/1/read", "uploads/2/unread", "uploads/3/named-late"] {
            house.put(key).await;
        }
        house.upload("uploads/1/read", None, 0).await;
        house.upload("uploads/2/unread", None, 0).await;
        house.accept("j", r#"{"input_path":"aws/uploads/1/read"}"#).await;
        let rules = Rules { uploads_kept: Duration::ZERO, delete_after: Duration::ZERO, ..KEEP };
        // Gone in one pass, its bytes in the same: nobody is given time here.
        house.sweep(rules).await.unwrap();
        assert!(house.has("uploads/1/read").await, "a job waits that reads it");
        assert!(!house.has("uploads/2/unread").await);
        assert_eq!(house.sweep(rules).await.unwrap(), 0);

        let slow = Rules { delete_after: Duration::from_millis(400), ..rules };
        house.upload("uploads/3/named-late", None, 0).await;
        assert_eq!(house.sweep(slow).await.unwrap(), 0);
        let gone = async || house.store.upload_gone(&aws(), "uploads/3/named-late").await.unwrap();
        assert!(gone().await);
        // Whoever looked before and commits now still gets it.
        house.accept("late", r#"{"input_path":"aws/uploads/3/named-late"}"#).await;
        let sweeping = async || {
            house.sweep(slow).await.unwrap();
            !gone().await
        };
        house.wait("that it is not gone after all", sweeping).await;
        assert!(house.has("uploads/3/named-late").await);
    }
}

#[tokio::test]
async fn an_upload_in_parts_is_given_up_unless_it_was_completed() {
    let house = House::new(Stage::s3().await).await;
    let objects = &house.stage.objects;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (key, completes) in [("uploads/1/given-up", false), ("uploads/2/complete", true)] {
        let id = objects.begin_parts(&aws(), key).await.unwrap().unwrap();
        let url = objects.sign_part(&aws(), key, &id, 1, Duration::from_secs(60)).await.unwrap().unwrap();
        let put = client.put(url).body("x").send().await.unwrap().error_for_status().unwrap();
        let etag = put.headers()["etag"].to_str().unwrap().to_owned();
        house.upload(key, Some(id.clone()), 0).await;
        if completes {
            assert_eq!(objects.complete_parts(&aws(), key, &id, &[etag]).await.unwrap().bytes, 1);
        }
        // Within its session nobody touches it.
        let later = format!("{key}-later");
        let open = objects.begin_parts(&aws(), &later).await.unwrap().unwrap();
        house.upload(&later, Some(open.clone()), i64::MAX / 8).await;
        house.sweep(Rules { uploads_kept: Duration::ZERO, ..KEEP }).await.unwrap();
        assert!(objects.parts(&aws(), &later, &open).await.unwrap().is_empty());
        assert_eq!(house.has(key).await, completes);
        let again = objects.complete_parts(&aws(), key, &id, &["x".to_owned()]).await;
        assert!(again.is_err(), "{again:?}");
    }
    // The complete one is an upload like any other now.
    house.sweep(Rules { uploads_kept: Duration::ZERO, delete_after: Duration::ZERO, ..KEEP }).await.unwrap();
    assert!(!house.has("uploads/2/complete").await);
}

#[tokio::test]
async fn one_sweeper_at_a_time_and_the_next_when_it_is_gone() {
    let house = House::new(Stage::directory()).await;
    house.put("uploads/1/a").await;
    house.upload("uploads/1/a", None, 0).await;
    let rules = Rules { uploads_kept: Duration::ZERO, delete_after: Duration::ZERO, ..KEEP };
    assert!(house.store.take(&aws(), "w2 7", Duration::from_millis(500)).await.unwrap());
    assert_eq!(house.sweep(rules).await.unwrap(), 0, "another one is at it");
    let sweeping = async || house.sweep(rules).await.unwrap() > 0;
    house.wait("its hold end", sweeping).await;
    assert!(!house.has("uploads/1/a").await);
    assert!(!house.store.take(&aws(), "w2 7", LONG).await.unwrap());
    assert!(house.store.take(&"gcp".parse().unwrap(), "w2 7", LONG).await.unwrap(), "a bucket each");
}

#[tokio::test]
async fn a_pass_that_breaks_off_is_taken_up_by_the_next() {
    let house = House::new(Stage::s3().await).await;
    house.accept("j", r#"{"input_url":"http://h/v"}"#).await;
    let key = house.publish(&house.claim().await).await;
    let rules = Rules { outputs_kept: Duration::ZERO, delete_after: Duration::ZERO, ..KEEP };
    let faults = &house.stage.server.as_ref().unwrap().faults;
    for (status, code) in [(503, "SlowDown"), (403, "AccessDenied")] {
        faults.set(vec![Fault::new(
            &http::Method::POST,
            "delete",
            100,
            What::Refuse(status, code.to_owned()),
        )]);
        let broken = house.sweep(rules).await;
        assert!(matches!(broken, Err(Error::Objects(_))), "{broken:?}");
        assert!(house.has(&key).await);
    }
    faults.set(Vec::new());
    assert_eq!(house.sweep(rules).await.unwrap(), 1);
    assert!(!house.has(&key).await);
}

#[tokio::test]
async fn copies_in_another_pools_bucket_go_with_what_they_are_of_by_that_pools_sweeper() {
    for house in House::each().await {
        let gcp: PoolId = "gcp".parse().unwrap();
        house.accept("j", r#"{"input_url":"http://h/v","durability":"dual","replicate":["gcp"]}"#).await;
        let reach = Reach { pools: None, store_replicated: true };
        let file = house.stage.folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let put = async |key: &str| house.stage.objects.put_file(&gcp, key, &file).await.unwrap();
        let has = async |key: &str| house.stage.objects.head(&gcp, key).await.is_ok();
        let copied = async |key: Option<String>| {
            let claim = house.store.claim_copy(&house.by, &reach, LONG).await.unwrap().unwrap();
            let key = key.unwrap_or_else(|| keys::second_input(&claim.lease.job_uid, claim.lease.epoch));
            put(&key).await;
            let end = CopyEnd::Done { bytes: 1, sha256: None };
            assert!(house.store.end_copy(&claim.lease, &reach, &end).await.unwrap());
            key
        };
        let input = copied(None).await;
        let published = house.publish(&house.claim().await).await;
        let outputs = copied(Some(published.clone())).await;
        // What lies beside them is another's.
        let others = input.replace("input-a1", "input-a2");
        put(&others).await;

        let sweep = async |rules| {
            let sweeper = Sweeper {
                upkeep: Arc::clone(&house.store) as _,
                objects: house.stage.objects.clone(),
                pool: gcp.clone(),
                name: "w2 1".to_owned(),
                rules,
                every: LONG,
                metrics: Arc::new(Metrics::new().unwrap()),
            };
            sweeper.pass().await.unwrap()
        };
        assert_eq!(sweep(KEEP).await, 0);
        assert!(has(&input).await && has(&outputs).await);
        let ended = Rules { lost_kept: Duration::ZERO, ..KEEP };
        assert!(sweep(ended).await > 0);
        assert!(
            !has(&input).await && has(&others).await && has(&outputs).await,
            "a job that is over reads nothing"
        );
        house.store.delete_outputs(store::TENANT_DEFAULT, &"j".parse().unwrap()).await.unwrap();
        let now = Rules { delete_after: Duration::ZERO, ..ended };
        assert!(sweep(now).await > 0);
        assert!(!has(&outputs).await && house.has(&published).await, "each bucket by its own");
        assert!(house.sweep(now).await.unwrap() > 0 && !house.has(&published).await);
    }
}
