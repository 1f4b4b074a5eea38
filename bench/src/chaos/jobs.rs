//! The clients of a chaos run: each submits a job, follows it to its end, and submits the next.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::routing::get;
use millrace_wire::job::{Job, State};
use rand::Rng as _;
use rand::rngs::StdRng;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::audit::Breach;
use super::client::Patient;
use crate::Client;
use crate::clip::{self, Picture};

/// Longest time for a submit to be accepted, or a job to end: all that can be down at once comes back long before.
const PATIENCE: Duration = Duration::from_secs(300);

/// Done in a moment.
const SMALL: Picture = Picture { width: 320, height: 180, rate: 25, seconds: 2.0 };
/// Some seconds of work, and two renditions.
const LADDER: Picture = Picture { width: 854, height: 480, rate: 25, seconds: 6.0 };

/// One of the clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clip {
    Small,
    Ladder,
}

impl Clip {
    fn picture(self) -> Picture {
        match self {
            Self::Small => SMALL,
            Self::Ladder => LADDER,
        }
    }

    pub(super) fn frames(self) -> usize {
        let Picture { rate, seconds, .. } = self.picture();
        (f64::from(rate) * seconds).round() as usize
    }
}

/// How a job must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// With the outputs of this clip.
    Done(Clip),
    /// Its input is no video.
    Failed,
    /// Its client changed its mind, perhaps too late.
    Cancelled,
}

/// Serves what the jobs are made of.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Source {
    pub(super) async fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("make a directory for the clips")?;
        let mut router =
            Router::new().route("/page", get(async || "<!DOCTYPE html><html>Sign in first</html>"));
        for (path, clip) in [("/small", Clip::Small), ("/ladder", Clip::Ladder)] {
            let file = folder.path().join("clip.mp4");
            clip::generate(&file, &clip.picture()).await.context("make a clip")?;
            let bytes = Arc::new(std::fs::read(&file).context("read a clip")?);
            router = router.route(path, get(async move || bytes.to_vec()));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("listen")?;
        let url = format!("http://{}", listener.local_addr().context("listen")?);
        let server = tokio::spawn(async move {
            // It ends with the run.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, server })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What was accepted, and how it ended as its client saw it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    accepted: BTreeMap<String, Wish>,
    counts: Counts,
}

/// How many jobs there are of each kind.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) accepted: u32,
    pub(super) succeeded: u32,
    pub(super) failed: u32,
    pub(super) cancelled: u32,
    pub(super) retried: u32,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("nothing panics while holding the ledger")
    }

    pub(super) fn counts(&self) -> Counts {
        self.book().counts
    }

    /// Every job that was accepted, with how it must end.
    pub(super) fn all(&self) -> BTreeMap<String, Wish> {
        self.book().accepted.clone()
    }

    fn accepted(&self, id: &str, wish: Wish) {
        let mut book = self.book();
        book.accepted.insert(id.to_owned(), wish);
        book.counts.accepted += 1;
    }

    fn ended(&self, state: State) {
        let counts = &mut self.book().counts;
        match state {
            State::Succeeded => counts.succeeded += 1,
            State::Failed => counts.failed += 1,
            State::Cancelled => counts.cancelled += 1,
            _ => {}
        }
    }
}

/// Submits job after job until it is over; answers what its client alone can see to be broken.
pub(super) async fn submit(
    number: usize,
    mut rng: StdRng,
    source: String,
    clients: Patient,
    ledger: Ledger,
    over: Arc<AtomicBool>,
) -> Vec<(Breach, String, String)> {
    let mut breaches = Vec::new();
    for job in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("c{number}-{job}");
        let (wish, path) = match rng.random_range(0..20) {
            0 => (Wish::Failed, "page"),
            1 => (Wish::Cancelled, "ladder"),
            2..8 => (Wish::Done(Clip::Ladder), "ladder"),
            _ => (Wish::Done(Clip::Small), "small"),
        };
        let spec = json!({ "job_id": id, "input_url": format!("{source}/{path}"), "thumbnails": rng.random_bool(0.2) });
        let again = rng.random_bool(0.2);
        if let Err(error) = one(&id, wish, &spec, again, &clients, &ledger).await {
            breaches.push((Breach::Unended, id, format!("{error:#}")));
        }
    }
    breaches
}

/// One job from its submit to its end.
async fn one(
    id: &str,
    wish: Wish,
    spec: &Value,
    again: bool,
    clients: &Patient,
    ledger: &Ledger,
) -> Result<()> {
    clients.submit(spec, PATIENCE).await?;
    ledger.accepted(id, wish);
    if again {
        clients.submit(spec, PATIENCE).await.context("submit it again")?;
    }
    let path = format!("/jobs/{id}");
    let path = path.as_str();
    if wish == Wish::Cancelled {
        let cancel =
            |client: Client| async move { client.send(Method::DELETE, path, HeaderMap::new(), "").await };
        clients.ask("cancel a job", PATIENCE, cancel).await?;
    }
    let job = loop {
        let job: Job = clients.wait_final(id, PATIENCE).await?;
        if job.state != State::Dead {
            break job;
        }
        // All its attempts met with a kill: its client asks for more, as it is told that it may.
        let retry = format!("{path}/retry");
        let retry = retry.as_str();
        clients
            .ask("retry a job", PATIENCE, |client| async move { client.post(retry, &Value::Null).await })
            .await?;
        ledger.book().counts.retried += 1;
    };
    ledger.ended(job.state);
    Ok(())
}
