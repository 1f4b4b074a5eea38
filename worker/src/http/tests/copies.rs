//! Copies in other pools: asked for, read, and made again from.

use millrace_object_server::{Fault, What};
use millrace_wire::copies::CopyState;
use millrace_wire::job::State;

use super::*;
use crate::objects::conformance::Stage;
use crate::store::copies::{CopyEnd, CopyRow, Kind, Reach};

fn gcp() -> PoolId {
    "gcp".parse().unwrap()
}

/// On an S3 server with a bucket for `aws`, named first, and one for every other pool.
async fn served() -> (Served, Stage) {
    let stage = Stage::s3().await;
    let objects = stage.objects.clone();
    let served = Served::with(|app| {
        app.objects = objects;
        app.presign = Presign::Off;
        app.second_pool = Some(gcp());
    });
    (served.await, stage)
}

fn everywhere() -> Reach {
    Reach { pools: None, store_replicated: true }
}

impl Served {
    async fn submit(&self, body: &str) -> reqwest::Response {
        self.ask("POST", "/jobs").body(body.to_owned()).send().await.unwrap()
    }

    /// Says of the copy that is due that it is whole, and puts the files of a manifest where it would be.
    async fn copy(&self, stage: &Stage) {
        let store = &self.app.upkeep;
        let claim = store
            .claim_copy(&self.app.identity, &everywhere(), Duration::from_secs(60))
            .await
            .unwrap()
            .unwrap();
        if claim.lease.kind == Kind::Outputs {
            let manifest = claim.manifest.as_ref().unwrap();
            for (key, _) in stage.objects.list_below(&manifest.bucket, &manifest.prefix).await.unwrap() {
                let (from, to) = ((&manifest.bucket, key.as_str()), (&claim.lease.to, key.as_str()));
                stage.objects.replicate(from, to, 1 << 20, false).await.unwrap();
            }
        } else {
            let file = self.folder.path().join("input");
            std::fs::write(&file, "input").unwrap();
            let key = keys::second_input(&claim.lease.job_uid, claim.lease.epoch);
            stage.objects.put_file(&claim.lease.to, &key, &file).await.unwrap();
        }
        let end = CopyEnd::Done { bytes: 5, sha256: None };
        assert!(store.end_copy(&claim.lease, &everywhere(), &end).await.unwrap());
    }
}

/// The first bucket refuses whatever it is asked.
fn lost() -> Vec<Fault> {
    vec![Fault {
        method: None,
        on: Some("/first".to_owned()),
        skip: 0,
        times: 100_000,
        what: What::Refuse(403, "AccessDenied".to_owned()),
    }]
}

