//! Client → server with confirms, in several shapes, beside a bare AMQP publisher with one window.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use wirepost_core::names;
use wirepost_testing::{broker, setup::Setup, usage};

use crate::clients::{self, Socket};

/// Clients, unacknowledged messages of each, messages of each.
const SHAPES: [(usize, usize, usize); 3] = [(64, 32, 600), (1000, 16, 48), (1000, 1, 20)];
/// Unconfirmed messages of the bare publisher, and how many it sends.
const BARE: (usize, usize) = (1024, 40_000);

pub(crate) async fn run(setup: impl AsyncFn() -> Result<Setup>) -> Result<()> {
    for (clients, window, each) in SHAPES {
        shape(&setup().await?, clients, window, each).await?;
    }
    Ok(())
}

async fn shape(setup: &Setup, clients: usize, window: usize, each: usize) -> Result<()> {
    let bare = bare(setup).await?;
    let edge = setup.edge("receive").quiet().start().await?;
    let sockets = clients::connect(setup, &edge, clients, None).await?;
    let (nacks, broker) = (AtomicUsize::new(0), crate::broker_pid()?);
    let (before, broker_before) = (usage::of(edge.pid)?, usage::of(broker)?);
    let begun = Instant::now();
    let sending = sockets.into_iter().map(|socket| send(socket, window, each, &nacks));
    let open = futures_util::future::try_join_all(sending).await?;
    let count = clients * each;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let (after, broker_after) = (usage::of(edge.pid)?, usage::of(broker)?);
    println!(
        "client to server, {clients} x {window}: {rate:.0} acks/s, {:.1} us of CPU each in the edge, {:.1} in the broker; a bare publisher with {} in flight {bare:.0}/s; ratio {:.2} (500 B, {} nacks)",
        usage::each(before, after, count),
        usage::each(broker_before, broker_after, count),
        BARE.0,
        rate / bare,
        nacks.load(Ordering::Relaxed),
    );
    drop(open);
    Ok(())
}

pub(crate) fn body(id: usize) -> String {
    json!({"id": id.to_string(), "messageType": "up", "content": "x".repeat(430)}).to_string()
}

/// Keeps a window of messages on the way until all are acknowledged; one that was refused is sent again.
async fn send(mut socket: Socket, window: usize, each: usize, nacks: &AtomicUsize) -> Result<Socket> {
    for id in 0..window.min(each) {
        socket.feed(Message::text(body(id))).await?;
    }
    socket.flush().await?;
    let (mut next, mut left) = (window.min(each), each);
    while left > 0 {
        let message = socket.next().await.context("the edge closed")??;
        let text = message.to_text()?;
        if text.contains("\"nack\"") {
            anyhow::ensure!(text.contains("\"retryable\":true"), "{text}");
            nacks.fetch_add(1, Ordering::Relaxed);
        } else if text.contains("\"ack\"") {
            left -= 1;
        }
        let answered = text.contains("\"nack\"") || text.contains("\"ack\"");
        if answered && (next < each || text.contains("\"nack\"")) {
            next += usize::from(text.contains("\"ack\""));
            socket.send(Message::text(body(next))).await?;
        }
    }
    Ok(socket)
}

/// Messages to the same exchange without an edge, on one channel with one window: confirms a second.
async fn bare(setup: &Setup) -> Result<f64> {
    let connection = setup.vhost().connect().await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (receive, queue) = (names::receive_exchange("bench"), names::route_queue("bench", "up"));
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert("BCC".into(), AMQPValue::FieldArray(vec![text(&broker::key_of(&queue))].into()));
    headers.insert("queue".into(), text(&queue));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let begun = Instant::now();
    let mut window = VecDeque::new();
    for id in 0..BARE.1 {
        if window.len() == BARE.0
            && let Some(confirm) = window.pop_front()
        {
            confirm.await?;
        }
        let body = body(id);
        let publish =
            channel.basic_publish(receive.as_str().into(), "up".into(), options, body.as_bytes(), properties.clone());
        window.push_back(publish.await?);
    }
    for confirm in window {
        confirm.await?;
    }
    Ok(BARE.1 as f64 / begun.elapsed().as_secs_f64())
}

/// Pushes by HTTP in batches, each to one identity: CPU of edge and broker for each push.
pub(crate) async fn http(setup: &Setup) -> Result<()> {
    const CALLERS: usize = 8;
    const CALLS: usize = 200;
    const BATCH: usize = 10;
    const IDENTITIES: usize = 1000;
    let edge = setup.edge("http").quiet().start().await?;
    let mut readers = JoinSet::new();
    for mut socket in clients::connect(setup, &edge, IDENTITIES, None).await? {
        readers.spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
    }
    let broker = crate::broker_pid()?;
    let (before, broker_before) = (usage::of(edge.pid)?, usage::of(broker)?);
    let begun = Instant::now();
    let calls = (0..CALLERS).map(|caller| {
        let edge = &edge;
        async move {
            for call in 0..CALLS {
                let push = |n: usize| {
                    let to = format!("user-{}", (caller * CALLS * BATCH + call * BATCH + n) % IDENTITIES);
                    json!({"messageType": "down", "toUniqueId": to, "content": "x".repeat(200)})
                };
                let (status, answer) = edge.post(&(0..BATCH).map(push).collect()).await?;
                anyhow::ensure!(status == 200, "{status}: {answer}");
            }
            anyhow::Ok(())
        }
    });
    futures_util::future::try_join_all(calls).await?;
    let count = CALLERS * CALLS * BATCH;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let (after, broker_after) = (usage::of(edge.pid)?, usage::of(broker)?);
    println!(
        "pushes by HTTP, batches of {BATCH}: {rate:.0} a second, {:.1} us of CPU each in the edge, {:.1} in the broker ({CALLERS} callers, {IDENTITIES} identities)",
        usage::each(before, after, count),
        usage::each(broker_before, broker_after, count),
    );
    readers.shutdown().await;
    Ok(())
}
