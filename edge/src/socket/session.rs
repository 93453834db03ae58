//! The task of one connection: from the upgrade to the close frame.
//!
//! A state machine without I/O ([`machine`]) decides what a connection does. This task passes it the events from the
//! socket, the broker, the checks and the clock, and performs its actions. The task owns the socket, the unconfirmed
//! messages and the catch-up. It ends for one cause, which decides the close code, the log line and the counters.

mod effects;
mod end;
mod life;
mod line;
mod machine;
mod peer;
mod reports;
#[cfg(test)]
mod tests;

use std::{future::pending, pin::pin, sync::Arc, task::Context};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep_until};
use wirepost_core::frames::CloseCode;

use super::{
    driver::{Driver, Limits, SocketEvent},
    flood::{ConnectionBucket, IdentityKey},
    receive::{Nack, Prepared},
    shared::Shared,
    window::Outcome,
    wire::Wire,
    write_progress::WriteProgress,
};
use crate::{
    address::ClientAddress,
    compression::Compression,
    drain::{DrainShare, Draining},
    identity::ticket::Ticket,
    ids,
    metrics::label,
    push::{
        catch_up::{self, StartAt},
        greeting::Greeting,
        hub::Hub,
        mailbox::{
            Mailbox,
            outbound::{Bounds, Outbound},
        },
        receipts::Receipts,
    },
    turn,
};
use effects::Effects;
use end::End;
use line::Line;
use machine::{Action, Input, Machine, Now, Rules, SocketState};
use peer::Peer;
use reports::Reported;

/// What a connection starts with.
pub struct Session {
    /// What all connections share.
    pub shared: Arc<Shared>,
    /// The business.
    pub hub: Arc<Hub>,
    /// Whose connection it is, and until when.
    pub ticket: Ticket,
    /// The page's origin, if the business declares it.
    pub origin: Option<Box<str>>,
    /// Where the client is, for whoever audits.
    pub address: ClientAddress,
    /// Where to start.
    pub start: StartAt,
    /// Whether control frames are on.
    pub control: bool,
    /// Whether messages are compressed.
    pub compression: Compression,
    /// Local number of the connection.
    pub number: u64,
    /// Whose bucket is charged for what it sends.
    pub key: IdentityKey,
    /// Counts the bytes written to the peer.
    pub written: WriteProgress,
}

impl Session {
    /// Runs the connection to its end.
    pub fn run(self, wire: Wire) -> impl Future<Output = ()> + Send {
        let written = self.written.clone();
        self.start(|hub, shared, mailbox| {
            let share = shared.inbound.share(&hub.name);
            share.limit(hub.business().config.limits.per_edge.memory_bytes);
            let limits =
                Limits { backlog: Arc::clone(&hub.backlog), share, read_timeout: hub.context.settings.read_timeout };
            Driver::new(wire, Arc::clone(mailbox), Arc::clone(&hub.context.metrics), written, limits)
        })
        .run()
    }

    /// Registers the connection, with any peer: a test has one without a socket.
    fn start<P: Peer>(self, connect: impl FnOnce(&Hub, &Shared, &Arc<Mailbox>) -> P) -> Running<P> {
        let Self { shared, hub, ticket, origin, address, start, control, compression, number, key, written: _ } = self;
        let (metrics, settings) = (&hub.context.metrics, &hub.context.settings);
        metrics.connections.inc();
        metrics.connections_total.inc();
        metrics.compressing.inc_by(i64::from(compression.is_on()));
        let bounds = Bounds { messages: settings.outbound_messages, bytes: settings.outbound_bytes };
        let backlog = Arc::clone(&hub.backlog);
        let outbound = Outbound::new(bounds, metrics.outbound_bytes.clone(), backlog);
        let mut mailbox = Mailbox::new(number, &ticket.unique_id, &ticket.client_type, control, outbound);
        mailbox.id = ids::of_session(ticket.grant.session);
        mailbox.origin = origin;
        mailbox.set_session(ticket.grant, ticket.session_ends_at);
        mailbox.compression = compression;
        mailbox.receipts = Receipts::new(metrics.receipts.get_or_create_owned(&label("forgotten")));
        let mailbox = Arc::new(mailbox);
        let effects = Effects::new(Arc::clone(&hub), shared, Arc::clone(&mailbox), address);
        let shared = &*effects.shared;
        hub.enter(&mailbox, &ticket.tags);
        // Whatever has ended it since it was admitted: what ends it from now on finds it in the registry.
        hub.hold_to_declaration(&mailbox);
        if shared.gate.revocations.end(&hub.name, &ticket.unique_id, &ticket.grant) {
            mailbox.outbound.close(CloseCode::Revoked);
        }
        let rules =
            Rules { window: settings.window, heartbeat: settings.heartbeat, write_timeout: settings.write_timeout };
        let flood = ConnectionBucket::open(&shared.limiter, key);
        let machine = Machine::new(
            rules,
            control,
            ticket,
            Arc::clone(&shared.gate),
            (flood, Arc::clone(&hub.share)),
            Now::read(),
        );
        let (resume_token, ends_at) = (machine.resume_token(), machine.session_ends_at());
        let (of_hub, to) = (Arc::clone(&hub), Arc::clone(&mailbox));
        let catch_up = async move {
            let mut greeting = Greeting::new(&of_hub, Arc::clone(&to), resume_token, ends_at);
            catch_up::run(&of_hub, &to, start, &mut greeting).await;
        };
        Running {
            machine,
            peer: connect(&hub, shared, &mailbox),
            catch_up: Some(catch_up.boxed()),
            draining: shared.drain.subscribe(),
            line: Line::default(),
            effects,
        }
    }
}

