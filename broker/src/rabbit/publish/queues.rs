//! What waits for one lane: shared by its task and by the callers that publish. Each exchange has a queue of its own, so that one that does
//! not work holds up nobody else, and serves its senders in turn.

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
    fair::FairQueue,
    gate::{Gate, HeldTurn},
    job::{ANSWER_TIMEOUT, Job, unavailable},
    pace::Pace,
};
use crate::{Publication, PublishError, rabbit::counters::Counters};

/// An exchange without traffic is forgotten after this.
pub(super) const IDLE: Duration = Duration::from_mins(1);
/// Messages that are taken of one exchange before it is the turn of the next.
const QUANTUM: usize = 32;
/// What a message needs beside its body, about.
const AROUND: usize = 400;
/// Shortest and longest time after which a refused client is to try again.
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
    /// Exchanges at which callers are held back: almost always none, and then nothing is locked.
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
    /// Events can be sent.
    connected: bool,
    /// Nothing is taken any more.
    closed: bool,
}

/// One exchange.
#[derive(Debug)]
struct Waiting {
    jobs: FairQueue<Job>,
    in_flight: usize,
    pace: Pace,
    gate: Arc<Gate>,
    congested: bool,
    used: Instant,
}

/// What has happened on the channel of an exchange.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) target: Arc<str>,
    /// Messages that the broker has answered since the last report.
    pub(super) answered: u32,
    /// Messages that it has not answered.
    pub(super) in_flight: usize,
}

/// What may be sent to an exchange now.
#[derive(Debug)]
pub(super) enum Room {
    /// As long as no more than so many messages are in flight.
    UpTo(usize),
    /// Nothing that waits, for this reason.
    Refuse(PublishError),
}

/// How a lane keeps up, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Messages a second that the broker answers, as far as measured.
    pub(super) rate: f64,
    /// How long the last message of the slowest exchange waits for its answer.
    pub(super) wait: Duration,
    /// Callers that are held back.
    pub(super) held: usize,
}

impl Waiting {
    fn new(capacity: usize, now: Instant) -> Self {
        Self {
            jobs: FairQueue::new(capacity),
            in_flight: 0,
            pace: Pace::new(),
            gate: Arc::default(),
            congested: false,
            used: now,
        }
    }

    fn load(&self) -> usize {
        self.jobs.len() + self.in_flight
    }

    /// Holds callers back from now on, or lets them in.
    fn regulate(&mut self, now: Instant, congested: &AtomicUsize) {
        let room = self.pace.limit(now).saturating_sub(self.load());
        let held = self.gate.held();
        if self.congested && room > 0 && held == 0 {
            self.congested = false;
            congested.fetch_sub(1, Ordering::Relaxed);
        } else if !self.congested && room == 0 {
            self.congested = true;
            congested.fetch_add(1, Ordering::Relaxed);
        }
        if held > 0 {
            self.gate.admit(room);
        }
    }
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

    /// Takes a message of this sender into its queue, or refuses it immediately.
    pub(super) fn push(&self, sender: u64, job: Job) {
        if let Some((job, refusal)) = self.take(sender, job) {
            job.answer(Err(refusal));
        } else {
            self.wake.notify_one();
        }
    }

