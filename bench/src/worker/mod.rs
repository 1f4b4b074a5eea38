//! The worker's bench: what a job costs beside the same ffmpeg by hand, and beside one ffmpeg per rendition.
//!
//! CPU time is what is compared, and ratios of it: wall times on a machine with other work say little. Whatever makes a
//! machine slow for a while meets all sides alike, because they take turns, round by round. Rejected: instruction
//! counts, which virtual machines often do not give.
//!
//! In the order of a run: [`source`] serves the clip, [`alone`] is the worker and measures its jobs, [`command`] turns
//! its arguments into the commands by hand, [`quality`] compares the pictures, [`figures`] judges, [`report`] shows.

pub mod alone;
pub mod command;
pub mod figures;
pub mod quality;
pub mod report;
pub mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::process::Command;

use self::alone::{Alone, Done};
use self::command::{Ladder, shell};
use self::figures::{Cost, Round, cpu_verdicts, quality_verdicts};
use self::report::{Commands, Report};
use self::source::Source;
use crate::clip::{self, Clip};
use crate::procfs::{self, Cpu};
use crate::{binaries, media};

/// How long the idle worker is watched.
const IDLE_TIME: Duration = Duration::from_secs(5);
/// Longest time for one command by hand.
const BY_HAND_PATIENCE: Duration = Duration::from_secs(3600);

/// What the bench may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// A clip of one's own, instead of the demo's.
    pub clip: Option<PathBuf>,
    /// Only so many seconds of it, cut without encoding.
    pub seconds: Option<u32>,
    /// How often everything is measured.
    pub runs: u32,
    /// The demo's clip is kept in `cache` below.
    pub data: PathBuf,
    /// Where `worker.json` goes, and what is worked on meanwhile.
    pub out: PathBuf,
    /// The worker's program; else the one beside this program.
    pub worker: Option<PathBuf>,
}

/// Runs it, prints the report and writes `worker.json`.
///
/// # Errors
/// A limit that is broken, or a step that failed.
pub async fn run(options: &Options) -> Result<()> {
    if !procfs::AVAILABLE {
        bail!("this needs a /proc to read CPU times from");
    }
    let program = match &options.worker {
        Some(program) => program.clone(),
        None => {
            let this = std::env::current_exe().context("find this program's own path")?;
            binaries::find(this.parent().context("this program's path has no directory")?, "millrace-worker")?
        }
    };
    let make = || format!("make {}", options.out.display());
    fs::create_dir_all(&options.out).with_context(make)?;
    let out = options.out.canonicalize().with_context(make)?;
    // First of all: it locks the directory, and everything else goes below it.
    let work = out.join("worker");
    let worker = Alone::start(program.clone(), &work).await?;
    let clip = clip(options, &out).await?;
    println!("clip: {}", clip.about);
    let bench = Bench { source: Source::serve(&clip.path).await?, worker, work };
    let mut report = bench.measure(options, &clip).await?;
    report.worker = program.display().to_string();
    bench.worker.stop().await?;
    // A dozen jobs are a gigabyte; what was compared stays, so that the command can be run again.
    let objects = bench.work.join("objects");
    fs::remove_dir_all(&objects).with_context(|| format!("remove {}", objects.display()))?;
    println!("\n{}", report.text());
    let path = out.join("worker.json");
    let json = serde_json::to_string_pretty(&report).context("write the report as JSON")?;
    fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
    println!("\nall of it is in {}", path.display());
    let broken = report.broken();
    if !broken.is_empty() {
        bail!("{} of {} limits are broken: {}", broken.len(), report.verdicts.len(), broken.join("; "));
    }
    Ok(())
}

async fn clip(options: &Options, out: &Path) -> Result<Clip> {
    let clip = match &options.clip {
        Some(path) => {
            let path = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
            Clip { about: path.display().to_string(), path }
        }
        None => {
            let cache = options.data.join("cache");
            let clip = clip::get(&cache).await?;
            // The commands by hand run in other directories.
            let path = clip.path.canonicalize().with_context(|| format!("open {}", clip.path.display()))?;
            Clip { path, about: clip.about }
        }
    };
    let Some(seconds) = options.seconds else { return Ok(clip) };
    let path = out.join("clip.mp4");
    clip::cut(&clip.path, &path, seconds).await.context("cut the clip")?;
    Ok(Clip { path, about: format!("the first {seconds} s of {}", clip.about) })
}

/// What all measurements need.
struct Bench {
    source: Source,
    worker: Alone,
    work: PathBuf,
}

