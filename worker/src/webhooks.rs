//! Telling a job's end to the URL that its client named.
//!
//! The event that ends a job enters a row in the same transaction; this claims rows, sends them, and says what became of
//! them. A worker that dies in between leaves a claim that runs out, so a receiver may be told twice and never not at all;
//! both times the message has the same id. Of several workers each takes what the others have not. Messages are signed as
//! the Standard Webhooks specification (1.0) has it. A slow receiver has a few sends under way and no more, so that it does
//! not stop the others.

pub mod receiver;
pub mod secret;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use millrace_wire::job::{JobEvent, WebhookState};
use rand::Rng as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::http::{App, seen_by_clients};
use crate::store::outbox::{Told, Wanted, WebhookClaim};
use receiver::{Message, Receivers, Refusal};
use secret::Secrets;

/// Sends under way of one worker.
const AT_ONCE: usize = 32;
/// Of those to one receiver, before a claim; a claim may bring as many more.
const AT_ONCE_PER_RECEIVER: u32 = 4;
/// Time between two looks when there is nothing to tell.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much longer than a send may take its claim holds.
const HOLD_BEYOND: Duration = Duration::from_secs(20);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// How ends are told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// File with the secrets that sign; without one nothing is told.
    pub secret_file: Option<PathBuf>,
    /// Networks of receivers that are allowed although they are not public; those may be told in plain HTTP.
    pub allow_private: Vec<IpNet>,
    /// How long a send may take.
    pub timeout: Duration,
    /// Before the second try; doubles from try to try, up to an hour.
    pub pause: Duration,
    /// How long after the event it is given up.
    pub window: Duration,
}

/// Tells.
pub struct Teller {
    app: Arc<App>,
    settings: Settings,
    receivers: Arc<Receivers>,
    secrets: Mutex<Arc<Secrets>>,
}

impl Teller {
    /// `None` where there is no secret to sign with.
    ///
    /// # Errors
    /// What is wrong with the secrets' file.
    pub fn new(app: Arc<App>, settings: Settings, receivers: Arc<Receivers>) -> Result<Option<Self>, String> {
        let Some(file) = &settings.secret_file else { return Ok(None) };
        let secrets = Mutex::new(Arc::new(Secrets::read(file)?));
        Ok(Some(Self { app, settings, receivers, secrets }))
    }

    /// Tells until asked to end; what is under way then is finished.
    pub async fn run(self: Arc<Self>, until: CancellationToken) {
        let mut sending = JoinSet::new();
        let mut busy: BTreeMap<String, u32> = BTreeMap::new();
        loop {
            let claimed = tokio::select! {
                () = until.cancelled() => break,
                claimed = self.claim(AT_ONCE - sending.len(), &busy) => claimed,
            };
            let found = !claimed.is_empty();
            for claim in claimed {
                *busy.entry(claim.receiver.clone()).or_default() += 1;
                let (teller, secrets) = (Arc::clone(&self), self.secrets());
                sending.spawn(async move {
                    teller.tell(&claim, &secrets).await;
                    claim.receiver
                });
            }
            let rest = LOOK_EVERY.mul_f64(rand::rng().random_range(0.8..1.2));
            tokio::select! {
                () = until.cancelled() => break,
                Some(sent) = sending.join_next() => {
                    let receiver = sent.expect("sending does not panic");
                    if let Some(count) = busy.get_mut(&receiver) {
                        *count -= 1;
                    }
                    busy.retain(|_, count| *count > 0);
                }
                () = tokio::time::sleep(rest), if !found || sending.len() >= AT_ONCE => {}
                () = std::future::ready(()), if found && sending.len() < AT_ONCE => {}
            }
        }
        // Each send has its own deadline; what this cuts off would be sent again elsewhere.
        while sending.join_next().await.is_some() {}
    }

