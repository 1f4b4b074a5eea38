//! Which cores do what: the proxy has one to itself, the load and the workers have the rest.
//!
//! A proxy that shares its core with what drives it is measured with their caches, and one that is never busy is measured
//! with a wake-up per request. On one core there is nothing to divide.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How this machine's cores are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// The proxy's core; none where there is but one.
    pub proxy: Option<usize>,
    /// How many there are.
    pub cores: usize,
}

/// Divides the cores that this process may use, and leaves the proxy's alone from now on: this thread, and all threads
/// and processes that it starts.
///
/// # Errors
/// The system does not say which cores there are, or refuses.
#[cfg(target_os = "linux")]
pub fn divide() -> Result<Division> {
    let mut mine = sched_getaffinity(None).context("read which cores this process may use")?;
    let cores = cores()?;
    let proxy = (cores.len() > 1).then(|| cores[0]);
    if let Some(cpu) = proxy {
        mine.unset(cpu);
        sched_setaffinity(None, &mine).context("leave the proxy's core")?;
    }
    Ok(Division { proxy, cores: cores.len() })
}

/// The cores that this process may use.
///
/// # Errors
/// The system does not say.
#[cfg(target_os = "linux")]
pub fn cores() -> Result<Vec<usize>> {
    let mine = sched_getaffinity(None).context("read which cores this process may use")?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| mine.is_set(*cpu)).collect())
}

/// Elsewhere nothing is put on a core.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn cores() -> Result<Vec<usize>> {
    Ok(Vec::new())
}

/// Elsewhere nothing is divided.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn divide() -> Result<Division> {
    let cores = std::thread::available_parallelism().context("count the cores")?.get();
    Ok(Division { proxy: None, cores })
}

/// Becomes `program`, on that core alone.
///
/// # Errors
/// Returns at all only when it failed.
pub fn run(cpu: usize, program: &OsString, args: &[OsString]) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).with_context(|| format!("move to core {cpu}"))?;
    }
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("run {} on core {cpu}", program.display()))
}
