//! Any file of declarations: every problem has a line of the file, and what is accepted can be run.

use crate::memory::{Bound, bounded};

use super::configuration::prepared;

pub(crate) fn run(input: &[u8]) {
    let bound = Bound { peak: 20_000, sum: 200_000, base: 64 << 20 };
    let (compiled, lines) = bounded(bound, input, || wirepost::declared(input));
    let last = input.len() + 2;
    assert!(lines.iter().all(|line| (1..=last).contains(line)), "{lines:?}");
    for config in compiled {
        assert!(prepared(&config, input), "accepted by the check, refused by the edge");
    }
}
