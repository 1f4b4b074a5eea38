//! Being asked to stop: SIGTERM and SIGINT, twice meaning at once.
//!
//! Whoever signals a whole process group, and a parent that passes the signal on, deliver it twice within milliseconds;
//! that is one wish, not two.

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Signals that come closer together than this are one.
const SAME_WISH: Duration = Duration::from_millis(500);

/// The two stages of being asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// First signal: take nothing new, finish what runs.
    pub graceful: CancellationToken,
    /// Second signal: give up what runs.
    pub immediate: CancellationToken,
}

impl Shutdown {
    /// A shutdown that only its owner triggers; for tests and embedding.
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown triggered by SIGTERM or SIGINT; a second signal makes it immediate.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stages = shutdown.clone();
        tokio::spawn(async move {
            let mut first: Option<Instant> = None;
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if first.is_some_and(|first| first.elapsed() < SAME_WISH) {
                    continue;
                }
                if first.is_some() {
                    warn!(signal = name, "asked to stop again: giving up what runs");
                    stages.immediate.cancel();
                    return;
                }
                info!(signal = name, "asked to stop: finishing what runs; a second signal ends it at once");
                first = Some(Instant::now());
                stages.graceful.cancel();
            }
        });
        Ok(shutdown)
    }
}
