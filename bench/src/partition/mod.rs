//! What is promised against the loss of a cloud, tried: two clouds in two network namespaces, the job store's primary in
//! one and its synchronous standby in the other, the line between them cut and joined, and then the first lost for good.
//!
//! Every job that had reached `dual`, by its client's own reading, must succeed and be readable by the survivors. Of those
//! that had not, only what was promised is asked: the store knows them, and none calls itself more than it is.

pub mod clouds;
pub mod jobs;
pub mod network;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_object_server::Seen;
use millrace_wire::copies::CopyState;
use millrace_wire::job::{Job, State};
use tokio::time::Instant;

use self::clouds::{Clouds, pool};
use self::network::Side;
use crate::Client;
use crate::clip::{self, Picture};

/// Long enough for a few small jobs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two submits while the line is cut.
const SUBMIT_EVERY: Duration = Duration::from_secs(1);
/// Two seconds of 180 lines: done in a moment.
const SMALL: Picture = Picture { width: 320, height: 180, rate: 25, seconds: 2.0 };
/// Some seconds of x264: it will not be done when its cloud is lost.
const HEAVY: Picture = Picture { width: 640, height: 360, rate: 30, seconds: 8.0 };
/// Jobs that wait or run in the first cloud when it is lost.
const AT_THE_LOSS: usize = 4;

/// How hard it is tried.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the line is cut.
    pub cut: Duration,
}

/// Runs it.
///
/// # Errors
/// Something cannot be started, or a promise is broken.
pub async fn run(options: &Options) -> Result<()> {
    let mut clouds = Clouds::start().await?;
    let done = Trial::new(&clouds).await;
    let done = match done {
        Ok(trial) => trial.all(&mut clouds, options).await,
        Err(error) => Err(error),
    };
    if done.is_err() {
        eprintln!("{}", clouds.logs());
    }
    done?;
    clouds.check()
}

/// The clients' side.
struct Trial {
    client: Client,
    clips: tempfile::TempDir,
}

impl Trial {
    async fn new(clouds: &Clouds) -> Result<Self> {
        let clips = tempfile::tempdir().context("make a directory")?;
        clip::generate(&clips.path().join("small.mp4"), &SMALL).await?;
        clip::generate(&clips.path().join("heavy.mp4"), &HEAVY).await?;
        Ok(Self { client: clouds.client()?, clips })
    }

    async fn upload(&self, to: &Client, clip: &str) -> Result<String> {
        jobs::upload(to, &self.clips.path().join(clip)).await
    }

    async fn all(&self, clouds: &mut Clouds, options: &Options) -> Result<()> {
        self.copies_are_read_where_they_are(clouds).await?;
        self.a_cut_heals(clouds, options.cut).await?;
        self.a_cloud_is_lost(clouds).await
    }

    /// With both clouds well: `dual` is reached, outputs are copied, and a reader in the other cloud gets its own copy.
    async fn copies_are_read_where_they_are(&self, clouds: &Clouds) -> Result<()> {
        let (first, second) = (clouds.worker(Side::First)?, clouds.worker(Side::Second)?);
        let input = self.upload(&first, "small.mp4").await?;
        let mut spec = jobs::spec("copied", &input, "dual", false);
        spec["replicate"] = serde_json::json!([pool(Side::Second), pool(Side::First)]);
        jobs::accepted(&first, &spec, PATIENCE).await?;
        let job = jobs::wait(&second, "copied", "copied", PATIENCE, |job| {
            reached(job) && job.copies.iter().any(|copy| copy.state == CopyState::Done)
        })
        .await?;
        let durability = job.durability.as_ref().context("no durability")?;
        ensure!(durability.pool.as_str() == pool(Side::Second), "the second copy is in {}", durability.pool);

        let objects = clouds.objects(Side::Second)?;
        objects.get("/.seen").await?.success()?;
        jobs::read_all(&second, &job).await?;
        let seen: Vec<Seen> = objects.get("/.seen").await?.success()?.json()?;
        let segments =
            seen.iter().filter(|seen| seen.method == "GET" && seen.target.contains(".m4s")).count();
        ensure!(segments > 0, "the second cloud's worker read no segment from its own bucket: {seen:?}");
        println!("copied: {segments} segments were read from the copy beside the reader");
        Ok(())
    }

