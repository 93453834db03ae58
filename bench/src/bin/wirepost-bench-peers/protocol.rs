//! What differs from server to server in what clients and publishers say.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use serde_json::Value;
use tokio_tungstenite::tungstenite::http::Request;

/// Whom a push is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    Everyone,
    /// A client by its number.
    One(usize),
}

/// What a frame from the server means.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The client is connected and gets what it listens to.
    Ready,
    /// This is to be answered at once.
    Answer(&'static str),
    /// The message of this number is taken.
    Ack(usize),
    /// It is not, and may be sent again after this time.
    Nack(usize, Duration),
    /// The server refuses what the benchmark needs.
    Refused(String),
}

/// An HTTP call that publishes.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

/// One server's protocol.
pub(crate) trait Protocol {
    fn address(&self) -> SocketAddr;
    /// The upgrade request of a client.
    fn upgrade(&self, client: usize) -> Result<Request<()>>;
    /// What the client sends first.
    fn hello(&self, _client: usize) -> Result<Option<String>> {
        Ok(None)
    }
    /// Calls `seen` for whatever the frame says beside pushes.
    fn read(&self, frame: &str, seen: &mut dyn FnMut(Seen));
    /// A message from a client.
    fn up(&self, client: usize, number: usize, payload: &str) -> String;
    /// A call that publishes these.
    fn post(&self, pushes: &[(To, String)]) -> Post;
    /// The key of such calls, in the header `x-api-key`.
    fn api_key(&self) -> &str;
}

/// The digits behind `field`, as a number.
pub(crate) fn number_after(text: &str, field: &str) -> Option<usize> {
    let (_, rest) = text.split_once(field)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}
