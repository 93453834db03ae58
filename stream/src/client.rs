//! The client: subscriptions, reads and facts, over shared connections.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug_span};

use crate::{
    config::Config,
    connection::StreamStats,
    error::Error,
    flow::Budget,
    metrics::Counters,
    pool::Pool,
    read::{self, ReadBatch},
    subscription::{Progress, Start, Subscription},
    supervisor::Supervisor,
};

/// Longest time that [`Client::close`] takes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Places in a subscription's queue of events beside one for each credit: attachments and what goes with them.
const CONTROL_EVENTS: usize = 4;

/// A consumer of streams of one virtual host. Cheap to clone; all clones share connections and counters.
///
/// It connects when it has something to do, and again after each failure. Needs a tokio runtime.
/// Without [`Client::close`] its tasks end with the last clone and the last [`Subscription`].
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Arc<Config>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) pool: Pool,
    pub(crate) closing: CancellationToken,
    tasks: TaskTracker,
}

impl Client {
    /// Never fails and never waits: nothing is connected yet.
    pub fn new(config: Config) -> Self {
        let config = Arc::new(config);
        let counters = Arc::new(Counters::default());
        let tasks = TaskTracker::new();
        let inner = Inner {
            budget: Arc::new(Budget::new(config.byte_budget, Arc::clone(&counters))),
            pool: Pool::new(Arc::clone(&config), Arc::clone(&counters), tasks.clone()),
            config,
            counters,
            closing: CancellationToken::new(),
            tasks,
        };
        Self { inner: Arc::new(inner) }
    }

    /// First offset and committed end of a stream. Takes at most a connect and two calls.
    pub async fn stats(&self, stream: &str) -> Result<StreamStats, Error> {
        let connection = Arc::clone(self.inner.pool.reserve(&[]).await?.connection());
        match connection.stats(stream).await {
            Err(error) if error.is_elsewhere() => {
                let nodes = connection.locate(stream).await?;
                self.inner.pool.reserve(&nodes).await?.connection().stats(stream).await
            }
            result => result,
        }
    }

    /// Reads a stream until the subscription is dropped; see [`Subscription::recv`].
    pub fn subscribe(&self, stream: &str, start: Start) -> Subscription {
        let capacity = usize::from(self.inner.config.credits.max(1)) + CONTROL_EVENTS;
        let (sender, events) = mpsc::channel(capacity);
        let progress = Arc::new(Progress::default());
        let supervisor = Supervisor::new(Arc::clone(&self.inner), stream, start, sender, Arc::clone(&progress));
        let span = debug_span!("stream_subscription", stream);
        self.inner.tasks.spawn(supervisor.run().instrument(span));
        Subscription { events, progress }
    }

    /// Reads from the chunk that holds `from` until there are `max_bytes` or more, or everything that was committed at the
    /// beginning; within `limit`. Messages below `from` are left out. An offset that the retention has
    /// reclaimed gives what there is: compare with [`ReadBatch::first_offset`], and the fingerprint of a known message.
    ///
    /// Errors: see [`Error`]; after the time is up with something read, that is returned instead.
    pub async fn read(&self, stream: &str, from: u64, max_bytes: usize, limit: Duration) -> Result<ReadBatch, Error> {
        read::read(&self.inner, stream, from, max_bytes, limit).await
    }

    /// What has been done so far.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Ends all subscriptions (their `recv` returns `None`), then the connections. Takes at most 3 s: it never waits for the
    /// broker longer than that.
    pub async fn close(self) {
        self.inner.closing.cancel();
        self.inner.pool.close();
        self.inner.tasks.close();
        if timeout(CLOSE_TIMEOUT, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!(
                tasks = self.inner.tasks.len(),
                "stream client closed with tasks left, they end by their own timeouts"
            );
        }
    }
}
