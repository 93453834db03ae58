//! Performs a session's actions, from its registration to its removal, however its task ends.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wirepost_core::Envelope;

use super::{
    end::End,
    life,
    machine::{Action, Reply},
    reports::{self, Reported, Reports},
};
use crate::{
    address::ClientAddress,
    audit::{self, Refused},
    business::{
        Business,
        events::{self, Event},
    },
    clock,
    identity::grant,
    metrics::label,
    push::{
        hub::Hub,
        mailbox::{Mailbox, outbound::Item},
    },
    socket::{
        receive::{self, Nack, Prepared, Sender},
        shared::Shared,
        window::Window,
    },
};

/// A message that is being checked, and its bytes.
type Checking = BoxFuture<'static, (Result<Prepared, Nack>, usize)>;

/// See the module.
pub(super) struct Effects {
    pub(super) hub: Arc<Hub>,
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: Arc<Mailbox>,
    /// Boxed: it is large, and hardly ever needed.
    address: Box<ClientAddress>,
    /// Messages that wait for the broker's confirm.
    pub(super) confirms: Window,
    /// The message whose content is being checked, at most one.
    pub(super) checking: Option<Checking>,
    /// Receipts that wait for the broker.
    pub(super) reports: Reports,
    stage: Stage,
}

/// What others know of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The edge counts it, and the hub may have it.
    Entered,
    /// The business was told of it.
    Told,
    /// All of that is taken back.
    Over,
}

/// Of a connection whose task did not come to its end: it panicked, or was given up when the process ended.
const BROKEN_OFF: End = End::Vanished("this edge broke it off");

impl Effects {
    /// Of a connection that is about to be registered.
    pub(super) fn new(hub: Arc<Hub>, shared: Arc<Shared>, mailbox: Arc<Mailbox>, address: ClientAddress) -> Self {
        Self {
            hub,
            shared,
            mailbox,
            address: Box::new(address),
            confirms: Window::default(),
            checking: None,
            reports: Reports::default(),
            stage: Stage::Entered,
        }
    }

    /// Tells the business of the connection.
    pub(super) fn begin(&mut self) {
        life::connected(&self.hub, &self.mailbox);
        self.stage = Stage::Told;
    }

    /// Removes the connection from the registry, and tells the business so.
    pub(super) fn end(&mut self, end: End) {
        let Self { hub, mailbox, .. } = self;
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        if stage == Stage::Over {
            return;
        }
        hub.leave(mailbox);
        let metrics = &hub.context.metrics;
        metrics.connections.dec();
        metrics.compressing.dec_by(i64::from(mailbox.compression.is_on()));
        metrics.leaving.dec_by(i64::from(mailbox.outbound.is_leaving()));
        if stage == Stage::Told {
            life::ended(hub, mailbox, end);
        }
    }

    /// Performs any action except the end, which is up to the task.
    pub(super) fn perform(&mut self, action: Action) {
        let (metrics, mailbox) = (&self.hub.context.metrics, &self.mailbox);
        match action {
            Action::Reply(reply) => {
                if let Reply::Nack(nack) = &reply {
                    metrics.nacks.get_or_create(&label(nack.code.as_str())).inc();
                }
                if mailbox.control {
                    mailbox.control(reply.to_text());
                }
            }
            Action::Ping => drop(mailbox.outbound.push(Item::ping())),
            Action::Publish(Prepared { id, publications, copies }) => {
                let bytes = publications.first().map_or(0, |publication| publication.body.len());
                let besides = copies.saturating_sub(1) * bytes;
                self.hub.share.message_copies(besides, &self.hub.business().config.limits.per_edge, Instant::now());
                let publish = |publication| self.hub.context.broker.publish(mailbox.number, publication);
                self.confirms.add(id, publications.into_iter().map(publish).collect());
            }
            Action::Check(business, text) => self.checking = Some(self.check(business, text)),
            Action::SetTags(tags) => self.hub.set_tags(mailbox, &tags),
            Action::SetSession(grant, ends_at) => mailbox.set_session(grant, ends_at),
            Action::Report(ids) => self.report(ids),
            Action::CountRefusedReceipts(ids) => {
                metrics.receipts.get_or_create(&label("refused")).inc_by(ids as u64);
            }
            Action::RefreshRefused(reason) => self.shared.audit.refused(&Refused {
                action: audit::Action::Refresh,
                business: Some(&self.hub.name),
                address: Some(self.address.0),
                reason: "invalid_token",
                detail: Some(&reason),
            }),
            Action::CountSlowed => drop(metrics.slowed.get_or_create(&label("frames")).inc()),
            Action::Close(code) => mailbox.outbound.close(code),
            Action::End(_) => {}
        }
    }

    /// Reports receipts to the business, behind those that wait.
    fn report(&mut self, ids: Vec<String>) {
        let limit = self.hub.business().config.limits.per_edge.memory_bytes;
        match self.shared.receipts.take(&self.hub.name, reports::bytes(&ids), limit) {
            Ok(room) => self.reports.add(ids, room),
            Err(_) => self.reports.fail(ids, "this edge holds as many receipts as it may; try again later".into()),
        }
        self.send_reports();
    }

    fn send_reports(&mut self) {
        let Self { hub, mailbox, reports, .. } = self;
        reports.send(&hub.context.broker, mailbox.number, |ids| {
            let session = grant::session_text(mailbox.grant().session);
            let event = Event::Delivered {
                connection_id: &mailbox.id,
                unique_id: &mailbox.unique_id,
                client_type: &mailbox.client_type,
                session: &session,
                ids,
            };
            events::publication(&hub.business(), hub.context.teller(), &event)
        });
    }

    /// Some receipts are with the business, or may be given again. The next ones are sent.
    pub(super) fn reported(&mut self, reported: &Reported) {
        let Reported { ids, outcome } = reported;
        if outcome.is_err() {
            self.mailbox.receipts.give_back(ids);
        }
        let kind = if outcome.is_ok() { "delivered" } else { "unsent" };
        self.hub.context.metrics.receipts.get_or_create(&label(kind)).inc_by(ids.len() as u64);
        self.send_reports();
    }

    /// Prepares a message off this thread.
    fn check(&self, business: Arc<Business>, text: Utf8Bytes) -> Checking {
        let (checks, name) = (Arc::clone(&self.shared.checks), Arc::clone(&business.push_exchange));
        let (mailbox, bytes, again) = (Arc::clone(&self.mailbox), text.len(), text.clone());
        let prepare = move || {
            let envelope =
                Envelope::parse(text.as_bytes()).map_err(|error| Nack::of_envelope(text.as_bytes(), &error))?;
            let sender = Sender { unique_id: &mailbox.unique_id, client_type: &mailbox.client_type };
            receive::prepare(&business, sender, envelope, clock::now_ms())
        };
        async move {
            let prepared = checks.run(&name, bytes, prepare).await;
            let busy = |busy| Err(Nack::busy(Envelope::readable_id(again.as_bytes()).as_deref(), busy));
            (prepared.unwrap_or_else(busy), bytes)
        }
        .boxed()
    }
}

impl Drop for Effects {
    fn drop(&mut self) {
        self.end(BROKEN_OFF);
    }
}
