//! One WebSocket of a client.

use std::{borrow::Cow, fmt, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderValue, header},
        protocol::CloseFrame,
    },
};
use wirepost_core::frames::SUBPROTOCOL;

/// Longest time for connect and upgrade.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the answer to our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// An edge pings quiet clients every 25 s: after two of them without a byte the connection is dead.
const SILENCE: Duration = Duration::from_mins(1);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Not a WebSocket URL.
    #[error("the edge's answer is no URL to connect to: {0}")]
    BadUrl(String),
    /// HTTP in the place of an upgrade.
    #[error("connection refused with HTTP {status}: {reason}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What the answer says.
        reason: String,
    },
    /// Nobody answers, or not in time.
    #[error("cannot connect: {0}")]
    Unreachable(String),
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// By a close frame.
    Closed {
        /// Close code; 1005 where the frame has none.
        code: u16,
        /// Its sentence.
        reason: String,
    },
    /// The edge goes and has said so.
    Drained,
    /// Without a word.
    Lost(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { code, reason } if reason.is_empty() => write!(f, "closed with {code}"),
            Self::Closed { code, reason } => write!(f, "closed with {code}: {reason}"),
            Self::Drained => f.write_str("the edge goes, taking the cursor elsewhere"),
            Self::Lost(reason) => write!(f, "connection lost: {reason}"),
        }
    }
}

/// What a client has to know of a frame.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Seen<'a> {
    /// Which control frame; absent in envelopes.
    #[serde(borrow, default)]
    pub op: Option<Cow<'a, str>>,
    /// The position after this frame.
    #[serde(borrow, default)]
    pub cursor: Option<Cow<'a, str>>,
    /// For the way back.
    #[serde(borrow, default)]
    pub resume_token: Option<Cow<'a, str>>,
}

impl<'a> Seen<'a> {
    /// Nothing of a frame that is not as expected.
    pub(super) fn of(text: &'a str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// An open connection.
pub(super) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The URL up to the token.
    base: String,
    heard: Instant,
}

impl Connection {
    pub(super) async fn open(url: &str, cursor: Option<&str>, plain: bool) -> Result<Self, ConnectError> {
        let full = match cursor {
            // A cursor's alphabet needs no escaping, and what is none is refused by the edge with a gap; but not everything is a URL.
            Some(cursor) if cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) => {
                format!("{url}?cursor={cursor}")
            }
            Some(cursor) => {
                return Err(ConnectError::BadUrl(format!("{cursor:?} is not a cursor; leave --cursor out")));
            }
            None => url.to_owned(),
        };
        let mut request = full.into_client_request().map_err(|error| ConnectError::BadUrl(error.to_string()))?;
        if !plain {
            request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        match timeout(CONNECT_TIMEOUT, connect_async(request)).await {
            Ok(Ok((socket, _))) => Ok(Self { socket, base: without_token(url).to_owned(), heard: Instant::now() }),
            Ok(Err(tungstenite::Error::Http(response))) => Err(ConnectError::Refused {
                status: response.status().as_u16(),
                reason: refusal(response.body().as_deref().unwrap_or_default()),
            }),
            Ok(Err(error)) => Err(ConnectError::Unreachable(error.to_string())),
            Err(_) => Err(ConnectError::Unreachable(format!("no answer within {CONNECT_TIMEOUT:?}"))),
        }
    }

    /// The next text frame. Pings are answered meanwhile. Cancel safe.
    pub(super) async fn recv(&mut self) -> Result<String, End> {
        loop {
            let message = match tokio::time::timeout_at(self.heard + SILENCE, self.socket.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(End::Lost(error.to_string())),
                Ok(None) => return Err(End::Lost("ended without a close frame".into())),
                Err(_) => return Err(End::Lost(format!("not a byte for {SILENCE:?}"))),
            };
            self.heard = Instant::now();
            match message {
                Message::Text(text) => return Ok(text.as_str().to_owned()),
                Message::Close(frame) => return Err(closed(frame)),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Sends a text frame.
    pub(super) async fn send(&mut self, text: String) -> Result<(), End> {
        self.socket.send(Message::text(text)).await.map_err(|error| End::Lost(error.to_string()))
    }

    /// Says goodbye and waits a moment for the answer.
    pub(super) async fn close(&mut self) {
        let goodbye = async {
            if self.socket.close(None).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }

    /// The way back with a resume token.
    pub(super) fn resume_url(&self, token: &str) -> String {
        format!("{}{token}", self.base)
    }
}

/// A connection URL up to its token, which is a secret.
pub(super) fn without_token(url: &str) -> &str {
    url.rfind('/').map_or("", |end| &url[..=end])
}

fn closed(frame: Option<CloseFrame>) -> End {
    match frame {
        Some(frame) => End::Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() },
        None => End::Closed { code: 1005, reason: String::new() },
    }
}

/// The sentence of a refusal in the form of the token call, else how the body begins.
fn refusal(body: &[u8]) -> String {
    let description = serde_json::from_slice::<serde_json::Value>(body).ok();
    match description.as_ref().and_then(|answer| answer["description"].as_str()) {
        Some(description) => description.to_owned(),
        None => String::from_utf8_lossy(body).chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_tells_where_the_client_stands() {
        let welcome = Seen::of(r#"{"op":"welcome","connectionId":"c","cursor":"a1","resumeToken":"t"}"#);
        assert_eq!((welcome.op.as_deref(), welcome.cursor.as_deref()), (Some("welcome"), Some("a1")));
        assert_eq!(welcome.resume_token.as_deref(), Some("t"));
        assert_eq!(
            Seen::of(r#"{"messageType":"m","content":{"cursor":1},"cursor":"b2"}"#).cursor.as_deref(),
            Some("b2")
        );
        assert!(Seen::of("not JSON").cursor.is_none());
    }

    #[test]
    fn a_url_is_shown_without_its_token() {
        assert_eq!(without_token("ws://127.0.0.1:8080/socket/secret"), "ws://127.0.0.1:8080/socket/");
    }
}
