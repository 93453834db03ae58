//! The queue to one socket: bounded in messages and bytes.
//!
//! Written by the business's reader and the connection's own task, read by the connection's task. At the bound the
//! connection ends with 4008 and the queue is dropped: the client resumes by its cursor, so nothing is lost and memory
//! stays bounded. One item always fits an empty queue, so that a push larger than the bound can't cause an endless loop
//! of reconnects.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use tokio_tungstenite::tungstenite::{
    Utf8Bytes,
    protocol::frame::coding::{Control, Data, OpCode},
};
use wirepost_core::frames::CloseCode;

use crate::{
    clock,
    compression::Compression,
    push::{
        backlog::Backlog,
        entry::{Entry, Push},
    },
};

/// Bounds of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Items.
    pub messages: usize,
    /// Bytes of all items.
    pub bytes: usize,
}

impl Bounds {
    /// Half of each.
    #[must_use]
    pub fn half(self) -> Self {
        Self { messages: self.messages / 2, bytes: self.bytes / 2 }
    }

    fn hold(self, inner: &Inner) -> bool {
        inner.queue.len() <= self.messages && inner.bytes <= self.bytes
    }
}

/// One frame to write.
#[derive(Clone, Debug)]
pub enum Item {
    /// A push, shared with all its receivers.
    Push(Arc<Entry>),
    /// The same compressed.
    Compressed(Arc<Entry>),
    /// A control frame.
    Control(Utf8Bytes),
    /// Another frame.
    Frame(OpCode, Bytes),
}

impl Item {
    /// A ping.
    pub fn ping() -> Self {
        Self::Frame(OpCode::Control(Control::Ping), Bytes::new())
    }

    /// A push as this connection gets it.
    pub fn push(entry: &Arc<Entry>, compression: Compression) -> Self {
        match &entry.push {
            Some(Push { frame, compressed: Some(_), .. }) if compression.takes(frame.len()) => {
                Self::Compressed(Arc::clone(entry))
            }
            _ => Self::Push(Arc::clone(entry)),
        }
    }

    /// What kind of frame it is.
    pub fn code(&self) -> OpCode {
        match self {
            Self::Push(_) | Self::Compressed(_) | Self::Control(_) => OpCode::Data(Data::Text),
            Self::Frame(code, _) => *code,
        }
    }

    /// Its payload; shared, not copied. Empty for an entry without what is to be sent, which is never queued.
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Push(entry) => entry.push.as_ref().map_or(&[], |push| push.frame.as_bytes()),
            Self::Compressed(entry) => {
                entry.push.as_ref().and_then(|push| push.compressed.as_deref()).unwrap_or_default()
            }
            Self::Control(text) => text.as_bytes(),
            Self::Frame(_, payload) => payload,
        }
    }

    /// Its bytes before and after it was compressed, if it was.
    pub fn compression(&self) -> Option<(usize, usize)> {
        let Self::Compressed(entry) = self else { return None };
        entry.push.as_ref().map(|push| (push.frame.len(), self.len()))
    }

    fn len(&self) -> usize {
        self.payload().len()
    }

    /// Whether it is a push that has expired.
    fn is_over(&self) -> bool {
        let (Self::Push(entry) | Self::Compressed(entry)) = self else { return false };
        // Most have no end, and need no look at the clock.
        entry.push.as_ref().is_some_and(|push| push.expires_at.is_some() && push.is_over(clock::now_ms()))
    }

    /// Bytes that only this queue keeps: a push is counted on its own.
    fn own(&self) -> usize {
        match self {
            Self::Push(_) | Self::Compressed(_) => 0,
            Self::Control(_) | Self::Frame(..) => self.len(),
        }
    }
}

/// The queue.
#[derive(Debug)]
pub struct Outbound {
    bounds: Bounds,
    inner: Mutex<Inner>,
    gauge: Gauge,
    backlog: Arc<Backlog>,
}

#[derive(Debug, Default)]
struct Inner {
    // A VecDeque allocates nothing until its first item: an idle connection costs no queue.
    queue: VecDeque<Item>,
    bytes: usize,
    /// The part of them that only this queue keeps.
    own: usize,
    /// Pushes were dropped from it: their cursors did not reach the client.
    passed_over: bool,
    closing: Option<CloseCode>,
    shortened: bool,
    leaving: Leaving,
    writer: Option<Waker>,
    refill: Option<Waker>,
}

