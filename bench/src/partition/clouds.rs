//! Two clouds, each in a network namespace of its own: workers, an S3 server, a PostgreSQL server. The first has the primary,
//! the second its synchronous standby. The gateway is a third place that reaches both.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_object_server::{ACCESS_KEY, SECRET_KEY};
use tokio::time::Instant;

use super::network::{Network, Side};
use crate::Client;
use crate::binaries::Binaries;
use crate::postgres::Server;
use crate::process::{POLL, Process, Spawner, Spec};
use crate::routing::{Pool, Routing};

/// How long a claim holds without a heartbeat.
pub const LEASE: Duration = Duration::from_secs(3);
/// Longest time from a start to the `ready` line, on a busy machine.
const READY_PATIENCE: Duration = Duration::from_secs(45);
/// Longest time for the standby to be the primary's, or the gateway to know its workers.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where the S3 server of each side listens: a namespace has all ports for itself.
const S3_PORT: u16 = 9000;
/// The database of the jobs.
const DATABASE: &str = "jobs";
/// A line that is dead shall be noticed soon.
const POSTGRES: &[(&str, &str)] = &[
    ("wal_sender_timeout", "3s"),
    ("wal_receiver_timeout", "3s"),
    ("wal_retrieve_retry_interval", "500ms"),
    ("tcp_keepalives_idle", "1"),
    ("tcp_keepalives_interval", "1"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "4000"),
];

/// A cloud's pool.
pub fn pool(side: Side) -> &'static str {
    match side {
        Side::First => "aws",
        Side::Second => "gcp",
    }
}

#[derive(Debug)]
struct Cloud {
    worker: Process,
    address: String,
    objects: Process,
}

/// Both, and the gateway. Dropping it ends everything.
#[derive(Debug)]
pub struct Clouds {
    first: Option<Cloud>,
    second: Cloud,
    gateway: Process,
    url: String,
    primary: Server,
    standby: Server,
    _spawner: Spawner,
    /// The namespaces.
    pub network: Network,
    // Dropped last: the processes write into it.
    folder: tempfile::TempDir,
}

impl Clouds {
    /// Starts everything.
    ///
    /// # Errors
    /// Something is not installed or allowed, or does not come up.
    pub async fn start() -> Result<Self> {
        let binaries = Binaries::locate()?;
        let network = Network::make()?;
        let folder = tempfile::Builder::new().prefix("millrace-partition-").tempdir()?;
        let spawner = Spawner::new(binaries.bench.clone()).context("start the spawner thread")?;
        let (primary, standby) = tokio::task::block_in_place(|| databases(&network))?;
        let mut starter = Starter {
            binaries: &binaries,
            network: &network,
            spawner: &spawner,
            folder: folder.path().into(),
            stores: [&primary, &standby],
        };
        starter.credentials()?;
        let (first, second) = (starter.cloud(Side::First).await?, starter.cloud(Side::Second).await?);
        let gateway = starter.gateway([&first, &second])?;
        let mut clouds = Self {
            first: Some(first),
            second,
            gateway,
            url: String::new(),
            primary,
            standby,
            network,
            folder,
            _spawner: spawner,
        };
        clouds.wait_ready().await?;
        Ok(clouds)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let ready = self.gateway.ready(READY_PATIENCE).await?;
        self.url.clone_from(&ready.http);
        let admin = Client::new(ready.admin.as_deref().context("the gateway names no admin address")?)?;
        let deadline = Instant::now() + PATIENCE;
        while !admin.get("/readyz").await?.status.is_success() {
            ensure!(Instant::now() < deadline, "the gateway finds no worker\n{}", self.gateway.tail());
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// A client of the gateway.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn client(&self) -> Result<Client> {
        Client::new(&self.url)
    }

    /// A client of a side's worker, past the gateway.
    ///
    /// # Errors
    /// That side is lost, or the HTTP client cannot be built.
    pub fn worker(&self, side: Side) -> Result<Client> {
        let cloud = match side {
            Side::First => self.first.as_ref().context("the first side is lost")?,
            Side::Second => &self.second,
        };
        Client::new(&format!("http://{}", cloud.address))
    }

    /// A client of the second side's S3 server, to ask which requests it saw.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn objects(&self, side: Side) -> Result<Client> {
        Client::new(&format!("http://{}:{S3_PORT}", self.network.entrance(side)))
    }

