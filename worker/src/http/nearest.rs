//! Where outputs are read from: the nearest bucket that holds them, and another where it does not answer.
//!
//! A job's own bucket is asked without a question to the store as long as it is this pool's and answers; copies are looked
//! for only where that is not so. A bucket that did not answer is asked last for a while, so that not every segment of
//! a stream waits for it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use millrace_wire::PoolId;

use super::{App, Refusal};
use crate::objects::{Error, Meta};
use crate::store::Manifest;
use crate::store::copies::Kind;

/// How long a bucket may take before another copy is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one is asked last that did not answer.
const SHUNNED_FOR: Duration = Duration::from_secs(15);

/// Buckets that did not answer lately.
#[derive(Debug, Default)]
pub struct Shunned(Mutex<HashMap<PoolId, Instant>>);

impl Shunned {
    fn map(&self) -> MutexGuard<'_, HashMap<PoolId, Instant>> {
        self.0.lock().expect("nothing panics while holding the buckets that did not answer")
    }

    fn has(&self, pool: &PoolId) -> bool {
        self.map().get(pool).is_some_and(|since| since.elapsed() < SHUNNED_FOR)
    }

    fn enter(&self, pool: &PoolId) {
        self.map().insert(pool.clone(), Instant::now());
    }

    fn leave(&self, pool: &PoolId) {
        self.map().remove(pool);
    }
}

/// The pools whose buckets hold a job's outputs and are known here, the best first.
async fn holders(app: &App, manifest: &Manifest, job_uid: &str) -> Result<Vec<PoolId>, Refusal> {
    let copies = app.upkeep.copies(&[job_uid.to_owned()]).await?;
    let copies = copies.into_values().flatten().filter(|copy| copy.kind == Kind::Outputs);
    let whole = copies.filter(|copy| copy.done.is_some()).map(|copy| copy.pool);
    let mut pools: Vec<PoolId> = std::iter::once(manifest.bucket.clone()).chain(whole).collect();
    pools.retain(|pool| app.objects.knows(pool));
    pools.sort_by_key(|pool| (app.shunned.has(pool), *pool != app.identity.pool));
    Ok(pools)
}

/// In whose bucket a reader who is sent there finds a job's files: not looked at, but not where nobody answered just now.
pub(super) async fn pick(app: &App, manifest: &Manifest, job_uid: &str) -> Result<PoolId, Refusal> {
    if manifest.bucket == app.identity.pool && !app.shunned.has(&manifest.bucket) {
        return Ok(manifest.bucket.clone());
    }
    Ok(holders(app, manifest, job_uid).await?.into_iter().next().unwrap_or_else(|| manifest.bucket.clone()))
}

/// Finds a file of a job: in whose bucket, and what it is there.
pub(super) async fn find(
    app: &App,
    manifest: &Manifest,
    job_uid: &str,
    key: &str,
) -> Result<Result<(PoolId, Meta), Error>, Refusal> {
    let own = &app.identity.pool;
    let mut tried = None;
    let mut last = Error::NotFound;
    if manifest.bucket == *own && !app.shunned.has(own) {
        let mut asked = std::pin::pin!(app.objects.head(own, key));
        match tokio::time::timeout(PATIENCE, &mut asked).await {
            Ok(Ok(meta)) => return Ok(Ok((own.clone(), meta))),
            Ok(Err(Error::NotFound)) => return Ok(Err(Error::NotFound)),
            Ok(Err(error)) => last = error,
            // Slow is better than nothing: with no copy elsewhere it is waited for.
            Err(_) if holders(app, manifest, job_uid).await?.len() < 2 => {
                return Ok(asked.await.map(|meta| (own.clone(), meta)));
            }
            Err(_) => {}
        }
        app.shunned.enter(own);
        tried = Some(own.clone());
    }
    let pools = holders(app, manifest, job_uid).await?;
    let others: Vec<&PoolId> = pools.iter().filter(|pool| tried.as_ref() != Some(pool)).collect();
    for (place, &pool) in others.iter().enumerate() {
        let asked = app.objects.head(pool, key);
        let is_last = place + 1 == others.len();
        let found = match is_last {
            true => asked.await,
            false => tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
                let late = "no answer in time".into();
                Err(Error::Unavailable { verb: "look up", source: late })
            }),
        };
        match found {
            Ok(meta) => {
                app.shunned.leave(pool);
                return Ok(Ok((pool.clone(), meta)));
            }
            Err(Error::NotFound) => last = Error::NotFound,
            Err(error) => {
                app.shunned.enter(pool);
                last = error;
            }
        }
    }
    Ok(Err(last))
}
