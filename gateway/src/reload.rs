//! Following the routing file: parse → validate → diff → swap. A bad file changes nothing and says where it is bad.
//!
//! The file's content is read twice a second. inotify was rejected: a ConfigMap is updated by swapping a symlink two
//! directories up, editors replace files, network file systems tell nobody, and a watch that has silently died looks
//! like a file that does not change. Reading a small file is cheap and level-triggered.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use millrace_runtime::config::{Error, File};
use millrace_runtime::tls::Files as _;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::audit::{self, Actor, Audit};
use crate::config::{Config, Listen, https, upstream_tls};
use crate::diff::{self, Change, NEEDS_RESTART};
use crate::fleet::{Diff, Fleet};
use crate::metrics::Metrics;
use crate::settle::Settle;
use crate::upstream::Upstream;

/// Between two looks at the file.
pub const INTERVAL: Duration = crate::settle::INTERVAL;
/// Most changes of one reload that its entry in the audit log names.
pub const AUDITED_MAX: usize = 100;

/// What asked for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The file's content changed.
    Change,
    /// SIGHUP.
    Signal,
    /// `POST /reload`.
    Admin,
}

/// Where the routing file stands, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// The file.
    pub file: PathBuf,
    /// How many versions of it have been in force, the first included.
    pub generation: u64,
    /// Why the latest version is not in force, if it is not.
    pub error: Option<String>,
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// The generation now in force.
    pub generation: u64,
    /// What changed.
    #[serde(flatten)]
    pub diff: Diff,
}

/// Puts new versions of the routing file in force.
#[derive(Debug)]
pub struct Reloader {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    upstream: Arc<Upstream>,
    listen: Listen,
    state: Mutex<Followed>,
}

#[derive(Debug)]
struct Followed {
    state: State,
    /// The content that is in force.
    in_force: String,
    /// What was last put in force or refused.
    content: Settle<Seen>,
}

/// The content that was last looked at, in force or not; an unreadable file counts by its error.
type Seen = Result<String, String>;

impl Reloader {
    /// Follows `file`, whose content `text` is in force already.
    pub fn new(
        path: PathBuf,
        text: String,
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        audit: Arc<Audit>,
        upstream: Arc<Upstream>,
    ) -> Self {
        let listen = fleet.config().listen.clone();
        let state = State { file: path, generation: 1, error: None };
        metrics.reload_generation.set(1);
        metrics.reload_success.set(1);
        metrics.reload_timestamp.set(unix_now_s());
        Self {
            fleet,
            metrics,
            audit,
            upstream,
            listen,
            state: Mutex::new(Followed { state, in_force: text.clone(), content: Settle::new(Ok(text)) }),
        }
    }

