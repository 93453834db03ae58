//! The queue of an edge: its names, how it is declared, and deleted.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use wirepost_amqp::{
    Error,
    v091::{Connection, Properties, Published},
};
use wirepost_core::{contract::marker, names};
use wirepost_rabbitmq::Endpoint;

use crate::rabbit::dialer::{Dialer, HEARTBEAT};

/// How long the queue lives without a consumer.
const EXPIRES_MS: i32 = 60_000;
/// Names beside the usual one for queues of an edge, where a queue whose node is down can't be deleted.
pub(super) const SPARES: u8 = 4;

/// A queue whose node is down refuses a message within milliseconds.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

/// The arguments of the queue: classic, and how long it lives without a consumer.
fn arguments() -> Vec<u8> {
    let mut table = b"\x0cx-queue-typeS\x00\x00\x00\x07classic\x09x-expiresI".to_vec();
    table.extend(EXPIRES_MS.to_be_bytes());
    table
}

/// The name of one of an edge's queues: 0 is the usual one.
pub(super) fn queue_name(business: &str, edge: &str, number: u8) -> String {
    match number {
        0 => names::edge_queue(business, edge),
        number => names::spare_edge_queue(business, edge, number),
    }
}

/// Makes sure that a queue exists, and answers. `empty`: what an earlier reader left behind in it is not next. `made`: set before it is
/// declared.
pub(super) async fn claim(connection: &mut Connection, queue: &str, empty: bool, made: &mut bool) -> Result<(), Error> {
    match connection.counts(queue).await {
        Ok(_) if empty => connection.purge(queue).await,
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => {
            *made = true;
            // That closed the channel.
            connection.open_channel().await?;
            connection.declare(queue, &arguments()).await.map(drop)
        }
        Err(error) => Err(error),
    }
}

/// Whether the broker refuses the pushes of a business, because the node of a queue is down. Queues that are merely slow take the marker,
/// which no client gets, or the broker answers nothing. Only where the own queue does not answer: the push exchange leads into every
/// edge's. Not straight to the queue: an edge has no right to the default exchange.
pub(super) async fn is_down(endpoint: &Endpoint, business: &str) -> bool {
    let asking = async {
        let mut connection = Connection::open(endpoint, HEARTBEAT).await?;
        connection.confirm().await?;
        let body = marker::body("is-down");
        let push = names::push_exchange(business);
        connection.publish(push.as_bytes(), b"", &Properties::default().persistent(), body.as_bytes()).await
    };
    matches!(timeout(REFUSED_WITHIN, asking).await, Ok(Ok::<_, Error>(Published::Refused)))
}

/// Deletes an edge's queues of a business, with their messages.
pub(in crate::rabbit) async fn delete_queue(dialer: Arc<Dialer>, business: String) -> Result<(), String> {
    let endpoint = dialer.endpoint(rand::random_range(0..dialer.addresses.len()), "leaving")?;
    let deleting = async {
        let mut connection = Connection::open(&endpoint, HEARTBEAT).await?;
        for number in 0..=SPARES {
            match connection.delete(&queue_name(&business, &dialer.edge, number)).await {
                Ok(()) => {}
                // On a node that is down. It expires once that is back.
                Err(error) if error.is_not_found() => connection.open_channel().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    deleting.await.map_err(|error: Error| error.to_string())
}
