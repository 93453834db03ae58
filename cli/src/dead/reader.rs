//! Reads the dead letters, oldest first. They stay unacknowledged until they are requeued, so that the next one is
//! delivered; if the command is interrupted, the broker requeues them.
//!
//! **Guarantees.** A message is removed only after the broker has confirmed it elsewhere, or on request. One at a time,
//! so order is kept, and after an interruption at most one message exists twice.
//! **Caveats.** RabbitMQ delivers requeued messages before all others, in the order in which they were requeued
//! (measured on 4.3.6). A single requeued message would come after earlier ones; so the reader always reads to the end,
//! and then requeues everything in order. Two readers at the same time each see a part.

use std::time::Duration;

use anyhow::bail;
use tokio::time::sleep;
use wirepost_amqp::{
    Error,
    v091::{Connection, Message, Published},
};
use wirepost_core::names;

use super::{
    access::Target,
    connection::{connect, explain},
    letter::{ContentHash, Letter},
    unreadable::{Trial, UnreadableFinder},
};

/// Maximum number of unacknowledged messages. They cost the broker memory, and nobody else sees them meanwhile.
const MAX_UNACKED: usize = 10_000;
/// The broker does not answer a `nack`, and takes a few milliseconds to act on it.
const REQUEUE_POLLS: u32 = 50;
const REQUEUE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Reader<'a> {
    target: &'a Target,
    queue: String,
    connection: Connection,
    /// Messages that were there at the start and are still unread. Messages that return meanwhile, because a service
    /// fails on them again, are ignored.
    left: usize,
    /// Unacknowledged messages: their sequence numbers and delivery tags.
    unacked: Vec<(usize, u64)>,
    /// By sequence number: messages that were returned to the caller and still exist.
    seen: Vec<Option<ContentHash>>,
    /// Set once the broker could not deliver a message.
    finder: Option<UnreadableFinder>,
}

/// The next result.
pub(super) enum Step {
    Letter(Box<Letter>),
    /// The broker ends the connection instead of delivering it; the broker's reason.
    Unreadable(String),
    End,
}

/// The result of replaying a message.
pub(super) enum ReplayResult {
    Done,
    /// It stays, with the reason.
    Stays(String),
}

