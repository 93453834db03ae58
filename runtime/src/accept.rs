//! Accepts connections, whatever goes wrong with single ones.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};

use crate::backoff::Backoff;

/// First pause after a failed accept. Without one a process out of file descriptors spins, since the connection stays in the queue.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Where connections come from.
pub trait Accept: Sync {
    /// The next one, and its peer. Cancel safe.
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self).await
    }
}

impl<T: Accept + Send> Accept for Arc<T> {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        T::accept(self).await
    }
}

/// Accepts one connection after the other, and pauses after failures.
#[derive(Debug)]
pub struct Acceptor<A> {
    from: A,
    pauses: Backoff,
}

impl<A: Accept> Acceptor<A> {
    /// `longest_pause`: between two attempts that fail.
    pub fn new(from: A, longest_pause: Duration) -> Self {
        Self { from, pauses: Backoff::new(FIRST_PAUSE, longest_pause) }
    }

    /// The next connection, and its peer. `failed` is called for each failure that is not one of a single connection, before the pause. Cancel safe.
    pub async fn next(&mut self, mut failed: impl FnMut(&io::Error)) -> (TcpStream, SocketAddr) {
        loop {
            match self.from.accept().await {
                Ok(accepted) => {
                    self.pauses.reset();
                    return accepted;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    failed(&error);
                    tokio::time::sleep(self.pauses.next_pause()).await;
                }
            }
        }
    }
}

/// Linux reports the errors of a new connection from accept (accept(2)); a stranger can cause them, and they say nothing about this process.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNREFUSED
                | Errno::CONNRESET
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::NONET
                | Errno::NOPROTOOPT
                | Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::PROTO
                | Errno::TIMEDOUT
        )
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Fails this many times, with these errors in order.
    struct Failing {
        errors: &'static [Errno],
        times: usize,
        tries: AtomicUsize,
        socket: TcpListener,
    }

    impl Accept for &Failing {
        async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
            let tries = self.tries.fetch_add(1, Ordering::Relaxed);
            if tries < self.times {
                return Err(self.errors[tries % self.errors.len()].into());
            }
            Accept::accept(&self.socket).await
        }
    }

    /// The errors that were reported until a connection came.
    async fn reported(errors: &'static [Errno], times: usize) -> usize {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let from = Failing { errors, times, tries: AtomicUsize::new(0), socket };
        let mut reported = 0;
        Acceptor::new(&from, Duration::from_millis(20)).next(|_| reported += 1).await;
        reported
    }

    #[tokio::test]
    async fn accepting_goes_on_after_failures() {
        assert_eq!(reported(&[Errno::MFILE], 5).await, 5);
    }

    #[tokio::test]
    async fn errors_of_single_connections_are_not_reported() {
        assert_eq!(reported(&[Errno::CONNABORTED, Errno::HOSTUNREACH, Errno::PERM], 30).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_pause_instead_of_spinning() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let from = Failing { errors: &[Errno::MFILE], times: usize::MAX, tries: AtomicUsize::new(0), socket };
        let mut acceptor = Acceptor::new(&from, Duration::from_secs(1));
        let accepting = tokio::time::timeout(Duration::from_mins(10), acceptor.next(|_| {}));
        accepting.await.unwrap_err();
        // On average half a second between two.
        let tries = from.tries.load(Ordering::Relaxed);
        assert!((900..1600).contains(&tries), "{tries} tries in ten minutes");
    }
}
