//! One connection of a client, from its upgrade to its end.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use wirepost_testing::client::{Client, End, Event};

use super::{Manner, Member, offset, offset_in};
use crate::plan::PLANS;
use crate::record::{ConnectionNo, Journal, Tags, What};
use crate::world::{STEP, Stage};

/// How often it sees what is due.
const TICK: Duration = Duration::from_millis(200);
/// Between two pings.
const PING: Duration = Duration::from_secs(3);
/// A connection on which nothing came for so long is dead.
const SILENCE: Duration = Duration::from_secs(10);
/// For the end of a connection that it leaves.
const PARTING: Duration = Duration::from_secs(15);
/// What an edge may say while this soak runs: it goes, it lacks something at the moment, the client is too slow, or is one too many of its
/// identity. None of them is the client's fault.
const EXPECTED_CODES: [u16; 6] = [1000, 1005, 1012, 1013, 4008, 4009];

/// The token is good no more.
const REFUSED: u16 = 3000;

/// Why a connection is left.
pub(super) enum Left {
    /// The client has had enough.
    Goodbye,
    /// The edge drains.
    Moving,
    /// The client's network changes.
    Reset,
    /// It has ended, or is dead.
    Lost(String),
}

/// What is due when.
struct Due {
    ping: Instant,
    leave: Instant,
    refresh: Instant,
    nap: Instant,
    /// When the drain's time is over for this client.
    go: Option<Instant>,
}

impl Member {
    pub(super) async fn talk(&mut self, client: &mut Client, connection: ConnectionNo) -> Left {
        let (mut due, mut heard) = (self.due(), Instant::now());
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.stage() == Stage::Leaving {
                return Left::Goodbye;
            }
            tokio::select! {
                event = client.event(SILENCE * 2) => {
                    heard = Instant::now();
                    match event {
                        Ok(event) => {
                            if let Some(left) = self.take(event, connection, &mut due) {
                                return left;
                            }
                        }
                        Err(error) => {
                            self.world.journal.broken(format!("{}: not a frame: {error:#}", self.unique_id));
                            return Left::Lost(format!("{error:#}"));
                        }
                    }
                }
                _ = ticks.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Left::Lost(format!("silent for {SILENCE:?}"));
                    }
                    match timeout(STEP, self.act(client, connection, &mut due)).await {
                        Ok(Ok(None)) => {}
                        Ok(Ok(Some(left))) => return left,
                        Ok(Err(error)) => return Left::Lost(format!("sending: {error:#}")),
                        Err(_) => return Left::Lost("nothing can be sent".to_owned()),
                    }
                    if self.manner == Manner::Slow && due.nap < Instant::now() && self.stage() == Stage::Talking {
                        tokio::time::sleep(self.chance.seconds(1.0, 6.0)).await;
                        (due.nap, heard) = (self.after(1.0, 4.0), Instant::now());
                    }
                }
            }
        }
    }

    fn after(&mut self, from: f64, to: f64) -> Instant {
        Instant::now() + self.chance.seconds(from, to)
    }

    fn due(&mut self) -> Due {
        let longest = if self.manner == Manner::Sleeper { 6.0 } else { 45.0 };
        Due {
            ping: Instant::now() + PING,
            leave: self.after(2.0, longest),
            refresh: self.after(1.0, 10.0),
            nap: self.after(1.0, 4.0),
            go: None,
        }
    }

    /// Writes down what came.
    fn take(&mut self, event: Event, connection: ConnectionNo, due: &mut Due) -> Option<Left> {
        let journal = &self.world.journal;
        match event {
            Event::Push(push) => {
                write_push(journal, connection, &push);
                if let Some(cursor) = push["cursor"].as_str() {
                    self.cursor = Some(cursor.to_owned());
                }
            }
            Event::Position(cursor) => {
                write_position(journal, connection, &cursor);
                self.cursor = Some(cursor);
            }
            Event::Control(frame) => match frame["op"].as_str().unwrap_or_default() {
                "welcome" => {
                    let resumed = frame["resumed"].as_bool();
                    journal.note(What::Welcome { connection, resumed, cursor: offset_in(&frame) });
                    self.token = frame["resumeToken"].as_str().map(str::to_owned);
                    self.resuming = false;
                    if let Some(cursor) = frame["cursor"].as_str() {
                        self.cursor = Some(cursor.to_owned());
                    } else if resumed == Some(false) {
                        self.cursor = None;
                    }
                }
                "gap" => write_gap(journal, connection, &frame),
                "drain" => {
                    let within = frame["reconnectWithinMs"].as_u64().unwrap_or_default() as f64 / 1000.0;
                    due.go = Some(self.after(0.0, within.max(0.001)));
                }
                "refreshed" => {
                    self.token = frame["resumeToken"].as_str().map(str::to_owned);
                    journal.note(What::Refreshed { connection, done: true });
                    if let Some(tags) = self.sends.refreshing.take() {
                        self.tags = tags;
                    }
                    due.refresh = self.after(2.0, 12.0);
                }
                "error" if frame["about"] == "refresh" => {
                    journal.note(What::Refreshed { connection, done: false });
                    self.sends.refreshing = None;
                    due.refresh = self.after(2.0, 12.0);
                }
                "ack" | "nack" => {
                    let pace = self.chance.seconds(0.3, 2.0);
                    self.sends.answer(&frame, pace);
                }
                "pong" => {}
                _ => journal.broken(format!("{}: a frame that it did not expect: {frame}", self.unique_id)),
            },
            Event::End(end) => {
                // A newer token of this session, which was lost on its way, replaced this one: a new ticket. Another edge
                // hears of that by the broker, so it may have welcomed this client before.
                let replaced = self.by_token && matches!(end, End::Closed(REFUSED, _));
                if replaced {
                    self.token = None;
                }
                if let End::Closed(code, reason) = &end
                    && !EXPECTED_CODES.contains(code)
                    && !replaced
                {
                    journal.broken(format!("{}: closed with {code}: {reason}", self.unique_id));
                }
                return Some(Left::Lost(format!("{end:?}")));
            }
        }
        None
    }

    /// Does what is due.
    async fn act(
        &mut self,
        client: &mut Client,
        connection: ConnectionNo,
        due: &mut Due,
    ) -> anyhow::Result<Option<Left>> {
        let (now, talking) = (Instant::now(), self.stage() == Stage::Talking);
        if due.go.is_some_and(|go| go < now) && !self.sends.waits() {
            return Ok(Some(Left::Moving));
        }
        if due.leave < now && talking && self.by.is_none() {
            return Ok(Some(match self.chance.below(4) {
                0 => Left::Reset,
                1 => Left::Lost("the client was ended".to_owned()),
                2 if !self.sends.waits() => Left::Moving,
                _ => Left::Goodbye,
            }));
        }
        // Before its welcome a client says nothing: an edge that hears from a connection takes the former token for replaced.
        if self.manner == Manner::Plain || self.resuming {
            return Ok(None);
        }
        if due.ping < now {
            due.ping = now + PING;
            client.send(&json!({"op": "ping"})).await?;
        }
        if self.plan.tags && due.refresh < now && talking && self.sends.refreshing.is_none() {
            due.refresh = self.after(2.0, 12.0);
            let tags: Tags = self.some_tags();
            if let Ok(place) = self.world.fleet.pick(&mut self.chance)
                && let Ok(ticket) = self.ticket(&place, &tags).await
            {
                self.world.journal.note(What::Refreshing { connection, tags: tags.clone() });
                self.sends.refreshing = Some(tags);
                client.send(&json!({"op": "refresh", "token": ticket})).await?;
            }
        }
        // A draining edge answers what it has; the rest goes to the next one.
        if due.go.is_none() {
            let floods = self.manner == Manner::Flooding && talking;
            self.sends.send(client, talking, floods, &mut self.chance).await?;
        }
        Ok(None)
    }
}

