//! What a business may hear of its clients: published to its events exchange, routing key = the event. Of small worth: bounded, not
//! confirmed, dropped with a counter where the broker is away.

use serde::Serialize;

use crate::{
    broker::{Broker, Publication},
    business::Business,
    clock,
};

/// An event. Each names the connection, so that a consumer that counts connections is right in any order of arrival.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Event<'a> {
    /// A client connected.
    Connected {
        /// Which connection.
        connection_id: &'a str,
        /// Whose.
        unique_id: &'a str,
        /// Of which type.
        client_type: &'a str,
    },
    /// A connection ended.
    Disconnected {
        /// Which connection.
        connection_id: &'a str,
        /// Whose.
        unique_id: &'a str,
        /// Of which type.
        client_type: &'a str,
        /// Close code; 1006 where the peer vanished.
        code: u16,
        /// The same in words.
        reason: &'a str,
    },
    /// A client says that it has these messages.
    Delivered {
        /// Which connection.
        connection_id: &'a str,
        /// Whose.
        unique_id: &'a str,
        /// Of which type.
        client_type: &'a str,
        /// Ids of the messages.
        ids: &'a [String],
    },
    /// A push reached nobody. Every edge that reads the business says so.
    Rejected {
        /// Its id, where it could be read.
        id: Option<&'a str>,
        /// A stable word.
        reason: &'a str,
        /// What is wrong and what would be right.
        description: &'a str,
        /// Where it stands in the stream.
        offset: u64,
    },
}

impl Event<'_> {
    fn key(&self) -> &'static str {
        match self {
            Self::Connected { .. } => "connected",
            Self::Disconnected { .. } => "disconnected",
            Self::Delivered { .. } => "delivered",
            Self::Rejected { .. } => "rejected",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(flatten)]
    event: &'a Event<'a>,
    business_type: &'a str,
    edge: &'a str,
    timestamp: i64,
}

/// Publishes an event.
pub fn emit(broker: &dyn Broker, business: &Business, edge: &str, event: &Event<'_>) {
    let timestamp = clock::now_ms();
    let body = Body { event, business_type: business.name(), edge, timestamp };
    let Ok(body) = serde_json::to_vec(&body) else { return };
    broker.emit(Publication {
        exchange: business.events_exchange.clone(),
        routing_key: event.key().to_owned(),
        message_id: uuid::Uuid::now_v7().to_string(),
        body: body.into(),
        timestamp,
        headers: Vec::new(),
    });
}
