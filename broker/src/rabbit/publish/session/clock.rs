//! What a session does by the clock: it answers messages that wait too long, and probes a broker that does not answer.

use std::time::Duration;

use tokio::time::Instant;
use wirepost_amqp::Error;

use super::Session;
use crate::{PublishError, rabbit::publish::channels::Channel};

/// A connection on which nothing is answered for this long is given up, even if it sends heartbeats. If only one channel gets no answers,
/// that channel is closed.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// How long messages are unanswered before the connection is probed.
const PROBE_AFTER: Duration = Duration::from_secs(2);

impl Session<'_> {
    /// Everything that is due by the clock.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Error> {
        self.lane.queues.sweep(now, "the broker is slow");
        self.paused.retain(|_, until| now < *until);
        let silent = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        let (mut stuck, mut slow) = (Vec::new(), false);
        for (number, window) in self.channels.windows() {
            window.expire(now);
            let Some(oldest) = window.oldest() else { continue };
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
            let target = match self.channels.close(number, &mut self.pipe) {
                Some(Channel::Publishing(channel)) => {
                    let target = channel.target.clone();
                    let error = PublishError::Unknown("the broker did not confirm in time".to_owned());
                    self.lost(channel, u64::MAX, &error, now);
                    target
                }
                Some(Channel::Events(channel)) => {
                    self.lane.counters.channels_discarded.add(1);
                    self.lane.counters.dropped_events.add(channel.window.len() as u64);
                    channel.exchange
                }
                Some(Channel::Closing) | None => continue,
            };
            tracing::warn!(link = self.lane.name, %target, "the broker confirms nothing on this channel; another one is opened");
        }
        self.channels.close_idle(&mut self.pipe, now);
        Ok(())
    }
}
