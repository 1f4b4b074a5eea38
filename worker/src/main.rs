//! `millrace-worker`: for now only the hidden `cage` that ffmpeg runs in.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millrace_worker::ffmpeg::cage;

#[derive(Parser)]
#[command(name = "millrace-worker", version, about = "Transcodes videos with ffmpeg")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sets limits on itself, then becomes the given program.
    #[command(hide = true)]
    Cage(cage::Arguments),
}

fn main() -> ExitCode {
    // No runtime here: the cage must be the only thread when it takes its own rights away.
    match Arguments::parse().command {
        Command::Cage(arguments) => cage::run(&arguments),
    }
}
