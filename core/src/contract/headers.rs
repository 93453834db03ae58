//! Headers and properties of the AMQP messages that wirepost writes and reads. `docs/protocol.md` promises them to services.

/// The property `content-type` of every message: the body is JSON.
pub const CONTENT_TYPE: &str = "application/json";

/// Routing keys that an exchange uses beside the message's own; the broker takes it off (rabbitmq.com/docs/sender-selected).
pub const BLIND_COPY: &str = "BCC";
/// The queue that a message from a client is for.
pub const QUEUE: &str = "queue";

/// Which publish of its AMQP channel a message was, from 1 on. A message that the broker returns is told by it from the others in flight.
pub const PUBLISH_NUMBER: &str = "publish-number";
/// The envelope's `messageType`.
pub const MESSAGE_TYPE: &str = "message-type";
/// The sender's client type.
pub const FROM_CLIENT_TYPE: &str = "from-client-type";
/// The sender's identity.
pub const FROM_UNIQUE_ID: &str = "from-unique-id";
/// The trace that a push belongs to (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// Begins the name of each header that says to whose clients a message goes that is published to a
/// [`share_exchange`](crate::names::share_exchange); the rest is the business type.
pub const TO_BUSINESS: &str = "to-business-";
/// The value of such a header. The broker compares it.
pub const TO_BUSINESS_VALUE: &str = "true";

/// The header that names this business.
pub fn to_business(business: &str) -> String {
    format!("{TO_BUSINESS}{business}")
}

/// On a message in [`dead_queue`](crate::names::dead_queue) that wirepost itself put there: why, in a sentence. Those that the broker put
/// there have `x-first-death-reason` instead.
pub const REASON: &str = "wirepost-reason";
/// Beside [`REASON`]: the exchange that the message was published to.
pub const EXCHANGE: &str = "wirepost-exchange";
/// Beside [`REASON`]: its routing key, as far as that is UTF-8.
pub const ROUTING_KEY: &str = "wirepost-routing-key";
