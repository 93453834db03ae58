//! What a client sends: messages, control frames, and what each of them is charged.

use std::{sync::Arc, time::Duration};

use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::{
    Envelope,
    edge_config::Limits,
    frames::{ClientFrame, NackCode},
};

use super::{Action, Machine, Now, Perform, Reply, expiring_at};
use crate::{
    broker::PublishError,
    business::Business,
    identity::ticket::{self, Purpose},
    push::receipts::Receipts,
    socket::{
        bucket::Rate,
        receive::{self, Nack, Prepared, Sender},
    },
};

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
        if business.is_heavy(envelope.message_type.as_deref(), envelope.content) {
            return Message::Heavy;
        }
        let sender = Sender { unique_id: &self.ticket.unique_id, client_type: &self.ticket.client_type };
        Message::Ready(receive::prepare(business, sender, envelope, now.ms))
    }

    /// Takes one message from the connection's rate; otherwise how long to wait.
    fn admit(&mut self, limits: &Limits, now: Now) -> Result<(), Duration> {
        self.messages.try_add(Rate::per_second(limits.messages_per_second, limits.burst), now.instant)
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
            Ok(ClientFrame::Received { .. }) if !business.wants_receipts() => {
                "no route of this business asks for receipts".to_owned()
            }
            Ok(ClientFrame::Received { ids }) => match receive::receipt(&ids) {
                Ok(()) => return self.received(op, ids, receipts, perform),
                Err(reason) => reason,
            },
            Ok(ClientFrame::Refresh { token }) => match self.refresh(&token, now, perform) {
                Ok(()) => {
                    let (session_ends_at, resume_token) = (self.ticket.session_ends_at, self.resume_token());
                    return self.reply(Reply::Refreshed { session_ends_at, resume_token }, perform);
                }
                Err(reason) => reason,
            },
            Err(error) => format!("not a control frame of this protocol: {error}"),
        };
        self.error(op, refusal, perform);
    }

    /// Reports to the business the messages that were sent to this connection, each once; the other ids are refused.
    fn received(&self, op: &str, mut ids: Vec<String>, receipts: &Receipts, perform: &mut Perform<'_>) {
        let delivered = receipts.take(&mut ids);
        if !ids.is_empty() {
            let reason = format!(
                "{} of {} ids name no message that this connection was sent with receipts and has not reported yet",
                ids.len(),
                ids.len() + delivered.len()
            );
            perform(Action::CountRefusedReceipts(ids.len()));
            self.error(op, reason, perform);
        }
        if !delivered.is_empty() {
            perform(Action::Delivered(delivered));
        }
    }

    fn error(&self, about: &str, reason: String, perform: &mut Perform<'_>) {
        self.reply(Reply::Error { about: about.to_owned(), reason }, perform);
    }

    /// Prolongs the session with a ticket of the same identity. Tags of the new ticket replace the old ones
    /// immediately.
    fn refresh(&mut self, token: &str, now: Now, perform: &mut Perform<'_>) -> Result<(), String> {
        let new = ticket::open(&self.keys, token, now.ms).map_err(|error| error.to_string())?;
        if new.purpose != Purpose::Connect {
            return Err("a resume token does not prolong a session; get a new token".into());
        }
        let same = |new: &ticket::Ticket, old: &ticket::Ticket| {
            new.business == old.business && new.unique_id == old.unique_id && new.client_type == old.client_type
        };
        if !same(&new, &self.ticket) {
            return Err("the token is of another identity; the session goes on as it was".into());
        }
        if new.tags != self.ticket.tags {
            perform(Action::SetTags(new.tags.clone()));
            self.ticket.tags = new.tags;
        }
        self.ticket.session_ends_at = new.session_ends_at;
        self.expiring_at = Some(expiring_at(new.session_ends_at, now));
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