#[tokio::test]
async fn what_this_deployment_cannot_keep_is_refused_by_its_field() {
    let served = Served::start().await;
    let (status, code_) =
        code(served.submit(r#"{"input_url":"http://h/v","durability":"dual"}"#).await).await;
    assert_eq!((status, code_), (422, Code::BadField));
    let single = served.submit(r#"{"input_url":"http://h/v","durability":"single"}"#).await;
    assert_eq!(single.status(), StatusCode::ACCEPTED);
    for body in ["{}", r#"{"pools":[]}"#, r#"{"pools":["a b"]}"#, r#"{"pools":"gcp"}"#] {
        let answer = served.ask("POST", "/jobs/j/replicate").body(body).send().await.unwrap();
        assert_eq!(code(answer).await, (422, Code::BadField), "{body}");
    }
    let answer = served.ask("POST", "/jobs/j/replicate").body(r#"{"pool":"gcp","pools":["gcp"]}"#);
    assert_eq!(code(answer.send().await.unwrap()).await, (422, Code::UnknownField));
    let answer = served.ask("POST", "/jobs/none/replicate").body(r#"{"pools":["gcp"]}"#);
    assert_eq!(code(answer.send().await.unwrap()).await, (404, Code::JobNotFound));
}

#[tokio::test]
async fn dual_is_reached_when_the_copy_is_whole_and_shown_as_it_is() {
    let (served, stage) = served().await;
    let answer = served.submit(r#"{"job_id":"j","input_url":"http://h/v","durability":"dual"}"#).await;
    let job: Job = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let durability = job.durability.unwrap();
    assert_eq!((durability.pool, durability.reached_at), (gcp(), None));
    tokio::time::timeout(Duration::from_secs(5), served.app.copy_nudge.notified()).await.unwrap();
    served.copy(&stage).await;
    let job = served.job("j").await;
    assert!(job.durability.unwrap().reached_at.is_some() && job.copies.is_empty());
    let single = served.submit(r#"{"job_id":"s","input_url":"http://h/v"}"#).await.text().await.unwrap();
    assert!(!single.contains("durability\":{"), "{single}");
}

#[tokio::test]
async fn outputs_are_read_from_another_copy_when_their_bucket_does_not_answer() {
    let (served, stage) = served().await;
    let outputs = served.published("j", outputs()).await;
    let early = served.ask("POST", "/jobs/none/replicate").body(r#"{"pools":["gcp"]}"#).send().await.unwrap();
    assert_eq!(early.status(), StatusCode::NOT_FOUND);
    let asked =
        served.ask("POST", "/jobs/j/replicate").body(r#"{"pools":["gcp","aws"]}"#).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::ACCEPTED);
    let job: Job = serde_json::from_str(&asked.text().await.unwrap()).unwrap();
    assert_eq!((job.copies.len(), &job.copies[0].pool, job.copies[0].state), (1, &gcp(), CopyState::Waiting));
    let faults = &stage.server.as_ref().unwrap().faults;
    let hls = outputs.hls.unwrap();
    let segment = hls.replace("master.m3u8", "seg_0_00001.m4s");
    faults.set(lost());
    assert_eq!(served.get(&segment).await.status(), StatusCode::SERVICE_UNAVAILABLE, "there is no other");
    faults.set(Vec::new());
    served.copy(&stage).await;
    assert_eq!(served.job("j").await.copies[0].state, CopyState::Done);
    faults.set(lost());
    for path in [&hls, &segment] {
        let answer = served.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert!(path.ends_with(&answer.text().await.unwrap()));
    }
    // It is remembered: what comes next does not ask the lost one first.
    drop(faults.take_seen());
    assert_eq!(served.get(&segment).await.status(), StatusCode::OK);
    let seen = faults.take_seen();
    assert!(seen.iter().all(|seen| !seen.target.starts_with("/first")), "{seen:?}");
}

#[tokio::test]
async fn a_worker_reads_its_own_pools_copy() {
    let stage = Stage::s3().await;
    let objects = stage.objects.clone();
    let near = Served::with(|app| {
        app.objects = objects;
        app.presign = Presign::Off;
    });
    let near = near.await;
    let outputs = near.published("j", outputs()).await;
    near.ask("POST", "/jobs/j/replicate").body(r#"{"pools":["gcp"]}"#).send().await.unwrap();
    near.copy(&stage).await;
    // The same worker, were it one of gcp's.
    let app = Arc::clone(&near.app);
    let row = app.store.job(TENANT_DEFAULT, &"j".parse().unwrap()).await.unwrap().unwrap();
    let far = Served::with(|other| {
        other.objects = app.objects.clone();
        other.store = Arc::clone(&app.store);
        other.upkeep = Arc::clone(&app.upkeep);
        other.identity.pool = gcp();
        other.presign = Presign::Off;
    });
    let far = far.await;
    let faults = &stage.server.as_ref().unwrap().faults;
    drop(faults.take_seen());
    assert_eq!(far.get(&outputs.hls.unwrap()).await.status(), StatusCode::OK);
    let seen = faults.take_seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.target.contains("/second/gcp/")), "{seen:?}");
    assert_eq!(row.manifest.unwrap().bucket.as_str(), "aws");
}

#[tokio::test]
async fn a_dual_job_whose_outputs_are_lost_is_made_again_on_demand_and_no_other() {
    let (served, stage) = served().await;
    let retry = async |id: &str| served.ask("POST", &format!("/jobs/{id}/retry")).send().await.unwrap();
    served.submit(r#"{"job_id":"dual","input_url":"http://h/v","durability":"dual"}"#).await;
    served.copy(&stage).await;
    let claim = served.claim().await;
    served.publish(&claim, outputs(), &["master.m3u8"]).await;
    served.published("single", outputs()).await;
    assert_eq!(code(retry("dual").await).await, (409, Code::JobNotRetryable), "its outputs are there");
    let faults = &stage.server.as_ref().unwrap().faults;
    faults.set(lost());
    assert_eq!(code(retry("single").await).await, (409, Code::JobNotRetryable));
    let again = retry("dual").await;
    assert_eq!(again.status(), StatusCode::ACCEPTED);
    let job: Job = serde_json::from_str(&again.text().await.unwrap()).unwrap();
    assert_eq!((job.state, job.pool, job.outputs), (State::Queued, gcp(), None));
    assert!(job.durability.unwrap().reached_at.is_some(), "the second copy is still there");
    let copies: Vec<CopyRow> =
        served.app.upkeep.copies(&[claim.lease.job_uid]).await.unwrap().into_values().flatten().collect();
    assert_eq!(copies.len(), 1);
}