fn write_push(journal: &Journal, connection: ConnectionNo, push: &Value) {
    let message = push["id"].as_str().and_then(|id| journal.find(id));
    if let Some(whose) = message.map(|message| PLANS[journal.business_of(message)].name)
        && push["businessType"] != whose
    {
        journal.broken(format!("a message of {whose} came as one of {}: {}", push["businessType"], push["id"]));
    }
    journal.note(What::Got { connection, message, cursor: offset_in(push) });
}

fn write_position(journal: &Journal, connection: ConnectionNo, cursor: &str) {
    match offset(cursor) {
        Some(cursor) => journal.note(What::Position { connection, cursor }),
        None => journal.broken(format!("a position that is none: {cursor}")),
    }
}

fn write_gap(journal: &Journal, connection: ConnectionNo, frame: &Value) {
    let reason = frame["reason"].as_str().unwrap_or_default().to_owned();
    journal.note(What::Gap { connection, reason });
}

/// Says goodbye, and writes down what still comes.
pub(super) async fn leave(journal: Journal, mut client: Client, connection: ConnectionNo) {
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let parting = async {
        // It may be at its end already.
        let _ = client.send_message(Message::Close(Some(goodbye))).await;
        loop {
            match client.event(PARTING).await {
                Ok(Event::Push(push)) => write_push(&journal, connection, &push),
                Ok(Event::Position(cursor)) => write_position(&journal, connection, &cursor),
                Ok(Event::Control(frame)) if frame["op"] == "gap" => write_gap(&journal, connection, &frame),
                Ok(Event::Control(_)) => {}
                Ok(Event::End(_)) | Err(_) => return,
            }
        }
    };
    let _ = timeout(PARTING, parting).await;
    journal.note(What::Ended { connection, how: "left by the client".to_owned() });
}
