//! Whether a queue may be deleted, by counts from the queue itself. Those of the management API are up to five seconds old, and quorum
//! queues refuse `if-empty`.

use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde::Deserialize;
use tokio::time::timeout;
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::report::{Error, KeepReason};

/// An unresponsive broker, or one whose alarm blocks this connection, must not delay a plan.
const TIMEOUT: Duration = Duration::from_secs(5);

/// `None` if the queue is empty and has no consumers, or if it does not exist.
pub(crate) async fn reason_to_keep(connection: &Connection, queue: &str) -> Result<Option<KeepReason>, Error> {
    timeout(TIMEOUT, ask(connection, queue)).await.unwrap_or_else(|_| {
        let doing = format!("counting the messages of {queue}");
        Err(Error::Amqp { doing, cause: format!("no answer within {TIMEOUT:?}") })
    })
}

async fn ask(connection: &Connection, queue: &str) -> Result<Option<KeepReason>, Error> {
    let failed =
        |e: lapin::Error| Error::Amqp { doing: format!("counting the messages of {queue}"), cause: e.to_string() };
    // A channel of its own: the broker closes it if the queue does not exist.
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let counts = match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
        Ok(queue) => (queue.message_count(), queue.consumer_count()),
        Err(e) if is_not_found(&e) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let _ = channel.close(200, "done".into()).await;
    Ok(match counts {
        (0, 0) => None,
        (0, consumers) => Some(KeepReason::Consumers(consumers)),
        (messages, _) => Some(KeepReason::Messages(messages)),
    })
}

/// Messages that wait to be dead-lettered, because `dead` is full or not bound. In a quorum queue they are neither ready nor unacknowledged,
/// so its own counts leave them out (measured on 4.3.6), and they would be deleted with it. Statistics are a few seconds old; these messages
/// wait longer.
pub(crate) async fn dead_letters_wait(management: &ManagementClient, queue: &str) -> Result<Option<KeepReason>, Error> {
    #[derive(Deserialize)]
    struct Numbers {
        /// Of all kinds. Absent if statistics are off or not collected yet.
        #[serde(default)]
        messages: u32,
    }
    let doing = format!("counting the dead letters of {queue}");
    match management.get::<Numbers>(&doing, &["queues", management.vhost(), queue], "columns=messages").await {
        Ok(Numbers { messages: 0 }) | Err(CallError::NotFound(_)) => Ok(None),
        Ok(Numbers { messages }) => Ok(Some(KeepReason::Messages(messages))),
        Err(CallError::Object(cause)) => Err(Error::Amqp { doing, cause }),
        Err(CallError::Failed(e) | CallError::Fatal(e)) => Err(e.into()),
    }
}

pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(e) if e.get_id() == 404)
}
