//! Feeds and pieces of streams, over the stream protocol.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use wirepost_core::names;
use wirepost_rabbitmq::{Credentials, Login};
use wirepost_stream::{Client, Event, Message, Subscription};

use super::{
    body,
    config::{Checked, Config},
};
use crate::{Feed, FeedEvent, Piece, ReadError, Record, RecordBatch, Start};

/// Longest time for a piece.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream client, where stream addresses are configured. Its tasks run where this is called.
pub(super) fn client(config: &Config, checked: &Checked) -> Option<Client> {
    let hosts = config.stream.clone()?;
    let address = checked.addresses.first()?.clone();
    let (host, port) = hosts.first()?.clone();
    let credentials = Credentials { login: address.login(), files: checked.files.clone() };
    let login = move || {
        // A file that can't be read at the moment: the broker refuses what the URI says, and the next attempt reads it again.
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
        settings.tls.clone_from(&checked.tls);
    }
    Some(Client::new(settings))
}

/// Follows one stream.
pub(super) struct StreamFeed(Subscription);

impl StreamFeed {
    pub(super) fn new(client: &Client, business: &str, start: Start) -> Self {
        let start = match start {
            Start::Next => wirepost_stream::Start::Next,
            Start::First => wirepost_stream::Start::First,
            Start::After(position) => wirepost_stream::Start::After(position),
        };
        Self(client.subscribe(&names::stream(business), start))
    }
}

impl Feed for StreamFeed {
    fn recv(&mut self) -> BoxFuture<'_, FeedEvent> {
        async move {
            match self.0.recv().await {
                Some(Event::Attached { position, .. }) => FeedEvent::Attached { position },
                Some(Event::Messages(batch)) => {
                    let records = batch.iter().map(|message| record(&message)).collect();
                    // The chunk's credit goes back when the records are with the sockets.
                    FeedEvent::Records(RecordBatch { records, done: Some(Box::new(move || drop(batch))) })
                }
                Some(Event::Gap { .. }) => FeedEvent::Gap,
                Some(Event::Reset) => FeedEvent::Reset,
                Some(Event::Down { reason }) => FeedEvent::Down { reason: reason.to_string() },
                // Closed: there is nothing more to tell, and a feed never ends by itself.
                None => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn lag(&self) -> Option<u64> {
        Some(self.0.lag())
    }
}

/// A feed that can't be: says why, once.
pub(super) struct NoFeed(pub(super) Option<&'static str>);

impl Feed for NoFeed {
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

pub(super) async fn read(client: &Client, business: &str, from: u64, max_bytes: usize) -> Result<Piece, ReadError> {
    let read = client.read(&names::stream(business), from, max_bytes, READ_TIMEOUT).await;
    let read = read.map_err(|error| ReadError(error.to_string()))?;
    let records = read.batches.iter().flat_map(|batch| batch.iter()).map(|message| record(&message)).collect();
    Ok(Piece { records, first_offset: read.first_offset, at_end: read.at_end })
}

fn record(message: &Message) -> Record {
    let (body, oddity) = body::of(message.sections());
    Record { position: message.position(), timestamp: message.timestamp(), body, oddity }
}

/// What the stream client counts, for the admin port.
pub(super) fn counters(client: &Arc<Client>) -> Vec<(&'static str, u64)> {
    let counters = client.counters();
    vec![
        ("stream_connections", counters.connections.get()),
        ("stream_connects", counters.connects.get()),
        ("stream_connect_failures", counters.connect_failures.get()),
        ("stream_connections_lost", counters.connections_lost.get()),
        ("stream_subscriptions", counters.subscriptions.get()),
        ("stream_attachments", counters.attachments.get()),
        ("stream_restarts", counters.restarts.get()),
        ("stream_watchdog_restarts", counters.watchdog_restarts.get()),
        ("stream_resets", counters.resets.get()),
        ("stream_gaps", counters.gaps.get()),
        ("stream_messages", counters.messages.get()),
        ("stream_bytes", counters.bytes.get()),
        ("stream_skipped_messages", counters.skipped_messages.get()),
        ("stream_held_bytes", counters.held_bytes.get()),
    ]
}
