//! Tells a business that a connection has come or gone.

use super::end::End;
use crate::{
    business::events::{self, Event},
    metrics::label,
    push::{hub::Hub, mailbox::Mailbox},
};

/// It has come.
pub(super) fn connected(hub: &Hub, mailbox: &Mailbox) {
    hub.tally.connected(&mailbox.id, || {
        emit(
            hub,
            &Event::Connected {
                connection_id: &mailbox.id,
                unique_id: &mailbox.unique_id,
                client_type: &mailbox.client_type,
            },
        );
    });
}

/// It has ended: also counted and logged.
pub(super) fn ended(hub: &Hub, mailbox: &Mailbox, end: End) {
    hub.tally.disconnected(&mailbox.id, || {
        emit(
            hub,
            &Event::Disconnected {
                connection_id: &mailbox.id,
                unique_id: &mailbox.unique_id,
                client_type: &mailbox.client_type,
                code: end.code(),
                reason: end.reason(),
            },
        );
    });
    hub.context.metrics.closes.get_or_create(&label(end.label())).inc();
    tracing::debug!(business = %hub.name, connection = mailbox.id, code = end.code(), reason = end.reason(), "connection ended");
}

fn emit(hub: &Hub, event: &Event<'_>) {
    let context = &*hub.context;
    events::emit(context.broker.as_ref(), &hub.business(), context.teller(), event);
}
