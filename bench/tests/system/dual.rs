//! A job's second input: made by whoever lives, and what saves a job whose bucket is lost while everybody lives.

use std::time::Duration;

use millrace_bench::chaos::objects::ObjectStore;
use millrace_bench::clip::Picture;
use millrace_bench::partition::jobs;
use millrace_bench::postgres::Server;
use millrace_bench::{Client, System};
use millrace_object_server::{Fault, What};
use millrace_wire::job::{Job, State};
use serde_json::json;

use crate::faults::wait_lacks;
use crate::stage::{HEAVY, PATIENCE, SMALL, Stage, clip, wait_until};

/// Two pools with a bucket each, on a store that says of itself that it is in several clouds.
struct Dual {
    stage: Stage,
    objects: ObjectStore,
    postgres: Server,
}

impl Dual {
    async fn start() -> Self {
        let objects = ObjectStore::start(&["aws", "gcp"]).await.unwrap();
        let places = objects.places();
        Self::on(objects, &places).await
    }

    async fn on(objects: ObjectStore, places: &str) -> Self {
        let (postgres, store) = tokio::task::block_in_place(|| {
            let postgres = Server::start().unwrap();
            let store = postgres.create("jobs").unwrap();
            (postgres, store)
        });
        let builder = System::builder().pool("aws", 1).pool("gcp", 1).worker_arg("--store", &store);
        let builder = builder.worker_arg("--objects", places).worker_arg("--presign", "off");
        let builder = builder.worker_arg("--store-replicated", "true").worker_arg("--lease", "2s");
        let builder = builder.worker_arg_of("aws-1", "--second-pool", "gcp");
        let stage = Stage::start(builder.worker_arg_of("gcp-1", "--second-pool", "aws")).await;
        Self { stage, objects, postgres }
    }

    fn sql(&self, question: &str) -> String {
        tokio::task::block_in_place(|| self.postgres.sql("jobs", question).unwrap())
    }

    /// Uploads a clip to `aws` and lets its worker accept a job with it.
    async fn submit(&self, id: &str) -> Client {
        self.submit_as(id, &HEAVY, "dual").await
    }

    async fn submit_as(&self, id: &str, picture: &Picture, durability: &str) -> Client {
        let worker = self.stage.system.worker_client("aws-1").unwrap();
        let input = jobs::upload(&worker, &clip(picture).await).await.unwrap();
        worker.submit(&jobs::spec(id, &input, durability, *picture == HEAVY)).await.unwrap();
        worker
    }
}

