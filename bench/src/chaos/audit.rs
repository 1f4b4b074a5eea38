//! What became of the jobs that were accepted, by the job store's own rows, the files of the object store, and a decoder.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use millrace_wire::job::Job;

use super::arena::Arena;
use super::client::Patient;
use super::objects::files_below;
use crate::{Client, media};

/// Longest time to decode all renditions of a short clip.
const DECODE_PATIENCE: Duration = Duration::from_secs(120);
/// How much later than the commit a file's time may be: the kernel's clock for files ticks every 4 ms, and rows know
/// milliseconds.
const FILE_CLOCK: Duration = Duration::from_millis(50);

/// What must never happen to an accepted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// The store does not know it.
    Lost,
    /// It has not ended, or not as it should.
    Unended,
    /// More than one attempt published, or what was published is not the attempt that did.
    Twice,
    /// What was published is not whole, cannot be decoded, or was changed afterwards.
    Corrupt,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Unended => "not ended",
            Self::Twice => "published twice",
            Self::Corrupt => "corrupt",
        })
    }
}

/// One job as the store has it in the end.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its internal name.
    pub uid: String,
    /// Its state.
    pub state: String,
    /// How often it was claimed.
    pub attempts: u32,
    /// Of the claim that may publish.
    epoch: u64,
    /// Where its outputs lie: bucket, prefix, number of files.
    manifest: Option<(String, String, usize)>,
    finished_at_ms: i64,
    succeeded_events: u32,
    /// Attempts of one task that the store says succeeded, at most.
    succeeded_attempts: u32,
}

impl Row {
    /// Reads a job's row, and what its events and attempts say.
    ///
    /// # Errors
    /// The job store does not answer.
    pub fn read(arena: &Arena, id: &str) -> Result<Option<Self>> {
        let text = arena.sql(&format!(
            "SELECT uid, state, attempt, epoch, coalesce(finished_at, 0), \
               (SELECT count(*) FROM event WHERE job_uid = job.uid AND kind = 'succeeded'), \
               coalesce((SELECT max(n) FROM (SELECT count(*) AS n FROM attempt JOIN task ON task.uid = attempt.task_uid \
                 WHERE task.job_uid = job.uid AND outcome = 'succeeded' GROUP BY task.uid) done), 0), \
               manifest::jsonb ->> 'bucket', manifest::jsonb ->> 'prefix', manifest::jsonb ->> 'files' \
             FROM job WHERE job_id = '{id}'"
        ))?;
        if text.is_empty() {
            return Ok(None);
        }
        let fields: Vec<&str> = text.split('|').collect();
        let [uid, state, attempts, epoch, finished, events, done, bucket, prefix, files] = fields[..] else {
            anyhow::bail!("the store's answer about {id} is no row: {text}");
        };
        let manifest = (!prefix.is_empty()).then(|| -> Result<_> {
            Ok((bucket.to_owned(), prefix.to_owned(), files.parse().context("files")?))
        });
        Ok(Some(Self {
            uid: uid.to_owned(),
            state: state.to_owned(),
            attempts: attempts.parse().context("attempts")?,
            epoch: epoch.parse().context("epoch")?,
            manifest: manifest.transpose()?,
            finished_at_ms: finished.parse().context("finished_at")?,
            succeeded_events: events.parse().context("events")?,
            succeeded_attempts: done.parse().context("attempts")?,
        }))
    }

    /// Whether one attempt published, once, and it is the one whose outputs are shown.
    ///
    /// # Errors
    /// Says what is not so.
    pub fn published_once(&self) -> Result<()> {
        ensure!(self.succeeded_events == 1, "{} events say that it succeeded", self.succeeded_events);
        ensure!(self.succeeded_attempts == 1, "{} attempts say that they did", self.succeeded_attempts);
        let (_, prefix, _) = self.manifest.as_ref().context("it has no manifest")?;
        let mine = prefix.starts_with(&format!("jobs/{}/", self.uid));
        ensure!(
            mine && prefix.ends_with(&format!("/a{}", self.epoch)),
            "its outputs are {prefix}, its epoch {}",
            self.epoch
        );
        Ok(())
    }

    /// Whether every file of the published attempt is there and none was touched after the commit.
    ///
    /// # Errors
    /// Says what is not so.
    pub fn files_are_whole(&self, arena: &Arena) -> Result<()> {
        let (bucket, prefix, files) = self.manifest.as_ref().context("it has no manifest")?;
        let found: Vec<PathBuf> = files_below(&arena.objects.root().join(bucket).join(prefix));
        ensure!(found.len() == *files, "{} of {files} files are below {prefix}", found.len());
        let end = Duration::from_millis(u64::try_from(self.finished_at_ms).context("finished_at")?);
        for file in found {
            let changed = std::fs::metadata(&file)?.modified()?.duration_since(SystemTime::UNIX_EPOCH)?;
            ensure!(changed <= end + FILE_CLOCK, "{} was written after the commit", file.display());
        }
        Ok(())
    }
}

/// Reads a succeeded job's outputs through a gateway: every rendition is decoded to its end, and the first has so many frames.
///
/// # Errors
/// What the decoder says.
pub async fn decodes(client: &Client, job: &Job, frames: usize) -> Result<()> {
    let outputs = job.outputs.as_ref().context("it has no outputs")?;
    let url = client.url(outputs.hls.as_ref().context("it has no playlist")?)?;
    let mut ffmpeg = tokio::process::Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-i", url.as_str(), "-map", "0", "-f", "null", "-"]);
    ffmpeg.stderr(std::process::Stdio::piped());
    let said = tokio::time::timeout(DECODE_PATIENCE, ffmpeg.kill_on_drop(true).output()).await;
    let said = said.context("the decoder does not end")?.context("start ffmpeg")?;
    let complaints = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && complaints.trim().is_empty(), "ffmpeg says: {}", complaints.trim());
    let video = media::inspect(url.as_str()).await?.videos().next().context("it has no picture")?.index;
    let packets = media::packets(url.as_str()).await?;
    let found = packets.iter().filter(|packet| packet.stream_index == video).count();
    ensure!(found == frames, "it has {found} frames instead of {frames}");
    Ok(())
}

/// Looks at an accepted job that should have succeeded.
///
/// # Errors
/// Nobody can be asked. That something is broken is no error, but the answer.
pub async fn of(
    arena: &Arena,
    clients: &Patient,
    id: &str,
    frames: usize,
    patience: Duration,
) -> Result<Option<(Breach, String)>> {
    let Some(row) = Row::read(arena, id)? else { return Ok(Some((Breach::Lost, "no row".to_owned()))) };
    if row.state != "succeeded" {
        return Ok(Some((Breach::Unended, format!("it is {} after {} attempts", row.state, row.attempts))));
    }
    if let Err(error) = row.published_once() {
        return Ok(Some((Breach::Twice, format!("{error:#}"))));
    }
    if let Err(error) = row.files_are_whole(arena) {
        return Ok(Some((Breach::Corrupt, format!("{error:#}"))));
    }
    let job = clients.job(id, patience).await?;
    let decoded = decodes(&arena.system.client()?, &job, frames).await;
    Ok(decoded.err().map(|error| (Breach::Corrupt, format!("{error:#}"))))
}
