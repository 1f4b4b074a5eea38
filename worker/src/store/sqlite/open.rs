//! Opening the file: its folder, its pragmas, its schema, its name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::super::Error;
use super::Sqlite;

/// How long a transaction waits for its turn before the store counts as unavailable.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read; one writes.
const READERS_MAX: u32 = 4;

impl Sqlite {
    /// Opens `sqlite:PATH`, creates the file and its folder where missing, and brings the schema up to date.
    ///
    /// `failures_max` is how many counted failures make a job `dead`.
    ///
    /// # Errors
    /// [`Error::Open`] when the path cannot be used or the schema is from a later version.
    pub async fn open(url: &str, failures_max: u32) -> Result<Self, Error> {
        let refuse = |message: String| Error::Open { url: url.to_owned(), message };
        let path = url.strip_prefix("sqlite:").map(|p| p.strip_prefix("//").unwrap_or(p)).unwrap_or_default();
        if path.is_empty() || path.contains([':', '?']) {
            return Err(refuse(
                "it must be sqlite:PATH, a file on a local disk, or postgres://USER@HOST/DATABASE".to_owned(),
            ));
        }
        let path = PathBuf::from(path);
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)
            .map_err(|e| refuse(format!("cannot create {}: {e}", folder.display())))?;

        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);

        // Workers of one host start together; switching to WAL and migrating are for one of them at a time.
        let guard =
            lock_beside(&path).await.map_err(|e| refuse(format!("cannot lock it for opening: {e}")))?;
        // A full disk makes SQLite roll back by itself; sqlx's own rollback then fails and leaves the connection
        // counting a transaction that is gone. Such a connection would refuse every later one: drop it.
        let pool = |connections: u32| {
            SqlitePoolOptions::new().max_connections(connections).acquire_timeout(BUSY_TIMEOUT).after_release(
                |connection, _| {
                    Box::pin(async move {
                        // A transaction that was dropped is rolled back on the connection's own thread; a question
                        // that is asked behind it is answered after it.
                        connection.ping().await?;
                        Ok(!connection.is_in_transaction())
                    })
                },
            )
        };
        let writer = pool(1).connect_with(options.clone()).await.map_err(|e| refuse(e.to_string()))?;
        // A newer worker's migrations only add, so that an older one can follow it: a rollback, or the half of a rollout.
        let mut migrator = sqlx::migrate!("./migrations/sqlite");
        migrator.set_ignore_missing(true);
        migrator.run(&writer).await.map_err(|e| refuse(e.to_string()))?;
        let id = meta(&writer, "store_id", || uuid::Uuid::now_v7().to_string()).await?;
        let key = meta(&writer, "signing_key", || hex::encode(rand::random::<[u8; 32]>())).await?;
        drop(guard);

        let readers = pool(READERS_MAX).connect_with(options).await.map_err(|e| refuse(e.to_string()))?;
        let signing_key = hex::decode(key).map_err(|e| Error::Corrupt(format!("signing_key: {e}")))?;
        Ok(Self { writer, readers, id, signing_key, failures_max })
    }
}

/// Holds `PATH.lock` until dropped.
async fn lock_beside(path: &Path) -> std::io::Result<std::fs::File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    tokio::task::spawn_blocking(move || {
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(name)?;
        file.lock()?;
        Ok(file)
    })
    .await
    .expect("locking does not panic")
}

async fn meta(pool: &SqlitePool, key: &str, make: impl FnOnce() -> String) -> Result<String, Error> {
    sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(key)
        .bind(make())
        .execute(pool)
        .await?;
    Ok(sqlx::query_scalar("SELECT value FROM meta WHERE key = ?").bind(key).fetch_one(pool).await?)
}
