//! What can go wrong with the gateway itself. (What goes wrong with a request is a [`millrace_wire::Problem`].)

use std::net::SocketAddr;

use millrace_runtime::config;

/// Why the gateway does not run, or no longer does.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The routing file cannot be used.
    #[error("{0}")]
    Config(#[from] config::Error),
    /// A listener's address cannot be had.
    #[error("listen on {address} ({key}): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The key that names it.
        key: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Something the process needs from the system.
    #[error("{what}: {source}")]
    System {
        /// Verb and object.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The client for probes cannot be built.
    #[error("build the probe client: {0}")]
    Probe(#[from] reqwest::Error),
    /// A metric family cannot be registered.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A task that must run as long as the process has ended.
    #[error("the {task} has ended: {reason}")]
    TaskEnded {
        /// Its name.
        task: &'static str,
        /// What is known of it.
        reason: String,
    },
}

impl Error {
    /// The process's exit code: 2 for what the operator wrote, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}
