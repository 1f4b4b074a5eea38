//! The way to the server that takes writes, as long as there is one.
//!
//! While there is none, questions fail at once and whoever asks makes the link look again: idle workers ask every second, so
//! no task of its own has to. A look asks every server; of those that take writes the one that was promoted last is used,
//! and never again one from before it. An unfinished question costs its connection, so that none is ever reused in the
//! middle of an answer.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::future::join_all;
use rand::Rng as _;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Postgres as Db};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::super::Error;
use super::Settings;
use super::server::{Found, Server, Unfit};

/// Least time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// With several servers, how old the last look may be: an old primary that comes back answers as if nothing had happened.
const LOOK_AGE_MAX: Duration = Duration::from_secs(10);
/// A connection that rested for so long is asked before it is used …
const REST_MAX: Duration = Duration::from_secs(1);
/// … and answers within this, or is dropped.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// How often a question is asked again that lost against another transaction.
const TRIES_MAX: u32 = 6;

/// The server in use.
#[derive(Debug)]
struct Up {
    pool: PgPool,
    server: usize,
    timeline: u32,
}

/// The way to a store of several servers.
#[derive(Debug)]
pub(super) struct Link {
    servers: Vec<Server>,
    settings: Settings,
    store_id: OnceLock<String>,
    up: ArcSwapOption<Up>,
    looking: Mutex<Looking>,
}

#[derive(Debug)]
struct Looking {
    task: Option<JoinHandle<()>>,
    began: Option<Instant>,
    /// The highest that was ever used.
    timeline: u32,
    /// The pool's connections may lead to a server that takes no writes any more.
    renew: bool,
    why_down: String,
}

impl Link {
    pub(super) fn new(servers: Vec<Server>, settings: Settings) -> Self {
        let why_down = "not looked yet".to_owned();
        let looking = Looking { task: None, began: None, timeline: 0, renew: false, why_down };
        let (store_id, up) = (OnceLock::new(), ArcSwapOption::empty());
        Self { servers, settings, store_id, up, looking: Mutex::new(looking) }
    }

    fn looking(&self) -> MutexGuard<'_, Looking> {
        self.looking.lock().expect("nothing panics while holding the state of the look")
    }

    /// From now on only servers of this store count.
    pub(super) fn is_of(&self, store_id: &str) {
        let _ = self.store_id.set(store_id.to_owned());
    }

    /// Asks every server; answers with the one to use, or why there is none and whether waiting may help.
    pub(super) async fn find(&self) -> Result<(usize, Found), Unfit> {
        let known = self.store_id.get().map(String::as_str);
        let asked = join_all(self.servers.iter().map(|server| server.ask(&self.settings, known))).await;
        let before = self.looking().timeline;
        let mut unfit = Vec::new();
        let mut best: Option<(usize, Found)> = None;
        for (number, answer) in asked.into_iter().enumerate() {
            let name = &self.servers[number].name;
            match answer {
                Ok(found) if found.timeline < before => {
                    let why = format!(
                        "{name}: it is from before a promotion (timeline {}, and {before} was in use)",
                        found.timeline
                    );
                    unfit.push(Unfit { why, is_permanent: false });
                }
                // Among equals the one in use, so that nothing goes back and forth.
                Ok(found)
                    if best.as_ref().is_none_or(|(_, best)| {
                        found.timeline > best.timeline
                            || (found.timeline == best.timeline && self.in_use() == Some(number))
                    }) =>
                {
                    best = Some((number, found))
                }
                Ok(_) => {}
                Err(Unfit { why, is_permanent }) => {
                    unfit.push(Unfit { why: format!("{name}: {why}"), is_permanent });
                }
            }
        }
        best.ok_or_else(|| Unfit {
            is_permanent: unfit.iter().all(|unfit| unfit.is_permanent),
            why: unfit.into_iter().map(|unfit| unfit.why).collect::<Vec<_>>().join("; "),
        })
    }

    fn in_use(&self) -> Option<usize> {
        self.up.load().as_ref().map(|up| up.server)
    }

    /// Uses what a look found.
    pub(super) fn follow(&self, found: Result<(usize, Found), Unfit>) {
        let mut looking = self.looking();
        let before = self.up.load_full();
        match found {
            Ok((server, Found { options, timeline })) => {
                looking.timeline = looking.timeline.max(timeline);
                let name = &self.servers[server].name;
                match before {
                    Some(up) if up.server == server && up.timeline == timeline && !looking.renew => {
                        up.pool.set_connect_options(options);
                    }
                    before => {
                        let pool = self.pool().connect_lazy_with(options);
                        self.up.store(Some(Arc::new(Up { pool, server, timeline })));
                        if before.is_none() || before.is_some_and(|up| up.server != server) {
                            info!(server = name, timeline, "the job store is found");
                        }
                    }
                }
                looking.renew = false;
            }
            Err(Unfit { why, .. }) => {
                if before.is_some() {
                    warn!(why, "the job store is lost");
                }
                looking.why_down = why;
                self.up.store(None);
            }
        }
    }

    fn pool(&self) -> PgPoolOptions {
        PgPoolOptions::new()
            .max_connections(self.settings.connections_max)
            .acquire_timeout(self.settings.connect_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for < REST_MAX {
                        return Ok(true);
                    }
                    let timed_out = |_| sqlx::Error::Io(io::ErrorKind::TimedOut.into());
                    tokio::time::timeout(PING_PATIENCE, connection.ping()).await.map_err(timed_out)??;
                    Ok(true)
                })
            })
    }

    /// Looks in the background, unless a look is under way or just was.
    fn look(self: &Arc<Self>, renew: bool) {
        let mut looking = self.looking();
        looking.renew |= renew;
        let is_busy = looking.task.as_ref().is_some_and(|task| !task.is_finished());
        if is_busy || looking.began.is_some_and(|began| began.elapsed() < LOOK_EVERY) {
            return;
        }
        looking.began = Some(Instant::now());
        let link = Arc::clone(self);
        // It ends by itself: every server is asked for so long and no longer.
        looking.task = Some(tokio::spawn(async move {
            let found = link.find().await;
            link.follow(found);
        }));
    }

    /// A connection to the server in use.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Held, Error> {
        let Some(up) = self.up.load_full() else {
            self.look(false);
            let why = self.looking().why_down.clone();
            return Err(Error::Unavailable(sqlx::Error::Io(io::Error::new(
                io::ErrorKind::NotConnected,
                why,
            ))));
        };
        let is_old = || self.looking().began.is_none_or(|began| began.elapsed() > LOOK_AGE_MAX);
        if self.servers.len() > 1 && is_old() {
            self.look(false);
        }
        Ok(Held { connection: Some(up.pool.acquire().await?), clean: false })
    }
}