impl<'a> Reader<'a> {
    pub(super) async fn begin(target: &'a Target) -> anyhow::Result<Self> {
        let queue = names::dead_queue(&target.business);
        let mut connection = connect(target).await?;
        let count = connection.counts(&queue).await.map_err(|error| explain(error, &queue))?.messages;
        let left = count as usize;
        Ok(Self { target, queue, connection, left, unacked: Vec::new(), seen: Vec::new(), finder: None })
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Step> {
        loop {
            if self.unacked.len() == MAX_UNACKED {
                bail!(
                    "{} begins with {MAX_UNACKED} messages that were not selected; replay or drop those first",
                    self.queue
                );
            }
            if let Some(finder) = &mut self.finder {
                match finder.try_next(self.target, &self.queue, &mut self.connection).await? {
                    None => return Ok(Step::End),
                    Some(Trial::Unreadable(why)) => return Ok(Step::Unreadable(why)),
                    Some(Trial::Message(message)) => {
                        if let Some(letter) = self.keep(message) {
                            return Ok(Step::Letter(letter));
                        }
                    }
                }
                continue;
            }
            if self.left == 0 {
                return Ok(Step::End);
            }
            match self.connection.get(&self.queue).await {
                Ok(Some(message)) => {
                    self.left -= 1;
                    if let Some(letter) = self.keep(message) {
                        return Ok(Step::Letter(letter));
                    }
                }
                Ok(None) => return Ok(Step::End),
                Err(error) if error.is_internal() => self.find_unreadable().await?,
                Err(error) => return Err(explain(error, &self.queue)),
            }
        }
    }

    /// Keeps a message; returns it unless it was returned before.
    fn keep(&mut self, message: Message) -> Option<Box<Letter>> {
        let (tag, letter) = (message.delivery_tag, Letter::of(message));
        let hash = letter.content_hash();
        if self.finder.is_some() {
            let mut again = self.seen.iter().enumerate().filter(|(_, seen)| seen.as_ref() == Some(&hash));
            let number = again.find(|(number, _)| !self.unacked.iter().any(|(unacked, _)| unacked == number));
            if let Some((number, _)) = number {
                self.unacked.push((number, tag));
                return None;
            }
        }
        self.unacked.push((self.seen.len(), tag));
        self.seen.push(Some(hash));
        Some(Box::new(letter))
    }

    /// The broker has ended the connection because of a message, and requeued all unacknowledged ones, in any order.
    async fn find_unreadable(&mut self) -> anyhow::Result<()> {
        let there = self.unacked.len() + self.left;
        self.unacked.clear();
        self.connection = connect(self.target).await?;
        let mut messages = 0;
        for _ in 0..REQUEUE_POLLS {
            let counts = self.connection.counts(&self.queue).await.map_err(|error| explain(error, &self.queue))?;
            messages = counts.messages;
            if messages as usize >= there {
                break;
            }
            sleep(REQUEUE_POLL_INTERVAL).await;
        }
        if messages as usize > MAX_UNACKED {
            bail!(
                "{} has an unreadable message, and more than {MAX_UNACKED} in all; replay or drop some first",
                self.queue
            );
        }
        self.finder = Some(UnreadableFinder::fetch_all(self.target, &self.queue, messages).await?);
        Ok(())
    }

    /// Publishes the last message to its source queue, and removes it here.
    pub(super) async fn replay(&mut self, letter: &Letter, queue: &str) -> anyhow::Result<ReplayResult> {
        let exchange = names::replay_exchange(&self.target.business);
        let properties = letter.properties();
        let published =
            self.connection.publish(exchange.as_bytes(), queue.as_bytes(), &properties, letter.body()).await;
        match published {
            Ok(Published::Taken) => {
                self.drop(letter).await?;
                Ok(ReplayResult::Done)
            }
            Ok(Published::Returned(_)) => {
                Ok(ReplayResult::Stays(format!("{queue} is not a queue of this business's declaration (any more)")))
            }
            Ok(Published::Refused) => {
                Ok(ReplayResult::Stays(format!("{queue} does not accept it; is it full (maxLength)?")))
            }
            Err(Error::Channel { code: code @ (403 | 404), text }) => bail!(
                "{text} (code {code}). Dead letters go back through the exchange {exchange}: the operator (or wirepost dev) of this \
                 version creates it and grants the permission. Nothing was removed"
            ),
            Err(error) => Err(explain(error, &exchange)
                .context(format!("it is unknown whether {queue} has {}; it stays here too", letter.id))),
        }
    }

    /// Removes the last message.
    pub(super) async fn drop(&mut self, letter: &Letter) -> anyhow::Result<()> {
        self.connection.ack(letter.tag(), false).await.map_err(|error| explain(error, &self.queue))?;
        if let Some((number, _)) = self.unacked.pop() {
            self.seen[number] = None;
        }
        Ok(())
    }

    /// Removes the unreadable messages found so far.
    pub(super) async fn drop_unreadable(&mut self) -> anyhow::Result<()> {
        match &mut self.finder {
            Some(finder) => finder.drop_unreadable().await,
            None => Ok(()),
        }
    }

    async fn read_all(&mut self) -> anyhow::Result<()> {
        while self.unacked.len() < MAX_UNACKED {
            if matches!(self.next().await?, Step::End) {
                break;
            }
        }
        Ok(())
    }

    /// The lengths of the business's queues as text, including unacknowledged messages.
    pub(super) async fn counts(&mut self, queues: &[String]) -> String {
        let business = &self.target.business;
        let mut counts = Vec::new();
        let kept = [self.queue.clone(), names::unrouted(business)];
        for queue in kept.iter().chain(queues) {
            let unacked = if *queue == self.queue {
                self.unacked.len() + self.finder.as_ref().map_or(0, UnreadableFinder::len)
            } else {
                0
            };
            counts.push(match self.connection.counts(queue).await {
                Ok(count) => format!("{queue} {}", count.messages as usize + unacked),
                Err(error @ Error::Channel { .. }) => {
                    // The broker closed the channel, so all unacknowledged messages are back.
                    self.unacked.clear();
                    if self.connection.open_channel().await.is_err() {
                        break;
                    }
                    format!("{queue} unknown ({error})")
                }
                Err(_) => break,
            });
        }
        format!("messages: {}", counts.join(", "))
    }

    /// Requeues everything, and waits until it is back: the next reader must see it.
    pub(super) async fn requeue_all(mut self) -> anyhow::Result<()> {
        self.read_all().await?;
        let unacked = self.unacked.len() + self.finder.as_ref().map_or(0, UnreadableFinder::len);
        let failed = |error| explain(error, &self.queue);
        // The broker does not answer an `ack`. Its answer to this call means that it has handled all of them: if the
        // process ended earlier, the last `ack` could be lost, and the message would be back.
        let without = self.connection.counts(&self.queue).await.map_err(failed)?.messages as usize;
        if unacked == 0 {
            return Ok(());
        }
        self.unacked.sort_unstable();
        for (_, tag) in self.unacked.drain(..) {
            self.connection.requeue(tag, false).await.map_err(failed)?;
        }
        if let Some(finder) = &mut self.finder {
            finder.requeue_all().await?;
        }
        for _ in 0..REQUEUE_POLLS {
            if self.connection.counts(&self.queue).await.map_err(failed)?.messages as usize >= without + unacked {
                break;
            }
            sleep(REQUEUE_POLL_INTERVAL).await;
        }
        Ok(())
    }
}
