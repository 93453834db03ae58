//! The client: subscriptions, reads and stream statistics over shared connections.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug_span};
use wirepost_runtime::tasks::Tasks;

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

/// Time limit of [`Client::close`].
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Room in a subscription's event queue besides one entry per credit: attachments and their events.
const CONTROL_EVENTS: usize = 4;

/// A consumer of streams of one virtual host. Cheap to clone; all clones share connections and counters.
///
/// It connects on demand and reconnects after failures. Needs a tokio runtime. Without [`Client::close`] its tasks end
/// with the last clone and the last [`Subscription`].
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
    tasks: Tasks,
}

impl Client {
    /// Creates a client without connecting.
    pub fn new(config: Config) -> Self {
        let config = Arc::new(config);
        let counters = Arc::new(Counters::default());
        let tasks = config.supervisor.tasks();
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
                let nodes = connection.locate(stream).await?.nodes;
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
        self.inner.tasks.once("stream subscription", supervisor.run().instrument(span));
        Subscription { events, progress }
    }

    /// Reads from the chunk with offset `from` until `max_bytes` are reached and a message after `from` is found, or
    /// everything that was committed at the start has been read, within `limit`. Messages below `from` are left out. If retention has deleted that offset,
    /// reading starts at the first offset there is: compare with [`ReadBatch::first_offset`] and the fingerprint of a
    /// known message.
    ///
    /// Errors: see [`Error`]. If time runs out after something was read, that is returned instead.
    pub async fn read(&self, stream: &str, from: u64, max_bytes: usize, limit: Duration) -> Result<ReadBatch, Error> {
        read::read(&self.inner, stream, from, max_bytes, limit).await
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// Ends all subscriptions (their `recv` returns `None`), then the connections. Takes at most 3 s.
    pub async fn close(self) {
        self.inner.closing.cancel();
        self.inner.pool.close();
        if let Err(unfinished) = self.inner.tasks.finished_by(Instant::now() + CLOSE_TIMEOUT).await {
            tracing::warn!(%unfinished, "stream client closed with tasks left; they end by their own timeouts");
        }
    }
}
