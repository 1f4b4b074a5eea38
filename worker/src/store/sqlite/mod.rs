//! The embedded store: one SQLite file, shared by the workers of one host.
//!
//! WAL with full sync, so that a commit survives the machine; `BEGIN IMMEDIATE`, so that a transaction that will
//! write waits for its turn at the start and never fails in the middle. SQLite has one writer at a time, which makes
//! claims serial: unlike on a server database there is nothing to gain from picking at random among the head of the
//! queue, so the oldest is taken and the order is strict. It survives a process, not its disk.

mod claim;
mod ending;
mod row;
mod upkeep;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::job::{Phase, State};
use millrace_wire::{JobId, PoolId, WorkerId};
use serde_json::json;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection as _, Row, Sqlite as Db, Transaction};

use super::{
    Accepted, AttemptEnd, Backlog, Beat, Cancelled, Claim, Error, Event, Filter, Heartbeat, Identity, JobRow,
    Lease, Manifest, NewJob, Published, Room, Store, Verdict,
};
use ending::{close_attempt, count_failure, finish_job, leave};
use row::{class_of, job_row};

/// How long a transaction waits for its turn before the store counts as unavailable.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read; one writes.
const READERS_MAX: u32 = 4;

/// Milliseconds since 1970 by the database's clock.
macro_rules! now {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}
use now;

/// [`Store`] on one SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    id: String,
    signing_key: Vec<u8>,
    failures_max: u32,
}

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
            return Err(refuse("it must be sqlite:PATH, a file on a local disk".to_owned()));
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
        sqlx::migrate!("./migrations/sqlite").run(&writer).await.map_err(|e| refuse(e.to_string()))?;
        let id = meta(&writer, "store_id", || uuid::Uuid::now_v7().to_string()).await?;
        let key = meta(&writer, "signing_key", || hex::encode(rand::random::<[u8; 32]>())).await?;
        drop(guard);

        let readers = pool(READERS_MAX).connect_with(options).await.map_err(|e| refuse(e.to_string()))?;
        let signing_key = hex::decode(key).map_err(|e| Error::Corrupt(format!("signing_key: {e}")))?;
        Ok(Self { writer, readers, id, signing_key, failures_max })
    }

    async fn begin(&self) -> Result<Transaction<'static, Db>, Error> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
                Self::Corrupt(error.to_string())
            }
            other => Self::Unavailable(other),
        }
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

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

async fn find(on: &mut SqliteConnection, tenant: &str, job_id: &JobId) -> Result<Option<JobRow>, Error> {
    let row = sqlx::query("SELECT * FROM job WHERE tenant = ? AND job_id = ?")
        .bind(tenant)
        .bind(job_id.as_str())
        .fetch_optional(on)
        .await?;
    row.as_ref().map(job_row).transpose()
}

/// Enters an event: last in what changes a job, for the body also says how the job stands after it.
///
/// The row's words go in as they are: one of a later version must not keep this one from writing.
async fn record(
    on: &mut SqliteConnection,
    job_uid: &str,
    kind: &str,
    mut body: serde_json::Value,
) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT job_id, state, phase, progress, pool, worker, attempt, error_code, error_detail FROM job WHERE uid = ?",
    )
    .bind(job_uid)
    .fetch_one(&mut *on)
    .await?;
    body["job"] = row::update(&row)?;
    sqlx::query(concat!("INSERT INTO event (job_uid, at, kind, body) VALUES (?, ", now!(), ", ?, ?)"))
        .bind(job_uid)
        .bind(kind)
        .bind(body.to_string())
        .execute(on)
        .await?;
    Ok(())
}

#[async_trait]
impl Store for Sqlite {
    fn id(&self) -> &str {
        &self.id
    }

    fn signing_key(&self) -> &[u8] {
        &self.signing_key
    }

    async fn register(&self, worker: &WorkerId, pool: &PoolId) -> Result<Identity, Error> {
        let mut tx = self.begin().await?;
        let incarnation: i64 = sqlx::query_scalar(concat!(
            "INSERT INTO worker (name, pool, incarnation, registered_at, seen_at) VALUES (?, ?, 1, ",
            now!(),
            ", ",
            now!(),
            ") ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, incarnation = incarnation + 1, ",
            "registered_at = excluded.registered_at, seen_at = excluded.seen_at RETURNING incarnation"
        ))
        .bind(worker.as_str())
        .bind(pool.as_str())
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query(concat!(
            "UPDATE task SET lease_expires_at = ",
            now!(),
            " WHERE owner = ? AND state = 'running'"
        ))
        .bind(worker.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Identity { worker: worker.clone(), pool: pool.clone(), incarnation: incarnation as u64 })
    }

