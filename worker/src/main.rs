//! Arguments → settings → telemetry → serve → exit code.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millrace_runtime::shutdown::Shutdown;
use millrace_runtime::telemetry::{self, LogFormat};
use millrace_worker::config::Settings;
use millrace_worker::ffmpeg::cage;

/// Millrace worker: takes jobs from its pool and turns videos into adaptive streams with ffmpeg.
#[derive(Debug, Parser)]
#[command(name = "millrace-worker", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve jobs until SIGTERM or SIGINT; prints `ready http://ADDR` when it serves, with TLS `ready https://ADDR`.
    ///
    /// Every setting can be given as a flag, as an environment variable, or as a key of the TOML file named by
    /// --config (the flag's name without the dashes); a flag beats the environment, and that beats the file.
    ///
    /// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
    Run(Box<Run>),
    /// Sets limits on itself, then becomes ffmpeg. Used by `run`.
    #[command(hide = true)]
    Cage(cage::Arguments),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// TOML file with settings
    #[arg(long, env = "MILLRACE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines look
    #[arg(long, env = "MILLRACE_LOG_FORMAT", value_name = "FORMAT", default_value = "json")]
    log_format: LogFormat,
    /// What to log: a level, or levels by module as in `millrace_worker=debug,info`
    #[arg(long, env = "MILLRACE_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(run) => self::run(*run),
        // No runtime here: the cage must be the only thread when it takes its own rights away.
        Command::Cage(arguments) => cage::run(&arguments),
    }
}

fn run(run: Run) -> ExitCode {
    let refuse = |what: &dyn std::fmt::Display| {
        eprintln!("millrace-worker: {what}");
        ExitCode::from(2)
    };
    let config = match run.settings.resolve(run.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = telemetry::init(run.log_format, &run.log) {
        return refuse(&format!("--log {}: {error}", run.log));
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return refuse(&"a TLS provider is installed already");
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let work = async {
        let shutdown = Shutdown::on_signals()?;
        let ready = |address| {
            // Nobody may be listening, and a disk that is full must not end a worker that serves.
            if let Err(error) = writeln!(std::io::stdout(), "ready {scheme}://{address}") {
                tracing::warn!(%error, %address, "cannot print the ready line");
            }
        };
        millrace_worker::serve(config, shutdown, ready).await
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&format!("cannot start: {error}")),
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
