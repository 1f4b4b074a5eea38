//! The worker's settings: every one as `--flag`, `MILLRACE_FLAG` and a key of an optional TOML file; flag over
//! environment over file over default. [`Settings`] is what was said, [`Config`] is what holds; nothing past
//! [`Settings::resolve`] sees raw input.

mod second;
mod telling;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use millrace_runtime::config::{Error as FileError, File};
use millrace_runtime::tls::{Bad, Clients, Files as _, Pair, Server};
use millrace_wire::{PoolId, WorkerId};
use serde::Deserialize;

use crate::objects::Places;
use crate::sink::nats;
use crate::store::postgres;
use crate::store::upkeep::Rules;
use crate::{tls, webhooks};

/// Declares every setting once, as flag, variable and key.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $env:literal, $value:literal $(, $parse:expr)?;)*) => {
        /// Settings as they were said; what was left out is `None`.
        #[derive(Debug, Clone, Default, clap::Args, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Settings {
            $($(#[$doc])* #[arg(long, env = $env, value_name = $value $(, $parse)?)] pub $name: Option<$type>,)*
        }

        impl Settings {
            /// What `self` says, and where it says nothing, what `file` says.
            #[must_use]
            fn over(self, file: Self) -> Self {
                Self { $($name: self.$name.or(file.$name),)* }
            }
        }
    };
}

