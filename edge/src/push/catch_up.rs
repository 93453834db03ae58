//! How a connection gets what its client missed, and goes live.
//!
//! *Flow*: the client's cursor names the last message that it saw. While the log contains that position, the connection
//! reads the log; otherwise it reads pages of the stream, shared with the other clients of the business, at its own
//! pace: a slow client keeps one page, not a reader. *Guarantees*: each entry once and in order; progress is kept after
//! every page, since the client gets its position. If the message at the cursor does not have the cursor's fingerprint,
//! the client gets a gap and continues from now. It is greeted within [`GREET_WITHIN`], whatever the broker does.
//! *Cancel safety*: dropping the future leaves the connection not live and keeps nothing else.

mod progress;
mod read;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    basis::Basis,
    entry::Entry,
    greeting::Greeting,
    hub::{Hub, position_frame},
    mailbox::Mailbox,
};
use crate::{broker::Position, clock, turn};
pub use progress::StartAt;
use progress::{Action, Input, Progress};
use read::{StreamRead, read};

/// How long a client waits for the broker before it is greeted without a position.
const GREET_WITHIN: Duration = Duration::from_secs(2);

/// Lets a connection catch up until it is live. Returns when it is, or when it is closing.
pub async fn run(hub: &Hub, mailbox: &Arc<Mailbox>, start: StartAt, greeting: &mut Greeting<'_>) {
    let greet_by = Instant::now() + GREET_WITHIN;
    let mut moved = hub.moved();
    let mut progress = Progress::new(start);
    let mut action = progress.attempt();
    let mut basis = Basis::now(hub, mailbox);
    loop {
        let begun = Instant::now();
        if let Action::Advance(_) | Action::Read { .. } = action {
            basis = Basis::now(hub, mailbox);
        }
        let input = match action {
            Action::End => return,
            Action::Advance(_) | Action::Join(..) if mailbox.outbound.closing().is_some() => return,
            Action::Advance(at) => {
                moved.mark_unchanged();
                Input::Advanced(hub.advance(mailbox, at, || greeting.resumed(at)))
            }
            Action::Join(gap, not_before) => {
                moved.mark_unchanged();
                Input::Joined(hub.join_at_end(mailbox, gap, not_before, |position| match gap {
                    Some(gap) => greeting.gap(position, gap),
                    None => greeting.fresh(position),
                }))
            }
            Action::Read { at, ahead } => {
                let found = in_time(read(hub, mailbox, at, ahead), greet_by, greeting).await;
                match &found {
                    Ok(StreamRead::Continues { .. }) => greeting.resumed(at),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(business = %hub.name, connection = mailbox.id, %error, "catching up waits for the broker");
                    }
                }
                Input::Read(found)
            }
            Action::Deliver(entries, reached) => {
                let Some(done) = deliver(hub, mailbox, &basis, &entries, reached).await else { return };
                Input::Delivered(done)
            }
            Action::AwaitLog => {
                let _ = in_time(moved.changed(), greet_by, greeting).await;
                Input::Done
            }
            Action::AwaitReader(offset, longest) => {
                let (life, _) = hub.end_of_log();
                let near = async {
                    while moved.changed().await.is_ok() {
                        let (is, end) = hub.end_of_log();
                        if end >= Some(offset) || is != life {
                            break;
                        }
                    }
                };
                let _ = in_time(timeout(longest, near), greet_by, greeting).await;
                Input::Done
            }
            Action::Wait(time) => {
                in_time(sleep(time), greet_by, greeting).await;
                Input::Done
            }
        };
        action = progress.next(input);
        // Where nothing has to be awaited, a long log would be scanned in one go.
        turn::charge(begun).await;
    }
}

/// Queues entries as there is room, and the position behind them: up to which position, none if it had not begun when
/// what the choice depends on changed. `None`: the connection is closing.
async fn deliver(
    hub: &Hub,
    mailbox: &Mailbox,
    basis: &Basis,
    entries: &[Arc<Entry>],
    reached: Position,
) -> Option<Option<Position>> {
    let mut done = None;
    for entry in entries {
        mailbox.outbound.room_for(entry.cost()).await;
        if !basis.holds(hub, mailbox) {
            return Some(done);
        }
        done = Some(entry.position);
        if entry.push.as_ref().is_some_and(|push| push.is_over(clock::now_ms())) {
            continue;
        }
        if !mailbox.deliver(entry) {
            return None;
        }
        hub.context.metrics.deliveries.inc();
    }
    if mailbox.knows_less_than(reached.offset) {
        mailbox.tell(reached.offset);
        mailbox.control(position_frame(&hub.name, reached));
    }
    mailbox.outbound.room_for(0).await;
    Some(Some(reached))
}

/// Awaits a future, however long it takes; the client is still greeted in time.
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
