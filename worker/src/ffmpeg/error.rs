//! Why ffmpeg cannot be used at all. What a run of it fails with is a [`crate::failure::Failure`].

use std::path::PathBuf;

/// ffmpeg cannot be used on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such program.
    #[error("{program} is not an executable file, nor found in PATH")]
    NotFound {
        /// What was asked for.
        program: PathBuf,
    },
    /// The cage cannot be built: without seccomp no untrusted byte is decoded here.
    #[error("ffmpeg cannot be caged: {reason}")]
    Cage {
        /// The cage's own words.
        reason: String,
    },
    /// It starts, but does not answer as ffmpeg does.
    #[error("{program} does not work: {reason}")]
    Broken {
        /// Which.
        program: PathBuf,
        /// How it ended, and the last lines it wrote.
        reason: String,
    },
    /// It lacks an encoder that every ladder needs.
    #[error("ffmpeg has no encoder {0}")]
    NoEncoder(&'static str),
    /// The operating system refused.
    #[error("{what}: {error}")]
    System {
        /// Verb and object.
        what: &'static str,
        /// Its words.
        error: std::io::Error,
    },
}

impl Error {
    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Cage { .. } => "cage",
            Self::Broken { .. } => "broken",
            Self::NoEncoder(_) => "no_encoder",
            Self::System { .. } => "system",
        }
    }
}
