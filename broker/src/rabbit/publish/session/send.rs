//! How a session sends messages and events.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{MAX_QUEUED, Session};
use crate::{
    PublishError,
    rabbit::publish::{
        encode,
        job::unavailable,
        pace::MAX_WINDOW,
        queues::{Progress, Room},
    },
};

/// How long events wait for others, to share one write.
const EVENT_DELAY: Duration = Duration::from_millis(5);
/// How long events wait at a full window without an answer. After that those of this exchange are dropped until there is one, so that they
/// take no place from the events of others.
const EVENT_PATIENCE: Duration = Duration::from_millis(500);

impl Session<'_> {
    /// Queues on the connection the messages that may be sent.
    pub(super) fn send(&mut self, now: Instant) {
        if !self.answered.is_empty() {
            let channels = &mut self.channels;
            let reports = self.answered.drain(..).filter_map(|number| {
                let channel = channels.publishing(number)?;
                let answered = std::mem::take(&mut channel.answered);
                let (in_flight, bytes_in_flight) = (channel.window.len(), channel.window.bytes());
                Some(Progress { target: channel.target.clone(), answered, in_flight, bytes_in_flight })
            });
            self.lane.queues.report(now, reports);
        }
        if let Some(reason) = self.blocked() {
            self.lane.queues.refuse_all(&unavailable(&format!("the broker accepts no messages: {reason}")));
            return;
        }
        let leaving = self.is_leaving();
        let Self { lane, pipe, channels, paused, batch, in_flight, .. } = self;
        let breakers = &lane.breakers;
        // One suspect at a time gets one message.
        let mut suspect = breakers.any().then(|| {
            let mut in_flight = channels.all().filter(|(_, channel)| !channel.window.is_empty());
            in_flight
                .find(|(_, channel)| breakers.is_suspect(&channel.target))
                .map(|(_, channel)| channel.target.clone())
        });
        let room = |target: &Arc<str>, window: usize| {
            if leaving || paused.get(target).is_some_and(|until| now < *until) {
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
        // Messages that were not sent after all: the queues count them as in flight.
        let mut unsent = Vec::new();
        for job in batch.drain(..) {
            let target = job.target().clone();
            let Some((number, channel, fresh)) = channels.of(&target, pipe, now) else {
                job.answer(Err(unavailable("too many exchanges are published to at the same time")));
                unsent.push(Progress { target, answered: 0, in_flight: 0, bytes_in_flight: 0 });
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
                    let (in_flight, bytes_in_flight) = (channel.window.len(), channel.window.bytes());
                    unsent.push(Progress { target, answered: 0, in_flight, bytes_in_flight });
                }
            }
        }
        if !unsent.is_empty() {
            lane.queues.report(now, unsent.into_iter());
            lane.queues.wake.notify_one();
        }
    }

    /// Queues events: with the next write of messages, or a little after the first event.
    pub(super) fn send_events(&mut self, now: Instant) {
        if self.is_leaving() || !self.lane.queues.has_events() {
            self.events_due = None;
            return;
        }
        let due = *self.events_due.get_or_insert(now + EVENT_DELAY);
        let closing = self.lane.closing.is_cancelled();
        let waits = self.events_put_back || (self.pipe.queued() == 0 && !closing);
        if (now < due && waits) || self.pipe.queued() >= MAX_QUEUED {
            return;
        }
        let Self { lane, pipe, channels, paused, .. } = self;
        let (mut later, mut of_exchange) = (VecDeque::new(), HashMap::<Arc<str>, usize>::new());
        for event in lane.queues.take_events() {
            let is_paused = paused.get(&event.exchange).is_some_and(|until| now < *until)
                || !lane.breakers.takes_events(&event.exchange, now);
            let channel = if is_paused { None } else { channels.of_events(&event.exchange, pipe, now) };
            let Some((number, channel, fresh)) = channel else {
                lane.counters.dropped_events.add(1);
                continue;
            };
            lane.counters.channels_opened.add(fresh.into());
            let waits = |since: Instant| now.saturating_duration_since(since) < EVENT_PATIENCE;
            let position = pipe.position();
            if channel.window.len() < MAX_WINDOW && encode::publish(pipe, number, None, &event).is_ok() {
                channel.window.push_event(now, position);
                lane.counters.events.add(1);
                continue;
            }
            // One exchange may not take the places of the others.
            let kept = of_exchange.entry(event.exchange.clone()).or_default();
            if channel.window.len() >= MAX_WINDOW && channel.window.oldest().is_some_and(waits) && *kept < MAX_WINDOW {
                *kept += 1;
                later.push_back(event);
            } else {
                lane.counters.dropped_events.add(1);
            }
        }
        self.events_put_back = !later.is_empty();
        self.events_due = (!later.is_empty()).then(|| now + EVENT_DELAY);
        lane.queues.put_back_events(later);
    }
}
