//! Finding jobs by the words of their titles and labels, in the database's own index of words.
//!
//! Words are cut by [`millrace_wire::spec::words`], on both sides alike, and never by the database: so every backend finds
//! the same, and no query has a syntax that could be wrong.

use async_trait::async_trait;

use super::{Error, JobRow};

/// Which jobs to find: the newest first.
#[derive(Debug, Clone)]
pub struct Search {
    /// Each must be a word of the job, and the last one the beginning of a word. At least one.
    pub words: Vec<String>,
    /// At most so many.
    pub limit: u32,
    /// Older than this job's uid.
    pub before: Option<String>,
}

/// The part of a store that knows words.
#[async_trait]
pub trait Library: Send + Sync + 'static {
    /// A tenant's jobs with all of these words.
    async fn search(&self, tenant: &str, search: &Search) -> Result<Vec<JobRow>, Error>;
}