    /// The line is cut while clients submit, and joined. Whatever was accepted ends.
    async fn a_cut_heals(&self, clouds: &Clouds, cut: Duration) -> Result<()> {
        let first = clouds.worker(Side::First)?;
        let input = self.upload(&first, "small.mp4").await?;
        for number in 0..3 {
            let id = format!("before-{number}");
            jobs::accepted(&self.client, &jobs::spec(&id, &input, "dual", true), PATIENCE).await?;
        }
        clouds.network.cut()?;
        let began = Instant::now();
        let (mut ids, mut posted) = (Vec::new(), tokio::task::JoinSet::new());
        let mut within = 0;
        while began.elapsed() < cut {
            let id = format!("cut-{}", ids.len());
            let spec = jobs::spec(&id, &input, "dual", false);
            let client = clouds.client()?;
            posted.spawn(async move {
                let tries = jobs::accepted(&client, &spec, cut + PATIENCE).await?;
                anyhow::Ok((tries, Instant::now()))
            });
            ids.push(id);
            tokio::time::sleep(SUBMIT_EVERY).await;
        }
        clouds.network.heal()?;
        let healed = Instant::now();
        let mut tries = 0;
        while let Some(posted) = posted.join_next().await {
            let (asked, at) = posted.context("a client died")??;
            tries += asked;
            within += usize::from(at < healed);
        }
        let accepted_after = healed.elapsed();
        for id in (0..3).map(|number| format!("before-{number}")).chain(ids.iter().cloned()) {
            let job = jobs::wait(&self.client, &id, "done", PATIENCE, |job| job.state.is_final()).await?;
            ensure!(job.state == State::Succeeded, "{id} is {:?}: {:?}", job.state, job.error);
        }
        println!(
            "cut: {} s without the line; {} of {} jobs accepted meanwhile, in {tries} tries, the rest within {:.1} s of its \
             return; all succeeded {:.1} s after it",
            cut.as_secs(),
            within,
            ids.len(),
            accepted_after.as_secs_f64(),
            healed.elapsed().as_secs_f64(),
        );
        Ok(())
    }

    /// The first cloud is lost with everything in it, and the standby promoted.
    async fn a_cloud_is_lost(&self, clouds: &mut Clouds) -> Result<()> {
        let first = clouds.worker(Side::First)?;
        let heavy = self.upload(&first, "heavy.mp4").await?;
        // One that succeeds before the loss, and whose outputs nobody copied.
        jobs::accepted(&first, &jobs::spec("uncopied", &heavy, "dual", true), PATIENCE).await?;
        jobs::wait(&first, "uncopied", "done and dual", PATIENCE, |job| {
            reached(job) && job.state == State::Succeeded
        })
        .await?;
        let mut ids = Vec::new();
        for number in 0..AT_THE_LOSS {
            let id = format!("dual-{number}");
            jobs::accepted(&first, &jobs::spec(&id, &heavy, "dual", true), PATIENCE).await?;
            ids.push(id);
        }
        for id in &ids {
            jobs::wait(&first, id, "dual", PATIENCE, reached).await?;
        }
        // And some in the last moment, of which nobody knows how far they come; one of them asks for no more than `single`.
        // They stand behind, for they will hold slots while they find that their input is lost.
        for (id, durability) in [("single", "single"), ("late-0", "dual"), ("late-1", "dual")] {
            let mut spec = jobs::spec(id, &heavy, durability, true);
            spec["priority"] = "batch".into();
            jobs::accepted(&first, &spec, PATIENCE).await?;
            ids.push(id.to_owned());
        }
        ids.push("uncopied".to_owned());
        let mut promised = BTreeSet::new();
        for id in &ids {
            if reached(&first.job(id).await?) {
                promised.insert(id.clone());
            }
        }
        clouds.lose_first().await?;
        let lost = Instant::now();
        clouds.promote()?;
        println!(
            "lost: the first cloud, with {} jobs in it of which {} had reached dual; the standby is promoted",
            ids.len(),
            promised.len()
        );
        self.the_promised_end(clouds, &ids, &promised, lost).await?;
        self.the_rest_is_told_honestly(&ids, &promised).await?;
        self.the_survivor_takes_new_jobs(clouds).await
    }

