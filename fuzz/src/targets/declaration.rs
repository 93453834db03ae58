//! Any JSON as a declaration: what the rules accept, an edge can run.

use wirepost_core::{WsBusiness, compile::compile_one};

use super::configuration::prepared;

pub(crate) fn run(input: &[u8]) {
    let Ok(business) = serde_json::from_slice::<WsBusiness>(input) else { return };
    if let Ok(compiled) = compile_one(&business) {
        assert_eq!(compile_one(&business).ok(), Some(compiled.clone()), "the same each time");
        assert!(prepared(&compiled.config, input), "accepted by the rules, refused by the edge");
    }
}