    async fn claim(&self, room: usize, busy: &BTreeMap<String, u32>) -> Vec<WebhookClaim> {
        if room == 0 {
            return Vec::new();
        }
        let full = busy.iter().filter(|(_, count)| **count >= AT_ONCE_PER_RECEIVER);
        let wanted = Wanted {
            limit: u32::try_from(room).unwrap_or(u32::MAX),
            per_receiver: AT_ONCE_PER_RECEIVER,
            busy: full.map(|(receiver, _)| receiver.clone()).collect(),
            hold: self.settings.timeout + HOLD_BEYOND,
        };
        self.app.upkeep.claim_webhooks(&wanted).await.unwrap_or_else(|error| {
            warn!(%error, "cannot look for webhooks; the next look will");
            Vec::new()
        })
    }

    /// The secrets as they are now, or as they were last readable.
    fn secrets(&self) -> Arc<Secrets> {
        let mut known = self.secrets.lock().expect("nothing panics while holding the secrets");
        match self.settings.secret_file.as_deref().map(Secrets::read) {
            Some(Ok(secrets)) => *known = Arc::new(secrets),
            Some(Err(why)) => warn!(why, "webhooks are signed with the secrets of before"),
            None => {}
        }
        Arc::clone(&known)
    }

    async fn tell(&self, claim: &WebhookClaim, secrets: &Secrets) {
        let Some(url) = claim.job.spec.webhook_url.clone() else { return };
        let (job_id, tries) = (claim.job.job_id.clone(), claim.tries);
        let seen = seen_by_clients(&self.app, &claim.tenant, claim.job.clone()).await;
        let Ok(data) = seen else {
            debug!(%job_id, "a webhook waits: the job store did not answer");
            return;
        };
        let event = JobEvent { type_: format!("job.{}", claim.kind), timestamp: shown(claim.at_ms), data };
        let message = Message {
            id: message_id(&claim.job.uid, claim.seq),
            body: serde_json::to_vec(&event).expect("a job is plain data"),
        };
        let told = match self.receivers.send(&url, &message, secrets, self.app.clock.now()).await {
            Ok(()) => Told::Delivered,
            Err(Refusal { gone: true, detail, .. }) => Told::Gone { detail },
            Err(Refusal { detail, retry_after, .. }) => {
                let pause = pause(self.settings.pause, tries, rand::rng().random_range(0.8..1.2));
                let retry_after = retry_after.unwrap_or_default().min(PAUSE_MAX).max(pause);
                Told::Failed { detail, retry_after, window: self.settings.window }
            }
        };
        let outcome = match (&told, self.app.upkeep.webhook_told(claim, &told).await) {
            (_, Err(error)) => {
                warn!(%error, %job_id, "cannot note what became of a webhook; it will be sent again");
                return;
            }
            (_, Ok(Some(WebhookState::Delivered))) => "delivered",
            (Told::Gone { detail }, Ok(Some(_))) => {
                warn!(%job_id, receiver = claim.receiver, tries, detail, "webhook given up");
                "gone"
            }
            (Told::Failed { detail, .. }, Ok(Some(WebhookState::GivenUp))) => {
                warn!(%job_id, receiver = claim.receiver, tries, detail, "webhook given up");
                "given_up"
            }
            (Told::Failed { detail, .. }, Ok(Some(_))) => {
                debug!(%job_id, receiver = claim.receiver, tries, detail, "webhook not taken");
                "failed"
            }
            // Somebody else told it meanwhile.
            (_, Ok(_)) => "late",
        };
        self.app.metrics.webhooks.with_label_values(&[outcome]).inc();
    }
}

/// What a message is called, however often it is sent. Without a dot: that stands between the parts of what is signed.
pub(crate) fn message_id(job_uid: &str, seq: i64) -> String {
    format!("evt_{job_uid}_{seq}")
}

/// A time as answers have it.
pub(crate) fn shown(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms).map_or_else(|_| String::new(), |time| time.to_string())
}

/// The pause after the `tries`th try: twice the one before it, up to an hour, times a jitter.
fn pause(first: Duration, tries: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(20));
    doubled.min(PAUSE_MAX).mul_f64(jitter)
}

#[cfg(test)]
mod tests;
