//! The messages that wait for one lane, shared by its task and by the callers that publish. Each exchange has a queue of its own, which
//! serves its senders in turn, so that an exchange that does not work delays no other.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    fair::HasDeadline,
    gate::HeldTurn,
    job::{Job, unavailable},
    pace::WINDOW_BYTES,
};
use crate::{Publication, PublishError, rabbit::counters::Counters};

mod events;
mod exchange;

use exchange::Waiting;

/// An exchange without traffic is forgotten after this time.
pub(super) const IDLE: Duration = Duration::from_mins(1);
/// Messages that are taken from one exchange before the next one is served.
const QUANTUM: usize = 32;
/// Bytes that a message needs in addition to its body, approximately.
const AROUND: usize = 400;
/// Shortest and longest time after which a refused client should try again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Bounds of a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Messages waiting.
    pub(super) messages: usize,
    /// Bytes waiting, of all lanes together.
    pub(super) bytes: u64,
    /// Events waiting.
    pub(super) events: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queues {
    state: Mutex<State>,
    /// Something was queued.
    pub(super) wake: Notify,
    /// Number of exchanges at which callers are held back: almost always none, and then no lock is taken.
    congested: AtomicUsize,
    events: AtomicUsize,
    bounds: Bounds,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct State {
    exchanges: HashMap<Arc<str>, Waiting>,
    /// Those with waiting messages, each once; the first is served next.
    turns: VecDeque<Arc<str>>,
    waiting: usize,
    events: VecDeque<Publication>,
    /// Whether events can be sent.
    connected: bool,
    /// Whether everything is refused.
    closed: bool,
}

/// What has happened on the channel of an exchange.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) target: Arc<str>,
    /// Messages that the broker has answered since the last report.
    pub(super) answered: u32,
    /// Messages that it has not answered, and bytes of their bodies.
    pub(super) in_flight: usize,
    pub(super) bytes_in_flight: u64,
}

/// What may be sent to an exchange now.
#[derive(Debug)]
pub(super) enum Room {
    /// Messages, as long as no more than this number are in flight.
    UpTo(usize),
    /// None: the waiting ones are refused, for this reason.
    Refuse(PublishError),
}

/// How well a lane keeps up, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Messages per second that the broker answers, as far as measured.
    pub(super) rate: f64,
    /// How long the last message of the slowest exchange waits for its answer.
    pub(super) wait: Duration,
    /// Callers that are held back.
    pub(super) held: usize,
}

