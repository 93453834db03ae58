//! Messages that the broker can't translate into AMQP 0-9-1: it ends the connection instead of handing them over. Which of the messages in a
//! queue that is can't be told from their places, since the broker may put what it takes back behind the others.
//!
//! So all of them are held by AMQP 1.0, which hands over everything, and then each is alone in the queue once: whatever comes by AMQP 0-9-1
//! then is that very message. If others come into the queue meanwhile, the walk ends and nothing is removed.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, bail};
use tokio::time::{sleep, timeout};
use wirepost_amqp::{
    Error,
    v10::{Connection as Native, Settle},
    v091::{Connection, Message},
};

use super::{
    access::Account,
    walk::{HEARTBEAT, connect, explain},
};

/// Longest wait for a message that is there.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The broker does not answer whoever puts a message back, and takes a few milliseconds to act on it.
const LOOKS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Aside {
    native: Native,
    /// Deliveries that nobody has tried yet, oldest first.
    untried: VecDeque<u32>,
    /// Deliveries that can't be read.
    unreadable: Vec<u32>,
}

/// What came of trying one.
pub(super) enum Tried {
    /// It is held by the 0-9-1 connection.
    Message(Message),
    /// It is aside; in the broker's words.
    Unreadable(String),
}

impl Aside {
    /// Holds everything that is in the queue: `messages` of them.
    pub(super) async fn hold_all(account: &Account, queue: &str, messages: u32) -> anyhow::Result<Self> {
        let mut native = Native::open(&account.endpoint, HEARTBEAT).await?;
        native.receive(queue, messages).await.map_err(|error| explain(error, queue))?;
        let mut untried = VecDeque::new();
        for _ in 0..messages {
            untried.push_back(receive(&mut native, queue).await?);
        }
        Ok(Self { native, untried, unreadable: Vec::new() })
    }

    /// How many it holds.
    pub(super) fn len(&self) -> usize {
        self.untried.len() + self.unreadable.len()
    }

    /// Tries the next one. `None` = all have been tried.
    pub(super) async fn try_next(
        &mut self,
        account: &Account,
        queue: &str,
        holder: &mut Connection,
    ) -> anyhow::Result<Option<Tried>> {
        let Some(delivery) = self.untried.pop_front() else { return Ok(None) };
        becomes(holder, queue, 0).await?;
        self.settle(&[delivery], Settle::Release).await?;
        becomes(holder, queue, 1).await?;
        // A connection of its own: if it ends, what the holder has stays held.
        let mut probe = connect(account).await?;
        match probe.get(queue).await {
            Ok(Some(message)) => {
                probe.requeue(message.delivery_tag, false).await.map_err(|error| explain(error, queue))?;
                becomes(holder, queue, 1).await?;
                let message = holder.get(queue).await.map_err(|error| explain(error, queue))?;
                Ok(Some(Tried::Message(message.with_context(|| disturbed(queue))?)))
            }
            Ok(None) => bail!(disturbed(queue)),
            Err(error) if error.is_internal() => {
                becomes(holder, queue, 1).await?;
                self.native.more(1).await.map_err(|error| explain(error, queue))?;
                let delivery = receive(&mut self.native, queue).await?;
                becomes(holder, queue, 0).await?;
                self.unreadable.push(delivery);
                Ok(Some(Tried::Unreadable(error.to_string())))
            }
            Err(error) => Err(explain(error, queue)),
        }
    }

    /// Removes what can't be read.
    pub(super) async fn drop_unreadable(&mut self) -> anyhow::Result<()> {
        let deliveries = std::mem::take(&mut self.unreadable);
        self.settle(&deliveries, Settle::Accept).await
    }

    /// Puts back what it holds.
    pub(super) async fn put_back(&mut self) -> anyhow::Result<()> {
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
    // Its content is not kept: there may be many, and it can't be shown.
    Ok(message.map_err(|error: Error| explain(error, queue))?.delivery_id)
}

/// Waits until a queue holds exactly so many messages that nobody has.
async fn becomes(connection: &mut Connection, queue: &str, messages: u32) -> anyhow::Result<()> {
    for _ in 0..LOOKS {
        if connection.counts(queue).await.map_err(|error| explain(error, queue))?.messages == messages {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
    bail!(disturbed(queue))
}

fn disturbed(queue: &str) -> String {
    format!("{queue} has messages that can't be read, and others come and go meanwhile; nothing was removed, try again")
}
