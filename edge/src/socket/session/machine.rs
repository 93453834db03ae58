//! The state machine of one connection, without I/O: from what came in to what is to be done.
//!
//! *Flow*: [`Machine::handle`] takes an [`Input`] (from the socket, the broker, a check, the clock) with the time, and
//! returns [`Action`]s, to be performed in order. It reads no clock, and neither waits nor writes, so a test can drive
//! it through any sequence. *Guarantees*: each message that is read gets one answer, unless the connection ends before;
//! the first cause of an end counts; after [`Action::Close`] nothing is queued for the client, after [`Action::End`]
//! nothing happens at all. *Bound*: nothing grows. Unconfirmed messages are counted here and kept by the task that
//! performs the actions; at the window's limit [`Machine::may_read`] is false.

mod incoming;
mod reply;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::frames::CloseCode;

use super::{end::End, reports::Reported};
use crate::{
    broker::PublishError,
    business::{Business, share::Share},
    clock,
    drain::DrainShare,
    identity::{
        grant::Grant,
        ticket::{self, Purpose, Ticket},
    },
    push::receipts::Receipts,
    revocation::gate::Gate,
    socket::{
        flood::ConnectionBucket,
        receive::{Nack, Prepared},
    },
};
pub(super) use reply::Reply;

/// Fewer bytes than this at a time are charged like a frame.
const TRICKLE: usize = 64;
/// How long before the end of a session its client is notified.
const EXPIRING_BEFORE: Duration = Duration::from_mins(1);

/// The time, by both clocks: intervals are measured by one, sessions end by the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    /// Ms since the epoch.
    pub(super) ms: i64,
}

impl Now {
    /// Reads both clocks.
    pub(super) fn read() -> Self {
        Self { instant: Instant::now(), ms: clock::now_ms() }
    }

    fn at(self, ms: i64) -> Instant {
        self.instant + Duration::from_millis((ms - self.ms).max(0) as u64)
    }
}

/// The rules of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Unconfirmed messages at most.
    pub(super) window: usize,
    /// An idle client is pinged after this time; after twice as long without an answer it is dead.
    pub(super) heartbeat: Duration,
    /// Longest time without progress in writing.
    pub(super) write_timeout: Duration,
}

/// What came in.
pub(super) enum Input<'a> {
    /// A text message.
    Text {
        text: &'a Utf8Bytes,
        /// As configured now.
        business: &'a Arc<Business>,
        /// What the client may report as received.
        receipts: &'a Receipts,
    },
    /// A ping, a pong, or a fragment that does not end its message.
    Frame,
    /// Bytes of something that is not complete.
    Progress(usize),
    /// What [`Action::Check`] asked for, and the bytes of the message.
    Checked(Result<Prepared, Nack>, usize),
    /// The broker's answer to [`Action::Publish`].
    Confirmed(String, Result<(), PublishError>),
    /// The outcome of [`Action::Report`].
    Reported(Reported),
    /// The edge drains; this is the connection's part of it.
    Drain(DrainShare),
    /// The deadline has passed, or the timer fired early.
    Time(SocketState),
    /// The peer broke a rule.
    Broken(CloseCode),
    /// The queue is closing with this code, and everything that had to be written is written.
    Flushed(CloseCode),
    /// The peer sent a close frame with this code (1005: without one).
    PeerClosed(u16),
    /// The connection was lost.
    Gone,
}

/// The state of the socket, as far as deadlines depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SocketState {
    /// Since when the peer has accepted nothing although something is to be written.
    pub(super) stalled_since: Option<Instant>,
    /// Queued frames are written before the close frame, see [`CloseCode::flushes`]; only set while the peer stalls.
    pub(super) flushing: bool,
    /// When an unfinished message is given up, and the close code then.
    pub(super) message_due: Option<(Instant, CloseCode)>,
    /// A large message waits for room, and the socket is not read: silence means nothing.
    pub(super) awaits_room: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Queue this for the client.
    Reply(Reply),
    /// Queue a ping.
    Ping,
    /// Publish; the outcome is an [`Input::Confirmed`].
    Publish(Prepared),
    /// Check this message off this thread; the outcome is an [`Input::Checked`].
    Check(Arc<Business>, Utf8Bytes),
    /// Replace the connection's tags.
    SetTags(Vec<String>),
    /// The session rests on this and ends then, ms since the epoch.
    SetSession(Grant, i64),
    /// Report to the business that the client received these messages; the outcome is an [`Input::Reported`].
    Report(Vec<String>),
    /// Count receipts that name no message.
    CountRefusedReceipts(usize),
    /// A token that should prolong the session was refused.
    RefreshRefused(String),
    /// Count that the socket is not read for a while.
    CountSlowed,
    /// Close the queue: nothing more is accepted, and [`Input::Flushed`] follows.
    Close(CloseCode),
    /// The connection ends like this. The last action.
    End(End),
}