    /// Some: it is refused.
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
        // The lane's bound, which was checked, is no larger.
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
        let wait = exchange.pace.wait(now, exchange.load()).filter(|wait| *wait > ANSWER_TIMEOUT)?;
        // When half of what waits is gone; spread, so that not all of them come at the same time.
        let retry_after = (wait / 2).mul_f64(rand::random_range(1.0..1.5)).clamp(RETRY.0, RETRY.1);
        Some(PublishError::Overloaded { retry_after })
    }

    /// A place in the line, if callers are held back at one of these exchanges.
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

    /// Lets callers in where there is room. Those that were let in and had nothing to send do not report it.
    pub(super) fn admit(&self, now: Instant) {
        for exchange in self.lock().exchanges.values_mut().filter(|exchange| exchange.congested) {
            exchange.regulate(now, &self.congested);
        }
    }

    /// Notes what has happened on channels.
    pub(super) fn report(&self, now: Instant, progress: impl Iterator<Item = Progress>) {
        let mut state = self.lock();
        for Progress { target, answered, in_flight } in progress {
            let Some(exchange) = state.exchanges.get_mut(&target) else { continue };
            let saturated = !exchange.jobs.is_empty() || in_flight + answered as usize >= exchange.pace.window(now);
            exchange.in_flight = in_flight;
            exchange.pace.note(now, answered, in_flight, saturated);
            exchange.used = now;
            exchange.regulate(now, &self.congested);
        }
    }

    /// Takes what may be sent: of each exchange what `room` says, given its window, in turn.
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
        // Exchanges in a row that could send nothing.
        let mut vain = 0;
        while bytes < max_bytes
            && vain < turns.len()
            && let Some(target) = turns.pop_front()
        {
            let Some(exchange) = exchanges.get_mut(&target) else { continue };
            let mut taken = 0;
            match room(&target, exchange.pace.window(now)) {
                Room::UpTo(most) => {
                    let room = most.saturating_sub(exchange.in_flight).min(QUANTUM);
                    while taken < room
                        && bytes < max_bytes
                        && let Some(job) = exchange.jobs.pop()
                    {
                        *waiting -= 1;
                        if job.is_late(now) {
                            job.answer(Err(unavailable("it waited too long for the broker")));
                            continue;
                        }
                        taken += 1;
                        bytes += job.bytes() as usize + AROUND;
                        batch.push(job);
                    }
                    // From when on the broker is at work. A single message shows how long it takes, not how many it takes.
                    if taken > 0 && most > 1 {
                        exchange.pace.note(now, 0, exchange.in_flight + taken, true);
                    }
                    exchange.in_flight += taken;
                }
                Room::Refuse(error) => *waiting -= refuse(exchange, &error),
            }
            vain = if taken > 0 { 0 } else { vain + 1 };
            if exchange.jobs.is_empty() {
                vain = vain.min(turns.len());
            } else {
                turns.push_back(target);
            }
        }
    }

    /// Refuses what waits for one exchange.
    pub(super) fn refuse(&self, target: &Arc<str>, error: &PublishError) {
        let mut state = self.lock();
        let State { exchanges, turns, waiting, .. } = &mut *state;
        if let Some(exchange) = exchanges.get_mut(target) {
            *waiting -= refuse(exchange, error);
            turns.retain(|turn| turn != target);
        }
    }

    /// Refuses everything that waits.
    pub(super) fn refuse_all(&self, error: &PublishError) {
        let mut state = self.lock();
        let State { exchanges, turns, waiting, .. } = &mut *state;
        turns.clear();
        *waiting = 0;
        for exchange in exchanges.values_mut() {
            refuse(exchange, error);
            exchange.regulate(Instant::now(), &self.congested);
        }
    }

    /// Answers what has waited too long, lets callers in where there is room again, and forgets exchanges without traffic.
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

    /// Messages on the connection before are answered: nothing is in flight.
    pub(super) fn nothing_in_flight(&self) {
        let now = Instant::now();
        for exchange in self.lock().exchanges.values_mut() {
            exchange.in_flight = 0;
            exchange.pace.note(now, 0, 0, false);
        }
    }

    /// Takes nothing more if nothing waits; whether that is so.
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

    /// Takes an event, if it can be sent soon.
    pub(super) fn push_event(&self, event: Publication) -> bool {
        let mut state = self.lock();
        if !state.connected || state.closed || state.events.len() >= self.bounds.events {
            return false;
        }
        state.events.push_back(event);
        let first = state.events.len() == 1;
        self.events.store(state.events.len(), Ordering::Relaxed);
        drop(state);
        if first {
            self.wake.notify_one();
        }
        true
    }

    /// Whether events wait.
    pub(super) fn has_events(&self) -> bool {
        self.events.load(Ordering::Relaxed) > 0
    }

    /// Takes the events that wait.
    pub(super) fn take_events(&self) -> VecDeque<Publication> {
        self.events.store(0, Ordering::Relaxed);
        std::mem::take(&mut self.lock().events)
    }

    /// Whether events can be sent from now on; those that wait are dropped if not.
    pub(super) fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        state.connected = connected;
        if !connected {
            self.counters.dropped_events.add(state.events.len() as u64);
            state.events.clear();
            self.events.store(0, Ordering::Relaxed);
        }
    }

    /// How this lane keeps up.
    pub(super) fn load(&self) -> Load {
        let (now, state) = (Instant::now(), self.lock());
        state.exchanges.values().fold(Load::default(), |sum, exchange| Load {
            rate: sum.rate + exchange.pace.rate(now).unwrap_or_default(),
            wait: sum.wait.max(exchange.pace.wait(now, exchange.load()).unwrap_or_default()),
            held: sum.held + exchange.gate.held(),
        })
    }
}

