//! How often one may ask, and how many bytes one may send: a bucket per key, or per address where there is no key.
//!
//! A bucket is one moment: when it would be full again (GCRA). So an unused one is a full one, which need not be kept,
//! and the map is bounded by forgetting those. Under more strangers than it holds, those without a bucket share one:
//! memory stays bounded, and a flood from many addresses slows itself first.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_wire::{Code, Problem};

use crate::config::rate::Rate;

/// Most buckets; about 10 MB.
const BUCKETS_MAX: usize = 100_000;

/// Who is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// The owner of a key or token, by [`crate::auth::Principal::id`].
    Principal(Arc<str>),
    /// An address; of IPv6 the first 64 bits, which are one site.
    Address(IpAddr),
    /// The same of an address, for what it asks with keys and tokens that are no good.
    Stranger(IpAddr),
    /// Everybody for whom there is no room.
    Rest,
}

impl Who {
    /// The address, as it is counted.
    pub fn address(address: IpAddr) -> Self {
        Self::Address(site(address))
    }

    /// Whoever is at the address and has no good key or token, as he is counted.
    pub fn stranger(address: IpAddr) -> Self {
        Self::Stranger(site(address))
    }
}

fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => four.into(),
            None => std::net::Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64)).into(),
        },
        four @ IpAddr::V4(_) => four,
    }
}

/// Between two looks for full buckets: looking at all of them takes a millisecond, in which everybody waits.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The time in which a bucket of bytes fills.
const HOUR: Duration = Duration::from_secs(3600);

fn share_of_hour(bytes: u64, per_hour: u64) -> Duration {
    // More than a bucket holds is more, however much: no time overflows.
    HOUR.mul_f64((bytes as f64 / per_hour as f64).min(2.0))
}

/// The buckets.
#[derive(Debug, Default)]
pub struct Limiter(Mutex<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// When each is full again.
    full_at: HashMap<Who, Instant>,
    swept: Option<Instant>,
}

impl Limiter {
    /// Takes a token `now`.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&self, who: Who, rate: &Rate, now: Instant) -> Result<(), Duration> {
        let each = each(rate);
        self.spend(who, each, depth(rate, each), now).map(drop)
    }

    /// Whether there is a token `now`, which stays.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn look(&self, who: &Who, rate: &Rate, now: Instant) -> Result<(), Duration> {
        let buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = &buckets.full_at;
        let own = buckets.get(who);
        let shared = || buckets.get(&Who::Rest).filter(|_| buckets.len() >= BUCKETS_MAX);
        let Some(full_at) = own.or_else(shared) else { return Ok(()) };
        let each = each(rate);
        over((*full_at).max(now) + each, depth(rate, each), now)
    }

    /// Takes bytes of those that somebody has per hour; an hour's worth may be taken at once. Says whose they were, to
    /// whom they are given back: his own, or [`Who::Rest`]'s, where there was no room for a bucket of his.
    ///
    /// # Errors
    /// How long until there are as many.
    pub fn take_bytes(&self, who: Who, bytes: u64, per_hour: u64, now: Instant) -> Result<Who, Duration> {
        self.spend(who, share_of_hour(bytes, per_hour), HOUR, now)
    }

    /// Gives bytes back that were taken and not needed, to the bucket that they were taken from.
    pub fn give_back(&self, who: &Who, bytes: u64, per_hour: u64, now: Instant) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full_at) = buckets.full_at.get_mut(who) {
            *full_at =
                full_at.checked_sub(share_of_hour(bytes, per_hour)).map_or(now, |earlier| earlier.max(now));
        }
    }

    /// Takes what comes back in `cost` from a bucket that is full after `depth`; says from whose.
    fn spend(&self, who: Who, cost: Duration, depth: Duration, now: Instant) -> Result<Who, Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = buckets.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_INTERVAL);
        if rested && buckets.full_at.len() >= BUCKETS_MAX && !buckets.full_at.contains_key(&who) {
            buckets.full_at.retain(|_, full_at| *full_at > now);
            buckets.swept = Some(now);
        }
        let buckets = &mut buckets.full_at;
        let who = if buckets.len() < BUCKETS_MAX || buckets.contains_key(&who) { who } else { Who::Rest };
        let full_at = buckets.entry(who.clone()).or_insert(now);
        let next = (*full_at).max(now) + cost;
        over(next, depth, now)?;
        *full_at = next;
        Ok(who)
    }
}

/// What is read by who asks more often than `rate` says, and may again after `wait`.
pub fn too_often(rate: &Rate, wait: Duration) -> Box<Problem> {
    let detail = format!("at most {} requests per second, {} at once", rate.per_second, rate.burst);
    Box::new(Problem::new(Code::RateLimited, detail).retry_after(wait.as_secs_f64().ceil() as u64))
}

/// In what time a token comes back.
fn each(rate: &Rate) -> Duration {
    Duration::from_secs_f64(1.0 / rate.per_second)
}

