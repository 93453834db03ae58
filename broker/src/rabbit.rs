//! RabbitMQ.
//!
//! Messages and events are published over a few connections that carry nothing else ([`publish`]). The pushes of each `Transient` business
//! come over a connection of their own ([`transient`]). All of these speak AMQP by `wirepost-amqp`; streams are read by `wirepost-stream`
//! ([`durable`]). All of it runs on a thread of its own: heartbeats must go on while the edge's executor is busy, or the broker closes
//! the connections.
//!
//! Nothing here gives up, and nothing waits without limit: connections are opened again forever, a publish is answered within
//! [`CONFIRM_TIMEOUT`] whatever happens.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::registry::Registry;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::{edge_config::Delivery, names};
use wirepost_runtime::tasks::{Supervisor, Tasks};
use wirepost_stream::Client;

use crate::{
    Broker, CONFIRM_TIMEOUT, Confirm, Feed, Health, Page, Publication, PublishError, ReadError, Start, Turn, metrics,
};

mod alarm;
mod body;
mod config;
mod counters;
mod dialer;
mod durable;
mod health;
mod publish;
mod transient;

pub use config::{CONNECTIONS, Config, SettingsError};
pub use wirepost_rabbitmq::ClientFiles;

use config::Checked;
use counters::Counters;
use dialer::Dialer;
use publish::{Job, Publisher};

/// Longest wait at the end for publishes in flight.
const DRAIN_TIMEOUT: Duration = CONFIRM_TIMEOUT.saturating_add(Duration::from_millis(500));
/// Longest wait for a queue's deletion.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait at the end for connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The broker.
pub struct RabbitBroker {
    /// `None` on a runtime of the caller, and once dropping.
    runtime: Option<Runtime>,
    handle: Handle,
    config: Config,
    publisher: Arc<Publisher>,
    refusal: watch::Receiver<Option<PublishError>>,
    health: watch::Receiver<Health>,
    dialer: Arc<Dialer>,
    counters: Arc<Counters>,
    sequence: Arc<transient::Sequence>,
    /// There was a `Transient` reader.
    consumed: AtomicBool,
    stream: Mutex<Option<Arc<Client>>>,
    /// Publishing ends, once nobody waits for an answer.
    closing: CancellationToken,
    /// Then readers.
    closed: CancellationToken,
    supervisor: Supervisor,
    publishers: Tasks,
    rest: Tasks,
}

/// Why a broker could not be started. An unreachable broker is not an error: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See [`SettingsError`].
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The operating system provided no thread.
    #[error("cannot start the thread for AMQP: {0}")]
    Thread(#[from] io::Error),
}

impl RabbitBroker {
    /// Begins to connect; does not wait for it.
    ///
    /// # Errors
    /// See [`StartError`]; a retry does not help.
    pub fn start(config: Config, supervisor: &Supervisor) -> Result<Self, StartError> {
        let checked = config.check()?;
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("wirepost-amqp").enable_all().build()?;
        let mut broker = Self::on(runtime.handle().clone(), config, checked, supervisor);
        broker.runtime = Some(runtime);
        Ok(broker)
    }

    /// The same on a runtime of the caller, whose other work then delays the heartbeats.
    ///
    /// # Errors
    /// See [`SettingsError`]; a retry does not help.
    pub fn start_on(handle: Handle, config: Config, supervisor: &Supervisor) -> Result<Self, SettingsError> {
        let checked = config.check()?;
        Ok(Self::on(handle, config, checked, supervisor))
    }

    fn on(handle: Handle, config: Config, checked: Checked, supervisor: &Supervisor) -> Self {
        let counters = Arc::new(Counters::default());
        let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
        let (publishers, rest) = (supervisor.tasks_on(handle.clone()), supervisor.tasks_on(handle.clone()));
        let stream = {
            let _on_our_thread = handle.enter();
            durable::client(&config, &checked, supervisor).map(Arc::new)
        };
        let (alarm_sender, alarm) = watch::channel(None);
        if let Some(management) = checked.management {
            let polling = alarm::poll(management, alarm_sender, counters.clone());
            rest.until("alarm poll", &closed, polling);
        }
        let dialer = Arc::new(Dialer {
            addresses: checked.addresses,
            files: checked.files,
            tls: checked.tls,
            edge: config.edge.clone(),
            network: config.network.clone(),
            counters: counters.clone(),
        });
        let (publisher, statuses) = Publisher::start(&config, &dialer, &alarm, &publishers, &closing);
        let away = Health::Away("not connected yet".to_owned());
        let (health_sender, health) = watch::channel(away);
        let (refusal_sender, refusal) = watch::channel(None);
        let watching = health::watch(statuses, alarm, health_sender, refusal_sender);
        rest.until("broker health", &closed, watching);
        Self {
            runtime: None,
            handle,
            config,
            publisher: Arc::new(publisher),
            refusal,
            health,
            dialer,
            counters,
            sequence: Arc::new(transient::Sequence::new()),
            consumed: AtomicBool::new(false),
            stream: Mutex::new(stream),
            closing,
            closed,
            supervisor: supervisor.clone(),
            publishers,
            rest,
        }
    }

