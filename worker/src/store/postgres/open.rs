//! Opening the store: finding its server, bringing its schema up to date, learning its name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::time::Instant;

use super::super::Error;
use super::accept::Entrance;
use super::link::Link;
use super::outbox::Horizons;
use super::server::{Found, Server};
use super::{Postgres, Settings};

/// Between two looks for a server that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Postgres {
    /// Opens `postgres://…`, or several such URLs with commas between them: the servers of one database, of which the one
    /// that takes writes is used, and found again when that changes. Brings the schema up to date.
    ///
    /// `failures_max` is how many counted failures make a job `dead`. Where no server takes writes yet, it waits for one for
    /// twice [`Settings::timeout`].
    ///
    /// # Errors
    /// [`Error::Open`] when a URL cannot be read, no server can be used, or the schema is from a later version.
    pub async fn open(urls: &str, settings: Settings, failures_max: u32) -> Result<Self, Error> {
        let servers = parse(urls, settings.password_file.as_deref())?;
        let name = servers.iter().map(|server| server.name.as_str()).collect::<Vec<_>>().join(",");
        let refuse = |message: String| Error::Open { url: name.clone(), message };
        let deadline = Instant::now() + settings.timeout * 2;
        let link = Link::new(servers, settings);
        let found = loop {
            match link.find().await {
                Ok(found) => break found,
                Err(unfit) if unfit.is_permanent || Instant::now() > deadline => {
                    return Err(refuse(unfit.why));
                }
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        let (id, signing_key) = prepare(&found.1).await.map_err(refuse)?;
        link.is_of(&id);
        link.follow(Ok(found));
        let signing_key =
            hex::decode(signing_key).map_err(|e| Error::Corrupt(format!("signing_key: {e}")))?;
        let (entrance, horizon) = (Entrance::default(), Horizons::default());
        Ok(Self { link: Arc::new(link), id, signing_key, failures_max, entrance, horizon })
    }
}

fn parse(urls: &str, password_file: Option<&Path>) -> Result<Vec<Server>, Error> {
    // The URL itself is not repeated: a password may be in it.
    let refuse = |number: usize, message: String| Error::Open {
        url: "postgres://…".to_owned(),
        message: format!("URL {}: {message}", number + 1),
    };
    urls.split(',')
        .enumerate()
        .map(|(number, url)| {
            Server::parse(url.trim(), password_file).map_err(|message| refuse(number, message))
        })
        .collect()
}

/// Migrates, one worker at a time, and reads the store's id and signing key.
async fn prepare(found: &Found) -> Result<(String, String), String> {
    // Workers that start together wait for each other's migration, however long it takes.
    let patient = found.options.clone().options([("lock_timeout", "0")]);
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let pool = PgPoolOptions::new().max_connections(1).connect_with(patient).await.map_err(|e| said(&e))?;
    // A newer worker's migrations only add. While they are rolled out an older one may start once more, or come back.
    let mut migrator = sqlx::migrate!("./migrations/postgres");
    migrator.set_ignore_missing(true);
    migrator.run(&pool).await.map_err(|e| said(&e))?;
    let id = meta(&pool, "store_id", uuid::Uuid::now_v7().to_string()).await.map_err(|e| said(&e))?;
    let key =
        meta(&pool, "signing_key", hex::encode(rand::random::<[u8; 32]>())).await.map_err(|e| said(&e))?;
    pool.close().await;
    Ok((id, key))
}

async fn meta(pool: &PgPool, key: &str, value: String) -> Result<String, sqlx::Error> {
    sqlx::query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(key)
        .bind(value)
        .execute(pool)
        .await?;
    sqlx::query_scalar("SELECT value FROM meta WHERE key = $1").bind(key).fetch_one(pool).await
}
