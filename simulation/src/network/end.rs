//! What is read and written at one end of a connection.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use rand::random_range;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{Fault, Link, lock};

/// One end of a connection.
pub(crate) struct End {
    link: Arc<Mutex<Link>>,
    /// The way that it writes to.
    out: usize,
    timer: Option<Pin<Box<Sleep>>>,
    written: Option<Box<dyn Fn(usize) + Send + Sync>>,
}

impl End {
    pub(super) fn of(link: &Arc<Mutex<Link>>, out: usize) -> Self {
        Self { link: Arc::clone(link), out, timer: None, written: None }
    }

    /// Reports the bytes that the other end has room for.
    pub(crate) fn counting(mut self, written: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.written = Some(Box::new(written));
        self
    }

    pub(crate) fn cut(&self) {
        lock(&self.link).suffer(Fault::Cut);
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let due = {
            let mut link = lock(&this.link);
            if link.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let frozen = link.frozen;
            let way = &mut link.ways[1 - this.out];
            way.reader = Some(cx.waker().clone());
            match way.pieces.front_mut() {
                _ if frozen => return Poll::Pending,
                None if way.ended => return Poll::Ready(Ok(())),
                None => return Poll::Pending,
                Some((due, piece)) if *due <= Instant::now() => {
                    let most = piece.len().min(buffer.remaining());
                    buffer.put_slice(&piece[..most]);
                    piece.advance(most);
                    if piece.is_empty() {
                        way.pieces.pop_front();
                    }
                    way.held -= most;
                    if let Some(writer) = way.writer.take() {
                        writer.wake();
                    }
                    return Poll::Ready(Ok(()));
                }
                Some((due, _)) => *due,
            }
        };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        timer.as_mut().reset(due);
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut link = lock(&this.link);
        if link.reset || link.ways[this.out].ended || (link.ways[1 - this.out].ended && link.ways[this.out].swallows) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let (room, delay) = (link.room, link.delay.as_millis() as u64);
        let way = &mut link.ways[this.out];
        let most = bytes.len().min(room.saturating_sub(way.held));
        if most == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !way.swallows {
            let due = Instant::now() + Duration::from_millis(random_range(0..=delay));
            let due = way.latest.map_or(due, |latest| latest.max(due));
            way.latest = Some(due);
            way.held += most;
            way.pieces.push_back((due, Bytes::copy_from_slice(&bytes[..most])));
            if let Some(reader) = way.reader.take() {
                reader.wake();
            }
        }
        if let Some(written) = &this.written {
            written(most);
        }
        Poll::Ready(Ok(most))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut link = lock(&self.link);
        link.ways[self.out].ended = true;
        link.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        link.ways[self.out].ended = true;
        // Nobody reads any more: the other end's next write fails, once it has read what came before.
        link.ways[1 - self.out].swallows = true;
        link.ways[1 - self.out].pieces.clear();
        link.ways[1 - self.out].held = 0;
        link.wake();
    }
}