/// A running connection.
struct Running<P> {
    machine: Machine,
    effects: Effects,
    peer: P,
    /// Boxed, like everything that an idle connection does not need.
    catch_up: Option<BoxFuture<'static, ()>>,
    draining: Draining,
    line: Line,
}

/// What the task waited for.
enum Event {
    Socket(SocketEvent),
    Checked(Result<Prepared, Nack>, usize),
    Confirmed(Outcome),
    Reported(Reported),
    Drain(DrainShare),
    Time,
}

impl<P: Peer> Running<P> {
    // An `async fn` would store the connection twice: as its argument and as its variable.
    fn run(self) -> impl Future<Output = ()> + Send {
        let mut running = self;
        async move {
            running.effects.begin();
            let end = running.live().await;
            let Self { mut effects, peer, .. } = running;
            match end {
                End::Close(code) => {
                    effects.mailbox.outbound.close(code);
                    peer.close(code).boxed().await;
                }
                End::Answer(_) => peer.finish().boxed().await,
                End::Vanished(_) => drop(peer),
            }
            effects.end(end);
        }
    }

    /// Runs until the connection is to end.
    async fn live(&mut self) -> End {
        let mut timer = pin!(sleep_until(Instant::now()));
        loop {
            let deadline = self.machine.deadline(&self.peer.state(), Now::read());
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let (may_read, line) = (self.machine.may_read(), &mut self.line);
            if !may_read {
                line.leave();
            }
            // Few references: they are part of every connection. The rest of a message that has begun is read in any case: it must arrive
            // in time.
            let (hub, mailbox) = (&*self.effects.hub, &*self.effects.mailbox);
            let may_read = move |cx: &mut Context<'_>, unfinished: bool| {
                let turn = || hub.context.broker.turn(mailbox.number, &hub.name);
                may_read && mailbox.is_greeted() && (unfinished || line.may_publish(turn, cx))
            };
            let event = tokio::select! {
                // The socket last, so that what the others queue goes into the same write: `welcome` with the answer to
                // the upgrade. None of them is ready for long, so it gets its turn.
                biased;
                () = or_pending(&mut self.catch_up) => {
                    self.catch_up = None;
                    continue;
                }
                (prepared, bytes) = or_pending(&mut self.effects.checking) => {
                    self.effects.checking = None;
                    Event::Checked(prepared, bytes)
                }
                outcome = self.effects.confirms.next() => {
                    // The broker answers many messages at a time: all of these answers go into one write.
                    let mut next = Some(outcome);
                    while let Some(outcome) = next {
                        if let Some(end) = self.handle(Event::Confirmed(outcome)) {
                            return end;
                        }
                        next = self.effects.confirms.next().now_or_never();
                    }
                    continue;
                }
                reported = self.effects.reports.next() => Event::Reported(reported),
                share = self.draining.share() => Event::Drain(share),
                () = &mut timer => Event::Time,
                event = self.peer.next(may_read) => Event::Socket(event),
            };
            let begun = Instant::now();
            if let Some(end) = self.handle(event) {
                return end;
            }
            turn::charge(begun).await;
        }
    }

    /// Gives an event to the machine and performs its actions. Some: the connection ends.
    fn handle(&mut self, event: Event) -> Option<End> {
        let Self { machine, effects, peer, line, .. } = self;
        let now = Now::read();
        let (text, business, mailbox);
        let input = match event {
            // It is closing while its queue is written: an answer would be dropped, so nothing new begins. The sender
            // repeats what has no answer.
            Event::Socket(SocketEvent::Text(_)) if effects.mailbox.outbound.closing().is_some() => Input::Progress(0),
            Event::Socket(SocketEvent::Text(received)) => {
                (text, business) = (received, effects.hub.business());
                mailbox = Arc::clone(&effects.mailbox);
                Input::Text { text: &text, business: &business, receipts: &mailbox.receipts }
            }
            Event::Socket(SocketEvent::Alive | SocketEvent::Fragment) => Input::Frame,
            Event::Socket(SocketEvent::Progress(bytes)) => Input::Progress(bytes),
            // Only the deadline has changed.
            Event::Socket(SocketEvent::Stalled) => return None,
            Event::Socket(SocketEvent::Shortened) => {
                machine.shorten(effects.mailbox.session_ends_at(), now);
                return None;
            }
            Event::Socket(SocketEvent::LetGo) => {
                let settings = &effects.hub.context.settings;
                let deadline = now.instant + settings.drain_deadline;
                Input::Drain(DrainShare::alone(settings.drain_window, deadline))
            }
            Event::Socket(SocketEvent::Binary(_)) => Input::Broken(CloseCode::Binary),
            Event::Socket(SocketEvent::Broken(code)) => Input::Broken(code),
            Event::Socket(SocketEvent::Goodbye(code)) => Input::Flushed(code),
            Event::Socket(SocketEvent::Closed(code)) => Input::PeerClosed(code),
            Event::Socket(SocketEvent::Gone) => Input::Gone,
            Event::Checked(prepared, bytes) => Input::Checked(prepared, bytes),
            Event::Confirmed((id, outcome)) => {
                if outcome.is_ok() {
                    effects.hub.context.metrics.acks.inc();
                }
                Input::Confirmed(id, outcome)
            }
            Event::Reported(reported) => {
                effects.reported(&reported);
                Input::Reported(reported)
            }
            Event::Drain(share) => Input::Drain(share),
            Event::Time => {
                let state = peer.state();
                Input::Time(SocketState { awaits_room: state.awaits_room || line.is_waiting(), ..state })
            }
        };
        let mut end = None;
        machine.handle(input, now, &mut |action| match action {
            Action::End(cause) => end = Some(cause),
            action => effects.perform(action),
        });
        end
    }
}

/// Awaits a future, or forever if there is none.
async fn or_pending<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
