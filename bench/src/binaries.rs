//! Where the programs are: beside this one, unless the environment says otherwise.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names a directory that holds all three binaries, for a run against other builds than this one's.
pub const DIRECTORY_VARIABLE: &str = "MILLRACE_BIN_DIR";

/// The three programs of a system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// `millrace-gateway`.
    pub gateway: PathBuf,
    /// `millrace-worker`.
    pub worker: PathBuf,
    /// `millrace-bench`, which starts the other two on a [leash](crate::leash).
    pub bench: PathBuf,
}

impl Binaries {
    /// Finds them in [`DIRECTORY_VARIABLE`]'s directory, else in the target directory that this program runs from.
    ///
    /// # Errors
    /// Names the missing program and the command that builds it.
    pub fn locate() -> Result<Self> {
        if let Some(directory) = env::var_os(DIRECTORY_VARIABLE) {
            return Self::in_directory(Path::new(&directory));
        }
        let this = env::current_exe().context("find this program's own path")?;
        let directory = this.parent().context("this program's path has no directory")?;
        // Test binaries lie one deeper, in `deps`.
        let directory = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
        Self::in_directory(directory.context("this program's path has no target directory")?)
    }

    fn in_directory(directory: &Path) -> Result<Self> {
        let find = |name: &str| find(directory, name);
        Ok(Self {
            gateway: find("millrace-gateway")?,
            worker: find("millrace-worker")?,
            bench: find("millrace-bench")?,
        })
    }
}

/// One program of a directory.
///
/// # Errors
/// It is not there; with the command that builds it.
pub fn find(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    if !path.is_file() {
        bail!(
            "{} is not there: build it with `cargo build --workspace`, or say with {DIRECTORY_VARIABLE} \
             where the binaries are",
            path.display()
        );
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_binary_is_a_loud_error_that_says_how_to_build_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("millrace-gateway"), "").unwrap();
        let error = Binaries::in_directory(directory.path()).unwrap_err().to_string();
        assert!(error.contains("millrace-worker is not there"), "{error}");
        assert!(error.contains("cargo build --workspace"), "{error}");
        for name in ["millrace-worker", "millrace-bench"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert!(Binaries::in_directory(directory.path()).is_ok());
    }
}
