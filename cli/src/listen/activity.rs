//! When the last byte arrived: while a large message arrives on a slow line, there is no frame to see.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

/// The time of the last byte.
#[derive(Clone, Debug)]
pub(super) struct LastActivity(Arc<Mutex<Instant>>);

impl LastActivity {
    pub(super) fn get(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP stream that records when bytes arrive.
#[derive(Debug)]
pub(super) struct MonitoredStream {
    io: TcpStream,
    last_activity: LastActivity,
}

impl MonitoredStream {
    pub(super) fn new(io: TcpStream) -> Self {
        Self { io, last_activity: LastActivity(Arc::new(Mutex::new(Instant::now()))) }
    }

    pub(super) fn last_activity(&self) -> LastActivity {
        self.last_activity.clone()
    }
}

impl AsyncRead for MonitoredStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            *self.last_activity.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        read
    }
}

impl AsyncWrite for MonitoredStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
