//! What a job must have waited before another pool may take it, as a gateway tells it to the worker that it chose.
//!
//! Gateways know what egress costs and how fast each pool is, workers do not: so the submit carries the prices and the job
//! store keeps them. A pool without a price never takes it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::PoolId;

/// Most pools that may have a price.
pub const POOLS_MAX: usize = 16;
/// Longest wait that is a price: a day. Whoever is worth no job before that is not named.
pub const SECONDS_MAX: f64 = 86_400.0;

/// Seconds of waiting by pool, as in `gcp=42,azure=7.5`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices(BTreeMap<PoolId, f64>);

/// Prices that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An entry is no `POOL=SECONDS`.
    #[error("{0:?} is no POOL=SECONDS")]
    Syntax(String),
    /// Seconds outside their limits.
    #[error("{0} must be from 0 to {SECONDS_MAX} seconds")]
    Seconds(String),
    /// A pool that is named twice.
    #[error("{0} is named twice")]
    Twice(PoolId),
    /// More pools than may have a price.
    #[error("at most {POOLS_MAX} pools may have a price")]
    Many,
}

impl Prices {
    /// The prices of these pools. Of more than [`POOLS_MAX`] the cheapest stay; one beyond [`SECONDS_MAX`] is none.
    pub fn of(pools: impl IntoIterator<Item = (PoolId, f64)>) -> Self {
        let mut pools: Vec<_> =
            pools.into_iter().filter(|(_, price)| (0.0..=SECONDS_MAX).contains(price)).collect();
        pools.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        pools.truncate(POOLS_MAX);
        Self(pools.into_iter().collect())
    }

    /// Each pool with what the job must have waited for it.
    pub fn iter(&self) -> impl Iterator<Item = (&PoolId, Duration)> {
        self.0.iter().map(|(pool, seconds)| (pool, Duration::from_secs_f64(*seconds)))
    }

    /// Whether nobody may take it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Prices {
    /// Tenths of a second, rounded up: rather a moment too late than too early.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (pool, seconds)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let tenths = (seconds * 10.0).ceil() as u64;
            match tenths % 10 {
                0 => write!(f, "{comma}{pool}={}", tenths / 10)?,
                tenth => write!(f, "{comma}{pool}={}.{tenth}", tenths / 10)?,
            }
        }
        Ok(())
    }
}

impl FromStr for Prices {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut prices = BTreeMap::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let syntax = || Error::Syntax(entry.chars().take(80).collect());
            let (pool, seconds) = entry.split_once('=').ok_or_else(syntax)?;
            let pool: PoolId = pool.parse().map_err(|_| syntax())?;
            let price: f64 = seconds.parse().map_err(|_| syntax())?;
            if !(0.0..=SECONDS_MAX).contains(&price) {
                return Err(Error::Seconds(seconds.chars().take(80).collect()));
            }
            if prices.len() == POOLS_MAX {
                return Err(Error::Many);
            }
            if prices.insert(pool.clone(), price).is_some() {
                return Err(Error::Twice(pool));
            }
        }
        Ok(Self(prices))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(number: usize) -> PoolId {
        format!("p{number}").parse().expect("a pool's name")
    }

    #[test]
    fn prices_are_read_as_they_are_written() {
        let prices = Prices::of([(pool(1), 42.0), (pool(0), 7.123), (pool(2), f64::INFINITY)]);
        assert_eq!(prices.to_string(), "p0=7.2,p1=42");
        let read: Prices = " p0=7.5 , p1=42,".parse().expect("prices");
        let read: Vec<_> = read.iter().map(|(pool, wait)| (pool.as_str(), wait.as_secs_f64())).collect();
        assert_eq!(read, [("p0", 7.5), ("p1", 42.0)]);
        assert!("".parse::<Prices>().expect("none").is_empty());
    }

    #[test]
    fn of_many_pools_the_cheapest_are_named() {
        let prices = Prices::of((0..40).map(|number| (pool(number), 40.0 - number as f64)));
        assert_eq!(prices.iter().count(), POOLS_MAX);
        assert!(prices.iter().all(|(_, wait)| wait.as_secs() <= POOLS_MAX as u64));
        assert_eq!(prices.to_string().parse::<Prices>().expect("within the limits"), prices);
    }

    #[test]
    fn what_is_no_price_is_refused() {
        let many: Vec<String> = (0..=POOLS_MAX).map(|number| format!("p{number}=1")).collect();
        for (text, error) in [
            ("gcp", Error::Syntax("gcp".to_owned())),
            ("gcp=", Error::Syntax("gcp=".to_owned())),
            ("g p=1", Error::Syntax("g p=1".to_owned())),
            (".=1", Error::Syntax(".=1".to_owned())),
            ("gcp=1s", Error::Syntax("gcp=1s".to_owned())),
            ("gcp=NaN", Error::Seconds("NaN".to_owned())),
            ("gcp=inf", Error::Seconds("inf".to_owned())),
            ("gcp=-1", Error::Seconds("-1".to_owned())),
            ("gcp=86401", Error::Seconds("86401".to_owned())),
            ("p1=1,p1=2", Error::Twice(pool(1))),
            (many.join(",").as_str(), Error::Many),
        ] {
            assert_eq!(text.parse::<Prices>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_price_outside_its_limits(text in ".{0,200}") {
            if let Ok(prices) = text.parse::<Prices>() {
                prop_assert!(prices.iter().all(|(_, wait)| wait.as_secs_f64() <= SECONDS_MAX));
                prop_assert!(prices.iter().count() <= POOLS_MAX);
            }
        }

        #[test]
        fn what_is_sent_is_never_refused(waits in proptest::collection::vec(any::<f64>(), 0..40)) {
            let prices = Prices::of(waits.into_iter().enumerate().map(|(number, wait)| (pool(number), wait)));
            prop_assert!(prices.to_string().parse::<Prices>().is_ok());
        }
    }
}
