//! The gateway's bench: what a request costs it, beside the least that a Pingora proxy can be, and beside others.
//!
//! CPU time is what is compared, as in [`crate::worker`], and the ratio is taken round by round: whatever makes the
//! machine slow for a while meets all sides of a round. The minimal proxy has our versions, profile and allocator, so
//! what is left is what our gateway does: tokens, routing, reports, names, metrics, records and logs. Requests come by real
//! sockets on loopback, in a closed loop over connections that stay, from cores of their own.
//!
//! [`pin`] divides the cores, [`upstream`] plays the workers, [`sides`] starts the proxies, [`load`] is their clients and runs both,
//! [`identity`] is who they are, [`figures`] judges. [`minimal`] is what we are measured against, [`message`] what both ends know of HTTP.

pub mod figures;
pub mod identity;
pub mod load;
pub mod message;
pub mod minimal;
pub mod pin;
pub mod sides;
pub mod upstream;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use self::figures::{Comparison, READ_MAX, SUBMIT_MAX, Series, Turn};
use self::identity::Identity;
use self::load::{FarEnd, Kind};
use self::pin::Division;
use self::sides::{LOG_SAMPLE, PEERS, Setting, Side};
use crate::data::Data;
use crate::process::Spawner;
use crate::{binaries, procfs};

/// What fills caches and opens connections before the first turn is as long as so many.
const WARM_UP_TURNS: usize = 4;
/// For so many rounds processes live, and then it is said how it stands. Where a process happens to lie in memory makes it
/// up to a twentieth slower or faster for as long as it lives.
const LIFETIME_ROUNDS: usize = 10;

/// What the bench may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: usize,
    /// Requests of each turn.
    pub requests: usize,
    /// Connections that send them.
    pub connections: usize,
    /// Only the minimal proxy and the gateway.
    pub alone: bool,
    /// Where `gateway.txt` goes, and what is worked on meanwhile.
    pub out: PathBuf,
    /// The gateway's program; else the one beside this program.
    pub program: Option<PathBuf>,
    /// Where the others' programs are, beside the search path.
    pub peers: PathBuf,
    /// Who has which core.
    pub division: Division,
}

/// Runs it, prints the tables and writes `gateway.txt`.
///
/// # Errors
/// A limit that is broken, or a step that failed.
pub async fn run(options: &Options) -> Result<()> {
    if !procfs::AVAILABLE {
        bail!("this needs a /proc to read CPU times from");
    }
    let bench = std::env::current_exe().context("find this program's own path")?;
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("open {}", program.display()))?,
        None => binaries::find(
            bench.parent().context("this program's path has no directory")?,
            "millrace-gateway",
        )?,
    };
    let data = Data::open(Some(&options.out.join("gateway")), true)?;
    let spawner = Spawner::new(bench.clone()).context("start the spawner thread")?;
    let far = FarEnd::start().await?;
    let setting = Setting {
        spawner: &spawner,
        bench,
        directory: data.path(),
        core: options.division.proxy,
        endpoints: &far.endpoints,
    };
    let identity = Identity::new()?;
    let kinds = [(Kind::read(&identity.token), READ_MAX), (Kind::submit(&identity.token), SUBMIT_MAX)];
    let mut comparisons =
        kinds.each_ref().map(|(kind, max)| Comparison { kind: kind.name, max: *max, series: Vec::new() });
    let (mut sides, mut absent) = (Vec::new(), Vec::new());
    for first in (0..options.rounds).step_by(LIFETIME_ROUNDS) {
        // Before the next ones begin, whose files are the same.
        sides.clear();
        (sides, absent) = start(&setting, options, &program, &identity).await?;
        let rounds = first..options.rounds.min(first + LIFETIME_ROUNDS);
        measure(options, &far, &sides, &kinds, rounds, &mut comparisons).await?;
    }

    let mut text = about(options, &sides, &absent);
    for comparison in &comparisons {
        text += &format!("\n{}\n", comparison.text());
    }
    println!("\n{text}");
    let path = options.out.join("gateway.txt");
    fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
    println!("all of it is in {}", path.display());
    let broken: Vec<&str> = comparisons.iter().filter(|c| !c.holds()).map(|c| c.kind).collect();
    if !broken.is_empty() {
        bail!("a limit is broken: {}", broken.join(", "));
    }
    Ok(())
}

