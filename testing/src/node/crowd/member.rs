//! One client of a crowd, as docs/protocol.md wants it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::ledger::{Kind, Ledger, Move};
use super::{SPEAKERS, Stage, identity};
use crate::client::{Client, End, Event};

/// Between two messages of a client at most, twice of what it is on average.
const PAUSE: Duration = Duration::from_secs(4);
/// A connection on which nothing at all came for so long is dead.
const SILENCE: Duration = Duration::from_secs(35);
/// Before the first reconnect after a connection that broke; twice of it before the next.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The edge goes.
const DRAIN: u16 = 1012;
/// By which a close may come before the end of the time that a client was given: it reads late on a busy machine.
const EARLY: Duration = Duration::from_millis(500);
/// Attempts in a row, after which something is broken for good.
const ATTEMPTS: u32 = 12;

pub(super) struct Member {
    number: usize,
    edges: SocketAddr,
    ledger: Arc<Ledger>,
    stage: watch::Receiver<Stage>,
    token: String,
    cursor: Option<String>,
    sent: u64,
    waiting: Option<Sent>,
}

/// A message without an answer.
struct Sent {
    id: String,
    frame: Value,
    to: Option<usize>,
}

/// A `drain` that was heard.
#[derive(Clone, Copy)]
struct Notice {
    told: Instant,
    within: Duration,
    go: Instant,
}

/// Why a connection is left.
enum Left {
    Goodbye,
    Drained(Notice),
    Lost,
}

/// Connects, and takes the `welcome`. An edge that turns newcomers away is an error: a client that comes through the Service within the endpoint lag
/// is let in, and later the Service knows better.
pub(super) async fn let_in(edges: SocketAddr, token: &str, cursor: Option<String>) -> Result<Client> {
    let mut client = Client::back(edges, token, cursor).await?;
    match client.event(SILENCE).await? {
        Event::Control(frame) if frame["op"] == "welcome" => {
            client.welcome = frame;
            Ok(client)
        }
        Event::End(End::Closed(DRAIN, reason)) => bail!("turned away: {reason}"),
        other => bail!("expected welcome, got {other:?}"),
    }
}

impl Member {
    pub(super) async fn join(
        number: usize,
        edges: SocketAddr,
        ticket: &str,
        ledger: Arc<Ledger>,
        stage: watch::Receiver<Stage>,
    ) -> Result<(Self, Client)> {
        let mut client = let_in(edges, ticket, None).await?;
        if client.welcome["cursor"].is_null() {
            client.unread().await?;
            client.position().await?;
        }
        let mut member =
            Self { number, edges, ledger, stage, token: String::new(), cursor: None, sent: 0, waiting: None };
        member.welcomed(&client);
        Ok((member, client))
    }

    fn welcomed(&mut self, client: &Client) {
        self.token = client.resume_token();
        if let Some(cursor) = client.welcome["cursor"].as_str() {
            self.cursor = Some(cursor.to_owned());
        }
    }

    /// Until the stage is [`Stage::Leaving`].
    pub(super) async fn live(mut self, mut client: Client) {
        loop {
            let left = self.talk(&mut client).await;
            self.cursor = client.newest().or(self.cursor.take());
            let back = match left {
                Left::Goodbye => {
                    if let Err(error) = part(client).await {
                        self.trouble(Kind::Broken, format!("saying goodbye: {error:#}"));
                    }
                    return;
                }
                // The new connection first, then the old one's end: what still comes on that comes on the new one as well.
                Left::Drained(notice) => {
                    let back = self.back().await;
                    if back.is_some() {
                        let Notice { told, within, .. } = notice;
                        self.ledger.moved(Move { client: self.number, told, within, back: Instant::now() });
                    }
                    if let Err(error) = part(client).await {
                        self.trouble(Kind::Broken, format!("leaving a draining edge: {error:#}"));
                    }
                    back
                }
                Left::Lost => {
                    sleep(backoff(0)).await;
                    self.back().await
                }
            };
            let Some(back) = back else { return };
            client = back;
            if let Some(sent) = &self.waiting
                && client.send(&sent.frame).await.is_err()
            {
                // What comes next is the connection's end.
            }
        }
    }

