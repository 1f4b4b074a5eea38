//! The S3 server for tests as a process of its own, so that it can be killed and started again like a real one.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use millrace_object_server::{Server, Settings};
use millrace_runtime::shutdown::Shutdown;

/// How to serve.
#[derive(Debug)]
pub struct Options {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Holds a directory per bucket.
    pub root: PathBuf,
    /// Buckets to create.
    pub buckets: Vec<String>,
}

/// Serves until told to stop; says `ready URL` when it serves.
///
/// # Errors
/// The address or the directory cannot be used.
pub async fn run(options: Options, shutdown: &Shutdown) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let settings = Settings { root: options.root, buckets: options.buckets };
    let server = Server::start(listener, &settings).context("start the S3 server")?;
    println!("ready {}", server.url);
    shutdown.graceful.cancelled().await;
    Ok(())
}