/// Starts all sides; those that are not installed are named.
async fn start(
    setting: &Setting<'_>,
    options: &Options,
    program: &Path,
    identity: &Identity,
) -> Result<(Vec<Side>, Vec<&'static str>)> {
    let mut sides = vec![setting.minimal().await?, setting.gateway(program, identity).await?];
    let mut absent = Vec::new();
    for peer in PEERS.iter().filter(|_| !options.alone) {
        match setting.peer(peer, &options.peers).await? {
            Some(side) => sides.push(side),
            None => absent.push(peer.name),
        }
    }
    Ok((sides, absent))
}

/// Measures these rounds with these processes.
async fn measure(
    options: &Options,
    far: &FarEnd,
    sides: &[Side],
    kinds: &[(Kind, f64)],
    rounds: Range<usize>,
    comparisons: &mut [Comparison],
) -> Result<()> {
    let unmeasured = |side: &Side| Series { side: side.name.to_owned(), turns: Vec::new() };
    for comparison in comparisons.iter_mut().filter(|comparison| comparison.series.is_empty()) {
        comparison.series = sides.iter().map(unmeasured).collect();
    }
    for (kind, _) in kinds {
        for side in sides {
            turn(far, side, kind, [options.connections, options.requests * WARM_UP_TURNS]).await?;
        }
    }
    let ended = rounds.end;
    for round in rounds {
        for ((kind, _), comparison) in kinds.iter().zip(comparisons.iter_mut()) {
            // Each begins a round in its turn: nobody always has the cache of the same one before it.
            for place in (0..sides.len()).map(|place| (place + round) % sides.len()) {
                let turn = turn(far, &sides[place], kind, [options.connections, options.requests]).await?;
                comparison.series[place].turns.push(turn);
            }
        }
    }
    let so_far = comparisons.iter().map(|c| format!("a {} costs {:.3} ×", c.kind, c.found()));
    println!("round {ended} of {}: {}", options.rounds, so_far.collect::<Vec<_>>().join(", "));
    Ok(())
}

async fn turn(far: &FarEnd, side: &Side, kind: &Kind, [connections, requests]: [usize; 2]) -> Result<Turn> {
    let driven = far.drive(side.address, kind, [connections, requests], || side.spent()).await;
    let (wall, [before, after]) = driven.with_context(|| format!("measure {}", side.name))?;
    let cpu = after.since(&before);
    Ok(Turn {
        cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64,
        per_second: requests as f64 / wall.as_secs_f64(),
        busy: cpu.as_secs_f64() / wall.as_secs_f64(),
    })
}

fn about(options: &Options, sides: &[Side], absent: &[&str]) -> String {
    let Options { rounds, requests, connections, division, .. } = options;
    let mut text = format!(
        "CPU time (user and system) per request, medians of {rounds} rounds of {requests} requests over {connections} \
         connections, HTTP/1.1, taken in turns; every {LIFETIME_ROUNDS} rounds all processes are new.\n"
    );
    text += &match division.proxy {
        Some(core) => format!(
            "{} cores: core {core} is the proxy's, the rest the load's and the workers'.\n",
            division.cores
        ),
        None => "One core, which the proxy shares with the load and the workers.\n".to_owned(),
    };
    text += &format!(
        "millrace-gateway checks a JWT (by its cache of verified ones), chooses among 4 workers of 2 pools, reads their load reports, and has metrics, \
         request ids, traces, records of decisions, and an access log of {} %; the others have one upstream.\n",
        100.0 * LOG_SAMPLE
    );
    let versions: Vec<String> =
        sides.iter().map(|side| format!("{} ({})", side.name, side.version)).collect();
    text += &format!("Sides: {}.\n", versions.join(", "));
    if !absent.is_empty() {
        text += &format!("Not installed, so not measured: {}.\n", absent.join(", "));
    }
    text
}