/// In what time a bucket fills.
fn depth(rate: &Rate, each: Duration) -> Duration {
    each.mul_f64(f64::from(rate.burst))
}

/// What a bucket that is full at `next` lacks must fit into it; else by how much it does not.
fn over(next: Instant, depth: Duration, now: Instant) -> Result<(), Duration> {
    match next.saturating_duration_since(now).checked_sub(depth) {
        Some(over) if !over.is_zero() => Err(over),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10.0, burst: 5 };

    fn four(n: u32) -> Who {
        Who::address(IpAddr::V4(n.into()))
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        let taken = |ms: u64| limiter.take(four(1), &RATE, start + Duration::from_millis(ms));
        assert!((0..5).all(|_| taken(0).is_ok()));
        assert_eq!(taken(0), Err(Duration::from_millis(100)), "a refusal costs nothing");
        assert_eq!(taken(40), Err(Duration::from_millis(60)));
        assert!(taken(100).is_ok() && taken(100).is_err());
        assert!(limiter.take(four(2), &RATE, start).is_ok(), "another address has its own");
        let passed = (0..10_000).filter(|ms| taken(200 + ms).is_ok()).count();
        assert!((99..=106).contains(&passed), "{passed} in ten seconds at ten per second");
    }

    #[test]
    fn bytes_are_taken_by_the_hour_and_given_back() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let take = |bytes: u64, minutes: u64| limiter.take_bytes(four(1), bytes, 600, at(minutes));
        assert!(take(0, 0).is_ok() && take(600, 0).is_ok() && take(0, 0).is_ok());
        assert_eq!(take(10, 0), Err(Duration::from_secs(60)));
        assert!(take(10, 1).is_ok() && take(1, 1).is_err());
        limiter.give_back(&four(1), 100, 600, at(1));
        assert!(take(100, 1).is_ok() && take(1, 1).is_err());
        limiter.give_back(&four(1), u64::MAX, 600, at(1));
        assert!(take(600, 1).is_ok() && take(1, 1).is_err(), "it is full at most");
        assert!(take(u64::MAX, 500).is_err());
        limiter.give_back(&four(2), 100, 600, at(0));
        assert!(limiter.take_bytes(four(2), 600, 600, at(0)).is_ok());
    }

    #[test]
    fn bytes_that_were_taken_of_all_are_given_back_to_all() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        for n in 0..u32::try_from(BUCKETS_MAX).unwrap() {
            limiter.take_bytes(four(n), 1, 600, start).unwrap();
        }
        let late = |n: u32| four(u32::MAX - n);
        let of = limiter.take_bytes(late(0), 600, 600, start).unwrap();
        assert_eq!(of, Who::Rest, "there is no room for a bucket of his own");
        assert!(limiter.take_bytes(late(1), 1, 600, start).is_err(), "they share one");
        limiter.give_back(&of, 500, 600, start);
        assert!(limiter.take_bytes(late(1), 500, 600, start).is_ok());
        assert!(limiter.take_bytes(late(2), 1, 600, start).is_err(), "and no more than was given back");
        // An hour later the others' are full and forgotten; what he takes now is his own.
        let later = start + HOUR;
        assert_eq!(limiter.take_bytes(late(0), 600, 600, later), Ok(late(0)));
    }

    #[test]
    fn strangers_cost_no_more_memory_than_there_is() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        for n in 0..u32::try_from(BUCKETS_MAX).unwrap() + 1000 {
            let _ = limiter.take(four(n), &RATE, start);
        }
        let size = || limiter.0.lock().unwrap().full_at.len();
        assert!(size() <= BUCKETS_MAX + 1, "{}", size());
        assert!(limiter.take(four(u32::MAX), &RATE, start).is_err(), "the rest shares one, and it is empty");
        assert!(limiter.take(four(7), &RATE, start).is_ok(), "who was there before is not harmed");
        assert!(limiter.take(four(u32::MAX), &RATE, start + Duration::from_secs(2)).is_ok());
        assert!(size() < 10, "full buckets are forgotten: {}", size());
    }

    #[test]
    fn a_look_takes_nothing_and_says_what_taking_would() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        for ms in [0, 0, 0, 0, 0, 0, 40, 100, 100, 350] {
            let now = start + Duration::from_millis(ms);
            let looks: Vec<_> = (0..9).map(|_| limiter.look(&four(1), &RATE, now)).collect();
            let taken = limiter.take(four(1), &RATE, now);
            assert!(looks.iter().all(|look| *look == taken), "{looks:?} and then {taken:?}");
        }
        assert!(limiter.look(&Who::stranger(IpAddr::V4(1.into())), &RATE, start).is_ok(), "he is another");
        assert!(limiter.0.lock().unwrap().full_at.len() == 1);
    }

    #[test]
    fn a_site_of_ipv6_is_one() {
        let of = |text: &str| Who::address(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:1.2.3.4"), of("1.2.3.4"));
    }
}