    fn stream(&self) -> Option<Arc<Client>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Broker for RabbitBroker {
    fn publish(&self, sender: u64, publication: Publication) -> Confirm {
        self.publish_by(sender, publication, Instant::now() + CONFIRM_TIMEOUT)
    }

    fn publish_by(&self, sender: u64, publication: Publication, deadline: Instant) -> Confirm {
        let (reply, confirm) = oneshot::channel();
        let job = Job::new(publication, reply, self.counters.clone()).until(deadline);
        let refusal = if self.closing.is_cancelled() {
            Some(PublishError::Unavailable("this edge is closing".to_owned()))
        } else {
            self.refusal.borrow().clone()
        };
        match refusal {
            Some(error) => job.answer(Err(error)),
            None => self.publisher.publish(sender, job),
        }
        confirm
    }

    fn turn(&self, sender: u64, business: &str) -> Option<Turn> {
        self.publisher.turn(sender, business)
    }

    fn emit(&self, publication: Publication) {
        self.publisher.emit(publication);
    }

    fn tail(&self, business: &str, delivery: Delivery, start: Start) -> Box<dyn Feed> {
        match delivery {
            Delivery::Durable => self
                .follow(&names::stream(business), start)
                .unwrap_or_else(|| Box::new(durable::FailedFeed(Some("no stream address is configured")))),
            Delivery::Transient => {
                self.consumed.store(true, Ordering::Relaxed);
                let reader = transient::Reader {
                    dialer: self.dialer.clone(),
                    business: business.to_owned(),
                    edge: self.config.edge.clone(),
                    start,
                    prefetch: self.config.prefetch,
                    sequence: self.sequence.clone(),
                    counters: self.counters.clone(),
                    supervisor: self.supervisor.clone(),
                };
                Box::new(reader.start(&self.rest, &self.closed))
            }
        }
    }

    fn follow(&self, stream: &str, start: Start) -> Option<Box<dyn Feed>> {
        let client = self.stream()?;
        let _on_our_thread = self.handle.enter();
        Some(Box::new(durable::StreamFeed::new(&client, stream, start)))
    }

    fn read<'a>(&'a self, business: &'a str, from: u64, max_bytes: usize) -> BoxFuture<'a, Result<Page, ReadError>> {
        async move {
            let Some(client) = self.stream() else {
                return Err(ReadError("no stream address is configured".to_owned()));
            };
            durable::read(&client, business, from, max_bytes).await
        }
        .boxed()
    }

    fn leave<'a>(&'a self, business: &'a str) -> BoxFuture<'a, ()> {
        async move {
            // Nothing was consumed, and so nothing declared.
            if !self.consumed.load(Ordering::Relaxed) {
                return;
            }
            let deleting = transient::delete_queue(self.dialer.clone(), business.to_owned());
            let (reply, deleted) = oneshot::channel();
            // On our thread, as all connections are.
            self.rest.contained("queue deletion", async move {
                // Nobody waits for it if the edge ends meanwhile.
                let _ = reply.send(timeout(LEAVE_TIMEOUT, deleting).await);
            });
            let deleted = match deleted.await {
                Ok(Ok(deleted)) => deleted,
                Ok(Err(_)) => Err(format!("no answer within {LEAVE_TIMEOUT:?}")),
                Err(_) => Err("its task ended".to_owned()),
            };
            if let Err(reason) = deleted {
                tracing::debug!(business, reason, "this edge's queue was not deleted; it expires on its own");
            }
        }
        .boxed()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix(metrics::PREFIX);
        registry.register_collector(Box::new(self.counters.clone()));
        registry.register_collector(Box::new(self.publisher.clone()));
        if let Some(client) = self.stream() {
            registry.register_collector(Box::new(durable::StreamMetrics(Arc::downgrade(&client))));
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.closing.cancel();
            if let Err(unfinished) = self.publishers.finished_by(Instant::now() + DRAIN_TIMEOUT).await {
                tracing::warn!(%unfinished, "closing the broker with publishes in flight");
            }
            self.closed.cancel();
            let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            let closing_stream = async {
                if let Some(client) = stream {
                    Client::clone(&client).close().await;
                }
            };
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            let (rest, stream) = tokio::join!(self.rest.finished_by(deadline), timeout_at(deadline, closing_stream));
            if let Err(unfinished) = rest {
                tracing::warn!(%unfinished, "connections to the broker did not close in time");
            }
            if stream.is_err() {
                tracing::warn!("stream connections to the broker did not close in time");
            }
        }
        .boxed()
    }
}

impl Drop for RabbitBroker {
    fn drop(&mut self) {
        self.closing.cancel();
        self.closed.cancel();
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would block, which an async caller must not.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dashboards and alerts know them.
    #[test]
    fn metrics_keep_their_names_and_types() {
        let mut config = Config::new("e", "amqp://127.0.0.1:1");
        config.stream = Some(vec![("127.0.0.1".into(), 1)]);
        let broker = RabbitBroker::start(config, &Supervisor::default()).unwrap();
        let mut registry = Registry::default();
        broker.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE wirepost_broker_")?.strip_suffix(" unknown"))
            .collect();
        let known = "connects connect_failures connections_lost channels_opened channels_discarded confirmed refused unavailable unknown \
                     waiting waiting_bytes in_flight events dropped_events transient_restarts alarms_unknown transient_records transient_requeued \
                     transient_switches transient_unreadable service_rate wait_milliseconds held_back lanes_away stream_connections stream_connects stream_connect_failures \
                     stream_connections_lost stream_subscriptions stream_attachments stream_restarts stream_watchdog_restarts \
                     stream_resets stream_gaps stream_messages stream_bytes stream_skipped_messages stream_held_bytes";
        assert_eq!(names, known.split_whitespace().collect::<Vec<_>>());
        for name in names {
            let value = text.lines().find_map(|line| line.strip_prefix(&format!("wirepost_broker_{name} ")));
            assert!(
                value.is_some_and(|value| value.parse::<u64>().is_ok()),
                "{name} has no value without labels: {text}"
            );
        }
    }
}
