//! What a business can learn about its clients: published to its events exchange, routing key = the event. Best effort:
//! bounded, never repeated, dropped and counted while the broker is unreachable or a listener's queue does not answer.
//! Only these are published with a confirm: `delivered`, by [the connection](crate::socket::session) that reports it, and
//! `undelivered`, by the edge that [judges](crate::undelivered).

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use wirepost_core::names;

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
        /// What all connections of the session share: with an id it names one receipt, also where that comes again.
        session: &'a str,
        /// Ids of the messages.
        ids: &'a [String],
    },
    /// An identity has not reported a push in time.
    Undelivered {
        /// The push.
        id: &'a str,
        /// Who was to report it.
        unique_id: &'a str,
        /// Its type.
        message_type: &'a str,
        /// What its route allows.
        within_seconds: u64,
        /// Its offset in the stream.
        offset: u64,
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
    /// A push had no valid recipient, or one of the businesses that it names does not take it. Every edge that reads the
    /// business reports it.
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
const KEYS: [&str; 6] = ["connected", "disconnected", names::DELIVERED, "rejected", "census", "undelivered"];

impl Event<'_> {
    fn key(&self) -> &'static str {
        match self {
            Self::Connected { .. } => KEYS[0],
            Self::Disconnected { .. } => KEYS[1],
            Self::Delivered { .. } => KEYS[2],
            Self::Rejected { .. } => KEYS[3],
            Self::Census { .. } => KEYS[4],
            Self::Undelivered { .. } => KEYS[5],
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

/// Publishes an event, if that can be done soon.
pub fn emit(broker: &dyn Broker, business: &Business, teller: Teller<'_>, event: &Event<'_>) {
    broker.emit(publication(business, teller, event));
}

/// An event as a message to publish.
pub fn publication(business: &Business, teller: Teller<'_>, event: &Event<'_>) -> Publication {
    let Teller { edge, instance } = teller;
    let timestamp = clock::now_ms();
    let body = Body { event, business_type: business.name(), edge, instance, timestamp };
    Publication {
        exchange: business.events_exchange.clone(),
        routing_key: event.key().to_owned(),
        queue: None,
        message_id: ids::new(),
        // Plain data with string keys: it always serializes.
        body: serde_json::to_vec(&body).unwrap_or_default().into(),
        timestamp,
        headers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wirepost_core::asyncapi::{Part, asyncapi};

    use super::*;
    use crate::push::rejection::Rejection;

    #[test]
    fn an_event_is_recognized_by_its_body() {
        let event =
            Event::Rejected { id: None, reason: "nobody", description: "", refused_by: None, offset: 4, suppressed: 0 };
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

    /// The AsyncAPI document describes each event as it is; the match makes sure that none is forgotten.
    #[test]
    fn each_event_is_as_described() {
        let ids = ["a".to_owned()];
        let connected = Event::Connected { connection_id: "c", unique_id: "alice", client_type: "app" };
        let disconnected = Event::Disconnected {
            connection_id: "c",
            unique_id: "alice",
            client_type: "app",
            code: 1000,
            reason: "closed by the client",
        };
        let delivered =
            Event::Delivered { connection_id: "c", unique_id: "alice", client_type: "app", session: "s", ids: &ids };
        let rejected = |reason| Event::Rejected {
            id: None,
            reason,
            description: "no",
            refused_by: Some("chat"),
            offset: 4,
            suppressed: 1,
        };
        let reasons =
            Rejection::LABELS.into_iter().filter(|reason| ![Rejection::EVENT, Rejection::FOREIGN].contains(reason));
        let census = Event::Census { connections: 1, digest: "0a", every_seconds: 15.0 };
        let undelivered =
            Event::Undelivered { id: "p", unique_id: "alice", message_type: "m", within_seconds: 60, offset: 4 };
        let events = [connected, disconnected, delivered, census, undelivered].into_iter().chain(reasons.map(rejected));
        let config = json!({
            "format": 1, "businessType": "pay", "owner": "o", "generation": 1, "clientTypes": ["app"], "delivery": "Durable",
            "retention": {"seconds": 1, "bytes": 1}, "auth": {"allowedOrigins": []}, "limits": {}, "sessionMaxSeconds": 60,
            "routes": [{"messageType": "m", "sendType": "ServerToClient", "from": [], "to": ["app"], "audience": "Addressed", "receipts": true,
                        "receiptsWithinSeconds": 60}],
        });
        let document = asyncapi(&serde_json::from_value(config).unwrap(), "wss://ws.example", Part::All);
        for event in events {
            match event {
                Event::Connected { .. }
                | Event::Disconnected { .. }
                | Event::Delivered { .. }
                | Event::Census { .. }
                | Event::Undelivered { .. }
                | Event::Rejected { .. } => {}
            }
            let body = Body { event: &event, business_type: "pay", edge: "e", instance: "i", timestamp: 1 };
            let body = serde_json::to_value(&body).unwrap();
            let schema = &document["components"]["messages"][format!("event.{}", event.key())]["payload"];
            let fits = jsonschema::draft7::new(schema).unwrap();
            assert!(fits.is_valid(&body), "{schema}: {body}");
            let known = |field: &String| schema["properties"].get(field).is_some();
            assert!(body.as_object().unwrap().keys().all(known), "{body}");
        }
    }
}
