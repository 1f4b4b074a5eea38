//! All of a job in one attempt; or, of a long one, its source and its plan.

use std::path::Path;

use millrace_wire::job::{Phase, Progress};
use millrace_wire::spec::Input;
use tracing::info;

use super::outputs::package;
use super::range::{File, check};
use super::{Outcome, Runner, Scratch};
use crate::failure::{Ended, Failure};
use crate::ffmpeg;
use crate::keys;
use crate::ladder::{self, Plan};
use crate::lease::{Running, Stop};
use crate::ranges::{self, RangePlan, SourceAt};
use crate::source::fetch::Arrived;
use crate::source::probe::{self, Probe};
use crate::source::stored;
use crate::store::{Claim, NewPart, Part};

impl Runner {
    pub(super) async fn whole(&self, claim: &Claim, running: &Running) -> Result<Outcome, Outcome> {
        let scratch = Scratch::create(self.scratch_of(claim))?;
        let input = scratch.input();
        self.fetch(claim, running, &input).await?;

        self.enter(running, Phase::Probing, None).await?;
        let probe = probe::probe(&self.ffmpeg, &input, &running.stop).await?;
        let plan = ladder::plan(&claim.spec, &probe, self.threads)?;
        if let Some(ranges) = self.cut(claim, &plan, &probe) {
            return self.split(claim, running, &input, (plan, ranges)).await;
        }
        running.work_seconds(plan.work_seconds);

        self.enter(running, Phase::Encoding, Some(plan.work_seconds)).await?;
        let report = |seen| running.progress(progress(&seen, plan.duration_s));
        let out = scratch.out();
        let encoded = self.ffmpeg.encode(&plan, &input, &out, &report, &running.stop).await;
        let encoded = encoded.map_err(|ended| ended.map(|failure| scratch.blame(failure)))?;
        self.cost.learn(plan.work_seconds, encoded.wall.as_secs_f64());
        self.metrics.encoded(&plan, &encoded);

        self.enter(running, Phase::Publishing, None).await?;
        let wanted = plan.wanted;
        let packaged = package(plan, out.clone()).await;
        let mut package = packaged.map_err(|failure| scratch.blame(failure))?;
        self.add_files(wanted, &mut package, &scratch, running).await?;
        self.add_thumbnails(wanted, &mut package, &scratch, running).await?;
        package.outputs.bytes = package.bytes();
        package.warnings.splice(0..0, encoded.warnings);
        self.publish(claim, running, &out, package, None).await
    }

    pub(super) async fn fetch(&self, claim: &Claim, running: &Running, into: &Path) -> Result<(), Ended> {
        let report = |seen| running.progress(source_progress(seen));
        if claim.spec.is_dual() && self.fetch_nearest(claim, running, into, &report).await? {
            return Ok(());
        }
        match &claim.spec.input {
            Input::Url(url) => {
                self.fetcher.fetch(url, into, &report, &running.stop).await?;
            }
            Input::Path(path) => {
                stored::fetch(&self.objects, path, into, self.stored, &report, &running.stop).await?;
            }
        }
        Ok(())
    }

    /// The ranges that a job is cut into, if it is. One whose outputs go to another pool's bucket stays in one piece: each
    /// worker would fetch its source from there.
    fn cut(&self, claim: &Claim, plan: &Plan, probe: &Probe) -> Option<Vec<ranges::Range>> {
        (claim.bucket == self.pool).then(|| ranges::cut(plan, probe, self.range?)).flatten()
    }

    /// Puts the source where every worker of the pool can read it, and hands the job over to them.
    async fn split(
        &self,
        claim: &Claim,
        running: &Running,
        input: &Path,
        (ladder, ranges): (Plan, Vec<ranges::Range>),
    ) -> Result<Outcome, Outcome> {
        let source = self.share(claim, running, input).await?;
        let plan = RangePlan { ladder, ranges, source };
        self.sources.adopt(&claim.lease.job_uid, input);
        let text = serde_json::to_string(&plan).expect("a plan is plain data");
        let parts = parts(&plan);
        info!(ranges = plan.ranges.len(), "cutting the job into ranges");
        if !self.ask_store(running, || self.store.split(&claim.lease, &text, &parts)).await? {
            // Cancelled first, or somebody else's by now: the settling write finds out which.
            running.stop(Stop::Cancelled);
            return Err(Outcome::Stopped);
        }
        Ok(Outcome::Split)
    }

    /// An upload to this pool lies well; whatever came from elsewhere is stored, for as long as the job takes.
    async fn share(&self, claim: &Claim, running: &Running, input: &Path) -> Result<SourceAt, Outcome> {
        let (bucket, file) = (claim.bucket.clone(), input.to_owned());
        let read = move || File::read(&file).map_err(|error| Failure::scratch("read the source", &error));
        let sha256 = Some(check(read).await?.sha256);
        if let Input::Path(path) = &claim.spec.input
            && let Some((pool, key)) = keys::split_input_path(path)
            && pool == bucket
        {
            return Ok(SourceAt { bucket, key: key.to_owned(), own: false, sha256 });
        }
        let key = keys::source(&claim.lease);
        self.store_files(claim, running, vec![(key.clone(), input.to_owned())]).await?;
        Ok(SourceAt { bucket, key, own: true, sha256 })
    }
}

/// The tasks of a plan. The sound comes first: it is one piece, however long.
fn parts(plan: &RangePlan) -> Vec<NewPart> {
    let sound = ranges::sound(&plan.ladder).map(|sound| NewPart {
        part: Part::Sound,
        work_seconds: sound.work_seconds,
        media_s: 0.0,
    });
    let ranges = plan.ranges.iter().zip(0..).map(|(range, index)| {
        let part = range.plan(&plan.ladder);
        NewPart { part: Part::Range(index), work_seconds: part.work_seconds, media_s: part.duration_s }
    });
    sound.into_iter().chain(ranges).collect()
}

/// How far a job is, by media time. It reaches 100 % only when it is published.
fn progress(seen: &ffmpeg::Progress, duration_s: f64) -> Progress {
    let media_seconds = seen.media.as_secs_f64().min(duration_s);
    let left = duration_s - media_seconds;
    Progress {
        percent: (100.0 * media_seconds / duration_s.max(1e-3)).min(99.0),
        media_seconds: Some(media_seconds),
        speed: seen.speed,
        eta_seconds: seen.speed.filter(|speed| *speed > 0.0).map(|speed| left / speed),
        ..Progress::default()
    }
}

/// How much of the source is here. Of the job itself that is nothing yet.
fn source_progress(seen: Arrived) -> Progress {
    Progress { source_bytes: Some(seen.bytes), source_bytes_total: seen.announced, ..Progress::default() }
}
