//! The random source of live decisions.

use std::cell::RefCell;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static OWN: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Each thread's own small generator, seeded by the system. A decision draws six numbers, and where a job goes is no
/// secret: `rand::rng`, whose numbers nobody can foretell, takes three times as long for them.
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
