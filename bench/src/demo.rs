//! The main job once, from end to end, for somebody who sees Millrace for the first time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use millrace_wire::job::{Job, Phase, State};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::clip::{self, Clip};
use crate::progress::Progress;
use crate::table::{self, Row};
use crate::{Client, System, media};

/// Seconds of the clip that the small jobs get.
const SHORT_SECONDS: u32 = 1;
/// Small jobs in each of the two batches: enough for a share to be more than luck.
const BATCH: usize = 12;
/// Between two small jobs: a burst would fill every slot, and then it is the queues that decide, not the weights.
const PACE: Duration = Duration::from_millis(1500);
/// How often the jobs are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// What a pool's weight is changed to between the batches, from 1.
const WEIGHT_AFTER: f64 = 0.02;
/// A share that falls by less than this part of a batch is called luck and not an effect.
const FALL_MIN: f64 = 0.25;
/// Longest time for all jobs together.
const JOBS_PATIENCE: Duration = Duration::from_secs(600);
/// Longest time for a reload; the gateway looks about once a second.
const RELOAD_PATIENCE: Duration = Duration::from_secs(15);
/// Tries to place one job while every queue is full.
const SUBMIT_TRIES: usize = 20;

/// What the demo may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything goes below this directory: the system into `demo`, which is emptied first, the clip into `cache`.
    pub data: PathBuf,
}

/// Runs it.
///
/// # Errors
/// The step that failed, and where the logs are.
pub async fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    println!("1/7   Getting a clip …");
    let clip = clip::get(&options.data.join("cache")).await?;
    println!("      {}", clip.about);

    println!("2/7   Starting one gateway and two pools (aws, gcp) of two workers each, on loopback …");
    let directory = options.data.join("demo");
    let builder = System::builder().pool("aws", 2).pool("gcp", 2).worker_arg("--queue-max", "16");
    let mut system = builder.data(&directory).empty_first().start().await?;
    println!("      the gateway serves at {}; logs are in {}", system.gateway_url(), system.logs().display());

    let logs = system.logs();
    let failed = || format!("the demo failed; the logs are in {}", logs.display());
    drive(&mut system, &clip, &directory).await.with_context(failed)?;

    println!("7/7   Stopping everything …");
    system.stop().await.with_context(failed)?;
    system.check_logs().with_context(failed)?;
    let unseen = if crate::procfs::AVAILABLE { "" } else { " (stray ffmpeg not looked for: no /proc here)" };
    println!("      nothing is left running{unseen}. Done in {:.0} s.", started.elapsed().as_secs_f64());
    Ok(())
}

async fn drive(system: &mut System, clip: &Clip, directory: &Path) -> Result<()> {
    let client = system.client()?;
    let mut progress = Progress::new();

    progress.say("3/7   Uploading it through the gateway, and the first seconds of it for smaller jobs …");
    let short = directory.join("short.mp4");
    clip::cut(&clip.path, &short, SHORT_SECONDS).await.context("cut the short clip")?;
    let main_input = upload(&client, &progress, &clip.path).await?;
    let short_input = upload(&client, &progress, &short).await?;

    progress.say(&format!("4/7   Submitting the main job (whole ladder) and {BATCH} small ones (360p) …"));
    let source = media::inspect(&clip.path).await.context("look at the clip")?;
    let seconds = source.duration_s.ceil() as u64;
    let bytes_of = |path: &Path| fs::metadata(path).map(|meta| meta.len()).context("look at the clip");
    let (bytes, short_bytes) = (bytes_of(&clip.path)?, bytes_of(&short)?);
    // The hints let the gateway weigh, before anybody has looked at the input, what moving and encoding it costs.
    let main = json!({ "job_id": "main", "input_path": main_input, "duration_hint_s": seconds, "size_hint_bytes": bytes });
    let main = submit(&client, &progress, &main).await?;
    progress.show(&main);
    // A job that was accepted this very moment still counts as waiting in what the gateway last heard, and its whole pool
    // as that busy: what is counted then is that moment, and not the weights.
    let encodes = |job: &Job| job.phase == Some(Phase::Encoding) || job.state.is_final();
    let main = client.wait_for("main", "encoding", JOBS_PATIENCE, encodes).await?;
    progress.show(&main);
    let before = batch(&client, &mut progress, "first", (&short_input, short_bytes)).await?;

    // The pool without the main job: most small jobs go there, so that its share has room to fall. Chosen before anything
    // is counted: choosing the pool that got most would show a fall by chance alone.
    let lowered = if main.pool.as_str() == "aws" { "gcp" } else { "aws" };
    let generation = system.generation().await?;
    system.rewrite_routing(|routing| routing.pool(lowered).weight = WEIGHT_AFTER)?;
    let generation = system.wait_reloaded(generation, RELOAD_PATIENCE).await?;
    progress.say(&format!(
        "5/7   While they run: {lowered}'s weight in the routing file went from 1 to {WEIGHT_AFTER} (generation {generation} \
         is in force); {BATCH} more small jobs …"
    ));
    let after = batch(&client, &mut progress, "next", (&short_input, short_bytes)).await?;

    let ids: Vec<String> =
        std::iter::once(&main).chain(&before).chain(&after).map(|job| job.job_id.to_string()).collect();
    let jobs = finish(&client, &mut progress, &ids).await?;
    progress.clear();
    let rows = jobs.iter().map(Row::of).collect::<Result<Vec<_>>>()?;
    println!("{}", table::render(&rows));
    println!("      {}", shares(lowered, &before, &after));

    println!("6/7   Checking the main job's stream with ffprobe, through the gateway …");
    let frames = media::packets(&clip.path).await.context("look at the clip")?;
    let picture = source.videos().next().context("the clip has no picture")?;
    let seconds = frames.iter().filter(|p| p.stream_index == picture.index).map(|p| p.duration_s).sum();
    check(system, &client, &jobs[0], seconds).await
}

