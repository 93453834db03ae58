//! Clients that go away and come back, by what `welcome` gave them.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use wirepost_bench::tickets;
use wirepost_testing::{edge::Edge, setup::Setup};

use crate::clients::{self, Socket};

/// What a client needs to come back.
#[derive(Clone)]
pub(crate) struct Away {
    pub(crate) token: String,
    pub(crate) cursor: String,
}

impl Away {
    /// From the first frame of a connection.
    pub(crate) fn from_welcome(welcome: &Message) -> Result<Self> {
        let welcome: Value = serde_json::from_str(welcome.to_text()?)?;
        let field = |name: &str| {
            anyhow::Ok(welcome[name].as_str().with_context(|| format!("no {name}: {welcome}"))?.to_owned())
        };
        Ok(Self { token: field("resumeToken")?, cursor: field("cursor")? })
    }

    /// What it connects with.
    pub(crate) fn ticket(&self) -> String {
        format!("{}?cursor={}", self.token, self.cursor)
    }
}

/// Connects clients, each an identity of its own.
pub(crate) async fn connect(setup: &Setup, edge: &Edge, count: usize) -> Result<Vec<(Socket, Away)>> {
    stream::iter(tickets::make(setup, count).await?)
        .map(async |ticket| {
            let (socket, welcome) = clients::open(edge.public, &ticket, None).await?;
            Ok((socket, Away::from_welcome(&welcome)?))
        })
        .buffer_unordered(clients::CONNECTING)
        .try_collect()
        .await
}

/// Brings clients back, so many of them at the same time: each with the number of pushes that it missed, and until it has them.
pub(crate) async fn back(
    edge: &Edge,
    clients: impl IntoIterator<Item = (Away, usize)>,
    at_the_same_time: usize,
) -> Result<Vec<Socket>> {
    stream::iter(clients)
        .map(async |(away, missed)| {
            let (mut socket, welcome) = clients::open(edge.public, &away.ticket(), None).await?;
            let welcome: Value = serde_json::from_str(welcome.to_text()?)?;
            ensure!(welcome["resumed"] == true, "not resumed: {welcome}");
            for _ in 0..missed {
                push(&mut socket).await?;
            }
            Ok(socket)
        })
        .buffer_unordered(at_the_same_time)
        .try_collect()
        .await
}

/// The next push.
pub(crate) async fn push(socket: &mut Socket) -> Result<Message> {
    loop {
        let message = socket.next().await.context("the edge closed")??;
        if message.to_text()?.contains("\"down\"") {
            return Ok(message);
        }
    }
}
