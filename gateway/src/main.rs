//! The gateway's command line: arguments → telemetry → [`millrace_gateway::serve`] → exit code.

mod cli;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use millrace_gateway::config::{self, Config, https, upstream_tls};
use millrace_gateway::error::Error;
use millrace_gateway::{Options, Ready, descriptors, status};
use millrace_runtime::config::File;
use millrace_runtime::shutdown::Shutdown;
use millrace_runtime::telemetry::{self, LogFormat};
use millrace_runtime::tls::Files as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One endpoint in front of transcode workers in several clouds.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  millrace-gateway check routing.toml\n  millrace-gateway run --config routing.toml\n  \
                  millrace-gateway status --admin 127.0.0.1:8081\n  millrace-gateway drain gcp --ttl 30m\n\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve. Prints one line `ready http://ADDRESS admin http://ADDRESS` once it does; with TLS `https://ADDRESS`
    /// stands before `admin`, alone or after the first. `metrics http://ADDRESS` follows where there is such a listener.
    ///
    /// The routing file is followed: it is read again within a second of a change, on SIGHUP and on POST /reload of
    /// the admin listener. SIGTERM or SIGINT drains; a second one ends at once.
    Run(Run),
    /// Read a routing file, and the certificates that it names, and say what is wrong, with file, line, column and key.
    Check {
        /// The routing file (TOML).
        file: PathBuf,
    },
    /// Print the routing file's JSON schema, by which editors complete and check it.
    ///
    /// Write it beside the file (`millrace-gateway schema > routing.schema.json`) and put `#:schema routing.schema.json`
    /// into the file's first line: editors with Taplo or Even Better TOML find it there.
    Schema,
    /// Print the client API's description (OpenAPI 3.1): what a gateway serves at /openapi.json, and as a page at /docs.
    Openapi {
        /// As a Postman collection instead.
        #[arg(long)]
        postman: bool,
    },
    /// Ask a running gateway what a routing file would change.
    Diff(cli::diff::Diff),
    /// Ask a running gateway for its pools, workers and overrides, and print a table.
    Status(cli::Ask),
    /// Give a pool or a worker of a running gateway no new jobs; reads and what it runs go on.
    Drain(cli::steer::Drain),
    /// Give a pool or a worker of a running gateway new jobs again.
    Undrain(cli::steer::Drain),
    /// Give a pool of a running gateway another weight, beside its routing file.
    Weight(cli::steer::Weight),
    /// List what was changed beside the routing file of a running gateway, or take a change back.
    Overrides(cli::steer::Overrides),
    /// Ask a running gateway why a job would go where it would, or why one went where it did.
    Explain(cli::explain::Explain),
    /// Show who changed what in a running gateway: reloads and overrides, applied and refused.
    Audit(cli::Ask),
}

#[derive(Debug, Args)]
struct Run {
    /// The routing file (TOML): listeners, pools, weights, prices. `routing.example.toml` explains every key.
    #[arg(long, value_name = "FILE", env = "MILLRACE_CONFIG")]
    config: PathBuf,
    /// How log lines look, on standard error.
    #[arg(long, value_enum, env = "MILLRACE_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,
    /// What is logged: a level, or levels by module, like `info,millrace_gateway=debug`.
    #[arg(
        long,
        value_name = "FILTER",
        env = "MILLRACE_LOG",
        default_value = "info,pingora_core=error,pingora_proxy=error"
    )]
    log: String,
    /// After SIGTERM, still accept for this long, so that load balancers see /readyz fail first.
    #[arg(long, value_name = "TIME", env = "MILLRACE_LAME_DUCK", default_value = "1s", value_parser = humantime::parse_duration)]
    lame_duck: Duration,
    /// After that, let requests in flight take this long.
    #[arg(long, value_name = "TIME", env = "MILLRACE_DRAIN_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
}

