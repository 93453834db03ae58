//! Messages that the broker can't translate into AMQP 0-9-1: it ends the connection instead of delivering them. Their
//! position in the queue does not identify them, since the broker may requeue messages behind the others.
//!
//! So all of them are received by AMQP 1.0, which delivers everything. Then each is released alone: what AMQP 0-9-1
//! delivers then is that message. If other messages arrive meanwhile, the command ends and nothing is removed.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, bail};
use tokio::time::{sleep, timeout};
use wirepost_amqp::{
    Error,
    v10::{Connection as Native, Settle},
    v091::{Connection, Message},
};

use super::{
    access::Target,
    connection::{HEARTBEAT, connect, explain},
};

/// For a message that is in the queue.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The broker does not answer a requeue, and takes a few milliseconds to act on it.
const MAX_POLLS: u32 = 100;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct UnreadableFinder {
    native: Native,
    /// Deliveries that were not tried yet, oldest first.
    untried: VecDeque<u32>,
    /// Deliveries that can't be read.
    unreadable: Vec<u32>,
}

/// The result of trying one.
pub(super) enum Trial {
    /// The 0-9-1 connection has it, unacknowledged.
    Message(Message),
    /// It can't be read; the broker's reason.
    Unreadable(String),
}

impl UnreadableFinder {
    /// Receives everything that is in the queue: `messages` of them.
    pub(super) async fn fetch_all(target: &Target, queue: &str, messages: u32) -> anyhow::Result<Self> {
        let mut native = Native::open(&target.endpoint, HEARTBEAT).await?;
        native.receive(queue, messages).await.map_err(|error| explain(error, queue))?;
        let mut untried = VecDeque::new();
        for _ in 0..messages {
            untried.push_back(receive(&mut native, queue).await?);
        }
        Ok(Self { native, untried, unreadable: Vec::new() })
    }

    /// How many it has.
    pub(super) fn len(&self) -> usize {
        self.untried.len() + self.unreadable.len()
    }

    /// Tries the next one. `None` = all were tried.
    pub(super) async fn try_next(
        &mut self,
        target: &Target,
        queue: &str,
        connection: &mut Connection,
    ) -> anyhow::Result<Option<Trial>> {
        let Some(delivery) = self.untried.pop_front() else { return Ok(None) };
        wait_for_count(connection, queue, 0).await?;
        self.settle(&[delivery], Settle::Release).await?;
        wait_for_count(connection, queue, 1).await?;
        // A separate connection: if the broker ends it, `connection` keeps its messages.
        let mut probe = connect(target).await?;
        match probe.get(queue).await {
            Ok(Some(message)) => {
                probe.requeue(message.delivery_tag, false).await.map_err(|error| explain(error, queue))?;
                wait_for_count(connection, queue, 1).await?;
                let message = connection.get(queue).await.map_err(|error| explain(error, queue))?;
                Ok(Some(Trial::Message(message.with_context(|| disturbed(queue))?)))
            }
            Ok(None) => bail!(disturbed(queue)),
            Err(error) if error.is_internal() => {
                wait_for_count(connection, queue, 1).await?;
                self.native.more(1).await.map_err(|error| explain(error, queue))?;
                let delivery = receive(&mut self.native, queue).await?;
                wait_for_count(connection, queue, 0).await?;
                self.unreadable.push(delivery);
                Ok(Some(Trial::Unreadable(error.to_string())))
            }
            Err(error) => Err(explain(error, queue)),
        }
    }

    /// Removes the unreadable messages.
    pub(super) async fn drop_unreadable(&mut self) -> anyhow::Result<()> {
        let deliveries = std::mem::take(&mut self.unreadable);
        self.settle(&deliveries, Settle::Accept).await
    }

    /// Releases everything.
    pub(super) async fn requeue_all(&mut self) -> anyhow::Result<()> {
        let deliveries: Vec<u32> = self.untried.drain(..).chain(self.unreadable.drain(..)).collect();
        self.settle(&deliveries, Settle::Release).await
    }

    async fn settle(&mut self, deliveries: &[u32], how: Settle) -> anyhow::Result<()> {
        for &delivery in deliveries {
            self.native.settle(delivery, delivery, how).await?;
        }
        Ok(())
    }
}

async fn receive(native: &mut Native, queue: &str) -> anyhow::Result<u32> {
    let message = timeout(MESSAGE_TIMEOUT, native.recv()).await.with_context(|| disturbed(queue))?;
    // The content is not kept: there may be many messages, and it can't be shown.
    Ok(message.map_err(|error: Error| explain(error, queue))?.delivery_id)
}

/// Waits until a queue has exactly this many ready messages.
async fn wait_for_count(connection: &mut Connection, queue: &str, messages: u32) -> anyhow::Result<()> {
    for _ in 0..MAX_POLLS {
        if connection.counts(queue).await.map_err(|error| explain(error, queue))?.messages == messages {
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
    bail!(disturbed(queue))
}

fn disturbed(queue: &str) -> String {
    format!(
        "{queue} has unreadable messages, and other messages arrive or leave meanwhile; nothing was removed, try again"
    )
}