/// A connection that goes back to its pool only after a whole answer.
pub(super) struct Held {
    connection: Option<PoolConnection<Db>>,
    clean: bool,
}

impl Held {
    /// The answer was read to its end.
    pub(super) fn is_clean(&mut self) {
        self.clean = true;
    }
}

impl Deref for Held {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take_if(|_| !self.clean) {
            // Closes the socket, and so ends its session, its transaction and its locks, without waiting for anybody.
            drop(connection.detach());
        }
    }
}

/// A question to the store, from its first try to its answer.
pub(super) struct Question<'a> {
    link: &'a Arc<Link>,
    deadline: Instant,
    tries: u32,
}

impl<'a> Question<'a> {
    pub(super) fn new(link: &'a Arc<Link>) -> Self {
        Self { link, deadline: Instant::now() + link.settings.timeout, tries: 0 }
    }

    /// Waits for one try, but not past the question's deadline. `None`: it lost against another transaction and may try
    /// again.
    pub(super) async fn within<T>(
        &mut self,
        asked: impl Future<Output = Result<T, Error>>,
    ) -> Option<Result<T, Error>> {
        let answer = tokio::time::timeout_at(self.deadline, asked).await.unwrap_or_else(|_| {
            let patience = humantime::format_duration(self.link.settings.timeout);
            let why = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience}"));
            Err(Error::Unavailable(sqlx::Error::Io(why)))
        });
        let Err(Error::Unavailable(error)) = &answer else { return Some(answer) };
        self.tries += 1;
        match doubt(error) {
            Doubt::Lost if self.tries < TRIES_MAX => {
                let pause = Duration::from_millis(rand::rng().random_range(2..20 << self.tries));
                tokio::time::sleep(pause).await;
                return None;
            }
            Doubt::Server => self.link.look(false),
            Doubt::Pool => self.link.look(true),
            Doubt::Lost | Doubt::None => {}
        }
        Some(answer)
    }
}

/// What an error lets one doubt.
#[derive(Debug, PartialEq, Eq)]
enum Doubt {
    /// Nothing: the server answered.
    None,
    /// It lost against another transaction, or against a new schema: again, and it may win.
    Lost,
    /// Whether the server is still there.
    Server,
    /// Whether the pool's connections lead to the right one.
    Pool,
}

fn doubt(error: &sqlx::Error) -> Doubt {
    let sqlx::Error::Database(said) = error else { return Doubt::Server };
    match said.code().as_deref().unwrap_or_default() {
        // Serialization failure, deadlock, and a plan from before a later worker's migration; that went with its connection.
        "40001" | "40P01" | "0A000" => Doubt::Lost,
        // A write where none may be: it was made a standby.
        "25006" => Doubt::Pool,
        // Shutdown, crash, starting up; a connection that broke; a password that has changed.
        code if code.starts_with("57P") || code.starts_with("08") || code.starts_with("28") => Doubt::Server,
        _ => Doubt::None,
    }
}
