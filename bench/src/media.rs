//! What ffprobe says about a file or a stream: an opinion that is not our own.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Longest time for one look; a stream of half a minute takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file or stream as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Media {
    /// The container's length in seconds.
    pub duration_s: f64,
    /// Its pictures and sounds.
    pub streams: Vec<Stream>,
}

/// One picture or sound.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Stream {
    /// Its place in the container, as [`Packet::stream_index`] counts.
    pub index: u32,
    /// `video` or `audio`.
    pub codec_type: String,
    /// `h264`, `aac`, …
    pub codec_name: String,
    /// Pixels; 0 for sound.
    #[serde(default)]
    pub width: u32,
    /// Pixels; 0 for sound.
    #[serde(default)]
    pub height: u32,
    /// Frames a second as a fraction: `25/1`.
    #[serde(default)]
    pub r_frame_rate: String,
}

impl Stream {
    /// Frames a second, 0 when it has none.
    pub fn frame_rate(&self) -> f64 {
        let fraction = self.r_frame_rate.split_once('/');
        let parts = fraction.and_then(|(n, d)| Some((n.parse::<f64>().ok()?, d.parse::<f64>().ok()?)));
        parts.map_or(0.0, |(n, d)| if d > 0.0 { n / d } else { 0.0 })
    }
}

/// One compressed frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// Whose it is.
    pub stream_index: u32,
    /// When it is shown, in seconds.
    pub pts_s: f64,
    /// How long, in seconds.
    pub duration_s: f64,
    /// Whether decoding can start here.
    pub key: bool,
}

impl Media {
    /// Its pictures.
    pub fn videos(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(|stream| stream.codec_type == "video")
    }

    /// Its sounds.
    pub fn audios(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(|stream| stream.codec_type == "audio")
    }
}

/// Looks at a file or URL.
///
/// # Errors
/// ffprobe is missing, cannot read it or takes too long.
pub async fn inspect(what: impl AsRef<OsStr>) -> Result<Media> {
    #[derive(Deserialize)]
    struct Format {
        duration: String,
    }
    #[derive(Deserialize)]
    struct Answer {
        format: Format,
        streams: Vec<Stream>,
    }
    let fields = "format=duration:stream=index,codec_type,codec_name,width,height,r_frame_rate";
    let answer: Answer = ffprobe(&["-show_entries", fields], what.as_ref()).await?;
    let duration_s = answer.format.duration.parse().context("read ffprobe's duration")?;
    Ok(Media { duration_s, streams: answer.streams })
}

/// Reads every packet of a file or URL: a stream of which one segment is missing fails here.
///
/// # Errors
/// As [`inspect`].
pub async fn packets(what: impl AsRef<OsStr>) -> Result<Vec<Packet>> {
    #[derive(Deserialize)]
    struct Raw {
        stream_index: u32,
        #[serde(default)]
        pts_time: Option<String>,
        #[serde(default)]
        duration_time: Option<String>,
        flags: String,
    }
    #[derive(Deserialize)]
    struct Answer {
        packets: Vec<Raw>,
    }
    let fields = "packet=stream_index,pts_time,duration_time,flags";
    let answer: Answer = ffprobe(&["-show_packets", "-show_entries", fields], what.as_ref()).await?;
    let seconds = |text: Option<String>| {
        text.context("a packet without a time")?.parse().context("read a packet's time")
    };
    let packet = |raw: Raw| {
        Ok(Packet {
            stream_index: raw.stream_index,
            pts_s: seconds(raw.pts_time)?,
            duration_s: seconds(raw.duration_time)?,
            key: raw.flags.contains('K'),
        })
    };
    answer.packets.into_iter().map(packet).collect()
}

async fn ffprobe<T: DeserializeOwned>(args: &[&str], what: &OsStr) -> Result<T> {
    let mut command = tokio::process::Command::new("ffprobe");
    command.args(["-v", "error", "-of", "json"]).args(args).arg(what);
    let output = output(command, PATIENCE).await.with_context(|| format!("ffprobe {}", what.display()))?;
    serde_json::from_slice(&output).with_context(|| format!("read ffprobe's answer about {}", what.display()))
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, takes too long (it is killed then), or fails; with what it said.
pub async fn output(mut command: tokio::process::Command, patience: Duration) -> Result<Vec<u8>> {
    let program = command.as_std().get_program().display().to_string();
    command.stdin(Stdio::null()).kill_on_drop(true);
    let run = tokio::time::timeout(patience, command.output()).await;
    let output = run.with_context(|| format!("{program} still runs after {patience:?}"))?;
    let output = output.with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // The first lines name the cause, what follows are its consequences.
        let mut lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).take(5).collect();
        if lines.len() == 5 {
            lines[4] = "…";
        }
        bail!("{program} ended with {}: {}", output.status, lines.join(" | "));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_generated_clip_is_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clip.mp4");
        crate::clip::generate(
            &path,
            &crate::clip::Picture { width: 320, height: 180, rate: 25, seconds: 2.0 },
        )
        .await
        .unwrap();
        let media = inspect(&path).await.unwrap();
        let video = media.videos().next().unwrap();
        assert_eq!((video.width, video.height, video.frame_rate()), (320, 180, 25.0));
        assert_eq!((media.videos().count(), media.audios().count()), (1, 1));
        let packets = packets(&path).await.unwrap();
        let frames = packets.iter().filter(|packet| packet.stream_index == video.index);
        assert_eq!(frames.clone().count(), 50);
        assert!(
            frames.clone().any(|packet| packet.key) && packets.iter().all(|packet| packet.duration_s > 0.0)
        );
    }

    #[tokio::test]
    async fn what_is_no_media_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = format!("{:#}", inspect(file.path()).await.unwrap_err());
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}