/// Whether the client is to connect elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Leaving {
    #[default]
    No,
    /// It is, and the writer does not know yet.
    Asked,
    Told,
}

/// What the writer gets.
#[derive(Debug)]
pub enum Next {
    /// Write this.
    Item(Item),
    /// Nothing is left: send a close frame with this code.
    Close(CloseCode),
    /// The session ends earlier than the writer knows.
    Shortened,
    /// The client is to connect elsewhere.
    LetGo,
}

impl Outbound {
    /// An empty queue.
    pub fn new(bounds: Bounds, gauge: Gauge, backlog: Arc<Backlog>) -> Self {
        Self { bounds, inner: Mutex::default(), gauge, backlog }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an item. False: the queue is closing, or was full and is closing now.
    pub fn push(&self, item: Item) -> bool {
        let (bytes, own) = (item.len(), item.own());
        let mut inner = self.lock();
        if inner.closing.is_some() {
            return false;
        }
        let full = inner.queue.len() >= self.bounds.messages || inner.bytes.saturating_add(bytes) > self.bounds.bytes;
        if full && !inner.queue.is_empty() {
            self.end(&mut inner, CloseCode::TooSlow);
            return false;
        }
        inner.bytes += bytes;
        self.gauge.inc_by(bytes as i64);
        inner.own += own;
        inner.queue.push_back(item);
        wake(inner.writer.take());
        drop(inner);
        if own > 0 {
            self.backlog.add(own);
            self.backlog.shed_at_times();
        }
        true
    }

    /// Drops queued pushes that are not to be delivered any more.
    pub fn retain_pushes(&self, mut keep: impl FnMut(&Entry) -> bool) {
        let mut inner = self.lock();
        let (mut dropped, queued) = (0, inner.queue.len());
        inner.queue.retain(|item| {
            let (Item::Push(entry) | Item::Compressed(entry)) = item else { return true };
            let kept = keep(entry);
            dropped += if kept { 0 } else { item.len() };
            kept
        });
        inner.passed_over |= inner.queue.len() < queued;
        inner.bytes -= dropped;
        self.gauge.dec_by(dropped as i64);
        if self.bounds.half().hold(&inner) {
            wake(inner.refill.take());
        }
    }

    /// Closes the connection. The first cause counts. Queued frames are still written if the client could not get them
    /// again ([`CloseCode::flushes`]); otherwise they are dropped.
    pub fn close(&self, code: CloseCode) {
        let mut inner = self.lock();
        if inner.closing.is_none() {
            self.end(&mut inner, code);
        }
    }

    fn end(&self, inner: &mut Inner, code: CloseCode) {
        inner.closing = Some(code);
        if !code.flushes() {
            self.gauge.dec_by(inner.bytes as i64);
            self.backlog.sub(inner.own);
            inner.bytes = 0;
            inner.own = 0;
            inner.queue = VecDeque::new();
        }
        wake(inner.writer.take());
        wake(inner.refill.take());
    }

    /// The next item to write; pending while there is none. A push that has expired in the queue is dropped. One writer
    /// only.
    pub fn poll_next(&self, cx: &mut std::task::Context<'_>) -> Poll<Next> {
        let mut inner = self.lock();
        if std::mem::take(&mut inner.shortened) {
            return Poll::Ready(Next::Shortened);
        }
        if inner.leaving == Leaving::Asked {
            inner.leaving = Leaving::Told;
            return Poll::Ready(Next::LetGo);
        }
        while let Some(item) = inner.queue.pop_front() {
            let (bytes, own) = (item.len(), item.own());
            inner.bytes -= bytes;
            inner.own -= own;
            self.gauge.dec_by(bytes as i64);
            self.backlog.sub(own);
            if inner.queue.is_empty() && inner.queue.capacity() > 64 {
                // Free the memory of a burst.
                inner.queue = VecDeque::new();
            }
            if self.bounds.half().hold(&inner) {
                wake(inner.refill.take());
            }
            if item.is_over() {
                inner.passed_over = true;
                continue;
            }
            return Poll::Ready(Next::Item(item));
        }
        if let Some(code) = inner.closing {
            return Poll::Ready(Next::Close(code));
        }
        inner.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Why the connection is closing; pending while it is open. For the writer while it can't write.
    pub fn poll_closing(&self, cx: &mut std::task::Context<'_>) -> Poll<CloseCode> {
        let mut inner = self.lock();
        if let Some(code) = inner.closing {
            return Poll::Ready(code);
        }
        inner.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Why the connection is closing, if it is.
    pub fn closing(&self) -> Option<CloseCode> {
        self.lock().closing
    }

    /// Lets the writer know that the session ends earlier.
    pub fn shorten(&self) {
        let mut inner = self.lock();
        inner.shortened = true;
        wake(inner.writer.take());
    }

    /// Wakes the writer.
    pub fn wake_writer(&self) {
        wake(self.lock().writer.take());
    }

    /// Queued bytes; `None`: it is closing.
    pub fn held(&self) -> Option<usize> {
        let inner = self.lock();
        inner.closing.is_none().then_some(inner.bytes)
    }

    /// Whether pushes were dropped from it since this was last asked.
    pub fn take_passed_over(&self) -> bool {
        std::mem::take(&mut self.lock().passed_over)
    }

    /// The client is to connect elsewhere. False: it is asked already, or the connection ends anyway.
    pub fn let_go(&self) -> bool {
        let mut inner = self.lock();
        if inner.closing.is_some() || inner.leaving != Leaving::No {
            return false;
        }
        inner.leaving = Leaving::Asked;
        wake(inner.writer.take());
        true
    }

    /// Whether it was let go.
    pub fn is_leaving(&self) -> bool {
        self.lock().leaving != Leaving::No
    }

    /// Its bounds.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Waits until at most half of the bounds is used and `bytes` more fit, or nothing is queued, or the queue is
    /// closing. A catch-up waits here before it queues, so it never makes the queue overflow. One waiter only.
    pub async fn room_for(&self, bytes: usize) {
        std::future::poll_fn(|cx| {
            let mut inner = self.lock();
            let room = self.bounds.half().hold(&inner) && inner.bytes.saturating_add(bytes) <= self.bounds.bytes;
            if room || inner.queue.is_empty() || inner.closing.is_some() {
                return Poll::Ready(());
            }
            inner.refill = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        let inner = self.lock();
        self.gauge.dec_by(inner.bytes as i64);
        self.backlog.sub(inner.own);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::task::Context;

    use super::*;
    use crate::metrics::Metrics;

    pub(crate) fn outbound() -> Outbound {
        let backlog = Backlog::new(1 << 20, &Metrics::default());
        Outbound::new(Bounds { messages: 2, bytes: 10 }, Gauge::default(), backlog)
    }

    fn control(text: &str) -> Item {
        Item::Control(text.to_owned().into())
    }

    fn next(outbound: &Outbound) -> Poll<Next> {
        outbound.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_full_queue_closes_with_too_slow_and_keeps_nothing() {
        let out = outbound();
        assert!(out.push(control("1234")));
        assert!(out.push(control("1234")));
        assert!(!out.push(control("1")));
        assert!(matches!(next(&out), Poll::Ready(Next::Close(CloseCode::TooSlow))));
        assert_eq!(out.gauge.get(), 0);
    }

    #[test]
    fn one_item_larger_than_the_bound_is_accepted() {
        let out = outbound();
        assert!(out.push(control("a push larger than the bound")));
        assert!(matches!(next(&out), Poll::Ready(Next::Item(_))));
        assert!(next(&out).is_pending());
    }

    #[test]
    fn a_drain_flushes_first_and_the_first_cause_counts() {
        let out = outbound();
        out.push(control("ack"));
        out.close(CloseCode::Drain);
        out.close(CloseCode::Replaced);
        assert!(matches!(next(&out), Poll::Ready(Next::Item(_))));
        assert!(matches!(next(&out), Poll::Ready(Next::Close(CloseCode::Drain))));
    }
}
