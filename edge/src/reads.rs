//! Reads for many businesses, of which only a few run at the same time. After an edge has started all begin together.
//!
//! *One that is slow holds up none that is not*: a read that takes longer than a moment is dropped, and begins again
//! beside others like it, which have places of their own.

use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

/// At the same time.
const AT_A_TIME: usize = 4;
/// Beside these, of those that are slow.
const SLOW: usize = 4;
/// Whole streams at the same time.
const WHOLE: usize = 2;
/// What takes longer is slow.
const QUICK: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Reads {
    quick: Semaphore,
    slow: Semaphore,
    whole: Semaphore,
    waiting: Gauge,
}

impl Reads {
    /// `waiting` shows how many wait for a place.
    pub fn new(waiting: Gauge) -> Self {
        let [quick, slow, whole] = [AT_A_TIME, SLOW, WHOLE].map(Semaphore::new);
        Self { quick, slow, whole, waiting }
    }

    /// A place, to be kept for as long as what is read is in memory. `slow`: whether this reader's last read was.
    pub async fn turn(&self, slow: bool) -> SemaphorePermit<'_> {
        self.place(if slow { &self.slow } else { &self.quick }).await
    }

    /// A place to read a whole stream, message by message.
    pub async fn whole(&self) -> SemaphorePermit<'_> {
        self.place(&self.whole).await
    }

    async fn place<'a>(&'a self, places: &'a Semaphore) -> SemaphorePermit<'a> {
        let _waits = Waits::begin(&self.waiting);
        #[expect(clippy::expect_used)]
        places.acquire().await.expect("this semaphore is never closed")
    }
}

/// A read that has its place. `slow`: as for that place, and then whether this one was. `None`: it is, which nobody knew.
/// The next attempt takes the time that it needs.
pub async fn timed<T>(slow: &mut bool, read: impl Future<Output = T>) -> Option<T> {
    if !*slow {
        let done = timeout(QUICK, read).await.ok();
        *slow = done.is_none();
        return done;
    }
    let begun = Instant::now();
    let done = read.await;
    *slow = begun.elapsed() >= QUICK;
    Some(done)
}

/// Counted, also if the caller goes away.
struct Waits<'a>(&'a Gauge);

impl<'a> Waits<'a> {
    fn begin(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{task::JoinSet, time::sleep};

    use super::*;

    async fn in_turn<T>(reads: &Reads, slow: &mut bool, read: impl Future<Output = T>) -> Option<T> {
        let _place = reads.turn(*slow).await;
        timed(slow, read).await
    }

    #[derive(Default)]
    struct Count {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Count {
        async fn read(&self, takes: Duration) {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            let _ends = Ends(&self.now);
            sleep(takes).await;
        }
    }

    struct Ends<'a>(&'a AtomicUsize);

    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_read_at_the_same_time_and_the_rest_in_turn() {
        let (waiting, count) = (Gauge::default(), Arc::new(Count::default()));
        let reads = Arc::new(Reads::new(waiting.clone()));
        let mut all = JoinSet::new();
        for _ in 0..40 {
            let (reads, count) = (Arc::clone(&reads), Arc::clone(&count));
            all.spawn(
                async move { in_turn(&reads, &mut false, count.read(Duration::from_millis(100))).await.is_some() },
            );
        }
        sleep(Duration::from_millis(50)).await;
        assert_eq!(waiting.get(), 36);
        let begun = Instant::now();
        all.join_all().await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!((count.most.load(Ordering::Relaxed), waiting.get()), (AT_A_TIME, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_ones_hold_up_each_other_alone() {
        let (waiting, count) = (Gauge::default(), Arc::new(Count::default()));
        let reads = Arc::new(Reads::new(waiting.clone()));
        let mut all = JoinSet::new();
        for _ in 0..20 {
            let (reads, count) = (Arc::clone(&reads), Arc::clone(&count));
            all.spawn(async move {
                let mut slow = false;
                assert!(in_turn(&reads, &mut slow, count.read(Duration::from_secs(10))).await.is_none() && slow);
                for _ in 0..3 {
                    assert!(in_turn(&reads, &mut slow, count.read(Duration::from_secs(10))).await.is_some() && slow);
                }
            });
        }
        // Each has been quick for a moment, once.
        sleep(QUICK * 6).await;
        for _ in 0..100 {
            let begun = Instant::now();
            let mut slow = false;
            in_turn(&reads, &mut slow, sleep(Duration::from_millis(5))).await;
            assert!(begun.elapsed() < Duration::from_millis(10) && !slow, "{:?}", begun.elapsed());
            sleep(Duration::from_millis(100)).await;
        }
        all.join_all().await;
        assert!(count.most.load(Ordering::Relaxed) <= AT_A_TIME + SLOW);
        let mut slow = true;
        in_turn(&reads, &mut slow, sleep(Duration::from_millis(5))).await;
        assert!(!slow, "it is quick again");
        assert_eq!(waiting.get(), 0);
    }
}
