//! What cutting a long job into ranges costs: the same job in one piece and in ranges, on one worker, in CPU time of the
//! worker and all that it starts.
//!
//! One worker, because it is the price that is asked for and not the gain; two would only share what one does here. What
//! ranges cost beyond the job: the seconds that each decodes before its first frame, an encoder that starts anew, a source
//! that is stored once, and a ladder that is fetched once, to be read back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_wire::job::State;
use serde_json::json;

use crate::procfs::{self, Cpu};
use crate::worker::source::Source;
use crate::{System, clip, media};

/// The share of the job in one piece that ranges may cost on top.
const OVER_MAX: f64 = 0.05;
/// Longest time for one job.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What the bench may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// A clip of one's own, instead of the demo's.
    pub clip: Option<PathBuf>,
    /// So many seconds of it, from its beginning again where it is shorter.
    pub seconds: u32,
    /// How long a range is.
    pub range: Duration,
    /// How often both are measured, in turns.
    pub runs: u32,
    /// Only one of the two, and no verdict: for a machine that is free for a short while only.
    pub only: Option<Side>,
    /// The demo's clip is kept in `cache` below.
    pub data: PathBuf,
    /// What is worked on.
    pub out: PathBuf,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    /// The job in one piece.
    Piece,
    /// The job in ranges.
    Ranges,
}

/// Runs it and prints what it found.
///
/// # Errors
/// The limit is broken, or a step failed.
pub async fn run(options: &Options) -> Result<()> {
    ensure!(procfs::AVAILABLE, "this needs a /proc to read CPU times from");
    fs::create_dir_all(&options.out).with_context(|| format!("make {}", options.out.display()))?;
    let clip = looped(options).await?;
    let source = Source::serve(&clip).await?;
    let mut sides = [(Side::Piece, Duration::ZERO, Vec::new()), (Side::Ranges, options.range, Vec::new())];
    for turn in 0..options.runs {
        for (side, range, seen) in
            sides.iter_mut().filter(|side| options.only.is_none_or(|only| only == side.0))
        {
            let (cpu, wall) = measure(options, source.url(), *range).await?;
            let [own, children] = [cpu.own, cpu.children].map(|time| time.as_secs_f64());
            let (turn, wall) = (turn + 1, wall.as_secs_f64());
            println!("run {turn}, {side:?}: ffmpeg {children:.2} CPU s, the worker {own:.2}; {wall:.1} s");
            seen.push(cpu.total().as_secs_f64());
        }
    }
    if options.only.is_some() {
        return Ok(());
    }
    let [whole, ranges] = sides.map(|(_, _, seen)| median(seen));
    let over = ranges / whole - 1.0;
    println!(
        "{} s in ranges of {:?}: {ranges:.2} CPU s beside {whole:.2}, {:+.2} % (at most {:.0} %)",
        options.seconds,
        options.range,
        over * 100.0,
        OVER_MAX * 100.0
    );
    if over > OVER_MAX {
        bail!("ranges cost more than they may");
    }
    Ok(())
}

fn median(mut seen: Vec<f64>) -> f64 {
    seen.sort_by(f64::total_cmp);
    seen[seen.len() / 2]
}

/// The clip as often as it takes, without encoding it again.
async fn looped(options: &Options) -> Result<PathBuf> {
    let clip = match &options.clip {
        Some(path) => path.clone(),
        None => {
            let clip = clip::get(&options.data.join("cache")).await?;
            println!("clip: {}", clip.about);
            clip.path
        }
    };
    let path = options.out.join(format!("looped-{}.mp4", options.seconds));
    let mut ffmpeg = tokio::process::Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-y", "-stream_loop", "-1", "-i"]).arg(&clip);
    ffmpeg.args(["-t", &options.seconds.to_string(), "-c", "copy", "-movflags", "+faststart"]).arg(&path);
    media::output(ffmpeg, PATIENCE).await.context("loop the clip")?;
    Ok(path)
}

/// CPU and wall time of one job on a fresh worker.
async fn measure(options: &Options, url: &str, range: Duration) -> Result<(Cpu, Duration)> {
    let data: &Path = &options.out.join("ranges");
    let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let system =
        System::builder().pool("bench", 1).worker_arg("--threads", &threads).data(data).empty_first();
    let mut system = system.worker_arg("--range", &format!("{}ms", range.as_millis())).start().await?;
    let pid = system.worker_pid("bench-1")?;
    let cpu = || Cpu::of(pid).context("the worker is gone");
    let (before, began) = (cpu()?, Instant::now());
    system.client()?.submit(&json!({ "job_id": "long", "input_url": url })).await?;
    let done = system.client()?.wait_final("long", PATIENCE).await?;
    ensure!(done.state == State::Succeeded, "the job did not succeed: {:?}", done.error);
    let (after, took) = (cpu()?, began.elapsed());
    let spent = Cpu {
        own: after.own.saturating_sub(before.own),
        children: after.children.saturating_sub(before.children),
    };
    system.stop().await?;
    Ok((spent, took))
}