fn reached(job: &Job) -> bool {
    job.durability.as_ref().is_some_and(|durability| durability.reached_at.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_made_by_another_when_its_worker_dies() {
    let mut dual = Dual::start().await;
    let hold = Fault { method: None, on: Some("/replicas/".to_owned()), skip: 0, times: 1, what: What::Hold };
    dual.objects.set(&[hold]).await.unwrap();
    dual.submit("j").await;
    let owner = || dual.sql("SELECT owner FROM replica WHERE owner IS NOT NULL");
    wait_until("a copier", || !owner().is_empty()).await;
    let copier = owner();
    dual.stage.system.kill9_worker(&copier).await.unwrap();
    let job = dual.stage.client.wait_for("j", "dual", PATIENCE, reached).await.unwrap();
    assert_eq!(job.durability.unwrap().pool.as_str(), "gcp");
    let claims = dual.sql("SELECT epoch FROM replica");
    assert!(claims.parse::<u32>().unwrap() > 1, "{claims}");
    dual.objects.set(&[]).await.unwrap();
    dual.stage.system.restart_worker(&copier).await.unwrap();
    assert_eq!(dual.stage.succeeded("j").await.state, State::Succeeded);
    dual.stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_bucket_is_lost_while_it_is_encoded_ends_in_another_and_copies_go_where_they_are_asked() {
    let dual = Dual::start().await;
    let worker = dual.submit("j").await;
    worker.wait_for("j", "dual", PATIENCE, reached).await.unwrap();
    let refuse = What::Refuse(503, "SlowDown".to_owned());
    let lost = Fault { method: None, on: Some("/aws".to_owned()), skip: 0, times: 1_000_000, what: refuse };
    dual.objects.set(&[lost]).await.unwrap();
    let job = dual.stage.client.wait_final("j", Duration::from_secs(120)).await.unwrap();
    assert_eq!((job.state, job.pool.as_str()), (State::Succeeded, "gcp"), "{job:?}");
    jobs::read_all(&dual.stage.client, &job).await.unwrap();
    assert_eq!(dual.sql("SELECT count(*) FROM event WHERE kind = 'succeeded'"), "1");
    assert_eq!(dual.sql("SELECT body->>'from' FROM event WHERE kind = 'moved'"), "aws");

    // It comes back, and is where the client wants a copy now.
    dual.objects.set(&[]).await.unwrap();
    let asked = dual.stage.client.post("/jobs/j/replicate", &json!({ "pools": ["aws"] })).await.unwrap();
    asked.success().unwrap();
    let copied = |job: &Job| job.copies.iter().any(|copy| copy.done_at.is_some());
    dual.stage.client.wait_for("j", "copied", PATIENCE, copied).await.unwrap();
    let metrics = ["aws-1", "gcp-1"].map(|name| dual.stage.system.worker_client(name).unwrap());
    let mut text = String::new();
    for client in metrics {
        text += &client.get("/metrics").await.unwrap().text();
    }
    for family in [
        r#"millrace_worker_moved_total{from="aws","#,
        r#"millrace_worker_copied_bytes_total{from="gcp","#,
        r#"millrace_worker_copies_total{outcome="done","#,
    ] {
        let counts = |line: &str| line.starts_with(family) && !line.ends_with(" 0");
        assert!(text.lines().any(counts), "{family} counts nothing in {text}");
    }
    dual.stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_with_a_bucket_that_is_lost_is_done_in_another_while_the_workers_of_its_pool_live() {
    let (gcp, aws) =
        (ObjectStore::start(&["gcp"]).await.unwrap(), ObjectStore::start(&["aws"]).await.unwrap());
    let places = [aws.places(), gcp.places()].join(",");
    let mut dual = Dual::on(aws, &places).await;
    // It takes the pool's only slot, and will find out.
    let worker = dual.stage.system.worker_client("aws-1").unwrap();
    worker.submit(&dual.stage.web.held_spec("held")).await.unwrap();
    worker.wait_for("held", "running", PATIENCE, |job| job.state == State::Running).await.unwrap();
    for (id, durability) in [("a", "dual"), ("single", "single"), ("b", "dual")] {
        dual.submit_as(id, &SMALL, durability).await;
    }
    for id in ["a", "b"] {
        worker.wait_for(id, "dual", PATIENCE, reached).await.unwrap();
    }
    dual.objects.kill9().await.unwrap();
    dual.stage.web.release();
    wait_lacks(&dual.stage, "aws-1", Some("objects")).await;
    for id in ["a", "b"] {
        let job = dual.stage.succeeded(id).await;
        assert_eq!((job.pool.as_str(), job.attempt), ("gcp", 1), "{job:?}");
        jobs::read_all(&dual.stage.client, &job).await.unwrap();
    }
    let moved = "SELECT string_agg(job_id, ' ' ORDER BY job_id) FROM event JOIN job ON job.uid = job_uid \
                 WHERE kind = 'moved'";
    assert_eq!(dual.sql(moved), "a b", "each of them once");
    // Elsewhere nobody could read its input: it has waited, and lost nothing.
    let single = dual.stage.client.job("single").await.unwrap();
    assert_eq!((single.state, single.attempt, single.pool.as_str()), (State::Queued, 0, "aws"));
    dual.objects.restart().await.unwrap();
    wait_lacks(&dual.stage, "aws-1", None).await;
    let single = dual.stage.succeeded("single").await;
    assert_eq!((single.pool.as_str(), single.attempt), ("aws", 1));
    dual.stage.end().await;
}
