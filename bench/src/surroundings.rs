//! What a process is put into by the program that starts it: a disk of its own that is soon full, or another time.
//!
//! Each gives the beginning of a command line that ends with the process's own and becomes it, so that its pid, its group
//! and its leash stay what they are. A disk is mounted where nobody else sees it and goes with the process: a test that
//! dies leaves no mount behind.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Mounts a small disk at `$2` and becomes the rest.
const MOUNT: &str =
    "mkdir -p \"$2\" && mount -t tmpfs -o \"size=$1,mode=0700\" millrace \"$2\" && shift 2 && exec \"$@\"";

/// Where systems keep the library that lies about the time.
const FAKETIME: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];

/// A disk of so many bytes at a directory, which [`inside`] looks into. Whoever is not root needs a kernel that gives user
/// namespaces to everybody.
pub fn small_disk(at: &Path, bytes: u64) -> Vec<String> {
    let unshare: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["unshare", "--mount", "--propagation", "private"],
        false => &["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"],
    };
    let (size, at) = (bytes.to_string(), at.display().to_string());
    let shell = ["sh", "-c", MOUNT, "sh", &size, &at];
    unshare.iter().chain(&shell).map(|&word| word.to_owned()).collect()
}

/// A path as a process sees it that has a disk of its own.
pub fn inside(pid: u32, path: &Path) -> PathBuf {
    let below = path.strip_prefix("/").unwrap_or(path);
    Path::new("/proc").join(pid.to_string()).join("root").join(below)
}

/// A clock that is so many seconds ahead, or behind. The monotonic one goes on as it is, like that of a machine whose
/// date was set wrong.
///
/// # Errors
/// libfaketime is not installed.
pub fn other_clock(ahead_s: i64) -> Result<Vec<String>> {
    let library = faketime().context("libfaketime is not there: scripts/setup test installs it")?;
    let preload = format!("LD_PRELOAD={}", library.display());
    let ahead = format!("FAKETIME={ahead_s:+}s");
    let words = [
        "env",
        &preload,
        &ahead,
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "DONT_FAKE_MONOTONIC=1",
        "NO_FAKE_STAT=1",
    ];
    Ok(words.map(str::to_owned).into())
}

fn faketime() -> Option<PathBuf> {
    let folders = FAKETIME.iter().flat_map(|root| {
        let of_architectures =
            std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        std::iter::once(PathBuf::from(root)).chain(of_architectures)
    });
    let files = folders
        .flat_map(|folder| [folder.join("faketime/libfaketimeMT.so.1"), folder.join("libfaketimeMT.so.1")]);
    files.into_iter().find(|file| file.is_file())
}
