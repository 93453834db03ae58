//! How a client is connected.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use wirepost_core::frames::SUBPROTOCOL;

use super::Client;
use crate::edge::Edge;
use crate::wait::PATIENCE;

/// A client that is yet to be connected, see [`Edge::client`].
#[derive(Debug)]
pub struct ClientBuilder<'e> {
    edge: &'e Edge,
    business: Option<String>,
    unique_id: String,
    client_type: String,
    tags: Vec<String>,
    token: Option<String>,
    options: Options,
}

#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) cursor: Option<String>,
    pub(super) plain: bool,
    pub(super) origin: Option<String>,
    pub(super) via: Option<SocketAddr>,
    pub(super) receive_buffer: Option<u32>,
}

impl<'e> ClientBuilder<'e> {
    pub(crate) fn new(edge: &'e Edge, unique_id: &str, client_type: &str) -> Self {
        Self {
            edge,
            business: None,
            unique_id: unique_id.to_owned(),
            client_type: client_type.to_owned(),
            tags: Vec::new(),
            token: None,
            options: Options::default(),
        }
    }

    /// Of another business than the first declared one.
    #[must_use]
    pub fn business(mut self, business: &str) -> Self {
        self.business = Some(business.to_owned());
        self
    }

    /// Its tags.
    #[must_use]
    pub fn tags(mut self, tags: &[&str]) -> Self {
        self.tags = tags.iter().map(|&tag| tag.to_owned()).collect();
        self
    }

    /// Where it stood before.
    #[must_use]
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.options.cursor = Some(cursor.into());
        self
    }

    /// With a token or resume token that it already has, instead of a token call.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Without the subprotocol: it sees envelopes only.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.options.plain = true;
        self
    }

    /// As a browser's page of this origin.
    #[must_use]
    pub fn origin(mut self, origin: &str) -> Self {
        self.options.origin = Some(origin.to_owned());
        self
    }

    /// By way of a proxy.
    #[must_use]
    pub fn via(mut self, address: SocketAddr) -> Self {
        self.options.via = Some(address);
        self
    }

    /// With this much room in the kernel for what it has not read yet, for clients that are slow.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.options.receive_buffer = Some(bytes);
        self
    }

    /// Asks for a token, where it has none, and connects; under the subprotocol it waits until it knows where it stands. Whatever is pushed
    /// to it from then on comes.
    pub async fn connect(self) -> Result<Client> {
        let (plain, new) = (self.options.plain, self.options.cursor.is_none());
        let mut client = if plain { self.upgrade().await? } else { self.greeted().await? };
        if !plain {
            client.settle(new).await?;
        }
        Ok(client)
    }

    /// The same, but `welcome` is enough: while the broker is away an edge can't tell where a client stands.
    pub async fn greeted(self) -> Result<Client> {
        let mut client = self.upgrade().await?;
        client.greet().await?;
        Ok(client)
    }

    /// The same without waiting for `welcome`: for clients that will be refused. An HTTP refusal is a [`Refused`] in the error.
    pub async fn upgrade(self) -> Result<Client> {
        let Self { edge, business, unique_id, client_type, tags, token, options } = self;
        let tags: Vec<_> = tags.iter().map(String::as_str).collect();
        let business = business.unwrap_or_else(|| edge.setup.business());
        let path = if let Some(token) = token {
            format!("/socket/{token}")
        } else {
            let url = edge.token(&business, &unique_id, &client_type, &tags).await?;
            let (_, token) = url.split_once("/socket/").context("a token call without a socket URL")?;
            format!("/socket/{token}")
        };
        open(edge.public, &path, options).await
    }
}

pub(super) async fn open(edge: SocketAddr, path: &str, options: Options) -> Result<Client> {
    let Options { cursor, plain, origin, via, receive_buffer } = options;
    let query = cursor.map(|cursor| format!("?cursor={cursor}")).unwrap_or_default();
    let mut request = format!("ws://{edge}{path}{query}").into_client_request()?;
    if !plain {
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
    }
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse()?);
    }
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let stream = socket.connect(via.unwrap_or(edge)).await.context("connecting to the edge")?;
    stream.set_nodelay(true)?;
    match timeout_at(Instant::now() + PATIENCE, client_async(request, stream))
        .await
        .context("no answer to the upgrade")?
    {
        Ok((socket, response)) => {
            let chosen = response.headers().get("sec-websocket-protocol").map(HeaderValue::as_bytes);
            ensure!(chosen == (!plain).then_some(SUBPROTOCOL.as_bytes()), "the edge chose subprotocol {chosen:?}");
            Ok(Client {
                socket,
                incoming: VecDeque::new(),
                controls: VecDeque::new(),
                ended: None,
                cursor: None,
                welcome: Value::Null,
            })
        }
        Err(Error::Http(response)) => {
            let status = response.status().as_u16();
            let body = response.body().as_deref().unwrap_or_default();
            let body = serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into());
            Err(Refused { status, body }.into())
        }
        Err(error) => Err(error).context("the upgrade"),
    }
}

/// An upgrade that was refused as HTTP.
#[derive(Debug)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// JSON, or text as a JSON string.
    pub body: Value,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the upgrade was refused: {}: {}", self.status, self.body)
    }
}

impl std::error::Error for Refused {}
