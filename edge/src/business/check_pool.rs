//! Checks of large content, off the threads that serve sockets.
//!
//! A few run at a time. Waiting checks are served business by business in turn, so that one business cannot delay
//! another. Bounded in number and time; beyond the bound the sender is asked to retry.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{sync::oneshot, time::timeout};

/// Checks that wait at most, and of one business: more of them only as long as they are small.
const MAX_WAITING: usize = 256;
const MAX_WAITING_OF_ONE: usize = 32;
/// Bytes of those that wait, above which there are too many of them.
const MAX_BYTES: usize = 16 << 20;
const MAX_BYTES_OF_ONE: usize = 2 << 20;
/// Longest wait for a permit. With the check itself (see `content::MAX_STEPS`, 0.6 s at worst) and the broker's confirm
/// (1.8 s) a sender of large content is answered within three seconds and a half.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Threads at most, whatever the machine has.
const MAX_THREADS: usize = 4;

/// Too many checks wait: retry later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this edge has too many large messages to check; send it again")]
pub struct Busy;

impl Busy {
    /// When to retry.
    pub const RETRY_AFTER: Duration = Duration::from_secs(1);
}

/// Runs checks, a few at a time.
#[derive(Debug)]
pub struct CheckPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    waiting: Gauge,
}

#[derive(Debug)]
struct Queue {
    /// Threads without work.
    free: usize,
    /// Never empty lists: a business is here exactly while something of it waits.
    waiting: HashMap<Arc<str>, Waiting>,
    /// The same businesses, each once; the first is served next.
    turns: VecDeque<Arc<str>>,
    len: usize,
    bytes: usize,
}

/// The checks of one business that wait, with what each has to check.
#[derive(Debug, Default)]
struct Waiting {
    senders: VecDeque<(oneshot::Sender<Permit>, usize)>,
    bytes: usize,
}

/// The right to run one check; passed on when dropped.
#[derive(Debug)]
struct Permit(Arc<Shared>);

