//! How much of its output a peer has taken.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes that the kernel took of one connection, an extension of each of its requests. A WebSocket does not tell how much of a frame it
/// has written: here a slow peer is told from one that takes nothing.
#[derive(Clone, Debug, Default)]
pub struct WriteProgress(Arc<AtomicU64>);

impl WriteProgress {
    /// So far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The kernel took so many bytes more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