/// Performs actions.
pub(super) type Perform<'a> = dyn FnMut(Action) + 'a;

/// See the module.
#[derive(Debug)]
pub(super) struct Machine {
    rules: Rules,
    /// Whether control frames are on.
    control: bool,
    gate: Arc<Gate>,
    opened_by: OpenedBy,
    /// Who the client is, and until when. A refresh replaces the tags and the end.
    ticket: Ticket,
    /// Limits its messages (`messagesPerSecond` and `burst`) and its input that brings the business nothing.
    flood: ConnectionBucket,
    /// Limits the messages of all clients of the business.
    share: Arc<Share>,
    /// The socket is not read before this time.
    paused_until: Option<Instant>,
    unconfirmed: usize,
    /// A message's content is being checked; nothing is read meanwhile, so that messages keep their order.
    checking: bool,
    /// When to notify the client of the session's end; `None` = done.
    expiring_at: Option<i64>,
    /// Last sign of life.
    heard: Instant,
    pinged: bool,
    drain: Option<DrainShare>,
    phase: Phase,
}

/// What the client connected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenedBy {
    /// A resume token, which is good until the client shows that it has the next one.
    Resume,
    /// A token that is good no more.
    Spent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Closing(CloseCode),
    Ended,
}

impl Machine {
    /// A connection that starts now.
    pub(super) fn new(
        rules: Rules,
        control: bool,
        ticket: Ticket,
        gate: Arc<Gate>,
        (flood, share): (ConnectionBucket, Arc<Share>),
        now: Now,
    ) -> Self {
        Self {
            rules,
            control,
            opened_by: if control && ticket.purpose == Purpose::Resume { OpenedBy::Resume } else { OpenedBy::Spent },
            gate,
            expiring_at: Some(expiring_at(ticket.session_ends_at, now)),
            ticket,
            flood,
            share,
            paused_until: None,
            unconfirmed: 0,
            checking: false,
            heard: now.instant,
            pinged: false,
            drain: None,
            phase: Phase::Open,
        }
    }

    /// Whether the socket is to be read.
    pub(super) fn may_read(&self) -> bool {
        self.unconfirmed < self.rules.window && self.paused_until.is_none() && !self.checking
    }

    /// When [`Input::Time`] is due at the latest.
    pub(super) fn deadline(&self, socket: &SocketState, now: Now) -> Instant {
        let quiet = self.heard + self.rules.heartbeat * if self.pinged { 2 } else { 1 };
        let mut due = quiet;
        // Once it is closing only a flush has this deadline: one that stays in the past would keep the socket, which comes
        // last, from being polled.
        let may_stall = self.phase == Phase::Open || socket.flushing;
        let stalled = socket.stalled_since.filter(|_| may_stall).map(|since| since + self.rules.write_timeout);
        for at in [stalled, self.paused_until].into_iter().flatten() {
            due = due.min(at);
        }
        // Once it is closing, nothing new begins.
        if self.phase == Phase::Open {
            due = due.min(now.at(self.expiring_at.unwrap_or(self.ticket.session_ends_at)));
            for at in [socket.message_due.map(|(at, _)| at), self.drain.map(|share| share.due)].into_iter().flatten() {
                due = due.min(at);
            }
        }
        due
    }

    /// Handles an input and passes the actions to `perform`.
    pub(super) fn handle(&mut self, input: Input<'_>, now: Now, perform: &mut Perform<'_>) {
        if self.phase == Phase::Ended {
            return;
        }
        match input {
            Input::Text { text, business, receipts } => {
                self.alive(now);
                // Its answer could not be sent.
                if self.phase == Phase::Open {
                    self.text(text, business, receipts, now, perform);
                }
            }
            Input::Frame => self.trickle(now, perform),
            Input::Progress(bytes) if (1..TRICKLE).contains(&bytes) => self.trickle(now, perform),
            Input::Progress(_) => self.alive(now),
            Input::Checked(prepared, bytes) => {
                self.checking = false;
                if self.phase == Phase::Open {
                    self.publish(prepared, bytes, now, perform);
                }
            }
            Input::Confirmed(id, outcome) => self.confirmed(id, outcome, perform),
            Input::Reported(reported) => self.reported(reported, perform),
            // One that has been told to leave is leaving.
            Input::Drain(share) => self.drain = self.drain.filter(DrainShare::is_announced).or(Some(share)),
            Input::Time(socket) => self.time(socket, now, perform),
            Input::Broken(code) => {
                self.close(code, perform);
                self.end(End::Close(self.cause().unwrap_or(code)), perform);
            }
            // The queue keeps its first cause; what this machine wanted since came too late.
            Input::Flushed(code) => self.end(End::Close(code), perform),
            Input::PeerClosed(code) => self.end(End::Answer(code), perform),
            Input::Gone => self.end(End::Vanished("the peer vanished"), perform),
        }
    }

