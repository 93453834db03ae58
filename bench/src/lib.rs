//! What the benchmarks share.

pub mod tickets;
