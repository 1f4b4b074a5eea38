//! The S3 server of an arena: a process that is killed, frozen and started again where it was.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_object_server::{ACCESS_KEY, Fault, SECRET_KEY, Seen};
use reqwest::Method;
use reqwest::header::HeaderMap;
use rustix::process::Signal;

use super::arena::address_to_return_to;
use crate::Client;
use crate::binaries::Binaries;
use crate::process::{Process, Spawner, Spec};

/// Longest time for its start or its end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The server, a bucket for each pool, and the credentials for it.
#[derive(Debug)]
pub struct ObjectStore {
    pools: Vec<String>,
    client: Client,
    address: String,
    process: Option<Process>,
    spawner: Spawner,
    program: PathBuf,
    // Dropped last: the process writes into it.
    folder: tempfile::TempDir,
}

impl ObjectStore {
    /// Starts it.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(pools: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("millrace-s3-").tempdir().context("make a directory")?;
        let program = Binaries::locate()?.bench;
        let text = format!("[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n");
        std::fs::write(folder.path().join("credentials"), text).context("write the credentials")?;
        let mut store = Self {
            pools: pools.iter().map(|pool| (*pool).to_owned()).collect(),
            client: Client::new("http://127.0.0.1:9")?,
            address: address_to_return_to()?,
            process: None,
            spawner: Spawner::new(program.clone()).context("start the spawner thread")?,
            program,
            folder,
        };
        store.restart().await?;
        Ok(store)
    }

    /// Starts it where it was before. The faults of its earlier life are forgotten.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        let mut args: Vec<OsString> =
            vec!["object-server".into(), "--listen".into(), self.address.clone().into()];
        args.extend(["--root".into(), self.root().into()]);
        for pool in &self.pools {
            args.extend(["--bucket".into(), pool.into()]);
        }
        let logs = self.folder.path().to_owned();
        let spec = Spec { name: "object-server".to_owned(), program: self.program.clone(), args, logs };
        let mut process = self.spawner.start(spec)?;
        let ready = process.ready(PATIENCE).await?;
        ready.address().clone_into(&mut self.address);
        self.client = Client::new(&ready.http)?;
        self.process = Some(process);
        Ok(())
    }

    /// What workers take as `--objects`: a bucket for each pool.
    pub fn places(&self) -> String {
        let credentials = self.folder.path().join("credentials");
        let place = |pool: &String| {
            let (address, credentials) = (&self.address, credentials.display());
            format!("{pool}=s3://{pool}?endpoint=http://{address}&region=eu-west-1&credentials={credentials}")
        };
        self.pools.iter().map(place).collect::<Vec<_>>().join(",")
    }

    /// Holds a directory per bucket, where each object is a file.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("s3")
    }

    /// What goes wrong from now on, instead of what was set before.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn set(&self, faults: &[Fault]) -> Result<()> {
        let body = serde_json::to_vec(faults).context("write the faults")?;
        self.client.send(Method::PUT, "/.faults", HeaderMap::new(), body).await?.success()?;
        Ok(())
    }

    /// The requests since the last such question.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn seen(&self) -> Result<Vec<Seen>> {
        self.client.get("/.seen").await?.success()?.json()
    }

    /// `kill -9`; returns when it is gone.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill9(&mut self) -> Result<()> {
        self.running()?.kill9().await?;
        self.process = None;
        Ok(())
    }

    /// An orderly end.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub async fn stop(&mut self) -> Result<()> {
        let process = self.running()?;
        process.ask_to_stop()?;
        process.wait(PATIENCE).await?;
        self.process = None;
        Ok(())
    }

    /// SIGSTOP: its sockets stay open and nothing of it answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&mut self) -> Result<()> {
        self.running()?.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&mut self) -> Result<()> {
        self.running()?.signal(Signal::CONT)
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the object store does not run")
    }
}

/// The files below a directory, however deep; none where there is no directory.
pub(super) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}
