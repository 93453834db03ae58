//! The channels of one connection: one for each exchange with traffic, so that an error, which closes a channel, affects one exchange only.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tokio::time::Instant;
use wirepost_amqp::v091::Pipe;

use super::{queues::IDLE, window::Window};

/// Most channels in use on a connection. RabbitMQ's default limit is 2,047, and a channel costs the broker about 6 KiB.
const MAX: u16 = 1000;

/// A channel with confirms.
#[derive(Debug)]
pub(super) struct Publishing {
    pub(super) target: Arc<str>,
    pub(super) window: Window,
    /// The broker has answered a message on this channel. Until then only one is in flight, so that an error has one possible cause.
    pub(super) proven: bool,
    /// Messages answered since the last report to the queues.
    pub(super) answered: u32,
    used: Instant,
}

/// A channel for events. They are confirmed as well: nobody waits for that, but it is the only way to see that a queue does not answer.
#[derive(Debug)]
pub(super) struct Events {
    pub(super) exchange: Arc<str>,
    pub(super) window: Window,
    used: Instant,
}

/// What a channel is for.
#[derive(Debug)]
pub(super) enum Channel {
    /// Messages to one exchange.
    Publishing(Publishing),
    /// Events to one exchange.
    Events(Events),
    /// We have closed it, and the broker has not answered yet.
    Closing,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Channels {
    /// By number.
    open: BTreeMap<u16, Channel>,
    publishing: HashMap<Arc<str>, u16>,
    events: HashMap<Arc<str>, u16>,
    /// Most channels in use.
    max: usize,
    /// Channel numbers: twice as many, since a channel that we close occupies its number until the broker has answered.
    numbers: u16,
}

impl Channels {
    pub(super) fn new(channel_max: u16) -> Self {
        let numbers = channel_max.min(2 * MAX);
        let max = usize::from(numbers / 2).max(1);
        Self { open: BTreeMap::new(), publishing: HashMap::new(), events: HashMap::new(), max, numbers }
    }

    pub(super) fn publishing(&mut self, number: u16) -> Option<&mut Publishing> {
        match self.open.get_mut(&number) {
            Some(Channel::Publishing(publishing)) => Some(publishing),
            _ => None,
        }
    }

    /// A channel with this number that is open.
    pub(super) fn get(&mut self, number: u16) -> Option<&mut Channel> {
        self.open.get_mut(&number)
    }

    /// What the broker has not answered, on all channels.
    pub(super) fn windows(&mut self) -> impl Iterator<Item = (u16, &mut Window)> {
        self.open.iter_mut().filter_map(|(number, channel)| match channel {
            Channel::Publishing(publishing) => Some((*number, &mut publishing.window)),
            Channel::Events(events) => Some((*number, &mut events.window)),
            Channel::Closing => None,
        })
    }

    /// All that messages are published on.
    pub(super) fn all(&mut self) -> impl Iterator<Item = (u16, &mut Publishing)> {
        self.open.iter_mut().filter_map(|(number, channel)| match channel {
            Channel::Publishing(publishing) => Some((*number, publishing)),
            Channel::Events(_) | Channel::Closing => None,
        })
    }

    /// Whether the channel of this exchange is proven, so that its whole window may be used; `None`: it has no channel.
    pub(super) fn is_proven(&self, target: &Arc<str>) -> Option<bool> {
        let number = self.publishing.get(target)?;
        match self.open.get(number) {
            Some(Channel::Publishing(publishing)) => Some(publishing.proven),
            _ => None,
        }
    }

    fn used(&self) -> usize {
        self.publishing.len() + self.events.len()
    }

    /// Whether a channel can be opened, if necessary by closing an idle one.
    pub(super) fn has_room(&self) -> bool {
        self.open.len() < usize::from(self.numbers) && (self.used() < self.max || self.idlest().is_some())
    }

    /// The channel of an exchange, opened if it has none, and whether it was opened now. `None`: there are too many.
    pub(super) fn of(
        &mut self,
        target: &Arc<str>,
        pipe: &mut Pipe,
        now: Instant,
    ) -> Option<(u16, &mut Publishing, bool)> {
        let (number, fresh) = match self.publishing.get(target) {
            Some(number) => (*number, false),
            None => (self.open(pipe, true)?, true),
        };
        if fresh {
            self.publishing.insert(target.clone(), number);
            let (target, window) = (target.clone(), Window::default());
            let publishing = Publishing { target, window, proven: false, answered: 0, used: now };
            self.open.insert(number, Channel::Publishing(publishing));
        }
        let publishing = self.publishing(number)?;
        publishing.used = now;
        Some((number, publishing, fresh))
    }

