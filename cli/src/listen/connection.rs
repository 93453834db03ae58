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
use wirepost_core::frames::{SUBPROTOCOL, TOKEN_PROTOCOL};

use super::activity::MonitoredStream;

/// For connect and upgrade.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the answer to our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Silence after which a ping is sent.
const PING_AFTER: Duration = Duration::from_secs(20);
/// Silence after which the connection is dead, and dropped without a close frame.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(35);
/// Characters of a foreign answer that are shown.
const SHOWN: usize = 200;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Not a WebSocket URL.
    #[error("cannot connect to this URL: {0}")]
    BadUrl(String),
    /// An HTTP answer instead of an upgrade.
    #[error("connection refused with HTTP {status}: {reason}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The answer's description.
        reason: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// No answer, or not in time.
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
        /// Its reason.
        reason: String,
    },
    /// The edge has sent `drain`.
    Drained,
    /// Without a close frame.
    Lost(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { code, reason } if reason.is_empty() => write!(f, "closed with {code}"),
            Self::Closed { code, reason } => write!(f, "closed with {code}: {reason}"),
            Self::Drained => f.write_str("the edge is shutting down"),
            Self::Lost(reason) => write!(f, "connection lost: {reason}"),
        }
    }
}

/// The parts of a frame that matter to a client.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrameInfo<'a> {
    /// The kind of a control frame; absent in envelopes.
    #[serde(borrow, default)]
    pub op: Option<Cow<'a, str>>,
    /// The position after this frame.
    #[serde(borrow, default)]
    pub cursor: Option<Cow<'a, str>>,
    /// For reconnecting.
    #[serde(borrow, default)]
    pub resume_token: Option<Cow<'a, str>>,
}

impl<'a> FrameInfo<'a> {
    /// Empty if the frame is not as expected.
    pub(super) fn of(text: &'a str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// A frame for printing, without the resume token.
pub(super) fn redacted<'a>(text: &'a str, frame: &FrameInfo<'_>) -> Cow<'a, str> {
    match frame.resume_token.as_deref() {
        Some(token) if !token.is_empty() => text.replace(token, "…").into(),
        _ => text.into(),
    }
}

/// An open connection.
pub(super) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<MonitoredStream>>,
    /// The URL up to the token.
    base: String,
    /// When the last byte arrived: a large message on a slow line is no silence.
    last_activity: super::activity::LastActivity,
    /// When the last ping was sent.
    pinged_at: Option<Instant>,
    /// At most one message and a ping.
    unsent: VecDeque<Message>,
    unflushed: bool,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Step {
    /// A text frame arrived.
    Text(String),
    /// Everything to send is with the kernel.
    Sent,
}

impl Connection {
    pub(super) async fn open(url: &str, cursor: Option<&str>, plain: bool) -> Result<Self, ConnectError> {
        // In the URL, which proxies log, only where it can't be elsewhere: a plain client offers no subprotocol.
        let target = if plain { url } else { without_token(url) };
        let full = match cursor {
            // A cursor needs no escaping. The edge answers an invalid one with a gap, but not every text can be part of
            // a URL.
            Some(cursor) if cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) => {
                format!("{target}?cursor={cursor}")
            }
            Some(cursor) => {
                return Err(ConnectError::BadUrl(format!("{cursor:?} is not a cursor; leave out --cursor")));
            }
            None => target.to_owned(),
        };
        let mut request = full.into_client_request().map_err(|error| ConnectError::BadUrl(error.to_string()))?;
        if !plain {
            let offer = HeaderValue::try_from(format!("{SUBPROTOCOL}, {TOKEN_PROTOCOL}{}", token(url)));
            let offer = offer.map_err(|error| ConnectError::BadUrl(error.to_string()))?;
            request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, offer);
        }
        let connecting = async {
            let stream = MonitoredStream::new(TcpStream::connect(address(request.uri())?).await?);
            let last_activity = stream.last_activity();
            let (socket, _) = client_async_tls(request, stream).await?;
            Ok::<_, tungstenite::Error>((socket, last_activity))
        };
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((socket, last_activity))) => Ok(Self {
                socket,
                base: without_token(url).to_owned(),
                last_activity,
                pinged_at: None,
                unsent: VecDeque::new(),
                unflushed: false,
            }),
            Ok(Err(tungstenite::Error::Http(response))) => Err(refused(&response, token(url))),
            Ok(Err(error)) => Err(ConnectError::Unreachable(hide(&error.to_string(), token(url)))),
            Err(_) => Err(ConnectError::Unreachable(format!("no answer within {CONNECT_TIMEOUT:?}"))),
        }
    }

    /// Sends, receives and watches for silence until there is something to report. Pings are answered meanwhile. Cancel
    /// safe.
    pub(super) async fn step(&mut self) -> Result<Step, End> {
        loop {
            let last_activity = self.last_activity.get();
            let pinged = self.pinged_at.is_some_and(|at| at > last_activity);
            let due = last_activity + if pinged { SILENCE_TIMEOUT } else { PING_AFTER };
            tokio::select! {
                step = poll_fn(|cx| self.poll(cx)) => return step,
                () = sleep_until(due) => {}
            }
            if self.last_activity.get() > last_activity {
                continue;
            }
            if pinged {
                return Err(End::Lost(format!("nothing received for {SILENCE_TIMEOUT:?}")));
            }
            self.pinged_at = Some(Instant::now());
            self.unsent.push_back(Message::Ping("".into()));
        }
    }

    /// Polls both directions: an edge that does not read for a moment (64 messages wait for their confirm) still sends,
    /// and a blocked write must not hide the silence.
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

    /// Whether the previous message is sent, so that [`Self::send`] may be called.
    pub(super) fn can_send(&self) -> bool {
        self.unsent.is_empty() && !self.unflushed
    }

    /// Queues a text frame; [`Self::step`] sends it.
    pub(super) fn send(&mut self, text: String) {
        self.unsent.push_back(Message::text(text));
    }

    /// Closes the connection and waits a moment for the answer.
    pub(super) async fn close(&mut self) {
        let closing = async {
            if self.socket.close(None).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }

    /// The URL to reconnect to with a resume token.
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

/// Foreign text without the secret: it may repeat the path of our request.
fn hide(text: &str, secret: &str) -> String {
    if secret.is_empty() { text.to_owned() } else { text.replace(secret, "…") }
}

/// Host and port to connect to; brackets enclose an IPv6 address.
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

/// The description of a refusal, else the beginning of its body.
fn refusal(body: &[u8], token: &str) -> String {
    let description = serde_json::from_slice::<serde_json::Value>(body).ok();
    match description.as_ref().and_then(|answer| answer["description"].as_str()) {
        Some(description) => hide(description, token),
        // Hidden before truncation, or a part of it could show.
        None => hide(&String::from_utf8_lossy(body), token).chars().take(SHOWN).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_contains_position_and_resume_token() {
        let welcome = FrameInfo::of(r#"{"op":"welcome","connectionId":"c","cursor":"a1","resumeToken":"t"}"#);
        assert_eq!((welcome.op.as_deref(), welcome.cursor.as_deref()), (Some("welcome"), Some("a1")));
        assert_eq!(welcome.resume_token.as_deref(), Some("t"));
        assert_eq!(
            FrameInfo::of(r#"{"messageType":"m","content":{"cursor":1},"cursor":"b2"}"#).cursor.as_deref(),
            Some("b2")
        );
        assert!(FrameInfo::of("not JSON").cursor.is_none());
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
