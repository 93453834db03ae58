//! Bytes on their way to all sockets together, each push counted once, to however many sockets it goes.
//!
//! A push counts while nothing but sockets holds it: what a business's log or the cache of pieces holds is bounded there. Control frames count
//! for themselves. *At the limit*: sockets whose peers take nothing at the moment are closed with 4008, who holds most first, until an eighth of
//! the budget is free. Their clients resume by cursor, on this edge or another.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::time::Instant;
use wirepost_core::frames::CloseCode;

use super::mailbox::Conn;
use crate::metrics::Metrics;

/// Control frames look for sockets to close at most this often: a look goes through all that stall.
const PAUSE: Duration = Duration::from_millis(50);

/// The budget of a process.
#[derive(Debug)]
pub struct Backlog {
    max: i64,
    bytes: Gauge,
    relieved: Counter,
    /// Connections whose peer takes nothing at the moment, by number, each with the bytes that it is writing.
    stalled: Mutex<HashMap<u64, (Arc<Conn>, usize)>>,
    begun: Instant,
    /// Ms since `begun` from which on a control frame looks again.
    next_look: AtomicU64,
}

impl Backlog {
    /// A budget of `max` bytes.
    pub fn new(max: usize, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            max: i64::try_from(max).unwrap_or(i64::MAX),
            bytes: metrics.backlog_bytes.clone(),
            relieved: metrics.backlog_closes.clone(),
            stalled: Mutex::default(),
            begun: Instant::now(),
            next_look: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (Arc<Conn>, usize)>> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes more are on their way.
    pub fn add(&self, bytes: usize) {
        self.bytes.inc_by(bytes as i64);
    }

    /// So many bytes less.
    pub fn sub(&self, bytes: usize) {
        self.bytes.dec_by(bytes as i64);
    }

    /// The peer of `conn` takes nothing for as long as what is returned lives, while `writing` bytes beside those of its queue wait for it.
    pub fn stalls(self: &Arc<Self>, conn: &Arc<Conn>, writing: usize) -> Stalled {
        self.lock().insert(conn.number, (Arc::clone(conn), writing));
        self.relieve();
        Stalled { number: conn.number, backlog: Arc::clone(self) }
    }

    /// [`Self::relieve`] for whoever adds little and often: once in [`PAUSE`] for all of them.
    pub fn relieve_at_times(&self) {
        if self.bytes.get() <= self.max {
            return;
        }
        let now = self.begun.elapsed().as_millis() as u64;
        let look = |next: u64| (next <= now).then_some(now + PAUSE.as_millis() as u64);
        if self.next_look.fetch_update(Ordering::Relaxed, Ordering::Relaxed, look).is_ok() {
            self.relieve();
        }
    }

    /// Closes who holds most, where the budget is exceeded. For whoever added to it and holds no queue's lock.
    pub fn relieve(&self) {
        let over = self.bytes.get() - self.max;
        if over <= 0 {
            return;
        }
        let mut stalled: Vec<_> = {
            let stalled = self.lock();
            let open = stalled.values().filter(|(conn, _)| conn.outbound.closing().is_none());
            open.map(|(conn, writing)| (conn.outbound.bytes() + writing, Arc::clone(conn))).collect()
        };
        stalled.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut wanted = over + self.max / 8;
        for (bytes, conn) in stalled {
            if wanted <= 0 {
                break;
            }
            wanted -= bytes as i64;
            self.relieved.inc();
            conn.outbound.close(CloseCode::TooSlow);
        }
    }
}

/// A connection whose peer takes nothing.
#[derive(Debug)]
pub struct Stalled {
    number: u64,
    backlog: Arc<Backlog>,
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.backlog.lock().remove(&self.number);
    }
}

/// The bytes of one push, for as long as it lives.
#[derive(Debug)]
pub struct Carried {
    bytes: usize,
    /// Whether a log or cache holds it.
    kept: AtomicBool,
    backlog: Arc<Backlog>,
}

impl Carried {
    /// It is on its way.
    pub fn new(bytes: usize, backlog: &Arc<Backlog>) -> Self {
        backlog.add(bytes);
        Self { bytes, kept: AtomicBool::new(false), backlog: Arc::clone(backlog) }
    }

    /// Whether a log or cache, and only one of them, holds it from now on.
    pub fn keep(&self, kept: bool) {
        match (self.kept.swap(kept, Ordering::Relaxed), kept) {
            (false, true) => self.backlog.sub(self.bytes),
            (true, false) => self.backlog.add(self.bytes),
            _ => {}
        }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if !*self.kept.get_mut() {
            self.backlog.sub(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::mailbox::{
        Identity,
        outbound::{Bounds, Item, Outbound},
    };

    fn conn(number: u64, backlog: &Arc<Backlog>, bytes: usize) -> Arc<Conn> {
        let identity = Identity { unique_id: "alice".into(), client_type: "app".into(), tags: vec![] };
        let bounds = Bounds { messages: 10, bytes: 1 << 20 };
        let conn =
            Arc::new(Conn::new(number, &identity, true, Outbound::new(bounds, Gauge::default(), Arc::clone(backlog))));
        conn.outbound.push(Item::Control("x".repeat(bytes).into()));
        conn
    }

    #[tokio::test(start_paused = true)]
    async fn control_frames_look_at_times_and_then_close() {
        let backlog = Backlog::new(1000, &Metrics::default());
        let (flowing, stalling) = (conn(1, &backlog, 500), conn(2, &backlog, 400));
        let _stalls = backlog.stalls(&stalling, 0);
        let more = || flowing.outbound.push(Item::Control("x".repeat(200).into()));
        backlog.next_look.store(PAUSE.as_millis() as u64, Ordering::Relaxed);
        more();
        assert_eq!(stalling.outbound.closing(), None, "somebody looked just now");
        tokio::time::advance(PAUSE).await;
        more();
        assert_eq!(stalling.outbound.closing(), Some(CloseCode::TooSlow));
    }

    #[test]
    fn over_the_budget_those_who_take_nothing_go_and_who_holds_most_first() {
        let backlog = Backlog::new(1000, &Metrics::default());
        let (flowing, little, much) = (conn(1, &backlog, 500), conn(2, &backlog, 100), conn(3, &backlog, 300));
        let little_stalls = backlog.stalls(&little, 0);
        let _much_stalls = backlog.stalls(&much, 0);
        let more = Carried::new(200, &backlog);
        backlog.relieve();
        let closing = [&flowing, &little, &much].map(|conn| conn.outbound.closing());
        assert_eq!(closing, [None, None, Some(CloseCode::TooSlow)]);
        assert_eq!((backlog.bytes.get(), backlog.relieved.get()), (800, 1));
        more.keep(true);
        assert_eq!(backlog.bytes.get(), 600, "what a log holds is bounded there");
        more.keep(false);
        drop(little_stalls);
        let _more = Carried::new(400, &backlog);
        backlog.relieve();
        assert_eq!(flowing.outbound.closing().or(little.outbound.closing()), None, "nobody holds anybody up");
        drop((flowing, little, much, more));
        assert_eq!(backlog.bytes.get(), 400);
    }
}
