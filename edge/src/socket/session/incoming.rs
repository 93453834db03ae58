//! What a client sends: messages, control frames, and what each of them costs it.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures_util::FutureExt;
use governor::{Quota, RateLimiter, clock::Clock};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::{
    Envelope,
    edge_config::Limits,
    frames::{ClientFrame, NackCode, ServerFrame},
};

use super::{Checking, Running, expiring_at};
use crate::{
    business::{Business, events::Event},
    clock,
    identity::ticket::{self, Purpose},
    metrics::label,
    socket::receive::{self, Nack, Prepared},
};

impl Running<'_> {
    pub(super) fn text(&mut self, text: &Utf8Bytes) {
        if let Some(prepared) = self.take(text).transpose() {
            self.publish(prepared, text.len());
        }
    }

    /// Publishes a message, or refuses it. Every refusal is charged, whatever its reason.
    pub(super) fn publish(&mut self, prepared: Result<Prepared, Nack>, bytes: usize) {
        match prepared {
            Ok(prepared) => {
                let broker = &self.session.hub.context.broker;
                let publish = |publication| broker.publish(self.conn.number, publication);
                let confirms = prepared.publications.into_iter().map(publish).collect();
                self.window.add(prepared.id, confirms);
            }
            Err(nack) => {
                self.charge(bytes);
                self.nack(&nack);
            }
        }
    }

    /// What is to be published; `None`: it was a control frame, or its content is being checked.
    fn take(&mut self, text: &Utf8Bytes) -> Result<Option<Prepared>, Nack> {
        let business = self.session.hub.business();
        let limits = &business.config.limits;
        let envelope = Envelope::parse(text.as_bytes()).map_err(|error| Nack::of_envelope(text.as_bytes(), &error))?;
        if self.conn.control
            && let Some(op) = &envelope.op
        {
            self.charge(text.len());
            self.control(op, text);
            return Ok(None);
        }
        let id = envelope.id.as_deref();
        // Before the rate: no waiting makes it small enough.
        if text.len() > limits.message_bytes {
            let reason = format!("{} bytes, more than messageBytes of {}", text.len(), limits.message_bytes);
            return Err(Nack::new(id, NackCode::TooLarge, reason));
        }
        if let Err(wait) = self.admit(limits) {
            let reason =
                format!("more than {} messages a second and {} at once", limits.messages_per_second, limits.burst);
            let nack = Nack::new(id, NackCode::RateLimited, reason);
            return Err(Nack { retry_after_ms: Some(wait.as_millis().max(1) as u64), ..nack });
        }
        if business.is_heavy(envelope.message_type.as_deref(), envelope.content) {
            self.checking = Some(self.check(business, text.clone()));
            return Ok(None);
        }
        receive::prepare(&business, &self.conn, envelope).map(Some)
    }

    /// Prepares a message off this thread. Nothing more is read meanwhile, so that the connection's messages keep their order.
    fn check(&self, business: Arc<Business>, text: Utf8Bytes) -> Checking {
        let (judge, name) = (Arc::clone(&self.session.shared.judge), Arc::clone(&business.push_exchange));
        let (conn, bytes) = (Arc::clone(&self.conn), text.len());
        let again = text.clone();
        let prepare = move || {
            let envelope =
                Envelope::parse(text.as_bytes()).map_err(|error| Nack::of_envelope(text.as_bytes(), &error))?;
            receive::prepare(&business, &conn, envelope)
        };
        async move {
            let prepared = judge.run(&name, prepare).await;
            let busy = |busy| Err(Nack::busy(Envelope::readable_id(again.as_bytes()).as_deref(), busy));
            (prepared.unwrap_or_else(busy), bytes)
        }
        .boxed()
    }

    /// Takes one message from the connection's rate; otherwise how long to wait. The limiter is made at the first message, and again when
    /// the declaration changes.
    fn admit(&mut self, limits: &Limits) -> Result<(), Duration> {
        if self.limiter.as_ref().is_none_or(|(made_for, _)| made_for != limits) {
            let rate = NonZeroU32::new(limits.messages_per_second).unwrap_or(NonZeroU32::MIN);
            let burst = NonZeroU32::new(limits.burst).unwrap_or(NonZeroU32::MIN);
            self.limiter = Some((limits.clone(), RateLimiter::direct(Quota::per_second(rate).allow_burst(burst))));
        }
        let Some((_, limiter)) = &self.limiter else { return Ok(()) };
        limiter.check().map_err(|until| until.wait_time_from(limiter.clock().now()))
    }

    /// Charges something that brings the business nothing, of so many bytes; over the burst the socket rests.
    pub(super) fn charge(&mut self, bytes: usize) {
        if let Some(until) = self.tab.charge(bytes) {
            if self.paused_until.is_none() {
                self.session.hub.context.metrics.slowed.get_or_create(&label("frames")).inc();
            }
            self.paused_until = Some(until);
        }
    }

    pub(super) fn confirmed(&self, id: &str, outcome: Result<(), crate::broker::PublishError>) {
        match outcome {
            Ok(()) => {
                self.session.hub.context.metrics.acks.inc();
                self.conn.control(ServerFrame::Ack { id }.to_text());
            }
            Err(error) => self.nack(&Nack::of_publish(id, &error)),
        }
    }

    fn nack(&self, nack: &Nack) {
        self.session.hub.context.metrics.nacks.get_or_create(&label(nack.code.as_str())).inc();
        let frame = ServerFrame::Nack {
            id: nack.id.as_deref(),
            code: nack.code,
            reason: &nack.reason,
            retryable: nack.code.retryable(),
            may_have_arrived: nack.may_have_arrived,
            retry_after_ms: nack.retry_after_ms,
        };
        self.conn.control(frame.to_text());
    }

    fn control(&mut self, op: &str, text: &str) {
        match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(ClientFrame::Ping) => self.conn.control(ServerFrame::Pong.to_text()),
            Ok(ClientFrame::Received { .. }) if !self.session.hub.business().wants_receipts() => {
                self.refuse(op, "no route of this business asks for receipts");
            }
            Ok(ClientFrame::Received { ids }) => match receive::receipt(&ids) {
                Ok(()) => self.received(op, ids),
                Err(reason) => self.refuse(op, &reason),
            },
            Ok(ClientFrame::Refresh { token }) => match self.refresh(&token) {
                Ok(()) => {
                    let resume_token = &self.session.resume_token(&self.identity, self.ends_at);
                    self.conn.control(ServerFrame::Refreshed { session_ends_at: self.ends_at, resume_token }.to_text());
                }
                Err(reason) => self.refuse(op, &reason),
            },
            Err(error) => self.refuse(op, &format!("not a control frame of this protocol: {error}")),
        }
    }

    /// The business hears of messages that this connection was sent, each once; of the others the client does.
    fn received(&self, op: &str, mut ids: Vec<String>) {
        let delivered = self.conn.receipts.take(&mut ids);
        let receipts = &self.session.hub.context.metrics.receipts;
        receipts.get_or_create(&label("refused")).inc_by(ids.len() as u64);
        if !ids.is_empty() {
            let reason = format!(
                "{} of {} ids name no message that this connection was sent with receipts and has not reported yet",
                ids.len(),
                ids.len() + delivered.len()
            );
            self.refuse(op, &reason);
        }
        if !delivered.is_empty() {
            receipts.get_or_create(&label("delivered")).inc_by(delivered.len() as u64);
            self.session.emit(&Event::Delivered {
                connection_id: &self.conn.id,
                unique_id: &self.conn.unique_id,
                client_type: &self.conn.client_type,
                ids: &delivered,
            });
        }
    }

    fn refuse(&self, about: &str, reason: &str) {
        self.conn.control(ServerFrame::Error { about, reason }.to_text());
    }

    /// Prolongs the session with a ticket of the same identity. Tags of the new ticket replace the old ones at once.
    fn refresh(&mut self, token: &str) -> Result<(), String> {
        let ticket =
            ticket::open(&self.session.shared.keys, token, clock::now_ms()).map_err(|error| error.to_string())?;
        if ticket.purpose != Purpose::Connect {
            return Err("a resume token does not prolong a session; get a new token".into());
        }
        if *ticket.business != *self.session.hub.name
            || ticket.unique_id != self.identity.unique_id
            || ticket.client_type != self.identity.client_type
        {
            return Err("the token is of another identity; the session goes on as it was".into());
        }
        if ticket.tags != self.identity.tags {
            self.session.hub.set_tags(&self.conn, &ticket.tags);
        }
        self.identity.tags = ticket.tags;
        self.ends_at = ticket.session_ends_at;
        self.expiring_at = Some(expiring_at(self.ends_at));
        Ok(())
    }
}
