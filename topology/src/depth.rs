//! Whether a queue may be deleted: how many messages it has, where that is known beyond doubt.
//!
//! No single answer of RabbitMQ proves that a queue is empty:
//! - A passive declare asks the leader of a quorum queue. While it is away or slow, the answer is 0 messages, not an error.
//! - Messages of a quorum queue that wait to be dead-lettered, because `dead` is full or not bound, are neither ready nor unacknowledged
//!   (measured on 4.3.6): only statistics count them, and they would be deleted with the queue.
//! - Statistics of a quorum queue are up to ten seconds old, and absent while the leader is away, after a restart, and with
//!   `management_agent.disable_metrics_collector = true`.
//!
//! So a check asks all of them, a missing answer makes the [`Depth`] unknown, and only the second of two checks that found nothing,
//! [`LOOKS_APART`] apart, permits a deletion. Classic queues are also deleted with `if-empty`; quorum queues refuse it, and a stream with
//! messages is deleted in spite of it (measured on 4.3.6).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::error::Error;

/// Between the two checks: longer than statistics are old, so that the second check's were counted after the first check. A quorum queue
/// counts every 5 s (`quorum_tick_interval`), and its counts are collected every 5 s (`collect_statistics_interval`).
pub const LOOKS_APART: Duration = Duration::from_secs(11);
/// After this long a first check no longer counts: the queue may have been declared again and used in between. A plan that waits for its
/// second check is repeated well within it.
const LOOK_VALID_FOR: Duration = Duration::from_mins(2);
/// An unresponsive broker, or one whose alarm blocks this connection, must not delay a plan.
const TIMEOUT: Duration = Duration::from_secs(5);
/// First checks that are remembered; beyond it, expired ones are forgotten.
const MAX_LOOKS: usize = 4096;

/// How many messages a queue has. "Not known" is a case of its own, not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The queue does not exist.
    NoQueue,
    /// Counted by its leader, and by fresh statistics.
    Known {
        /// Ready, unacknowledged, and waiting to be dead-lettered; a lower bound.
        messages: u64,
        /// Consumers.
        consumers: u32,
    },
    /// The number is not known.
    Unknown(UnknownDepth),
}

/// Why a [`Depth`] is not known. `Display` explains it and its remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownDepth {
    /// There is no AMQP connection to ask the queue.
    #[error("there is no AMQP connection to count its messages by")]
    NoConnection,
    /// The queue, or the management API about it, does not answer.
    #[error("it does not answer")]
    NoAnswer,
    /// No member of the quorum queue reports to be its leader.
    #[error("its leader does not answer; look at the broker's nodes (`rabbitmq-queues quorum_status`)")]
    NoLeader,
    /// Statistics are absent.
    #[error(
        "the broker has no statistics of it; they come within seconds after a restart, and never with `management_agent.disable_metrics_collector = true`"
    )]
    NoStatistics,
}

/// Why a queue that is no longer declared still exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// It contains messages.
    Messages(u64),
    /// It is empty but has consumers.
    Consumers(u32),
    /// It is a stream. It keeps history, and no count of the broker shows early enough that there is none.
    Stream,
    /// Edges with a former configuration may still use it.
    Edges,
    /// It was found empty now, and is checked once more.
    Confirming,
    /// Whether it contains messages is unknown.
    Unknown(UnknownDepth),
}

/// Queues that were found empty, and when first. Shared by the plans of one vhost.
#[derive(Debug, Default)]
pub struct Looks(Mutex<HashMap<String, Instant>>);

impl Looks {
    /// Forgets everything: earlier checks no longer count.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Records that the queue was found empty. Whether an earlier check, long enough ago, found it empty too.
    fn found_empty(&self, queue: &str) -> bool {
        let mut looks = self.lock();
        if looks.len() >= MAX_LOOKS {
            looks.retain(|_, first| first.elapsed() < LOOK_VALID_FOR);
        }
        let first = looks.entry(queue.to_owned()).or_insert_with(Instant::now);
        if first.elapsed() >= LOOK_VALID_FOR {
            *first = Instant::now();
        }
        first.elapsed() >= LOOKS_APART
    }

