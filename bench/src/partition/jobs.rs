//! Clients of two clouds: what they ask for, until they have an answer, and whether they can read what they got.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_wire::job::Job;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{Client, media};

/// Before a client asks again that was refused or got no answer.
const AGAIN: Duration = Duration::from_millis(300);

/// Uploads a clip by a worker of the pool that shall have it; answers where it lies.
///
/// # Errors
/// It is not taken.
pub async fn upload(to: &Client, clip: &Path) -> Result<String> {
    let ticket = to.upload_ticket("clip.mp4", "video/mp4").await?;
    to.put_file(&ticket, "video/mp4", clip, |_| {}).await?.success().context("upload")?;
    Ok(ticket.input_path)
}

/// What is asked: `heavy` takes seconds of x264.
pub fn spec(id: &str, input_path: &str, durability: &str, heavy: bool) -> Value {
    let mut spec =
        json!({ "job_id": id, "input_path": input_path, "durability": durability, "thumbnails": false });
    if heavy {
        spec["preset"] = "medium".into();
        spec["crf"] = 18.into();
    } else {
        spec["preset"] = "ultrafast".into();
    }
    spec
}

/// Posts until it is accepted, as clients do: a refusal or a broken answer says nothing about the job. Answers how often
/// it had to.
///
/// # Errors
/// It is refused for good, or `patience` is over.
pub async fn accepted(client: &Client, spec: &Value, patience: Duration) -> Result<u32> {
    let deadline = Instant::now() + patience;
    for tries in 1.. {
        match client.process(spec).await {
            Ok(answer) if answer.status.is_success() => return Ok(tries),
            Ok(answer) if answer.status.is_client_error() && answer.status.as_u16() != 429 => {
                bail!("{} is refused: {}", spec["job_id"], answer.text());
            }
            last if Instant::now() > deadline => {
                let last = last.map_or_else(|error| format!("{error:#}"), |answer| answer.text());
                bail!("{} is not accepted after {patience:?}: {last}", spec["job_id"]);
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
    unreachable!("the numbers do not end")
}

/// Reads a job until `condition` holds, whatever errors come meanwhile.
///
/// # Errors
/// `patience` is over; with the last answer.
pub async fn wait(
    client: &Client,
    id: &str,
    what: &str,
    patience: Duration,
    condition: impl Fn(&Job) -> bool,
) -> Result<Job> {
    let deadline = Instant::now() + patience;
    loop {
        let read = client.job(id).await;
        match read {
            Ok(job) if condition(&job) => return Ok(job),
            last if Instant::now() > deadline => {
                let last = last.map_or_else(
                    |error| format!("{error:#}"),
                    |job| serde_json::to_string(&job).unwrap_or_default(),
                );
                bail!("job {id} is not {what} after {patience:?}: {last}");
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Reads every file that a job's master playlist leads to, and lets ffprobe look at it; answers how many bytes that were.
///
/// # Errors
/// One of them cannot be read.
pub async fn read_all(client: &Client, job: &Job) -> Result<u64> {
    let id = &job.job_id;
    let master = job.outputs.as_ref().and_then(|outputs| outputs.hls.clone());
    let master = master.with_context(|| format!("{id} has no playlist"))?;
    let base = master.rsplit_once('/').map_or("", |(base, _)| base).to_owned();
    let (mut names, mut bytes, mut read) = (vec![master], 0, 0);
    while let Some(path) = names.pop() {
        let answer = client.send(Method::GET, &path, HeaderMap::new(), "").await?.success();
        let answer = answer.with_context(|| format!("read {path} of {id}"))?;
        ensure!(!answer.body.is_empty(), "{path} of {id} is empty");
        (bytes, read) = (bytes + answer.body.len() as u64, read + 1);
        if path.ends_with(".m3u8") {
            for line in answer.text().lines() {
                let quoted = line.split_once("URI=\"").and_then(|(_, rest)| rest.split_once('"'));
                let name = match quoted {
                    Some((name, _)) => name,
                    None if line.starts_with('#') || line.is_empty() => continue,
                    None => line,
                };
                names.push(format!("{base}/{name}"));
            }
        }
    }
    ensure!(read > 3, "{id}'s playlists lead to {read} files only");
    let outputs = job.outputs.as_ref().and_then(|outputs| outputs.hls.clone()).unwrap_or_default();
    let seen =
        media::inspect(client.url(&outputs)?.as_str()).await.with_context(|| format!("look at {id}"))?;
    ensure!(seen.videos().next().is_some(), "{id} has no picture");
    Ok(bytes)
}
