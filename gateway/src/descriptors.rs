//! How many files the process may have open: every connection is one, of clients as of workers.
//!
//! Systems start processes with a soft limit of 1,024 for the sake of `select`, which nothing here uses, and leave it to
//! them to raise it to the hard one. A gateway that does not would stop to accept long before its memory is full.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one. Answers what is in force then; `None` is no limit at all.
///
/// # Errors
/// What the system says; the limit is as it was.
pub fn raise() -> std::io::Result<Option<u64>> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(limit.current)
}
