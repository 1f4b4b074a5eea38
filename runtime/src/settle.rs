//! How files are followed: by looking at them again and again; what is new counts once two looks have seen the same. One
//! look may catch a file half written, or one file of a pair before the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Between two looks.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Looks until `stop`, where blocking is allowed: a file may lie on a network file system. What goes wrong is logged,
/// counted and shown where it arises.
pub async fn follow(stop: CancellationToken, look: impl Fn() + Send + Sync + 'static) {
    let look = Arc::new(look);
    let mut turn = tokio::time::interval(INTERVAL);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = turn.tick() => {}
        }
        let look = look.clone();
        let _ = tokio::task::spawn_blocking(move || look()).await;
    }
}

/// What was last seen of it.
#[derive(Debug)]
pub struct Settle<T> {
    settled: T,
    changing: Option<T>,
}

impl<T: PartialEq> Settle<T> {
    /// Begins with content that counts already.
    pub fn new(settled: T) -> Self {
        Self { settled, changing: None }
    }

    /// Takes a look; gives the content when it is new and has stood for two looks.
    pub fn saw(&mut self, seen: T) -> Option<&T> {
        if seen == self.settled {
            self.changing = None;
            return None;
        }
        if self.changing.as_ref() != Some(&seen) {
            self.changing = Some(seen);
            return None;
        }
        Some(self.settle(seen))
    }

    /// Takes content as it is, without a second look.
    pub fn settle(&mut self, seen: T) -> &T {
        self.changing = None;
        self.settled = seen;
        &self.settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_content_counts_once_when_it_has_stood_for_two_looks() {
        let mut settle = Settle::new("old");
        let looks = ["old", "ha", "half", "half", "half", "old", "half", "old", "old"];
        let counted: Vec<bool> = looks.map(|look| settle.saw(look).is_some()).to_vec();
        assert_eq!(counted, [false, false, false, true, false, false, false, false, true]);
    }
}