impl CheckPool {
    /// Half of the machine's threads, so that sockets keep the other half; `waiting` shows how many checks wait.
    pub fn new(waiting: Gauge) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() / 2);
        Self::with(threads.clamp(1, MAX_THREADS), waiting)
    }

    fn with(threads: usize, waiting: Gauge) -> Self {
        let queue = Queue { free: threads, waiting: HashMap::new(), turns: VecDeque::new(), len: 0, bytes: 0 };
        Self { shared: Arc::new(Shared { queue: Mutex::new(queue), waiting }) }
    }

    /// Runs `job`, which checks so many bytes, when the business gets a permit. Cancel safe: a job that has begun runs to its end, and keeps its
    /// permit until then.
    ///
    /// # Errors
    /// [`Busy`]: it did not run.
    pub async fn run<R: Send + 'static>(
        &self,
        business: &Arc<str>,
        bytes: usize,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Busy> {
        let permit = self.permit(business, bytes).await?;
        let run = move || {
            let result = job();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| Busy)
    }

    /// The same for a reader of pushes, whose work can't be refused: it waits for its turn as long as it takes. Bounded
    /// by the number of readers, at most two of a business. Cancel safe.
    pub async fn run_patiently<R: Send + 'static>(
        &self,
        business: &Arc<str>,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> R {
        let permit = self.permit_patiently(business).await;
        let run = move || {
            let result = job();
            drop(permit);
            result
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process ends, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    async fn permit_patiently(&self, business: &Arc<str>) -> Permit {
        loop {
            let permit = {
                let mut queue = self.shared.lock();
                if queue.free > 0 {
                    queue.free -= 1;
                    return Permit(Arc::clone(&self.shared));
                }
                let permit = queue.enqueue(business, 0);
                self.shared.waiting.set(queue.len as i64);
                permit
            };
            if let Ok(permit) = permit.await {
                return permit;
            }
        }
    }

    async fn permit(&self, business: &Arc<str>, bytes: usize) -> Result<Permit, Busy> {
        let permit = {
            let mut queue = self.shared.lock();
            if queue.free > 0 {
                queue.free -= 1;
                return Ok(Permit(Arc::clone(&self.shared)));
            }
            let permit = queue.push(business, bytes)?;
            self.shared.waiting.set(queue.len as i64);
            permit
        };
        match timeout(MAX_WAIT, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Busy),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, business: &Arc<str>, bytes: usize) -> Result<oneshot::Receiver<Permit>, Busy> {
        if self.is_full(business, bytes) {
            self.drop_cancelled();
        }
        if self.is_full(business, bytes) {
            return Err(Busy);
        }
        Ok(self.enqueue(business, bytes))
    }

    fn is_full(&self, business: &Arc<str>, bytes: usize) -> bool {
        let (of_one, bytes_of_one) = self.waiting.get(business).map_or((0, 0), |it| (it.senders.len(), it.bytes));
        of_one >= MAX_WAITING_OF_ONE && bytes_of_one + bytes > MAX_BYTES_OF_ONE
            || self.len >= MAX_WAITING && self.bytes + bytes > MAX_BYTES
    }

    /// Whatever waits already.
    fn enqueue(&mut self, business: &Arc<str>, bytes: usize) -> oneshot::Receiver<Permit> {
        let (sender, permit) = oneshot::channel();
        if !self.waiting.contains_key(business) {
            self.turns.push_back(Arc::clone(business));
        }
        let of_one = self.waiting.entry(Arc::clone(business)).or_default();
        of_one.senders.push_back((sender, bytes));
        of_one.bytes += bytes;
        self.len += 1;
        self.bytes += bytes;
        permit
    }

    fn pop(&mut self) -> Option<oneshot::Sender<Permit>> {
        let business = self.turns.pop_front()?;
        let of_one = self.waiting.get_mut(&business)?;
        let (sender, bytes) = of_one.senders.pop_front()?;
        of_one.bytes -= bytes;
        if of_one.senders.is_empty() {
            self.waiting.remove(&business);
        } else {
            self.turns.push_back(business);
        }
        self.len -= 1;
        self.bytes -= bytes;
        Some(sender)
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|_, of_one| {
            of_one.senders.retain(|(sender, _)| !sender.is_closed());
            of_one.bytes = of_one.senders.iter().map(|(_, bytes)| bytes).sum();
            !of_one.senders.is_empty()
        });
        self.turns.retain(|business| self.waiting.contains_key(business));
        self.len = self.waiting.values().map(|of_one| of_one.senders.len()).sum();
        self.bytes = self.waiting.values().map(|of_one| of_one.bytes).sum();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.0.lock();
            let next = queue.pop();
            queue.free += usize::from(next.is_none());
            self.0.waiting.set(queue.len as i64);
            next
        };
        if let Some(next) = next {
            // If the receiver has left, the permit is dropped here and passed on.
            drop(next.send(Permit(Arc::clone(&self.0))));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    fn name(name: &str) -> Arc<str> {
        name.into()
    }

    /// A pool with one thread, and a job of it that runs until the sender is dropped.
    async fn occupied() -> (Arc<CheckPool>, mpsc::Sender<()>, tokio::task::JoinHandle<Result<(), Busy>>) {
        let pool = Arc::new(CheckPool::with(1, Gauge::default()));
        let (go_on, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let running = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move {
                let job = move || {
                    let _ = begun.send(());
                    let _ = wait.recv();
                };
                pool.run(&name("first"), 0, job).await
            }
        });
        has_begun.await.unwrap();
        (pool, go_on, running)
    }

    #[tokio::test]
    async fn a_crowd_of_one_business_delays_no_other() {
        let (pool, go_on, running) = occupied().await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut checks = Vec::new();
        for business in ["crowd"; 10].into_iter().chain(["other"]) {
            let (pool, name, order) = (Arc::clone(&pool), name(business), Arc::clone(&order));
            let mut check =
                Box::pin(async move { pool.run(&name, 0, move || order.lock().unwrap().push(business)).await });
            assert!(check.as_mut().now_or_never().is_none(), "it waits");
            checks.push(check);
        }
        drop(go_on);
        running.await.unwrap().unwrap();
        futures_util::future::try_join_all(checks).await.unwrap();
        assert_eq!(order.lock().unwrap()[..3], ["crowd", "other", "crowd"]);
        assert_eq!(pool.shared.lock().free, 1);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_for_each_business_and_cancelled_checks_make_room() {
        let (pool, go_on, running) = occupied().await;
        let enter = |business: &str| {
            let (pool, name) = (Arc::clone(&pool), name(business));
            let mut check = Box::pin(async move { pool.run(&name, MAX_BYTES_OF_ONE, || ()).await });
            check.as_mut().now_or_never().map_or(Ok(check), Err)
        };
        let waiting: Vec<_> = (0..MAX_WAITING_OF_ONE).map(|_| enter("crowd").ok().unwrap()).collect();
        assert_eq!(enter("crowd").err(), Some(Err(Busy)));
        let other = enter("other").ok().unwrap();
        drop(waiting);
        let again = enter("crowd").ok().unwrap();
        drop(go_on);
        running.await.unwrap().unwrap();
        assert_eq!((other.await, again.await), (Ok(()), Ok(())));
    }

    #[tokio::test]
    async fn many_small_checks_wait_and_few_large_ones() {
        let (pool, go_on, running) = occupied().await;
        let enter = |bytes: usize| {
            let (pool, name) = (Arc::clone(&pool), name("crowd"));
            let mut check = Box::pin(async move { pool.run(&name, bytes, || ()).await });
            check.as_mut().now_or_never().map_or(Ok(check), Err)
        };
        let small: Vec<_> = (0..MAX_BYTES_OF_ONE >> 10).map(|_| enter(1 << 10).ok().unwrap()).collect();
        assert!(small.len() > MAX_WAITING_OF_ONE);
        assert_eq!(enter(1 << 10).err(), Some(Err(Busy)));
        drop(go_on);
        running.await.unwrap().unwrap();
        assert!(futures_util::future::join_all(small).await.iter().all(Result::is_ok));
        let queue = pool.shared.lock();
        assert_eq!((queue.len, queue.bytes, queue.free), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_reader_is_never_refused_and_waits_for_its_turn() {
        let (pool, go_on, running) = occupied().await;
        let enter = |business: &str| {
            let (pool, name) = (Arc::clone(&pool), name(business));
            let mut check = Box::pin(async move { pool.run(&name, MAX_BYTES_OF_ONE, || ()).await });
            check.as_mut().now_or_never().map_or(Ok(check), Err)
        };
        let businesses: Vec<_> = (0..MAX_WAITING).map(|n| format!("b{n}")).collect();
        let full: Vec<_> = businesses.iter().map(|business| enter(business).ok().unwrap()).collect();
        assert_eq!(enter("other").err(), Some(Err(Busy)));
        let reader = name("reader");
        let mut patient = Box::pin(pool.run_patiently(&reader, || 7));
        assert!(patient.as_mut().now_or_never().is_none());
        tokio::time::pause();
        tokio::time::advance(MAX_WAIT * 2).await;
        assert!(patient.as_mut().now_or_never().is_none(), "it goes on waiting");
        tokio::time::resume();
        drop((full, go_on));
        running.await.unwrap().unwrap();
        assert_eq!(patient.await, 7);
        assert_eq!(pool.shared.lock().free, 1);
    }

    #[tokio::test]
    async fn a_check_that_waits_too_long_is_refused() {
        let late_business = name("late");
        let (pool, go_on, running) = occupied().await;
        let mut late = Box::pin(pool.run(&late_business, 0, || ()));
        assert!(late.as_mut().now_or_never().is_none());
        tokio::time::pause();
        tokio::time::advance(MAX_WAIT * 2).await;
        assert_eq!(late.await, Err(Busy));
        drop(go_on);
        running.await.unwrap().unwrap();
        assert_eq!(pool.run(&late_business, 0, || ()).await, Ok(()));
    }
}