settings! {
    /// Address to serve on; port 0 picks a free one. Loopback unless told otherwise [default: 127.0.0.1:9000]
    listen: SocketAddr = "MILLRACE_LISTEN", "ADDR";
    /// Serve TLS with this certificate: PEM, its own first, then each one's issuer; followed while it runs [default: none]
    tls_certificate: PathBuf = "MILLRACE_TLS_CERTIFICATE", "FILE";
    /// The certificate's private key: PEM [default: none]
    tls_key: PathBuf = "MILLRACE_TLS_KEY", "FILE";
    /// Serve only who shows a certificate of this CA, as gateways do: PEM [default: nobody is asked]
    tls_client_ca: PathBuf = "MILLRACE_TLS_CLIENT_CA", "FILE";
    /// Pool that this worker belongs to: the name of its cluster in the routing file [default: local]
    pool: PoolId = "MILLRACE_POOL", "NAME";
    /// This worker's own name, unique in its store [default: the host name, or POOL-PORT]
    name: WorkerId = "MILLRACE_NAME", "NAME";
    /// Job store, shared by every worker of a deployment: sqlite:PATH on a local disk, or postgres://USER@HOST/DATABASE; of
    /// several with commas between them the one that takes writes is used [default: sqlite:.millrace/jobs.db]
    store: String = "MILLRACE_STORE", "URL";
    /// File with the password for a postgres:// store, read again when the server is looked for [default: as the URL says]
    store_password_file: PathBuf = "MILLRACE_STORE_PASSWORD_FILE", "FILE";
    /// Connections to a postgres:// store, 1–200 [default: 8]
    store_connections: u32 = "MILLRACE_STORE_CONNECTIONS", "N";
    /// How long a postgres:// store may take to answer, 100ms to 1m [default: 5s]
    #[serde(deserialize_with = "duration")]
    store_timeout: Duration = "MILLRACE_STORE_TIMEOUT", "TIME", value_parser = humantime::parse_duration;
    /// How long a connection to a postgres:// store may take, 100ms to the whole timeout [default: 2s]
    #[serde(deserialize_with = "duration")]
    store_connect_timeout: Duration = "MILLRACE_STORE_CONNECT_TIMEOUT", "TIME", value_parser = humantime::parse_duration;
    /// Inputs and outputs: a directory, file://, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; POOL=… is one pool's own, and
    /// several stand with commas between. The same for every worker of a deployment [default: .millrace/objects]
    objects: String = "MILLRACE_OBJECTS", "PLACE";
    /// Pool in another cloud whose bucket gets the second copy of an input where a job asks for durability dual; its workers
    /// name this one's. The store must survive a cloud, too [default: none, and such jobs are refused]
    second_pool: PoolId = "MILLRACE_SECOND_POOL", "NAME";
    /// The one server that --store names is in several clouds by itself (a quorum): what it commits survives one of them.
    /// Without this, dual is reached only while the server waits for a synchronous standby [default: false]
    store_replicated: bool = "MILLRACE_STORE_REPLICATED", "BOOL";
    /// What clients do past the workers, by URLs of the object store's own: off, uploads, or all, media included, for which
    /// the bucket must allow the players' sites [default: uploads]
    presign: Presign = "MILLRACE_PRESIGN", "WHAT";
    /// How long a job's outputs are kept after its end, where it does not say itself, at least 1s [default: 30d]
    #[serde(deserialize_with = "duration")]
    outputs_kept: Duration = "MILLRACE_OUTPUTS_KEPT", "TIME", value_parser = humantime::parse_duration;
    /// How long an upload is kept after its URL's end, or the end of the last job that read it [default: 30d]
    #[serde(deserialize_with = "duration")]
    uploads_kept: Duration = "MILLRACE_UPLOADS_KEPT", "TIME", value_parser = humantime::parse_duration;
    /// How long what a lost attempt wrote is kept; more than any worker is out of reach and writes on [default: 24h]
    #[serde(deserialize_with = "duration")]
    lost_kept: Duration = "MILLRACE_LOST_KEPT", "TIME", value_parser = humantime::parse_duration;
    /// From when something is gone for everybody to when its bytes are: longer than readers' URLs hold [default: 2h]
    #[serde(deserialize_with = "duration")]
    delete_after: Duration = "MILLRACE_DELETE_AFTER", "TIME", value_parser = humantime::parse_duration;
    /// Time between two looks at what is to be removed from the object store, at least 1s [default: 10m]
    #[serde(deserialize_with = "duration")]
    sweep_every: Duration = "MILLRACE_SWEEP_EVERY", "TIME", value_parser = humantime::parse_duration;
    /// Directory to work in; what is left there from an earlier life is removed [default: .millrace/scratch]
    scratch: PathBuf = "MILLRACE_SCRATCH", "DIR";
    /// Jobs to run at once, 1–64; slots × threads should be the cores [default: 1]
    slots: u32 = "MILLRACE_SLOTS", "N";
    /// Threads of one job's ffmpeg, 1–64 [default: the cores ÷ slots]
    threads: u32 = "MILLRACE_THREADS", "N";
    /// Length of the ranges that long pictures are cut into, which the workers of a pool encode together: 5s to 1h, or 0s for
    /// none; a job shorter than two of them stays in one piece [default: 60s]
    #[serde(deserialize_with = "duration")]
    range: Duration = "MILLRACE_RANGE", "TIME", value_parser = humantime::parse_duration;
    /// How long ranges that one encoder began wait for an equal one before another begins them anew [default: 5m]
    #[serde(deserialize_with = "duration")]
    encoder_patience: Duration = "MILLRACE_ENCODER_PATIENCE", "TIME", value_parser = humantime::parse_duration;
    /// Jobs that may wait here beyond the running ones, 0–100000; past it submits get 429 [default: 16]
    queue_max: u32 = "MILLRACE_QUEUE_MAX", "N";
    /// How long a claim holds without a heartbeat, at least 1s [default: 30s]
    #[serde(deserialize_with = "duration")]
    lease: Duration = "MILLRACE_LEASE", "TIME", value_parser = humantime::parse_duration;
    /// Time between heartbeats, at most a third of the lease [default: 5s]
    #[serde(deserialize_with = "duration")]
    heartbeat: Duration = "MILLRACE_HEARTBEAT", "TIME", value_parser = humantime::parse_duration;
    /// On SIGTERM, how long running jobs may go on before they are given back [default: 30s]
    #[serde(deserialize_with = "duration")]
    grace: Duration = "MILLRACE_GRACE", "TIME", value_parser = humantime::parse_duration;
    /// Attempts that may fail before a job is dead, 1–100 [default: 4]
    attempts_max: u32 = "MILLRACE_ATTEMPTS_MAX", "N";
    /// Private networks that input URLs may lead to, as a comma-separated list of CIDRs [default: none]
    #[arg(value_delimiter = ',')]
    allow_private_sources: Vec<IpNet> = "MILLRACE_ALLOW_PRIVATE_SOURCES", "CIDR";
    /// File with a secret to sign webhooks with, whsec_ and base64, in each line; read again as it changes [default: none,
    /// and jobs with a webhook_url are refused]
    webhook_secret_file: PathBuf = "MILLRACE_WEBHOOK_SECRET_FILE", "FILE";
    /// Private networks that webhooks may lead to, also by plain http, as a comma-separated list of CIDRs [default: none]
    #[arg(value_delimiter = ',')]
    allow_private_webhooks: Vec<IpNet> = "MILLRACE_ALLOW_PRIVATE_WEBHOOKS", "CIDR";
    /// How long a webhook's receiver may take to answer, 100ms to 1m [default: 10s]
    #[serde(deserialize_with = "duration")]
    webhook_timeout: Duration = "MILLRACE_WEBHOOK_TIMEOUT", "TIME", value_parser = humantime::parse_duration;
    /// Before a webhook is sent again, at least 10ms; doubles from try to try, up to an hour [default: 5s]
    #[serde(deserialize_with = "duration")]
    webhook_pause: Duration = "MILLRACE_WEBHOOK_PAUSE", "TIME", value_parser = humantime::parse_duration;
    /// How long after the job's end a webhook is given up, up to 30d [default: 24h]
    #[serde(deserialize_with = "duration")]
    webhook_window: Duration = "MILLRACE_WEBHOOK_WINDOW", "TIME", value_parser = humantime::parse_duration;
    /// NATS JetStream that is told every event of every job: nats://HOST or tls://HOST, several servers of one cluster with
    /// commas between. The same for every worker of a deployment [default: nobody is]
    #[arg(value_delimiter = ',')]
    events: Vec<String> = "MILLRACE_EVENTS", "URL";
    /// What the subjects of events begin with; .TENANT.JOB.EVENT follows [default: millrace.jobs]
    events_subject: String = "MILLRACE_EVENTS_SUBJECT", "SUBJECT";
    /// The stream that is made for them where none takes those subjects [default: millrace-jobs]
    events_stream: String = "MILLRACE_EVENTS_STREAM", "NAME";
    /// NATS's credentials, a .creds file [default: none]
    events_credentials_file: PathBuf = "MILLRACE_EVENTS_CREDENTIALS_FILE", "FILE";
    /// Who signs the certificates of tls:// servers: PEM [default: whom the system trusts]
    events_ca: PathBuf = "MILLRACE_EVENTS_CA", "FILE";
    /// Largest input [default: 20GB]
    source_bytes_max: ByteSize = "MILLRACE_SOURCE_BYTES_MAX", "SIZE";
    /// Longest time to fetch an input [default: 1h]
    #[serde(deserialize_with = "duration")]
    source_timeout: Duration = "MILLRACE_SOURCE_TIMEOUT", "TIME", value_parser = humantime::parse_duration;
    /// Largest upload [default: 20GB]
    upload_bytes_max: ByteSize = "MILLRACE_UPLOAD_BYTES_MAX", "SIZE";
    /// How long an upload URL holds [default: 1h]
    #[serde(deserialize_with = "duration")]
    upload_expiry: Duration = "MILLRACE_UPLOAD_EXPIRY", "TIME", value_parser = humantime::parse_duration;
    /// How long the media URLs in a job's answer hold at least, 1s to 7d [default: 12h]
    #[serde(deserialize_with = "duration")]
    media_expiry: Duration = "MILLRACE_MEDIA_EXPIRY", "TIME", value_parser = humantime::parse_duration;
    /// Sites whose pages may play media and read events: * or a comma-separated list like https://example.com [default: *]
    #[arg(value_delimiter = ',')]
    media_origins: Vec<String> = "MILLRACE_MEDIA_ORIGINS", "ORIGIN";
    /// ffmpeg without progress for so long is stopped [default: 60s]
    #[serde(deserialize_with = "duration")]
    stall_timeout: Duration = "MILLRACE_STALL_TIMEOUT", "TIME", value_parser = humantime::parse_duration;
    /// ffmpeg's program [default: ffmpeg]
    ffmpeg: PathBuf = "MILLRACE_FFMPEG", "PROGRAM";
    /// ffprobe's program [default: ffprobe]
    ffprobe: PathBuf = "MILLRACE_FFPROBE", "PROGRAM";
    /// URL of the endpoint that clients use, for absolute links [default: as the request was addressed]
    public_url: url::Url = "MILLRACE_PUBLIC_URL", "URL";
}

