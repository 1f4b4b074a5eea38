//! Two tenants with a key each on one Millrace: what is one's is not even there for the other.

use millrace_bench::{Answer, Client, System};
use millrace_wire::job::State;
use millrace_wire::problem::Code;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::stage::{PATIENCE, SMALL, Stage, clip};

const TENANTS: [&str; 2] = ["acme", "zeta"];

/// A tenant's key; in the highest role that a tenant has.
fn key(tenant: &str) -> String {
    format!("{tenant}-{}", "k".repeat(32))
}

fn code(answer: &Answer) -> Code {
    answer.problem().unwrap().code
}

/// Everything that can be asked about a job by its name.
async fn all_about(client: &Client, id: &str) -> Vec<(String, Answer)> {
    let mut answers = Vec::new();
    for (method, path) in [
        (Method::GET, format!("/jobs/{id}")),
        (Method::GET, format!("/jobs/{id}/events")),
        (Method::GET, format!("/download/{id}")),
        (Method::GET, format!("/media/{id}/master.m3u8")),
        (Method::HEAD, format!("/media/{id}/master.m3u8")),
        (Method::DELETE, format!("/jobs/{id}")),
        (Method::DELETE, format!("/jobs/{id}?outputs")),
    ] {
        let answer = client.send(method.clone(), &path, HeaderMap::new(), "").await.unwrap();
        answers.push((format!("{method} {path}"), answer));
    }
    answers
}

async fn ids(client: &Client) -> Vec<String> {
    let mut ids: Vec<String> =
        client.jobs().await.unwrap().iter().map(|job| job.job_id.to_string()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn what_is_one_tenants_is_not_there_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let line = |name: &str| format!("{name} admin {name} {}\n", hex::encode(Sha256::digest(key(name))));
    std::fs::write(&keys, TENANTS.map(line).concat()).unwrap();
    let stage = Stage::start(System::builder().pool("aws", 2).pool("gcp", 1).auth_keys(&keys)).await;
    let nobody = &stage.client;
    let [acme, zeta] = TENANTS.map(|tenant| nobody.with_key(&key(tenant)));

    // One name, two jobs: neither is the other's again, and neither spec is in the other's way.
    acme.submit(&stage.web.small_spec("same")).await.unwrap();
    zeta.submit(&stage.web.held_spec("same")).await.unwrap();
    let theirs = acme.wait_final("same", PATIENCE).await.unwrap();
    assert_eq!(theirs.state, State::Succeeded);
    zeta.wait_for("same", "running", PATIENCE, |job| job.state == State::Running).await.unwrap();
    assert_eq!(code(&acme.cancel("same").await.unwrap()), Code::JobFinished);
    assert_eq!(zeta.job("same").await.unwrap().state, State::Running, "another one of that name was meant");

    // An upload is an input for who asked for its URL.
    let file = clip(&SMALL).await;
    let ticket = acme.upload_ticket("clip.mp4", "video/mp4").await.unwrap();
    nobody.put_file(&ticket, "video/mp4", &file, |_| {}).await.unwrap().success().unwrap();
    let spec = json!({ "job_id": "private", "input_path": ticket.input_path });
    let refused = zeta.process(&spec).await.unwrap();
    assert_eq!(code(&refused), Code::BadInputPath);
    let never = json!({ "input_path": ticket.input_path.replace("clip.mp4", "none.mp4") });
    let never = acme.process(&never).await.unwrap();
    assert_eq!(refused.problem().unwrap().detail, never.problem().unwrap().detail, "as if it were not there");
    acme.submit(&spec).await.unwrap();
    let done = acme.wait_final("private", PATIENCE).await.unwrap();
    assert_eq!(done.state, State::Succeeded);

    // Whatever is asked about it.
    for (asked, answer) in all_about(&zeta, "private").await {
        assert_eq!(answer.status, 404, "{asked}");
        if !asked.starts_with("HEAD") {
            assert_eq!(code(&answer), Code::JobNotFound, "{asked}");
            let never = answer.text().replace("private", "never");
            assert_eq!(
                zeta.get("/jobs/never").await.unwrap().text(),
                never,
                "{asked}: as if it were not there"
            );
        }
    }
    for (asked, answer) in all_about(nobody, "private").await {
        assert_eq!(answer.status, 401, "{asked}");
    }
    let mut forged = HeaderMap::new();
    for (name, value) in [("millrace-tenant", "acme"), ("millrace-principal", "acme")] {
        forged.insert(name, value.parse().unwrap());
    }
    let forged = zeta.send(Method::GET, "/jobs/private", forged, "").await.unwrap();
    assert_eq!(code(&forged), Code::JobNotFound, "nobody says himself whose he is");
    assert_eq!(
        (ids(&acme).await, ids(&zeta).await),
        (vec!["private".into(), "same".into()], vec!["same".into()])
    );

    // Media asks for the token in the path and for nothing else.
    let playlist = done.outputs.as_ref().unwrap().hls.clone().unwrap();
    for client in [nobody, &zeta, &acme] {
        let played = client.get(&playlist).await.unwrap().success().unwrap();
        assert!(played.text().starts_with("#EXTM3U"));
    }
    stage.web.release();
    let own = zeta.wait_final("same", PATIENCE).await.unwrap().outputs.unwrap().hls.unwrap();
    let theirs = theirs.outputs.unwrap().hls.unwrap();
    assert!(own != theirs && own.contains("-zeta/") && theirs.contains("-acme/"), "{own} {theirs}");
    for client in [nobody, &zeta] {
        client.get(&own).await.unwrap().success().unwrap();
        for bad in [
            own.replace("-zeta/", "-acme/"),
            own.replace("-zeta/", "/"),
            theirs.replace("-acme/", "-zeta/"),
            theirs.replace("/same/", "/private/"),
            own.replace("/same/", "/private/"),
        ] {
            assert_eq!(code(&client.get(&bad).await.unwrap()), Code::BadSignature, "{bad}");
        }
    }

    // Deleted by who has it, and only his.
    nobody.get(&playlist).await.unwrap().success().unwrap();
    let deleted = acme.send(Method::DELETE, "/jobs/same?outputs", HeaderMap::new(), "").await.unwrap();
    deleted.success().unwrap();
    assert!(!nobody.get(&theirs).await.unwrap().status.is_success());
    nobody.get(&own).await.unwrap().success().unwrap();

    // The name that was not there for him is free for him.
    zeta.submit(&stage.web.small_spec("private")).await.unwrap();
    assert_eq!(zeta.wait_final("private", PATIENCE).await.unwrap().state, State::Succeeded);
    assert_eq!(acme.job("private").await.unwrap().outputs.unwrap().bytes, done.outputs.unwrap().bytes);
    stage.end().await;
}
