//! Whether one decode for all renditions costs quality: each rendition that was published, and the same made by a
//! process of its own, both beside the source scaled by the same filters.
//!
//! The encoders are deterministic at equal settings and threads, so one run says it all.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use millrace_wire::job::Job;
use tokio::process::Command;

use super::command::{Ladder, shell};
use super::figures::Quality;
use crate::Client;

/// One rendition as one file.
#[derive(Debug)]
struct Encode {
    path: PathBuf,
    /// Of its segments, without the initialisation.
    bytes: u64,
}

/// Measures every rendition. `alone` are the directories that the separate commands wrote to. Returns the command too.
///
/// # Errors
/// A segment that cannot be read, or an ffmpeg that fails.
pub async fn measure(
    ladder: &Ladder,
    client: &Client,
    job: &Job,
    alone: &[PathBuf],
    directory: &Path,
) -> Result<(Vec<Quality>, String)> {
    let renditions = &job.outputs.as_ref().context("the job has no outputs")?.renditions;
    if renditions.len() != alone.len() {
        bail!("{} renditions were published, {} made by hand", renditions.len(), alone.len());
    }
    let mut encodes = Vec::new();
    for (index, (rendition, alone)) in renditions.iter().zip(alone).enumerate() {
        let url = rendition.url.as_deref().context("a rendition without a playlist")?;
        let ours = published(client, url, &directory.join(format!("published-{index}.mp4"))).await;
        let ours = ours.with_context(|| format!("fetch {url}"))?;
        encodes.push([ours, joined(alone, &directory.join(format!("separate-{index}.mp4")))?]);
    }
    let paths: Vec<[&Path; 2]> =
        encodes.iter().map(|pair| [pair[0].path.as_path(), pair[1].path.as_path()]).collect();
    let arguments = ladder.ssim(&paths)?;
    let output = Command::new("ffmpeg").args(&arguments).kill_on_drop(true).output().await;
    let output = output.context("start ffmpeg")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let tail: Vec<&str> = said.lines().rev().take(5).collect();
        bail!("ffmpeg ended with {} while it compared: {}", output.status, tail.join(" | "));
    }
    let quality = renditions.iter().zip(&encodes).enumerate().map(|(index, (rendition, [ours, theirs]))| {
        let ssim = |which: &str| {
            let name = format!("ssim@{which}_{index}");
            ssim_in(&said, &name).with_context(|| format!("ffmpeg said nothing of {name}"))
        };
        Ok(Quality {
            rendition: rendition.name.clone(),
            ssim: ssim("first")?,
            ssim_separate: ssim("second")?,
            bytes: ours.bytes,
            bytes_separate: theirs.bytes,
        })
    });
    Ok((quality.collect::<Result<_>>()?, shell("ffmpeg", &arguments)))
}

/// The mean over all planes and frames, from a line such as
/// `[ssim@first_0 @ 0x55] SSIM Y:0.98 (17.9) U:0.99 (20.1) V:0.99 (20.2) All:0.985 (18.3)`.
fn ssim_in(log: &str, name: &str) -> Option<f64> {
    let mut lines = log.lines().filter_map(|line| line.strip_prefix('[')?.strip_prefix(name));
    lines.find_map(|line| {
        let all = line.strip_prefix(' ')?.split_once(" All:")?.1;
        all.split_whitespace().next()?.parse().ok()
    })
}

/// The files that a media playlist names: the initialisation first.
fn named(playlist: &str) -> Result<Vec<&str>> {
    let init = playlist.lines().find_map(|line| line.strip_prefix("#EXT-X-MAP:URI=\"")?.split('"').next());
    let init = init.context("the playlist names no initialisation")?;
    let segments = playlist.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(std::iter::once(init).chain(segments).collect())
}

/// Fetches a rendition as a player would.
async fn published(client: &Client, url: &str, to: &Path) -> Result<Encode> {
    let playlist = client.get(url).await?.success()?.text();
    let base = client.url(url)?;
    let mut file = File::create(to).with_context(|| format!("write {}", to.display()))?;
    let mut bytes = 0;
    for (index, name) in named(&playlist)?.into_iter().enumerate() {
        let segment = base.join(name).with_context(|| format!("read the name {name:?}"))?;
        let body = client.get(segment.as_str()).await?.success().context(name.to_owned())?.body;
        file.write_all(&body).with_context(|| format!("write {}", to.display()))?;
        bytes += if index > 0 { body.len() as u64 } else { 0 };
    }
    Ok(Encode { path: to.to_owned(), bytes })
}

/// Joins what a command wrote for its only picture.
fn joined(directory: &Path, to: &Path) -> Result<Encode> {
    let read = || format!("read {}", directory.display());
    let mut segments: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).with_context(read)? {
        let path = entry.with_context(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("seg_0_") {
            segments.push(path);
        }
    }
    segments.sort();
    let join = || -> io::Result<u64> {
        let mut file = File::create(to)?;
        io::copy(&mut File::open(directory.join("init_0.mp4"))?, &mut file)?;
        segments.iter().map(|segment| io::copy(&mut File::open(segment)?, &mut file)).sum()
    };
    Ok(Encode { path: to.to_owned(), bytes: join().with_context(read)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_playlist_names_its_initialisation_first() {
        let playlist = "#EXTM3U\n#EXT-X-MAP:URI=\"init_0.mp4\"\n#EXTINF:4.0,\nseg_0_00001.m4s\n#EXTINF:1.0,\n\
                        seg_0_00002.m4s\n#EXT-X-ENDLIST\n";
        assert_eq!(named(playlist).unwrap(), ["init_0.mp4", "seg_0_00001.m4s", "seg_0_00002.m4s"]);
        assert!(named("#EXTM3U\nseg.ts\n").is_err());
    }

    #[test]
    fn the_right_filter_is_read() {
        let log = "[ssim@first_1 @ 0x5] SSIM Y:0.97 (15.2) U:0.99 (20.0) V:0.99 (20.0) All:0.98 (17.0)\n\
                   [ssim@first_10 @ 0x6] SSIM Y:0.5 (3.0) U:0.5 (3.0) V:0.5 (3.0) All:0.500000 (3.0)\n";
        assert_eq!(ssim_in(log, "ssim@first_1"), Some(0.98));
        assert_eq!(ssim_in(log, "ssim@first_10"), Some(0.5));
        assert_eq!(ssim_in(log, "ssim@second_1"), None);
    }

    #[test]
    fn the_segments_of_the_picture_are_joined_in_order_and_counted_without_the_initialisation() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("seg_0_00002.m4s", "c"),
            ("init_0.mp4", "a"),
            ("seg_0_00001.m4s", "b"),
            ("seg_1_00001.m4s", "x"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let to = directory.path().join("all");
        assert_eq!(joined(directory.path(), &to).unwrap().bytes, 2);
        assert_eq!(fs::read_to_string(to).unwrap(), "abc");
    }
}
