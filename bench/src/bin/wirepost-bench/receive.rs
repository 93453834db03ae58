//! Client → server with confirms, beside a bare AMQP publisher with the same number of messages in flight.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_tungstenite::tungstenite::Message;
use wirepost_core::names;
use wirepost_testing::{broker, setup::Setup, usage};

use crate::clients::{self, Socket};

/// Channels, each with one message in flight, as the edge has them by default.
const CHANNELS: usize = 64;
const CLIENTS: usize = 64;
/// Unacknowledged messages of one client, below the edge's window.
const WINDOW: usize = 32;
const MESSAGES_EACH: usize = 500;
/// Messages that were not confirmed in time.
static NACKS: AtomicUsize = AtomicUsize::new(0);

pub(crate) async fn run(setup: &Setup) -> Result<()> {
    let bare = bare(setup).await?;
    let edge = setup.edge("receive").start().await?;
    let mut senders = JoinSet::new();
    let sockets = clients::connect(setup, &edge, CLIENTS, None).await?;
    let before = usage::of(edge.pid)?;
    let begun = Instant::now();
    for socket in sockets {
        senders.spawn(send(socket));
    }
    let mut open = Vec::new();
    while let Some(sender) = senders.join_next().await {
        open.push(sender??);
    }
    let count = CLIENTS * MESSAGES_EACH;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let after = usage::of(edge.pid)?;
    println!(
        "client to server: {rate:.0} acks/s, {:.0} us of CPU each in the edge; a bare publisher with {CHANNELS} in flight {bare:.0}/s; ratio {:.2} ({CLIENTS} clients, 500 B, {} nacks)",
        usage::each(before, after, count),
        rate / bare,
        NACKS.load(Ordering::Relaxed),
    );
    Ok(())
}

fn body(id: usize) -> String {
    json!({"id": id.to_string(), "messageType": "up", "content": "x".repeat(430)}).to_string()
}

/// Keeps a window of messages on the way until all are acknowledged.
async fn send(socket: Socket) -> Result<Socket> {
    let window = Arc::new(Semaphore::new(WINDOW));
    let (mut sink, mut stream) = socket.split();
    let freed = Arc::clone(&window);
    let acks = async {
        let mut left = MESSAGES_EACH;
        while left > 0 {
            let message = stream.next().await.context("the edge closed")??;
            let text = message.to_text()?;
            if text.contains("\"nack\"") {
                // The measurement goes on without it; how many there were stands beside the result.
                anyhow::ensure!(text.contains("\"retryable\":true"), "{text}");
                NACKS.fetch_add(1, Ordering::Relaxed);
            }
            if text.contains("\"ack\"") || text.contains("\"nack\"") {
                left -= 1;
                freed.add_permits(1);
            }
        }
        Ok(())
    };
    let sends = async {
        for id in 0..MESSAGES_EACH {
            window.acquire().await?.forget();
            sink.send(Message::text(body(id))).await?;
        }
        Ok(())
    };
    tokio::try_join!(acks, sends)?;
    Ok(sink.reunite(stream)?)
}

/// The same number of messages to the same exchange without an edge, acks a second.
async fn bare(setup: &Setup) -> Result<f64> {
    let count = CLIENTS * MESSAGES_EACH / CHANNELS;
    let connections = [setup.vhost().connect().await?, setup.vhost().connect().await?];
    let mut publishers = JoinSet::new();
    let mut channels = Vec::new();
    for i in 0..CHANNELS {
        let channel = connections[i % connections.len()].create_channel().await?;
        channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await?;
        channels.push(channel);
    }
    let begun = Instant::now();
    for channel in channels {
        publishers.spawn(async move {
            for id in 0..count {
                let (receive, queue) = (names::receive_exchange("bench"), names::route_queue("bench", "up"));
                broker::publish_for(&channel, &receive, "up", &queue, body(id).as_bytes()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(publisher) = publishers.join_next().await {
        publisher??;
    }
    Ok((count * CHANNELS) as f64 / begun.elapsed().as_secs_f64())
}