/// Where a worker listens when nobody says otherwise.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9000);

/// What a media URL may hold at least: a player needs a moment, and a leaked URL shall end some day.
const MEDIA_EXPIRY: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// A range is a few segments at least; and a lost one should not be long.
const RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);

/// In terms of which things are kept.
const DAY: Duration = Duration::from_secs(24 * 3600);

fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    humantime_serde::deserialize(from)
}

/// What clients do past the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presign {
    /// Nothing: every byte goes through a worker.
    Off,
    /// They upload.
    Uploads,
    /// They upload, and read media.
    All,
}

impl Presign {
    /// Whether they upload.
    pub fn uploads(self) -> bool {
        self != Self::Off
    }

    /// Whether they read media.
    pub fn downloads(self) -> bool {
        self == Self::All
    }
}

/// Which sites' pages may read media and events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// All of them.
    Any,
    /// These, as a browser writes them in `Origin`.
    Only(Vec<http::HeaderValue>),
}

impl Origins {
    /// Reads `*`, or origins without paths.
    ///
    /// # Errors
    /// What is none of the two, `*` beside others included.
    fn parse(said: &[String]) -> Result<Self, Error> {
        if said == ["*"] {
            return Ok(Self::Any);
        }
        let refuse = |got: &str| Error::Limits {
            setting: "--media-origins",
            got: format!("{got:?}"),
            wants: "* alone, or scheme://host[:port] each, in lower case, without a path or a default port"
                .to_owned(),
        };
        let origin = |text: &String| {
            let as_browsers_write_it = url::Url::parse(text).ok()?.origin();
            let plain =
                as_browsers_write_it.is_tuple() && as_browsers_write_it.ascii_serialization() == *text;
            plain.then(|| http::HeaderValue::from_str(text).ok())?
        };
        if said.is_empty() {
            return Err(refuse(""));
        }
        said.iter()
            .map(|text| origin(text).ok_or_else(|| refuse(text)))
            .collect::<Result<_, _>>()
            .map(Self::Only)
    }
}

