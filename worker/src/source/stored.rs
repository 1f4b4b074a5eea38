//! Bringing an uploaded input out of the object store into a local file.

use std::path::Path;
use std::time::Duration;

use millrace_wire::PoolId;
use millrace_wire::job::FailureCode;
use tokio_util::sync::CancellationToken;

use super::fetch::{Arrived, Report};
use crate::failure::{Ended, Failure};
use crate::keys;
use crate::objects::{Error, Objects};

/// What an uploaded input may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes.
    pub bytes_max: u64,
    /// From the first request to the last byte.
    pub total_timeout: Duration,
}

/// Copies the input that `input_path` names into the file `into`. `report` is told how far it is.
///
/// # Errors
/// Cancelled, or a failure whose detail a client may read.
pub async fn fetch(
    objects: &Objects,
    input_path: &str,
    into: &Path,
    limits: Limits,
    report: Report<'_>,
    cancel: &CancellationToken,
) -> Result<(), Ended> {
    let (bucket, key) = keys::split_input_path(input_path).ok_or_else(|| {
        Failure::new(FailureCode::SourceNotFound, "input_path names no object").log(input_path)
    })?;
    fetch_object(objects, (&bucket, key, input_path), into, limits, report, cancel).await
}

/// Copies an object into the file `into`, by its bucket, its key and its name for the log.
///
/// # Errors
/// As [`fetch`].
pub async fn fetch_object(
    objects: &Objects,
    (bucket, key, input_path): (&PoolId, &str, &str),
    into: &Path,
    limits: Limits,
    report: Report<'_>,
    cancel: &CancellationToken,
) -> Result<(), Ended> {
    let arrived = |bytes, all| report(Arrived { bytes, announced: Some(all) });
    let copied = tokio::select! {
        () = cancel.cancelled() => return Err(Ended::Cancelled),
        copied = tokio::time::timeout(limits.total_timeout, objects.get_file(bucket, key, into, limits.bytes_max, &arrived)) => copied,
    };
    let late = |_| {
        let detail = format!("the source did not arrive within {} s", limits.total_timeout.as_secs());
        Failure::new(FailureCode::SourceTimeout, detail)
    };
    match copied.map_err(late)? {
        Ok(0) => Err(Failure::new(FailureCode::SourceEmpty, "the source has zero bytes").into()),
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error, limits.bytes_max, input_path).into()),
    }
}

fn failed(error: Error, bytes_max: u64, input_path: &str) -> Failure {
    match error {
        Error::NotFound => {
            Failure::new(FailureCode::SourceNotFound, "nothing was uploaded at input_path").log(input_path)
        }
        Error::TooLarge { .. } => {
            Failure::new(FailureCode::SourceTooLarge, format!("the source has more than {bytes_max} bytes"))
        }
        Error::Local { verb, source } => Failure::scratch(verb, &source),
        error => error.failure("gives no bytes"),
    }
}

#[cfg(test)]
mod tests {
    use millrace_object_server::{Fault, What};

    use super::*;
    use crate::objects::conformance::{Stage, aws, noise, write_credentials};

    const LIMITS: Limits = Limits { bytes_max: 40 << 20, total_timeout: Duration::from_secs(60) };
    const PATH: &str = "aws/uploads/k/v.mp4";

    async fn stage(bytes: usize) -> (Stage, Vec<u8>) {
        let (stage, bytes) = (Stage::s3().await, noise(bytes, 9));
        let file = stage.folder.path().join("source");
        std::fs::write(&file, &bytes).unwrap();
        stage.objects.put_file(&aws(), "uploads/k/v.mp4", &file).await.unwrap();
        (stage, bytes)
    }

    async fn fetched(stage: &Stage, limits: Limits) -> Result<Vec<u8>, FailureCode> {
        let into = stage.folder.path().join("input");
        match fetch(&stage.objects, PATH, &into, limits, &|_| {}, &CancellationToken::new()).await {
            Ok(()) => Ok(std::fs::read(&into).unwrap()),
            Err(Ended::Failed(failure)) => Err(failure.code),
            Err(ended) => panic!("{ended}"),
        }
    }

    fn on_read(times: u32, what: What) -> Fault {
        Fault::new(&http::Method::GET, "v.mp4", times, what)
    }

    #[tokio::test]
    async fn an_input_arrives_whole_through_a_store_that_stumbles() {
        let (stage, bytes) = stage(17 << 20).await;
        let faults = &stage.server.as_ref().unwrap().faults;
        for coming in [
            vec![on_read(2, What::Refuse(500, "InternalError".to_owned()))],
            vec![on_read(2, What::Refuse(503, "SlowDown".to_owned()))],
            vec![on_read(1, What::CutAnswer(100_000)), on_read(1, What::CutAnswer(0))],
            vec![on_read(2, What::LoseAnswer)],
            vec![on_read(1, What::Slow(300))],
        ] {
            faults.set(coming.clone());
            assert!(fetched(&stage, LIMITS).await.unwrap() == bytes, "{coming:?}");
            assert!(faults.all_met(), "{coming:?}");
        }
    }

    #[tokio::test]
    async fn a_store_that_fails_for_good_has_a_code_that_says_how() {
        let (stage, _) = stage(1000).await;
        let faults = &stage.server.as_ref().unwrap().faults;
        let refuse = |status, code: &str| vec![on_read(1000, What::Refuse(status, code.to_owned()))];
        for (coming, code) in [
            (refuse(503, "SlowDown"), FailureCode::ObjectsUnavailable),
            (refuse(403, "AccessDenied"), FailureCode::ObjectsDenied),
            (refuse(400, "ExpiredToken"), FailureCode::ObjectsDenied),
            (refuse(403, "RequestTimeTooSkewed"), FailureCode::ObjectsDenied),
            (vec![on_read(1000, What::CutAnswer(10))], FailureCode::ObjectsUnavailable),
        ] {
            faults.set(coming.clone());
            assert_eq!(fetched(&stage, LIMITS).await, Err(code), "{coming:?}");
            assert!(!code.is_permanent(), "another attempt can find it mended");
        }
        faults.set(vec![on_read(1, What::Slow(60_000))]);
        let short = Limits { total_timeout: Duration::from_millis(200), ..LIMITS };
        assert_eq!(fetched(&stage, short).await, Err(FailureCode::SourceTimeout));
        faults.set(Vec::new());
        assert_eq!(
            fetched(&stage, Limits { bytes_max: 999, ..LIMITS }).await,
            Err(FailureCode::SourceTooLarge)
        );
        assert!(fetched(&stage, LIMITS).await.is_ok());
        stage.objects.delete(&aws(), "uploads/k/v.mp4").await.unwrap();
        assert_eq!(fetched(&stage, LIMITS).await, Err(FailureCode::SourceNotFound));
    }

    #[tokio::test]
    async fn credentials_that_are_wrong_are_denied_and_renewed_ones_are_seen() {
        let (stage, bytes) = stage(1000).await;
        let file = stage.folder.path().join("credentials");
        let until = async |wanted: Result<Vec<u8>, FailureCode>| {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            while fetched(&stage, LIMITS).await != wanted {
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "never saw {:?}",
                    wanted.map(|bytes| bytes.len())
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        write_credentials(&file, "another secret");
        until(Err(FailureCode::ObjectsDenied)).await;
        write_credentials(&file, millrace_object_server::SECRET_KEY);
        until(Ok(bytes)).await;
        std::fs::remove_file(&file).unwrap();
        until(Err(FailureCode::ObjectsDenied)).await;
    }
}
