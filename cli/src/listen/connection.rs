//! One WebSocket of a client.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_tls,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderValue, Response, Uri, header},
        protocol::CloseFrame,
    },
};
use wirepost_core::frames::SUBPROTOCOL;

use super::heard::Heard;

/// Longest time for connect and upgrade.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the answer to our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Silence after which the edge is asked for a sign of life.
const ASK_AFTER: Duration = Duration::from_secs(20);
/// Silence after which the connection is dead, and left without a goodbye that nobody would hear.
const SILENCE: Duration = Duration::from_secs(35);
/// Characters of a stranger's answer that are shown.
const SHOWN: usize = 200;

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
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
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

/// A frame as it is printed: without the token that stands for its client.
pub(super) fn shown<'a>(text: &'a str, seen: &Seen<'_>) -> Cow<'a, str> {
    match seen.resume_token.as_deref() {
        Some(token) if !token.is_empty() => text.replace(token, "…").into(),
        _ => text.into(),
    }
}

/// An open connection.
pub(super) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<Heard>>,
    /// The URL up to the token.
    base: String,
    /// When the last byte came: a large message on a slow line is no silence.
    heard: super::heard::When,
    /// When a sign of life was asked for last.
    asked: Option<Instant>,
    /// At most one message and a ping.
    unsent: VecDeque<Message>,
    unflushed: bool,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Step {
    /// A text frame came.
    Text(String),
    /// All that was to be sent is with the kernel.
    Sent,
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
        let connecting = async {
            let stream = Heard::new(TcpStream::connect(address(request.uri())?).await?);
            let heard = stream.when();
            let (socket, _) = client_async_tls(request, stream).await?;
            Ok::<_, tungstenite::Error>((socket, heard))
        };
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((socket, heard))) => Ok(Self {
                socket,
                base: without_token(url).to_owned(),
                heard,
                asked: None,
                unsent: VecDeque::new(),
                unflushed: false,
            }),
            Ok(Err(tungstenite::Error::Http(response))) => Err(refused(&response, token(url))),
            Ok(Err(error)) => Err(ConnectError::Unreachable(hide(&error.to_string(), token(url)))),
            Err(_) => Err(ConnectError::Unreachable(format!("no answer within {CONNECT_TIMEOUT:?}"))),
        }
    }

    /// Sends, receives and watches for silence until something is to be told. Pings are answered meanwhile. Cancel safe.
    pub(super) async fn step(&mut self) -> Result<Step, End> {
        loop {
            let heard = self.heard.get();
            let asked = self.asked.is_some_and(|asked| asked > heard);
            let due = heard + if asked { SILENCE } else { ASK_AFTER };
            tokio::select! {
                step = poll_fn(|cx| self.poll(cx)) => return step,
                () = sleep_until(due) => {}
            }
            if self.heard.get() > heard {
                continue;
            }
            if asked {
                return Err(End::Lost(format!("not a byte for {SILENCE:?}")));
            }
            self.asked = Some(Instant::now());
            self.unsent.push_back(Message::Ping("".into()));
        }
    }

    /// Both directions at once: an edge that does not read us for a moment (64 messages wait for their confirm) sends all the same, and a
    /// write that hangs must not hide the silence.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, End>> {
        if let Poll::Ready(sent) = self.poll_send(cx) {
            return Poll::Ready(sent.map(|()| Step::Sent).map_err(|error| End::Lost(error.to_string())));
        }
        loop {
            let message = match ready!(self.socket.poll_next_unpin(cx)) {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Poll::Ready(Err(End::Lost(error.to_string()))),
                None => return Poll::Ready(Err(End::Lost("ended without a close frame".into()))),
            };
            match message {
                Message::Text(text) => return Poll::Ready(Ok(Step::Text(text.as_str().to_owned()))),
                Message::Close(frame) => return Poll::Ready(Err(closed(frame))),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tungstenite::Error>> {
        while !self.unsent.is_empty() {
            ready!(self.socket.poll_ready_unpin(cx))?;
            if let Some(message) = self.unsent.pop_front() {
                self.socket.start_send_unpin(message)?;
                self.unflushed = true;
            }
        }
        if !self.unflushed {
            return Poll::Pending;
        }
        ready!(self.socket.poll_flush_unpin(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Whether the one before it is sent, so that [`Self::send`] may be called.
    pub(super) fn takes(&self) -> bool {
        self.unsent.is_empty() && !self.unflushed
    }

    /// Sends a text frame, in the course of [`Self::step`].
    pub(super) fn send(&mut self, text: String) {
        self.unsent.push_back(Message::text(text));
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

/// The token of a connection URL.
fn token(url: &str) -> &str {
    &url[without_token(url).len()..]
}

/// Text of a stranger, who may repeat the path that we asked for, without the secret.
fn hide(text: &str, secret: &str) -> String {
    if secret.is_empty() { text.to_owned() } else { text.replace(secret, "…") }
}

/// Whom to connect to; an address in brackets is one of IPv6.
fn address(uri: &Uri) -> Result<(&str, u16), tungstenite::Error> {
    let no_host = || tungstenite::Error::Url(tungstenite::error::UrlError::NoHostName);
    let host = uri.host().ok_or_else(no_host)?.trim_matches(['[', ']']);
    let tls = uri.scheme_str() == Some("wss");
    Ok((host, uri.port_u16().unwrap_or(if tls { 443 } else { 80 })))
}

fn refused(response: &Response<Option<Vec<u8>>>, token: &str) -> ConnectError {
    let seconds = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    ConnectError::Refused {
        status: response.status().as_u16(),
        reason: refusal(response.body().as_deref().unwrap_or_default(), token),
        retry_after: seconds.map(Duration::from_secs),
    }
}

fn closed(frame: Option<CloseFrame>) -> End {
    match frame {
        Some(frame) => End::Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() },
        None => End::Closed { code: 1005, reason: String::new() },
    }
}

/// The sentence of a refusal in the form of the token call, else how the body begins.
fn refusal(body: &[u8], token: &str) -> String {
    let description = serde_json::from_slice::<serde_json::Value>(body).ok();
    match description.as_ref().and_then(|answer| answer["description"].as_str()) {
        Some(description) => hide(description, token),
        // Hidden before it is cut, or half of it would show.
        None => hide(&String::from_utf8_lossy(body), token).chars().take(SHOWN).collect(),
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
        assert_eq!(token("ws://127.0.0.1:8080/socket/secret"), "secret");
    }

    #[test]
    fn a_refusal_is_shown_without_the_token() {
        let long = "-".repeat(SHOWN - 3);
        for body in [r#"{"description":"no secret here"}"#, "<p>/socket/secret", &format!("{long}secret")] {
            let shown = refusal(body.as_bytes(), "secret");
            assert!(!shown.contains("sec") && shown.chars().count() <= SHOWN, "{shown}");
        }
    }

    #[test]
    fn an_address_comes_from_the_url() {
        for (url, expected) in [
            ("ws://a.example/x", ("a.example", 80)),
            ("wss://a.example/x", ("a.example", 443)),
            ("ws://[::1]:8080/x", ("::1", 8080)),
        ] {
            assert_eq!(address(&url.parse().unwrap()).unwrap(), expected, "{url}");
        }
    }
}
