//! What a client sends: messages, control frames, and what each of them is charged.

use std::{sync::Arc, time::Duration};

use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::{
    Envelope,
    edge_config::Limits,
    frames::{ClientFrame, NackCode},
};

use super::{super::reports::Reported, Action, Machine, Now, OpenedBy, Perform, Reply, expiring_at};
use crate::{
    broker::PublishError,
    bucket::Rate,
    business::{Business, share::Beyond},
    identity::{
        grant::Grant,
        ticket::{self, Purpose},
    },
    push::{across, receipts::Receipts},
    socket::receive::{self, Nack, Prepared, Sender},
};

/// The shortest wait that a client is told: all clients of a business run into the limit together, and would come back
/// together.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

impl Machine {
    /// A text message: a control frame or a message.
    pub(super) fn text(
        &mut self,
        text: &Utf8Bytes,
        business: &Arc<Business>,
        receipts: &Receipts,
        now: Now,
        perform: &mut Perform<'_>,
    ) {
        let bytes = text.as_bytes();
        let envelope = match Envelope::parse(bytes) {
            Ok(envelope) => envelope,
            Err(error) => return self.refuse(Nack::of_envelope(bytes, &error), bytes.len(), now, perform),
        };
        if self.control
            && let Some(op) = &envelope.op
        {
            self.charge(bytes.len(), now, perform);
            return self.control_frame(op, text, business, receipts, now, perform);
        }
        match self.message(text, envelope, business, now) {
            Message::Ready(prepared) => self.publish(prepared, bytes.len(), now, perform),
            Message::Heavy => {
                self.checking = true;
                perform(Action::Check(Arc::clone(business), text.clone()));
            }
        }
    }

    fn message(&mut self, text: &Utf8Bytes, envelope: Envelope<'_>, business: &Business, now: Now) -> Message {
        let limits = &business.config.limits;
        let id = envelope.id.as_deref();
        // Before the rate: waiting does not make it smaller.
        if text.len() > limits.message_bytes {
            let reason = format!("{} bytes, more than messageBytes of {}", text.len(), limits.message_bytes);
            return Message::Ready(Err(Nack::new(id, NackCode::TooLarge, reason)));
        }
        if let Err(wait) = self.admit(limits, now) {
            let reason =
                format!("more than {} messages a second and {} at once", limits.messages_per_second, limits.burst);
            let nack = Nack::new(id, NackCode::RateLimited, reason);
            return Message::Ready(Err(Nack { retry_after_ms: Some(wait.as_millis().max(1) as u64), ..nack }));
        }
        if let Err(Beyond { unit, wait }) = self.share.message(text.len(), &limits.per_edge, now.instant) {
            let reason = format!("all clients of this business together send more {unit} a second than it may");
            let nack = Nack::new(id, NackCode::RateLimited, reason);
            let wait = wait.max(SHORTEST_WAIT).mul_f64(rand::random_range(1.0..1.5));
            return Message::Ready(Err(Nack { retry_after_ms: Some(wait.as_millis() as u64), ..nack }));
        }
        if across::is_heavy(business, &envelope) {
            return Message::Heavy;
        }
        let sender = Sender { unique_id: &self.ticket.unique_id, client_type: &self.ticket.client_type };
        Message::Ready(receive::prepare(business, sender, envelope, now.ms))
    }

    /// Takes one message from the identity's rate; otherwise how long to wait.
    fn admit(&mut self, limits: &Limits, now: Now) -> Result<(), Duration> {
        self.flood.message(Rate::per_second(limits.messages_per_second, limits.burst), now.instant)
    }

    /// Publishes a message, or refuses it.
    pub(super) fn publish(
        &mut self,
        prepared: Result<Prepared, Nack>,
        bytes: usize,
        now: Now,
        perform: &mut Perform<'_>,
    ) {
        match prepared {
            Ok(prepared) => {
                self.unconfirmed += 1;
                perform(Action::Publish(prepared));
            }
            Err(nack) => self.refuse(nack, bytes, now, perform),
        }
    }

    /// Every refusal is charged, whatever its reason.
    fn refuse(&mut self, nack: Nack, bytes: usize, now: Now, perform: &mut Perform<'_>) {
        self.charge(bytes, now, perform);
        self.reply(Reply::Nack(nack), perform);
    }

    /// The broker's answer to a published message.
    pub(super) fn confirmed(&mut self, id: String, outcome: Result<(), PublishError>, perform: &mut Perform<'_>) {
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
        let reply = match outcome {
            Ok(()) => Reply::Ack(id),
            Err(error) => Reply::Nack(Nack::of_publish(&id, &error)),
        };
        self.reply(reply, perform);
    }