async fn upload(client: &Client, progress: &Progress, path: &Path) -> Result<String> {
    let name = path.file_name().context("a clip has a name")?.to_string_lossy().into_owned();
    let ticket = client.upload_ticket(&name, "video/mp4").await?;
    let bytes = fs::metadata(path).with_context(|| format!("open {}", path.display()))?.len();
    let bar = progress.upload(&name, bytes);
    let moving = bar.clone();
    let started = Instant::now();
    let answer = client.put_file(&ticket, "video/mp4", path, move |sent| moving.set_position(sent)).await?;
    bar.finish_and_clear();
    answer.success().with_context(|| format!("upload {name}"))?;
    let (mib, seconds) = (bytes as f64 / f64::from(1 << 20), started.elapsed().as_secs_f64());
    progress.say(&format!("      {name}: {mib:.1} MiB in {seconds:.1} s, now {}", ticket.input_path));
    Ok(ticket.input_path)
}

/// Submits as a patient client does: comes back when it was told to.
async fn submit(client: &Client, progress: &Progress, spec: &Value) -> Result<Job> {
    for _ in 0..SUBMIT_TRIES {
        let answer = client.process(spec).await?;
        if answer.status != StatusCode::TOO_MANY_REQUESTS {
            return answer.success().context("submit a job")?.job();
        }
        let wait = answer.retry_after().context("a 429 without Retry-After")?;
        progress.say(&format!("      every queue is full; trying again in {} s, as told", wait.as_secs()));
        tokio::time::sleep(wait).await;
    }
    bail!("every queue was still full after {SUBMIT_TRIES} tries");
}

async fn batch(
    client: &Client,
    progress: &mut Progress,
    name: &str,
    (input, bytes): (&str, u64),
) -> Result<Vec<Job>> {
    let mut jobs = Vec::with_capacity(BATCH);
    for number in 1..=BATCH {
        let spec = json!({
            "job_id": format!("{name}-{number}"), "input_path": input, "resolutions": ["360p"],
            "duration_hint_s": SHORT_SECONDS, "size_hint_bytes": bytes,
        });
        let job = submit(client, progress, &spec).await?;
        progress.show(&job);
        jobs.push(job);
        watch(client, progress, PACE).await?;
    }
    Ok(jobs)
}

