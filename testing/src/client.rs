//! A WebSocket client that knows the protocol. Everything that it awaits has a deadline, and what arrives meanwhile is kept in order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

mod open;

pub use open::{ClientBuilder, Refused};
use open::{Options, open};

use crate::wait::PATIENCE;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By a close frame: code (1005 without one) and reason.
    Closed(u16, String),
    /// Without one.
    Gone(String),
}

/// What may come next, see [`Client::event`].
#[derive(Clone, Debug)]
pub enum Event {
    /// A message.
    Push(Value),
    /// A control frame but `position`.
    Control(Value),
    /// The cursor of a `position`.
    Position(String),
    /// Nothing more comes.
    End(End),
}

#[derive(Debug)]
enum Incoming {
    Push(Value, String),
    Position(String),
}

/// A connected client. Nothing is read from its socket but while it waits for something.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    /// Pushes not taken yet, and positions among them.
    incoming: VecDeque<Incoming>,
    /// Control frames not taken yet.
    controls: VecDeque<Value>,
    ended: Option<End>,
    cursor: Option<String>,
    /// The first frame.
    pub welcome: Value,
}

impl Client {
    /// With a token at any address of edges; as [`ClientBuilder::connect`].
    pub async fn connect(edges: SocketAddr, token: &str) -> Result<Self> {
        let mut client = open(edges, &format!("/socket/{token}"), Options::default()).await?;
        client.greet().await?;
        client.settle(true).await?;
        Ok(client)
    }

    /// As a client that comes back: with a token and its cursor, not waiting for `welcome`.
    pub async fn back(edges: SocketAddr, token: &str, cursor: Option<String>) -> Result<Self> {
        open(edges, &format!("/socket/{token}"), Options { cursor, ..Options::default() }).await
    }

    /// Whatever comes next, for a caller that must react to all of it. A connection without a frame or ping for `limit` counts as lost.
    /// Cancel safe.
    pub async fn event(&mut self, limit: Duration) -> Result<Event> {
        loop {
            if let Some(control) = self.controls.pop_front() {
                return Ok(Event::Control(control));
            }
            match self.incoming.pop_front() {
                Some(Incoming::Push(push, _)) => {
                    self.cursor = push["cursor"].as_str().map(str::to_owned).or(self.cursor.take());
                    return Ok(Event::Push(push));
                }
                Some(Incoming::Position(cursor)) => {
                    self.cursor = Some(cursor.clone());
                    return Ok(Event::Position(cursor));
                }
                None => {}
            }
            if let Some(end) = &self.ended {
                return Ok(Event::End(end.clone()));
            }
            let now = Instant::now();
            if let Err(error) = self.read(now + limit).await {
                if now.elapsed() < limit {
                    return Err(error);
                }
                self.ended = Some(End::Gone(format!("silent for {limit:?}")));
            }
        }
    }

    async fn greet(&mut self) -> Result<()> {
        self.welcome = self.control("welcome").await?;
        self.cursor = self.welcome["cursor"].as_str().map(str::to_owned);
        Ok(())
    }

    /// Waits until it knows where it stands. One that is new, and was welcomed before the edge read anything, is told so by a `gap`: that
    /// is no news to a test.
    async fn settle(&mut self, new: bool) -> Result<()> {
        if !self.welcome["resumed"].is_null() {
            return Ok(());
        }
        if new {
            self.unread().await?;
            return self.sync().await;
        }
        self.position().await.context("the edge did not tell where this client stands")
    }

    /// Takes the `gap` of a new client that was welcomed before the edge read anything.
    pub async fn unread(&mut self) -> Result<()> {
        let reason = self.gap().await.context("the edge did not tell where this client stands")?;
        ensure!(reason == "unread", "a gap of a new client: {reason}");
        Ok(())
    }

    /// The position behind the last push that was taken here; `welcome` and `position` count as well.
    #[expect(clippy::expect_used, reason = "a test that asks where no cursor can be is wrong")]
    pub fn cursor(&mut self) -> String {
        while let Some(Incoming::Position(_)) = self.incoming.front() {
            if let Some(Incoming::Position(cursor)) = self.incoming.pop_front() {
                self.cursor = Some(cursor);
            }
        }
        self.cursor.clone().expect("this client was told no cursor")
    }

