//! Who changed what, when, from what to what: every reload and every override, applied or refused.
//!
//! Each change is one structured log line with the target `audit`, which is the record that lasts, and one entry of a
//! bounded list that the admin listener shows.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::info;

/// How many entries are kept to be shown.
pub const KEPT: usize = 1000;
/// Longest name of an actor; the rest is cut off.
pub const ACTOR_LENGTH_MAX: usize = 128;
/// The request header by which the command line says which user runs it. It is a claim; the peer's address is not.
pub const ACTOR: &str = "millrace-actor";

/// Who changed something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The user as the client named it, or what acted by itself: `the routing file`, `SIGHUP`, `time`.
    pub name: String,
    /// Where the request came from.
    pub peer: Option<SocketAddr>,
}

impl Actor {
    /// The gateway itself, or what the system told it.
    pub fn own(name: &str) -> Self {
        Self { name: name.to_owned(), peer: None }
    }

    /// Who sent a request. The name is cut and freed of control characters: it goes to logs and terminals.
    pub fn of_request(name: Option<&str>, peer: SocketAddr) -> Self {
        let plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
        let name: String = name.unwrap_or("").chars().filter(plain).take(ACTOR_LENGTH_MAX).collect();
        Self { name: if name.is_empty() { "unnamed".to_owned() } else { name }, peer: Some(peer) }
    }
}

/// One change, or one that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1 since the start.
    pub sequence: u64,
    /// When, RFC 3339.
    pub at: String,
    /// Who.
    pub by: Actor,
    /// `reload`, `drain`, `undrain`, `weight`, `remove` or `expire`.
    pub action: String,
    /// The pool, the worker's address or the file.
    pub target: String,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
    /// What was in force before …
    pub before: Value,
    /// … and after.
    pub after: Value,
}

/// A change that has yet to be numbered and dated.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Who.
    pub by: Actor,
    /// What was done.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
    /// What was in force before …
    pub before: Value,
    /// … and after.
    pub after: Value,
}

/// The last [`KEPT`] changes.
#[derive(Debug, Default)]
pub struct Audit {
    kept: Mutex<(u64, VecDeque<Entry>)>,
}

impl Audit {
    /// Logs a change and keeps it.
    pub fn record(&self, change: Change) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 += 1;
        let Change { by, action, target, refused, before, after } = change;
        info!(
            target: "audit",
            sequence = kept.0,
            by = by.name,
            peer = by.peer.map(tracing::field::display),
            action,
            subject = target,
            refused,
            %before,
            %after,
            "{action} {}", if refused.is_some() { "refused" } else { "done" }
        );
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let entry =
            Entry { sequence: kept.0, at, by, action: action.to_owned(), target, refused, before, after };
        if kept.1.len() == KEPT {
            kept.1.pop_front();
        }
        kept.1.push_back(entry);
    }

    /// What is kept, the oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).1.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_changes_are_kept_and_numbered() {
        let audit = Audit::default();
        for _ in 0..KEPT + 5 {
            let (before, after) = (Value::Null, Value::Null);
            let (by, target) = (Actor::own("time"), "aws".to_owned());
            audit.record(Change { by, action: "expire", target, refused: None, before, after });
        }
        let entries = audit.entries();
        assert_eq!(
            (entries.len(), entries[0].sequence, entries[KEPT - 1].sequence),
            (KEPT, 6, KEPT as u64 + 5)
        );
    }

    #[test]
    fn a_name_that_would_forge_a_log_line_is_cleaned() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let name = format!("eve\n{{\"by\":\"root\"}}\u{1b}[2J{}", "x".repeat(500));
        let actor = Actor::of_request(Some(&name), peer);
        assert!(actor.name.starts_with("eve{") && actor.name.len() == ACTOR_LENGTH_MAX);
        assert!(!actor.name.contains(['\n', '\u{1b}']));
        assert_eq!(Actor::of_request(None, peer).name, "unnamed");
    }
}
