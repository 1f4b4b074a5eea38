//! Sources of jobs in parts, kept here while parts of them run: a worker that does ten ranges of a job fetches it once.
//!
//! Bounded: those in use, one for each slot at most, and of others the last one, for a short while.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;
use tracing::warn;

use crate::failure::{Ended, Failure};

/// How long a source is kept that no part uses.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The sources that are here.
#[derive(Debug)]
pub struct Kept {
    root: PathBuf,
    entries: Mutex<HashMap<String, Arc<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    directory: PathBuf,
    /// Whether it is here whole; held while it is fetched.
    here: AsyncMutex<bool>,
    used: Mutex<Instant>,
}

/// A source in use.
#[derive(Debug)]
pub struct Held(Arc<Entry>);

impl Held {
    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.0.file()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.used() = Instant::now();
    }
}

impl Entry {
    fn file(&self) -> PathBuf {
        self.directory.join("input")
    }

    fn used(&self) -> MutexGuard<'_, Instant> {
        self.used.lock().expect("nothing panics while holding a time")
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            warn!(path = %self.directory.display(), %error, "cannot remove a source");
        }
    }
}

impl Kept {
    /// Keeps them below a directory that is this worker's own.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().expect("nothing panics while holding the sources")
    }

    fn entry(&self, job_uid: &str) -> Result<Arc<Entry>, Failure> {
        let mut entries = self.entries();
        // What nobody uses goes before something new comes; the job's own stays.
        entries.retain(|uid, entry| uid == job_uid || Arc::strong_count(entry) > 1);
        if let Some(entry) = entries.get(job_uid) {
            return Ok(Arc::clone(entry));
        }
        let directory = self.root.join(format!("source-{job_uid}"));
        std::fs::create_dir_all(&directory).map_err(|error| Failure::scratch("keep a source", &error))?;
        let (here, used) = (AsyncMutex::new(false), Mutex::new(Instant::now()));
        let entry = Arc::new(Entry { directory, here, used });
        entries.insert(job_uid.to_owned(), Arc::clone(&entry));
        Ok(entry)
    }

    /// The source of a job, fetched if it is not here. Of several who want it at once, one fetches and the others wait.
    ///
    /// # Errors
    /// What `fetch` says, or `scratch_unavailable`.
    pub async fn hold(
        &self,
        job_uid: &str,
        fetch: impl AsyncFnOnce(&Path) -> Result<(), Ended>,
    ) -> Result<Held, Ended> {
        let entry = self.entry(job_uid)?;
        let mut here = entry.here.lock().await;
        if !*here {
            fetch(&entry.file()).await?;
            *here = true;
        }
        drop(here);
        Ok(Held(entry))
    }

    /// Takes over a file that is the source of a job, if it can: it saves one fetch.
    pub fn adopt(&self, job_uid: &str, file: &Path) {
        let Ok(entry) = self.entry(job_uid) else { return };
        if let Ok(mut here) = entry.here.try_lock()
            && !*here
        {
            *here = std::fs::rename(file, entry.file()).is_ok();
        }
    }

    /// Removes what nobody has used for a while.
    pub fn tidy(&self) {
        self.entries().retain(|_, entry| Arc::strong_count(entry) > 1 || entry.used().elapsed() < IDLE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_source_is_fetched_once_and_goes_when_another_comes() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, fetched) = (Kept::below(folder.path()), AtomicU32::new(0));
        let hold = async |job: &str| {
            let fetch = async |into: &Path| {
                fetched.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                std::fs::write(into, "bytes").unwrap();
                Ok(())
            };
            kept.hold(job, fetch).await.unwrap()
        };
        let (a, b) = tokio::join!(hold("j"), hold("j"));
        assert_eq!((fetched.load(Ordering::SeqCst), a.path()), (1, b.path()));
        let other = hold("other").await;
        assert!(a.path().exists() && other.path().exists(), "both are in use");
        let (mine, others) = (a.path(), other.path());
        drop((a, b));
        kept.tidy();
        assert!(mine.exists(), "its next range may come at once");
        drop(other);
        hold("third").await;
        assert!(!mine.exists() && !others.exists());
        drop(kept);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn who_waited_for_a_fetch_that_failed_fetches_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::below(folder.path());
        let failing = kept.hold("j", async |_: &Path| Err(Ended::Cancelled)).await;
        assert!(failing.is_err());
        let fetch = async |into: &Path| {
            std::fs::write(into, "x").unwrap();
            Ok(())
        };
        let held = kept.hold("j", fetch).await.unwrap();
        assert!(held.path().exists());
        let file = folder.path().join("fetched");
        std::fs::write(&file, "y").unwrap();
        kept.adopt("new", &file);
        let adopted = kept.hold("new", async |_: &Path| unreachable!("it is here")).await.unwrap();
        assert_eq!(std::fs::read_to_string(adopted.path()).unwrap(), "y");
    }
}
