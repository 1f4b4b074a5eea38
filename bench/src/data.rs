//! The directory that one system lives in: held by one run at a time, temporary unless it is named.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The data directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct Data {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
    _lock: File,
}

impl Data {
    /// Opens the directory, or a temporary one that goes with `Data`.
    ///
    /// # Errors
    /// It cannot be made or written to, or another run holds it.
    pub(crate) fn open(directory: Option<&Path>, empty_first: bool) -> Result<Self> {
        let temporary = match directory {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("millrace-")
                    .tempdir()
                    .context("make a temporary directory")?,
            ),
        };
        let path =
            temporary.as_ref().map(tempfile::TempDir::path).or(directory).expect("one of the two is there");
        let make = || format!("make {}", path.display());
        fs::create_dir_all(path).with_context(make)?;
        let path = path.canonicalize().with_context(make)?;
        let lock = File::create(path.join("lock")).context("open the lock file")?;
        if lock.try_lock().is_err() {
            bail!("{} is in use by another run: stop that one, or choose another directory", path.display());
        }
        if empty_first {
            empty(&path).with_context(|| format!("empty {}", path.display()))?;
        }
        // Logs are of one run; those of the run before are kept beside them.
        let (logs, logs_before) = (path.join("logs"), path.join("logs.before"));
        if logs.exists() {
            let _ = fs::remove_dir_all(&logs_before);
            fs::rename(&logs, &logs_before).context("put the earlier logs aside")?;
        }
        for directory in ["objects", "scratch", "logs"] {
            fs::create_dir_all(path.join(directory)).with_context(|| format!("make {directory}"))?;
        }
        Ok(Self { path, temporary, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves a temporary directory behind, to be looked at.
    pub(crate) fn keep(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = temporary.keep();
        }
    }
}

/// Removes all but the lock.
fn empty(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false if entry.file_name() == "lock" => {}
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_serves_one_run_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = Data::open(Some(directory.path()), false).unwrap();
        let error = Data::open(Some(directory.path()), false).unwrap_err().to_string();
        assert!(error.contains("in use by another run"), "{error}");
        drop(first);
        assert!(Data::open(Some(directory.path()), false).is_ok());
    }

    #[test]
    fn an_emptied_directory_holds_nothing_of_the_last_run() {
        let directory = tempfile::tempdir().unwrap();
        drop(Data::open(Some(directory.path()), false).unwrap());
        fs::write(directory.path().join("objects/old"), "").unwrap();
        fs::write(directory.path().join("jobs.db"), "").unwrap();
        let data = Data::open(Some(directory.path()), true).unwrap();
        assert!(!data.path.join("jobs.db").exists());
        assert_eq!(fs::read_dir(data.path.join("objects")).unwrap().count(), 0);
    }

    #[test]
    fn a_temporary_data_directory_goes_unless_it_is_kept() {
        let data = Data::open(None, false).unwrap();
        let path = data.path.clone();
        assert!(path.exists());
        drop(data);
        assert!(!path.exists());
        let mut data = Data::open(None, false).unwrap();
        data.keep();
        let path = data.path.clone();
        drop(data);
        assert!(path.exists());
        fs::remove_dir_all(path).unwrap();
    }
}
