//! A private PostgreSQL server in a temporary directory, for tests: stopped, frozen and promoted as they need it.
//!
//! It listens on a Unix socket in its directory, so that no two can meet, and dies with whoever started it. The worker's
//! own tests include this file, too: it needs nothing else of this crate.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Longest time for a start, crash recovery included, or an end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);
/// The superuser of every such server.
const USER: &str = "millrace";
/// Nothing here outlives its machine, so nothing has to reach a disk.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "64MB"),
    ("listen_addresses", ""),
    ("max_connections", "200"),
    ("logging_collector", "off"),
];

/// A server. Dropping it ends it and removes its directory.
#[derive(Debug)]
pub struct Server {
    directory: tempfile::TempDir,
    bin: PathBuf,
    settings: Vec<(String, String)>,
    /// The network namespace that it runs in, if that is not ours.
    netns: Option<String>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    postmaster: Child,
    /// Ends the server when this process does, however it does.
    watcher: Child,
    frozen: Vec<Pid>,
}

impl Server {
    /// Makes an empty server and starts it.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or it does not start: with the end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with further settings of `postgresql.conf`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(settings: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self::initialised(settings)?;
        server.restart()?;
        Ok(server)
    }

    fn initialised(settings: &[(&str, &str)]) -> Result<Self> {
        Self::prepare(settings)?.initialise()
    }

    fn initialise(self) -> Result<Self> {
        let server = self;
        let data = server.data();
        let options = ["--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8", "--username", USER];
        server.run(
            "initdb",
            options.map(OsStr::new).iter().copied().chain([OsStr::new("-D"), data.as_os_str()]),
        )?;
        Ok(server)
    }

    /// A server that speaks TLS on a port of loopback, too, with this certificate and key in PEM: see [`Self::tcp_url`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_tls(certificate: &str, key: &str) -> Result<Self> {
        let mut tries = 0;
        loop {
            // Free now, and perhaps not in a moment.
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
            let settings = [
                ("listen_addresses", "127.0.0.1"),
                ("port", &port),
                ("ssl", "on"),
                ("ssl_cert_file", "../crt"),
                ("ssl_key_file", "../key"),
            ];
            let mut server = Self::initialised(&settings)?;
            for (name, content) in [("crt", certificate), ("key", key)] {
                server.write(name, content)?;
            }
            match server.restart() {
                Ok(()) => return Ok(server),
                Err(_) if tries < 3 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// A server in a network namespace, at that address of it, to which whoever is in `cidr` may connect and stand by.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(netns: &str, address: &str, cidr: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let own = [("listen_addresses", address)];
        let mut server = Self::prepare(&[settings, &own].concat())?;
        server.netns = Some(netns.to_owned());
        let mut server = server.initialise()?;
        server.restart()?;
        server.demand(&format!("host all all {cidr} trust\nhost replication all {cidr} trust"))?;
        Ok(server)
    }

    /// A standby of a server that was started with [`Self::start_in`], in another namespace: it streams over the network.
    ///
    /// # Errors
    /// As [`Self::standby`].
    pub fn standby_in(&self, netns: &str, address: &str) -> Result<Self> {
        let mut standby = Self::prepare(&[])?;
        standby.settings.clone_from(&self.settings);
        standby.settings.push(("listen_addresses".to_owned(), address.to_owned()));
        standby.netns = Some(netns.to_owned());
        let data = standby.data();
        let (host, port) = (self.setting("listen_addresses"), self.setting("port"));
        let flags = ["--no-sync", "--checkpoint=fast", "-R", "-U", USER, "-p", port, "-h", host, "-D"];
        standby.run("pg_basebackup", flags.map(OsStr::new).iter().copied().chain([data.as_os_str()]))?;
        standby.restart()?;
        Ok(standby)
    }

    /// The URL of a database of it over the network, where it was started in a namespace.
    pub fn network_url(&self, database: &str) -> String {
        let (host, port) = (self.setting("listen_addresses"), self.setting("port"));
        format!("postgres://{USER}@{host}:{port}/{database}?sslmode=disable")
    }

    /// A file beside its data that only it may read.
    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.directory.path().join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        if let Some((user, group)) = user()? {
            chown(&path, Some(user), Some(group))?;
        }
        Ok(())
    }

    fn prepare(settings: &[(&str, &str)]) -> Result<Self> {
        let bin = installed()?;
        let directory = tempfile::Builder::new().prefix("millrace-pg-").tempdir()?;
        if let Some((user, group)) = user()? {
            chown(directory.path(), Some(user), Some(group)).context("give the server its directory")?;
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
        let settings =
            SETTINGS.iter().chain(settings).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Ok(Self { directory, bin, settings: settings.collect(), netns: None, running: None })
    }

    /// A standby of this server, streaming from it. It promotes when told to.
    ///
    /// # Errors
    /// The copy cannot be made, or does not start.
    pub fn standby(&self) -> Result<Self> {
        let mut standby = Self::prepare(&[])?;
        standby.settings.clone_from(&self.settings);
        let data = standby.data();
        let port = self.setting("port");
        let flags = ["--no-sync", "--checkpoint=fast", "-R", "-U", USER, "-p", port, "-h"].map(OsStr::new);
        let from = [self.directory.path().as_os_str(), OsStr::new("-D"), data.as_os_str()];
        standby.run("pg_basebackup", flags.iter().copied().chain(from))?;
        standby.restart()?;
        Ok(standby)
    }

    /// Ends its standing by: it takes writes from now on.
    ///
    /// # Errors
    /// It is no standby.
    pub fn promote(&self) -> Result<()> {
        ensure!(self.sql("postgres", "SELECT pg_promote()")? == "t", "it was not promoted");
        Ok(())
    }

    /// The URL of a database of it.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://{USER}@localhost:{}/{database}?host={}",
            self.setting("port"),
            self.directory.path().display()
        )
    }

    /// The URL of a database of it by TCP, where it was started with [`Self::start_tls`].
    pub fn tcp_url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.setting("port"))
    }

    fn setting(&self, name: &str) -> &str {
        let mut settings = self.settings.iter().rev();
        settings.find(|(key, _)| key == name).map_or("5432", |(_, value)| value)
    }

    /// Who may connect, and how they prove who they are: lines of `pg_hba.conf` that count before its own.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn demand(&self, lines: &str) -> Result<()> {
        let path = self.data().join("pg_hba.conf");
        let before = fs::read_to_string(&path)?;
        fs::write(&path, format!("{lines}\n{before}"))?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Makes an empty database and returns its URL.
    ///
    /// # Errors
    /// There is one of that name.
    pub fn create(&self, database: &str) -> Result<String> {
        self.sql("postgres", &format!("CREATE DATABASE {database}"))?;
        Ok(self.url(database))
    }

    /// Asks one question; the answer is what `psql` prints without any decoration.
    ///
    /// # Errors
    /// What `psql` says.
    pub fn sql(&self, database: &str, question: &str) -> Result<String> {
        let flags = [
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            USER,
            "-d",
            database,
            "-c",
            question,
            "-p",
            self.setting("port"),
            "-h",
        ];
        let socket = [self.directory.path().as_os_str()];
        let said = self.run("psql", flags.map(OsStr::new).iter().copied().chain(socket))?;
        Ok(said.trim().to_owned())
    }

    /// Starts it again after an end, and returns when it takes connections.
    ///
    /// # Errors
    /// It runs, or does not come up: with the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "it runs");
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.directory.path());
        for (key, value) in &self.settings {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        let postmaster = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let script = "read -r _; kill -CONT $(cat /proc/$1/task/$1/children) $1; kill -QUIT $1";
        let mut watcher = Command::new("sh");
        watcher.args(["-c", script, "sh", &postmaster.id().to_string()]).process_group(0);
        let watcher = watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        self.running = Some(Running { postmaster, watcher, frozen: Vec::new() });
        let began = Instant::now();
        while !self.is_ready() {
            let running = self.running.as_mut().expect("just started");
            if let Some(status) = running.postmaster.try_wait()? {
                bail!("postgres ended with {status}\n{}", self.log_tail());
            }
            ensure!(began.elapsed() < PATIENCE, "postgres does not come up\n{}", self.log_tail());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Whether it says so itself: the eighth line of its lock file.
    fn is_ready(&self) -> bool {
        let lock = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mine = self.running.as_ref().map(|running| running.postmaster.id().to_string());
        lock.lines().next() == mine.as_deref()
            && matches!(lock.lines().nth(7).map(str::trim), Some("ready" | "standby"))
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2000)..]).into_owned()
    }

    /// Ends it as a crash would: without a checkpoint, without a word to its clients.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop(&mut self) -> Result<()> {
        let mut running = self.running.take().context("it does not run")?;
        thaw(&mut running);
        // The watcher first: from here on the process id may become another's.
        let _ = running.watcher.kill();
        let _ = running.watcher.wait();
        kill_process(pid(&running.postmaster), Signal::QUIT).context("stop postgres")?;
        let began = Instant::now();
        while running.postmaster.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                let _ = running.postmaster.kill();
                bail!("postgres does not end\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// SIGSTOP to all of it, as a host that hangs: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&mut self) -> Result<()> {
        let running = self.running.as_mut().context("it does not run")?;
        let postmaster = pid(&running.postmaster);
        kill_process(postmaster, Signal::STOP)?;
        running.frozen.push(postmaster);
        // The postmaster starts no more of them now.
        let number = running.postmaster.id();
        let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"))?;
        for child in children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)) {
            // One that ends by itself meanwhile needs no stop.
            if kill_process(child, Signal::STOP).is_ok() {
                running.frozen.push(child);
            }
        }
        Ok(())
    }

    /// SIGCONT to all that was frozen.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&mut self) -> Result<()> {
        thaw(self.running.as_mut().context("it does not run")?);
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        if let Some(netns) = &self.netns {
            return self.command_in(netns, &program);
        }
        let mut command = Command::new(program);
        command.current_dir(self.directory.path()).env("LC_ALL", "C").env_remove("PGOPTIONS");
        if let Ok(Some((user, group))) = user() {
            command.uid(user).gid(group);
        }
        command
    }

    /// The same in a namespace: only root may go there, and becomes the server's user then.
    fn command_in(&self, netns: &str, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns]);
        if let Ok(Some((user, group))) = user() {
            command.args(["setpriv", "--reuid", &user.to_string(), "--regid", &group.to_string()]);
            command.arg("--clear-groups");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command.arg(program).env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command.current_dir(self.directory.path()).env("LC_ALL", "C").env_remove("PGOPTIONS");
        command
    }

    fn run<'a>(&self, program: &str, arguments: impl Iterator<Item = &'a OsStr>) -> Result<String> {
        let mut command = self.command(program);
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("start {program}"))?;
        if !output.status.success() {
            bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running.is_some()
            && let Err(error) = self.stop()
        {
            eprintln!("a PostgreSQL server is left behind: {error:#}");
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn thaw(running: &mut Running) {
    for process in running.frozen.drain(..) {
        let _ = kill_process(process, Signal::CONT);
    }
}

/// The directory of the newest installed server's programs. Debian does not put them on the path.
fn installed() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").is_file().then_some((version, bin))
        })
        .collect();
    found.sort();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|directory| directory.join("initdb").is_file())
    };
    found
        .pop()
        .map(|(_, bin)| bin)
        .or_else(on_path)
        .context("PostgreSQL is not installed: run scripts/setup test")
}

/// Whom the server runs as where this is root, whom it refuses: user and group.
fn user() -> io::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let mut passwd = String::new();
    fs::File::open("/etc/passwd")?.read_to_string(&mut passwd)?;
    let entry = |name: &str| {
        let mut fields = passwd
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    entry("postgres").or_else(|| entry("nobody")).map(Some).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "neither postgres nor nobody is a user of this system")
    })
}
