//! What a session does with the answers of the broker.

use std::time::Duration;

use tokio::time::Instant;
use wirepost_amqp::{Error, v091::Answer};
use wirepost_core::contract::headers;

use super::Session;
use crate::{
    PublishError,
    rabbit::{
        health::Status,
        publish::{
            channels::{Channel, Publishing},
            queues::Progress,
            window::Unasked,
        },
    },
};

/// Between attempts at an exchange that the broker refuses.
const PAUSE: Duration = Duration::from_millis(100);
/// The same for events.
const EVENT_PAUSE: Duration = Duration::from_secs(1);
/// Exchanges that are being avoided; beyond it new ones are not.
const MAX_PAUSED: usize = 1024;
/// AMQP's codes for an exchange that can't be published to at all.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;

impl Session<'_> {
    pub(super) fn answer(&mut self, answer: Answer) -> Result<(), Error> {
        let unasked = |_: Unasked| Error::Malformed("an answer to a message that was not sent");
        match answer {
            Answer::Ack { channel, tag, multiple } => self.settle(channel, tag, multiple, true).map_err(unasked)?,
            Answer::Nack { channel, tag, multiple } => self.settle(channel, tag, multiple, false).map_err(unasked)?,
            Answer::Returned { channel, code, text, properties } => {
                if let Some(publishing) = self.channels.publishing(channel) {
                    let number = properties.number(headers::PUBLISH_NUMBER).map(i64::cast_unsigned);
                    // Without its number the returned message is unknown, and its confirm would be taken for a delivery.
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
                tracing::warn!(link = self.lane.name, reason, "the broker accepts no messages on this connection");
                self.lane.set_status(Status::Blocked(reason.clone()));
                self.lane.queues.set_connected(false);
                self.blocked = Some(reason);
            }
            Answer::Unblocked => {
                tracing::info!(link = self.lane.name, "the broker accepts messages on this connection again");
                self.lane.set_status(Status::Up);
                self.lane.queues.set_connected(true);
                self.blocked = None;
                self.answered_at = Instant::now();
            }
        }
        Ok(())
    }

    fn settle(&mut self, channel: u16, tag: u64, multiple: bool, taken: bool) -> Result<(), Unasked> {
        match self.channels.get(channel) {
            Some(Channel::Publishing(publishing)) => {
                let answered = publishing.window.settle(tag, multiple, taken)?;
                if publishing.answered == 0 && answered > 0 {
                    self.answered.push(channel);
                }
                publishing.answered += answered;
                publishing.proven = true;
                self.in_flight -= answered as usize;
                self.lane.breakers.passed(&publishing.target);
            }
            Some(Channel::Events(events)) => {
                let answered = events.window.settle(tag, multiple, taken)?;
                if !taken {
                    self.lane.counters.dropped_events.add(u64::from(answered));
                }
            }
            // Late answers of a channel that is closed already.
            Some(Channel::Closing) | None => return Ok(()),
        }
        self.answered_at = Instant::now();
        Ok(())
    }

    /// The broker found an error and closed the channel. It handles messages in order, but does not say which one was the cause: a message
    /// that was alone in flight is the cause, and was not routed; of several, some may have arrived.
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
            Some(Channel::Events(events)) => {
                self.lane.counters.dropped_events.add(events.window.len() as u64);
                (events.exchange, EVENT_PAUSE)
            }
            // Our own close was on its way: the broker answers it too, and only then is the number free.
            Some(Channel::Closing) => return self.channels.still_closing(number),
            None => return,
        };
        tracing::debug!(link = self.lane.name, %target, code, text, "the broker closed a publishing channel");
        if self.paused.len() < MAX_PAUSED {
            self.paused.insert(target, now + pause);
        }
    }

    /// A channel has ended: answers the messages in flight on it, and reports to the queues that there are none any more.
    pub(super) fn lost(&mut self, channel: Publishing, written: u64, error: &PublishError, now: Instant) {
        self.lane.counters.channels_discarded.add(1);
        self.in_flight -= channel.window.len();
        channel.window.lost(written, error);
        let progress =
            Progress { target: channel.target, answered: channel.answered, in_flight: 0, bytes_in_flight: 0 };
        self.lane.queues.report(now, std::iter::once(progress));
    }
}
