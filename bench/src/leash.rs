//! A child that cannot outlive us, even when we are killed with SIGKILL.
//!
//! `millrace-bench leash PARENT -- PROGRAM ARGS…` asks the kernel for SIGKILL when its parent dies and then becomes the
//! program: the process id stays, so that a test's `kill -9` hits the program itself. Rejected: `pre_exec` (needs
//! `unsafe`), a supervisor that waits for end-of-file on a pipe (one more process, and another id than the program's),
//! `setpriv` (not everywhere). Outside Linux there is no such signal; there only an orderly end stops the children.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Becomes `program`, which dies with the process `parent` that must be this process's parent now.
///
/// # Errors
/// Returns at all only when it failed: the parent is gone already, or the program cannot be run.
pub fn run(parent: u32, program: &OsString, args: &[OsString]) -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("ask for a signal at the parent's death")?;
    // A parent that died before the line above sends no signal any more: then its place is taken by another.
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now != parent {
        bail!("process {parent} is not the parent of this one ({now} is): nothing started");
    }
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("run {}", program.display()))
}
