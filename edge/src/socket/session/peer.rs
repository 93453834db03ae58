//! What a session needs of the other end of its connection.

use std::task::Context;

use wirepost_core::frames::CloseCode;

use super::machine::SocketState;
use crate::socket::driver::{Driver, SocketEvent};

/// The other end: a socket, or a test's substitute.
pub(super) trait Peer: Send {
    /// Writes what is queued and waits for the next event. While `may_read` says no, nothing is read; it is told whether a message is
    /// unfinished, and wakes the task when its answer changes. Cancel safe.
    fn next(
        &mut self,
        may_read: impl FnMut(&mut Context<'_>, bool) -> bool + Send,
    ) -> impl Future<Output = SocketEvent> + Send;

    /// Its state, as far as deadlines depend on it.
    fn state(&mut self) -> SocketState;

    /// Sends a close frame and waits a little for the answer.
    fn close(self, code: CloseCode) -> impl Future<Output = ()> + Send;

    /// Answers the peer's close frame.
    fn finish(self) -> impl Future<Output = ()> + Send;
}

impl Peer for Driver {
    fn next(
        &mut self,
        may_read: impl FnMut(&mut Context<'_>, bool) -> bool + Send,
    ) -> impl Future<Output = SocketEvent> + Send {
        Driver::next(self, may_read)
    }

    fn state(&mut self) -> SocketState {
        let stalled_since = self.stalled_since();
        SocketState {
            stalled_since,
            flushing: stalled_since.is_some() && self.is_flushing(),
            message_due: self.upload_due(),
            awaits_room: self.awaits_room(),
        }
    }

    fn close(self, code: CloseCode) -> impl Future<Output = ()> + Send {
        Driver::close(self, code)
    }

    fn finish(self) -> impl Future<Output = ()> + Send {
        Driver::finish(self)
    }
}
