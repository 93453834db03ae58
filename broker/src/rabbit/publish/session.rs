//! One connection of a lane, from its opening to its end: sends what waits, settles what the broker answers.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};
use wirepost_amqp::{
    Error,
    v091::{Answer, Pipe},
};
use wirepost_core::contract::headers;

use super::{
    channels::{Channel, Channels, Publishing},
    encode,
    job::{Job, unavailable},
    lane::{Lane, SWEEP},
    queues::{Progress, Room},
    window::Unasked,
};
use crate::{PublishError, rabbit::health::Status};

/// Bytes that are queued for one write; a larger message goes alone.
const MAX_QUEUED: usize = 256 << 10;
/// A connection that leaves everything unanswered for this long is given up, whatever its heartbeats say; a channel on which nothing is
/// answered, while the connection is alive, is closed.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// How long messages are unanswered when the broker is asked whether the connection is alive.
const PROBE_AFTER: Duration = Duration::from_secs(2);
/// How long events wait for others to share a write with.
const EVENT_DELAY: Duration = Duration::from_millis(5);
/// How often callers are let in while some are held back, whatever the broker does.
const ADMIT: Duration = Duration::from_millis(5);
/// Between attempts at an exchange that the broker refuses, with messages and with events.
const PAUSE: Duration = Duration::from_millis(100);
const EVENT_PAUSE: Duration = Duration::from_secs(1);
/// Exchanges that are being avoided; beyond it new ones are not.
const MAX_PAUSED: usize = 1024;
/// Longest wait for the broker's answer to our close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// AMQP's codes for an exchange that can't be published to at all.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;

