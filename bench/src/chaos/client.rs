//! A client that gives up on nothing: it asks one gateway after the other until one answers well, with the same job id.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use millrace_wire::job::{Job, State};
use rand::Rng as _;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use crate::{Answer, Client};

/// Longest wait for one answer, before another gateway is asked.
const TRY: Duration = Duration::from_secs(4);
/// Between two tries, before jitter.
const PAUSE: Duration = Duration::from_millis(150);

/// Knows where the gateways are, and is told when they move.
#[derive(Debug, Clone, Default)]
pub struct Patient {
    gateways: Arc<Mutex<Vec<Client>>>,
}

impl Patient {
    /// From now on the gateways are here.
    ///
    /// # Errors
    /// A URL that cannot be read.
    pub fn gateways_are(&self, urls: &[String]) -> Result<()> {
        let clients = urls.iter().map(|url| Client::new(url)).collect::<Result<Vec<_>>>()?;
        *self.gateways.lock().expect("nothing panics while holding the gateways") = clients;
        Ok(())
    }

    fn gateway(&self, turn: usize) -> Option<Client> {
        let gateways = self.gateways.lock().expect("nothing panics while holding the gateways");
        gateways.get(turn % gateways.len().max(1)).cloned()
    }

    /// Asks until an answer is one, whatever it says: no break, no timeout, no 5xx and no 429.
    ///
    /// # Errors
    /// There was none within `patience`; with what the last try came to.
    pub async fn ask<F: Future<Output = Result<Answer>>>(
        &self,
        what: &str,
        patience: Duration,
        ask: impl Fn(Client) -> F,
    ) -> Result<Answer> {
        let deadline = Instant::now() + patience;
        let mut turn: usize = rand::rng().random_range(0..64);
        loop {
            let tried = async {
                let gateway = self.gateway(turn).context("no gateway runs")?;
                ask(gateway).await
            };
            let last = match tokio::time::timeout(TRY, tried).await {
                Ok(Ok(answer))
                    if answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS =>
                {
                    format!("{} {}", answer.status, answer.text())
                }
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer in {TRY:?}"),
            };
            if Instant::now() > deadline {
                bail!("{what}: no answer within {patience:?}; the last try: {last}");
            }
            let jittered = PAUSE.mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::time::sleep(jittered).await;
            turn += 1;
        }
    }

    /// Submits a job, which must name its id, until it is accepted.
    ///
    /// # Errors
    /// It is refused for good, or not accepted within `patience`.
    pub async fn submit(&self, spec: &Value, patience: Duration) -> Result<Job> {
        let submit = |client: Client| async move { client.process(spec).await };
        self.ask("submit a job", patience, submit).await?.success()?.job()
    }

    /// Reads a job.
    ///
    /// # Errors
    /// There is none, or no answer within `patience`.
    pub async fn job(&self, id: &str, patience: Duration) -> Result<Job> {
        let path = format!("/jobs/{id}");
        let path = path.as_str();
        self.ask(path, patience, |client| async move { client.get(path).await }).await?.success()?.job()
    }

    /// Follows an accepted job to its end. Until then nothing of it may be seen.
    ///
    /// # Errors
    /// It does not end within `patience`, or something of it is seen before.
    pub async fn wait_final(&self, id: &str, patience: Duration) -> Result<Job> {
        let deadline = Instant::now() + patience;
        let media = format!("/media/{id}/master.m3u8");
        let media = media.as_str();
        loop {
            // In this order: what is seen must have been published before.
            let seen = self.ask(media, patience, |client| async move { client.get(media).await }).await?;
            let job = self.job(id, patience).await?;
            if seen.status.is_success() && job.state != State::Succeeded {
                bail!("outputs of job {id} are seen while it is {}", job.state.as_str());
            }
            if job.state.is_final() {
                return Ok(job);
            }
            if Instant::now() > deadline {
                bail!("job {id} has not ended after {patience:?}: {}", serde_json::to_string(&job)?);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