impl Queues {
    pub(super) fn new(bounds: Bounds, counters: Arc<Counters>) -> Self {
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
            congested: AtomicUsize::new(0),
            events: AtomicUsize::new(0),
            bounds,
            counters,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message of this sender, or refuses it immediately.
    pub(super) fn push(&self, sender: u64, job: Job) {
        if let Some((job, refusal)) = self.take(sender, job) {
            job.answer(Err(refusal));
        } else {
            self.wake.notify_one();
        }
    }

    /// Queues it. `Some`: it is refused, and why.
    fn take(&self, sender: u64, mut job: Job) -> Option<(Job, PublishError)> {
        let (now, mut state) = (Instant::now(), self.lock());
        if let Some(refusal) = self.refusal(&state, &job, now) {
            return Some((job, refusal));
        }
        let State { exchanges, turns, waiting, .. } = &mut *state;
        let target = job.target().clone();
        let exchange = exchanges.entry(target.clone()).or_insert_with(|| Waiting::new(self.bounds.messages, now));
        if exchange.jobs.is_empty() {
            turns.push_back(target);
        }
        exchange.used = now;
        job.waits();
        // The bound of the lane was checked above, and is the same.
        if let Err(job) = exchange.jobs.push(sender, job) {
            return Some((job, unavailable("too many messages wait for the broker")));
        }
        *waiting += 1;
        exchange.regulate(now, &self.congested);
        None
    }

    fn refusal(&self, state: &State, job: &Job, now: Instant) -> Option<PublishError> {
        if state.closed {
            return Some(unavailable("this edge is closing"));
        }
        if state.waiting >= self.bounds.messages {
            return Some(unavailable("too many messages wait for the broker"));
        }
        if self.counters.waiting_bytes.get() + job.bytes() > self.bounds.bytes {
            return Some(unavailable("too many bytes wait for the broker"));
        }
        let exchange = state.exchanges.get(job.target()).filter(|exchange| exchange.congested)?;
        let wait = exchange.pace.wait(now, exchange.load()).filter(|wait| now + *wait > job.deadline())?;
        // The time until half of the waiting messages are sent; spread, so that not all clients come back at the same time.
        let retry_after = (wait / 2).mul_f64(rand::random_range(1.0..1.5)).clamp(RETRY.0, RETRY.1);
        Some(PublishError::Overloaded { retry_after })
    }

    /// A position in the line, if callers are held back at one of these exchanges.
    pub(super) fn turn(&self, targets: &dyn Fn() -> [String; 2]) -> Option<HeldTurn> {
        if self.congested.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (now, mut state) = (Instant::now(), self.lock());
        targets().into_iter().find_map(|target| {
            let exchange = state.exchanges.get_mut(&*target).filter(|exchange| exchange.congested)?;
            exchange.regulate(now, &self.congested);
            exchange.congested.then(|| exchange.gate.wait())
        })
    }

    /// Whether callers are held back.
    pub(super) fn is_congested(&self) -> bool {
        self.congested.load(Ordering::Relaxed) > 0
    }

    /// Admits callers where there is room. Callers that were admitted and had nothing to send do not report that.
    pub(super) fn admit(&self, now: Instant) {
        for exchange in self.lock().exchanges.values_mut().filter(|exchange| exchange.congested) {
            exchange.regulate(now, &self.congested);
        }
    }

    /// Records what has happened on channels.
    pub(super) fn report(&self, now: Instant, progress: impl Iterator<Item = Progress>) {
        let mut state = self.lock();
        for Progress { target, answered, in_flight, bytes_in_flight } in progress {
            let Some(exchange) = state.exchanges.get_mut(&target) else { continue };
            let saturated = !exchange.jobs.is_empty() || in_flight + answered as usize >= exchange.pace.window(now);
            exchange.in_flight = in_flight;
            exchange.bytes_in_flight = bytes_in_flight;
            exchange.pace.note(now, answered, in_flight, saturated);
            exchange.used = now;
            exchange.regulate(now, &self.congested);
        }
    }

    /// Takes the messages that may be sent, from one exchange after the other. `room` says how many of each, given its window.
    pub(super) fn serve(
        &self,
        now: Instant,
        mut room: impl FnMut(&Arc<str>, usize) -> Room,
        max_bytes: usize,
        batch: &mut Vec<Job>,
    ) {
        let mut state = self.lock();
        let State { exchanges, turns, waiting, .. } = &mut *state;
        let mut bytes = 0;
        // Exchanges in a row from which nothing could be taken.
        let mut vain = 0;
        while bytes < max_bytes
            && vain < turns.len()
            && let Some(target) = turns.pop_front()
        {
            let Some(exchange) = exchanges.get_mut(&target) else { continue };
            let mut taken = 0;
            match room(&target, exchange.pace.window(now)) {
                Room::UpTo(most) => {
                    let turn = exchange.pace.turn(now);
                    let room = most.saturating_sub(exchange.in_flight).min(QUANTUM);
                    while taken < room
                        && bytes < max_bytes
                        && (exchange.in_flight + taken == 0 || exchange.bytes_in_flight < WINDOW_BYTES)
                        && let Some(job) = exchange.jobs.pop(turn)
                    {
                        *waiting -= 1;
                        if job.is_late(now) {
                            job.answer(Err(unavailable("it waited too long for the broker")));
                            continue;
                        }
                        taken += 1;
                        exchange.bytes_in_flight += job.bytes();
                        bytes += job.bytes() as usize + AROUND;
                        batch.push(job);
                    }
                    // The broker is at work from now on. With a single message in flight the rate would be that of the round trip.
                    if taken > 0 && most > 1 {
                        exchange.pace.note(now, 0, exchange.in_flight + taken, true);
                    }
                    exchange.in_flight += taken;
                }
                Room::Refuse(error) => *waiting -= exchange.refuse(&error),
            }
            vain = if taken > 0 { 0 } else { vain + 1 };
            if exchange.jobs.is_empty() {
                vain = vain.min(turns.len());
            } else {
                turns.push_back(target);
            }
        }
    }

    /// Refuses the messages that wait for one exchange.
    pub(super) fn refuse(&self, target: &Arc<str>, error: &PublishError) {
        let mut state = self.lock();
        let State { exchanges, turns, waiting, .. } = &mut *state;
        if let Some(exchange) = exchanges.get_mut(target) {
            *waiting -= exchange.refuse(error);
            turns.retain(|turn| turn != target);
        }
    }

    /// Refuses all messages that wait.
    pub(super) fn refuse_all(&self, error: &PublishError) {
        let mut state = self.lock();
        let State { exchanges, turns, waiting, .. } = &mut *state;
        turns.clear();
        *waiting = 0;
        for exchange in exchanges.values_mut() {
            exchange.refuse(error);
            exchange.regulate(Instant::now(), &self.congested);
        }
    }

    /// Answers messages that have waited too long, admits callers where there is room again, and forgets exchanges without traffic.
    pub(super) fn sweep(&self, now: Instant, reason: &str) {
        let mut state = self.lock();
        let State { exchanges, turns, waiting, .. } = &mut *state;
        exchanges.retain(|_, exchange| {
            for job in exchange.jobs.expired(now) {
                *waiting -= 1;
                job.answer(Err(unavailable(reason)));
            }
            exchange.gate.forget_admitted();
            exchange.regulate(now, &self.congested);
            exchange.load() > 0 || exchange.congested || now.saturating_duration_since(exchange.used) < IDLE
        });
        turns.retain(|turn| exchanges.get(turn).is_some_and(|exchange| !exchange.jobs.is_empty()));
    }

    /// All messages on the former connection are answered: nothing is in flight.
    pub(super) fn nothing_in_flight(&self) {
        let now = Instant::now();
        for exchange in self.lock().exchanges.values_mut() {
            (exchange.in_flight, exchange.bytes_in_flight) = (0, 0);
            exchange.pace.note(now, 0, 0, false);
        }
    }

    /// Closes if nothing waits, and returns whether it did.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut state = self.lock();
        let empty = state.waiting == 0 && state.events.is_empty();
        state.closed |= empty;
        empty
    }

    /// Whether messages wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.lock().waiting > 0
    }

    /// How well this lane keeps up.
    pub(super) fn load(&self) -> Load {
        let (now, state) = (Instant::now(), self.lock());
        state.exchanges.values().fold(Load::default(), |sum, exchange| Load {
            rate: sum.rate + exchange.pace.rate(now).unwrap_or_default(),
            wait: sum.wait.max(exchange.pace.wait(now, exchange.load()).unwrap_or_default()),
            held: sum.held + exchange.gate.held(),
        })
    }
}

#[cfg(test)]
mod tests;