    /// Takes the first side away for good: nothing of it is reached, and then everything there is killed. Nobody says
    /// goodbye.
    ///
    /// # Errors
    /// It is lost already, or something there does not end.
    pub async fn lose_first(&mut self) -> Result<()> {
        let mut lost = self.first.take().context("the first side is lost already")?;
        self.network.lose(Side::First)?;
        lost.worker.kill9().await?;
        lost.objects.kill9().await?;
        tokio::task::block_in_place(|| self.primary.stop())
    }

    /// Lets the standby take writes. It waits for no standby of its own: there is none.
    ///
    /// # Errors
    /// It is none.
    pub fn promote(&self) -> Result<()> {
        tokio::task::block_in_place(|| self.standby.promote())
    }

    /// Asks the second side's database, as `psql` prints it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn sql(&self, question: &str) -> Result<String> {
        tokio::task::block_in_place(|| self.standby.sql(DATABASE, question))
    }

    /// The ends of all logs, for who has to find out what went wrong.
    pub fn logs(&self) -> String {
        let workers = self.first.iter().chain([&self.second]).map(|cloud| &cloud.worker);
        workers.chain([&self.gateway]).map(Process::tail).collect::<Vec<_>>().join("\n")
    }

    /// Refuses a log that shows a panic, and a process that ended by itself.
    ///
    /// # Errors
    /// Says which.
    pub fn check(&mut self) -> Result<()> {
        let first = self.first.iter_mut().map(|cloud| &mut cloud.worker);
        for process in first.chain([&mut self.second.worker, &mut self.gateway]) {
            ensure!(process.exited().is_none(), "a process ended by itself\n{}", process.tail());
        }
        for entry in fs::read_dir(self.folder.path().join("logs"))? {
            let path = entry?.path();
            let log = fs::read(&path)?;
            let panics = String::from_utf8_lossy(&log).contains("panicked at");
            ensure!(!panics, "{} shows a panic\n{}", path.display(), crate::process::tail(&path));
        }
        Ok(())
    }
}

/// A primary in the first namespace and its synchronous standby in the second.
fn databases(network: &Network) -> Result<(Server, Server)> {
    let cidr = network.cidr();
    let address = |side| network.address(side);
    let (first, second) = (Side::First, Side::Second);
    let primary = Server::start_in(&network.name(first), &address(first), &cidr, POSTGRES)?;
    primary.create(DATABASE)?;
    let standby = primary.standby_in(&network.name(second), &address(second))?;
    // Not in the standby's own settings: once promoted it has nobody to wait for.
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")?;
    primary.sql("postgres", "SELECT pg_reload_conf()")?;
    let began = std::time::Instant::now();
    let question = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    while primary.sql("postgres", question)? != "1" {
        ensure!(began.elapsed() < PATIENCE, "the standby does not become a synchronous one");
        std::thread::sleep(POLL);
    }
    Ok((primary, standby))
}

struct Starter<'a> {
    binaries: &'a Binaries,
    network: &'a Network,
    spawner: &'a Spawner,
    folder: PathBuf,
    stores: [&'a Server; 2],
}

