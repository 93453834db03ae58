//! An unrouted message: where it was published, where it belongs, and how it is published again.

use bytes::Bytes;
use wirepost_amqp::v091::{Message, Properties, Property};
use wirepost_core::{
    contract::headers,
    names,
    topology::{Destinations, UnroutedMessage},
};
use wirepost_stream::{Sections, Value};

use super::{Links, Stopped};

/// Whether a message can be published where it was published before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As far as is known.
    Open,
    /// Soon: what leads here is declared, and not made yet.
    Waits,
    /// The business takes nothing more from its sender.
    Gone,
}

/// Exchange and routing key of a message, as text.
pub(super) struct PublishedTo {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

impl PublishedTo {
    pub(super) fn new(exchange: &[u8], routing_key: &[u8]) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self { exchange: text(exchange), routing_key: text(routing_key) }
    }

    /// Whether it can go back by the exchange for several businesses that it came by, if it came by one. The business's own goes to its
    /// pushes where that exchange leads nowhere any more.
    pub(super) fn way(&mut self, business: &str, links: &Links) -> Way {
        if !names::is_share_exchange(&self.exchange) || links.present.contains(&self.exchange) {
            Way::Open
        } else if links.declared.contains(&self.exchange) {
            Way::Waits
        } else if names::owner(&self.exchange) == Some(business) {
            self.exchange = names::push_exchange(business);
            Way::Open
        } else {
            Way::Gone
        }
    }

    /// See [`Destinations::of`].
    pub(super) fn destinations(&self, message: &Message, destinations: &Destinations<'_>) -> Vec<Option<String>> {
        let (queue, from) =
            (message.properties.header(headers::QUEUE), message.properties.header(headers::FROM_CLIENT_TYPE));
        let text = |bytes: &Option<Bytes>| bytes.as_ref().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        let (queue, from) = (text(&queue), text(&from));
        let unrouted = UnroutedMessage {
            exchange: &self.exchange,
            routing_key: &self.routing_key,
            queue: queue.as_deref(),
            from_client_type: from.as_deref(),
            body: &message.body,
        };
        destinations.of(unrouted).into_iter().map(|destination| destination.map(str::to_owned)).collect()
    }

    /// For this business alone: the others that it is for have it.
    pub(super) fn for_business(&self, properties: &Properties, business: &str) -> Properties {
        if !names::is_share_exchange(&self.exchange) {
            return properties.clone();
        }
        let to = properties.headers_from(headers::TO_BUSINESS);
        let properties = to.iter().fold(properties.clone(), |properties, (name, _)| properties.without_header(name));
        let (name, value) = (headers::to_business(business), headers::TO_BUSINESS_VALUE.as_bytes());
        properties.with_more_headers([(name.as_str(), value)])
    }

    pub(super) fn not_taken(self, reason: String) -> Stopped {
        let Self { exchange, routing_key } = self;
        Stopped::NotTaken { exchange, routing_key, reason }
    }
}

/// As an edge sends a message for one queue. The broker has removed the first header.
pub(super) fn for_queue(properties: &Properties, queue: &str) -> Properties {
    let key = names::queue_key(queue);
    let properties = if properties.header(headers::QUEUE).is_some_and(|named| named == queue.as_bytes()) {
        properties.clone()
    } else {
        properties.without_header(headers::QUEUE).with_more_headers([(headers::QUEUE, queue.as_bytes())])
    };
    properties.with_list(headers::BLIND_COPY, key.as_bytes())
}

/// The parts of an AMQP 1.0 message that every client can read.
pub(super) fn readable(payload: &Bytes) -> Message {
    let sections = Sections::parse(payload).unwrap_or_default();
    let annotation = |name| match sections.annotation(name) {
        Some(Value::String(text) | Value::Symbol(text)) => Bytes::copy_from_slice(text.as_bytes()),
        _ => Bytes::new(),
    };
    let mut properties = Properties::default();
    if let Some(Value::String(id)) = sections.message_id() {
        properties = properties.with_text(Property::MessageId, id.as_bytes());
    }
    if let Some(content_type) = sections.content_type() {
        properties = properties.with_text(Property::ContentType, content_type.as_bytes());
    }
    Message {
        delivery_tag: 0,
        redelivered: false,
        exchange: annotation("x-exchange"),
        routing_key: annotation("x-routing-key"),
        properties,
        body: sections.body().clone(),
    }
}