    fn control_frame(
        &mut self,
        op: &str,
        text: &str,
        business: &Business,
        receipts: &Receipts,
        now: Now,
        perform: &mut Perform<'_>,
    ) {
        let refusal = match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(ClientFrame::Ping) => return self.reply(Reply::Pong, perform),
            Ok(ClientFrame::Received { ids }) => match receive::receipt(&ids) {
                Ok(()) if business.wants_receipts() => return self.received(ids, receipts, perform),
                Ok(()) => {
                    let reason = "no route of this business asks for receipts".to_owned();
                    return self.reply(Reply::NoReceipt { ids, reason, retryable: false }, perform);
                }
                Err(reason) => reason,
            },
            Ok(ClientFrame::Refresh { token }) => match self.refresh(&token, business, now, perform) {
                Ok(()) => {
                    let (session_ends_at, resume_token) = (self.ticket.session_ends_at, self.resume_token());
                    return self.reply(Reply::Refreshed { session_ends_at, resume_token }, perform);
                }
                Err(reason) => {
                    perform(Action::RefreshRefused(reason.clone()));
                    reason
                }
            },
            Err(error) => format!("not a control frame of this protocol: {error}"),
        };
        self.error(op, refusal, perform);
    }

    /// Reports to the business the messages that were sent to this connection, each once; the other ids are refused.
    fn received(&self, mut ids: Vec<String>, receipts: &Receipts, perform: &mut Perform<'_>) {
        let delivered = receipts.take(&mut ids);
        if !ids.is_empty() {
            let reason = format!(
                "{} of {} ids name no message that this connection was sent with receipts and has not reported yet",
                ids.len(),
                ids.len() + delivered.len()
            );
            perform(Action::CountRefusedReceipts(ids.len()));
            self.reply(Reply::NoReceipt { ids, reason, retryable: false }, perform);
        }
        if !delivered.is_empty() {
            perform(Action::Report(delivered));
        }
    }

    /// What has become of receipts.
    pub(super) fn reported(&self, Reported { ids, outcome }: Reported, perform: &mut Perform<'_>) {
        let reply = match outcome {
            Ok(()) => Reply::Receipt { ids },
            Err(reason) => Reply::NoReceipt { ids, reason, retryable: true },
        };
        self.reply(reply, perform);
    }

    fn error(&self, about: &str, reason: String, perform: &mut Perform<'_>) {
        self.reply(Reply::Error { about: about.to_owned(), reason }, perform);
    }

    /// Prolongs the session with a ticket of the same identity. Tags of the new ticket replace the old ones
    /// immediately, and older tokens of the session are good no more.
    fn refresh(&mut self, token: &str, business: &Business, now: Now, perform: &mut Perform<'_>) -> Result<(), String> {
        let new = ticket::open(&self.gate.keys, token, now.ms).map_err(|error| error.to_string())?;
        if new.purpose != Purpose::Connect {
            return Err("a resume token does not prolong a session; get a new token".into());
        }
        let old = &self.ticket;
        if (&new.business, &new.unique_id, &new.client_type) != (&old.business, &old.unique_id, &old.client_type) {
            return Err("the token is of another identity; the session goes on as it was".into());
        }
        if new.grant.origin != 0 && new.grant.origin != old.grant.origin {
            return Err("the token was made for pages of another origin".into());
        }
        if !business.admits(&new.grant) {
            return Err("what the token was made by is not declared any more; get a new token".into());
        }
        self.gate.judge(&new).map_err(|spent| spent.to_string())?;
        // The connection goes on, and with it the session that its id names. Two further: the token that the client has
        // is one ahead of its connection.
        let (session, origin) = (old.grant.session, old.grant.origin);
        let grant = Grant { session, origin, generation: old.grant.next().next().generation, ..new.grant };
        let ends_at = business.session_end(&new.grant, new.session_ends_at);
        let loses_tags = old.tags.iter().any(|tag| !new.tags.contains(tag));
        let until = ends_at.max(old.session_ends_at);
        if loses_tags && !self.gate.outdate(&old.business, &old.unique_id, &grant, until, now.instant) {
            return Err("too many sessions lose tags at the moment; try again".into());
        }
        self.gate.spend(&new, now.ms).map_err(|spent| spent.to_string())?;
        self.gate.replace(&old.business, &grant, until, now.ms);
        self.opened_by = OpenedBy::Spent;
        if new.tags != self.ticket.tags {
            perform(Action::SetTags(new.tags.clone()));
            self.ticket.tags = new.tags;
        }
        self.ticket.grant = grant;
        self.ticket.session_ends_at = ends_at;
        self.expiring_at = Some(expiring_at(ends_at, now));
        perform(Action::SetSession(grant, ends_at));
        Ok(())
    }
}

/// What becomes of a message.
enum Message {
    /// It can be published, or not.
    Ready(Result<Prepared, Nack>),
    /// To check its content may take long.
    Heavy,
}
