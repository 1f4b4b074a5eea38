//! One server of the store: its URL, and what it says of itself.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tracing::log::LevelFilter;

use super::Settings;

/// What a URL may set. Anything else is more likely a slip, and one in `sslmode` would cost the encryption.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];
/// Those that name a file each, and the variable that does instead.
const FILES: [(&str, &str); 3] =
    [("sslrootcert", "PGSSLROOTCERT"), ("sslcert", "PGSSLCERT"), ("sslkey", "PGSSLKEY")];
/// How long a transaction waits for another's row.
const LOCK_TIMEOUT: &str = "2s";
/// How long a transaction may be open without a word: a stopped process must not block the others.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "5s";

/// A server of the store.
#[derive(Debug, Clone)]
pub(super) struct Server {
    options: PgConnectOptions,
    password_file: Option<PathBuf>,
    /// Files that the driver reads at each connection, by the setting that names them.
    files: Vec<(&'static str, PathBuf)>,
    /// How logs and errors call it: without a password.
    pub(super) name: String,
}

/// What a server said when it was asked.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// How to connect, with the password as it is now.
    pub(super) options: PgConnectOptions,
    /// How often the database was promoted before, itself included. Of two servers that take writes the higher is the one
    /// that was promoted last, and the other one a primary that nobody told.
    pub(super) timeline: u32,
}

/// Why a server is not the one to use now.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) why: String,
    /// Waiting will not help.
    pub(super) is_permanent: bool,
}

impl Unfit {
    fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_permanent: false }
    }
}

impl From<sqlx::Error> for Unfit {
    fn from(error: sqlx::Error) -> Self {
        let is_permanent = match &error {
            // Refused for who we are or what we asked for: 28 is the password, 3D000 the database, 42501 a right.
            sqlx::Error::Database(refused) => refused
                .code()
                .is_some_and(|code| code.starts_with("28") || code == "3D000" || code == "42501"),
            sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
            _ => false,
        };
        Self { why: error.to_string(), is_permanent }
    }
}

/// The files that the URL or the environment names; a certificate may as well stand there itself.
fn files(url: &url::Url) -> Vec<(&'static str, PathBuf)> {
    let named = |(key, variable): (&'static str, &'static str)| {
        let said = url.query_pairs().filter(|(said, _)| said == key).last();
        let said = said.map(|(_, value)| (key, value.into_owned()));
        let (setting, value) = said.or_else(|| Some((variable, std::env::var(variable).ok()?)))?;
        (!value.contains("-----BEGIN")).then(|| (setting, PathBuf::from(value)))
    };
    FILES.into_iter().filter_map(named).collect()
}

