//! `millrace-bench`: a whole system on this machine, to look at (`demo`, `up`) and to measure (`worker`, `gateway`).

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use millrace_bench::{
    chaos, demo, gateway, install_crypto, leash, object_server, partition, ranges, simulate, up, worker,
};
use millrace_runtime::shutdown::Shutdown;

/// The gateway's, so that the minimal proxy has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs a whole Millrace system on this machine.
#[derive(Debug, Parser)]
#[command(name = "millrace-bench", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Transcode one real clip and a few small ones through one gateway and two pools, check the result, and end.
    Demo {
        /// Where the clip, the results and the logs go.
        #[arg(long, value_name = "DIR", default_value = "./.millrace")]
        data: PathBuf,
    },
    /// Start the same system and serve until Ctrl-C; jobs are kept between runs.
    Up {
        /// The gateway's port; its admin side is on the next one.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Where the jobs, the results and the logs go.
        #[arg(long, value_name = "DIR", default_value = "./.millrace")]
        data: PathBuf,
    },
    /// Kill everything at random while clients submit; fails when an accepted job is lost, twice or corrupt.
    Chaos {
        /// How many kills.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        kills: u32,
        /// What they are drawn from [default: at random; it is printed]
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
    },
    /// Cut two clouds apart for a while, then lose the first for good; fails when a job is lost that had reached `dual`. Needs
    /// root, for network namespaces.
    Partition {
        /// How long the line is cut.
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        cut: u64,
    },
    /// Measure what a job of one worker costs beside the same ffmpeg by hand; fails when a limit is broken.
    Worker {
        /// A clip of your own, instead of the demo's.
        #[arg(long, value_name = "FILE")]
        clip: Option<PathBuf>,
        /// Use only so many seconds of the clip.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        seconds: Option<u32>,
        /// How often everything is measured, in turns.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// The demo's clip is kept in `cache` below.
        #[arg(long, value_name = "DIR", default_value = "./.millrace")]
        data: PathBuf,
        /// Where worker.json goes.
        #[arg(long, value_name = "DIR", default_value = "./target/bench")]
        out: PathBuf,
        /// The worker's program [default: millrace-worker beside this program]
        #[arg(long, value_name = "FILE")]
        worker: Option<PathBuf>,
    },
    /// Measure what cutting a long job into ranges costs beside the same job in one piece; fails when it is too much.
    Ranges {
        /// A clip of your own, instead of the demo's.
        #[arg(long, value_name = "FILE")]
        clip: Option<PathBuf>,
        /// So many seconds of it, from its beginning again where it is shorter.
        #[arg(long, value_name = "N", default_value_t = 240, value_parser = clap::value_parser!(u32).range(10..))]
        seconds: u32,
        /// Seconds of a range.
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=3600))]
        range: u32,
        /// How often both are measured; each time on the other's core.
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// Begin with the cores of a second run: for runs one by one.
        #[arg(long)]
        swap: bool,
        /// The demo's clip is kept in `cache` below.
        #[arg(long, value_name = "DIR", default_value = "./.millrace")]
        data: PathBuf,
        /// What is worked on.
        #[arg(long, value_name = "DIR", default_value = "./target/bench")]
        out: PathBuf,
    },
    /// Measure what a request costs the gateway beside a minimal proxy and others; fails when a limit is broken.
    Gateway {
        /// How often everything is measured, in turns.
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Requests of each turn.
        #[arg(long, value_name = "N", default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..))]
        requests: u32,
        /// Connections that send them, each its next one after an answer.
        #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
        connections: u32,
        /// Only the minimal proxy and the gateway.
        #[arg(long)]
        alone: bool,
        /// Where gateway.txt goes.
        #[arg(long, value_name = "DIR", default_value = "./target/bench")]
        out: PathBuf,
        /// The gateway's program [default: millrace-gateway beside this program]
        #[arg(long, value_name = "FILE")]
        gateway: Option<PathBuf>,
        /// Where the others' programs are, beside the search path.
        #[arg(long, value_name = "DIR", default_value = "./target/peers/bin")]
        peers: PathBuf,
    },
    /// Simulate days of jobs in virtual time with the real routing code, beside what other balancers would do.
    Simulate {
        /// Hours of arrivals in each day.
        #[arg(long, default_value_t = 24.0)]
        hours: f64,
        /// How many days; the tables show medians.
        #[arg(long, default_value_t = 5)]
        seeds: u64,
        /// The first day's seed.
        #[arg(long, default_value_t = 1)]
        first_seed: u64,
        /// Also other lengths, more gateways, and jobs of which less is known.
        #[arg(long)]
        all: bool,
        /// Where the tables and the plot go.
        #[arg(long, value_name = "DIR", default_value = "target/bench")]
        out: PathBuf,
    },
    /// Measure what one routing decision costs.
    Pick,
    /// Serve S3 out of a directory, for tests.
    #[command(hide = true)]
    ObjectServer {
        /// Where to listen.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Holds a directory per bucket.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// Buckets to create.
        #[arg(long = "bucket", value_name = "NAME")]
        buckets: Vec<String>,
    },
    /// Be the least that a Pingora proxy can be.
    #[command(hide = true)]
    MinimalProxy {
        /// Where clients connect.
        listen: SocketAddr,
        /// Where everything goes.
        upstream: SocketAddr,
    },
    /// Become PROGRAM, on one core.
    #[command(hide = true)]
    OnCore {
        /// Which.
        core: usize,
        /// What to run.
        program: OsString,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Become PROGRAM, and die when PARENT does.
    #[command(hide = true)]
    Leash {
        /// The process that must be the parent.
        parent: u32,
        /// What to run.
        program: OsString,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    // Before the runtime: a leash becomes another program.
    if let Command::Leash { parent, program, args } = &command {
        return leash::run(*parent, program, args);
    }
    match &command {
        Command::OnCore { core, program, args } => return gateway::pin::run(*core, program, args),
        Command::MinimalProxy { listen, upstream } => gateway::minimal::run(*listen, *upstream),
        Command::Simulate { hours, seeds, first_seed, all, out } => {
            return simulate::run(&simulate::Options {
                hours: *hours,
                seeds: *seeds,
                first_seed: *first_seed,
                out: out.clone(),
                all: *all,
            });
        }
        Command::Pick => {
            simulate::pick::run();
            return Ok(());
        }
        _ => {}
    }
    install_crypto();
    // Before the runtime, whose threads keep off that core too.
    let division = matches!(command, Command::Gateway { .. }).then(gateway::pin::divide).transpose()?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().context("listen for signals")?;
        match command {
            Command::Demo { data } => {
                let options = demo::Options { data };
                tokio::select! {
                    done = demo::run(&options) => done,
                    // Dropping the demo kills all that it started.
                    () = shutdown.graceful.cancelled() => bail!("interrupted; everything was stopped"),
                }
            }
            Command::ObjectServer { listen, root, buckets } => {
                object_server::run(object_server::Options { listen, root, buckets }, &shutdown).await
            }
            Command::Chaos { kills, seed } => {
                let options =
                    chaos::Options { kills, seed: seed.unwrap_or_else(|| rand::random_range(0..1_000_000)) };
                tokio::select! {
                    done = chaos::run(&options) => done,
                    () = shutdown.graceful.cancelled() => bail!("interrupted; everything was stopped"),
                }
            }
            Command::Partition { cut } => {
                let options = partition::Options { cut: Duration::from_secs(cut) };
                tokio::select! {
                    done = partition::run(&options) => done,
                    () = shutdown.graceful.cancelled() => bail!("interrupted; everything was stopped"),
                }
            }
            Command::Up { port, data } => up::run(&up::Options { port, data }, &shutdown).await,
            Command::Worker { clip, seconds, runs, data, out, worker } => {
                let options = worker::Options { clip, seconds, runs, data, out, worker };
                tokio::select! {
                    done = worker::run(&options) => done,
                    () = shutdown.graceful.cancelled() => bail!("interrupted; everything was stopped"),
                }
            }
            Command::Ranges { clip, seconds, range, runs, swap, data, out } => {
                let range = Duration::from_secs(range.into());
                let options = ranges::Options { clip, seconds, range, runs, swap, data, out };
                tokio::select! {
                    done = ranges::run(&options) => done,
                    () = shutdown.graceful.cancelled() => bail!("interrupted; everything was stopped"),
                }
            }
            Command::Gateway { rounds, requests, connections, alone, out, gateway: program, peers } => {
                let division = division.context("the cores were not divided")?;
                let [rounds, requests, connections] = [rounds, requests, connections].map(|n| n as usize);
                let options =
                    gateway::Options { rounds, requests, connections, alone, out, program, peers, division };
                tokio::select! {
                    done = gateway::run(&options) => done,
                    () = shutdown.graceful.cancelled() => bail!("interrupted; everything was stopped"),
                }
            }
            Command::Leash { .. }
            | Command::OnCore { .. }
            | Command::MinimalProxy { .. }
            | Command::Simulate { .. }
            | Command::Pick => unreachable!("handled above"),
        }
    })
}