    async fn the_promised_end(
        &self,
        clouds: &Clouds,
        ids: &[String],
        promised: &BTreeSet<String>,
        lost: Instant,
    ) -> Result<()> {
        for id in ids.iter().filter(|id| promised.contains(*id)) {
            let ended = |job: &Job| job.state.is_final();
            let job = jobs::wait(&self.client, id, "done", PATIENCE * 2, ended).await?;
            ensure!(
                job.state == State::Succeeded,
                "{id} had reached dual and is {:?}: {:?}",
                job.state,
                job.error
            );
            if self.is_lost_with_its_bucket(&job).await? {
                // It had succeeded before. Its client asks for it to be made again, from the second copy.
                let again = self.client.post(&format!("/jobs/{id}/retry"), &serde_json::json!({})).await?;
                again.success().with_context(|| format!("make {id} again"))?;
                jobs::wait(&self.client, id, "done again", PATIENCE * 2, ended).await?;
                println!("lost: {id} had succeeded in the lost cloud, and was made again on demand");
            }
            let job = self.client.job(id).await?;
            ensure!(job.state == State::Succeeded, "{id} is {:?}: {:?}", job.state, job.error);
            let bytes = jobs::read_all(&self.client, &job).await?;
            println!("lost: {id} succeeded in {} and its {bytes} bytes are readable", job.pool);
        }
        println!(
            "lost: all {} that were promised are done after {:.1} s",
            promised.len(),
            lost.elapsed().as_secs_f64()
        );
        let copied = self.client.job("copied").await?;
        jobs::read_all(&self.client, &copied).await.context("read what was copied before the loss")?;
        let twice = clouds.sql(
            "SELECT count(*) FROM (SELECT job_uid FROM event WHERE kind = 'succeeded' GROUP BY job_uid, body->>'epoch' \
             HAVING count(*) > 1) twice",
        )?;
        ensure!(twice == "0", "{twice} jobs were published twice");
        Ok(())
    }

    async fn is_lost_with_its_bucket(&self, job: &Job) -> Result<bool> {
        let master = job.outputs.as_ref().and_then(|outputs| outputs.hls.clone()).context("no playlist")?;
        let answer = self.client.get(&master).await;
        Ok(!answer.is_ok_and(|answer| answer.status.is_success()))
    }

    /// Whoever had not reached `dual` is in the store all the same, and none of them says what is not so.
    async fn the_rest_is_told_honestly(&self, ids: &[String], promised: &BTreeSet<String>) -> Result<()> {
        for id in ids.iter().filter(|id| !promised.contains(*id)) {
            let job =
                self.client.job(id).await.with_context(|| format!("{id} was accepted, and is not known"))?;
            // It may have reached it between our last look and the end.
            let reached = reached(&job);
            if reached {
                jobs::wait(&self.client, id, "done", PATIENCE, |job| job.state == State::Succeeded).await?;
            }
            let error = job.error.as_ref().map_or("", |error| error.code.as_str());
            println!(
                "lost: {id} had not reached dual when we looked; it is {} ({error}), reached: {reached}",
                job.state.as_str()
            );
            if job.state == State::Succeeded && !reached {
                bail!("{id} succeeded without any input: {job:?}");
            }
        }
        Ok(())
    }

    /// And life goes on in one cloud: without a standby nothing is called `dual`.
    async fn the_survivor_takes_new_jobs(&self, clouds: &Clouds) -> Result<()> {
        let second = clouds.worker(Side::Second)?;
        let input = self.upload(&second, "small.mp4").await?;
        jobs::accepted(&self.client, &jobs::spec("after", &input, "dual", false), PATIENCE).await?;
        let job = jobs::wait(&self.client, "after", "done", PATIENCE, |job| job.state.is_final()).await?;
        ensure!(job.state == State::Succeeded, "after the loss: {job:?}");
        ensure!(!reached(&job), "there is no second cloud, and yet it calls itself dual");
        jobs::read_all(&self.client, &job).await?;
        Ok(())
    }
}

fn reached(job: &Job) -> bool {
    job.durability.as_ref().is_some_and(|durability| durability.reached_at.is_some())
}
