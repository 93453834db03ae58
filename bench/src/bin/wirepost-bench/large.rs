//! What large messages cost in memory: before, at most, and once they are through. Resident memory of the edge, files it maps included.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};
use wirepost_testing::{
    edge::Edge,
    service::Service,
    setup::Setup,
    usage::{self, Resident},
};

use crate::clients::{self, Socket};

/// How long memory may take to be returned.
const AFTER: Duration = Duration::from_secs(10);

/// Reads until a message of `count` is here that is larger than a control frame.
async fn read(mut socket: Socket, count: usize, least: usize) -> Result<Socket> {
    let mut seen = 0;
    while seen < count {
        let message = socket.next().await.context("the edge closed")??;
        seen += usize::from(message.len() >= least);
    }
    Ok(socket)
}

fn report(what: &str, sockets: usize, before: Resident, edge: &Edge) -> Result<()> {
    let after = usage::resident(edge.pid)?;
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    println!(
        "{what}: {:.0} MiB before, {:.0} at most, {:.0} after {AFTER:?} ({sockets} sockets; at most {:.1} KiB more for each)",
        mib(before.now),
        mib(after.most),
        mib(after.now),
        after.most.saturating_sub(before.now) as f64 / 1024.0 / sockets as f64,
    );
    Ok(())
}

async fn begin(setup: &Setup, sockets: usize, tls: clients::Tls, edge: &Edge) -> Result<(Vec<Socket>, Resident)> {
    let sockets = clients::connect(setup, edge, sockets, tls).await?;
    sleep(Duration::from_secs(2)).await;
    usage::forget_peak(edge.pid)?;
    Ok((sockets, usage::resident(edge.pid)?))
}

/// One push to everyone.
pub(crate) async fn push(setup: &Setup, sockets: usize, bytes: usize, tls: bool) -> Result<()> {
    let (builder, tls) = clients::secured(setup.edge("large").quiet(), setup, tls)?;
    let edge = builder.start().await?;
    let service = Service::connect(setup).await?;
    let what = format!("one push of {} kB to everyone{}", bytes / 1000, if tls.is_some() { ", TLS" } else { "" });
    let (open, before) = begin(setup, sockets, tls, &edge).await?;
    let mut readers = JoinSet::new();
    for socket in open {
        readers.spawn(read(socket, 1, bytes));
    }
    let cpu = usage::of(edge.pid)?;
    service.push(&json!({"messageType": "down", "toUniqueId": "*", "content": "x".repeat(bytes)})).await?;
    let mut open = Vec::new();
    while let Some(reader) = readers.join_next().await {
        open.push(reader??);
    }
    let each = usage::each(cpu, usage::of(edge.pid)?, sockets);
    sleep(AFTER).await;
    report(&what, sockets, before, &edge)?;
    println!("    {each:.0} us of CPU a delivery in the edge");
    drop(open);
    Ok(())
}

/// Everyone sends one message at the same time.
pub(crate) async fn uploads(setup: &Setup, sockets: usize, bytes: usize) -> Result<()> {
    let edge = setup.edge("large").quiet().start().await?;
    let (open, before) = begin(setup, sockets, None, &edge).await?;
    let text = json!({"id": "up", "messageType": "up", "content": "x".repeat(bytes)}).to_string();
    let mut senders = JoinSet::new();
    for mut socket in open {
        let text = text.clone();
        senders.spawn(async move {
            socket.send(Message::text(text)).await?;
            loop {
                let answer = socket.next().await.context("the edge closed")??;
                match answer.to_text().unwrap_or_default() {
                    text if text.contains("\"ack\"") => return anyhow::Ok((socket, true)),
                    text if text.contains("\"nack\"") => return Ok((socket, false)),
                    _ => {}
                }
            }
        });
    }
    let (mut open, mut acked, mut ended) = (Vec::new(), 0, 0);
    while let Some(sender) = senders.join_next().await {
        match sender? {
            Ok((socket, ack)) => {
                open.push(socket);
                acked += usize::from(ack);
            }
            Err(_) => ended += 1,
        }
    }
    sleep(AFTER).await;
    report(&format!("one message of {} kB from everyone", bytes / 1000), sockets, before, &edge)?;
    println!("    {acked} acknowledged, {} refused, {ended} closed", open.len() - acked);
    drop(open);
    Ok(())
}

/// Everyone begins a message and leaves it unfinished, answering pings.
pub(crate) async fn unfinished(setup: &Setup, sockets: usize, bytes: usize) -> Result<()> {
    let edge = setup.edge("large").quiet().start().await?;
    let (open, before) = begin(setup, sockets, None, &edge).await?;
    let mut holders = JoinSet::new();
    for mut socket in open {
        let part = move |kind| Message::Frame(Frame::message(vec![b'x'; bytes], OpCode::Data(kind), false));
        holders.spawn(async move {
            let begun = async {
                socket.send(part(Data::Text)).await?;
                socket.send(part(Data::Continue)).await
            };
            // One that is not read can't send.
            let _ = tokio::time::timeout(Duration::from_secs(5), begun).await;
            while let Some(Ok(_)) = socket.next().await {}
        });
    }
    for seconds in [5, 30, 60] {
        sleep(Duration::from_secs(if seconds == 5 { 5 } else { seconds / 2 })).await;
        let now = usage::resident(edge.pid)?.now;
        let left = edge.metric("wirepost_edge_connections").await?;
        println!("    after about {seconds} s: {} MiB, {left} connections", now >> 20);
    }
    report(&format!("two fragments of {} kB of an unfinished message each", bytes / 1000), sockets, before, &edge)
}
