//! What a business can learn about its clients: published to its events exchange, routing key = the event. Best effort:
//! bounded, never repeated, dropped and counted while the broker is unreachable or a listener's queue does not answer.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::Business;
use crate::{
    broker::{Broker, Publication},
    clock, ids,
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
    /// A client reports that it received these messages.
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
    /// A push had no valid recipient, or one of the businesses that it names does not take it. Every edge that reads
    /// the business reports it.
    Rejected {
        /// Its id, where it could be read.
        id: Option<&'a str>,
        /// A stable word.
        reason: &'a str,
        /// What is wrong and how to correct it.
        description: &'a str,
        /// The other business, of those that it names, which does not take it.
        #[serde(skip_serializing_if = "Option::is_none")]
        refused_by: Option<&'a str>,
        /// Its offset in the stream.
        offset: u64,
        /// Rejected pushes before it that were too many to get an event each.
        #[serde(skip_serializing_if = "is_zero")]
        suppressed: u64,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The names of all events.
const KEYS: [&str; 4] = ["connected", "disconnected", "delivered", "rejected"];

impl Event<'_> {
    fn key(&self) -> &'static str {
        match self {
            Self::Connected { .. } => KEYS[0],
            Self::Disconnected { .. } => KEYS[1],
            Self::Delivered { .. } => KEYS[2],
            Self::Rejected { .. } => KEYS[3],
        }
    }
}

/// Whether this is the body of an event, as any edge writes it.
pub fn is_event(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Looks<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
        #[serde(rename = "edge")]
        _edge: IgnoredAny,
        #[serde(rename = "businessType")]
        _business_type: IgnoredAny,
        message_type: Option<IgnoredAny>,
    }
    serde_json::from_slice::<Looks<'_>>(body)
        .is_ok_and(|looks| looks.message_type.is_none() && KEYS.contains(&looks.event.as_ref()))
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
        queue: None,
        message_id: ids::new(),
        body: body.into(),
        timestamp,
        headers: Vec::new(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_recognized_by_its_body() {
        let event =
            Event::Rejected { id: None, reason: "nobody", description: "", refused_by: None, offset: 4, suppressed: 0 };
        let body = Body { event: &event, business_type: "pay", edge: "e", timestamp: 1 };
        let body = serde_json::to_string(&body).unwrap();
        assert!(is_event(body.as_bytes()) && !body.contains("suppressed"), "{body}");
        for no in [
            r#"{"event":"rejected","businessType":"pay"}"#,
            r#"{"event":"order","businessType":"pay","edge":"e"}"#,
            r#"{"event":"rejected","businessType":"pay","edge":"e","messageType":"a"}"#,
            "[]",
        ] {
            assert!(!is_event(no.as_bytes()), "{no}");
        }
    }
}