/// See the module.
pub(super) struct Session<'a> {
    lane: &'a Lane,
    pipe: Pipe,
    channels: Channels,
    /// Why the broker takes nothing on this connection.
    blocked: Option<String>,
    /// Exchanges that were refused a moment ago, and until when they are avoided.
    paused: HashMap<Arc<str>, Instant>,
    /// When the broker last answered anything.
    answered_at: Instant,
    /// It has been asked for an answer that costs it nothing, and has not given it.
    probing: bool,
    /// Messages that it has not answered, on all channels.
    in_flight: usize,
    /// Channels with answers that the queues do not know of yet, each once.
    answered: Vec<u16>,
    tick_due: Instant,
    events_due: Option<Instant>,
    batch: Vec<Job>,
    timer: Pin<Box<Sleep>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(lane: &'a Lane, pipe: Pipe) -> Self {
        let now = Instant::now();
        Self {
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
            batch: Vec::new(),
            timer: Box::pin(sleep_until(now + SWEEP)),
        }
    }

    /// Until the connection is lost (an error), or the lane is closed and nobody waits for an answer.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        self.lane.set_status(Status::Up);
        self.lane.queues.set_connected(true);
        let served = self.serve().await;
        self.lane.queues.set_connected(false);
        let Self { lane, pipe, channels, .. } = self;
        match served {
            Ok(()) => pipe.close(CLOSE_TIMEOUT).await,
            Err(error) => {
                let unknown = PublishError::Unknown(error.to_string());
                lane.breakers.ended_events(channels.recent_events(Instant::now(), EVENT_PAUSE), &error);
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
        Ok(())
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
                return Ok(());
            }
            self.schedule(now);
            tokio::select! {
                progress = self.pipe.progress() => progress?,
                () = self.lane.queues.wake.notified() => {}
                () = &mut self.timer => {}
                Ok(()) = alarm.changed() => {}
                () = self.lane.closing.cancelled(), if !self.lane.closing.is_cancelled() => {}
            }
        }
    }

    /// Closing: nothing waits, and nobody waits for an answer.
    fn is_done(&mut self) -> bool {
        self.pipe.queued() == 0
            && !self.channels.all().any(|(_, channel)| channel.window.is_awaited())
            && self.lane.queues.close_if_empty()
    }

    /// Sets the timer: the next tick is soon while somebody waits.
    fn schedule(&mut self, now: Instant) {
        let queues = &self.lane.queues;
        let busy = self.in_flight > 0 || queues.is_waiting() || queues.is_congested();
        let next = now + if busy { SWEEP } else { SWEEP * 20 };
        self.tick_due = if self.tick_due <= now { next } else { self.tick_due.min(next) };
        let congested = self.lane.queues.is_congested().then(|| now + ADMIT);
        // With much to be written, `progress` ends when it is written or something came.
        let events = self.events_due.filter(|_| self.pipe.queued() < MAX_QUEUED);
        let due = [events, congested].into_iter().flatten().fold(self.tick_due, Instant::min);
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
    }

    fn answer(&mut self, answer: Answer) -> Result<(), Error> {
        let unasked = |_: Unasked| Error::Malformed("an answer to a message that was not sent");
        match answer {
            Answer::Ack { channel, tag, multiple } => self.settle(channel, tag, multiple, true).map_err(unasked)?,
            Answer::Nack { channel, tag, multiple } => self.settle(channel, tag, multiple, false).map_err(unasked)?,
            Answer::Returned { channel, code, text, properties } => {
                if let Some(publishing) = self.channels.publishing(channel) {
                    let number = properties.number(headers::PUBLISH_NUMBER).map(i64::cast_unsigned);
                    // Without its number the return could be anybody's, and its confirm would be taken for an arrival.
                    let number = number.ok_or(Error::Malformed("a returned message without its number"))?;
                    publishing.window.returned(number, format!("returned with {code} {text}")).map_err(unasked)?;
                }
            }
            Answer::ChannelClosed { channel, code, text } => self.channel_closed(channel, code, &text),
            Answer::ChannelCloseOk(channel) => {
                (self.answered_at, self.probing) = (Instant::now(), false);
                self.channels.forget(channel);
            }
            Answer::Blocked(reason) => {
                tracing::warn!(link = self.lane.name, reason, "the broker takes no messages");
                self.lane.set_status(Status::Blocked(reason.clone()));
                self.lane.queues.set_connected(false);
                self.blocked = Some(reason);
            }
            Answer::Unblocked => {
                tracing::info!(link = self.lane.name, "the broker takes messages again");
                self.lane.set_status(Status::Up);
                self.lane.queues.set_connected(true);
                self.blocked = None;
                self.answered_at = Instant::now();
            }
        }
        Ok(())
    }

    fn settle(&mut self, channel: u16, tag: u64, multiple: bool, taken: bool) -> Result<(), Unasked> {
        // Answers for a channel that is closed already come late.
        let Some(publishing) = self.channels.publishing(channel) else { return Ok(()) };
        let answered = publishing.window.settle(tag, multiple, taken)?;
        if publishing.answered == 0 && answered > 0 {
            self.answered.push(channel);
        }
        publishing.answered += answered;
        publishing.proven = true;
        self.in_flight -= answered as usize;
        self.answered_at = Instant::now();
        self.lane.breakers.passed(&publishing.target);
        Ok(())
    }

    /// The broker found an error and closed the channel. It handles messages in order and reports no tag: alone in flight, a message is the
    /// cause, and was not routed; of several, some may have arrived.
    fn channel_closed(&mut self, number: u16, code: u16, text: &str) {
        let now = Instant::now();
        self.answered_at = now;
        let (target, pause) = match self.channels.forget(number) {
            Some(Channel::Publishing(publishing)) => {
                let reason = format!("{text} (code {code})");
                let refused = PublishError::Refused(reason.clone());
                let alone = publishing.window.len() == 1;
                let error = if alone { refused.clone() } else { PublishError::Unknown(reason) };
                let target = publishing.target.clone();
                self.lost(publishing, self.pipe.written(), &error, now);
                if code == NOT_FOUND || code == ACCESS_REFUSED {
                    self.lane.queues.refuse(&target, &refused);
                }
                (target, PAUSE)
            }
            Some(Channel::Events(exchange, _)) => (exchange, EVENT_PAUSE),
            // Ours crossed it: the broker answers that too, and only then is the number free.
            Some(Channel::Closing) => return self.channels.still_closing(number),
            None => return,
        };
        tracing::debug!(link = self.lane.name, %target, code, text, "the broker closed a publishing channel");
        if self.paused.len() < MAX_PAUSED {
            self.paused.insert(target, now + pause);
        }
    }

    /// A channel has ended: what was in flight on it is answered, and the queues learn that nothing is any more.
    fn lost(&mut self, channel: Publishing, written: u64, error: &PublishError, now: Instant) {
        self.lane.counters.channels_discarded.add(1);
        self.in_flight -= channel.window.len();
        channel.window.lost(written, error);
        let progress = Progress { target: channel.target, answered: channel.answered, in_flight: 0 };
        self.lane.queues.report(now, std::iter::once(progress));
    }

    fn blocked(&self) -> Option<String> {
        self.lane.alarm.borrow().clone().or_else(|| self.blocked.clone())
    }

    /// Queues for the connection what may be sent.
    fn send(&mut self, now: Instant) {
        if !self.answered.is_empty() {
            let channels = &mut self.channels;
            let reports = self.answered.drain(..).filter_map(|number| {
                let channel = channels.publishing(number)?;
                let answered = std::mem::take(&mut channel.answered);
                Some(Progress { target: channel.target.clone(), answered, in_flight: channel.window.len() })
            });
            self.lane.queues.report(now, reports);
        }
        if let Some(reason) = self.blocked() {
            self.lane.queues.refuse_all(&unavailable(&format!("the broker takes no messages: {reason}")));
            return;
        }
        let Self { lane, pipe, channels, paused, batch, in_flight, .. } = self;
        let breakers = &lane.breakers;
        // Suspects are sent one message, one suspect at a time.
        let mut suspect = breakers.any().then(|| {
            let mut in_flight = channels.all().filter(|(_, channel)| !channel.window.is_empty());
            in_flight
                .find(|(_, channel)| breakers.is_suspect(&channel.target))
                .map(|(_, channel)| channel.target.clone())
        });
        let room = |target: &Arc<str>, window: usize| {
            if paused.get(target).is_some_and(|until| now < *until) {
                return Room::UpTo(0);
            }
            if let Some(trying) = &mut suspect
                && breakers.is_suspect(target)
            {
                if trying.is_some() {
                    return Room::UpTo(0);
                }
                if let Err(reason) = breakers.check(target) {
                    return Room::Refuse(PublishError::Refused(reason));
                }
                *trying = Some(target.clone());
                return Room::UpTo(1);
            }
            match channels.is_proven(target) {
                Some(true) => Room::UpTo(window),
                Some(false) => Room::UpTo(1),
                None => Room::UpTo(usize::from(channels.has_room())),
            }
        };
        lane.queues.serve(now, room, MAX_QUEUED.saturating_sub(pipe.queued()), batch);
        // The queues count as in flight what was not sent after all.
        let mut unsent = Vec::new();
        for job in batch.drain(..) {
            let target = job.target().clone();
            let Some((number, channel, fresh)) = channels.of(&target, pipe, now) else {
                job.answer(Err(unavailable("too many exchanges are published to at the same time")));
                unsent.push(Progress { target, answered: 0, in_flight: 0 });
                continue;
            };
            if fresh {
                lane.counters.channels_opened.add(1);
            }
            let position = pipe.position();
            match encode::publish(pipe, number, Some(channel.window.next_tag()), job.publication()) {
                Ok(()) => {
                    channel.window.push(job, now, position);
                    *in_flight += 1;
                }
                Err(error) => {
                    job.answer(Err(PublishError::Refused(error.to_string())));
                    unsent.push(Progress { target, answered: 0, in_flight: channel.window.len() });
                }
            }
        }
        if !unsent.is_empty() {
            lane.queues.report(now, unsent.into_iter());
            lane.queues.wake.notify_one();
        }
    }

    /// Queues events: with messages that go out anyway, or a little later than the first of them.
    fn send_events(&mut self, now: Instant) {
        if !self.lane.queues.has_events() {
            self.events_due = None;
            return;
        }
        let due = *self.events_due.get_or_insert(now + EVENT_DELAY);
        let closing = self.lane.closing.is_cancelled();
        if (now < due && self.pipe.queued() == 0 && !closing) || self.pipe.queued() >= MAX_QUEUED {
            return;
        }
        self.events_due = None;
        let Self { lane, pipe, channels, paused, .. } = self;
        for event in lane.queues.take_events() {
            let is_paused = paused.get(&event.exchange).is_some_and(|until| now < *until)
                || !lane.breakers.takes_events(&event.exchange, now);
            let channel = if is_paused { None } else { channels.of_events(&event.exchange, pipe, now) };
            let sent = channel.is_some_and(|(number, fresh)| {
                lane.counters.channels_opened.add(fresh.into());
                encode::publish(pipe, number, None, &event).is_ok()
            });
            let counter = if sent { &lane.counters.events } else { &lane.counters.dropped_events };
            counter.add(1);
        }
    }

    /// What the clock brings.
    fn tick(&mut self, now: Instant) -> Result<(), Error> {
        self.lane.queues.sweep(now, "the broker is slow");
        self.paused.retain(|_, until| now < *until);
        let silent = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        let (mut stuck, mut slow) = (Vec::new(), false);
        for (number, channel) in self.channels.all() {
            channel.window.expire(now);
            let Some(oldest) = channel.window.oldest() else { continue };
            slow |= silent(oldest, PROBE_AFTER);
            if silent(oldest, UNRESPONSIVE_TIMEOUT) {
                stuck.push(number);
            }
        }
        // A blocked broker answers nothing, and is expected to.
        if self.blocked().is_some() {
            return Ok(());
        }
        if slow && !self.probing && silent(self.answered_at, PROBE_AFTER) {
            self.probing = self.channels.probe(&mut self.pipe);
        }
        if !stuck.is_empty() && silent(self.answered_at, UNRESPONSIVE_TIMEOUT) {
            return Err(Error::Timeout { what: "confirms", after: UNRESPONSIVE_TIMEOUT });
        }
        for number in stuck {
            let Some(channel) = self.channels.close(number, &mut self.pipe) else { continue };
            tracing::warn!(link = self.lane.name, target = %channel.target, "the broker confirms nothing; another channel is tried");
            let error = PublishError::Unknown("the broker did not confirm in time".to_owned());
            self.lost(channel, u64::MAX, &error, now);
        }
        self.channels.close_idle(&mut self.pipe, now);
        Ok(())
    }
}
