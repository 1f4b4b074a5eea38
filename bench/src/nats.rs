//! A private NATS server with JetStream in a temporary directory, for tests: stopped, killed and started again on the same
//! port. It listens on loopback and dies with whoever started it. The worker's own tests include this file, too.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Longest time for a start.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);

/// A server. Dropping it ends it and removes its directory.
#[derive(Debug)]
pub struct Nats {
    directory: tempfile::TempDir,
    port: u16,
    more: String,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    server: Child,
    /// Ends the server when this process ends, however it does.
    watcher: Child,
}

impl Nats {
    /// Starts an empty one.
    ///
    /// # Errors
    /// The program is not installed, or does not start: with the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The same with more lines of its configuration.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(more: &str) -> Result<Self> {
        let mut tries = 0;
        loop {
            // Free now, and perhaps not in a moment.
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let directory = tempfile::tempdir()?;
            let mut nats = Self { directory, port, more: more.to_owned(), running: None };
            match nats.restart() {
                Ok(()) => return Ok(nats),
                Err(_) if tries < 3 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A directory of its own, for files that its configuration names.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts it, after [`Self::kill`], with what it has on its disk.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "it runs already");
        let (file, log) = (self.directory.path().join("conf"), self.directory.path().join("log"));
        let store = self.directory.path().join("jetstream");
        fs::write(
            &file,
            format!(
                "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: {store:?} }}\n{}\n",
                self.port, self.more
            ),
        )?;
        let logged = fs::File::options().create(true).append(true).open(&log)?;
        let mut server = Command::new(program())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(logged)
            .spawn()
            .context("start nats-server (is it installed? `scripts/setup test` installs it)")?;
        // Reads until this process and all that it hands the pipe to are gone, and then ends the server.
        let watcher = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null", "sh", &server.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start what watches nats-server");
        let watcher = match watcher {
            Ok(watcher) => watcher,
            Err(error) => {
                let _ = server.kill();
                return Err(error);
            }
        };
        self.running = Some(Running { server, watcher });
        let began = Instant::now();
        while !self.answers() {
            let running = self.running.as_mut().expect("just started");
            let tail = || fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = running.server.try_wait()? {
                let _ = self.kill();
                bail!("nats-server ended with {status}\n{}", tail());
            }
            ensure!(began.elapsed() < PATIENCE, "nats-server does not come up\n{}", tail());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// It says who it is before it is asked, and has its store open then.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut first = [0; 5];
        let _ = stream.set_read_timeout(Some(PATIENCE));
        stream.read_exact(&mut first).is_ok() && first == *b"INFO "
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        // The watcher first: from here on the process id may become another's.
        let _ = running.watcher.kill();
        let _ = running.watcher.wait();
        running.server.kill().context("kill nats-server")?;
        running.server.wait()?;
        Ok(())
    }
}

/// Administrators' programs are not on everybody's path.
fn program() -> &'static str {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("nats-server").is_file()));
    if found { "nats-server" } else { "/usr/sbin/nats-server" }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
