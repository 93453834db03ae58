//! Writes a message in AMQP.

use wirepost_amqp::{
    Error,
    v091::{Content, HeaderValue, Pipe},
};
use wirepost_core::{contract::headers, names};

use crate::Publication;

/// The end of the year 9999. Client libraries that convert the AMQP timestamp to a date fail beyond it, and their consumers with them.
const MAX_TIMESTAMP: u64 = 253_402_300_799;

/// Queues a message on a channel. `number`: its number on the channel; `None`: an event, which is not returned if nobody listens.
pub(super) fn publish(
    pipe: &mut Pipe,
    channel: u16,
    number: Option<u64>,
    publication: &Publication,
) -> Result<(), Error> {
    let content = Content {
        exchange: &publication.exchange,
        routing_key: &publication.routing_key,
        mandatory: number.is_some(),
        content_type: headers::CONTENT_TYPE,
        message_id: &publication.message_id,
        timestamp: u64::try_from(publication.timestamp / 1000).unwrap_or(0).min(MAX_TIMESTAMP),
        body: &publication.body,
    };
    let key = publication.queue.as_deref().map(names::queue_key);
    // The broker removes the first header. The second one stays: it says where the message belongs if it has to be moved back.
    let queue = key.as_ref().zip(publication.queue.as_deref()).map(|(key, queue)| {
        [
            (headers::BLIND_COPY, HeaderValue::List(key.as_bytes())),
            (headers::QUEUE, HeaderValue::Text(queue.as_bytes())),
        ]
    });
    let number = number.map(|number| (headers::PUBLISH_NUMBER, HeaderValue::Number(number.cast_signed())));
    let own = publication.headers.iter().map(|(name, value)| (&**name, HeaderValue::Text(value.as_bytes())));
    pipe.publish(channel, &content, number.into_iter().chain(queue.into_iter().flatten()).chain(own))
}
