//! The proof that matters: real players in a real browser play what we make, to its end, without an error event.

use std::path::PathBuf;

use axum::Router;
use axum::extract::Path;
use axum::http::header::ACCESS_CONTROL_ALLOW_ORIGIN;
use axum::routing::get;
use millrace_bench::media;
use millrace_wire::job::Job;
use serde::Deserialize;
use serde_json::json;

use crate::chromium::{self, Requests, Wanted};
use crate::stage::{Stage, made};

const PICTURE: &str = "testsrc2=size=854x480:rate=30000/1001:duration=9,noise=alls=6:allf=t";
const TONE: &str = "sine=frequency=440:sample_rate=44100:duration=9";
/// B-frames, as cameras and editors write them.
const H264: [&str; 8] = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-pix_fmt", "yuv420p"];
const AAC: [&str; 4] = ["-c:a", "aac", "-ac", "2"];

/// Nine seconds at 29.97 frames a second, with sound.
pub(crate) async fn film() -> PathBuf {
    let input = ["-f", "lavfi", "-i", PICTURE, "-f", "lavfi", "-i", TONE];
    made("film", &[&input[..], &H264, &AAC].concat()).await
}

async fn sound() -> PathBuf {
    made("sound", &[&["-f", "lavfi", "-i", TONE][..], &AAC].concat()).await
}

/// One frame longer than two segments: a last one of so few frames is more than players bear.
async fn silent() -> PathBuf {
    made("silent", &[&["-f", "lavfi", "-i", PICTURE, "-frames:v", "241"][..], &H264].concat()).await
}

/// Frames come and go: all of them for half a second, then every fifth.
async fn uneven() -> PathBuf {
    let picture = format!("{PICTURE},select='lt(mod(t,1),0.5)+not(mod(n,5))'");
    let input = ["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", TONE, "-vsync", "vfr"];
    made("uneven", &[&input[..], &H264, &AAC].concat()).await
}

/// What the result of a clip must be, from the clip itself where that says it.
async fn wanted(clip: &PathBuf, job: &Job) -> Wanted {
    let source = media::inspect(clip).await.unwrap();
    let packets = media::packets(clip).await.unwrap();
    let end = |stream: &media::Stream| {
        let own = packets.iter().filter(|packet| packet.stream_index == stream.index);
        own.map(|packet| packet.pts_s + packet.duration_s).fold(0.0, f64::max)
    };
    let picture_s = source.videos().next().map(end);
    let sizes: &[(u32, u32)] = if picture_s.is_some() { &[(854, 480), (640, 360)] } else { &[] };
    let outputs = job.outputs.as_ref().unwrap();
    Wanted {
        picture_s,
        sound_s: source.audios().next().map(end),
        sizes: sizes.to_vec(),
        frame_rate: outputs.renditions.first().map_or(0.0, |rendition| rendition.frame_rate),
    }
}

#[tokio::test]
async fn hls_and_dash_play_to_the_end_in_a_browser_without_an_error_or_a_hole() {
    let stage = Stage::two_pools().await;
    let clips = [
        ("film", film().await),
        ("sound", sound().await),
        ("silent", silent().await),
        ("uneven", uneven().await),
    ];
    for (id, clip) in &clips {
        stage.client.submit(&json!({ "job_id": id, "input_url": stage.web.url_of(clip) })).await.unwrap();
    }
    let mut faults = Vec::new();
    for (id, clip) in &clips {
        let job = stage.succeeded(id).await;
        let wanted = wanted(clip, &job).await;
        let outputs = job.outputs.unwrap();
        let url =
            |path: Option<String>| stage.client.url(&path.expect("a stream has both manifests")).unwrap();
        let (hls, dash) = (url(outputs.hls), url(outputs.dash));
        let (by_hls, by_shaka) = tokio::join!(
            chromium::play("hls", hls.as_str(), id, &[]),
            chromium::play("shaka", dash.as_str(), id, &[])
        );
        let found = by_hls.faults(&wanted).into_iter().chain(by_shaka.faults(&wanted));
        faults.extend(found.map(|fault| format!("{id} by {fault}")));
    }
    assert!(faults.is_empty(), "{}\n(see {})", faults.join("\n"), chromium::artifacts().display());
    stage.end().await;
}

