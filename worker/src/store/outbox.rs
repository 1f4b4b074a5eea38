//! What the store knows of telling others: webhooks, and how far an event sink is.
//!
//! Both read the `event` table, which is written in the transaction that changes a job: what is told did happen, and what
//! happened is told. Whoever tells claims first and says afterwards that it is told; if he dies between the two, it is
//! told again, under the same name.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use millrace_wire::JobId;
use millrace_wire::job::WebhookState;

use super::{Error, JobRow};

/// Which webhooks to claim.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// At most so many.
    pub limit: u32,
    /// At most so many of one receiver.
    pub per_receiver: u32,
    /// None of these receivers: they are told as much as they may be.
    pub busy: Vec<String>,
    /// How long the claim holds.
    pub hold: Duration,
}

/// A claimed webhook: the end of a job that is to be told now.
#[derive(Debug, Clone)]
pub struct WebhookClaim {
    /// The event's number.
    pub seq: i64,
    /// Which try this is, from 1: the proof of the claim.
    pub tries: u32,
    /// `succeeded`, `failed`, `dead` or `cancelled`.
    pub kind: String,
    /// Host and port of its URL.
    pub receiver: String,
    /// When it happened, in milliseconds since 1970.
    pub at_ms: i64,
    /// Whose job.
    pub tenant: String,
    /// The job as it stands.
    pub job: JobRow,
}

/// What a try to tell came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It was taken.
    Delivered,
    /// It was not, and may be another time.
    Failed {
        /// What the job's owner reads.
        detail: String,
        /// Before another try.
        retry_after: Duration,
        /// How long after the event it is given up.
        window: Duration,
    },
    /// The receiver wants none any more.
    Gone {
        /// What the job's owner reads.
        detail: String,
    },
}

/// Where the telling of a job's last end stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// Where.
    pub state: WebhookState,
    /// How often it was sent.
    pub tries: u32,
    /// How the last try failed.
    pub detail: Option<String>,
    /// When it is sent next, in milliseconds since 1970.
    pub due_at_ms: i64,
}

/// An event with what a sink needs to name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkEvent {
    /// Its place in the order of all events.
    pub seq: i64,
    /// Whose job.
    pub tenant: String,
    /// The job's public name.
    pub job_id: JobId,
    /// The job's internal name.
    pub job_uid: String,
    /// As in [`super::Event`].
    pub kind: String,
    /// When it happened, in milliseconds since 1970.
    pub at_ms: i64,
    /// As in [`super::Event`].
    pub body: String,
}

/// The part of a store that tells others. Every method is one transaction.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Claims webhooks that are due. Of one job the ends are told in order: a later one only when those before it are
    /// delivered or given up.
    async fn claim_webhooks(&self, wanted: &Wanted) -> Result<Vec<WebhookClaim>, Error>;

    /// Says what a try came to; answers where the webhook stands then, if the claim still held.
    async fn webhook_told(&self, claim: &WebhookClaim, told: &Told) -> Result<Option<WebhookState>, Error>;

    /// Of these jobs (by internal name) how far the telling of their last end is.
    async fn webhooks(&self, job_uids: &[String]) -> Result<BTreeMap<String, WebhookRow>, Error>;

    /// Makes this feeder the only one of a sink for `hold` and answers up to which event the sink has them all; `None` when
    /// another feeds it. A sink that is new has all that happened before.
    async fn feed(&self, sink: &str, feeder: &str, hold: Duration) -> Result<Option<i64>, Error>;

    /// Events after a number, in order. None with a lower number than the last of these will ever appear.
    async fn settled(&self, after: i64, limit: u32) -> Result<Vec<SinkEvent>, Error>;

    /// Says that the sink has every event up to `to`. `false`: another feeds it.
    async fn fed(&self, sink: &str, feeder: &str, to: i64) -> Result<bool, Error>;

    /// Lets another feed it at once.
    async fn leave(&self, sink: &str, feeder: &str) -> Result<(), Error>;
}

/// Host and port of a webhook's URL, by which receivers are told apart; `None` when it is no URL with a host.
pub(super) fn receiver(webhook_url: &str) -> Option<String> {
    let url = url::Url::parse(webhook_url).ok()?;
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}
