//! A bounded read of a stream: from an offset to the end of the stream or to a number of bytes.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{
    batch::Batch,
    client::Inner,
    connection::{Delivery, Reservation, Specification, StreamStats},
    error::Error,
};

/// The result of [`crate::Client::read`].
#[derive(Debug)]
pub struct ReadBatch {
    /// Chunks in order, with at least one message after the requested offset unless the end is reached, `lost` is set
    /// or time ran out. Chunks without readable messages are left out. Their credit is already returned, so they may be
    /// kept.
    pub batches: Vec<Batch>,
    /// The stream's first offset when the reading began; `None`: the stream is empty.
    pub first_offset: Option<u64>,
    /// Where to continue: the offset after the last message, at least the requested one.
    pub next: u64,
    /// Everything that was committed when the reading began has been read.
    pub at_end: bool,
    /// What follows the batches is missing: retention deleted it while it was read, a chunk exceeds `max_frame_bytes`,
    /// or so many unreadable messages follow that time ran out.
    pub lost: bool,
}

/// Attempts, as the stream may grow while it is being read, and a replica may lag behind its leader.
const RACES: u32 = 5;

pub(crate) async fn read(
    inner: &Inner,
    stream: &str,
    from: u64,
    max_bytes: usize,
    limit: Duration,
) -> Result<ReadBatch, Error> {
    let stream: Arc<str> = Arc::from(stream);
    let mut result = ReadBatch { batches: Vec::new(), first_offset: None, next: from, at_end: false, lost: false };
    let work = async {
        let mut nodes = Vec::new();
        for _ in 0..RACES {
            let reservation = inner.pool.reserve(&nodes).await?;
            let connection = Arc::clone(reservation.connection());
            match attempt(inner, &stream, reservation, (from, max_bytes), &mut result).await {
                Ok(true) if result.at_end && result.batches.is_empty() => {
                    // A stream that ends before `from`, or a replica that lags: the leader knows.
                    let members = connection.locate(&stream).await?;
                    if members.are_led_by(&connection) {
                        return Ok(());
                    }
                    nodes = vec![members.leader.ok_or(Error::NotReady)?];
                    result.at_end = false;
                }
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.is_elsewhere() && nodes.is_empty() => {
                    nodes = connection.locate(&stream).await?.nodes;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Timeout { what: "a stable end of the stream", after: limit })
    };
    match timeout(limit, work).await {
        Ok(Ok(())) => Ok(result),
        // Return what was read; the caller continues from `next`. The message at `from` alone is what it had before.
        Ok(Err(_)) if result.batches.last().is_some_and(|last| last.end_offset() > from + 1) => Ok(result),
        Err(_) if result.next > from => {
            // In the middle of unreadable messages: from the last readable one, the next read would take as long.
            result.lost |= result.batches.last().is_none_or(|last| last.end_offset() < result.next);
            Ok(result)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Timeout { what: "read", after: limit }),
    }
}

/// False: the stream changed meanwhile, try again.
async fn attempt(
    inner: &Inner,
    stream: &Arc<str>,
    reservation: Reservation,
    (requested, max_bytes): (u64, usize),
    result: &mut ReadBatch,
) -> Result<bool, Error> {
    let stats = reservation.connection().stats(stream).await?;
    result.first_offset = stats.first_offset;
    let connection = Arc::clone(reservation.connection());
    let StreamStats { committed_chunk_id: Some(newest), committed_offset, .. } = stats else {
        result.at_end = true;
        return Ok(true);
    };
    if committed_offset.is_some_and(|end| end < result.next) {
        result.at_end = true;
        return Ok(true);
    }
    // Beyond the start of the newest chunk, only reading that chunk shows where the stream ends: at an offset beyond
    // the end the broker sends nothing.
    let near_end = result.next > newest;
    let from = if near_end { Specification::Last } else { Specification::Offset(result.next) };
    let mut reader = reservation.subscribe(stream, from, inner.config.credits, &inner.budget).await?;
    let (mut bytes, mut further) = (0, false);
    loop {
        let (chunk, permit) = match reader.next().await? {
            Delivery::Chunk(chunk, permit) => (chunk, permit),
            Delivery::Oversized(_) => {
                result.lost = true;
                return Ok(true);
            }
            Delivery::Ended(code) => return Err(Error::SubscriptionEnded(code)),
        };
        drop(permit);
        let skips = chunk.first_offset > result.next;
        if near_end && skips && chunk.first_offset > newest {
            return Ok(false); // messages were written meanwhile: those in between were skipped
        }
        if skips {
            // Unused offsets, or deleted messages. A page ends before these: whoever continues behind it finds the gap.
            let stats = connection.stats(stream).await?;
            let first = stats.first_offset;
            if !stats.reaches(&chunk) && result.batches.is_empty() {
                return Ok(false); // of another stream by now
            }
            if result.batches.is_empty() {
                // Deleted since the stats above: with their first offset the hole would look like another stream.
                result.first_offset = first;
            } else if !stats.reaches(&chunk) || first.is_none_or(|first| first > result.next) {
                result.lost = true;
                return Ok(true);
            }
        }
        let end = chunk.end_offset();
        result.at_end = end > committed_offset.unwrap_or(newest);
        if end > result.next {
            let (last, unreadable) = chunk.last_position(result.next);
            inner.counters.skipped_messages.add(unreadable);
            let from = std::mem::replace(&mut result.next, end);
            if let Some(last) = last {
                bytes += chunk.data.len();
                further |= last.offset > requested;
                let counters = Arc::clone(&inner.counters);
                result.batches.push(Batch { chunk, from, counters, _permit: None });
            }
        }
        // Whoever continues from a message that it knows gets at least the next one, however far it is.
        if result.at_end || (bytes >= max_bytes && further) {
            return Ok(true);
        }
    }
}
