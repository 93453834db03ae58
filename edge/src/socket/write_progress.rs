//! How many bytes of its output a peer has accepted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of one connection that the kernel accepted; an extension of each of its requests. A WebSocket does not report
/// how much of a frame is written: this counter distinguishes a slow peer from one that does not read at all.
#[derive(Clone, Debug, Default)]
pub struct WriteProgress(Arc<AtomicU64>);

impl WriteProgress {
    /// So far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The kernel accepted more bytes.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
