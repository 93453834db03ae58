//! Sets aside a message that can't be moved: publishes it to the business's `dead`, in a form that every client can read.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use wirepost_amqp::Error;
use wirepost_amqp::v091::{Connection, Message, Properties, Property, Published};
use wirepost_core::{Envelope, contract::headers, names};
use wirepost_rabbitmq::Endpoint;

/// Why a message is set aside.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Why {
    /// It is another business's, and acceptance was taken back.
    #[error("its business is not accepted any more")]
    NotAccepted,
    /// It is for the clients of several businesses, and AMQP 0-9-1 can't read it.
    #[error("it is for several businesses, and can't be sent to one of them again")]
    Copied,
    /// The broker failed at it, in its words.
    #[error("{0}")]
    Broker(String),
}

/// Publishes it to the dead-letter exchange with its body, the properties and headers that every client can read, and the reason in a
/// header. Returns why the exchange did not accept it, if so.
pub(super) async fn publish_to_dead(
    connection: &mut Connection,
    business: &str,
    message: &Message,
    reason: &str,
) -> Result<Option<String>, Error> {
    let routing_key = String::from_utf8_lossy(&message.routing_key);
    let headers = [
        (headers::REASON, reason.as_bytes()),
        (headers::EXCHANGE, &message.exchange[..]),
        (headers::ROUTING_KEY, routing_key.as_bytes()),
    ];
    // It must not expire there, and must not name a user.
    let properties = message.properties.without(Property::Expiration).without(Property::UserId);
    let properties = properties.readable().persistent().with_more_headers(headers);
    let exchange = names::dead_letter_exchange(business);
    let published = connection.publish(exchange.as_bytes(), b"", &properties, &message.body).await?;
    Ok(match published {
        Published::Taken => None,
        Published::Returned(reason) => Some(format!("nor does {exchange}: {reason}")),
        Published::Refused => {
            Some(format!("nor does {exchange}: {} refuses it; is it full?", names::dead_queue(business)))
        }
    })
}

/// Publishes a `rejected` event, one of another business's message also to that business. They may be unrouted.
pub(super) async fn report(
    mut connection: Connection,
    business: &str,
    endpoint: &Endpoint,
    message: &Message,
    why: &Why,
) -> Result<(), Error> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let published_to = String::from_utf8_lossy(&message.exchange);
    let mut event = json!({
        "event": "rejected",
        "id": Envelope::readable_id(&message.body),
        "reason": "unmovable",
        "description": format!(
            "waited in {} for a binding of {published_to}, and can't be published there: {why}; it is in {} now",
            names::unrouted(business),
            names::dead_queue(business),
        ),
        "offset": null,
        "businessType": business,
        "edge": endpoint.name(),
        "timestamp": u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    });
    let properties = Properties::default().with_text(Property::ContentType, b"application/json").persistent();
    let exchange = names::events_exchange(business);
    connection.publish(exchange.as_bytes(), b"rejected", &properties, event.to_string().as_bytes()).await?;
    let Some(sender) = names::owner(&published_to).filter(|owner| *owner != business) else { return Ok(()) };
    (event["businessType"], event["refusedBy"]) = (json!(sender), json!(business));
    if matches!(why, Why::NotAccepted) {
        event["reason"] = json!("not_accepted");
    }
    let exchange = names::events_exchange(sender);
    connection.publish(exchange.as_bytes(), b"rejected", &properties, event.to_string().as_bytes()).await.map(drop)
}