    /// The newest cursor up to which it has read, if it received one.
    pub fn newest(&self) -> Option<String> {
        self.cursor.clone()
    }

    /// What brings it back without a token call.
    #[expect(clippy::expect_used, reason = "every welcome has one")]
    pub fn resume_token(&self) -> String {
        self.welcome["resumeToken"].as_str().expect("welcome has a resumeToken").to_owned()
    }

    /// Whether `welcome` says that nothing is missing.
    pub fn resumed(&self) -> bool {
        self.welcome["resumed"] == true
    }

    /// Sends a frame: an envelope, or a control frame.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_text(frame.to_string()).await
    }

    /// Sends any text.
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<()> {
        self.send_message(Message::text(text.into())).await
    }

    /// Sends any message.
    pub async fn send_message(&mut self, message: Message) -> Result<()> {
        let sent = timeout_at(Instant::now() + PATIENCE, self.socket.send(message)).await;
        Ok(sent.context("the edge takes nothing")??)
    }

    /// Sends an envelope and waits for its `ack`. It must have an id.
    pub async fn send_acked(&mut self, envelope: &Value) -> Result<()> {
        self.send(envelope).await?;
        self.ack(envelope["id"].as_str().context("an envelope without id")?).await
    }

    /// The next push. Errors where a gap was announced instead: that is [`Client::gap`]'s.
    pub async fn push(&mut self) -> Result<Value> {
        self.push_within(PATIENCE).await
    }

    /// The next push as it was on the wire.
    pub async fn push_text(&mut self) -> Result<String> {
        Ok(self.take_push(PATIENCE).await?.1)
    }

    /// The same as [`Client::push`] with a deadline of its own.
    pub async fn push_within(&mut self, limit: Duration) -> Result<Value> {
        Ok(self.take_push(limit).await?.0)
    }

    async fn take_push(&mut self, limit: Duration) -> Result<(Value, String)> {
        let deadline = Instant::now() + limit;
        loop {
            match self.incoming.pop_front() {
                Some(Incoming::Push(push, text)) => {
                    if let Some(cursor) = push["cursor"].as_str() {
                        self.cursor = Some(cursor.to_owned());
                    }
                    return Ok((push, text));
                }
                Some(Incoming::Position(cursor)) => self.cursor = Some(cursor),
                None => {
                    if let Some(gap) = self.controls.iter().find(|frame| frame["op"] == "gap") {
                        bail!("awaiting a push, but there is a gap: {gap}");
                    }
                    self.read(deadline).await.context("awaiting a push")?;
                }
            }
        }
    }

    /// `content` of the next push.
    pub async fn content(&mut self) -> Result<Value> {
        Ok(self.push().await?["content"].take())
    }

    /// `content.n` of this many pushes.
    pub async fn numbers(&mut self, count: usize) -> Result<Vec<u64>> {
        let mut numbers = Vec::with_capacity(count);
        while numbers.len() < count {
            let push = self.push().await.with_context(|| format!("after {} of {count} pushes", numbers.len()))?;
            numbers.push(push["content"]["n"].as_u64().with_context(|| format!("no number in {push}"))?);
        }
        Ok(numbers)
    }

    /// Waits for the `ack` of a message. Errors on its `nack`.
    pub async fn ack(&mut self, id: &str) -> Result<()> {
        let answer = self.find("an ack", PATIENCE, |frame| is_answer(frame) && frame["id"] == id).await?;
        ensure!(answer["op"] == "ack", "expected an ack of {id}: {answer}");
        Ok(())
    }

    /// Waits for the `nack` of a message. Errors on its `ack`.
    pub async fn nack(&mut self, id: &str) -> Result<Value> {
        let answer = self.find("a nack", PATIENCE, |frame| is_answer(frame) && frame["id"] == id).await?;
        ensure!(answer["op"] == "nack", "expected a nack of {id}: {answer}");
        Ok(answer)
    }

    /// Waits for the next `ack` or `nack`, whichever message it is for.
    pub async fn answer(&mut self) -> Result<Value> {
        self.find("an ack or nack", PATIENCE, is_answer).await
    }

    /// Waits for a `gap`; its reason.
    pub async fn gap(&mut self) -> Result<String> {
        let gap = self.control("gap").await?;
        Ok(gap["reason"].as_str().context("a gap without reason")?.to_owned())
    }

    /// Waits for a control frame of this `op`.
    pub async fn control(&mut self, op: &str) -> Result<Value> {
        self.control_within(op, PATIENCE).await
    }

    /// Waits for the next control frame of one of these `op`s.
    pub async fn control_of(&mut self, ops: &[&str]) -> Result<Value> {
        let wanted = |frame: &Value| frame["op"].as_str().is_some_and(|op| ops.contains(&op));
        self.find(&ops.join(" or "), PATIENCE, wanted).await
    }

    /// The same as [`Client::control`] with a deadline of its own.
    pub async fn control_within(&mut self, op: &str, limit: Duration) -> Result<Value> {
        self.find(op, limit, |frame| frame["op"] == op).await
    }

    /// Waits for a `position`, or for anything that carries a cursor.
    pub async fn position(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.incoming.is_empty() {
            self.read(deadline).await.context("awaiting a position")?;
        }
        Ok(())
    }

    /// Sends `ping` and waits for its answer: whatever the edge had queued for this client before is here then.
    pub async fn sync(&mut self) -> Result<()> {
        self.send(&json!({"op": "ping"})).await?;
        self.control("pong").await.map(drop)
    }

    /// Control frames that were read and not taken.
    pub fn controls(&self) -> &VecDeque<Value> {
        &self.controls
    }

    /// Pushes that were read and not taken.
    pub fn pushes(&self) -> Vec<&Value> {
        let pushes = self.incoming.iter().filter_map(|incoming| match incoming {
            Incoming::Push(push, _) => Some(push),
            Incoming::Position(_) => None,
        });
        pushes.collect()
    }

    /// Waits for the close frame; its code.
    pub async fn close_code(&mut self) -> Result<u16> {
        match self.end().await? {
            End::Closed(code, _) => Ok(code),
            End::Gone(reason) => bail!("the connection ended without a close frame: {reason}"),
        }
    }

    /// Waits for the connection's end.
    pub async fn end(&mut self) -> Result<End> {
        self.end_within(PATIENCE).await
    }

    /// The same with a deadline of its own.
    pub async fn end_within(&mut self, limit: Duration) -> Result<End> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = &self.ended {
                return Ok(end.clone());
            }
            self.read(deadline).await.context("awaiting the end")?;
        }
    }

    /// Says goodbye.
    pub async fn leave(mut self) -> Result<()> {
        self.socket.close(None).await?;
        self.end().await.map(drop)
    }

    /// Resets the connection, as a phone that loses its network and is noticed.
    pub fn reset(self) {
        // Closing then sends RST. It fails only on a socket that is closed already.
        let _ = self.socket.get_ref().set_zero_linger();
    }

    async fn find(&mut self, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(index) = self.controls.iter().position(&wanted) {
                return self.controls.remove(index).context("just found");
            }
            let seen = self.controls.len();
            self.read(deadline)
                .await
                .with_context(|| format!("awaiting {what}; {seen} other control frames are here"))?;
        }
    }

    /// Reads one frame and sorts it. Errors at the deadline, and where the connection has ended.
    async fn read(&mut self, deadline: Instant) -> Result<()> {
        if let Some(end) = &self.ended {
            bail!("the connection has ended: {end:?}");
        }
        let message = timeout_at(deadline, self.socket.next()).await.context("nothing came in time")?;
        match message {
            Some(Ok(Message::Text(text))) => {
                let frame: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
                match frame["op"].as_str() {
                    None => self.incoming.push_back(Incoming::Push(frame, text.to_string())),
                    Some("position") => {
                        let cursor = frame["cursor"].as_str().context("a position without cursor")?;
                        self.incoming.push_back(Incoming::Position(cursor.to_owned()));
                    }
                    Some(_) => self.controls.push_back(frame),
                }
            }
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) =
                    frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                self.ended = Some(End::Closed(code, reason));
                // Lets the library answer it.
                let _ = timeout_at(deadline, self.socket.next()).await;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => self.ended = Some(End::Gone(error.to_string())),
            None => self.ended = Some(End::Gone("end of the stream".to_owned())),
        }
        Ok(())
    }
}

fn is_answer(frame: &Value) -> bool {
    frame["op"] == "ack" || frame["op"] == "nack"
}
