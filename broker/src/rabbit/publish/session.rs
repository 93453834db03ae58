//! One connection of a lane, from its opening to its end: sends the messages that wait, and settles them by the broker's answers.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, Sleep, sleep_until};
use wirepost_amqp::{Error, v091::Pipe};

use super::{
    channels::Channels,
    job::Job,
    lane::{Lane, SWEEP},
};
use crate::{PublishError, rabbit::health::Status};

mod answers;
mod clock;
mod send;

/// Bytes that are queued for one write; a larger message is written alone.
const MAX_QUEUED: usize = 256 << 10;
/// How often callers are admitted while some are held back, whatever the broker does.
const ADMIT: Duration = Duration::from_millis(5);
/// Longest time for answers on a connection that is to be replaced; then it stays, and is tried to be replaced later. What waits meanwhile
/// must still be answered in time.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time for the broker's answer to our close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Session<'a> {
    lane: &'a Lane,
    pipe: Pipe,
    channels: Channels,
    /// Why the broker accepts no messages on this connection.
    blocked: Option<String>,
    /// Exchanges that were refused a moment ago, and until when they are avoided.
    paused: HashMap<Arc<str>, Instant>,
    /// When the broker last answered anything.
    answered_at: Instant,
    /// It was probed, and has not answered.
    probing: bool,
    /// Messages that the broker has not answered, on all channels.
    in_flight: usize,
    /// Channels with answers that were not reported to the queues yet, each once.
    answered: Vec<u16>,
    tick_due: Instant,
    events_due: Option<Instant>,
    /// Events were put back: they are tried again when they are due, not with every write.
    events_put_back: bool,
    batch: Vec<Job>,
    timer: Pin<Box<Sleep>>,
    /// Looks for a connection to the lane's own node.
    homeward: Option<BoxFuture<'a, Pipe>>,
    /// That connection, and since when nothing is sent any more on this one, so that everything on it is answered.
    next: Option<(Pipe, Instant)>,
    /// Closes the connection that this one has replaced.
    farewell: Option<BoxFuture<'static, ()>>,
}

/// The connection that takes the place of another one.
pub(super) struct Moved {
    pub(super) to: Pipe,
    pub(super) from: Pipe,
}

/// How a session ended that did not lose its connection.
pub(super) enum End {
    /// The lane is closed, and no caller waits for an answer.
    Closed,
    /// It goes on by another connection. Nothing is unanswered on the former one.
    Moved(Box<Moved>),
}

impl<'a> Session<'a> {
    /// `former`: the connection that this one replaces. `away`: it is not to the lane's own node.
    pub(super) fn new(lane: &'a Lane, pipe: Pipe, former: Option<Pipe>, away: bool) -> Self {
        let now = Instant::now();
        Self {
            homeward: away.then(|| lane.homeward().boxed()),
            next: None,
            farewell: former.map(|former| former.close(CLOSE_TIMEOUT).boxed()),
            lane,
            channels: Channels::new(pipe.channel_max()),
            pipe,
            blocked: None,
            paused: HashMap::new(),
            answered_at: now,
            probing: false,
            in_flight: 0,
            answered: Vec::new(),
            tick_due: now + SWEEP,
            events_due: None,
            events_put_back: false,
            batch: Vec::new(),
            timer: Box::pin(sleep_until(now + SWEEP)),
        }
    }

    /// Runs until the connection is lost (an error), replaced, or the lane is closed and no caller waits for an answer.
    pub(super) async fn run(mut self) -> Result<End, Error> {
        self.lane.set_status(Status::Up);
        self.lane.queues.set_connected(true);
        let served = self.serve().await;
        let Self { lane, pipe, channels, next, .. } = self;
        if let (Ok(()), Some((to, _))) = (&served, next) {
            lane.queues.nothing_in_flight();
            return Ok(End::Moved(Box::new(Moved { to, from: pipe })));
        }
        lane.queues.set_connected(false);
        match served {
            Ok(()) => pipe.close(CLOSE_TIMEOUT).await,
            Err(error) => {
                let unknown = PublishError::Unknown(error.to_string());
                let (exchanges, events): (Vec<_>, Vec<_>) = channels.unanswered_events().into_iter().unzip();
                lane.counters.dropped_events.add(events.iter().sum::<usize>() as u64);
                lane.breakers.ended_events(exchanges, &error);
                let mut hit = Vec::new();
                for channel in channels.into_all() {
                    if !channel.window.is_empty() {
                        hit.push(channel.target);
                        channel.window.lost(pipe.written(), &unknown);
                    }
                }
                lane.breakers.ended(hit.iter(), &error);
                lane.queues.nothing_in_flight();
                return Err(error);
            }
        }
        Ok(End::Closed)
    }