    async fn deregister(&self, worker: &Identity) -> Result<(), Error> {
        sqlx::query("UPDATE worker SET seen_at = 0 WHERE name = ? AND incarnation = ?")
            .bind(worker.worker.as_str())
            .bind(worker.incarnation as i64)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn accept(&self, new: &NewJob, by: &Identity, room: Room) -> Result<Accepted, Error> {
        let hash = new.spec.hash();
        let mut tx = self.begin().await?;
        if let Some(existing) = find(&mut tx, &new.tenant, &new.job_id).await? {
            return Ok(if existing.spec_hash == hash {
                Accepted::Existing(existing)
            } else {
                Accepted::Conflict
            });
        }
        let held: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM task WHERE state = 'waiting' AND accepted_by = ?1) \
                  + (SELECT count(*) FROM task WHERE state = 'running' AND owner = ?1)",
        )
        .bind(by.worker.as_str())
        .fetch_one(&mut *tx)
        .await?;
        let priority = new.spec.priority();
        let queue = (f64::from(room.queue_max) * priority.queue_share()).floor() as i64;
        if held >= i64::from(room.slots) + queue {
            return Ok(Accepted::Full);
        }
        let uid = uuid::Uuid::now_v7().to_string();
        let spec = serde_json::to_string(&new.spec).expect("a spec is plain data");
        let row = sqlx::query(concat!(
            "INSERT INTO job (uid, tenant, job_id, spec, spec_hash, class, state, pool, bucket, created_at) ",
            "VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ",
            now!(),
            ") RETURNING *"
        ))
        .bind(&uid)
        .bind(&new.tenant)
        .bind(new.job_id.as_str())
        .bind(spec)
        .bind(&hash)
        .bind(class_of(priority))
        .bind(by.pool.as_str())
        .bind(by.pool.as_str())
        .fetch_one(&mut *tx)
        .await?;
        let job = job_row(&row)?;
        sqlx::query(concat!(
            "INSERT INTO task (uid, job_uid, kind, state, pool, class, accepted_by, work_seconds, not_before, created_at) ",
            "VALUES (?, ?, 'video', 'waiting', ?, ?, ?, ?, ", now!(), ", ", now!(), ")"
        ))
        .bind(uuid::Uuid::now_v7().to_string())
        .bind(&uid)
        .bind(by.pool.as_str())
        .bind(class_of(priority))
        .bind(by.worker.as_str())
        .bind(new.work_seconds)
        .execute(&mut *tx)
        .await?;
        record(&mut tx, &uid, "accepted", json!({ "pool": by.pool, "worker": by.worker })).await?;
        tx.commit().await?;
        Ok(Accepted::Created(job))
    }

    async fn job(&self, tenant: &str, job_id: &JobId) -> Result<Option<JobRow>, Error> {
        let mut connection = self.readers.acquire().await?;
        find(&mut connection, tenant, job_id).await
    }

    async fn jobs(&self, tenant: &str, filter: &Filter) -> Result<Vec<JobRow>, Error> {
        let before = filter.before.as_deref().unwrap_or("~"); // sorts after every UUID
        let query = match filter.state {
            Some(state) => sqlx::query(
                "SELECT * FROM job WHERE tenant = ? AND state = ? AND uid < ? ORDER BY uid DESC LIMIT ?",
            )
            .bind(tenant)
            .bind(state.as_str()),
            None => sqlx::query("SELECT * FROM job WHERE tenant = ? AND uid < ? ORDER BY uid DESC LIMIT ?")
                .bind(tenant),
        };
        let rows = query.bind(before).bind(filter.limit).fetch_all(&self.readers).await?;
        rows.iter().map(job_row).collect()
    }

    async fn cancel(&self, tenant: &str, job_id: &JobId) -> Result<Cancelled, Error> {
        let mut tx = self.begin().await?;
        let Some(job) = find(&mut tx, tenant, job_id).await? else { return Ok(Cancelled::NotFound) };
        match job.state {
            State::Cancelled => return Ok(Cancelled::Done(job)),
            state if state.is_final() => return Ok(Cancelled::TooLate(job)),
            State::Running => {
                sqlx::query(concat!(
                    "UPDATE job SET cancel_requested_at = COALESCE(cancel_requested_at, ",
                    now!(),
                    ") WHERE uid = ?"
                ))
                .bind(&job.uid)
                .execute(&mut *tx)
                .await?;
                if !job.cancel_requested {
                    record(&mut tx, &job.uid, "cancel_requested", json!({})).await?;
                }
            }
            _ => {
                sqlx::query("UPDATE task SET state = 'cancelled' WHERE job_uid = ? AND state = 'waiting'")
                    .bind(&job.uid)
                    .execute(&mut *tx)
                    .await?;
                finish_job(&mut tx, &job.uid, State::Cancelled, None).await?;
            }
        }
        let job = find(&mut tx, tenant, job_id).await?.expect("the row was there in this transaction");
        tx.commit().await?;
        Ok(if job.state == State::Cancelled { Cancelled::Done(job) } else { Cancelled::Requested(job) })
    }

    async fn claim(&self, by: &Identity, lease: Duration) -> Result<Option<Claim>, Error> {
        claim::claim(self, by, lease).await
    }

    async fn heartbeat(&self, by: &Identity, beats: &[Beat], lease: Duration) -> Result<Heartbeat, Error> {
        let mut tx = self.begin().await?;
        let current = sqlx::query(concat!(
            "UPDATE worker SET seen_at = ",
            now!(),
            " WHERE name = ? AND incarnation = ?"
        ))
        .bind(by.worker.as_str())
        .bind(by.incarnation as i64)
        .execute(&mut *tx)
        .await?;
        let mut verdicts = Vec::with_capacity(beats.len());
        for beat in beats {
            let renewed = sqlx::query(concat!(
                "UPDATE task SET lease_expires_at = ",
                now!(),
                " + ? ",
                "WHERE uid = ? AND epoch = ? AND state = 'running' AND owner = ? AND owner_incarnation = ?"
            ))
            .bind(millis(lease))
            .bind(&beat.lease.task_uid)
            .bind(beat.lease.epoch as i64)
            .bind(by.worker.as_str())
            .bind(by.incarnation as i64)
            .execute(&mut *tx)
            .await?;
            if renewed.rows_affected() == 0 {
                verdicts.push(Verdict::Lost);
                continue;
            }
            let cancelled: bool = sqlx::query_scalar(
                "UPDATE job SET progress = ? WHERE uid = ? RETURNING cancel_requested_at IS NOT NULL",
            )
            .bind(serde_json::to_string(&beat.progress).expect("progress is plain data"))
            .bind(&beat.lease.job_uid)
            .fetch_one(&mut *tx)
            .await?;
            verdicts.push(if cancelled { Verdict::CancelRequested } else { Verdict::Renewed });
        }
        tx.commit().await?;
        Ok(Heartbeat { verdicts, superseded: current.rows_affected() == 0 })
    }

    async fn cancellations(&self, by: &Identity) -> Result<Vec<Lease>, Error> {
        let rows = sqlx::query(
            "SELECT task.uid, task.job_uid, task.epoch FROM task JOIN job ON job.uid = task.job_uid \
             WHERE task.state = 'running' AND task.owner = ? AND job.cancel_requested_at IS NOT NULL",
        )
        .bind(by.worker.as_str())
        .fetch_all(&self.readers)
        .await?;
        let lease = |row: SqliteRow| {
            let epoch: i64 = row.try_get(2)?;
            Ok(Lease { task_uid: row.try_get(0)?, job_uid: row.try_get(1)?, epoch: epoch as u64 })
        };
        rows.into_iter().map(lease).collect()
    }

    async fn enter(&self, lease: &Lease, phase: Phase, work_seconds: Option<f64>) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let mine = sqlx::query(
            "UPDATE task SET work_seconds = COALESCE(?, work_seconds) WHERE uid = ? AND epoch = ? AND state = 'running'",
        )
        .bind(work_seconds)
        .bind(&lease.task_uid)
        .bind(lease.epoch as i64)
        .execute(&mut *tx)
        .await?;
        if mine.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("UPDATE job SET phase = ? WHERE uid = ?")
            .bind(phase.as_str())
            .bind(&lease.job_uid)
            .execute(&mut *tx)
            .await?;
        record(&mut tx, &lease.job_uid, "phase", json!({ "phase": phase })).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn publish(&self, lease: &Lease, manifest: &Manifest) -> Result<Published, Error> {
        let text = serde_json::to_string(manifest).expect("a manifest is plain data");
        let mut tx = self.begin().await?;
        let committed = sqlx::query(concat!(
            "UPDATE job SET state = 'succeeded', phase = NULL, manifest = ?, progress = '{\"percent\":100.0}', ",
            "error_code = NULL, error_detail = NULL, finished_at = ", now!(),
            " WHERE uid = ? AND state = 'running' AND phase = 'publishing' AND epoch = ? AND cancel_requested_at IS NULL"
        ))
        .bind(&text)
        .bind(&lease.job_uid)
        .bind(lease.epoch as i64)
        .execute(&mut *tx)
        .await?;
        if committed.rows_affected() == 0 {
            // The answer to an earlier try may have been lost: succeeded with my manifest is success.
            let stored: Option<Option<String>> = sqlx::query_scalar("SELECT manifest FROM job WHERE uid = ?")
                .bind(&lease.job_uid)
                .fetch_optional(&mut *tx)
                .await?;
            return Ok(if stored.flatten().as_deref() == Some(&text) {
                Published::Yes
            } else {
                Published::No
            });
        }
        leave(&mut tx, lease, "done").await?;
        close_attempt(&mut tx, lease, "succeeded", None).await?;
        record(&mut tx, &lease.job_uid, "succeeded", json!({ "bytes": manifest.outputs.bytes })).await?;
        tx.commit().await?;
        Ok(Published::Yes)
    }

    async fn end(&self, lease: &Lease, end: &AttemptEnd) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let to = if matches!(end, AttemptEnd::Cancelled) { "cancelled" } else { "waiting" };
        if !leave(&mut tx, lease, to).await? {
            return Ok(());
        }
        // A client's cancel that came while the attempt was ending wins over another try.
        let cancelled: bool =
            sqlx::query_scalar("SELECT cancel_requested_at IS NOT NULL FROM job WHERE uid = ?")
                .bind(&lease.job_uid)
                .fetch_one(&mut *tx)
                .await?;
        match end {
            _ if cancelled => {
                sqlx::query("UPDATE task SET state = 'cancelled' WHERE uid = ?")
                    .bind(&lease.task_uid)
                    .execute(&mut *tx)
                    .await?;
                close_attempt(&mut tx, lease, "cancelled", None).await?;
                finish_job(&mut tx, &lease.job_uid, State::Cancelled, None).await?;
            }
            AttemptEnd::Cancelled => {
                close_attempt(&mut tx, lease, "cancelled", None).await?;
                finish_job(&mut tx, &lease.job_uid, State::Cancelled, None).await?;
            }
            AttemptEnd::Released => {
                close_attempt(&mut tx, lease, "released", None).await?;
                sqlx::query("UPDATE job SET state = 'queued', phase = NULL WHERE uid = ?")
                    .bind(&lease.job_uid)
                    .execute(&mut *tx)
                    .await?;
                sqlx::query(concat!("UPDATE task SET not_before = ", now!(), " WHERE uid = ?"))
                    .bind(&lease.task_uid)
                    .execute(&mut *tx)
                    .await?;
                record(&mut tx, &lease.job_uid, "released", json!({})).await?;
            }
            AttemptEnd::Failed { code, detail, retry_after } => {
                close_attempt(&mut tx, lease, "failed", Some((code.as_str(), detail))).await?;
                count_failure(&mut tx, lease, (*code, detail), *retry_after, self.failures_max).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    async fn backlog(&self, of: &Identity) -> Result<Backlog, Error> {
        let row = sqlx::query(
            "SELECT count(*) FILTER (WHERE accepted_by = ?1), \
                    total(work_seconds) FILTER (WHERE accepted_by = ?1), \
                    count(*) FILTER (WHERE pool = ?2), total(work_seconds) FILTER (WHERE pool = ?2) \
             FROM task WHERE state = 'waiting' AND (accepted_by = ?1 OR pool = ?2)",
        )
        .bind(of.worker.as_str())
        .bind(of.pool.as_str())
        .fetch_one(&self.readers)
        .await?;
        let count = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Backlog {
            accepted_here: count(row.try_get(0)?),
            accepted_here_work: row.try_get(1)?,
            pool: count(row.try_get(2)?),
            pool_work: row.try_get(3)?,
        })
    }

    async fn events(&self, job_uid: &str, after: i64, limit: u32) -> Result<Vec<Event>, Error> {
        let rows = sqlx::query(
            "SELECT seq, kind, body FROM event WHERE job_uid = ? AND seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(job_uid)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let event =
            |row: SqliteRow| Ok(Event { seq: row.try_get(0)?, kind: row.try_get(1)?, body: row.try_get(2)? });
        rows.into_iter().map(event).collect()
    }

    async fn ping(&self) -> Result<(), Error> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{ROOM, new_job};
    use super::*;

    async fn open(folder: &Path) -> (Sqlite, Identity) {
        let store = Sqlite::open(&format!("sqlite:{}", folder.join("jobs.db").display()), 3).await.unwrap();
        let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
        (store, worker)
    }

    #[tokio::test]
    async fn a_job_of_a_later_version_waits_and_does_not_stop_those_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let (store, worker) = open(folder.path()).await;
        for job in ["later", "plain"] {
            store.accept(&new_job(job, ""), &worker, ROOM).await.unwrap();
        }
        sqlx::query(
            "UPDATE job SET spec = '{\"input_url\":\"http://h/v\",\"novel\":1}' WHERE job_id = 'later'",
        )
        .execute(&store.writer)
        .await
        .unwrap();
        let claim = store.claim(&worker, Duration::from_secs(60)).await.unwrap().unwrap();
        assert_eq!(claim.job_id.as_str(), "plain");
        let alone = store.claim(&worker, Duration::from_secs(60)).await;
        assert!(matches!(alone, Err(Error::Corrupt(_))), "{alone:?}");
        let state: String = sqlx::query_scalar("SELECT state FROM job WHERE job_id = 'later'")
            .fetch_one(&store.readers)
            .await
            .unwrap();
        assert_eq!(state, "queued");
    }

    #[tokio::test]
    async fn a_job_rises_a_class_in_ten_minutes() {
        let folder = tempfile::tempdir().unwrap();
        let (store, worker) = open(folder.path()).await;
        let waits =
            [("live", "live", 0), ("normal", "normal", 0), ("aged", "batch", 11), ("old", "batch", 21)];
        for (job, class, minutes) in waits.into_iter().chain([("young", "batch", 9)]) {
            store.accept(&new_job(job, &format!(r#","priority":"{class}""#)), &worker, ROOM).await.unwrap();
            sqlx::query(
                "UPDATE task SET created_at = created_at - ? \
                 WHERE job_uid = (SELECT uid FROM job WHERE job_id = ?)",
            )
            .bind(minutes * 60_000)
            .bind(job)
            .execute(&store.writer)
            .await
            .unwrap();
        }
        let mut order = Vec::new();
        while let Some(claim) = store.claim(&worker, Duration::from_secs(60)).await.unwrap() {
            order.push(claim.job_id.to_string());
        }
        assert_eq!(order, ["old", "live", "aged", "normal", "young"]);
    }

    #[tokio::test]
    async fn an_answer_without_a_write_keeps_the_writers_connection() {
        let folder = tempfile::tempdir().unwrap();
        let (store, worker) = open(folder.path()).await;
        sqlx::query("CREATE TEMP TABLE mark (n)").execute(&store.writer).await.unwrap();
        store.accept(&new_job("j", ""), &worker, ROOM).await.unwrap();
        for _ in 0..50 {
            store.accept(&new_job("j", ""), &worker, ROOM).await.unwrap();
        }
        let marked = sqlx::query("SELECT * FROM mark").fetch_all(&store.writer).await;
        assert!(marked.is_ok(), "it was closed and opened again: {marked:?}");
    }

    #[tokio::test]
    async fn a_full_disk_refuses_and_heals_when_there_is_room_again() {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Sqlite::open(&format!("sqlite:{}", folder.path().join("jobs.db").display()), 3).await.unwrap();
        let worker = store.register(&"w1".parse().unwrap(), &"aws".parse().unwrap()).await.unwrap();
        // Where in a transaction the disk fills up decides who rolls back, so fill it in many places.
        let (mut accepted, mut refused) = (0, 0);
        for round in 0..30 {
            // SQLite answers as on a full disk: the limit becomes the size that the file has now, plus a little.
            let pages: i64 = sqlx::query_scalar("SELECT page_count + ? FROM pragma_page_count")
                .bind(round % 4)
                .fetch_one(&store.writer)
                .await
                .unwrap();
            let limit =
                |pages: i64| sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}")));
            limit(pages).execute(&store.writer).await.unwrap();
            for _ in 0..20 {
                match store
                    .accept(&new_job(&format!("j{accepted}"), ""), &worker, Room { slots: 10_000, ..ROOM })
                    .await
                {
                    Ok(_) => accepted += 1,
                    Err(Error::Unavailable(_)) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            limit(1 << 30).execute(&store.writer).await.unwrap();
            let after = store
                .accept(&new_job(&format!("after-{round}"), ""), &worker, Room { slots: 10_000, ..ROOM })
                .await;
            assert!(matches!(after.unwrap(), Accepted::Created(_)));
        }
        assert!(refused >= 30, "the disk was never full: {accepted} accepted, {refused} refused");
    }
}
