//! How a connection that comes back gets what it missed, and goes live.
//!
//! *Flow*: the client's cursor names the last message that it saw. As long as the log knows that position, it reads from there; otherwise it
//! reads pages of the stream, shared with the other clients of the business, at its own pace: a slow client holds one page, not a reader.
//! *Guarantees*: each entry once and in order; every page keeps its progress, since the client is told where it stands. Where the message at
//! the cursor is not the one that its fingerprint names, the client is told of a gap and continues with now. Whatever is waited for, it is
//! greeted within [`GREET_WITHIN`].
//! *Cancel safety*: dropping the future leaves the connection not live; nothing else is held.

mod read;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    gap::Gap,
    greeting::Greeting,
    hub::{Advance, Hub, position_frame},
    mailbox::Conn,
};
use crate::broker::Position;
use read::{StreamRead, read};

/// How long a client waits for the broker before it is greeted without knowing where it stands.
const GREET_WITHIN: Duration = Duration::from_secs(2);
/// Waits between attempts to read while the broker is away.
const RETRY: Duration = Duration::from_millis(500);
/// A replica may lag behind the edge that the client comes from: only after these is a position beyond the end another stream's.
const BEYOND_END_ATTEMPTS: u32 = 4;
/// Waits between them.
const BEYOND_END_WAIT: Duration = Duration::from_millis(150);

/// Where a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With what comes from now on.
    Now,
    /// After this message.
    After(Position),
    /// It has a cursor that can't be of this business's stream.
    Foreign,
}

/// Lets a connection catch up until it is live. Returns when it is, or when it is closing.
pub async fn run(hub: &Hub, conn: &Arc<Conn>, from: From, greeting: &mut Greeting<'_>) {
    let greet_by = Instant::now() + GREET_WITHIN;
    let mut at = match from {
        From::Now => return join(hub, conn, None, greet_by, greeting).await,
        From::Foreign => return join(hub, conn, Some(Gap::Cursor), greet_by, greeting).await,
        From::After(at) => at,
    };
    let mut moved = hub.moved();
    let mut beyond_end = 0;
    while conn.outbound.closing().is_none() {
        moved.mark_unchanged();
        let sent = match hub.advance(conn, at, || greeting.resumed(at)) {
            Advance::Live => return,
            Advance::More(entries, reached) => {
                at = reached;
                entries
            }
            Advance::Foreign => return join(hub, conn, Some(Gap::Incarnation), greet_by, greeting).await,
            Advance::Unattached => {
                let _ = in_time(moved.changed(), greet_by, greeting).await;
                continue;
            }
            step @ (Advance::Older | Advance::Newer) => match in_time(read(hub, at), greet_by, greeting).await {
                Ok(StreamRead::Continues(entries)) => {
                    greeting.resumed(at);
                    beyond_end = 0;
                    let Some(last) = entries.last() else {
                        if matches!(step, Advance::Newer) {
                            let _ = moved.changed().await;
                        } else {
                            // A replica that is behind the log answered. The log has what is missing, and may not move for long.
                            sleep(RETRY).await;
                        }
                        continue;
                    };
                    at = last.position;
                    hub.select(conn, &entries)
                }
                Ok(StreamRead::BeyondEnd) if beyond_end < BEYOND_END_ATTEMPTS => {
                    beyond_end += 1;
                    in_time(sleep(BEYOND_END_WAIT), greet_by, greeting).await;
                    continue;
                }
                Ok(StreamRead::BeyondEnd) => {
                    return join(hub, conn, Some(Gap::Incarnation), greet_by, greeting).await;
                }
                Ok(StreamRead::Gap(reason)) => return join(hub, conn, Some(reason), greet_by, greeting).await,
                Err(error) => {
                    tracing::debug!(business = %hub.name, connection = conn.id, %error, "catching up waits for the broker");
                    in_time(sleep(RETRY), greet_by, greeting).await;
                    continue;
                }
            },
        };
        for entry in &sent {
            conn.outbound.room_for(entry.cost()).await;
            if !conn.deliver(entry) {
                return;
            }
            hub.context.metrics.deliveries.inc();
        }
        if sent.last().is_none_or(|entry| entry.position != at) {
            conn.tell(at.offset);
            conn.control(position_frame(&hub.name, at));
        }
        conn.outbound.room_for(0).await;
    }
}

/// Goes live at the log's end.
async fn join(hub: &Hub, conn: &Arc<Conn>, gap: Option<Gap>, greet_by: Instant, greeting: &mut Greeting<'_>) {
    let mut moved = hub.moved();
    while conn.outbound.closing().is_none() {
        moved.mark_unchanged();
        let joined = hub.join_at_end(conn, |position| match gap {
            Some(reason) => greeting.gap(position, reason),
            None => greeting.fresh(position),
        });
        if joined {
            return;
        }
        let _ = in_time(moved.changed(), greet_by, greeting).await;
    }
}

/// Awaits something to its end, however long that takes; the client is greeted in time all the same.
async fn in_time<T>(future: impl Future<Output = T>, greet_by: Instant, greeting: &mut Greeting<'_>) -> T {
    let mut future = pin!(future);
    if !greeting.is_sent() {
        match timeout_at(greet_by, future.as_mut()).await {
            Ok(done) => return done,
            Err(_) => greeting.unknown(),
        }
    }
    future.await
}