/// Settings that hold, each inside its limits.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is documented where it is set, in Settings")]
pub struct Config {
    pub listen: SocketAddr,
    pub tls: Option<Server>,
    pub pool: PoolId,
    pub name: Option<WorkerId>,
    pub store: String,
    pub postgres: postgres::Settings,
    pub objects: Places,
    pub second_pool: Option<PoolId>,
    pub store_replicated: bool,
    pub presign: Presign,
    pub keep: Rules,
    pub sweep_every: Duration,
    pub scratch: PathBuf,
    pub slots: u32,
    pub threads: u32,
    pub range: Option<Duration>,
    pub encoder_patience: Duration,
    pub queue_max: u32,
    pub lease: Duration,
    pub heartbeat: Duration,
    pub grace: Duration,
    pub attempts_max: u32,
    pub allow_private_sources: Vec<IpNet>,
    pub webhooks: webhooks::Settings,
    pub events: Option<nats::Settings>,
    pub source_bytes_max: u64,
    pub source_timeout: Duration,
    pub upload_bytes_max: u64,
    pub upload_expiry: Duration,
    pub media_expiry: Duration,
    pub media_origins: Origins,
    pub stall_timeout: Duration,
    pub ffmpeg: PathBuf,
    pub ffprobe: PathBuf,
    pub public_url: Option<url::Url>,
}

/// Settings that cannot hold.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or parsed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value outside its limits.
    #[error("{setting} is {got}: it must be {wants}")]
    Limits {
        /// The flag's name.
        setting: &'static str,
        /// What was said.
        got: String,
        /// What would be right.
        wants: String,
    },
    /// Files of TLS that cannot be used.
    #[error("{}", tls::flagged(.0))]
    Tls(Bad),
}

