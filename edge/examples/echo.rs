//! An echo server on the edge's own socket code: the same upgrade, buffers, driver and queue, without tickets and
//! envelopes. The WebSocket conformance suite runs against it (`make conformance`).
//!
//! Usage: `echo ADDRESS`

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::any,
};
use hyper::upgrade::Upgraded;
use prometheus_client::metrics::gauge::Gauge;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use wirepost_edge::{
    http::socket::handshake::Handshake,
    metrics::Metrics,
    push::{
        backlog::Backlog,
        mailbox::{
            Mailbox,
            outbound::{Bounds, Item, Outbound},
        },
    },
    socket::{
        driver::{Driver, Limits, SocketEvent},
        inbound::Inbound,
        wire::Wire,
        write_progress::WriteProgress,
    },
};
use wirepost_runtime::tasks::{Supervisor, Tasks};

/// The suite's largest message has 16 MiB.
const MAX_MESSAGE: usize = 17 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).context("usage: echo ADDRESS")?;
    let listener =
        tokio::net::TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on {}", listener.local_addr()?);
    let tasks = Supervisor::default().tasks();
    let upgrade = move |request: Request| {
        let tasks = tasks.clone();
        async move { answer(request, &tasks) }
    };
    axum::serve(listener, Router::new().fallback(any(upgrade))).await.context("cannot serve")
}

fn answer(request: Request, tasks: &Tasks) -> Response {
    match Handshake::of(&mut request.into_parts().0, "echo") {
        Ok(handshake) => handshake.complete(tasks, echo),
        Err(refusal) => refusal.into_response(),
    }
}

async fn echo(upgraded: Upgraded) {
    let bounds = Bounds { messages: 1 << 16, bytes: 64 << 20 };
    let metrics = Arc::new(Metrics::default());
    let backlog = Backlog::new(1 << 30, &metrics);
    let outbound = Outbound::new(bounds, Gauge::default(), Arc::clone(&backlog));
    let mailbox = Arc::new(Mailbox::new(1, "echo", "echo", true, outbound));
    let share = Inbound::new(1 << 30, Gauge::default()).share(&"echo".into());
    let limits = Limits { backlog, share, read_timeout: Duration::from_secs(30) };
    let wire = Wire::new(upgraded, MAX_MESSAGE);
    let mut driver = Driver::new(wire, Arc::clone(&mailbox), metrics, WriteProgress::default(), limits);
    loop {
        match driver.next(|| true).await {
            SocketEvent::Text(text) => {
                mailbox.outbound.push(Item::Control(text));
            }
            SocketEvent::Binary(bytes) => {
                mailbox.outbound.push(Item::Frame(OpCode::Data(Data::Binary), bytes));
            }
            SocketEvent::Alive | SocketEvent::Fragment | SocketEvent::Progress(_) | SocketEvent::Stalled => {}
            SocketEvent::Closed(_) => return driver.finish().await,
            SocketEvent::Gone => return,
            SocketEvent::Broken(code) | SocketEvent::Goodbye(code) => return driver.close(code).await,
        }
    }
}
