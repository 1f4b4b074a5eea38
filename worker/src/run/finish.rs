//! Putting a long job together: what its parts left is fetched, held to what they said and to the plan, and published.
//!
//! Nothing is joined: segments stay where their makers put them, under the names that they have, and the manifest says
//! where that is. They are fetched because they are read back like those of a job in one piece, because thumbnails and
//! progressive files are made of them, and because what the object store gives is what players will get.

use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};
use millrace_wire::job::{FailureCode, Phase};
use tracing::{info, warn};

use super::outputs::{FILES_IN_FLIGHT, package};
use super::range::{File, Left, check, read_plan};
use super::{Outcome, Runner, Scratch};
use crate::failure::Failure;
use crate::ffmpeg::{Damage, args};
use crate::keys;
use crate::lease::{Running, Stop};
use crate::objects;
use crate::package::track::Segment;
use crate::package::{self, Package};
use crate::ranges::RangePlan;
use crate::store::{Claim, Done, Lease, Part, Pieces};

/// What one part left.
struct Piece {
    done: Done,
    left: Left,
}

impl Runner {
    pub(super) async fn finish(&self, claim: &Claim, running: &Running) -> Result<Outcome, Outcome> {
        let plan = read_plan(claim)?;
        self.enter(running, Phase::Publishing, None).await?;
        let results = self.ask_store(running, || self.store.results(&claim.lease.job_uid)).await?;
        let pieces = read(results, &plan)?;
        check_inits(&pieces, &plan)?;
        let mut damage = Damage::default();
        pieces.iter().for_each(|piece| damage.add(&piece.left.damage));
        let damaged = damage.judge(&plan.ladder)?;

        let scratch = Scratch::create(self.scratch_of(claim))?;
        let out = scratch.out();
        let mut lost = Vec::new();
        for piece in &pieces {
            if !self.bring(claim, running, piece, &out).await? {
                lost.push(piece.done.lease.clone());
            }
        }
        if !lost.is_empty() {
            return self.take_back(claim, running, &lost).await;
        }
        let wanted = plan.ladder.wanted;
        let packaged = package(plan.ladder.clone(), out.clone()).await;
        let mut package = packaged.map_err(|failure| scratch.blame(failure))?;
        for range in &plan.ranges {
            package::check_joint(plan.ladder.picture.as_ref(), range, &package.pictures)?;
        }
        self.add_files(wanted, &mut package, &scratch, running).await?;
        self.add_thumbnails(wanted, &mut package, &scratch, running).await?;
        package.outputs.bytes = package.bytes();
        package.warnings.splice(0..0, damaged);
        let found = wanted.stream.then(|| where_segments_lie(&pieces, &plan, &package));
        let streams = found.is_some();
        let outcome = self.publish(claim, running, &out, package, found).await?;
        self.clear(claim, &plan, streams).await;
        Ok(outcome)
    }

    /// Fetches what a part left, and holds it to what the part said. `false`: it is not there, or not as it was left.
    async fn bring(
        &self,
        claim: &Claim,
        running: &Running,
        piece: &Piece,
        out: &Path,
    ) -> Result<bool, Outcome> {
        let prefix = keys::attempt_prefix(piece.done.part, &piece.done.lease);
        // All initialisation segments of a rendition are one.
        let again = |name: &str| args::parse_segment_name(name).is_none() && out.join(name).exists();
        let wanted = piece.left.files.iter().filter(|(name, _)| !again(name));
        let wanted: Vec<(String, File)> = wanted.map(|(name, file)| (name.clone(), file.clone())).collect();
        let brought = futures::stream::iter(wanted)
            .map(async |(name, file)| {
                let (key, path) = (format!("{prefix}/{name}"), out.join(&name));
                // Twice: bytes may change on their way, too, and a range is dearer than its files.
                for _ in 0..2 {
                    match self.objects.get_file(&claim.bucket, &key, &path, file.bytes, &|_, _| {}).await {
                        Ok(_) => {}
                        Err(objects::Error::NotFound | objects::Error::TooLarge { .. }) => break,
                        Err(objects::Error::Local { verb, source }) => {
                            return Err(Failure::scratch(verb, &source));
                        }
                        Err(error) => return Err(error.failure("gives no bytes")),
                    }
                    let path = path.clone();
                    let is = check(move || {
                        File::read(&path).map_err(|error| Failure::scratch("read a segment", &error))
                    });
                    if is.await? == file {
                        return Ok(true);
                    }
                }
                warn!(key, "an object is not there as it was left");
                Ok(false)
            })
            .buffer_unordered(FILES_IN_FLIGHT)
            .try_collect::<Vec<bool>>();
        tokio::select! {
            () = running.stop.cancelled() => Err(Outcome::Stopped),
            brought = brought => Ok(brought?.iter().all(|there| *there)),
        }
    }

