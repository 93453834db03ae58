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
    /// How many connections the events before it tell of: what was connected and not disconnected.
    Census {
        /// How many.
        connections: u64,
        /// The ids of these connections, combined by XOR as numbers of 128 bits; 32 hexadecimal digits.
        digest: &'a str,
        /// When the next one comes.
        every_seconds: f64,
    },
    /// A push had no valid recipient. Every edge that reads the business reports it.
    Rejected {
        /// Its id, where it could be read.
        id: Option<&'a str>,
        /// A stable word.
        reason: &'a str,
        /// What is wrong and how to correct it.
        description: &'a str,
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
const KEYS: [&str; 5] = ["connected", "disconnected", "delivered", "rejected", "census"];

impl Event<'_> {
    fn key(&self) -> &'static str {
        match self {
            Self::Connected { .. } => KEYS[0],
            Self::Disconnected { .. } => KEYS[1],
            Self::Delivered { .. } => KEYS[2],
            Self::Rejected { .. } => KEYS[3],
            Self::Census { .. } => KEYS[4],
        }
    }
}

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

/// Whether this is the body of an event, as any edge writes it.
pub fn is_event(body: &[u8]) -> bool {
    serde_json::from_slice::<Looks<'_>>(body)
        .is_ok_and(|looks| looks.message_type.is_none() && KEYS.contains(&looks.event.as_ref()))
}

/// Whether an event is a census: one that comes though nothing has happened.
pub fn is_census(event: &[u8]) -> bool {
    serde_json::from_slice::<Looks<'_>>(event).is_ok_and(|looks| looks.event == KEYS[4])
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(flatten)]
    event: &'a Event<'a>,
    business_type: &'a str,
    edge: &'a str,
    instance: &'a str,
    timestamp: i64,
}

/// Who tells it.
#[derive(Clone, Copy, Debug)]
pub struct Teller<'a> {
    /// The edge's name.
    pub edge: &'a str,
    /// Its process: another one each time that it starts.
    pub instance: &'a str,
}

/// Publishes an event.
pub fn emit(broker: &dyn Broker, business: &Business, teller: Teller<'_>, event: &Event<'_>) {
    let Teller { edge, instance } = teller;
    let timestamp = clock::now_ms();
    let body = Body { event, business_type: business.name(), edge, instance, timestamp };
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
        let event = Event::Rejected { id: None, reason: "nobody", description: "", offset: 4, suppressed: 0 };
        let body = Body { event: &event, business_type: "pay", edge: "e", instance: "i", timestamp: 1 };
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