impl Starter<'_> {
    fn credentials(&self) -> Result<()> {
        let text = format!("[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n");
        fs::write(self.folder.join("credentials"), text).context("write the credentials")?;
        fs::create_dir_all(self.folder.join("logs")).context("make a directory")
    }

    /// A program inside a side's namespace.
    fn inside(&self, side: Side, name: &str, program: &PathBuf, args: Vec<OsString>) -> Spec {
        let mut all: Vec<OsString> = ["netns", "exec"].map(OsString::from).into();
        all.extend([self.network.name(side).into(), program.into()]);
        all.extend(args);
        Spec { name: name.to_owned(), program: "ip".into(), args: all, logs: self.folder.join("logs") }
    }

    /// Where the buckets are, as both sides name them.
    fn places(&self) -> String {
        let credentials = self.folder.join("credentials");
        let place = |side| {
            let (pool, address) = (pool(side), self.network.address(side));
            format!(
                "{pool}=s3://{pool}?endpoint=http://{address}:{S3_PORT}&region=eu-west-1&credentials={}",
                credentials.display()
            )
        };
        Side::BOTH.map(place).join(",")
    }

    async fn cloud(&mut self, side: Side) -> Result<Cloud> {
        let own = pool(side);
        let other = Side::BOTH.into_iter().find(|other| *other != side).expect("there are two");
        let mut args: Vec<OsString> = vec!["object-server".into(), "--listen".into()];
        args.extend([format!("0.0.0.0:{S3_PORT}").into(), "--root".into()]);
        args.extend([self.folder.join(format!("s3-{own}")).into(), "--bucket".into(), own.into()]);
        let mut objects =
            self.spawner.start(self.inside(side, &format!("s3-{own}"), &self.binaries.bench, args))?;
        objects.ready(READY_PATIENCE).await?;

        let scratch = self.folder.join(format!("scratch-{own}"));
        let stores = self.stores.map(|server| server.network_url(DATABASE)).join(",");
        let flags: [(&str, String); 18] = [
            ("--listen", format!("{}:0", self.network.entrance(side))),
            ("--pool", own.to_owned()),
            ("--name", format!("{own}-1")),
            ("--store", stores),
            ("--objects", self.places()),
            ("--second-pool", pool(other).to_owned()),
            ("--scratch", scratch.display().to_string()),
            ("--presign", "off".to_owned()),
            // One more than there are jobs whose input is lost: those hold theirs while they look for it.
            ("--slots", "4".to_owned()),
            ("--threads", "1".to_owned()),
            ("--queue-max", "256".to_owned()),
            ("--lease", format!("{}s", LEASE.as_secs())),
            ("--heartbeat", "500ms".to_owned()),
            ("--store-timeout", "3s".to_owned()),
            ("--store-connect-timeout", "1s".to_owned()),
            ("--attempts-max", "12".to_owned()),
            ("--log-format", "text".to_owned()),
            ("--log", "info".to_owned()),
        ];
        let mut args: Vec<OsString> = vec!["run".into()];
        args.extend(flags.into_iter().flat_map(|(flag, value)| [OsString::from(flag), value.into()]));
        let spec = self.inside(side, &format!("{own}-1"), &self.binaries.worker, args);
        let mut worker = self.spawner.start(spec)?;
        let address = worker.ready(READY_PATIENCE).await?.address().to_owned();
        Ok(Cloud { worker, address, objects })
    }

    fn gateway(&self, clouds: [&Cloud; 2]) -> Result<Process> {
        let pools = Side::BOTH.into_iter().zip(clouds).map(|(side, cloud)| Pool {
            name: pool(side).to_owned(),
            weight: 1.0,
            egress_usd_per_gb: 0.09,
            endpoints: vec![cloud.address.clone()],
        });
        let routing = Routing {
            http: "127.0.0.1:0".to_owned(),
            admin: "127.0.0.1:0".to_owned(),
            auth_keys: None,
            upstream_tls: None,
            pools: pools.collect(),
        };
        let file = self.folder.join("routing.toml");
        routing.write(&file).context("write the routing file")?;
        let args = ["run", "--config", &file.display().to_string(), "--log-format", "text", "--log", "info"];
        let (args, logs) = (args.map(OsString::from).into(), self.folder.join("logs"));
        let program = self.binaries.gateway.clone();
        self.spawner.start(Spec { name: "gateway".to_owned(), program, args, logs })
    }
}
