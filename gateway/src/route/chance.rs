//! The random source of live decisions.

use std::cell::RefCell;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static OWN: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Each thread's own small generator, seeded by the system. Where a job goes is no secret, and a decision among 10,000
/// workers draws six numbers: by `rand::rng`, whose numbers nobody can foretell, it takes 96 ns instead of 84
/// (`millrace-bench pick`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Chance;

impl RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        OWN.with_borrow_mut(RngCore::next_u32)
    }

    fn next_u64(&mut self) -> u64 {
        OWN.with_borrow_mut(RngCore::next_u64)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        OWN.with_borrow_mut(|own| own.fill_bytes(bytes));
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn threads_draw_numbers_of_their_own() {
        let draw = || std::array::from_fn::<u64, 4, _>(|_| Chance.random());
        let (here, there) = (draw(), std::thread::spawn(draw).join().unwrap());
        assert_ne!(here, there);
        assert_ne!(here, draw());
    }
}
