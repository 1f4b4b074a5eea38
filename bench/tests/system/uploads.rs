//! Uploads through the gateway.

use std::time::Duration;

use millrace_bench::{Answer, System};
use millrace_wire::job::UploadTicket;
use millrace_wire::problem::Code;
use serde_json::json;

use crate::stage::{SMALL, Stage, clip};

#[tokio::test]
async fn an_uploaded_file_is_an_input_and_its_url_is_good_for_nothing_else() {
    let builder = System::builder().pool("aws", 1).pool("gcp", 1);
    let stage =
        Stage::start(builder.worker_arg("--upload-bytes-max", "1MB").worker_arg("--upload-expiry", "10s"))
            .await;
    let file = clip(&SMALL).await;
    let put = async |ticket: &UploadTicket| -> Answer {
        stage.client.put_file(ticket, "video/mp4", &file, |_| {}).await.unwrap()
    };
    let code = |answer: Answer| answer.problem().unwrap().code;

    let ticket = stage.client.upload_ticket("my clip.mp4", "video/mp4").await.unwrap();
    assert!(ticket.upload_url.starts_with(stage.system.gateway_url()), "by the gateway's name: {ticket:?}");
    assert_eq!((ticket.method.as_str(), ticket.bytes_max), ("PUT", 1_000_000));
    let before = stage.client.process(&json!({ "input_path": ticket.input_path })).await.unwrap();
    assert_eq!(code(before), Code::BadInputPath, "nothing is there before the upload");
    put(&ticket).await.success().unwrap();
    assert_eq!(code(put(&ticket).await), Code::UploadExists, "once");

    stage.client.submit(&json!({ "job_id": "uploaded", "input_path": ticket.input_path })).await.unwrap();
    let done = stage.succeeded("uploaded").await;
    assert!((done.outputs.unwrap().duration_s - SMALL.seconds).abs() < 0.1);

    let other = stage.client.upload_ticket("other.mp4", "video/mp4").await.unwrap();
    let tampered = [
        other.upload_url.replace("sig=", "sig=00"),
        other.upload_url.replace("max=1000000", "max=9000000"),
        other.upload_url.replace("expires=", "expires=9"),
        other.upload_url.replace("other.mp4", "another.mp4"),
        other.upload_url.split('?').next().unwrap().to_owned(),
    ];
    for url in tampered {
        assert_ne!(url, other.upload_url);
        let answer = put(&UploadTicket { upload_url: url.clone(), ..other.clone() }).await;
        assert_eq!(code(answer), Code::BadSignature, "{url}");
    }
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(1_000_001).unwrap();
    let refused = stage.client.put_file(&other, "video/mp4", large.path(), |_| {}).await.unwrap();
    assert_eq!(code(refused), Code::UploadTooLarge);

    // The URL itself says when it ends; there is no other sign to wait for.
    let expires: jiff::Timestamp = other.expires_at.parse().unwrap();
    while jiff::Timestamp::now() <= expires + jiff::SignedDuration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(code(put(&other).await), Code::UploadExpired);
    stage.end().await;
}