fn within(setting: &'static str, got: u32, min: u32, max: u32) -> Result<u32, Error> {
    if (min..=max).contains(&got) {
        return Ok(got);
    }
    Err(Error::Limits { setting, got: got.to_string(), wants: format!("from {min} to {max}") })
}

fn places(said: &str) -> Result<Places, Error> {
    let refuse = |wrong| Error::Limits {
        setting: "--objects",
        got: wrong,
        wants: "a directory, or file://, s3:// or gs:// with what README lists after ?".to_owned(),
    };
    Places::parse(said).map_err(refuse)
}

/// The pair of files that TLS needs, or neither.
fn pair(certificate: Option<PathBuf>, key: Option<PathBuf>, asks: bool) -> Result<Option<Pair>, Error> {
    let missing = |setting, got: &'static str, wants: &str| Error::Limits {
        setting,
        got: "not set".to_owned(),
        wants: format!("set with {got}: {wants}"),
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(Pair { certificate, key })),
        (Some(_), None) => Err(missing("--tls-key", "--tls-certificate", "it is the certificate's")),
        (None, Some(_)) => Err(missing("--tls-certificate", "--tls-key", "it is what the key is of")),
        (None, None) if asks => {
            Err(missing("--tls-certificate", "--tls-client-ca", "without TLS nobody could be told"))
        }
        (None, None) => Ok(None),
    }
}

/// The files of TLS, found good.
fn tls(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
) -> Result<Option<Server>, Error> {
    let Some(own) = pair(certificate, key, client_ca.is_some())? else { return Ok(None) };
    let files = Server { own, client_ca, clients: Clients::RequiredOrOwn, alpn: tls::ALPN };
    files.load().map_err(Error::Tls)?;
    Ok(Some(files))
}

impl Settings {
    /// Where the worker with these settings listens, and what it shows there.
    ///
    /// # Errors
    /// What is wrong with the file, or one of the pair is missing.
    pub fn listener(self, file: Option<&std::path::Path>) -> Result<(SocketAddr, Option<Pair>), Error> {
        let file = match file {
            Some(path) => File::read(path)?.parse()?,
            None => Self::default(),
        };
        let said = self.over(file);
        let own = pair(said.tls_certificate, said.tls_key, false)?;
        Ok((said.listen.unwrap_or(LISTEN), own))
    }

