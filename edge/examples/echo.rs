//! An echo server on the edge's own socket code: the same upgrade, buffers, driver and queue, with compression, without
//! tickets and envelopes. The WebSocket conformance suite runs against it (`make conformance`).
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
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio_tungstenite::tungstenite::{
    Utf8Bytes,
    protocol::frame::coding::{Data, OpCode},
};
use wirepost_edge::{
    broker::Position,
    compression::{Compression, is_worth_it},
    http::socket::handshake::Handshake,
    metrics::Metrics,
    push::{
        audience::{Audience, Recipients},
        backlog::{Backlog, BacklogShare},
        entry::{Entry, Push},
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
    let mut request = request.into_parts().0;
    match Handshake::of(&mut request, "echo") {
        Ok(mut handshake) => {
            let compression = handshake.compress(&request.headers);
            handshake.complete(tasks, move |upgraded| echo(upgraded, compression))
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// A text as a push: compressed where the client wants it, and the message is neither too small nor too large for it.
fn push(frame: Utf8Bytes, compression: Compression, backlog: &Arc<Backlog>) -> Entry {
    let mut push = Push {
        audience: Audience { recipients: Recipients::Everyone, client_types: vec![] },
        share: BacklogShare::new(frame.len(), backlog),
        frame,
        compressed: None,
        expires_at: None,
        judge: None,
        receipt: None,
    };
    if compression.takes(push.frame.len()) && is_worth_it(push.frame.len()) {
        push.compress();
    }
    Entry { position: Position { offset: 0, fingerprint: 0 }, push: Some(push) }
}

async fn echo(upgraded: Upgraded, compression: Compression) {
    let bounds = Bounds { messages: 1 << 16, bytes: 64 << 20 };
    let metrics = Arc::new(Metrics::default());
    let backlog = Backlog::new(1 << 30, &metrics);
    let outbound = Outbound::new(bounds, Gauge::default(), Arc::clone(&backlog));
    let mut mailbox = Mailbox::new(1, "echo", "echo", true, outbound);
    mailbox.compression = compression;
    let mailbox = Arc::new(mailbox);
    let share = Inbound::new(1 << 30, Gauge::default()).share(&"echo".into());
    let limits = Limits { backlog: Arc::clone(&backlog), share, read_timeout: Duration::from_secs(30) };
    let wire = Wire::new(TokioIo::new(upgraded), MAX_MESSAGE, compression);
    let mut driver = Driver::new(wire, Arc::clone(&mailbox), metrics, WriteProgress::default(), limits);
    loop {
        match driver.next(|_, _| true).await {
            SocketEvent::Text(text) => {
                mailbox.deliver(&Arc::new(push(text, compression, &backlog)));
            }
            SocketEvent::Binary(bytes) => {
                mailbox.outbound.push(Item::Frame(OpCode::Data(Data::Binary), bytes));
            }
            SocketEvent::Alive
            | SocketEvent::Fragment
            | SocketEvent::Progress(_)
            | SocketEvent::Stalled
            | SocketEvent::LetGo
            | SocketEvent::Shortened => {}
            SocketEvent::Closed(_) => return driver.finish().await,
            SocketEvent::Gone => return,
            SocketEvent::Broken(code) | SocketEvent::Goodbye(code) => return driver.close(code).await,
        }
    }
}
