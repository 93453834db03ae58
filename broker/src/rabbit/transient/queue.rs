//! The queue of an edge: how it is declared, and deleted.

use std::sync::Arc;

use wirepost_amqp::v091::Connection;
use wirepost_core::names;

use crate::rabbit::dialer::{Dialer, HEARTBEAT};

/// How long the queue lives without a consumer.
const EXPIRES_MS: i32 = 60_000;

/// The arguments of the queue: classic, and how long it lives without a consumer.
pub(super) fn arguments() -> Vec<u8> {
    let mut table = b"\x0cx-queue-typeS\x00\x00\x00\x07classic\x09x-expiresI".to_vec();
    table.extend(EXPIRES_MS.to_be_bytes());
    table
}

/// Deletes an edge's queue of a business, with its messages.
pub(in crate::rabbit) async fn delete_queue(dialer: Arc<Dialer>, business: String) -> Result<(), String> {
    let endpoint = dialer.endpoint(rand::random_range(0..dialer.addresses.len()), "leaving")?;
    let deleting = async {
        let mut connection = Connection::open(&endpoint, HEARTBEAT).await?;
        connection.delete(&names::edge_queue(&business, &dialer.edge)).await
    };
    deleting.await.map_err(|error| error.to_string())
}
