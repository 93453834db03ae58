//! The task of one connection: from the upgrade to the close frame.
//!
//! Owns the socket, the window of unconfirmed messages and the catch-up. Ends for one cause, which gives the close code, the log line and the
//! counters.

mod incoming;

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use governor::DefaultDirectRateLimiter;
use tokio::time::Instant;
use wirepost_core::{
    edge_config::Limits,
    frames::{CloseCode, ServerFrame},
};

use super::{
    charge::{Payer, Tab},
    driver::{self, Driver, Io},
    receive::{Nack, Prepared},
    shared::Shared,
    window::Window,
    wire::Wire,
    written::Written,
};
use crate::{
    business::events::{self, Event},
    clock,
    drain::Share,
    identity::ticket::{self, Ticket},
    metrics::label,
    push::{
        catch_up::{self, From},
        context::HubContext,
        greeting::Greeting,
        hub::Hub,
        mailbox::{
            Conn, Identity,
            outbound::{Bounds, Item, Outbound},
        },
        receipts::Receipts,
    },
};

/// Of a connection that ended without a close frame (RFC 6455, section 7.1.5).
const ABNORMAL: u16 = 1006;
/// Fewer bytes than that at a time are charged like a frame.
const TRICKLE: usize = 64;
/// How long before its end a session's client is told.
const EXPIRING_BEFORE: Duration = Duration::from_mins(1);

/// A message that is being checked, and its bytes.
type Checking = BoxFuture<'static, (Result<Prepared, Nack>, usize)>;

/// What a connection begins with.
pub struct Session {
    /// What all connections share.
    pub shared: Arc<Shared>,
    /// The business.
    pub hub: Arc<Hub>,
    /// Who, and until when.
    pub ticket: Ticket,
    /// Where to begin.
    pub from: From,
    /// Whether control frames are on.
    pub control: bool,
    /// Local number of the connection.
    pub number: u64,
    /// Who pays for what it sends.
    pub payer: Payer,
    /// Counts the bytes written to the peer.
    pub written: Written,
}

impl Session {
    /// Runs the connection to its end.
    pub async fn run(self, wire: Wire) {
        let metrics = Arc::clone(&self.hub.context.metrics);
        metrics.connections.inc();
        metrics.connections_total.inc();
        let settings = &self.hub.context.settings;
        let bounds = Bounds { messages: settings.outbound_messages, bytes: settings.outbound_bytes };
        let identity = Identity {
            unique_id: self.ticket.unique_id.clone(),
            client_type: self.ticket.client_type.clone(),
            tags: self.ticket.tags.clone(),
        };
        let backlog = Arc::clone(&self.hub.context.backlog);
        let outbound = Outbound::new(bounds, metrics.outbound_bytes.clone(), backlog);
        let mut conn = Conn::new(self.number, &identity, self.control, outbound);
        conn.receipts = Receipts::new(metrics.receipts.get_or_create_owned(&label("forgotten")));
        let conn = Arc::new(conn);
        let left = Leave { hub: &self.hub, conn: &conn };
        self.hub.enter(&conn, &identity.tags);
        self.emit(&Event::Connected {
            connection_id: &conn.id,
            unique_id: &conn.unique_id,
            client_type: &conn.client_type,
        });
        let end = Running::new(&self, Arc::clone(&conn), identity).run(wire).await;
        drop(left);
        self.emit(&Event::Disconnected {
            connection_id: &conn.id,
            unique_id: &conn.unique_id,
            client_type: &conn.client_type,
            code: end.code,
            reason: end.reason,
        });
        metrics.connections.dec();
        metrics.closes.get_or_create(&label(end.label)).inc();
        tracing::debug!(business = %self.hub.name, connection = conn.id, code = end.code, reason = end.reason, "connection ended");
    }

    fn emit(&self, event: &Event<'_>) {
        let HubContext { broker, settings, .. } = &*self.hub.context;
        events::emit(broker.as_ref(), &self.hub.business(), &settings.edge, event);
    }

    fn resume_token(&self, identity: &Identity, ends_at: i64) -> String {
        let session = Ticket { tags: identity.tags.clone(), session_ends_at: ends_at, ..self.ticket.clone() };
        ticket::seal(&self.shared.keys, &session.to_resume())
    }
}

