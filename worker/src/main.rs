//! Arguments → settings → telemetry → serve → exit code.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use millrace_runtime::shutdown::Shutdown;
use millrace_runtime::telemetry::{self, LogFormat};
use millrace_worker::config::Settings;
use millrace_worker::ffmpeg::cage;
use millrace_worker::probe::Question;

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
    /// Ask the worker of this machine or pod whether it would take a job; for probes of Kubernetes.
    ///
    /// The kubelet has no certificate, so its own probes cannot ask a worker that wants one of its clients. This asks
    /// the worker's listener with the worker's own certificate, and believes no other answerer. Give it the address and
    /// the files as `run` has them: the same flags, variables or TOML file. In a manifest, where the variables are set
    /// for the container anyway:
    ///
    ///     exec: { command: [/usr/local/bin/millrace-worker, probe, --ready] }
    ///
    /// Exit codes: 0 yes; 1 no, or no answer in time; 2 wrong usage or configuration.
    #[command(verbatim_doc_comment)]
    Probe(Probe),
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

#[derive(Debug, clap::Args)]
struct Probe {
    /// Ask whether it would take a job: it reaches its store and does not drain (the default)
    #[arg(long)]
    ready: bool,
    /// Ask no more than whether it answers
    #[arg(long, conflicts_with = "ready")]
    live: bool,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// TOML file with settings
    #[arg(long, env = "MILLRACE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address that the worker serves on; 0.0.0.0 is asked on loopback [default: 127.0.0.1:9000]
    #[arg(long, env = "MILLRACE_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The worker's certificate, where it serves TLS
    #[arg(long, env = "MILLRACE_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's private key
    #[arg(long, env = "MILLRACE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(run) => self::run(*run),
        Command::Probe(asked) => probe(asked),
        // No runtime here: the cage must be the only thread when it takes its own rights away.
        Command::Cage(arguments) => cage::run(&arguments),
    }
}

fn probe(asked: Probe) -> ExitCode {
    let Probe { ready: _, live, timeout, config, listen, tls_certificate, tls_key } = asked;
    let question = if live { Question::Live } else { Question::Ready };
    let fail = |what: &dyn std::fmt::Display, code: u8| {
        eprintln!("millrace-worker: {what}");
        ExitCode::from(code)
    };
    let settings = Settings { listen, tls_certificate, tls_key, ..Settings::default() };
    let (listen, own) = match settings.listener(config.as_deref()) {
        Ok(found) => found,
        Err(error) => return fail(&error, 2),
    };
    // One thread: a probe comes every few seconds, beside encoders that want the cores.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}"), 2),
    };
    match runtime.block_on(millrace_worker::probe::ask(question, listen, own, timeout)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}"), 1),
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
