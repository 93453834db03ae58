//! Any bytes as a compressed message: bounded output and memory; what we compress comes back.

use wirepost_edge::compression::{deflate, inflate};

use crate::memory::used;

const LIMIT: usize = 8 << 10;

pub(crate) fn run(input: &[u8]) {
    // Each thread's compressor and decompressor are made once.
    let _ = (deflate(b"warm"), inflate(b"warm", LIMIT));
    let (found, used) = used(|| inflate(input, LIMIT));
    assert!(used.peak <= 2 * LIMIT + 1024, "{used:?}");
    assert!(found.map_or(0, |found| found.len()) <= LIMIT);
    if let Some(compressed) = deflate(input) {
        assert!(compressed.len() < input.len());
        assert_eq!(inflate(&compressed, input.len()).as_deref(), Ok(input));
        assert!(inflate(&compressed, input.len() - 1).is_err(), "one byte more than the limit");
    }
}