/// Takes the connection out of the registry, however its task ends.
struct Leave<'a> {
    hub: &'a Hub,
    conn: &'a Conn,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.hub.leave(self.conn);
    }
}

/// Why a connection ended.
struct Ended {
    code: u16,
    reason: &'static str,
    label: &'static str,
}

impl Ended {
    fn by(code: CloseCode) -> Self {
        Self { code: code.code(), reason: code.reason(), label: code.label() }
    }

    /// Without a close frame.
    fn vanished(reason: &'static str) -> Self {
        Self { code: ABNORMAL, reason, label: "vanished" }
    }
}

/// The parts that change while a connection lives.
struct Running<'s> {
    session: &'s Session,
    conn: Arc<Conn>,
    identity: Identity,
    window: Window,
    limiter: Option<(Limits, DefaultDirectRateLimiter)>,
    /// What it owes for input that brings the business nothing.
    tab: Tab,
    /// The message whose content is being checked, at most one; nothing is read meanwhile.
    checking: Option<Checking>,
    /// The socket is not read before.
    paused_until: Option<Instant>,
    ends_at: i64,
    expiring_at: Option<i64>,
    heard: Instant,
    pinged: bool,
    drain: Option<Share>,
}

impl<'s> Running<'s> {
    fn new(session: &'s Session, conn: Arc<Conn>, identity: Identity) -> Self {
        let ends_at = session.ticket.session_ends_at;
        Self {
            session,
            conn,
            identity,
            window: Window::default(),
            limiter: None,
            tab: Tab::open(&session.shared.charges, session.payer),
            checking: None,
            paused_until: None,
            ends_at,
            expiring_at: Some(expiring_at(ends_at)),
            heard: Instant::now(),
            pinged: false,
            drain: None,
        }
    }

    async fn run(mut self, wire: Wire) -> Ended {
        let (shared, context) = (Arc::clone(&self.session.shared), Arc::clone(&self.session.hub.context));
        let limits = driver::Limits {
            backlog: Arc::clone(&context.backlog),
            share: shared.inbound.share(&self.session.hub.name),
            read_timeout: context.settings.read_timeout,
        };
        let (conn, metrics) = (Arc::clone(&self.conn), Arc::clone(&context.metrics));
        let mut driver = Driver::new(wire, conn, metrics, self.session.written.clone(), limits);
        let mut catch_up: Option<BoxFuture<'_, ()>> = Some(self.catch_up());
        let mut draining = shared.drain.subscribe();
        let timer = tokio::time::sleep_until(self.deadline(&mut driver));
        tokio::pin!(timer);
        loop {
            let room =
                self.window.len() < context.settings.window && self.paused_until.is_none() && self.checking.is_none();
            let conn = Arc::clone(&self.conn);
            let may_read = move || room && conn.is_greeted();
            let deadline = self.deadline(&mut driver);
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            tokio::select! {
                io = driver.next(may_read) => match io {
                    Io::Text(text) => {
                        self.alive();
                        self.text(&text);
                    }
                    // A trickle costs as much as so many frames.
                    Io::Alive | Io::Fragment | Io::Progress(1..TRICKLE) => {
                        self.alive();
                        self.charge(0);
                    }
                    Io::Progress(_) => self.alive(),
                    Io::Stalled => {}
                    Io::Closed(code) => {
                        driver.finish().await;
                        return Ended { code, ..Ended::by(CloseCode::Normal) };
                    }
                    Io::Gone => return Ended::vanished("the peer vanished"),
                    Io::Binary(_) => return end(&self.conn, driver, CloseCode::Binary).await,
                    Io::Broken(code) | Io::Goodbye(code) => return end(&self.conn, driver, code).await,
                },
                () = async { if let Some(catch_up) = catch_up.as_mut() { catch_up.await } else { std::future::pending().await } } => catch_up = None,
                (prepared, bytes) = async { if let Some(checking) = self.checking.as_mut() { checking.await } else { std::future::pending().await } } => {
                    self.checking = None;
                    self.publish(prepared, bytes);
                }
                (id, outcome) = self.window.next() => self.confirmed(&id, outcome),
                share = draining.share() => self.drain = Some(share),
                () = &mut timer => if let Some(ended) = self.timeout(&mut driver) {
                    return ended;
                },
            }
        }
    }

