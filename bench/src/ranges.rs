//! What cutting a long job into ranges costs: the same job in one piece and in ranges, each on one worker, in CPU time of the
//! worker and all that it starts.
//!
//! One worker, because it is the price that is asked for and not the gain; two would only share what one does here. What
//! ranges cost beyond the job: the seconds that each decodes before its first frame, an encoder that starts anew, a source
//! that is stored once, and a ladder that is fetched once, to be read back.
//!
//! CPU time is no constant: on a machine that others share, the same encode costs a seventh more a minute later. So both run
//! at the same time, each on a core of its own, and change cores from turn to turn; what slows one slows the other, and the
//! quotient of a turn stays.
//!
//! The first range decodes nothing twice, and of four ranges it is a quarter. So the verdict is about a video without end:
//! all that the ranges cost more is laid on those that have another before them. What is paid once for a job is then
//! counted too often, never too seldom. It is the median over all turns.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_wire::job::State;
use serde_json::json;

use crate::gateway::pin;
use crate::procfs::{self, Cpu};
use crate::worker::source::Source;
use crate::{System, clip, media};

/// The share of a job in one piece that ranges may cost on top, however long it is.
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
    /// How often both are measured.
    pub runs: u32,
    /// The first run has them on each other's cores already.
    pub swap: bool,
    /// The demo's clip is kept in `cache` below.
    pub data: PathBuf,
    /// What is worked on.
    pub out: PathBuf,
}

/// Runs it and prints what it found.
///
/// # Errors
/// The limit is broken, or a step failed.
pub async fn run(options: &Options) -> Result<()> {
    ensure!(procfs::AVAILABLE, "this needs a /proc to read CPU times from");
    let count = (f64::from(options.seconds) / options.range.as_secs_f64()).round();
    ensure!(
        f64::from(options.seconds) >= 2.0 * options.range.as_secs_f64(),
        "{} s are not cut into ranges of {:?}",
        options.seconds,
        options.range
    );
    fs::create_dir_all(&options.out).with_context(|| format!("make {}", options.out.display()))?;
    let clip = looped(options).await?;
    let source = Source::serve(&clip).await?;
    let cores = pin::cores()?;
    let mut over = Vec::new();
    for turn in 0..options.runs as usize {
        let first = turn + usize::from(options.swap);
        let core = |side: usize| (cores.len() > 1).then(|| cores[(first + side) % 2]);
        let piece = measure(options, source.url(), "piece", Duration::ZERO, core(0));
        let ranges = measure(options, source.url(), "ranges", options.range, core(1));
        let (piece, ranges) = match cores.len() {
            // After each other, where they would only take time from each other.
            0 | 1 => (piece.await?, ranges.await?),
            _ => tokio::try_join!(piece, ranges)?,
        };
        let cost = ranges.total().as_secs_f64() / piece.total().as_secs_f64() - 1.0;
        println!(
            "run {}: in one piece {}, in ranges {}: {:+.2} %",
            turn + 1,
            shown(piece),
            shown(ranges),
            cost * 100.0
        );
        over.push(cost);
    }
    let over = median(over);
    let endless = over * count / (count - 1.0);
    println!(
        "{} s in ranges of {:?}: {:+.2} % of CPU time, the median of {}; {:+.2} % of a video without end (at most {:.0} %)",
        options.seconds,
        options.range,
        over * 100.0,
        options.runs,
        endless * 100.0,
        OVER_MAX * 100.0
    );
    if endless > OVER_MAX {
        bail!("ranges cost more than they may");
    }
    Ok(())
}

fn shown(cpu: Cpu) -> String {
    format!("{:.2} CPU s and {:.2} of the worker itself", cpu.children.as_secs_f64(), cpu.own.as_secs_f64())
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

/// CPU time of one job on a fresh worker, alone on a core where one is given.
async fn measure(
    options: &Options,
    url: &str,
    name: &str,
    range: Duration,
    core: Option<usize>,
) -> Result<Cpu> {
    let threads =
        if core.is_some() { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let builder = System::builder().pool(name, 1).data(&options.out.join(name)).empty_first();
    let builder = builder.worker_arg("--threads", &threads.to_string());
    let mut builder = builder.worker_arg("--range", &format!("{}ms", range.as_millis()));
    let worker = format!("{name}-1");
    if let Some(core) = core {
        let this = std::env::current_exe().context("find this program's own path")?;
        let words = [this.into(), "on-core".into(), core.to_string().into()];
        let words = words.map(|word: OsString| word.to_string_lossy().into_owned());
        builder = builder.worker_started_by(&worker, words.into());
    }
    let mut system = builder.start().await?;
    let pid = system.worker_pid(&worker)?;
    let cpu = || Cpu::of(pid).context("the worker is gone");
    let (before, began) = (cpu()?, Instant::now());
    system.client()?.submit(&json!({ "job_id": "long", "input_url": url })).await?;
    let done = system.client()?.wait_final("long", PATIENCE).await?;
    ensure!(done.state == State::Succeeded, "the job did not succeed: {:?}", done.error);
    let after = cpu()?;
    println!("  {name}: {:.1} s", began.elapsed().as_secs_f64());
    system.stop().await?;
    Ok(Cpu {
        own: after.own.saturating_sub(before.own),
        children: after.children.saturating_sub(before.children),
    })
}
