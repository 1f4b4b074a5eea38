//! A private directory in which outputs are made before they are outputs.
//!
//! What lies among an attempt's outputs is published. So joined segments and half-made files lie here, and only
//! what is whole and verified moves over; the rest goes when the bench does, however its work ends.

use std::fs::File;
use std::path::{Path, PathBuf};

use millrace_wire::job::FailureCode;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::failure::{Ended, Failure};
use crate::package::PackagedFile;
use crate::package::track::{Segment, Track};

/// The directory; removed with everything in it when dropped.
#[derive(Debug)]
pub(crate) struct Workbench(PathBuf);

impl Workbench {
    /// A new one in `parent`, which must exist.
    ///
    /// # Errors
    /// `scratch_unavailable`.
    pub(crate) fn create(parent: &Path) -> Result<Self, Failure> {
        let path = parent.join(format!("bench-{}", Uuid::now_v7()));
        std::fs::create_dir(&path)
            .map_err(|error| Failure::scratch("create a directory to work in", &error))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where a file of that name lies, or will.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Joins a track's initialisation segment and some of its segments to one file that ffmpeg can read. The kernel
    /// copies the bytes. ffmpeg's own ways to read many files as one hold all of them open, or need demuxers and
    /// protocols that are refused for good reasons.
    ///
    /// # Errors
    /// Cancelled, or `scratch_unavailable`.
    pub(crate) async fn join(
        &self,
        out_dir: &Path,
        track: &Track,
        segments: impl IntoIterator<Item = &Segment>,
        name: &str,
        cancel: &CancellationToken,
    ) -> Result<PathBuf, Ended> {
        let names = std::iter::once(&track.init).chain(segments.into_iter().map(|segment| &segment.name));
        let parts: Vec<PathBuf> = names.map(|name| out_dir.join(name)).collect();
        let (path, into) = (self.file(name), self.file(name));
        // Dropped with the future: nothing goes on copying for nobody.
        let cancel = cancel.child_token();
        let _stop = cancel.clone().drop_guard();
        let joined = tokio::task::spawn_blocking(move || join(&parts, &into, &cancel)).await;
        joined
            .map_err(|error| Failure::new(FailureCode::Internal, "joining segments failed").log(error))??;
        Ok(path)
    }

    /// Removes a file before the bench goes, to have its space.
    ///
    /// # Errors
    /// `scratch_unavailable`.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), Failure> {
        std::fs::remove_file(path).map_err(|error| Failure::scratch("remove joined segments", &error))
    }

    /// Moves a finished file among the outputs, which must be on the same file system.
    ///
    /// # Errors
    /// `verify_failed` when it is missing or empty; `scratch_unavailable`.
    pub(crate) fn hand_over(
        &self,
        from: &str,
        out_dir: &Path,
        name: &str,
        content_type: &'static str,
    ) -> Result<PackagedFile, Failure> {
        let path = self.file(from);
        let bytes = std::fs::metadata(&path).map(|meta| meta.len()).unwrap_or(0);
        if bytes == 0 {
            let failure =
                Failure::new(FailureCode::VerifyFailed, "ffmpeg did not write a file that it should");
            return Err(failure.log(from));
        }
        std::fs::rename(&path, out_dir.join(name))
            .map_err(|error| Failure::scratch("move a finished file", &error))?;
        Ok(PackagedFile { name: name.to_owned(), content_type, bytes })
    }
}

impl Drop for Workbench {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a directory to work in");
        }
    }
}

fn join(parts: &[PathBuf], into: &Path, cancel: &CancellationToken) -> Result<(), Ended> {
    let full = |error: std::io::Error| Failure::scratch("join segments", &error);
    let mut into = File::create_new(into).map_err(full)?;
    for part in parts {
        if cancel.is_cancelled() {
            return Err(Ended::Cancelled);
        }
        let mut part = File::open(part).map_err(full)?;
        std::io::copy(&mut part, &mut into).map_err(full)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track(segments: usize) -> Track {
        let segment = |number| Segment {
            name: format!("seg_0_{number:05}.m4s"),
            bytes: 1,
            start: 0,
            duration: 1,
            samples: 1,
            syncs: vec![0],
        };
        Track {
            init: "init_0.mp4".to_owned(),
            init_bytes: 1,
            timescale: 1,
            codec: String::new(),
            size: None,
            skip: 0,
            reordered: 0,
            segments: (1..=segments).map(segment).collect(),
        }
    }

    fn written(track: &Track, directory: &Path) {
        std::fs::write(directory.join(&track.init), "<init>").unwrap();
        for segment in &track.segments {
            std::fs::write(directory.join(&segment.name), format!("<{}>", segment.name)).unwrap();
        }
    }

    #[tokio::test]
    async fn ten_thousand_segments_are_joined_in_order_and_go_with_the_bench() {
        let (out, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let track = track(10_000);
        written(&track, out.path());
        let bench = Workbench::create(work.path()).unwrap();
        let never = CancellationToken::new();
        let path = bench.join(out.path(), &track, &track.segments, "joined", &never).await.unwrap();
        let joined = std::fs::read_to_string(path).unwrap();
        let want: String = track.segments.iter().map(|segment| format!("<{}>", segment.name)).collect();
        assert_eq!(joined, format!("<init>{want}"));
        drop(bench);
        assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_cancelled_or_impossible_join_says_so() {
        let (out, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let track = track(2);
        let bench = Workbench::create(work.path()).unwrap();
        let (never, now) = (CancellationToken::new(), CancellationToken::new());
        now.cancel();
        let missing = bench.join(out.path(), &track, &track.segments, "a", &never).await.unwrap_err();
        let Ended::Failed(missing) = missing else { panic!("{missing}") };
        assert_eq!(missing.code, FailureCode::ScratchUnavailable);
        written(&track, out.path());
        let cancelled = bench.join(out.path(), &track, &track.segments, "b", &now).await;
        assert_eq!(cancelled, Err(Ended::Cancelled));
        assert_eq!(
            Workbench::create(&out.path().join("init_0.mp4")).unwrap_err().code,
            FailureCode::ScratchUnavailable
        );
    }

    #[test]
    fn what_is_not_there_is_not_handed_over() {
        let (out, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bench = Workbench::create(work.path()).unwrap();
        std::fs::write(bench.file("empty"), "").unwrap();
        std::fs::write(bench.file("whole"), "text").unwrap();
        let hand_over = |name| bench.hand_over(name, out.path(), "x", "text/plain");
        assert_eq!(hand_over("missing").unwrap_err().code, FailureCode::VerifyFailed);
        assert_eq!(hand_over("empty").unwrap_err().code, FailureCode::VerifyFailed);
        assert_eq!(hand_over("whole").unwrap().bytes, 4);
        assert_eq!(std::fs::read_to_string(out.path().join("x")).unwrap(), "text");
    }
}
