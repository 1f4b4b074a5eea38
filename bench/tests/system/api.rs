//! The API beside its description, by a judge that is not ours.

use crate::chromium::target;
use crate::stage::{PATIENCE, Stage};

/// Requests of each kind to each call. The judge's own default is 100; more has been run by hand.
const EXAMPLES: &str = "25";

#[tokio::test]
async fn schemathesis_finds_nothing_that_the_description_does_not_say() {
    let stage = Stage::two_pools().await;
    let python = target().join("python/bin/python3");
    assert!(python.is_file(), "{} is not there: run `scripts/setup test`", python.display());
    let gateway = stage.system.gateway_url();
    let mut judge = tokio::process::Command::new(python);
    judge
        .current_dir(stage.system.data())
        .args(["-m", "schemathesis.cli", "run", "--url", gateway, &format!("{gateway}/openapi.json")])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1"])
        // An event stream lasts as long as its job, and the judge waits for the end of every answer.
        .args(["--exclude-path", "/jobs/{job_id}/events", "--request-timeout", "20"])
        // An input_path that nobody uploaded is well-formed and yet refused.
        .args(["--exclude-checks", "positive_data_acceptance", "--no-color"]);
    let said = tokio::time::timeout(3 * PATIENCE, judge.kill_on_drop(true).output()).await.unwrap().unwrap();
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    stage.end().await;
}