    fn alive(&mut self, now: Now) {
        self.heard = now.instant;
        self.pinged = false;
        // Nothing is read before `welcome` is on its way: whoever answers lives on this connection.
        if std::mem::replace(&mut self.opened_by, OpenedBy::Spent) == OpenedBy::Resume {
            let Ticket { business, grant, session_ends_at, .. } = &self.ticket;
            self.gate.replace(business, &grant.next(), *session_ends_at, now.ms);
        }
    }

    /// Something without content: it is charged like a frame.
    fn trickle(&mut self, now: Now, perform: &mut Perform<'_>) {
        self.alive(now);
        self.charge(0, now, perform);
    }

    /// Charges input that is useless to the business, of this many bytes; beyond the burst the socket is not read
    /// for a while.
    fn charge(&mut self, bytes: usize, now: Now, perform: &mut Perform<'_>) {
        if let Some(until) = self.flood.charge(bytes, now.instant) {
            if self.paused_until.is_none() {
                perform(Action::CountSlowed);
            }
            self.paused_until = Some(until);
        }
    }

    fn time(&mut self, socket: SocketState, now: Now, perform: &mut Perform<'_>) {
        if self.paused_until.is_some_and(|until| now.instant >= until) {
            self.paused_until = None;
        }
        self.session_end(now, perform);
        if socket.stalled_since.is_some_and(|since| now.instant >= since + self.rules.write_timeout) {
            // With any other cause the socket closes at its next poll, without waiting for the peer.
            if socket.flushing {
                return self.end(End::Vanished("it took nothing while its queue was flushed"), perform);
            }
            self.close(CloseCode::TooSlow, perform);
        }
        if let Some((_, code)) = socket.message_due.filter(|(due, _)| now.instant >= *due) {
            self.close(code, perform);
        }
        if socket.awaits_room {
            self.alive(now);
        }
        if now.instant >= self.heard + self.rules.heartbeat * 2 {
            return self.end(End::Vanished("no sign of life within two heartbeats"), perform);
        }
        if !self.pinged && now.instant >= self.heard + self.rules.heartbeat {
            self.pinged = true;
            if self.phase == Phase::Open {
                perform(Action::Ping);
            }
        }
        self.leave(now, perform);
    }

    fn session_end(&mut self, now: Now, perform: &mut Perform<'_>) {
        let ends_at = self.ticket.session_ends_at;
        if now.ms >= ends_at {
            self.close(CloseCode::SessionOver, perform);
        } else if self.expiring_at.is_some_and(|due| now.ms >= due) {
            self.expiring_at = None;
            self.reply(Reply::Expiring { in_seconds: (ends_at - now.ms).max(0) as u64 / 1000 }, perform);
        }
    }

    /// The drain: the client is notified, and closed a while later.
    fn leave(&mut self, now: Now, perform: &mut Perform<'_>) {
        let Some(share) = self.drain.as_mut().filter(|share| now.instant >= share.due) else { return };
        match share.announce(now.instant) {
            Some(reconnect_within) => self.reply(Reply::Drain { reconnect_within }, perform),
            // Messages that still wait for their confirm get their answer first.
            None if (self.unconfirmed > 0 || self.checking) && !share.exhausted(now.instant) => {
                share.postpone(now.instant);
            }
            None => self.close(CloseCode::Drain, perform),
        }
    }

    /// The session ends then, if that is earlier.
    pub(super) fn shorten(&mut self, ends_at: i64, now: Now) {
        if ends_at < self.ticket.session_ends_at {
            self.ticket.session_ends_at = ends_at;
            self.expiring_at = Some(expiring_at(ends_at, now));
        }
    }

    /// The token with which the client resumes this session.
    pub(super) fn resume_token(&self) -> String {
        ticket::seal(&self.gate.keys, &self.ticket.to_resume())
    }

    /// End of the session, ms since the epoch.
    pub(super) fn session_ends_at(&self) -> i64 {
        self.ticket.session_ends_at
    }

    fn reply(&self, reply: Reply, perform: &mut Perform<'_>) {
        if self.phase == Phase::Open {
            perform(Action::Reply(reply));
        }
    }

    fn close(&mut self, code: CloseCode, perform: &mut Perform<'_>) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing(code);
            perform(Action::Close(code));
        }
    }

    fn end(&mut self, end: End, perform: &mut Perform<'_>) {
        self.phase = Phase::Ended;
        perform(Action::End(end));
    }

    /// Why it is closing, if that was decided here.
    fn cause(&self) -> Option<CloseCode> {
        match self.phase {
            Phase::Closing(code) => Some(code),
            Phase::Open | Phase::Ended => None,
        }
    }
}

/// When to notify the client of the end: a minute before; in short sessions after two thirds.
fn expiring_at(ends_at: i64, now: Now) -> i64 {
    let left = (ends_at - now.ms).max(0);
    ends_at - (EXPIRING_BEFORE.as_millis() as i64).min(left / 3)
}

#[cfg(test)]
mod tests;
