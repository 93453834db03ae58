//! An echo server on the edge's own socket code: the same upgrade, buffers, driver and queue, without tickets and envelopes. The WebSocket
//! conformance suite runs against it (`make conformance`).
//!
//! Usage: `echo ADDRESS`

use std::sync::Arc;

use anyhow::Context;
use axum::{
    Router,
    extract::{
        WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    routing::any,
};
use prometheus_client::metrics::gauge::Gauge;
use wirepost_edge::{
    listener::Written,
    metrics::Metrics,
    socket::{
        conn::{Conn, Identity},
        driver::{Driver, Io},
        outbound::{Bounds, Item, Outbound},
        upgrade::with_buffers,
    },
};

/// The suite's largest message has 16 MiB.
const MAX_MESSAGE: usize = 17 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).context("usage: echo ADDRESS")?;
    let listener =
        tokio::net::TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on {}", listener.local_addr()?);
    let upgrade = |upgrade: WebSocketUpgrade| async {
        with_buffers(upgrade).max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).on_upgrade(echo)
    };
    axum::serve(listener, Router::new().fallback(any(upgrade))).await.context("cannot serve")
}

async fn echo(socket: WebSocket) {
    let identity = Identity { unique_id: "echo".into(), client_type: "echo".into(), tags: vec![] };
    let bounds = Bounds { messages: 1 << 16, bytes: 64 << 20 };
    let conn = Arc::new(Conn::new(1, &identity, true, Outbound::new(bounds, Gauge::default())));
    let mut driver = Driver::new(socket, Arc::clone(&conn), Arc::new(Metrics::default()), Written::default());
    loop {
        match driver.next(|| true).await {
            Io::Text(text) => {
                conn.outbound.push(Item::Frame(Message::Text(text)));
            }
            Io::Binary(bytes) => {
                conn.outbound.push(Item::Frame(Message::Binary(bytes)));
            }
            Io::Alive | Io::Stalled => {}
            Io::Closed(_) => return driver.finish().await,
            Io::Gone => return,
            Io::Broken(code) | Io::Goodbye(code) => return driver.close(code).await,
        }
    }
}