    fn catch_up(&self) -> BoxFuture<'s, ()> {
        let session = self.session;
        let conn = Arc::clone(&self.conn);
        let resume_token = session.resume_token(&self.identity, self.ends_at);
        let mut greeting = Greeting::new(&session.hub, Arc::clone(&conn), resume_token, self.ends_at);
        async move { catch_up::run(&session.hub, &conn, session.from, &mut greeting).await }.boxed()
    }

    fn alive(&mut self) {
        self.heard = Instant::now();
        self.pinged = false;
    }

    // --- time

    fn deadline(&self, driver: &mut Driver) -> Instant {
        let settings = &self.session.hub.context.settings;
        let quiet = self.heard + settings.heartbeat * if self.pinged { 2 } else { 1 };
        [
            Some(quiet),
            Some(at(self.expiring_at.unwrap_or(self.ends_at))),
            driver.stalled_since().map(|since| since + settings.write_timeout),
            driver.upload_due().map(|(due, _)| due),
            self.paused_until,
            self.drain.as_ref().map(|share| share.due),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(quiet)
    }

    /// What is due now. Some: the connection ends without a close frame.
    fn timeout(&mut self, driver: &mut Driver) -> Option<Ended> {
        let settings = &self.session.hub.context.settings;
        let (now, now_ms) = (Instant::now(), clock::now_ms());
        if self.paused_until.is_some_and(|until| now >= until) {
            self.paused_until = None;
        }
        if now_ms >= self.ends_at {
            self.conn.outbound.close(CloseCode::SessionOver);
        } else if self.expiring_at.is_some_and(|due| now_ms >= due) {
            self.expiring_at = None;
            let in_seconds = (self.ends_at - now_ms).max(0) as u64 / 1000;
            self.conn.control(ServerFrame::Expiring { in_seconds }.to_text());
        }
        if driver.stalled_since().is_some_and(|since| now >= since + settings.write_timeout) {
            // Any other cause ends by the driver, with its code: this timer may fire again before.
            if self.conn.outbound.closing().is_some_and(CloseCode::flushes) {
                return Some(Ended::vanished("it took nothing while its queue was flushed"));
            }
            self.conn.outbound.close(CloseCode::TooSlow);
        }
        if let Some((_, code)) = driver.upload_due().filter(|(due, _)| now >= *due) {
            self.conn.outbound.close(code);
        }
        if driver.awaits_room() {
            self.alive();
        }
        if now >= self.heard + settings.heartbeat * 2 {
            return Some(Ended::vanished("no sign of life within two heartbeats"));
        }
        if !self.pinged && now >= self.heard + settings.heartbeat {
            self.pinged = true;
            self.conn.outbound.push(Item::ping());
        }
        if let Some(share) = self.drain.as_mut().filter(|share| now >= share.due) {
            match share.told() {
                Some(reconnect_within) => {
                    let reconnect_within_ms = reconnect_within.as_millis() as u64;
                    self.conn.control(ServerFrame::Drain { reconnect_within_ms }.to_text());
                }
                // Sends that still wait for their confirm get their answer first.
                None if (!self.window.is_empty() || self.checking.is_some()) && !share.exhausted(now) => {
                    share.postpone();
                }
                None => self.conn.outbound.close(CloseCode::Drain),
            }
        }
        None
    }
}

/// Says goodbye.
async fn end(conn: &Conn, driver: Driver, code: CloseCode) -> Ended {
    conn.outbound.close(code);
    driver.close(code).await;
    Ended::by(code)
}

/// When to tell of the end: a minute before, in short sessions after two thirds.
fn expiring_at(ends_at: i64) -> i64 {
    let left = (ends_at - clock::now_ms()).max(0);
    ends_at - (EXPIRING_BEFORE.as_millis() as i64).min(left / 3)
}

fn at(ms: i64) -> Instant {
    Instant::now() + Duration::from_millis((ms - clock::now_ms()).max(0) as u64)
}