    /// Has parts done again whose objects are lost.
    async fn take_back(&self, claim: &Claim, running: &Running, lost: &[Lease]) -> Result<Outcome, Outcome> {
        warn!(parts = lost.len(), "what they left is lost: they are done again");
        let detail = "the object store lost what a part of the job had left there";
        if self.ask_store(running, || self.store.take_back(&claim.lease, lost, detail)).await? {
            return Ok(Outcome::TakenBack);
        }
        // Cancelled first, or somebody else's by now: the settling write finds out which.
        running.stop(Stop::Cancelled);
        Err(Outcome::Stopped)
    }

    /// Removes what nobody needs any more of a published job; what is left of it, the sweeper finds.
    async fn clear(&self, claim: &Claim, plan: &RangePlan, streams: bool) {
        let job = keys::job_prefix(&claim.lease.job_uid);
        let mut unneeded = vec![keys::sources_prefix(&claim.lease.job_uid)];
        if !streams {
            let ranges = (0..plan.ranges.len()).map(|index| Part::Range(index as u32));
            unneeded.extend(ranges.chain([Part::Sound]).map(|part| format!("{job}/{}", part.folder())));
        }
        for prefix in unneeded {
            if let Err(error) = self.objects.delete_below(&claim.bucket, &prefix).await {
                warn!(%error, prefix, "cannot remove what the job needs no more");
            }
        }
        info!(ranges = plan.ranges.len(), "put together");
    }
}

fn wrong(what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::VerifyFailed, "the parts of the job are not what was planned").log(what)
}

/// What all parts left, in order; each of the plan's must be there, once.
fn read(results: Vec<Done>, plan: &RangePlan) -> Result<Vec<Piece>, Failure> {
    let mut pieces = results
        .into_iter()
        .map(|done| {
            let left = serde_json::from_str(&done.result).map_err(wrong)?;
            Ok(Piece { done, left })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    pieces.sort_by_key(|piece| piece.done.part);
    let parts: Vec<Part> = pieces.iter().map(|piece| piece.done.part).collect();
    let ranges = (0..plan.ranges.len()).map(|index| Part::Range(index as u32));
    let wanted: Vec<Part> = ranges.chain(plan.ladder.audio.as_ref().map(|_| Part::Sound)).collect();
    if parts != wanted { Err(wrong(format_args!("{parts:?} are done of {wanted:?}"))) } else { Ok(pieces) }
}

/// Every range must have the initialisation segments of the first, byte for byte: players read them once.
fn check_inits(pieces: &[Piece], plan: &RangePlan) -> Result<(), Failure> {
    let inits = |piece: &Piece| -> Vec<Option<File>> {
        (0..plan.ladder.rungs().len())
            .map(|rung| piece.left.files.get(&args::init_name(rung)).cloned())
            .collect()
    };
    let mut ranges = pieces.iter().filter(|piece| matches!(piece.done.part, Part::Range(_)));
    let first = ranges.next().map(inits).unwrap_or_default();
    match ranges.find(|piece| inits(piece) != first) {
        Some(other) => Err(wrong(format_args!("{:?} begins in another way than the first", other.done.part))),
        None if first.iter().any(Option::is_none) => Err(wrong("a range without initialisation segments")),
        None => Ok(()),
    }
}

/// Whose segments are published as they are. The last ones may have been joined to one.
fn where_segments_lie(pieces: &[Piece], plan: &RangePlan, package: &Package) -> Pieces {
    let of = |piece: &Piece| piece.done.lease.epoch;
    let ranges = pieces.iter().filter(|piece| matches!(piece.done.part, Part::Range(_)));
    let sound = pieces.iter().find(|piece| piece.done.part == Part::Sound).zip(package.sound.as_ref());
    let is_left_by = |piece: &Piece, segment: &Segment| {
        piece.left.files.get(&segment.name).is_some_and(|file| file.bytes == segment.bytes)
    };
    let unchanged = |piece: &Piece, segments: &[Segment]| {
        segments.iter().take_while(|segment| is_left_by(piece, segment)).count()
    };
    let last = ranges.clone().next_back().zip(package.pictures.first());
    let last = last.and_then(|(piece, track)| {
        let (last, before) = track.segments.split_last()?;
        (!is_left_by(piece, last)).then_some(before.len())
    });
    let segment_frames = plan.ladder.picture.as_ref().map_or(1, |picture| picture.segment_frames);
    Pieces {
        pictures: plan.ladder.rungs().len(),
        segments: (plan.ranges[0].frames / u64::from(segment_frames.max(1))) as usize,
        ranges: ranges.map(of).collect(),
        sound: sound.map(|(piece, track)| (of(piece), unchanged(piece, &track.segments))),
        pictures_to: last,
    }
}
