//! Events, which may be lost: one channel, no confirms, dropped and counted if they can't be sent immediately.

use std::{sync::Arc, time::Duration};

use lapin::{Channel, options::BasicPublishOptions};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    counters::Counters,
    lane,
    link::{Link, Status},
};
use crate::Publication;

/// Longest wait for a channel, and for lapin to take a message.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Publishes until closed and empty.
pub(super) async fn run(
    link: Link,
    mut queue: mpsc::Receiver<Publication>,
    counters: Arc<Counters>,
    closing: CancellationToken,
) {
    let status = link.status();
    let mut channel: Option<Channel> = None;
    loop {
        let publication = tokio::select! {
            // What waits goes out before the end.
            biased;
            publication = queue.recv() => publication,
            () = closing.cancelled() => return,
        };
        let Some(publication) = publication else { return };
        let current = status.borrow().clone();
        let sent = match current {
            Status::Up(live) => {
                if channel.as_ref().is_none_or(|channel| !channel.status().connected()) {
                    channel = timeout(TIMEOUT, live.create_channel()).await.ok().and_then(Result::ok);
                }
                match &channel {
                    Some(open) => publish(open, &publication).await,
                    None => false,
                }
            }
            Status::Blocked(..) | Status::Down(_) => false,
        };
        if sent {
            counters.events.add(1);
        } else {
            channel = None;
            counters.dropped_events.add(1);
        }
    }
}

async fn publish(channel: &Channel, publication: &Publication) -> bool {
    let Ok((exchange, routing_key, properties)) = lane::frame(publication) else { return false };
    let options = BasicPublishOptions::default();
    let publishing = channel.basic_publish(exchange, routing_key, options, &publication.body, properties);
    matches!(timeout(TIMEOUT, publishing).await, Ok(Ok(_)))
}
