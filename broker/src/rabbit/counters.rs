//! What this broker has done, as metrics.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use crate::metrics;

/// A number. What raises a gauge lowers it again.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[doc = $help:literal] $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(#[doc = $help] pub(super) $name: Counter,)*
        }

        impl Collector for Counters {
            fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
                $(metrics::encode(&mut encoder, stringify!($name), $help, self.$name.get())?;)*
                Ok(())
            }
        }
    };
}

counters! {
    /// AMQP connections opened.
    connects,
    /// Attempts to open one that failed.
    connect_failures,
    /// AMQP connections lost.
    connections_lost,
    /// Channels opened for publishing.
    channels_opened,
    /// Publishing channels discarded, because a confirm did not come or the broker closed them.
    channels_discarded,
    /// Messages confirmed.
    confirmed,
    /// Messages refused by the broker: returned, or no such exchange.
    refused,
    /// Messages never sent: broker away, blocked or too slow, or too many waiting.
    unavailable,
    /// Messages sent without a confirm in time.
    unknown,
    /// Messages waiting to be sent (gauge).
    waiting,
    /// Bytes waiting to be sent (gauge).
    waiting_bytes,
    /// Messages sent that the broker has not answered (gauge).
    in_flight,
    /// Events published.
    events,
    /// Events dropped.
    dropped_events,
    /// Restarts of readers of `Transient` businesses.
    transient_restarts,
    /// 1 while the management API does not answer, so that alarms are not known (gauge).
    alarms_unknown,
    /// Messages read by `Transient` readers.
    transient_records,
    /// Messages requeued unacknowledged by `Transient` readers.
    transient_requeued,
    /// Times a `Transient` reader changed its protocol, because the broker could not translate a message into it.
    transient_switches,
    /// Messages of `Transient` businesses that no protocol delivers; removed.
    transient_unreadable,
}
