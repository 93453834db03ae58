//! Publishing: a few connections, each with a window of unconfirmed messages for every exchange.
//!
//! # The path of a message
//! A sender's number selects a lane ([`lane`], one connection), so that its messages stay in order. In the lane each exchange has a queue,
//! which serves its senders in turn ([`queues`], [`fair`]), and a confirming channel of its own ([`channels`]). The channel has as many
//! unconfirmed messages as the broker answers in a quarter of a second ([`window`], [`pace`]). One write sends everything that may be sent,
//! and one read takes everything that has arrived ([`session`]). Nothing is ever sent twice.
//!
//! # When a publisher is answered, and how
//! Within 1.8 s of the call, whatever the broker does; messages of an HTTP batch, until 0.2 s before its deadline:
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
//! | deadline passed | `Unknown`; a late confirm is recognized by its tag | `Unavailable` |
//!
//! A new channel has one message in flight until the broker has answered it. If the exchange is missing, the broker therefore rejects
//! exactly one message per attempt, and that message is known not to have been routed.
//!
//! # When the broker is slower than the senders
//! Callers that can wait are held back, first come, first served ([`gate`]), as soon as there are as many messages on their way as the broker
//! answers in a third of a second. Callers that can't wait are refused with [`Overloaded`](crate::PublishError::Overloaded) as soon as they
//! could not be answered in time.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

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

/// Shortest and longest pause before a lane that panicked runs again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// The publishing side of a broker.
pub(super) struct Publisher {
    lanes: Vec<Arc<Lane>>,
    counters: Arc<Counters>,
}

impl Publisher {
    /// Starts the lanes as tasks of `tasks`; `closing` ends each one once it is empty. Also returns a receiver of each lane's status.
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
        // Edges begin at different nodes, and so do the lanes of each.
        let first = rand::random_range(0..dialer.addresses.len());
        let lanes = (1..=config.connections).map(|number| {
            let (status, receiver) = watch::channel(Status::Down("not connected yet".to_owned()));
            statuses.push(receiver);
            let lane = Arc::new(Lane {
                name: format!("publishing {number}/{}", config.connections),
                dialer: dialer.clone(),
                home: first + number,
                return_after: config.return_after,
                failed_returns: AtomicU32::new(0),
                away: AtomicBool::new(false),
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
                "Messages per second that the broker confirms while it limits the rate; otherwise 0 (gauge).",
                all.rate as u64,
            ),
            (
                "wait_milliseconds",
                "How long a message to the slowest exchange waits for its confirm while the broker limits the rate; otherwise 0 (gauge).",
                u64::try_from(all.wait.as_millis()).unwrap_or(u64::MAX),
            ),
            (
                "held_back",
                "Sockets that are not read because the broker is too slow for them (gauge).",
                all.held as u64,
            ),
            (
                "lanes_away",
                "Connections for publishing that an outage has led to another node than their own (gauge).",
                self.lanes.iter().filter(|lane| lane.away.load(Ordering::Relaxed)).count() as u64,
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
