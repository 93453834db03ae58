//! How many messages need a person: those in `dead` and `unrouted` of each business.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::timeout;
use wirepost_core::names;

use crate::depth::is_not_found;
use crate::report::Error;

/// Channels that count at the same time, and the longest time in all.
const CHANNELS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Ready messages of one business in these queues; `None` = the queue does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// In `wirepost.B.dead`.
    pub dead: Option<u32>,
    /// In `wirepost.B.unrouted`.
    pub unrouted: Option<u32>,
}

/// The depths of these businesses, in their order.
///
/// Asks the queues themselves: the management API's counts are seconds old, and absent if statistics are off. About 1,000 businesses in
/// 200 ms.
///
/// # Errors
/// The broker does not answer; then no depth is known.
pub async fn depths(connection: &Connection, businesses: &[impl AsRef<str>]) -> Result<Vec<(String, Depths)>, Error> {
    let businesses: Vec<&str> = businesses.iter().map(AsRef::as_ref).collect();
    let shares = businesses.chunks(businesses.len().div_ceil(CHANNELS).max(1));
    let counted = futures_util::future::try_join_all(shares.map(|share| count_share(connection, share)));
    let failed = |cause: String| Error::Amqp { doing: "counting dead and unrouted messages".to_owned(), cause };
    match timeout(TIMEOUT, counted).await {
        Ok(Ok(counts)) => Ok(counts.into_iter().flatten().collect()),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed(format!("no answer within {TIMEOUT:?}"))),
    }
}

async fn count_share(connection: &Connection, businesses: &[&str]) -> lapin::Result<Vec<(String, Depths)>> {
    let mut depths = Vec::new();
    let mut channel = connection.create_channel().await?;
    for &business in businesses {
        let mut counts = [None; 2];
        for (queue, count) in [names::dead_queue(business), names::unrouted(business)].iter().zip(&mut counts) {
            match ready(&channel, queue).await {
                Ok(ready) => *count = Some(ready),
                // The broker has closed the channel.
                Err(e) if is_not_found(&e) => channel = connection.create_channel().await?,
                Err(e) => return Err(e),
            }
        }
        let [dead, unrouted] = counts;
        depths.push((business.to_owned(), Depths { dead, unrouted }));
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(depths)
}

async fn ready(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
}
