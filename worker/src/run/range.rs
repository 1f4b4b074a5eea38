//! One part of a long job: a range of the picture, or the sound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use millrace_wire::job::{FailureCode, Progress};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{Outcome, Runner, Scratch};
use crate::failure::{Ended, Failure};
use crate::ffmpeg::{self, Damage, Encoded, args};
use crate::keys;
use crate::ladder::Plan;
use crate::lease::{Running, Stop};
use crate::package;
use crate::ranges::{self, Range, RangePlan, SourceAt};
use crate::source::kept::Held;
use crate::source::stored;
use crate::store::{Claim, Committed};

/// What a part leaves, as its task's row keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Left {
    /// What it wrote, by name.
    pub(super) files: BTreeMap<String, File>,
    /// What could not be decoded.
    pub(super) damage: Damage,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// Its size.
    pub(super) bytes: u64,
    /// SHA-256, in hexadecimal.
    pub(super) sha256: String,
}

impl Runner {
    pub(super) async fn range(
        &self,
        claim: &Claim,
        running: &Running,
        index: u32,
    ) -> Result<Outcome, Outcome> {
        let plan = read_plan(claim)?;
        let range = plan.ranges.get(index as usize).ok_or_else(|| unread("no such range"))?;
        let (scratch, source) =
            (Scratch::create(self.scratch_of(claim))?, self.source(claim, running, &plan).await?);
        let part = range.plan(&plan.ladder);
        running.work_seconds(part.work_seconds);
        let encoded = self.encode_range((&part, range), &source.path(), &scratch, running).await?;
        self.cost.learn(part.work_seconds, encoded.wall.as_secs_f64());
        self.metrics.encoded(&part, &encoded);
        let first = part.picture.as_ref().map_or(1, |picture| range.first_segment(picture.segment_frames));
        self.commit(claim, running, &scratch, first, &encoded).await
    }

    pub(super) async fn sound(&self, claim: &Claim, running: &Running) -> Result<Outcome, Outcome> {
        let plan = read_plan(claim)?;
        let part = ranges::sound(&plan.ladder).ok_or_else(|| unread("no sound"))?;
        let (scratch, source) =
            (Scratch::create(self.scratch_of(claim))?, self.source(claim, running, &plan).await?);
        let index = plan.ladder.rungs().len();
        let report = |seen: ffmpeg::Progress| {
            let percent = 100.0 * seen.media.as_secs_f64() / part.duration_s.max(1e-3);
            running.progress(Progress { percent: percent.min(99.0), ..Progress::default() });
        };
        let out = scratch.out();
        let encoded =
            self.ffmpeg.encode_sound((&part, index), &source.path(), &out, &report, &running.stop).await?;
        self.cost.learn(part.work_seconds, encoded.wall.as_secs_f64());
        self.metrics.encoded(&part, &encoded);
        let checked = check(move || package::check_sound(&part, index, &out)).await;
        checked.map_err(|failure| scratch.blame(failure))?;
        self.commit(claim, running, &scratch, 1, &encoded).await
    }

    /// Encodes a range and checks it. Should ffmpeg have been sent too far into some odd source, it begins at its beginning.
    async fn encode_range(
        &self,
        (part, range): (&Plan, &Range),
        source: &Path,
        scratch: &Scratch,
        running: &Running,
    ) -> Result<Encoded, Outcome> {
        let began = Instant::now();
        let report = |seen: ffmpeg::Progress| running.progress(progress(&seen, part, began));
        let out = scratch.out();
        let made = async {
            let encoded =
                self.ffmpeg.encode_range((part, range), source, &out, &report, &running.stop).await?;
            let (part, range, out) = (part.clone(), range.clone(), out.clone());
            check(move || package::check_range(&part, &range, &out)).await?;
            Ok(encoded)
        };
        match made.await.map_err(|ended: Ended| ended.map(|failure| scratch.blame(failure))) {
            Ok(encoded) => Ok(encoded),
            // Without any frame at all ffmpeg's muxer dies.
            Err(Ended::Failed(failure))
                if matches!(failure.code, FailureCode::VerifyFailed | FailureCode::EncodeFailed)
                    && range.seek_s.is_some() =>
            {
                warn!(%failure, "the range did not come out; decoding the source from its beginning");
                scratch.empty_out()?;
                let range = Range { seek_s: None, ..range.clone() };
                Box::pin(self.encode_range((part, &range), source, scratch, running)).await
            }
            Err(ended) => Err(ended.into()),
        }
    }

    /// The job's source, here for as long as it is held, and a little longer.
    async fn source(&self, claim: &Claim, running: &Running, plan: &RangePlan) -> Result<Held, Outcome> {
        let held = self.sources.hold(&claim.lease.job_uid, async |into: &Path| {
            match self.stored_source(running, &plan.source, into).await {
                // Ours, so we can make it again.
                Err(Ended::Failed(failure)) if is_lost(&failure) && plan.source.own => {
                    warn!(%failure, "fetching the source anew");
                    self.renew_source(claim, running, &plan.source, into).await
                }
                brought => brought,
            }
        });
        Ok(held.await?)
    }