#[tokio::test]
async fn a_broken_stream_is_seen_to_be_broken() {
    let stage = Stage::two_pools().await;
    let clip = film().await;
    stage.client.submit(&json!({ "job_id": "film", "input_url": stage.web.url_of(&clip) })).await.unwrap();
    let job = stage.succeeded("film").await;
    let wanted = wanted(&clip, &job).await;
    let outputs = job.outputs.unwrap();
    let (hls, dash) = (outputs.hls.unwrap(), outputs.dash.unwrap());
    let hole = Spoilt::serve(&stage, &hls, without_second_segment);
    let shifted = Spoilt::serve(&stage, &dash, |_, text| {
        text.replace("<SegmentTemplate ", "<SegmentTemplate presentationTimeOffset=\"20000\" ")
    });
    let (hole, shifted) = (hole.await, shifted.await);
    let (by_hls, by_shaka) = tokio::join!(
        chromium::play("hls", &hole.url, "hole", &[]),
        chromium::play("shaka", &shifted.url, "shifted", &[])
    );
    let faults = [by_hls.faults(&wanted), by_shaka.faults(&wanted)];
    for faults in &faults {
        println!("{}", faults.join("\n"));
    }
    let found = |place: usize, what: &str| faults[place].iter().any(|fault: &String| fault.contains(what));
    assert!(found(0, "an error event"), "{faults:#?}");
    assert!(found(1, "video/mp4") && found(1, ", not [0, "), "{faults:#?}");
    stage.end().await;
}

/// Of the pictures; the sound stays whole.
fn without_second_segment(name: &str, playlist: String) -> String {
    if name == "audio.m3u8" {
        return playlist;
    }
    let mut segments = 0;
    let mut kept = String::new();
    let mut lines = playlist.lines();
    while let Some(line) = lines.next() {
        segments += usize::from(line.starts_with("#EXTINF:"));
        if line.starts_with("#EXTINF:") && segments == 2 {
            lines.next();
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// What the gateway serves, but for the manifests.
struct Spoilt {
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Spoilt {
    async fn serve(stage: &Stage, manifest: &str, spoil: fn(&str, String) -> String) -> Self {
        let manifest = stage.client.url(manifest).unwrap();
        let name = manifest.path().rsplit('/').next().unwrap().to_owned();
        let client = stage.client.clone();
        let answer = async move |Path(name): Path<String>| {
            let answer = client.get(manifest.join(&name).unwrap().as_str()).await.unwrap();
            let is_manifest = name.ends_with(".m3u8") || name.ends_with(".mpd");
            let body = if is_manifest { spoil(&name, answer.text()).into_bytes() } else { answer.body };
            (answer.status, [(ACCESS_CONTROL_ALLOW_ORIGIN, "*")], body)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/{name}", listener.local_addr().unwrap());
        let router = Router::new().route("/{name}", get(answer));
        Self { url, server: tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }) }
    }
}

impl Drop for Spoilt {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What `page.mjs` prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    failure: Option<String>,
    requests: Requests,
    /// Percentages that the page showed while it sent the file, and while the job ran.
    upload: Vec<u32>,
    progress: Vec<u32>,
    states: Vec<String>,
    /// In the list when the first was done; a second file had been chosen and not submitted.
    jobs: usize,
    ended: bool,
    played_s: f64,
    pools: Vec<String>,
    /// Wider than the window, at 390 pixels: what sticks out.
    overflow: Vec<String>,
    violations: Vec<String>,
}

#[tokio::test]
async fn the_page_takes_a_dropped_file_shows_its_progress_and_plays_it() {
    let stage = Stage::two_pools().await;
    let clip = film().await;
    let gateway = stage.system.gateway_url();
    let admin = stage.system.admin().unwrap().url("/").unwrap();
    let args = ["--url", gateway, "--admin", admin.as_str(), "--file", clip.to_str().unwrap()];
    let page: Page = chromium::node("page.mjs", &args).await;
    assert_eq!(page.failure, None, "{page:#?}");
    assert_eq!((&page.requests.console, &page.requests.failed), (&vec![], &vec![]));
    let mut own = [gateway, admin.as_str().trim_end_matches('/')];
    own.sort_unstable();
    let mut asked = page.requests.origins.clone();
    asked.sort_unstable();
    assert_eq!(asked, own, "nobody else is asked");
    assert!(page.upload.len() >= 3 && page.upload.last() == Some(&100), "the upload was seen: {page:?}");
    assert!(page.progress.len() >= 2 && page.progress.is_sorted(), "the progress was seen to move: {page:?}");
    assert_eq!(page.states.last().map(String::as_str), Some("succeeded"), "{page:?}");
    assert!(page.states.iter().any(|state| state == "running"), "{page:?}");
    assert_eq!(page.jobs, 1, "what was only chosen is not sent");
    let length_s = media::inspect(&clip).await.unwrap().duration_s;
    assert!(page.ended && (page.played_s - length_s).abs() < 0.1, "{page:?}");
    assert_eq!(page.pools, ["aws", "gcp"]);
    assert_eq!((page.overflow, page.violations), (vec![], vec![]));
    let job = stage.client.jobs().await.unwrap().remove(0);
    assert_eq!(stage.succeeded(job.job_id.as_str()).await.job_id, job.job_id, "the job is the store's, too");
    stage.end().await;
}