fn main() -> ExitCode {
    // The one crypto provider of the process; Pingora and the probe client would not agree on a default.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(1, &error),
    };
    let code = match Arguments::parse().command {
        Command::Run(arguments) => runtime.block_on(run(arguments)),
        Command::Check { file } => check(&file),
        Command::Status(ask) => runtime.block_on(cli::show(&ask, "/status", status::table)),
        Command::Audit(ask) => runtime.block_on(cli::show(&ask, "/audit", cli::audit_lines)),
        Command::Schema => {
            println!("{:#}", config::schema::schema());
            ExitCode::SUCCESS
        }
        Command::Openapi { postman } => {
            match postman {
                false => println!("{:#}", millrace_wire::openapi::document()),
                true => print!("{}", millrace_wire::openapi::postman::text_of_collection()),
            }
            ExitCode::SUCCESS
        }
        Command::Diff(diff) => runtime.block_on(diff.run()),
        Command::Explain(explain) => runtime.block_on(explain.run()),
        Command::Drain(drain) => runtime.block_on(drain.run("/drain")),
        Command::Undrain(drain) => runtime.block_on(drain.run("/undrain")),
        Command::Weight(weight) => runtime.block_on(weight.run()),
        Command::Overrides(overrides) => runtime.block_on(overrides.run()),
    };
    // Connections that are still open (idle ones, or past the drain's deadline) end with the process.
    runtime.shutdown_background();
    code
}

async fn run(arguments: Run) -> ExitCode {
    if let Err(error) = telemetry::init(arguments.log_format, &arguments.log) {
        return failed(2, &format!("--log {:?}: {error}", arguments.log));
    }
    match descriptors::raise() {
        Ok(files_max) => tracing::debug!(files_max, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
    let options = Options {
        config: arguments.config,
        lame_duck: arguments.lame_duck,
        drain_timeout: arguments.drain_timeout,
    };
    match serve(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.exit_code(), &error),
    }
}

async fn serve(options: Options) -> Result<(), Error> {
    let shutdown = Shutdown::on_signals()
        .map_err(|source| Error::System { what: "install the signal handlers", source })?;
    let registry = prometheus::Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let ready = |Ready { http, https, admin, metrics }| {
        let mut out = std::io::stdout().lock();
        let urls = [http.map(|http| format!("http://{http}")), https.map(|https| format!("https://{https}"))];
        let mut words: Vec<String> = urls.into_iter().flatten().collect();
        words.push(format!("admin http://{admin}"));
        words.extend(metrics.map(|metrics| format!("metrics http://{metrics}")));
        // Nobody may be reading; the gateway serves all the same.
        let _ = writeln!(out, "ready {}", words.join(" ")).and_then(|()| out.flush());
    };
    Box::pin(millrace_gateway::serve(options, registry, shutdown, ready)).await
}

fn check(file: &std::path::Path) -> ExitCode {
    let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let checked = File::read(file).and_then(|file| {
        let config = Config::from_file(&file)?;
        if let Some(https) = &config.listen.https {
            https.files.load().map_err(|bad| https::error(&file, bad.key, bad.message))?;
        }
        if let Some(section) = &config.upstream_tls {
            section.files.load().map_err(|bad| upstream_tls::error(&file, bad.key, bad.message))?;
        }
        if let Some(auth) = &config.auth {
            millrace_gateway::auth::load(auth).map_err(|bad| file.error(bad.key, bad.message))?;
        }
        Ok(config)
    });
    match checked {
        Ok(config) => {
            let (pools, endpoints) = (config.pools.len(), config.endpoint_count());
            let (pools, endpoints) = (count(pools, "pool"), count(endpoints, "endpoint"));
            println!("{}: ok, {pools}, {endpoints}{}", file.display(), beside(&config));
            ExitCode::SUCCESS
        }
        Err(error) => failed(2, &error),
    }
}

/// What a file says of endpoints beside listing them: where others come from, and which are spoken to over TLS.
fn beside(config: &Config) -> String {
    let mut text = String::new();
    for pool in &config.pools {
        if let Some(source) = &pool.discover {
            text += &format!(", {} from {source}", pool.name);
        }
        if let Some(name) = &pool.tls {
            text += &format!(", TLS to {} (known by {name})", pool.name);
        }
    }
    text
}

fn failed(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("millrace-gateway: {error}");
    ExitCode::from(code)
}
