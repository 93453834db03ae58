//! A bounded look into a stream: from an offset on, as far as the stream goes or as many bytes as asked for.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{
    batch::Batch,
    client::Inner,
    connection::{Delivery, Reservation, Specification, StreamStats},
    error::Error,
};

/// The answer to [`crate::Client::read`].
#[derive(Debug)]
pub struct ReadBatch {
    /// Chunks in order; together at least one message unless the end is reached. Their credit is already given back, so
    /// they may be kept.
    pub batches: Vec<Batch>,
    /// The stream's first offset when the reading began; `None`: the stream is empty.
    pub first_offset: Option<u64>,
    /// Where to go on: the offset after the last message, at least the one asked for.
    pub next: u64,
    /// Everything that was committed when the reading began has been read.
    pub at_end: bool,
}

/// A stream may grow between two looks at it this often.
const RACES: u32 = 5;

pub(crate) async fn read(
    inner: &Inner,
    stream: &str,
    from: u64,
    max_bytes: usize,
    limit: Duration,
) -> Result<ReadBatch, Error> {
    let stream: Arc<str> = Arc::from(stream);
    let mut result = ReadBatch { batches: Vec::new(), first_offset: None, next: from, at_end: false };
    let work = async {
        let mut nodes = Vec::new();
        for _ in 0..RACES {
            let reservation = inner.pool.reserve(&nodes).await?;
            let connection = Arc::clone(reservation.connection());
            match attempt(inner, &stream, reservation, max_bytes, &mut result).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.is_elsewhere() && nodes.is_empty() => nodes = connection.locate(&stream).await?,
                Err(error) => return Err(error),
            }
        }
        Err(Error::Timeout { what: "a steady look at the end of the stream", after: limit })
    };
    match timeout(limit, work).await {
        Ok(Ok(())) => Ok(result),
        // What is there is good; the caller goes on from `next`.
        Ok(Err(_)) | Err(_) if !result.batches.is_empty() => Ok(result),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Timeout { what: "read", after: limit }),
    }
}

/// False: the stream changed meanwhile, look again.
async fn attempt(
    inner: &Inner,
    stream: &Arc<str>,
    reservation: Reservation,
    max_bytes: usize,
    result: &mut ReadBatch,
) -> Result<bool, Error> {
    let stats = reservation.connection().stats(stream).await?;
    result.first_offset = stats.first_offset;
    let StreamStats { committed_chunk_id: Some(newest), committed_offset, .. } = stats else {
        result.at_end = true;
        return Ok(true);
    };
    if committed_offset.is_some_and(|end| end < result.next) {
        result.at_end = true;
        return Ok(true);
    }
    // Beyond the start of the newest chunk only a look at that chunk tells where the stream ends: at an offset beyond
    // the end the broker would be silent.
    let near_end = result.next > newest;
    let from = if near_end { Specification::Last } else { Specification::Offset(result.next) };
    let mut reader = reservation.subscribe(stream, from, inner.config.credits, &inner.budget).await?;
    let mut bytes = 0;
    loop {
        let (chunk, held) = match reader.next().await? {
            Delivery::Chunk(chunk, held) => (chunk, held),
            Delivery::Oversized(_) => continue,
            Delivery::Ended(code) => return Err(Error::SubscriptionEnded(code)),
        };
        drop(held);
        if near_end && chunk.first_offset > newest && result.batches.is_empty() && chunk.first_offset > result.next {
            return Ok(false); // messages were written meanwhile: those between have been passed over
        }
        let end = chunk.end_offset();
        result.at_end = end > committed_offset.unwrap_or(newest);
        if end > result.next {
            let (_, unreadable) = chunk.last_position(result.next);
            inner.counters.skipped_messages.add(unreadable);
            bytes += chunk.data.len();
            let counters = Arc::clone(&inner.counters);
            let from = std::mem::replace(&mut result.next, end);
            result.batches.push(Batch { chunk, from, counters, _held: None });
        }
        if result.at_end || bytes >= max_bytes {
            return Ok(true);
        }
    }
}
