//! Option sets and attempts made up by chance. Values come from small pools, so that options meet
//! each other and the attempts.

mod attempts;
mod options;

use fastrand::Rng;

pub use self::{attempts::attempt, options::options};

/// Ports of applications, and those that have a meaning to somebody.
const PORTS: [u16; 12] = [
    53, 80, 3306, 8080, 8443, 15001, 15006, 15008, 15020, 15021, 15053, 15090,
];

/// One of them.
fn one<T: Clone>(rng: &mut Rng, items: &[T]) -> T {
    items[rng.usize(..items.len())].clone()
}

/// True this often in a hundred.
fn percent(rng: &mut Rng, times: u8) -> bool {
    rng.u8(..100) < times
}