    /// Listens, and says something now and then, until this connection is to be left.
    async fn talk(&mut self, client: &mut Client) -> Left {
        let mut notice: Option<Notice> = None;
        let mut speak = Instant::now() + PAUSE.mul_f64(rand::random());
        loop {
            let stage = *self.stage.borrow_and_update();
            if stage == Stage::Leaving {
                return Left::Goodbye;
            }
            let speaks = stage == Stage::Talking && self.number.is_multiple_of(SPEAKERS);
            let due = match &notice {
                _ if self.waiting.is_some() => None,
                Some(notice) => Some(notice.go),
                None => speaks.then_some(speak),
            };
            tokio::select! {
                event = client.event(SILENCE) => match event {
                    Ok(Event::Push(push)) => self.ledger.came(self.number, push["id"].as_str().unwrap_or_default()),
                    Ok(Event::Control(frame)) if frame["op"] == "drain" => {
                        let within = Duration::from_millis(frame["reconnectWithinMs"].as_u64().unwrap_or_default());
                        let told = Instant::now();
                        notice = Some(Notice { told, within, go: told + within.mul_f64(rand::random()) });
                    }
                    Ok(Event::Control(frame)) => self.control(&frame),
                    Ok(Event::Position(_)) => {}
                    Ok(Event::End(end)) => {
                        if let (Some(notice), End::Closed(DRAIN, _)) = (notice, &end) {
                            self.sent_away(notice);
                            return Left::Drained(notice);
                        }
                        let kind = if matches!(end, End::Gone(_)) { Kind::Broken } else { Kind::Closed };
                        self.trouble(kind, format!("{end:?}"));
                        return Left::Lost;
                    }
                    Err(error) => {
                        self.trouble(Kind::Strange, format!("{error:#}"));
                        return Left::Lost;
                    }
                },
                () = async { if let Some(due) = due { sleep_until(due).await } else { std::future::pending().await } } => {
                    if let Some(notice) = notice {
                        return Left::Drained(notice);
                    }
                    self.speak(client).await;
                    speak = Instant::now() + PAUSE.mul_f64(rand::random());
                }
                _ = self.stage.changed() => {}
            }
        }
    }

    /// An edge closes when the time that it gave is over, and not before the client's sends have their answer.
    fn sent_away(&self, Notice { told, within, .. }: Notice) {
        let after = told.elapsed();
        if after + EARLY < within {
            self.trouble(Kind::Closed, format!("closed {after:?} after a drain that gave {within:?}"));
        }
        if let Some(sent) = &self.waiting {
            self.trouble(Kind::Unanswered, sent.id.clone());
        }
    }

    async fn speak(&mut self, client: &mut Client) {
        let size = self.ledger.size();
        let n = self.sent;
        self.sent += 1;
        let (id, frame, to) = if n.is_multiple_of(2) {
            let id = format!("report-{}-{n}", self.number);
            (id.clone(), json!({"id": id, "messageType": "report", "content": {}}), None)
        } else {
            let (id, to) = (format!("hello-{}-{n}", self.number), (self.number + size / 2) % size);
            (id.clone(), json!({"id": id, "messageType": "hello", "toUniqueId": identity(to), "content": {}}), Some(to))
        };
        self.ledger.sends();
        // Where it can't be sent the connection is at its end: it is repeated on the next.
        let _ = client.send(&frame).await;
        self.waiting = Some(Sent { id, frame, to });
    }

    fn control(&mut self, frame: &Value) {
        let op = frame["op"].as_str().unwrap_or_default();
        match (op, self.waiting.take_if(|sent| frame["id"] == sent.id)) {
            ("ack", Some(sent)) => self.ledger.acked(sent.id, sent.to),
            ("nack", Some(_)) => {
                self.ledger.refused();
                self.trouble(Kind::Nack, frame.to_string());
            }
            ("gap", _) => self.trouble(Kind::Gap, frame.to_string()),
            _ => self.trouble(Kind::Strange, frame.to_string()),
        }
    }

    /// A new connection at the place where it was. None: it gave up.
    async fn back(&mut self) -> Option<Client> {
        for attempt in 1..=ATTEMPTS {
            match let_in(self.edges, &self.token, self.cursor.clone()).await.context("coming back") {
                Ok(client) => {
                    if client.welcome["resumed"] == false {
                        self.trouble(Kind::Gap, client.welcome.to_string());
                    }
                    self.welcomed(&client);
                    return Some(client);
                }
                Err(error) => self.trouble(Kind::Refused, format!("{error:#}")),
            }
            sleep(backoff(attempt)).await;
        }
        self.trouble(Kind::Refused, "gave up");
        None
    }

    fn trouble(&self, kind: Kind, what: impl Into<String>) {
        self.ledger.trouble(self.number, kind, what.into());
    }
}

fn backoff(attempt: u32) -> Duration {
    BACKOFF_MAX.min(BACKOFF * 2_u32.saturating_pow(attempt)).mul_f64(rand::random())
}

/// Says goodbye as a client that means it, and waits for the end.
async fn part(mut client: Client) -> Result<()> {
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // It may be at its end already.
    let _ = client.send_message(Message::Close(Some(goodbye))).await;
    match client.end().await? {
        End::Closed(..) => Ok(()),
        End::Gone(reason) => bail!("ended without a close frame: {reason}"),
    }
}