    /// Where the file stands.
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).state.clone()
    }

    /// What a routing file of that content would change, and against which generation.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn diff(&self, text: &str) -> Result<(u64, Vec<Change>), Error> {
        let (state, in_force) = {
            let followed = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (followed.state.clone(), followed.in_force.clone())
        };
        Ok((state.generation, diff::changes(&state.file, &in_force, text, |file| self.accept(file))?))
    }

    /// Reads the file and puts it in force, for somebody who asks or for what triggers it by itself.
    ///
    /// # Errors
    /// Why it stays out; what was in force stays.
    pub fn reload(&self, trigger: Trigger, by: Option<Actor>) -> Result<Reloaded, Error> {
        let by = by.unwrap_or_else(|| match trigger {
            Trigger::Change => Actor::own("the routing file"),
            Trigger::Signal => Actor::own("SIGHUP"),
            Trigger::Admin => Actor::own("the admin listener"),
        });
        // Held to the end: two reloads at once must not put an older version over a newer one.
        let mut followed = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let read = File::read(&followed.state.file);
        let seen: Seen = read.as_ref().map(|file| file.text().to_owned()).map_err(ToString::to_string);
        if trigger == Trigger::Change {
            // Half a file may be a valid one, with half of the pools.
            if followed.content.saw(seen).is_none() {
                return Ok(Reloaded { generation: followed.state.generation, diff: Diff::default() });
            }
        } else {
            followed.content.settle(seen);
        }
        let Followed { state, in_force, .. } = &mut *followed;
        let before = state.generation;
        let record = |refused, after| {
            let (target, before) = (state.file.display().to_string(), json!({ "generation": before }));
            self.audit.record(audit::Change { by, action: "reload", target, refused, before, after });
        };
        let text = read.as_ref().map(|file| file.text().to_owned()).unwrap_or_default();
        let accepted = read.and_then(|file| {
            let config = self.accept(&file)?;
            // Before the pools that need it; who is still asked by the file of before takes it as well.
            let adopted = self.upstream.adopt(config.upstream_tls.as_ref());
            adopted.map_err(|bad| upstream_tls::error(&file, bad.key, bad.message))?;
            Ok(config)
        });
        match accepted {
            Ok(config) => {
                let compared = diff::changes(&state.file, in_force, &text, |file| self.accept(file));
                let mut lines: Vec<String> = compared.unwrap_or_default().iter().map(Change::line).collect();
                let more = lines.len().saturating_sub(AUDITED_MAX);
                lines.truncate(AUDITED_MAX);
                record(None, json!({ "generation": before + 1, "changes": lines, "further_changes": more }));
                *in_force = text;
                let diff = self.fleet.apply(config);
                state.generation += 1;
                state.error = None;
                let generation = state.generation;
                self.metrics.reload_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
                self.metrics.reload_success.set(1);
                self.metrics.reload_timestamp.set(unix_now_s());
                let (added, removed) = (diff.added.len(), diff.removed.len());
                info!(generation, added, removed, ?trigger, "routing file reloaded");
                Ok(Reloaded { generation, diff })
            }
            Err(error) => {
                record(Some(error.to_string()), json!({ "generation": before }));
                state.error = Some(error.to_string());
                self.metrics.reload_success.set(0);
                error!(%error, ?trigger, "routing file not reloaded; the one in force stays");
                Err(error)
            }
        }
    }

    fn accept(&self, file: &File) -> Result<Config, Error> {
        let config = Config::from_file(file)?;
        let https = |listen: &Listen| listen.https.as_ref().map(|https| https.address);
        let fixed = [
            ("listen.http", "http", self.listen.http, config.listen.http),
            ("listen.https.address", "https", https(&self.listen), https(&config.listen)),
            ("listen.admin", "admin", Some(self.listen.admin), Some(config.listen.admin)),
            ("listen.metrics", "metrics", self.listen.metrics, config.listen.metrics),
        ];
        for (key, name, now, wanted) in fixed {
            if now != wanted {
                let show = |address: Option<SocketAddr>| address.map_or("none".to_owned(), |a| a.to_string());
                let message = format!("changing it from {} to {} {NEEDS_RESTART}", show(now), show(wanted));
                return Err(match place(file.text(), name) {
                    Some(span) => file.error_at(span, key, message),
                    None => file.error(key, message),
                });
            }
        }
        if config.listen.admin_auth != self.listen.admin_auth {
            return Err(file.error("listen.admin_auth", format!("changing it {NEEDS_RESTART}")));
        }
        if config.auth != self.fleet.config().auth {
            return Err(file.error("auth", format!("changing it {NEEDS_RESTART}")));
        }
        // Other files than before must be good ones; what changes in those of before is `tls`'s business.
        if let Some(https) = &config.listen.https
            && self.fleet.config().listen.https.as_ref() != Some(https)
        {
            https.files.load().map(drop).map_err(|bad| https::error(file, bad.key, bad.message))?;
        }
        if let Some(section) = &config.upstream_tls
            && self.fleet.config().upstream_tls.as_ref() != Some(section)
        {
            section.files.load().map(drop).map_err(|bad| upstream_tls::error(file, bad.key, bad.message))?;
        }
        Ok(config)
    }
}

/// Where a listener's value stands. The resolved configuration has no places any more, so this reads the file again.
fn place(text: &str, name: &str) -> Option<std::ops::Range<usize>> {
    #[derive(serde::Deserialize)]
    struct Listeners {
        listen: std::collections::BTreeMap<String, toml::Spanned<toml::Value>>,
    }
    let read: Listeners = toml::from_str(text).ok()?;
    read.listen.get(name).map(toml::Spanned::span)
}

fn unix_now_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Follows the file and SIGHUP until `stop`.
///
/// # Errors
/// When the signal handler cannot be installed.
pub async fn run(reloader: Arc<Reloader>, stop: CancellationToken) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut look = tokio::time::interval(INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let trigger = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = hangup.recv() => Trigger::Signal,
            _ = look.tick() => Trigger::Change,
        };
        let reloader = reloader.clone();
        // A file on a network file system may take its time; errors are logged, counted and shown where they arise.
        let _ = tokio::task::spawn_blocking(move || reloader.reload(trigger, None)).await;
    }
}
