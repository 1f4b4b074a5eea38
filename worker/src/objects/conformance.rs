//! What every store has to hold, whichever it is: a directory, and a real S3 server that checks signatures, checksums
//! and conditional writes. (Google's has no server to test with that speaks its XML API, so it is not here.)

use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt, stream};
use millrace_object_server::{ACCESS_KEY, SECRET_KEY, Server, Settings};
use tokio::net::TcpListener;

use super::*;

/// A store under test, and what has to live as long.
pub(crate) struct Stage {
    pub(crate) objects: Objects,
    pub(crate) folder: tempfile::TempDir,
    /// None for a directory.
    pub(crate) server: Option<Server>,
}

impl Stage {
    pub(crate) fn directory() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(&folder.path().join("objects")).unwrap();
        Self { objects, folder, server: None }
    }

    /// Pool `aws` has a bucket of its own with a prefix, every other pool a folder in another one.
    pub(crate) async fn s3() -> Self {
        Self::s3_with("").await
    }

    async fn s3_with(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let settings = Settings {
            root: folder.path().join("s3"),
            buckets: vec!["first".to_owned(), "second".to_owned()],
        };
        let server = Server::start(listener, &settings).unwrap();
        let credentials = folder.path().join("credentials");
        write_credentials(&credentials, SECRET_KEY);
        let query = format!(
            "region=us-east-1&endpoint=http://127.0.0.1:{port}&credentials={}{options}",
            credentials.display()
        );
        let places = Places::parse(&format!("aws=s3://first/some/prefix?{query},s3://second?{query}"));
        Self { objects: Objects::connect(&places.unwrap()).unwrap(), folder, server: Some(server) }
    }

    fn file(&self, bytes: &[u8]) -> std::path::PathBuf {
        let file = self.folder.path().join(format!("file-{}", uuid::Uuid::now_v7()));
        std::fs::write(&file, bytes).unwrap();
        file
    }

    async fn text(&self, key: &str, span: Span) -> Result<String, Error> {
        let meta = self.objects.head(&aws(), key).await?;
        let content = self.objects.read(&aws(), key, &meta, span, None).await?;
        let bytes: Vec<Bytes> = content.stream.try_collect().await.unwrap();
        Ok(String::from_utf8(bytes.concat()).unwrap())
    }

    async fn fetched(&self, bucket: &PoolId, key: &str) -> Result<Vec<u8>, Error> {
        let into = self.folder.path().join(format!("fetched-{}", uuid::Uuid::now_v7()));
        let bytes = self.objects.get_file(bucket, key, &into, u64::MAX, &|_, _| {}).await?;
        let read = std::fs::read(&into).unwrap();
        assert_eq!(read.len() as u64, bytes);
        Ok(read)
    }

    /// Whatever lies in the store, staged and half-written things included.
    pub(crate) async fn everything(&self) -> Vec<String> {
        let bucket = self.objects.bucket(&aws()).unwrap();
        bucket.store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap()
    }
}

pub(crate) fn write_credentials(file: &FilePath, secret: &str) {
    let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n");
    std::fs::write(file, text).unwrap();
}

pub(crate) fn aws() -> PoolId {
    "aws".parse().unwrap()
}

fn gcp() -> PoolId {
    "gcp".parse().unwrap()
}

fn parts(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Unpin {
    stream::iter(parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect::<Vec<_>>())
}

/// Bytes of which no two stretches are alike, in chunks of a size that fits nothing.
pub(crate) fn noise(bytes: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.rotate_left(32).to_le_bytes()
    };
    let mut noise = std::iter::repeat_with(word).take(bytes.div_ceil(8)).collect::<Vec<_>>().concat();
    noise.truncate(bytes);
    noise
}