    /// Adds the file's settings and the defaults, and checks every limit.
    ///
    /// # Errors
    /// Names the file, line and key, or the flag, and says what would be right.
    pub fn resolve(self, file: Option<&std::path::Path>) -> Result<Config, Error> {
        let file = match file {
            Some(path) => File::read(path)?.parse()?,
            None => Self::default(),
        };
        let said = self.over(file);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let slots = within("--slots", said.slots.unwrap_or(1), 1, 64)?;
        let lease = said.lease.unwrap_or(Duration::from_secs(30));
        let heartbeat = said.heartbeat.unwrap_or(Duration::from_secs(5).min(lease / 6));
        let shown = |time: Duration| humantime::format_duration(time).to_string();
        if lease < Duration::from_secs(1) {
            return Err(Error::Limits {
                setting: "--lease",
                got: shown(lease),
                wants: "at least 1s".to_owned(),
            });
        }
        if heartbeat.is_zero() || heartbeat > lease / 3 {
            let wants = format!("above 0 and at most a third of --lease ({})", shown(lease));
            return Err(Error::Limits { setting: "--heartbeat", got: shown(heartbeat), wants });
        }
        for (setting, said) in [
            ("--outputs-kept", said.outputs_kept),
            ("--sweep-every", said.sweep_every),
            ("--stall-timeout", said.stall_timeout),
        ] {
            let least = Duration::from_secs(1);
            if let Some(time) = said.filter(|time| *time < least) {
                return Err(Error::Limits { setting, got: shown(time), wants: "at least 1s".to_owned() });
            }
        }
        let range = said.range.unwrap_or(Duration::from_secs(60));
        if !range.is_zero() && !RANGE.contains(&range) {
            let wants = "0s, or from 5s to 1h".to_owned();
            return Err(Error::Limits { setting: "--range", got: shown(range), wants });
        }
        let media_expiry = said.media_expiry.unwrap_or(Duration::from_secs(12 * 3600));
        if !MEDIA_EXPIRY.contains(&media_expiry) {
            return Err(Error::Limits {
                setting: "--media-expiry",
                got: shown(media_expiry),
                wants: "from 1s to 7d".to_owned(),
            });
        }
        let timeout = said.store_timeout.unwrap_or(Duration::from_secs(5));
        let connect_timeout = said.store_connect_timeout.unwrap_or(Duration::from_secs(2).min(timeout));
        let least = Duration::from_millis(100);
        for (setting, got, most) in [
            ("--store-timeout", timeout, Duration::from_secs(60)),
            ("--store-connect-timeout", connect_timeout, timeout),
        ] {
            if !(least..=most).contains(&got) {
                let wants = format!("from {} to {}", shown(least), shown(most));
                return Err(Error::Limits { setting, got: shown(got), wants });
            }
        }
        let connections_max = within("--store-connections", said.store_connections.unwrap_or(8), 1, 200)?;
        let (webhooks, events) = (telling::webhooks(&said)?, telling::events(&said)?);
        let pool = said.pool.clone().unwrap_or_else(|| "local".parse().expect("a legal name"));
        let store = said.store.clone().unwrap_or_else(|| "sqlite:.millrace/jobs.db".to_owned());
        let objects = places(said.objects.as_deref().unwrap_or(".millrace/objects"))?;
        let second_pool = second::pool(&said, &pool, &store, &objects)?;
        let password_file = said.store_password_file;
        Ok(Config {
            postgres: postgres::Settings { connections_max, timeout, connect_timeout, password_file },
            listen: said.listen.unwrap_or(LISTEN),
            tls: tls(said.tls_certificate, said.tls_key, said.tls_client_ca)?,
            pool,
            name: said.name,
            store,
            objects,
            second_pool,
            store_replicated: said.store_replicated.unwrap_or(false),
            presign: said.presign.unwrap_or(Presign::Uploads),
            keep: Rules {
                outputs_kept: said.outputs_kept.unwrap_or(30 * DAY),
                uploads_kept: said.uploads_kept.unwrap_or(30 * DAY),
                lost_kept: said.lost_kept.unwrap_or(DAY),
                delete_after: said.delete_after.unwrap_or(DAY / 12),
            },
            sweep_every: said.sweep_every.unwrap_or(Duration::from_secs(600)),
            scratch: said.scratch.unwrap_or_else(|| ".millrace/scratch".into()),
            slots,
            threads: within("--threads", said.threads.unwrap_or((cores / slots).max(1)), 1, 64)?,
            range: (!range.is_zero()).then_some(range),
            encoder_patience: said.encoder_patience.unwrap_or(Duration::from_secs(300)),
            queue_max: within("--queue-max", said.queue_max.unwrap_or(16), 0, 100_000)?,
            lease,
            heartbeat,
            grace: said.grace.unwrap_or(Duration::from_secs(30)),
            attempts_max: within("--attempts-max", said.attempts_max.unwrap_or(4), 1, 100)?,
            allow_private_sources: said.allow_private_sources.unwrap_or_default(),
            webhooks,
            events,
            source_bytes_max: said.source_bytes_max.unwrap_or(ByteSize::gb(20)).as_u64(),
            source_timeout: said.source_timeout.unwrap_or(Duration::from_secs(3600)),
            upload_bytes_max: said.upload_bytes_max.unwrap_or(ByteSize::gb(20)).as_u64(),
            upload_expiry: said.upload_expiry.unwrap_or(Duration::from_secs(3600)),
            media_expiry,
            media_origins: Origins::parse(&said.media_origins.unwrap_or_else(|| vec!["*".to_owned()]))?,
            stall_timeout: said.stall_timeout.unwrap_or(Duration::from_secs(60)),
            ffmpeg: said.ffmpeg.unwrap_or_else(|| "ffmpeg".into()),
            ffprobe: said.ffprobe.unwrap_or_else(|| "ffprobe".into()),
            public_url: said.public_url,
        })
    }
}

#[cfg(test)]
mod tests;
