//! How much of the scratch space a worker's jobs take, and how much is left.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// `st_blocks` counts in these, whatever the file system's own blocks are.
const BLOCK_BYTES: u64 = 512;

/// Bytes of the scratch space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// That the worker's own directory takes on the disk.
    pub used: u64,
    /// That its file system still has. A volume may be limited to less than that.
    pub free: u64,
}

impl Usage {
    /// Looks at every file below `directory`; what disappears meanwhile counts nothing. Blocks: a job's ladder may be ten
    /// thousand files.
    ///
    /// # Errors
    /// The directory itself cannot be read.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let system = rustix::fs::statvfs(directory)?;
        let mut used = 0;
        let mut left = vec![std::fs::read_dir(directory)?];
        while let Some(entries) = left.pop() {
            for entry in entries.flatten() {
                // Of a link its own size, never what it leads to.
                let Ok(metadata) = entry.metadata() else { continue };
                used += metadata.blocks() * BLOCK_BYTES;
                if metadata.is_dir() {
                    left.extend(std::fs::read_dir(entry.path()));
                }
            }
        }
        Ok(Self { used, free: system.f_bavail * system.f_frsize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_deep_counts_and_links_lead_nowhere() {
        let place = tempfile::tempdir().unwrap();
        let before = Usage::of(place.path()).unwrap();
        assert!(before.free > 0);
        let deep = place.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("segment"), vec![1; 1 << 20]).unwrap();
        // A loop and a way out: neither ends this nor counts.
        std::os::unix::fs::symlink(place.path(), deep.join("loop")).unwrap();
        std::os::unix::fs::symlink("/usr", deep.join("out")).unwrap();
        let used = Usage::of(place.path()).unwrap().used - before.used;
        assert!((1 << 20..2 << 20).contains(&used), "{used}");
        assert!(Usage::of(&place.path().join("none")).is_err());
    }
}
