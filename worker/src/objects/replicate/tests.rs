use millrace_object_server::{Fault, What};

use super::*;
use crate::objects::conformance::{Stage, aws, noise};

fn gcp() -> PoolId {
    "gcp".parse().unwrap()
}

async fn staged(stage: &Stage, bytes: usize) -> Vec<u8> {
    let (bytes, file) = (noise(bytes, 3), stage.folder.path().join("source"));
    std::fs::write(&file, &bytes).unwrap();
    stage.objects.put_file(&aws(), "uploads/k/v.mp4", &file).await.unwrap();
    bytes
}

async fn copied(stage: &Stage, hash: bool) -> Result<Copied, Error> {
    let (from, to) = ((&aws(), "uploads/k/v.mp4"), (&gcp(), "replicas/u/input-a1"));
    stage.objects.replicate(from, to, 1 << 30, hash).await
}

async fn read(stage: &Stage, key: &str) -> Vec<u8> {
    let into = stage.folder.path().join("read");
    stage.objects.get_file(&gcp(), key, &into, u64::MAX, &|_, _| {}).await.unwrap();
    std::fs::read(into).unwrap()
}

#[tokio::test]
async fn an_object_is_copied_by_its_server_or_through_here_and_is_the_same() {
    for stage in [Stage::directory(), Stage::s3().await] {
        let bytes = staged(&stage, 20_000_000).await;
        for hash in [false, true] {
            let made = copied(&stage, hash).await.unwrap();
            let wanted = hash.then(|| hex::encode(Sha256::digest(&bytes)));
            assert_eq!(
                (made.bytes, made.sha256),
                (bytes.len() as u64, wanted),
                "by the server, unless hashed"
            );
            assert!(read(&stage, "replicas/u/input-a1").await == bytes);
        }
        if let Some(server) = &stage.server {
            drop(server.faults.take_seen());
            assert_eq!(copied(&stage, false).await.unwrap().sha256, None);
            let seen = server.faults.take_seen();
            assert!(seen.iter().all(|seen| seen.method != "GET"), "no byte went through here: {seen:?}");
        }
    }
}

#[tokio::test]
async fn a_copy_that_breaks_off_is_not_there() {
    let stage = Stage::s3().await;
    staged(&stage, 9_000_000).await;
    let faults = &stage.server.as_ref().unwrap().faults;
    for (hash, coming) in [
        (true, Fault::new(&Method::GET, "v.mp4", 1000, What::CutAnswer(10))),
        (false, Fault::new(&Method::PUT, "input-a1", 1000, What::Refuse(503, "SlowDown".to_owned()))),
    ] {
        faults.set(vec![coming]);
        let failed = copied(&stage, hash).await.unwrap_err();
        assert!(matches!(failed, Error::Unavailable { .. }), "{failed}");
        faults.set(Vec::new());
        let missing = stage.objects.head(&gcp(), "replicas/u/input-a1").await.unwrap_err();
        assert!(matches!(missing, Error::NotFound), "{missing}");
    }
    stage.objects.delete(&aws(), "uploads/k/v.mp4").await.unwrap();
    assert!(matches!(copied(&stage, false).await.unwrap_err(), Error::NotFound));
}

#[tokio::test]
async fn what_lies_below_a_prefix_is_listed_by_its_keys() {
    for stage in [Stage::directory(), Stage::s3().await] {
        staged(&stage, 10).await;
        let listed = stage.objects.list_below(&aws(), "uploads/k").await.unwrap();
        assert_eq!(listed, [("uploads/k/v.mp4".to_owned(), 10)]);
        assert!(stage.objects.list_below(&gcp(), "uploads/k").await.unwrap().is_empty());
    }
}