/// Lets time pass, and shows meanwhile how all jobs stand.
async fn watch(client: &Client, progress: &mut Progress, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        for id in progress.unfinished() {
            progress.show(&client.job(&id).await?);
        }
        progress.tick();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

/// Waits until all have ended, and refuses any end but success.
async fn finish(client: &Client, progress: &mut Progress, ids: &[String]) -> Result<Vec<Job>> {
    let deadline = Instant::now() + JOBS_PATIENCE;
    let mut ended: BTreeMap<&str, Job> = BTreeMap::new();
    while ended.len() < ids.len() {
        for id in ids {
            if ended.contains_key(id.as_str()) {
                continue;
            }
            let job = client.job(id).await?;
            progress.show(&job);
            if job.state.is_final() {
                ended.insert(id, job);
            }
        }
        progress.tick();
        if Instant::now() > deadline {
            bail!("{} of {} jobs have not ended after {JOBS_PATIENCE:?}", ids.len() - ended.len(), ids.len());
        }
        tokio::time::sleep(LOOK).await;
    }
    let jobs: Vec<Job> = ids.iter().filter_map(|id| ended.remove(id.as_str())).collect();
    if let Some(job) = jobs.iter().find(|job| job.state != State::Succeeded) {
        let error = job.error.as_ref().map_or(String::new(), |error| format!(": {}", error.detail));
        bail!("job {} ended as {}{error}", job.job_id, job.state.as_str());
    }
    Ok(jobs)
}

/// Where the gateway sent the batches, as counted from its answers, and whether that is more than luck.
fn shares(pool: &str, before: &[Job], after: &[Job]) -> String {
    let count = |jobs: &[Job]| jobs.iter().filter(|job| job.pool.as_str() == pool).count();
    let share = |jobs: &[Job]| count(jobs) as f64 / jobs.len().max(1) as f64;
    let verdict = if share(before) - share(after) >= FALL_MIN {
        "its share followed the weight"
    } else {
        "its share did NOT clearly fall this time"
    };
    format!(
        "shares: of the first batch {} of {} went to {pool} (weight 1), of the second {} of {} (weight {WEIGHT_AFTER}): \
         {verdict}",
        count(before),
        before.len(),
        count(after),
        after.len()
    )
}

/// Reads the stream as a player would, and compares it with what the job says and how long the source's picture is.
async fn check(system: &System, client: &Client, job: &Job, source_s: f64) -> Result<()> {
    let outputs = job.outputs.as_ref().context("the main job has no outputs")?;
    let hls = outputs.hls.as_deref().context("the main job gave no HLS stream")?;
    let url = client.url(hls)?;
    let stream = media::inspect(url.as_str()).await.context("read the master playlist")?;
    let packets = media::packets(url.as_str()).await.context("read every segment")?;
    for rendition in &outputs.renditions {
        let size = (rendition.width, rendition.height);
        let video = stream.videos().find(|video| (video.width, video.height) == size);
        let video =
            video.with_context(|| format!("ffprobe sees no {} ({size:?}) in the stream", rendition.name))?;
        let frames: Vec<_> = packets.iter().filter(|packet| packet.stream_index == video.index).collect();
        let duration: f64 = frames.iter().map(|packet| packet.duration_s).sum();
        let keys = frames.iter().filter(|packet| packet.key).count();
        println!(
            "      {:>5}: {}×{} {} {:.3} s, {} frames, {keys} of them keyframes, peak {} kbit/s",
            rendition.name,
            video.width,
            video.height,
            video.codec_name,
            duration,
            frames.len(),
            rendition.bandwidth / 1000
        );
        // One frame, and what the rounding of its own length adds up to.
        if (duration - source_s).abs() > 1.1 / video.frame_rate().max(1.0) {
            bail!("{} lasts {duration:.3} s, but the source's picture {source_s:.3} s", rendition.name);
        }
    }
    if stream.videos().count() != outputs.renditions.len() {
        bail!("ffprobe sees {} pictures, the job says {}", stream.videos().count(), outputs.renditions.len());
    }
    let dash = outputs.dash.as_deref().context("the main job gave no DASH manifest")?;
    let same = media::inspect(client.url(dash)?.as_str()).await.context("read the DASH manifest")?;
    if same.videos().count() != outputs.renditions.len() || same.audios().count() == 0 {
        bail!("ffprobe does not see in the DASH manifest what it sees in the playlist");
    }
    println!(
        "      the DASH manifest names the same {} renditions over the same segments",
        same.videos().count()
    );
    let poster = outputs.poster.as_deref().context("the main job gave no poster")?;
    let poster = client.get(poster).await?.success().context("read the poster")?.body;
    println!("      poster ({} KiB) and sprites for the seek bar are there", poster.len() >> 10);
    let master = client.get(hls).await?.success().context("read the master playlist")?.body;
    let bytes = outputs.bytes as f64 / f64::from(1 << 20);
    match file_that_holds(&system.objects(), &master) {
        Some(path) => {
            println!("      it lies in {} ({bytes:.1} MiB)", path.parent().unwrap_or(&path).display());
            println!("      play it with: ffplay {}", path.display());
        }
        None => println!("      it lies below {} ({bytes:.1} MiB)", system.objects().display()),
    }
    println!("      it was served at {url}");
    println!(
        "      `make up` keeps such a system running, with a page at http://localhost:8080/ to drop files on"
    );
    Ok(())
}

/// The one playlist on disk that is the same as what was served.
fn file_that_holds(directory: &Path, content: &[u8]) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            file_that_holds(&path, content)
        } else {
            let playlist = path.extension().is_some_and(|e| e == "m3u8");
            (playlist && fs::read(&path).is_ok_and(|bytes| bytes == content)).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(pools: &[&str]) -> Vec<Job> {
        let job = |pool: &&str| Job { pool: pool.parse().unwrap(), ..table::tests::job("queued") };
        pools.iter().map(job).collect()
    }

    #[test]
    fn the_shares_are_counted_and_not_flattered() {
        let said = |before: &[&str], after: &[&str]| shares("aws", &placed(before), &placed(after));
        let followed = said(&["aws", "gcp", "aws", "gcp"], &["gcp", "gcp", "aws", "gcp"]);
        assert!(followed.contains("2 of 4") && followed.contains("1 of 4"), "{followed}");
        assert!(followed.contains("followed"), "{followed}");
        assert!(said(&["aws", "gcp"], &["aws", "gcp"]).contains("did NOT"));
        let luck = said(&["aws", "aws", "gcp", "gcp", "gcp"], &["aws", "gcp", "gcp", "gcp", "gcp"]);
        assert!(luck.contains("did NOT"), "one job of five is luck: {luck}");
    }

    #[test]
    fn the_served_playlist_is_found_on_disk_by_its_content() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("a/master.m3u8"), "other").unwrap();
        fs::write(directory.path().join("a/b/master.m3u8"), "this").unwrap();
        let found = file_that_holds(directory.path(), b"this").unwrap();
        assert!(found.ends_with("a/b/master.m3u8"));
        assert_eq!(file_that_holds(directory.path(), b"none"), None);
    }
}
