//! The file of API keys: who has which, by their hashes, followed while the gateway runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use tracing::{error, info};

use super::{Principal, Role};
use crate::metrics::Metrics;
use crate::settle::Settle;

/// Shortest key that works, in characters.
pub const KEY_CHARS_MIN: usize = 32;
/// Most keys of a file.
pub const KEYS_MAX: usize = 10_000;

/// The keys in force, by their hash.
type Known = HashMap<[u8; 32], Arc<Principal>>;

/// The keys, followed.
#[derive(Debug)]
pub(super) struct Keys {
    known: ArcSwap<Known>,
    file: PathBuf,
    metrics: Arc<Metrics>,
    followed: Mutex<Followed>,
}

#[derive(Debug)]
struct Followed {
    error: Option<String>,
    content: Settle<Result<String, String>>,
}

/// Reads the file of keys: `NAME ROLE TENANT SHA256` per line, in hex; `#` begins a comment.
///
/// # Errors
/// The first thing wrong, with its line. Never the line itself: somebody may have put a key there.
pub(super) fn load(file: &Path) -> Result<(), String> {
    parse(file, &see(file)).map(drop)
}

fn see(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

fn parse(file: &Path, text: &Result<String, String>) -> Result<Known, String> {
    let mut keys = Known::new();
    for (place, line) in text.as_ref().map_err(Clone::clone)?.lines().enumerate() {
        let bad = |what: &str| format!("{}:{}: {what}", file.display(), place + 1);
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let [name, role, tenant, hash] = words[..] else {
            if words.is_empty() {
                continue;
            }
            return Err(bad("it wants four words: NAME ROLE TENANT SHA256"));
        };
        if !super::is_plain(name) || !super::is_plain(tenant) {
            return Err(bad("name and tenant have at most 64 of A-Z a-z 0-9 . _ -"));
        }
        let role =
            Role::parse(role).ok_or_else(|| bad("the role is none of viewer, creator, admin, operator"))?;
        let mut digest = [0; 32];
        hex::decode_to_slice(hash, &mut digest)
            .map_err(|_| bad("the hash is no SHA-256 in hex, which has 64 digits"))?;
        let principal = Arc::new(Principal::of_key(name, role, tenant));
        if keys.insert(digest, principal).is_some() {
            return Err(bad("the key is that of an earlier line"));
        }
        if keys.len() > KEYS_MAX {
            return Err(bad(&format!("more than {KEYS_MAX} keys")));
        }
    }
    if keys.is_empty() {
        return Err(format!("{} holds no key, so nobody could ask for anything", file.display()));
    }
    Ok(keys)
}

impl Keys {
    /// Admits who has a key in `file`.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn new(file: &Path, metrics: Arc<Metrics>) -> Result<Self, String> {
        let seen = see(file);
        let known = parse(file, &seen)?;
        metrics.auth_keys.set(i64::try_from(known.len()).unwrap_or(i64::MAX));
        metrics.auth_keys_success.set(1);
        let followed = Mutex::new(Followed { error: None, content: Settle::new(seen) });
        Ok(Self { known: ArcSwap::from_pointee(known), file: file.to_owned(), metrics, followed })
    }

    /// How many keys are in force, and why what lies in the file now is not, if it is not.
    pub(super) fn state(&self) -> (usize, Option<String>) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        (self.known.load().len(), followed.error.clone())
    }

    /// Who has this key.
    pub(super) fn find(&self, key: &[u8]) -> Option<Arc<Principal>> {
        // Found by its hash, so that how long it takes tells nothing of the keys.
        let digest: [u8; 32] = Sha256::digest(key).into();
        self.known.load().get(&digest).filter(|_| key.len() >= KEY_CHARS_MIN).cloned()
    }

    /// Looks at the file, and puts it in force when two looks have seen the same new content.
    pub(super) fn look(&self) {
        let seen = see(&self.file);
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = &mut *followed;
        // Half a file would lock half of the clients out, hence two looks.
        let Some(seen) = followed.content.saw(seen) else { return };
        match parse(&self.file, seen) {
            Ok(keys) => {
                info!(keys = keys.len(), "API keys reloaded");
                self.metrics.auth_keys.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
                self.metrics.auth_keys_success.set(1);
                self.known.store(Arc::new(keys));
                followed.error = None;
            }
            Err(bad) => {
                error!(error = %bad, "API keys not reloaded; those in force stay");
                self.metrics.auth_keys_success.set(0);
                followed.error = Some(bad);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Known, String> {
        parse(Path::new("keys"), &Ok(text.to_owned()))
    }

    #[test]
    fn a_file_of_keys_is_read_and_an_error_names_its_line_but_not_its_text() {
        let hash = "a".repeat(64);
        let keys = read(&format!("# who\n\nci creator acme {hash} # the build\n")).unwrap();
        let principal = keys.values().next().unwrap();
        assert_eq!((principal.name.as_str(), principal.role), ("ci", Role::Creator));
        for (text, wants) in [
            (format!("ci creator {hash}"), "keys:1: it wants four words"),
            (format!("\nci root acme {hash}"), "keys:2: the role is none of"),
            (format!("c/i viewer acme {hash}"), "keys:1: name and tenant"),
            ("ci viewer acme secret-in-plain-text".to_owned(), "keys:1: the hash is no SHA-256"),
            (format!("a viewer t {hash}\nb viewer t {hash}"), "keys:2: the key is that of an earlier line"),
            ("# none".to_owned(), "keys holds no key"),
        ] {
            let shown = read(&text).unwrap_err();
            assert!(shown.contains(wants) && !shown.contains("secret") && !shown.contains("aaaa"), "{shown}");
        }
    }
}
