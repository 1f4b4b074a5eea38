//! Tokens whose signatures were checked already, so that a client's next request costs none.
//!
//! Two generations per shard: what is asked for is in the young one or is moved there, and when that is full it becomes
//! the old one, and what was old is forgotten. So memory is bounded and what is in use stays, without a list that every
//! hit would have to change. Only good tokens are in it: a stranger cannot push others out.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;

use super::Principal;

/// Shards; a lock of one is held for a look.
const SHARDS: usize = 16;
/// Bytes of all tokens together, with what is kept beside each.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of one generation of a shard.
const GENERATION_BYTES_MAX: usize = BYTES_MAX / SHARDS / 2;
/// What an entry takes beside its token; measured roughly, so that many small ones are bounded too.
const ENTRY_BYTES: usize = 256;
/// So many of a token's last bytes are hashed: of its signature, which is as good as random. All of it costs what checking
/// a request's header does.
const HASHED_BYTES: usize = 32;

/// The tokens. They are found by a keyed hash of their ends and compared whole: who does not have one cannot come near it.
#[derive(Debug)]
pub(super) struct Verified {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Box<[u8]>, Entry, ByEnd>,
    old: HashMap<Box<[u8]>, Entry, ByEnd>,
    young_bytes: usize,
}

/// Makes hashers of [`HASHED_BYTES`].
#[derive(Debug, Clone, Default)]
struct ByEnd(RandomState);

struct EndHasher(<RandomState as BuildHasher>::Hasher);

impl BuildHasher for ByEnd {
    type Hasher = EndHasher;

    fn build_hasher(&self) -> EndHasher {
        EndHasher(self.0.build_hasher())
    }
}

impl Hasher for EndHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(&bytes[bytes.len().saturating_sub(HASHED_BYTES)..]);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) principal: Arc<Principal>,
    /// The last second in which it holds, in Unix time.
    pub(super) until_unix_s: u64,
    /// Which set of keys it was checked with.
    pub(super) generation: u64,
}

impl Default for Verified {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Verified {
    fn shard(&self, token: &[u8]) -> std::sync::MutexGuard<'_, Shard> {
        // It ends in its signature, which is as good as random.
        let place = token.iter().rev().take(8).fold(0, |sum, byte| sum + usize::from(*byte)) % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has this token, if it still holds and was checked with the set of keys in force.
    pub(super) fn get(&self, token: &[u8], now_unix_s: u64, generation: u64) -> Option<Arc<Principal>> {
        let mut shard = self.shard(token);
        let holds = |entry: &Entry| entry.generation == generation && now_unix_s <= entry.until_unix_s;
        if let Some(entry) = shard.young.get(token) {
            return holds(entry).then(|| entry.principal.clone());
        }
        let (token, entry) = shard.old.remove_entry(token)?;
        let principal = holds(&entry).then(|| entry.principal.clone())?;
        shard.put(token, entry);
        Some(principal)
    }

    /// Keeps a token that was found good.
    pub(super) fn put(&self, token: &[u8], entry: Entry) {
        self.shard(token).put(token.into(), entry);
    }
}

impl Shard {
    fn put(&mut self, token: Box<[u8]>, entry: Entry) {
        let bytes = token.len() + ENTRY_BYTES;
        if self.young_bytes + bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(token, entry).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Principal, Role};
    use super::*;

    fn entry(until_unix_s: u64, generation: u64) -> Entry {
        Entry { principal: Arc::new(Principal::of_token("a", Role::Viewer, "t")), until_unix_s, generation }
    }

    #[test]
    fn an_entry_ends_with_its_token_and_with_the_set_of_keys() {
        let verified = Verified::default();
        verified.put(b"token", entry(100, 1));
        let found = |token: &[u8], now, generation| verified.get(token, now, generation).is_some();
        assert!(found(b"token", 100, 1) && !found(b"token", 101, 1));
        assert!(!found(b"token", 100, 2) && !found(b"toke", 100, 1) && !found(b"token.", 100, 1));
        verified.put(b"token", entry(200, 2));
        assert!(found(b"token", 101, 2));
    }

    #[test]
    fn tokens_that_end_alike_are_told_apart() {
        let verified = Verified::default();
        let token = |begin: &str| format!("{begin}.{}", "s".repeat(2 * HASHED_BYTES)).into_bytes();
        let named = |name: &str| {
            let principal = Arc::new(Principal::of_token(name, Role::Viewer, "t"));
            Entry { principal, until_unix_s: 9, generation: 0 }
        };
        verified.put(&token("a"), named("a"));
        verified.put(&token("b"), named("b"));
        let name = |begin: &str| Some(verified.get(&token(begin), 0, 0)?.name.clone());
        assert_eq!((name("a").as_deref(), name("b").as_deref(), name("c")), (Some("a"), Some("b"), None));
    }

    #[test]
    fn memory_is_bounded_and_what_is_in_use_stays() {
        let verified = Verified::default();
        verified.put(b"busy", entry(9, 0));
        for n in 0..60_000_u32 {
            verified.put(&[n.to_le_bytes(); 128].concat(), entry(9, 0));
            if n % 100 == 0 {
                assert!(verified.get(b"busy", 0, 0).is_some(), "after {n}");
            }
        }
        let held: usize = verified
            .shards
            .iter()
            .map(|shard| {
                let shard = shard.lock().unwrap();
                shard
                    .young
                    .keys()
                    .chain(shard.old.keys())
                    .map(|token| token.len() + ENTRY_BYTES)
                    .sum::<usize>()
            })
            .sum();
        assert!(held <= BYTES_MAX && held > BYTES_MAX / 4, "{held}");
        assert!(verified.get(&[0_u32.to_le_bytes(); 128].concat(), 0, 0).is_none());
    }
}
