//! Any JSON as an edge's configuration of a business: refused or prepared, without a panic, and the same when it is written again.

use wirepost_core::edge_config::BusinessConfig;
use wirepost_edge::business::{Business, ConfigError};

use crate::memory::{Bound, bounded};

pub(crate) fn run(input: &[u8]) {
    let Ok(config) = serde_json::from_slice::<BusinessConfig>(input) else { return };
    prepared(&config, input);
}

/// Prepares it as an edge does. Whether it can be used.
pub(crate) fn prepared(config: &BusinessConfig, input: &[u8]) -> bool {
    let written = serde_json::to_vec(config).expect("it came from JSON");
    let again: BusinessConfig = serde_json::from_slice(&written).expect("what is written can be read");
    assert_eq!((config, config.hash()), (&again, again.hash()));
    // Patterns of schemas become automata, each with a bound of its own.
    match bounded(Bound { peak: 200_000, sum: 400_000, base: 64 << 20 }, input, || Business::try_new(again)) {
        Ok(_) => true,
        Err(error @ ConfigError::Panicked { .. }) => panic!("{error}"),
        Err(_) => false,
    }
}
