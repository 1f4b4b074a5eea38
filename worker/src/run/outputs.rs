//! From verified segments to what is published: progressive files, thumbnails, and the commit.

use std::path::{Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _};
use millrace_wire::job::FailureCode;
use tracing::warn;

use super::{Outcome, Runner, Scratch};
use crate::failure::{Ended, Failure};
use crate::ladder::{Plan, Wanted};
use crate::lease::{Running, Stop};
use crate::package::track::Track;
use crate::package::{self, Package};
use crate::store::{Claim, Manifest, Pieces, Published};
use crate::{keys, progressive, thumbnails};

/// Files written to the object store, or read from it, at once.
pub(super) const FILES_IN_FLIGHT: usize = 4;

impl Runner {
    /// Adds the progressive files that are wanted.
    pub(super) async fn add_files(
        &self,
        wanted: Wanted,
        package: &mut Package,
        scratch: &Scratch,
        running: &Running,
    ) -> Result<(), Ended> {
        let Package { files, outputs, pictures, sound, .. } = package;
        let (ffmpeg, sound, out, stop) = (&self.ffmpeg, sound.as_ref(), scratch.out(), &running.stop);
        if wanted.mp4 {
            let named = outputs.renditions.iter().map(|one| one.name.as_str());
            let pictures: Vec<(&str, &Track)> = named.zip(&*pictures).collect();
            let made = progressive::make(ffmpeg, &pictures, sound, &out, &scratch.0, stop).await?;
            let renditions = outputs.renditions.iter_mut().zip(&made);
            renditions.for_each(|(one, file)| one.mp4 = Some(file.name.clone()));
            files.extend(made);
        }
        if wanted.audio {
            let made = progressive::make(ffmpeg, &[], sound, &out, &scratch.0, stop).await?;
            let audio = outputs.audio.iter_mut().zip(&made);
            audio.for_each(|(one, file)| one.mp4 = Some(file.name.clone()));
            files.extend(made);
        }
        Ok(())
    }

    /// Adds poster and sprites. A ladder without them is still a ladder: only what another attempt could mend fails it.
    pub(super) async fn add_thumbnails(
        &self,
        wanted: Wanted,
        package: &mut Package,
        scratch: &Scratch,
        running: &Running,
    ) -> Result<(), Ended> {
        if !wanted.thumbnails {
            return Ok(());
        }
        let pictures: Vec<&Track> = package.pictures.iter().collect();
        match thumbnails::make(&self.ffmpeg, &pictures, &scratch.out(), &scratch.0, &running.stop).await {
            Ok(made) => {
                package.outputs.poster = Some(thumbnails::POSTER.to_owned());
                package.outputs.thumbnails = Some(thumbnails::INDEX.to_owned());
                package.files.extend(made.files);
                Ok(())
            }
            Err(Ended::Failed(failure)) if failure.code != FailureCode::ScratchUnavailable => {
                warn!(%failure, "no thumbnails");
                package.warnings.push("no poster and no sprites could be made of the picture".to_owned());
                Ok(())
            }
            Err(ended) => Err(ended),
        }
    }

    /// Stores an attempt's files, all that are not where `pieces` says already, and makes them visible.
    pub(super) async fn publish(
        &self,
        claim: &Claim,
        running: &Running,
        out: &Path,
        package: Package,
        pieces: Option<Pieces>,
    ) -> Result<Outcome, Outcome> {
        let prefix = keys::attempt_prefix(claim.part, &claim.lease);
        let manifest = Manifest {
            bucket: claim.bucket.clone(),
            prefix: prefix.clone(),
            pieces,
            files: package.files.len(),
            outputs: package.outputs,
            warnings: package.warnings,
        };
        let own = package.files.iter().map(|file| (manifest.key(&file.name), &file.name));
        let own = own.filter(|(key, _)| key.starts_with(&prefix)).map(|(key, name)| (key, out.join(name)));
        self.store_files(claim, running, own.collect()).await?;
        match self.ask_store(running, || self.store.publish(&claim.lease, &manifest)).await? {
            Published::Yes => Ok(Outcome::Published),
            Published::No => {
                // Cancelled first, or somebody else's by now: the settling write finds out which.
                running.stop(Stop::Cancelled);
                Err(Outcome::Stopped)
            }
        }
    }

    /// Writes local files to the object store.
    pub(super) async fn store_files(
        &self,
        claim: &Claim,
        running: &Running,
        files: Vec<(String, PathBuf)>,
    ) -> Result<(), Outcome> {
        let stored = futures::stream::iter(files)
            .map(async |(key, file)| self.objects.put_file(&claim.bucket, &key, &file).await)
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_collect::<Vec<()>>();
        let stored = tokio::select! {
            () = running.stop.cancelled() => return Err(Outcome::Stopped),
            stored = stored => stored,
        };
        stored.map_err(|error| error.failure("takes no bytes"))?;
        Ok(())
    }
}

/// Reads back and verifies what was encoded, where blocking is allowed.
pub(super) async fn package(plan: Plan, out: PathBuf) -> Result<Package, Failure> {
    let packaged = tokio::task::spawn_blocking(move || package::package(&plan, &out)).await;
    packaged.map_err(|error| Failure::new(FailureCode::Internal, "packaging failed").log(error))?
}