impl Bench {
    async fn measure(&self, options: &Options, clip: &Clip) -> Result<Report> {
        let load_before = load_average();
        let clip_seconds = media::inspect(&clip.path).await.context("look at the clip")?.duration_s;
        let worker_idle_cpu_per_s = self.worker.idle_cpu_per_s(IDLE_TIME).await?;
        // Not counted: it fills the caches, and shows how the worker calls ffmpeg.
        println!("one job to warm up …");
        let first = self.job("warm-up", &json!({})).await?;
        let ladder = Ladder::bare(&first.command_line, &clip.path)?;
        let separate = ladder.separate()?;
        let by_hand = [&[ladder.arguments().to_vec()][..], &separate[..]].concat();
        let directories: Vec<PathBuf> = std::iter::once("ladder".to_owned())
            .chain((0..separate.len()).map(|index| format!("separate-{index}")))
            .map(|name| self.work.join(name))
            .collect();

        let mp4 = json!({ "output_format": ["hls", "mp4"] });
        let mut rounds = Vec::new();
        for number in 1..=options.runs {
            let mut costs = Vec::new();
            for (arguments, directory) in by_hand.iter().zip(&directories) {
                costs.push(run_by_hand(arguments, directory).await?);
            }
            let (ladder, separate) = costs.split_first().context("there is always the ladder")?;
            let separate = Cost {
                cpu_s: separate.iter().map(|cost| cost.cpu_s).sum(),
                wall_s: separate.iter().map(|cost| cost.wall_s).sum(),
            };
            let job = self.job(&format!("plain-{number}"), &json!({})).await?.cost;
            let job_mp4 = self.job(&format!("mp4-{number}"), &mp4).await?.cost;
            let round = Round { ladder: *ladder, separate, job, job_mp4 };
            println!(
                "round {number} of {}: ladder {:.2}, separate {:.2}, encode task {:.2}, whole job {:.2}, with mp4 {:.2} \
                 CPU seconds",
                options.runs, ladder.cpu_s, separate.cpu_s, job.encode_cpu_s, job.cpu_s, job_mp4.cpu_s
            );
            rounds.push(round);
        }

        println!("comparing the pictures …");
        let (quality, ssim) =
            quality::measure(&ladder, self.worker.client(), &first.job, &directories[1..], &self.work)
                .await?;
        let program = first.command_line.first().context("a command line has a program")?;
        Ok(Report {
            clip: clip.about.clone(),
            clip_seconds,
            ffmpeg: version().await?,
            worker: String::new(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load_average: [load_before, load_average()],
            worker_idle_cpu_per_s,
            commands: Commands {
                ladder: shell("ffmpeg", ladder.arguments()),
                separate: separate.iter().map(|arguments| shell("ffmpeg", arguments)).collect(),
                encode_task: shell(program, &first.command_line[1..]),
                job: self.spec("ID", &json!({})).to_string(),
                job_mp4: self.spec("ID", &mp4).to_string(),
                ssim,
            },
            verdicts: [cpu_verdicts(&rounds), quality_verdicts(&quality)].concat(),
            rounds,
            quality,
        })
    }

    fn spec(&self, id: &str, more: &Value) -> Value {
        let mut spec = json!({ "job_id": id, "input_url": self.source.url() });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        spec
    }

    async fn job(&self, id: &str, more: &Value) -> Result<Done> {
        self.worker.measure(&self.spec(id, more)).await
    }
}

/// Runs one ffmpeg as a shell would, in an empty directory. On no leash: starting that would count as ffmpeg's.
async fn run_by_hand(arguments: &[String], directory: &Path) -> Result<Cost> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("empty {}", directory.display()));
        }
        _ => fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?,
    }
    let used = || Cpu::of(std::process::id()).map(|cpu| cpu.children).context("read the own CPU time");
    let (before, started) = (used()?, Instant::now());
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(arguments).current_dir(directory).stdin(Stdio::null());
    media::output(ffmpeg, BY_HAND_PATIENCE).await.with_context(|| shell("ffmpeg", arguments))?;
    let wall_s = started.elapsed().as_secs_f64();
    // Nothing else of ours ended meanwhile: the worker lives, and everything here happens one after the other.
    Ok(Cost { cpu_s: used()?.saturating_sub(before).as_secs_f64(), wall_s })
}

async fn version() -> Result<String> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.arg("-version");
    let said = media::output(ffmpeg, Duration::from_secs(60)).await?;
    let said = String::from_utf8_lossy(&said);
    Ok(said.split(" Copyright").next().unwrap_or_default().to_owned())
}

fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}