    async fn serve(&mut self) -> Result<(), Error> {
        let mut alarm = self.lane.alarm.clone();
        loop {
            while let Some(answer) = self.pipe.answer()? {
                self.answer(answer)?;
            }
            let now = Instant::now();
            self.send(now);
            self.send_events(now);
            if self.tick_due <= now {
                self.tick(now)?;
            }
            if self.lane.queues.is_congested() {
                self.lane.queues.admit(now);
            }
            if self.lane.closing.is_cancelled() && self.is_done() {
                self.next = None;
                return Ok(());
            }
            if let Some((_, since)) = &self.next {
                if self.is_answered() {
                    return Ok(());
                }
                if now.saturating_duration_since(*since) >= LEAVE_TIMEOUT {
                    self.lane.return_failed();
                    self.stay();
                }
            }
            self.schedule(now);
            tokio::select! {
                progress = self.pipe.progress() => progress?,
                () = self.lane.queues.wake.notified() => {}
                () = &mut self.timer => {}
                Ok(()) = alarm.changed() => {}
                () = self.lane.closing.cancelled(), if !self.lane.closing.is_cancelled() => {}
                pipe = of(&mut self.homeward) => {
                    self.homeward = None;
                    self.next = Some((pipe, Instant::now()));
                    // One exchange that is not answered would hold up all others until the time for leaving is over.
                    if self.is_stuck() {
                        self.stay();
                    }
                }
                () = of(&mut self.farewell) => self.farewell = None,
            }
        }
    }

    /// Goes on by this connection, and tries to leave it later.
    fn stay(&mut self) {
        let unused = self.next.take().map(|(pipe, _)| pipe);
        if self.farewell.is_none() {
            self.farewell = unused.map(|pipe| pipe.close(CLOSE_TIMEOUT).boxed());
        }
        self.homeward = Some(self.lane.homeward().boxed());
    }

    /// Whether something has been unanswered for half the time that leaving may take.
    fn is_stuck(&mut self) -> bool {
        let now = Instant::now();
        let late = |at: Instant| now.saturating_duration_since(at) >= LEAVE_TIMEOUT / 2;
        self.channels.windows().any(|(_, window)| window.oldest().is_some_and(late))
    }

    /// Whether nothing is sent, since the connection is about to be replaced.
    fn is_leaving(&self) -> bool {
        self.next.is_some()
    }

    /// Whether the broker owes no answer on this connection, and nothing waits to be written.
    fn is_answered(&self) -> bool {
        self.in_flight == 0 && self.pipe.queued() == 0 && self.channels.unanswered_events().is_empty()
    }

    /// Whether a closing lane is done: no message waits, and no caller.
    fn is_done(&mut self) -> bool {
        self.pipe.queued() == 0
            && !self.channels.all().any(|(_, channel)| channel.window.is_awaited())
            && self.lane.queues.close_if_empty()
    }

    /// Sets the timer: the next tick comes soon while messages wait or are in flight.
    fn schedule(&mut self, now: Instant) {
        let queues = &self.lane.queues;
        let busy = self.is_leaving() || self.in_flight > 0 || queues.is_waiting() || queues.is_congested();
        let next = now + if busy { SWEEP } else { SWEEP * 20 };
        self.tick_due = if self.tick_due <= now { next } else { self.tick_due.min(next) };
        let congested = self.lane.queues.is_congested().then(|| now + ADMIT);
        // While much has to be written, `progress` returns once it is written or something was read.
        let events = self.events_due.filter(|_| self.pipe.queued() < MAX_QUEUED);
        let due = [events, congested].into_iter().flatten().fold(self.tick_due, Instant::min);
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
    }

    fn blocked(&self) -> Option<String> {
        self.lane.alarm.borrow().clone().or_else(|| self.blocked.clone())
    }
}

/// The result of a future that may not be there: then it never comes.
async fn of<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
