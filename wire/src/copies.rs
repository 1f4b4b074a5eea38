//! Where else a job's bytes lie: the second copy of its input that `dual` means, and copies of its outputs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::PoolId;

/// What a job shall survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The death of processes and nodes, as far as its job store and its bucket do. The default.
    #[default]
    Single,
    /// The loss of a cloud, too, from the moment on that the job's answer calls `reached_at`.
    Dual,
}

impl Durability {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Single, Self::Dual];

    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Dual => "dual",
        }
    }
}

/// How far the durability of a job is that asked for `dual`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobDurability {
    /// What was asked.
    pub wanted: Durability,
    /// The pool whose bucket holds the input's second copy, or shall.
    pub pool: PoolId,
    /// RFC 3339, UTC: from then on the loss of a cloud does not lose the job. Not before: until then it is `single`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_at: Option<String>,
    /// Why the last try to copy failed, while it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Where the copy of a job's outputs in another pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// It waits: for the job's success, for a worker, or for another try.
    Waiting,
    /// A worker copies.
    Copying,
    /// It is whole, and is read from where it is nearest.
    Done,
}

/// A copy of a job's outputs in another pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputCopy {
    /// In whose bucket.
    pub pool: PoolId,
    /// Where it stands.
    pub state: CopyState,
    /// Its bytes, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// RFC 3339, UTC: since when it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_at: Option<String>,
    /// Why the last try failed, while it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Which pools shall have copies of a job's outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicateRequest {
    /// The pools' names.
    #[schema(min_items = 1, max_items = 8)]
    pub pools: Vec<PoolId>,
}