fn chunks(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Unpin + use<> {
    let chunks: Vec<_> = bytes.chunks(1_000_003).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    stream::iter(chunks)
}

async fn an_object_appears_whole_once_and_reads_in_ranges(stage: Stage) {
    let (objects, key) = (&stage.objects, "uploads/k/v.mp4");
    assert!(matches!(objects.head(&aws(), key).await, Err(Error::NotFound)));
    assert_eq!(objects.create(&aws(), key, parts(&["hello ", "world"]), 100).await.unwrap().bytes, 11);
    assert!(matches!(objects.create(&aws(), key, parts(&["x"]), 100).await, Err(Error::Exists)));
    assert_eq!(stage.text(key, Span::All).await.unwrap(), "hello world");
    assert_eq!(stage.text(key, Span::Bounded(1, 3)).await.unwrap(), "ell");
    assert_eq!(stage.text(key, Span::Bounded(6, 999)).await.unwrap(), "world");
    assert_eq!(stage.text(key, Span::From(6)).await.unwrap(), "world");
    assert_eq!(stage.text(key, Span::Last(5)).await.unwrap(), "world");
    for outside in [Span::From(11), Span::Bounded(11, 12), Span::Bounded(3, 1), Span::Last(0)] {
        assert!(matches!(stage.text(key, outside).await, Err(Error::BadRange)), "{outside:?}");
    }
    let meta = objects.head(&aws(), key).await.unwrap();
    for known in [meta.etag.clone(), format!("\"x\", W/{}", meta.etag), "*".to_owned()] {
        let again = objects.read(&aws(), key, &meta, Span::All, Some(&known)).await;
        assert!(matches!(again, Err(Error::NotModified)), "{known}");
    }
    assert!(objects.read(&aws(), key, &meta, Span::All, Some("W/\"x\"")).await.is_ok());
    assert_eq!(objects.delete_below(&aws(), "uploads/k").await.unwrap(), 1);
    assert_eq!(objects.delete_below(&aws(), "uploads/k").await.unwrap(), 0);
    assert!(matches!(stage.text(key, Span::All).await, Err(Error::NotFound)));
}

async fn of_two_senders_at_once_one_wins_and_its_bytes_stay(stage: Stage) {
    let pool = aws();
    for (round, bytes) in [(0, 1000), (1, 9 << 20)] {
        let key = format!("uploads/race-{round}/v.mp4");
        let (one, two) = (noise(bytes, 1), noise(bytes + 1, 2));
        let (first, second) = tokio::join!(
            stage.objects.create(&pool, &key, chunks(&one), 100 << 20),
            stage.objects.create(&pool, &key, chunks(&two), 100 << 20),
        );
        let there = stage.fetched(&aws(), &key).await.unwrap();
        match (first, second) {
            (Ok(_), Err(Error::Exists)) => assert!(there == one),
            (Err(Error::Exists), Ok(_)) => assert!(there == two),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stage.everything().await.len(), 2, "{:?}", stage.everything().await);
}

async fn a_large_object_goes_in_parts_and_comes_in_ranges(stage: Stage) {
    // Beyond the whole parts and ranges, and just at their edges.
    for (number, bytes) in [0, 1, 8 << 20, (8 << 20) + 1, 18_000_001].into_iter().enumerate() {
        let (written, sent) = (noise(bytes, 3), noise(bytes, 4));
        let (file_key, stream_key) = (format!("jobs/{number}/a"), format!("uploads/{number}/b"));
        stage.objects.put_file(&aws(), &file_key, &stage.file(&written)).await.unwrap();
        let meta = stage.objects.create(&aws(), &stream_key, chunks(&sent), 64 << 20).await.unwrap();
        assert_eq!(meta.bytes, bytes as u64);
        assert!(stage.fetched(&aws(), &file_key).await.unwrap() == written, "{bytes} of a file");
        assert!(stage.fetched(&aws(), &stream_key).await.unwrap() == sent, "{bytes} of a stream");
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let into = stage.folder.path().join("told");
    let report = |so_far, all| told.lock().unwrap().push((so_far, all));
    stage.objects.get_file(&aws(), "jobs/4/a", &into, 18_000_001, &report).await.unwrap();
    let told = told.lock().unwrap().clone();
    assert_eq!((told[0], *told.last().unwrap()), ((0, 18_000_001), (18_000_001, 18_000_001)));
    assert!(told.is_sorted() && told.len() >= 3, "{told:?}");
    let large = stage.objects.get_file(&aws(), "jobs/4/a", &into, 18_000_000, &|_, _| {}).await;
    assert!(matches!(large, Err(Error::TooLarge { limit_bytes: 18_000_000 })), "{large:?}");
}

async fn a_key_that_cannot_be_is_not_there_and_no_reason_to_doubt_the_store(stage: Stage) {
    stage.objects.create(&aws(), "uploads/k/v.mp4", parts(&["x"]), 100).await.unwrap();
    let long = format!("uploads/k/{}", "a".repeat(300));
    for key in [long.as_str(), "uploads/k/v.mp4/below", "uploads/no"] {
        let head = stage.objects.head(&aws(), key).await;
        // The S3 server keeps its objects in files, and cannot look up what no file can be called.
        assert!(
            matches!(head, Err(Error::NotFound)) || stage.server.is_some() && head.is_err(),
            "{key}: {head:?}"
        );
    }
}

async fn a_write_that_fails_leaves_nothing_to_see(stage: Stage) {
    let (objects, key) = (&stage.objects, "uploads/a");
    let large = objects.create(&aws(), key, parts(&["12345", "67890"]), 9).await;
    assert!(matches!(large, Err(Error::TooLarge { limit_bytes: 9 })));
    for good in [0, 20 << 20] {
        let bytes = noise(good, 5);
        let broken = chunks(&bytes).chain(stream::iter([Err(std::io::Error::other("gone"))]));
        let broken = objects.create(&aws(), key, broken, 100 << 20).await;
        assert!(matches!(broken, Err(Error::Interrupted(_))), "{broken:?}");
        let large = objects.create(&aws(), key, chunks(&noise((20 << 20) + 1, 6)), 20 << 20).await;
        assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    }
    let missing = objects.put_file(&aws(), key, FilePath::new("/no/such/file")).await;
    assert!(matches!(missing, Err(Error::Local { .. })));
    assert!(matches!(objects.head(&aws(), key).await, Err(Error::NotFound)));
    assert_eq!(stage.everything().await, Vec::<String>::new());
    // And it can be sent again.
    assert!(objects.create(&aws(), key, parts(&["good"]), 9).await.is_ok());
}

async fn a_pools_bucket_is_its_own_and_copies_go_between_them(stage: Stage) {
    let (objects, bytes) = (&stage.objects, noise(10_000_000, 7));
    objects.put_file(&aws(), "jobs/1/a", &stage.file(&bytes)).await.unwrap();
    assert!(matches!(objects.head(&gcp(), "jobs/1/a").await, Err(Error::NotFound)));
    for (bucket, key) in [(aws(), "jobs/2/a"), (gcp(), "jobs/1/a")] {
        objects.copy((&aws(), "jobs/1/a"), (&bucket, key)).await.unwrap();
        assert!(stage.fetched(&bucket, key).await.unwrap() == bytes);
    }
    let missing = objects.copy((&aws(), "jobs/none"), (&gcp(), "jobs/none")).await;
    assert!(matches!(missing, Err(Error::NotFound)), "{missing:?}");
    assert_eq!(objects.delete_below(&aws(), "jobs").await.unwrap(), 2);
    assert!(objects.head(&gcp(), "jobs/1/a").await.is_ok(), "a pool's deletion is its own");
    objects.delete(&gcp(), "jobs/1/a").await.unwrap();
    objects.delete(&gcp(), "jobs/1/a").await.unwrap();
    assert!(matches!(objects.head(&gcp(), "jobs/1/a").await, Err(Error::NotFound)));
    // What only begins like it is not below it.
    for key in ["jobs/10/a", "jobs/1/b"] {
        objects.put_file(&aws(), key, &stage.file(b"x")).await.unwrap();
    }
    assert_eq!(objects.delete_below(&aws(), "jobs/1").await.unwrap(), 1);
    assert!(objects.head(&aws(), "jobs/10/a").await.is_ok());
    objects.check(&aws()).await.unwrap();
    objects.check(&gcp()).await.unwrap();
}

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod directory {
            $(#[tokio::test] async fn $test() { super::$test(super::Stage::directory()).await; })*
        }
        mod s3 {
            $(#[tokio::test] async fn $test() { super::$test(super::Stage::s3().await).await; })*
        }
        mod s3_with_another_checksum {
            $(#[tokio::test] async fn $test() {
                super::$test(super::Stage::s3_with("&checksum=crc64nvme").await).await;
            })*
        }
    };
}

suite! {
    an_object_appears_whole_once_and_reads_in_ranges,
    of_two_senders_at_once_one_wins_and_its_bytes_stay,
    a_large_object_goes_in_parts_and_comes_in_ranges,
    a_key_that_cannot_be_is_not_there_and_no_reason_to_doubt_the_store,
    a_write_that_fails_leaves_nothing_to_see,
    a_pools_bucket_is_its_own_and_copies_go_between_them,
}
