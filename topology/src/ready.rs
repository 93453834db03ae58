//! Counts the ready messages of many queues by AMQP, over a few channels at the same time: the management API's counts are seconds old,
//! and absent if statistics are off.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::timeout;

use crate::depth::is_not_found;
use crate::error::Error;

/// Channels that count at the same time, and the longest time in all.
const CHANNELS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(10);

/// The ready messages of each of these queues, in their order; `None`: the queue does not exist. `doing`: for the error.
///
/// # Errors
/// The broker does not answer; then no count is known.
pub(crate) async fn ready_messages(
    connection: &Connection,
    queues: &[String],
    doing: &str,
) -> Result<Vec<Option<u32>>, Error> {
    let shares = queues.chunks(queues.len().div_ceil(CHANNELS).max(1));
    let counted = futures_util::future::try_join_all(shares.map(|share| count_share(connection, share)));
    let failed = |cause: String| Error::Amqp { doing: doing.to_owned(), cause };
    match timeout(TIMEOUT, counted).await {
        Ok(Ok(counts)) => Ok(counts.into_iter().flatten().collect()),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed(format!("no answer within {TIMEOUT:?}"))),
    }
}

async fn count_share(connection: &Connection, queues: &[String]) -> lapin::Result<Vec<Option<u32>>> {
    let mut counts = Vec::with_capacity(queues.len());
    let mut channel = connection.create_channel().await?;
    for queue in queues {
        counts.push(match ready(&channel, queue).await {
            Ok(ready) => Some(ready),
            // The broker has closed the channel.
            Err(e) if is_not_found(&e) => {
                channel = connection.create_channel().await?;
                None
            }
            Err(e) => return Err(e),
        });
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(counts)
}

async fn ready(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
}
