//! Ending the process without dropping a request.
//!
//! Unready → wait until load balancers have seen it → stop accepting → nothing in flight, or the deadline → end.
//! Pingora's own `Server` was rejected for this: on SIGTERM it closes its listeners and then sleeps its whole grace
//! period, whether anything is in flight or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_runtime::shutdown::Shutdown;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::fleet::Fleet;

/// A gateway is ready after this long even if not every worker has been probed: one that hangs must not keep it out.
pub const FIRST_ROUND_MAX: Duration = Duration::from_secs(2);

/// What is in flight, and whether the end has begun.
#[derive(Debug)]
pub struct Drain {
    born: Instant,
    draining: AtomicBool,
    live: AtomicUsize,
    ended: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            draining: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            ended: Notify::new(),
        }
    }
}

impl Drain {
    /// Counts a request as in flight until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.live.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }

    /// Requests in flight.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Whether the end has begun.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Why the gateway is not ready, if it is not.
    pub fn unready(&self, fleet: &Fleet) -> Option<&'static str> {
        if self.draining() {
            Some("draining")
        } else if self.born.elapsed() < FIRST_ROUND_MAX && !fleet.first_round_done() {
            Some("the workers are being probed for the first time")
        } else {
            None
        }
    }

    async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.live() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct InFlight(Arc<Drain>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

/// Waits to be asked to stop, and then until it may. `listeners` closes them by turning true.
pub async fn run(
    drain: Arc<Drain>,
    shutdown: Shutdown,
    listeners: watch::Sender<bool>,
    lame_duck: Duration,
    deadline: Duration,
) {
    shutdown.graceful.cancelled().await;
    drain.draining.store(true, Ordering::Release);
    info!(in_flight = drain.live(), ?lame_duck, "draining: unready, still accepting");
    let ending = async {
        tokio::time::sleep(lame_duck).await;
        listeners.send_replace(true);
        let in_time = tokio::time::timeout(deadline, drain.empty()).await.is_ok();
        match in_time {
            true => info!("drained: nothing is in flight"),
            false => {
                warn!(in_flight = drain.live(), ?deadline, "drain deadline: what is in flight is cut off")
            }
        }
    };
    tokio::select! {
        () = ending => {}
        () = shutdown.immediate.cancelled() => warn!(in_flight = drain.live(), "asked to stop at once"),
    }
    listeners.send_replace(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_last_request_does_and_not_before() {
        let (drain, shutdown) = (Arc::new(Drain::default()), Shutdown::new());
        let (listeners, closed) = watch::channel(false);
        let request = drain.enter();
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let ending = tokio::spawn(run(drain.clone(), shutdown.clone(), listeners, second, minute));
        shutdown.graceful.cancel();
        tokio::time::sleep(second / 2).await;
        assert!(drain.draining() && !*closed.borrow(), "unready first, closed later");
        tokio::time::sleep(second).await;
        assert!(*closed.borrow() && !ending.is_finished());
        drop(request);
        tokio::time::timeout(second, ending).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_ends_is_cut_off_at_the_deadline() {
        let (drain, shutdown) = (Arc::new(Drain::default()), Shutdown::new());
        let _request = drain.enter();
        shutdown.graceful.cancel();
        let (started, minute) = (tokio::time::Instant::now(), Duration::from_secs(60));
        run(drain, shutdown, watch::channel(false).0, Duration::ZERO, minute).await;
        assert_eq!(started.elapsed().as_secs(), 60);
    }
}
