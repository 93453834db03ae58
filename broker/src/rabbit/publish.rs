//! Publishing: a few connections, each with a window of unconfirmed messages for every exchange.
//!
//! # The way of a message
//! A sender's number picks a lane ([`lane`], one connection), so its messages keep their order. There each exchange has a queue that serves
//! its senders in turn ([`queues`], [`fair`]) and a confirming channel of its own ([`channels`]) with as many unconfirmed messages as the
//! broker answers in a quarter of a second ([`window`], [`pace`]). What can be sent goes out in one write, what came is taken in one read
//! ([`session`]); nothing is ever sent twice.
//!
//! # When a publisher is answered, and how
//! Within 1.8 s of the call, whatever the broker does:
//!
//! | | message in flight | message that waits |
//! |---|---|---|
//! | confirmed | `Ok` | |
//! | returned: its number in a header names it | `Refused` | |
//! | rejected by a queue | `Unknown`: another queue may have it | |
//! | channel closed with an error, one in flight | `Refused` | `Refused` if the exchange is missing or forbidden |
//! | channel closed with an error, several in flight | `Unknown` | the same |
//! | connection lost | `Unknown`; `Unavailable` if no byte of it was written | waits for the next one |
//! | blocked | waits | `Unavailable` |
//! | time is up | `Unknown`; its confirm may still come and is told from others by its tag | `Unavailable` |
//!
//! A fresh channel has one message in flight until the broker has answered it. So if the exchange is missing, exactly one message per
//! attempt learns it from the broker, and it is known that this one was not routed.
//!
//! # When the broker is slower than the senders
//! Callers that can wait are held back, first come, first served ([`gate`]), once as much is on its way as the broker answers in a third of a
//! second. Callers that can't wait are refused with [`Overloaded`](crate::PublishError::Overloaded) once they could not be answered in time.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wirepost_core::names;
use wirepost_runtime::{backoff::Backoff, tasks::Tasks};

use super::{config::Config, counters::Counters, dialer::Dialer, health::Status};
use crate::{Publication, Turn, metrics};

mod breaker;
mod channels;
mod encode;
mod fair;
mod gate;
mod job;
mod lane;
mod pace;
mod queues;
mod session;
mod window;

use breaker::Breakers;
pub(super) use job::Job;
use lane::Lane;
use queues::{Bounds, Load, Queues};

/// Bounds of the pauses before a lane that panicked runs again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// The publishing side of a broker.
pub(super) struct Publisher {
    lanes: Vec<Arc<Lane>>,
    counters: Arc<Counters>,
}

impl Publisher {
    /// Starts the lanes among `tasks`; `closing` ends them, once empty. Also what reports their state.
    pub(super) fn start(
        config: &Config,
        dialer: &Arc<Dialer>,
        alarm: &watch::Receiver<Option<String>>,
        tasks: &Tasks,
        closing: &CancellationToken,
    ) -> (Self, Vec<watch::Receiver<Status>>) {
        let counters = dialer.counters.clone();
        let breakers = Arc::new(Breakers::default());
        let bounds = Bounds {
            messages: config.lane_messages,
            bytes: config.waiting_bytes as u64,
            events: config.event_capacity,
        };
        let mut statuses = Vec::new();
        let lanes = (1..=config.connections).map(|number| {
            let (status, receiver) = watch::channel(Status::Down("not connected yet".to_owned()));
            statuses.push(receiver);
            let lane = Arc::new(Lane {
                name: format!("publishing {number}/{}", config.connections),
                dialer: dialer.clone(),
                queues: Arc::new(Queues::new(bounds, counters.clone())),
                status,
                alarm: alarm.clone(),
                breakers: breakers.clone(),
                counters: counters.clone(),
                closing: closing.clone(),
            });
            let running = lane.clone();
            tasks.restarted("lane", closing, Backoff::new(RESTART.0, RESTART.1), move || running.clone().run());
            lane
        });
        (Self { lanes: lanes.collect(), counters }, statuses)
    }

    fn lane(&self, sender: u64) -> &Queues {
        &self.lanes[spread(sender, self.lanes.len())].queues
    }

    /// Queues a message, or refuses it immediately.
    pub(super) fn publish(&self, sender: u64, job: Job) {
        self.lane(sender).push(sender, job);
    }

    /// Queues an event, or drops it. Events of one business keep their order.
    pub(super) fn emit(&self, event: Publication) {
        let key = event.exchange.bytes().fold(0, |hash: u64, byte| hash.rotate_left(5) ^ u64::from(byte));
        if !self.lane(key).push_event(event) {
            self.counters.dropped_events.add(1);
        }
    }

    /// See [`crate::Broker::turn`].
    pub(super) fn turn(&self, sender: u64, business: &str) -> Option<Turn> {
        let targets = || [names::receive_exchange(business), names::push_exchange(business)];
        let turn = self.lane(sender).turn(&targets)?;
        Some(Box::pin(turn))
    }
}

/// The lane of a sender. Numbers are mostly consecutive; multiplying by the golden ratio spreads them evenly (Knuth, TAOCP 3, 6.4).
fn spread(sender: u64, lanes: usize) -> usize {
    let hash = sender.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The product of a 64-bit and a small number, divided by 2^64, is below the small number.
    ((u128::from(hash) * lanes as u128) >> 64) as usize
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

impl Collector for Publisher {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.lanes.iter().map(|lane| lane.queues.load()).fold(Load::default(), |sum, lane| Load {
            rate: sum.rate + lane.rate,
            wait: sum.wait.max(lane.wait),
            held: sum.held + lane.held,
        });
        for (name, help, value) in [
            (
                "service_rate",
                "Messages a second that the broker confirms, while it is the one that limits it; else 0 (gauge).",
                all.rate as u64,
            ),
            (
                "wait_milliseconds",
                "How long a message to the slowest exchange waits for its confirm, while the broker limits it; else 0 (gauge).",
                u64::try_from(all.wait.as_millis()).unwrap_or(u64::MAX),
            ),
            (
                "held_back",
                "Sockets that are not read because the broker is too slow for them (gauge).",
                all.held as u64,
            ),
        ] {
            metrics::encode(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_numbers_use_all_lanes_evenly() {
        let mut used = [0u32; 64];
        for key in 1..=6400 {
            used[spread(key, used.len())] += 1;
        }
        assert!(used.iter().all(|&count| (90..=110).contains(&count)), "{used:?}");
        assert_eq!(spread(7, 1), 0);
    }
}