    /// The channel for events to an exchange, opened if it has none, and whether it was opened now.
    pub(super) fn of_events(
        &mut self,
        exchange: &Arc<str>,
        pipe: &mut Pipe,
        now: Instant,
    ) -> Option<(u16, &mut Events, bool)> {
        let (number, fresh) = match self.events.get(exchange) {
            Some(number) => (*number, false),
            None => (self.open(pipe, true)?, true),
        };
        if fresh {
            self.events.insert(exchange.clone(), number);
            let events = Events { exchange: exchange.clone(), window: Window::default(), used: now };
            self.open.insert(number, Channel::Events(events));
        }
        match self.open.get_mut(&number) {
            Some(Channel::Events(events)) => {
                events.used = now;
                Some((number, events, fresh))
            }
            _ => None,
        }
    }

    fn open(&mut self, pipe: &mut Pipe, confirms: bool) -> Option<u16> {
        let number = (1..=self.numbers).find(|number| !self.open.contains_key(number))?;
        if self.used() >= self.max {
            let idlest = self.idlest()?;
            self.close(idlest, pipe);
        }
        pipe.open_channel(number, confirms);
        Some(number)
    }

    /// Opens and closes a channel, which the broker answers whatever its queues do. Returns whether one could be opened.
    pub(super) fn probe(&mut self, pipe: &mut Pipe) -> bool {
        let Some(number) = self.open(pipe, false) else { return false };
        self.close(number, pipe);
        true
    }

    fn idlest(&self) -> Option<u16> {
        let idle = self.open.iter().filter_map(|(number, channel)| Some((*number, channel.idle_since()?)));
        idle.min_by_key(|(_, since)| *since).map(|(number, _)| number)
    }

    /// Closes a channel, and returns it with the messages that the broker has not answered.
    pub(super) fn close(&mut self, number: u16, pipe: &mut Pipe) -> Option<Channel> {
        pipe.close_channel(number);
        let closed = self.forget(number);
        self.open.insert(number, Channel::Closing);
        closed
    }

    /// A channel has ended: its number is free.
    pub(super) fn forget(&mut self, number: u16) -> Option<Channel> {
        let ended = self.open.remove(&number)?;
        match &ended {
            Channel::Publishing(publishing) => {
                self.publishing.remove(&publishing.target);
            }
            Channel::Events(events) => {
                self.events.remove(&events.exchange);
            }
            Channel::Closing => {}
        }
        Some(ended)
    }

    /// The broker closed a channel while our own close was on its way; its answer to ours is still to come.
    pub(super) fn still_closing(&mut self, number: u16) {
        self.open.insert(number, Channel::Closing);
    }

    /// Exchanges with events that the broker has not answered, and how many.
    pub(super) fn unanswered_events(&self) -> Vec<(Arc<str>, usize)> {
        let unanswered = |channel: &Channel| match channel {
            Channel::Events(events) if !events.window.is_empty() => {
                Some((events.exchange.clone(), events.window.len()))
            }
            _ => None,
        };
        self.open.values().filter_map(unanswered).collect()
    }

    /// Closes channels without traffic.
    pub(super) fn close_idle(&mut self, pipe: &mut Pipe, now: Instant) {
        let is_idle =
            |channel: &Channel| channel.idle_since().is_some_and(|since| now.saturating_duration_since(since) >= IDLE);
        let idle: Vec<u16> =
            self.open.iter().filter(|(_, channel)| is_idle(channel)).map(|(number, _)| *number).collect();
        for number in idle {
            self.close(number, pipe);
        }
    }

    /// The connection has ended. Returns the channels with the messages that the broker has not answered.
    pub(super) fn into_all(self) -> impl Iterator<Item = Publishing> {
        self.open.into_values().filter_map(|channel| match channel {
            Channel::Publishing(publishing) => Some(publishing),
            Channel::Events(_) | Channel::Closing => None,
        })
    }
}

impl Channel {
    /// Since when it has had no traffic; `None` while something is unanswered.
    fn idle_since(&self) -> Option<Instant> {
        match self {
            Self::Publishing(publishing) => publishing.window.is_empty().then_some(publishing.used),
            Self::Events(events) => events.window.is_empty().then_some(events.used),
            Self::Closing => None,
        }
    }
}
