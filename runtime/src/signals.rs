//! SIGTERM and SIGINT, in two steps: the first one asks the process to drain, the second one ends it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, registered once: from then on they no longer end the process on their own.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Registers them. Needs a tokio runtime.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn register() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one, also if it came before the call. Cancel safe.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