    fn forget(&self, queue: &str) {
        self.lock().remove(queue);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a queue may be deleted, according to a check.
pub(crate) enum Permission {
    /// It must stay.
    Keep(KeepReason),
    /// It may be deleted. `guard`: the broker checks once more that it is empty and unused.
    Delete { guard: bool },
}

/// Checks a queue that should be deleted. Without `looks` each check is the first.
pub(crate) async fn permission(
    management: &ManagementClient,
    connection: Option<&Connection>,
    looks: Option<&Looks>,
    queue: &str,
) -> Result<Permission, Error> {
    let (depth, guard) = look(management, connection, queue).await?;
    let keep = match depth {
        Depth::Known { messages: 0, consumers: 0 } => {
            if looks.is_some_and(|looks| looks.found_empty(queue)) {
                return Ok(Permission::Delete { guard });
            }
            return Ok(Permission::Keep(KeepReason::Confirming));
        }
        Depth::NoQueue => return Ok(Permission::Delete { guard: false }),
        Depth::Known { messages: 0, consumers } => KeepReason::Consumers(consumers),
        Depth::Known { messages, consumers: _ } => KeepReason::Messages(messages),
        Depth::Unknown(why) => KeepReason::Unknown(why),
    };
    if let Some(looks) = looks {
        looks.forget(queue);
    }
    Ok(Permission::Keep(keep))
}

/// A queue as the management API reports it.
#[derive(Deserialize)]
struct Statistics {
    /// `quorum`, `classic`, …
    #[serde(rename = "type", default)]
    kind: String,
    /// Of all kinds. Absent if statistics are off or not collected yet.
    #[serde(default)]
    messages: Option<u64>,
}

/// The depth of a queue, and whether the broker would check it once more at the deletion.
async fn look(
    management: &ManagementClient,
    connection: Option<&Connection>,
    queue: &str,
) -> Result<(Depth, bool), Error> {
    let Some(connection) = connection else { return Ok((Depth::Unknown(UnknownDepth::NoConnection), false)) };
    let doing = format!("counting the messages of {queue}");
    let path = ["queues", management.vhost(), queue];
    let Statistics { kind, messages } = match management.get(&doing, &path, "columns=type,messages").await {
        Ok(statistics) => statistics,
        Err(CallError::NotFound(_)) => return Ok((Depth::NoQueue, false)),
        Err(CallError::Object(_) | CallError::Failed(_)) => return Ok((Depth::Unknown(UnknownDepth::NoAnswer), false)),
        Err(CallError::Fatal(error)) => return Err(error.into()),
    };
    let guard = kind == "classic";
    let leads = kind != "quorum" || has_leader(management, queue).await?;
    // The queue itself last: its answer is up to date.
    let counted = match timeout(TIMEOUT, declared(connection, queue)).await {
        Ok(Ok(counted)) => counted,
        // One queue that can't be counted, or a lost connection, must not delay anything else.
        Ok(Err(error)) => {
            tracing::debug!(queue, %error, "a queue can't be counted");
            return Ok((Depth::Unknown(UnknownDepth::NoAnswer), guard));
        }
        Err(_) => return Ok((Depth::Unknown(UnknownDepth::NoAnswer), guard)),
    };
    let depth = match (counted, messages) {
        // A count above 0 is reliable even if others are missing.
        ((ready, consumers), messages) if ready > 0 => {
            Depth::Known { messages: messages.unwrap_or_default().max(ready.into()), consumers }
        }
        ((_, consumers), Some(messages)) if leads => Depth::Known { messages, consumers },
        (_, None) => Depth::Unknown(UnknownDepth::NoStatistics),
        (_, Some(_)) => Depth::Unknown(UnknownDepth::NoLeader),
    };
    Ok((depth, guard))
}

/// Whether a member of a quorum queue reports to be its leader. Asks the members, not statistics.
async fn has_leader(management: &ManagementClient, queue: &str) -> Result<bool, Error> {
    #[derive(Deserialize)]
    struct Member {
        #[serde(rename = "Raft State", default)]
        state: String,
    }
    let doing = format!("asking for the leader of {queue}");
    let path = ["queues", "quorum", management.vhost(), queue, "status"];
    match management.get::<Vec<Member>>(&doing, &path, "").await {
        Ok(members) => Ok(members.iter().any(|member| member.state == "leader")),
        Err(CallError::NotFound(_) | CallError::Object(_) | CallError::Failed(_)) => Ok(false),
        Err(CallError::Fatal(error)) => Err(error.into()),
    }
}

/// Ready messages and consumers as the queue counts them.
///
/// # Errors
/// Any failure. "Not found" proves nothing about a queue that the management API has just listed: RabbitMQ answers it for an unavailable
/// queue (rabbitmq-server#9366).
async fn declared(connection: &Connection, queue: &str) -> lapin::Result<(u32, u32)> {
    // A channel of its own: the broker closes it with an error.
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    let counts = (queue.message_count(), queue.consumer_count());
    let _ = channel.close(200, "done".into()).await;
    Ok(counts)
}

pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(e) if e.get_id() == 404)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_second_of_two_looks_apart_confirms_and_a_message_between_them_begins_anew() {
        let looks = Looks::default();
        assert!(!looks.found_empty("q"));
        tokio::time::advance(LOOKS_APART / 2).await;
        assert!(!looks.found_empty("q"));
        tokio::time::advance(LOOKS_APART / 2).await;
        assert!(looks.found_empty("q"));
        looks.forget("q");
        assert!(!looks.found_empty("q"));
        // The queue was declared again, used, and is not declared any more.
        tokio::time::advance(LOOK_VALID_FOR).await;
        assert!(!looks.found_empty("q"));
        tokio::time::advance(LOOKS_APART).await;
        assert!(looks.found_empty("q"));
    }
}
