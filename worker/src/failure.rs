//! Why an attempt at a job failed.
//!
//! What the client reads and what the log says are separate fields, so that a path, an address or a stray credential
//! in ffmpeg's output never reaches a client. Being cancelled is not a failure: it has no code and nothing to retry.

use std::fmt;

use millrace_wire::job::FailureCode;

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The stable label; says whether another attempt can help.
    pub code: FailureCode,
    /// For the client: what happened, without paths, inner addresses or credentials.
    pub detail: String,
    /// For the operator: the rest.
    pub log: String,
}

impl Failure {
    /// A failure about which the log needs to know no more than the client.
    pub fn new(code: FailureCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), log: String::new() }
    }

    /// Adds what only the operator may read.
    #[must_use]
    pub fn log(mut self, log: impl fmt::Display) -> Self {
        self.log = log.to_string();
        self
    }

    /// Whether another attempt is pointless.
    pub fn is_permanent(&self) -> bool {
        self.code.is_permanent()
    }

    /// A failure of the scratch directory.
    pub fn scratch(what: &str, error: &std::io::Error) -> Self {
        let detail = "the worker's scratch directory is full or not writable";
        Self::new(FailureCode::ScratchUnavailable, detail).log(format_args!("{what}: {error}"))
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)?;
        if self.log.is_empty() { Ok(()) } else { write!(f, " ({})", self.log) }
    }
}

/// How a step of an attempt ended, if not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Somebody asked it to stop; nothing of it runs any more.
    Cancelled,
    /// It failed.
    Failed(Failure),
}

impl Ended {
    /// The same with another failure, if it is one.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Failure) -> Failure) -> Self {
        match self {
            Self::Cancelled => Self::Cancelled,
            Self::Failed(failure) => Self::Failed(change(failure)),
        }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

impl std::error::Error for Ended {}
