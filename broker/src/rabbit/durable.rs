//! Feeds and pages of streams, over the stream protocol.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use wirepost_core::names;
use wirepost_rabbitmq::{Credentials, Login};
use wirepost_runtime::tasks::Supervisor;
use wirepost_stream::{Client, Event, Message, Subscription};

use super::{
    body,
    config::{Checked, Config},
};
use crate::{Feed, FeedEvent, MessageDefect, Page, ReadError, Record, RecordBatch, Start, metrics};

/// Longest time for a page.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream client, where stream addresses are configured. Its tasks run where this is called.
pub(super) fn client(config: &Config, checked: &Checked, supervisor: &Supervisor) -> Option<Client> {
    let hosts = config.stream.clone()?;
    let address = checked.addresses.first()?.clone();
    let (host, port) = hosts.first()?.clone();
    let credentials = Credentials { login: address.login(), files: checked.files.clone() };
    let login = move || {
        // A file that can't be read at the moment: the broker refuses the login of the URI, and the next attempt reads the file again.
        let Login { user, password } = credentials.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "no credentials for the stream connection");
            credentials.login.clone()
        });
        wirepost_stream::Credentials { username: user, password: password.expose().to_owned() }
    };
    let mut settings = wirepost_stream::Config::new(host, port, login);
    settings.hosts = hosts;
    address.vhost().clone_into(&mut settings.vhost);
    settings.connection_name = format!("wirepost-edge {} streams", config.edge);
    if config.stream_tls {
        let tls = Arc::clone(&checked.tls);
        settings.tls = Some(Arc::new(move || tls.client_tls().map_err(|error| error.to_string())));
    }
    settings.supervisor = supervisor.clone();
    settings.network = Arc::clone(&config.network);
    Some(Client::new(settings))
}

/// Follows one stream.
pub(super) struct StreamFeed {
    subscription: Subscription,
    /// Whose the stream is; empty: the installation's.
    business: String,
}

impl StreamFeed {
    pub(super) fn new(client: &Client, stream: &str, start: Start) -> Self {
        let start = match start {
            Start::Next => wirepost_stream::Start::Next,
            Start::First => wirepost_stream::Start::First,
            Start::After(position) => wirepost_stream::Start::After(position),
        };
        let business = names::owner(stream).unwrap_or_default().to_owned();
        Self { subscription: client.subscribe(stream, start), business }
    }
}

impl Feed for StreamFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            match self.subscription.recv().await {
                Some(Event::Attached { position, .. }) => FeedEvent::Attached { position },
                Some(Event::Messages(batch)) => {
                    let records = batch.iter().map(|message| record(&self.business, &message)).collect();
                    // The chunk's credit goes back when the records are with the sockets.
                    FeedEvent::Records(RecordBatch { records, done: Some(Box::new(move || drop(batch))) })
                }
                Some(Event::Gap { .. }) => FeedEvent::Gap,
                Some(Event::Reset) => FeedEvent::Reset,
                Some(Event::Down { reason }) => FeedEvent::Down { reason: reason.to_string() },
                // Closed: there is nothing more to report, and a feed never ends on its own.
                None => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn lag(&self) -> Option<u64> {
        Some(self.subscription.lag())
    }
}

/// A feed that can't work: reports why, once.
pub(super) struct FailedFeed(pub(super) Option<&'static str>);

impl Feed for FailedFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            match self.0.take() {
                Some(reason) => FeedEvent::Down { reason: reason.to_owned() },
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

pub(super) async fn read(client: &Client, business: &str, from: u64, max_bytes: usize) -> Result<Page, ReadError> {
    let read = client.read(&names::stream(business), from, max_bytes, READ_TIMEOUT).await;
    let read = read.map_err(|error| ReadError(error.to_string()))?;
    let records =
        read.batches.iter().flat_map(|batch| batch.iter()).map(|message| record(business, &message)).collect();
    Ok(Page { records, first_offset: read.first_offset, at_end: read.at_end, lost: read.lost })
}

fn record(business: &str, message: &Message) -> Record {
    let (body, defect) = if message.is_malformed() {
        (Bytes::new(), Some(MessageDefect::Form("not AMQP 1.0")))
    } else {
        body::of(message.sections())
    };
    let origin = body::origin(business, message.sections());
    Record { position: message.position(), timestamp: message.timestamp(), body, defect, origin }
}

/// What the stream client counts. Without the client, after the broker was closed, nothing.
#[derive(Debug)]
pub(super) struct StreamMetrics(pub(super) Weak<Client>);

impl Collector for StreamMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(client) = self.0.upgrade() else { return Ok(()) };
        let counters = client.counters();
        for (name, help, value) in [
            ("stream_connections", "Open connections of the stream protocol.", counters.connections.get()),
            ("stream_connects", "Connections of the stream protocol opened.", counters.connects.get()),
            ("stream_connect_failures", "Attempts to open one that failed.", counters.connect_failures.get()),
            ("stream_connections_lost", "Connections that ended unasked.", counters.connections_lost.get()),
            ("stream_subscriptions", "Streams that are being read.", counters.subscriptions.get()),
            (
                "stream_attachments",
                "Times that reading a stream began, the first included.",
                counters.attachments.get(),
            ),
            ("stream_restarts", "Times that reading a stream ended and began again.", counters.restarts.get()),
            (
                "stream_watchdog_restarts",
                "Restarts of readers that received nothing though the stream had grown.",
                counters.watchdog_restarts.get(),
            ),
            ("stream_resets", "Streams found replaced by another of the same name.", counters.resets.get()),
            ("stream_gaps", "Times that a stream's retention overtook its reader.", counters.gaps.get()),
            ("stream_messages", "Messages read from streams.", counters.messages.get()),
            ("stream_bytes", "Bytes read from streams.", counters.bytes.get()),
            ("stream_skipped_messages", "Messages read again and dropped.", counters.skipped_messages.get()),
            ("stream_held_bytes", "Bytes of chunks in memory.", counters.held_bytes.get()),
        ] {
            metrics::encode(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}
