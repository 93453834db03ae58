//! How late an edge is with what it does for its businesses again and again: as late as with the one that has waited
//! longest. It grows also while nothing of it comes to an end.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};
use tokio::time::Instant;

/// See the module; cheap to clone.
#[derive(Clone, Debug)]
pub struct Lateness {
    name: &'static str,
    help: &'static str,
    since: Arc<Mutex<Since>>,
}

#[derive(Debug, Default)]
struct Since {
    /// When each was done last, or begun.
    all: HashMap<u64, Instant>,
    last: u64,
}

/// Something that is to be done again and again, until it is dropped.
#[derive(Debug)]
pub struct Recurring {
    lateness: Lateness,
    number: u64,
}

impl Lateness {
    /// As a metric in seconds with this name.
    pub fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, since: Arc::default() }
    }

    /// Counts from now on.
    pub fn begin(&self) -> Recurring {
        let mut since = self.lock();
        since.last += 1;
        let number = since.last;
        since.all.insert(number, Instant::now());
        Recurring { lateness: self.clone(), number }
    }

    /// The longest time since something was done that is to be done.
    pub fn seconds(&self) -> f64 {
        self.lock().all.values().min().map_or(0.0, |oldest| oldest.elapsed().as_secs_f64())
    }

    fn lock(&self) -> MutexGuard<'_, Since> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recurring {
    /// It was done at that time.
    pub fn done(&self, at: Instant) {
        self.lateness.lock().all.insert(self.number, at);
    }
}

impl Drop for Recurring {
    fn drop(&mut self) {
        self.lateness.lock().all.remove(&self.number);
    }
}

impl Collector for Lateness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encoder.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?.encode_gauge(&self.seconds())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_longest_counts_until_it_is_done_or_gone() {
        let lateness = Lateness::new("late", "");
        let (first, second) = (lateness.begin(), lateness.begin());
        advance(Duration::from_secs(5)).await;
        first.done(Instant::now());
        assert!((lateness.seconds() - 5.0).abs() < 0.1);
        advance(Duration::from_secs(2)).await;
        second.done(Instant::now());
        assert!((lateness.seconds() - 2.0).abs() < 0.1);
        drop(first);
        assert!(lateness.seconds() < 0.1);
        drop(second);
        advance(Duration::from_secs(2)).await;
        assert!(lateness.seconds() < 0.1);
    }
}