fn refuse(exchange: &mut Waiting, error: &PublishError) -> usize {
    let all = exchange.jobs.drain();
    let count = all.len();
    for job in all {
        job.answer(Err(error.clone()));
    }
    count
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;
    use crate::Confirm;

    const EXCHANGE: &str = "wirepost.pay.receive";

    fn queues(messages: usize) -> Queues {
        Queues::new(Bounds { messages, bytes: 1 << 20, events: 2 }, Arc::default())
    }

    fn push(queues: &Queues, sender: u64, exchange: &str) -> Confirm {
        let (reply, confirm) = oneshot::channel();
        let publication = Publication {
            exchange: exchange.into(),
            routing_key: "k".into(),
            queue: None,
            message_id: sender.to_string(),
            body: bytes::Bytes::from_static(b"x"),
            timestamp: 0,
            headers: vec![],
        };
        queues.push(sender, Job::new(publication, reply, queues.counters.clone()));
        confirm
    }

    fn serve(queues: &Queues, now: Instant, up_to: usize) -> Vec<Job> {
        let mut batch = Vec::new();
        queues.serve(now, |_, _| Room::UpTo(up_to), usize::MAX, &mut batch);
        batch
    }

    fn report(queues: &Queues, now: Instant, answered: u32, in_flight: usize) {
        queues.report(now, std::iter::once(Progress { target: EXCHANGE.into(), answered, in_flight }));
    }

    fn turn(queues: &Queues) -> Option<HeldTurn> {
        queues.turn(&|| [EXCHANGE.to_owned(), "wirepost.pay.push".to_owned()])
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_held_back_by_the_measured_rate_and_let_in_in_turn() {
        let queues = queues(100_000);
        let mut confirms: Vec<Confirm> = (0..1000).map(|n| push(&queues, n, EXCHANGE)).collect();
        // The broker answers ten in each tenth of a second.
        let mut now = Instant::now();
        let jobs = serve(&queues, now, 20);
        assert_eq!(jobs.len(), 20);
        for _ in 0..20 {
            tokio::time::advance(Duration::from_millis(100)).await;
            now = Instant::now();
            report(&queues, now, 10, 10);
            for job in serve(&queues, now, 20) {
                job.answer(Ok(()));
            }
            queues.sweep(now, "slow");
        }
        drop(jobs);
        // Everything has expired by now; the rate is known.
        assert!(!queues.is_waiting());
        report(&queues, now, 0, 0);
        assert!(turn(&queues).is_none());
        confirms.extend((0..40).map(|n| push(&queues, n, EXCHANGE)));
        let mut turns: Vec<HeldTurn> = (0..100).map(|_| turn(&queues).unwrap()).collect();
        assert_eq!(queues.load().held, 100);
        assert!(turns.iter_mut().all(|turn| turn.now_or_never().is_none()));
        for job in serve(&queues, now, 100) {
            job.answer(Ok(()));
        }
        report(&queues, now, 40, 0);
        let admitted = turns.iter_mut().map(|turn| turn.now_or_never().is_some()).collect::<Vec<_>>();
        let first = admitted.iter().take_while(|admitted| **admitted).count();
        assert!((20..60).contains(&first), "{first}");
        assert!(admitted[first..].iter().all(|admitted| !admitted), "the first in the line come first");
        // Still congested: a newcomer waits behind them. When all have left, nobody is held back.
        assert!(turn(&queues).is_some());
        drop(turns);
        queues.sweep(now, "slow");
        assert!(turn(&queues).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_not_be_answered_in_time_is_refused_with_the_time_of_a_retry() {
        let queues = queues(100_000);
        let early: Vec<Confirm> = (0..3000).map(|n| push(&queues, n, EXCHANGE)).collect();
        let first = serve(&queues, Instant::now(), 20);
        for _ in 0..6 {
            tokio::time::advance(Duration::from_millis(100)).await;
            report(&queues, Instant::now(), 100, 20);
        }
        // About 1,000 a second, and nearly 3,000 wait.
        let refused = push(&queues, 1, EXCHANGE).now_or_never();
        let Some(Ok(Err(PublishError::Overloaded { retry_after }))) = refused else { panic!("{refused:?}") };
        assert!((RETRY.0..=Duration::from_secs(3)).contains(&retry_after), "{retry_after:?}");
        let other = push(&queues, 1, "wirepost.other.receive").now_or_never();
        assert!(other.is_none(), "another exchange is not concerned: {other:?}");
        drop((early, first));
    }

    #[tokio::test(start_paused = true)]
    async fn exchanges_and_senders_are_served_in_turn_and_one_that_can_not_be_sent_to_stops_no_other() {
        let queues = queues(1000);
        let mut confirms = Vec::new();
        for n in 0..100 {
            confirms.push(push(&queues, n % 3, EXCHANGE));
            confirms.push(push(&queues, n, "stuck"));
            confirms.push(push(&queues, n, "other"));
        }
        let mut batch = Vec::new();
        let room = |target: &Arc<str>, _| Room::UpTo(if &**target == "stuck" { 0 } else { 50 });
        queues.serve(Instant::now(), room, usize::MAX, &mut batch);
        assert_eq!(batch.len(), 100);
        let of = |exchange: &str| batch.iter().filter(|job| &**job.target() == exchange).collect::<Vec<_>>();
        assert_eq!((of(EXCHANGE).len(), of("other").len()), (50, 50));
        let senders: Vec<_> = of(EXCHANGE)[..6].iter().map(|job| job.publication().message_id.clone()).collect();
        assert_eq!(senders, ["0", "1", "2", "0", "1", "2"]);
        queues.refuse(&"stuck".into(), &PublishError::Refused("gone".into()));
        assert!(matches!((&mut confirms[1]).now_or_never(), Some(Ok(Err(PublishError::Refused(_))))));
        queues.refuse_all(&unavailable("blocked"));
        assert!(!queues.is_waiting() && queues.close_if_empty());
        assert!(matches!(push(&queues, 1, EXCHANGE).now_or_never(), Some(Ok(Err(PublishError::Unavailable(_))))));
        drop(batch);
        assert_eq!((queues.counters.waiting.get(), queues.counters.in_flight.get()), (0, 0));
    }
}