impl Server {
    /// Reads `postgres://…`. Errors say what would be right, and no password.
    pub(super) fn parse(text: &str, password_file: Option<&Path>) -> Result<Self, String> {
        let url = url::Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err("each URL must be postgres://USER@HOST/DATABASE".to_owned());
        }
        if let Some((key, _)) =
            url.query_pairs().find(|(key, _)| !PARAMETERS.contains(&&**key) && !key.starts_with("options["))
        {
            return Err(format!("unknown parameter {key:?}; known are {}", PARAMETERS.join(", ")));
        }
        let mut options = PgConnectOptions::from_str(text).map_err(|error| error.to_string())?;
        let is_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
        let is_local = is_socket
            || options.get_host() == "localhost"
            || options.get_host().parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let said =
            url.query_pairs().any(|(key, _)| key == "sslmode") || std::env::var_os("PGSSLMODE").is_some();
        if !said && !is_local {
            // libpq's default would take whoever answers for the database.
            options = options.ssl_mode(PgSslMode::VerifyFull);
        }
        if options.get_application_name().is_none() {
            options = options.application_name("millrace-worker");
        }
        let host =
            options.get_socket().map_or(options.get_host().to_owned(), |path| path.display().to_string());
        let database = options.get_database().unwrap_or(options.get_username());
        let name = format!("postgres://{host}:{}/{database}", options.get_port());
        // No statement_timeout: one that ends a COMMIT while it waits for a synchronous standby makes it a success that is
        // on one server only. Whoever asks gives up by its own clock instead.
        let options = options
            .options([
                ("lock_timeout", LOCK_TIMEOUT),
                ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
                ("default_transaction_isolation", "read committed"),
            ])
            .log_slow_statements(LevelFilter::Debug, Duration::from_secs(1));
        // What the driver reads: the root only where it verifies by it, and nothing for a socket.
        let verifies = matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        let speaks_tls = !is_socket && !matches!(options.get_ssl_mode(), PgSslMode::Disable);
        let mut files = if speaks_tls { files(&url) } else { Vec::new() };
        files.retain(|(setting, _)| verifies || !setting.to_ascii_lowercase().ends_with("sslrootcert"));
        Ok(Self { options, password_file: password_file.map(Path::to_owned), files, name })
    }

    /// How to connect now: the password's file may have changed.
    pub(super) fn options(&self) -> Result<PgConnectOptions, Unfit> {
        for (setting, path) in &self.files {
            // The driver would not say of which file there is none.
            std::fs::File::open(path).map_err(|error| {
                Unfit::passing(format!("cannot read {}, which {setting} names: {error}", path.display()))
            })?;
        }
        let Some(path) = &self.password_file else { return Ok(self.options.clone()) };
        let read = std::fs::read_to_string(path)
            .map_err(|error| Unfit::passing(format!("cannot read {}: {error}", path.display())))?;
        Ok(self.options.clone().password(read.trim_end_matches(['\r', '\n'])))
    }

    /// Asks whether it takes writes and, once the store's id is known, whether it is that store.
    pub(super) async fn ask(&self, settings: &Settings, store_id: Option<&str>) -> Result<Found, Unfit> {
        let asked = tokio::time::timeout(settings.connect_timeout, self.look(store_id));
        asked.await.unwrap_or_else(|_| {
            let patience = humantime::format_duration(settings.connect_timeout);
            Err(Unfit::passing(format!("no answer within {patience}")))
        })
    }

    async fn look(&self, store_id: Option<&str>) -> Result<Found, Unfit> {
        let options = self.options()?;
        let mut connection = PgConnection::connect_with(&options).await?;
        let row = sqlx::query(
            "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on', \
                    current_setting('synchronous_commit')",
        )
        .fetch_one(&mut connection)
        .await?;
        if row.try_get(0)? {
            return Err(Unfit::passing("it takes no writes now"));
        }
        if let Some(wanted) = store_id {
            let id: Option<String> = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'store_id'")
                .fetch_optional(&mut connection)
                .await?;
            if id.as_deref() != Some(wanted) {
                return Err(Unfit::passing("it holds another job store"));
            }
        }
        let options = match row.try_get::<String, _>(1)?.as_str() {
            // An accepted job that a crash may undo was not accepted.
            "off" => options.options([("synchronous_commit", "on")]),
            _ => options,
        };
        // Its write-ahead log's file names begin with it. What speaks this protocol without having one counts as the first.
        let timeline: Result<String, _> =
            sqlx::query_scalar("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")
                .fetch_one(&mut connection)
                .await;
        let timeline = timeline.ok().and_then(|hex| u32::from_str_radix(&hex, 16).ok()).unwrap_or(1);
        let _ = connection.close().await;
        Ok(Found { options, timeline })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_this_host_the_server_must_prove_who_it_is_unless_told_otherwise() {
        for (url, mode) in [
            ("postgres://u@db.example/jobs", "VerifyFull"),
            ("postgres://u@10.0.0.5/jobs", "VerifyFull"),
            ("postgres://u@db.example/jobs?sslmode=require", "Require"),
            ("postgres://u@localhost/jobs", "Prefer"),
            ("postgres://u@127.0.0.1:6000/jobs", "Prefer"),
            ("postgres://u@%2Frun%2Fpostgresql/jobs", "Prefer"),
        ] {
            let server = Server::parse(url, None).unwrap();
            assert_eq!(format!("{:?}", server.options.get_ssl_mode()), mode, "{url}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_its_setting() {
        for (query, says) in [
            (
                "sslrootcert=/none/ca.pem",
                Some("cannot read /none/ca.pem, which sslrootcert names: No such file"),
            ),
            (
                "sslmode=require&sslkey=/none/key",
                Some("cannot read /none/key, which sslkey names: No such file"),
            ),
            ("sslmode=disable&sslrootcert=/none/ca.pem", None),
            ("sslrootcert=-----BEGIN%20CERTIFICATE-----", None),
        ] {
            let server = Server::parse(&format!("postgres://u:secret@h/d?{query}"), None).unwrap();
            match (server.options(), says) {
                (Ok(_), None) => {}
                (Err(unfit), Some(says)) => assert!(unfit.why.starts_with(says), "{query}: {}", unfit.why),
                (got, _) => panic!("{query}: {:?}", got.map(|_| ())),
            }
        }
    }

    #[test]
    fn a_slip_in_a_url_is_named_and_its_password_is_not() {
        for (url, says) in [
            ("postgres://u:secret@h/d?sslmod=verify-full", "unknown parameter \"sslmod\""),
            ("postgres://u:secret@h/d?sslmode=maybe", "maybe"),
            ("mysql://u:secret@h/d", "must be postgres://"),
            ("postgres://u:secret@h:port/d", "no URL"),
        ] {
            let error = Server::parse(url, None).unwrap_err();
            assert!(error.contains(says) && !error.contains("secret"), "{url}: {error}");
        }
        let server = Server::parse("postgres://u:secret@db:6000/jobs", None).unwrap();
        assert_eq!(server.name, "postgres://db:6000/jobs");
    }
}
