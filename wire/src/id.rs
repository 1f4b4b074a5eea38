//! Names: jobs, pools, workers. They are shared rather than copied: each request carries some.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest name accepted for a job, a pool or a worker.
pub const NAME_LENGTH_MAX: usize = 64;

/// A name that is not 1–64 of `A-Za-z0-9._-`, or starts with a dot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {got:?} must be 1–64 of A–Z a–z 0–9 . _ - and must not start with a dot")]
pub struct BadName {
    what: &'static str,
    got: String,
}

fn check(what: &'static str, name: &str) -> Result<(), BadName> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=NAME_LENGTH_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(legal) {
        return Ok(());
    }
    let got = name.chars().take(NAME_LENGTH_MAX + 8).collect();
    Err(BadName { what, got })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[schema(value_type = String, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(name: String) -> Result<Self, BadName> {
                name.parse()
            }
        }

        impl FromStr for $type {
            type Err = BadName;
            fn from_str(name: &str) -> Result<Self, BadName> {
                check($what, name).map(|()| Self(name.into()))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// A job's public name: the client's own, or a UUIDv7 assigned by the gateway before routing.
    JobId, "job_id"
);
name!(
    /// The workers of one cluster: `aws`, `gcp`, …
    PoolId, "pool"
);
name!(
    /// One worker process, as it names itself.
    WorkerId, "worker"
);

impl JobId {
    /// A fresh id: a UUIDv7, so that ids sort by the time they were given.
    pub fn assign() -> Self {
        Self::of(uuid::Uuid::now_v7())
    }

    /// The same, of random bytes of the caller's: whoever makes one for each request need not ask the system for them.
    pub fn assign_from(random: &[u8; 10]) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::of(uuid::Builder::from_unix_timestamp_millis(since.as_millis() as u64, random).into_uuid())
    }

    fn of(id: uuid::Uuid) -> Self {
        let mut text = uuid::Uuid::encode_buffer();
        Self(Arc::from(&*id.hyphenated().encode_lower(&mut text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_is_one_to_64_plain_characters() {
        for good in ["a", "test-job-1", "A.b_c-9", &"x".repeat(64)] {
            assert!(good.parse::<JobId>().is_ok(), "{good}");
        }
        for bad in ["", ".", ".hidden", "a/b", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_assigned_id_is_legal_and_fresh() {
        let ids =
            [JobId::assign(), JobId::assign(), JobId::assign_from(&[0; 10]), JobId::assign_from(&[255; 10])];
        for (place, id) in ids.iter().enumerate() {
            assert!(id.as_str().parse::<JobId>().is_ok());
            assert_eq!(uuid::Uuid::parse_str(id.as_str()).unwrap().get_version_num(), 7, "{id}");
            assert!(!ids[..place].contains(id), "{id}");
        }
    }
}
