//! Whether a queue may go: its numbers, asked of the queue itself. Those of the management API are up to five seconds old, and quorum
//! queues refuse `if-empty`.

use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde::Deserialize;
use tokio::time::timeout;
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::report::{Error, KeptBecause};

/// A broker that does not answer, or is under an alarm that this connection met, must not hold a plan up.
const TIMEOUT: Duration = Duration::from_secs(5);

/// `None` if the queue is empty and nobody consumes from it, or if it is gone.
pub(crate) async fn in_use(connection: &Connection, queue: &str) -> Result<Option<KeptBecause>, Error> {
    timeout(TIMEOUT, ask(connection, queue)).await.unwrap_or_else(|_| {
        let doing = format!("counting the messages of {queue}");
        Err(Error::Amqp { doing, cause: format!("no answer within {TIMEOUT:?}") })
    })
}

async fn ask(connection: &Connection, queue: &str) -> Result<Option<KeptBecause>, Error> {
    let failed =
        |e: lapin::Error| Error::Amqp { doing: format!("counting the messages of {queue}"), cause: e.to_string() };
    // A channel of its own: the broker closes it when the queue is gone.
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
        (0, consumers) => Some(KeptBecause::Consumers(consumers)),
        (messages, _) => Some(KeptBecause::Messages(messages)),
    })
}

/// Messages that wait to be dead-lettered, since `dead` is full or not bound: of a quorum queue they are neither ready nor unacknowledged,
/// so its own numbers leave them out (measured on 4.3.6), and they would go with it. Statistics, so a few seconds old; they wait longer.
pub(crate) async fn dead_letters_wait(
    management: &ManagementClient,
    queue: &str,
) -> Result<Option<KeptBecause>, Error> {
    #[derive(Deserialize)]
    struct Numbers {
        /// Of all kinds. Absent where statistics are off, or not there yet.
        #[serde(default)]
        messages: u32,
    }
    let doing = format!("counting the dead letters of {queue}");
    match management.get::<Numbers>(&doing, &["queues", management.vhost(), queue], "columns=messages").await {
        Ok(Numbers { messages: 0 }) | Err(CallError::NotFound(_)) => Ok(None),
        Ok(Numbers { messages }) => Ok(Some(KeptBecause::Messages(messages))),
        Err(CallError::Object(cause)) => Err(Error::Amqp { doing, cause }),
        Err(CallError::Fatal(e)) => Err(e.into()),
    }
}

pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(e) if e.get_id() == 404)
}