    /// Brings the source from where the plan says, if it is what the plan was made of.
    async fn stored_source(&self, running: &Running, source: &SourceAt, into: &Path) -> Result<(), Ended> {
        let at = format!("{}/{}", source.bucket, source.key);
        let object = (&source.bucket, source.key.as_str(), at.as_str());
        stored::fetch_object(&self.objects, object, into, self.stored, &|_| {}, &running.stop).await?;
        if is_source(source, into).await? {
            return Ok(());
        }
        let detail = "the source is not what it was when the job began";
        Err(Failure::new(FailureCode::SourceDamaged, detail).log(at).into())
    }

    /// Fetches the source from where the client said once more, and puts it where the other parts look for it.
    async fn renew_source(
        &self,
        claim: &Claim,
        running: &Running,
        source: &SourceAt,
        into: &Path,
    ) -> Result<(), Ended> {
        self.fetch(claim, running, into).await?;
        if !is_source(source, into).await? {
            let detail =
                "the object store lost the job's source, and where it came from there is another now";
            return Err(Failure::new(FailureCode::ObjectsLost, detail).into());
        }
        let stored = tokio::select! {
            () = running.stop.cancelled() => return Err(Ended::Cancelled),
            stored = self.objects.put_file(&source.bucket, &source.key, into) => stored,
        };
        Ok(stored.map_err(|error| error.failure("takes no bytes"))?)
    }

    /// Stores what a part made, its segments under their final numbers, and commits it.
    async fn commit(
        &self,
        claim: &Claim,
        running: &Running,
        scratch: &Scratch,
        first_segment: usize,
        encoded: &Encoded,
    ) -> Result<Outcome, Outcome> {
        let out = scratch.out();
        let made = check(move || read_files(&out, first_segment)).await?;
        let prefix = keys::attempt_prefix(claim.part, &claim.lease);
        let stored = made.iter().map(|(name, path, _)| (format!("{prefix}/{name}"), path.clone()));
        self.store_files(claim, running, stored.collect()).await?;
        let files = made.into_iter().map(|(name, _, file)| (name, file)).collect();
        let left = serde_json::to_string(&Left { files, damage: encoded.damage }).expect("plain data");
        let encoder = self.ffmpeg.encoder();
        match self.ask_store(running, || self.store.commit(&claim.lease, encoder, &left)).await? {
            Committed::Yes => Ok(Outcome::Committed),
            Committed::Again => Err(Outcome::Again),
            Committed::No => {
                // Cancelled first, or somebody else's by now: the settling write finds out which.
                running.stop(Stop::Cancelled);
                Err(Outcome::Stopped)
            }
        }
    }
}

/// Whether a source could not be had from the object store, or not as it was.
fn is_lost(failure: &Failure) -> bool {
    use FailureCode::{SourceDamaged, SourceEmpty, SourceNotFound, SourceTooLarge};
    matches!(failure.code, SourceNotFound | SourceDamaged | SourceEmpty | SourceTooLarge)
}

/// Whether a file is what a plan was made of.
async fn is_source(source: &SourceAt, file: &Path) -> Result<bool, Failure> {
    let Some(wanted) = source.sha256.clone() else { return Ok(true) };
    let file = file.to_owned();
    let read = move || File::read(&file).map_err(|error| Failure::scratch("read the source", &error));
    Ok(check(read).await?.sha256 == wanted)
}

/// The plan that a part's job was split by.
pub(super) fn read_plan(claim: &Claim) -> Result<RangePlan, Failure> {
    let text = claim.plan.as_deref().unwrap_or_default();
    serde_json::from_str(text).map_err(unread)
}

fn unread(why: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::Internal, "the job's plan could not be read").log(why)
}

/// Runs something that blocks.
pub(super) async fn check<T: Send + 'static>(
    what: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(what).await;
    done.map_err(|error| Failure::new(FailureCode::Internal, "checking outputs failed").log(error))?
}

/// Every segment and initialisation segment in a directory: the name that it shall have, its path, and what it is.
fn read_files(out: &Path, first_segment: usize) -> Result<Vec<(String, PathBuf, File)>, Failure> {
    let broken = |error: std::io::Error| Failure::scratch("read a segment", &error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(out).map_err(broken)? {
        let path = entry.map_err(broken)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if args::MANIFESTS.contains(&name.as_str()) {
            continue;
        }
        let name = match args::parse_segment_name(&name) {
            Some((index, number)) => args::segment_name(index, number + first_segment - 1),
            None => name,
        };
        let file = File::read(&path).map_err(broken)?;
        files.push((name, path, file));
    }
    Ok(files)
}

impl File {
    /// Reads a file to its end.
    pub(super) fn read(path: &Path) -> std::io::Result<Self> {
        let (mut hash, mut file) = (Sha256::new(), std::fs::File::open(path)?);
        let bytes = std::io::copy(&mut file, &mut hash)?;
        Ok(Self { bytes, sha256: hex::encode(hash.finalize()) })
    }
}

/// How far a range is. ffmpeg's own account of time is that of the whole source.
fn progress(seen: &ffmpeg::Progress, part: &Plan, began: Instant) -> Progress {
    let fps = part.picture.as_ref().map_or(1.0, |picture| picture.fps.as_f64());
    let media_seconds = (seen.frames as f64 / fps).min(part.duration_s);
    Progress {
        percent: (100.0 * media_seconds / part.duration_s.max(1e-3)).min(99.0),
        media_seconds: Some(media_seconds),
        speed: Some(media_seconds / began.elapsed().as_secs_f64().max(1e-3)),
        ..Progress::default()
    }
}
