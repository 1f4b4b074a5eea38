//! What every test stands on: one system at a time, clips made here, and a web server that answers by script.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{self, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use millrace_bench::clip::{self, Picture};
use millrace_bench::system::Builder;
use millrace_bench::{Client, System, media};
use millrace_wire::job::{Job, Phase, State as JobState};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::Instant;

/// Long enough for a job of a minute's film beside another system, on a machine that builds something meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// `cargo test` runs the tests of one program at once; two systems would only make each other late.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits until no other test of this program has a system.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Two seconds of 180 lines: done in a moment.
pub(crate) const SMALL: Picture = Picture { width: 320, height: 180, rate: 25, seconds: 2.0 };
/// A ladder of two rungs needs a source of at least 480 lines; eleven seconds leave a short last segment.
pub(crate) const LADDER: Picture = Picture { width: 854, height: 480, rate: 25, seconds: 11.0 };
/// Keeps one thread of x264 busy for some seconds with [`heavy_spec`]: time enough to be killed in.
pub(crate) const HEAVY: Picture = Picture { width: 640, height: 360, rate: 60, seconds: 12.0 };

/// A running system, a client of its gateway, and the web server for inputs.
pub(crate) struct Stage {
    pub(crate) system: System,
    pub(crate) client: Client,
    pub(crate) web: Web,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    pub(crate) async fn start(builder: Builder) -> Self {
        let turn = turn().await;
        let web = Web::start().await;
        let system = builder.start().await.unwrap();
        let client = system.client().unwrap();
        Self { system, client, web, _turn: turn }
    }

    /// Two pools of one worker each.
    pub(crate) async fn two_pools() -> Self {
        Self::start(System::builder().pool("aws", 1).pool("gcp", 1)).await
    }

    /// Ends the system in order; fails on a process left behind, a bad exit code or a panic in a log.
    pub(crate) async fn end(mut self) {
        self.web.release();
        self.system.stop().await.unwrap();
        self.system.check_logs().unwrap();
    }

    /// Submits a job that takes some seconds; returns it once its ffmpeg encodes, with the worker that runs it.
    pub(crate) async fn encoding(&self, id: &str) -> (Job, String) {
        self.client.submit(&self.web.heavy_spec(id)).await.unwrap();
        let encodes = |job: &Job| job.phase == Some(Phase::Encoding);
        let job = self.client.wait_for(id, "encoding", PATIENCE, encodes).await.unwrap();
        let worker = job.worker.clone().unwrap().to_string();
        wait_until("its ffmpeg", || !self.system.ffmpegs_of(&worker).unwrap().is_empty()).await;
        (job, worker)
    }

    /// Waits for a job's success.
    pub(crate) async fn succeeded(&self, id: &str) -> Job {
        let job = self.client.wait_final(id, PATIENCE).await.unwrap();
        assert_eq!(job.state, JobState::Succeeded, "{job:?}");
        job
    }

    /// How many jobs are in a state.
    pub(crate) async fn count(&self, state: JobState) -> usize {
        self.client.jobs().await.unwrap().iter().filter(|job| job.state == state).count()
    }
}

/// Waits for a condition that needs no system to look at.
pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never saw: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A clip of that kind, made once and kept beside the test programs.
pub(crate) async fn clip(picture: &Picture) -> PathBuf {
    let Picture { width, height, rate, seconds } = picture;
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clip-{width}x{height}-{rate}-{seconds}.mp4"));
    if !path.is_file() {
        clip::generate(&path, picture).await.unwrap();
    }
    path
}

/// The clip that ffmpeg makes of these arguments, made once and kept beside the test programs; [`Web`] serves it as
/// `/made/NAME`, by the file's name.
pub(crate) async fn made(name: &str, args: &[&str]) -> PathBuf {
    // Other arguments are another clip, so that no old one is taken for it.
    let mut hasher = DefaultHasher::new();
    args.hash(&mut hasher);
    let made = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = made.join(format!("{name}-{:016x}.mp4", hasher.finish()));
    if !path.is_file() {
        // Written beside and renamed: half a clip would be taken for a whole one.
        let beside = made.join(format!("{name}.{}.part.mp4", std::process::id()));
        let mut ffmpeg = tokio::process::Command::new("ffmpeg");
        ffmpeg.args(["-nostdin", "-v", "error", "-y"]).args(args).arg(&beside);
        media::output(ffmpeg, PATIENCE).await.unwrap();
        std::fs::rename(&beside, &path).unwrap();
    }
    path
}

/// A web server on loopback whose answers are bad in every way that matters, and good where they should be.
pub(crate) struct Web {
    url: String,
    gate: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Content {
    small: Arc<Vec<u8>>,
    heavy: Arc<Vec<u8>>,
    ladder: Arc<Vec<u8>>,
    open: watch::Receiver<bool>,
}

impl Web {
    async fn start() -> Self {
        let read = async |picture| Arc::new(std::fs::read(clip(picture).await).unwrap());
        let (gate, open) = watch::channel(false);
        let content = Content {
            small: read(&SMALL).await,
            heavy: read(&HEAVY).await,
            ladder: read(&LADDER).await,
            open,
        };
        let router = Router::new()
            .route("/small.mp4", get(async |State(content): State<Content>| content.small.to_vec()))
            .route("/heavy.mp4", get(async |State(content): State<Content>| content.heavy.to_vec()))
            .route("/ladder.mp4", get(async |State(content): State<Content>| content.ladder.to_vec()))
            .route("/made/{name}", get(made_before))
            .route("/held.mp4", get(held))
            .route("/empty.mp4", get(async || Vec::new()))
            .route("/html.mp4", get(async || Html("<!DOCTYPE html><html><body>Sign in first</body></html>")))
            .route(
                "/playlist.mp4",
                get(async || "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n"),
            )
            .route("/cut.mp4", get(async |State(content): State<Content>| half(&content.ladder)))
            .route("/gone.mp4", get(async || (StatusCode::GONE, "gone").into_response()))
            .with_state(content);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, gate, server }
    }

    /// The URL of a path on this server.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// The URL of a clip of [`made`].
    pub(crate) fn url_of(&self, clip: &Path) -> String {
        self.url(&format!("/made/{}", clip.file_name().unwrap().to_str().unwrap()))
    }

    /// Lets every `/held.mp4` go on, those that wait and those to come.
    pub(crate) fn release(&self) {
        self.gate.send_replace(true);
    }

    /// A job that is done in a moment.
    pub(crate) fn small_spec(&self, id: &str) -> Value {
        json!({ "job_id": id, "input_url": self.url("/small.mp4") })
    }

    /// A job that holds its slot, without any work, until [`Self::release`].
    pub(crate) fn held_spec(&self, id: &str) -> Value {
        json!({ "job_id": id, "input_url": self.url("/held.mp4"), "priority": "live" })
    }

    /// A job whose ffmpeg runs for some seconds.
    pub(crate) fn heavy_spec(&self, id: &str) -> Value {
        json!({ "job_id": id, "input_url": self.url("/heavy.mp4"), "preset": "medium", "crf": 18 })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A clip of [`made`]: its whole name is one segment of the path, so it cannot lead elsewhere.
async fn made_before(extract::Path(name): extract::Path<String>) -> Vec<u8> {
    tokio::fs::read(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)).await.unwrap()
}

async fn held(State(content): State<Content>) -> Vec<u8> {
    let mut open = content.open.clone();
    // An error means that the test is over; the answer does not matter any more.
    let _ = open.wait_for(|open| *open).await;
    content.small.to_vec()
}

fn half(clip: &[u8]) -> Vec<u8> {
    clip[..clip.len() / 2].to_vec()
}
