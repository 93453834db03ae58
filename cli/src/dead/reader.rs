//! A walk over the dead letters, oldest first. What was passed stays unacknowledged until it is put back, so that the next one comes; if the
//! walk breaks off, the broker puts all of it back itself.
//!
//! **Guarantees.** A message is removed only after the broker has confirmed it elsewhere, or because that was asked for. One at a time, so
//! order is kept, and after an interruption one message at most is there twice.
//! **Caveats.** RabbitMQ delivers returned messages before all others, in the order in which they were returned (measured on 4.3.6). A
//! single one that is returned so goes behind those that were returned before; that is why a walk goes to the end, and then puts all back
//! in their order. Two walks at once each see a part.

use std::time::Duration;

use anyhow::bail;
use tokio::time::sleep;
use wirepost_amqp::{
    Error,
    v091::{Connection, Message, Published},
};
use wirepost_core::names;

use super::{
    access::Account,
    aside::{Aside, Tried},
    letter::{Letter, Print},
};

/// A broker that is silent for longer is away.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);
/// Messages that may be held at once. The broker keeps each in mind, and nobody else sees them meanwhile.
const MAX_HELD: usize = 10_000;
/// The broker does not answer a `nack`, and takes a few milliseconds to act on it.
const PUT_BACK_LOOKS: u32 = 50;
const PUT_BACK_PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Walk<'a> {
    account: &'a Account,
    queue: String,
    connection: Connection,
    /// Messages that were there at the beginning and are still to be looked at: those that come back meanwhile, because a service fails
    /// on them again, are for another walk.
    left: usize,
    /// Messages that were seen and are unacknowledged: their number from the beginning, and their tags.
    held: Vec<(usize, u64)>,
    /// By number, what was handed out and is still there.
    seen: Vec<Option<Print>>,
    /// Since the broker could not hand over a message.
    aside: Option<Aside>,
}

/// What comes next.
pub(super) enum Step {
    Letter(Box<Letter>),
    /// The broker ends the connection instead of handing it over; in its words.
    Unreadable(String),
    End,
}

/// What became of a message that should go back.
pub(super) enum Moved {
    Yes,
    /// It stays, and why.
    No(String),
}

impl<'a> Walk<'a> {
    pub(super) async fn begin(account: &'a Account) -> anyhow::Result<Self> {
        let queue = names::dead_queue(&account.business);
        let mut connection = connect(account).await?;
        let count = connection.counts(&queue).await.map_err(|error| explain(error, &queue))?.messages;
        let left = count as usize;
        Ok(Self { account, queue, connection, left, held: Vec::new(), seen: Vec::new(), aside: None })
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Step> {
        loop {
            if self.held.len() == MAX_HELD {
                bail!(
                    "{} begins with {MAX_HELD} messages that were not asked for; replay or drop those first",
                    self.queue
                );
            }
            if let Some(aside) = &mut self.aside {
                match aside.try_next(self.account, &self.queue, &mut self.connection).await? {
                    None => return Ok(Step::End),
                    Some(Tried::Unreadable(why)) => return Ok(Step::Unreadable(why)),
                    Some(Tried::Message(message)) => {
                        if let Some(letter) = self.hold(message) {
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
                    if let Some(letter) = self.hold(message) {
                        return Ok(Step::Letter(letter));
                    }
                }
                Ok(None) => return Ok(Step::End),
                Err(error) if error.is_internal() => self.set_all_aside().await?,
                Err(error) => return Err(explain(error, &self.queue)),
            }
        }
    }

    /// Holds a message; it is handed out unless it was before.
    fn hold(&mut self, message: Message) -> Option<Box<Letter>> {
        let (tag, letter) = (message.delivery_tag, Letter::of(message));
        let print = letter.print();
        if self.aside.is_some() {
            let mut again = self.seen.iter().enumerate().filter(|(_, seen)| seen.as_ref() == Some(&print));
            let number = again.find(|(number, _)| !self.held.iter().any(|(held, _)| held == number));
            if let Some((number, _)) = number {
                self.held.push((number, tag));
                return None;
            }
        }
        self.held.push((self.seen.len(), tag));
        self.seen.push(Some(print));
        Some(Box::new(letter))
    }

    /// The broker has ended the connection over a message, and all that was held is back, in whatever order.
    async fn set_all_aside(&mut self) -> anyhow::Result<()> {
        let there = self.held.len() + self.left;
        self.held.clear();
        self.connection = connect(self.account).await?;
        let mut messages = 0;
        for _ in 0..PUT_BACK_LOOKS {
            let counts = self.connection.counts(&self.queue).await.map_err(|error| explain(error, &self.queue))?;
            messages = counts.messages;
            if messages as usize >= there {
                break;
            }
            sleep(PUT_BACK_PAUSE).await;
        }
        if messages as usize > MAX_HELD {
            bail!(
                "{} has a message that can't be read, and more than {MAX_HELD} in all; replay or drop some first",
                self.queue
            );
        }
        self.aside = Some(Aside::hold_all(self.account, &self.queue, messages).await?);
        Ok(())
    }

    /// Publishes the message that came last to the queue it came from, and removes it here.
    pub(super) async fn replay(&mut self, letter: &Letter, queue: &str) -> anyhow::Result<Moved> {
        let exchange = names::replay_exchange(&self.account.business);
        let properties = letter.properties();
        let published =
            self.connection.publish(exchange.as_bytes(), queue.as_bytes(), &properties, letter.body()).await;
        match published {
            Ok(Published::Taken) => {
                self.drop(letter).await?;
                Ok(Moved::Yes)
            }
            Ok(Published::Returned(_)) => {
                Ok(Moved::No(format!("{queue} is not a queue of this business's declaration (any more)")))
            }
            Ok(Published::Refused) => Ok(Moved::No(format!("{queue} takes no more; is it full (maxLength)?"))),
            Err(Error::Channel { code: code @ (403 | 404), text }) => bail!(
                "{text} (code {code}). Dead letters go back through the exchange {exchange}: the operator (or wirepost dev) makes it and \
                 gives the right from this version on. Nothing was removed"
            ),
            Err(error) => Err(explain(error, &exchange)
                .context(format!("whether {queue} has {} is not known; it stays here too", letter.id))),
        }
    }

    /// Removes the message that came last.
    pub(super) async fn drop(&mut self, letter: &Letter) -> anyhow::Result<()> {
        self.connection.ack(letter.tag(), false).await.map_err(|error| explain(error, &self.queue))?;
        if let Some((number, _)) = self.held.pop() {
            self.seen[number] = None;
        }
        Ok(())
    }

    /// Removes the messages that could not be read so far.
    pub(super) async fn drop_unreadable(&mut self) -> anyhow::Result<()> {
        match &mut self.aside {
            Some(aside) => aside.drop_unreadable().await,
            None => Ok(()),
        }
    }

    async fn read_to_the_end(&mut self) -> anyhow::Result<()> {
        while self.held.len() < MAX_HELD {
            if matches!(self.next().await?, Step::End) {
                break;
            }
        }
        Ok(())
    }

    /// How many messages the business's queues hold, as a sentence. Those that are looked at now count.
    pub(super) async fn counts(&mut self, queues: &[String]) -> String {
        let business = &self.account.business;
        let mut counts = Vec::new();
        let kept = [self.queue.clone(), names::unrouted(business)];
        for queue in kept.iter().chain(queues) {
            let held =
                if *queue == self.queue { self.held.len() + self.aside.as_ref().map_or(0, Aside::len) } else { 0 };
            counts.push(match self.connection.counts(queue).await {
                Ok(count) => format!("{queue} {}", count.messages as usize + held),
                Err(error @ Error::Channel { .. }) => {
                    // With the channel all that was held is back.
                    self.held.clear();
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

    /// Puts back what is held, and waits until it is really back: whoever looks next must see it.
    pub(super) async fn put_back(mut self) -> anyhow::Result<()> {
        self.read_to_the_end().await?;
        let held = self.held.len() + self.aside.as_ref().map_or(0, Aside::len);
        let failed = |error| explain(error, &self.queue);
        // The broker does not answer an `ack`. Its answer to this says that it has acted on all of them: a process that ends before may
        // take the last one with it, and the message would be there again.
        let without = self.connection.counts(&self.queue).await.map_err(failed)?.messages as usize;
        if held == 0 {
            return Ok(());
        }
        self.held.sort_unstable();
        for (_, tag) in self.held.drain(..) {
            self.connection.requeue(tag, false).await.map_err(failed)?;
        }
        if let Some(aside) = &mut self.aside {
            aside.put_back().await?;
        }
        for _ in 0..PUT_BACK_LOOKS {
            if self.connection.counts(&self.queue).await.map_err(failed)?.messages as usize >= without + held {
                break;
            }
            sleep(PUT_BACK_PAUSE).await;
        }
        Ok(())
    }
}

pub(super) async fn connect(account: &Account) -> anyhow::Result<Connection> {
    let mut connection = Connection::open(&account.endpoint, HEARTBEAT).await?;
    connection.confirm().await?;
    Ok(connection)
}

pub(super) fn explain(error: Error, object: &str) -> anyhow::Error {
    let remedy = match &error {
        Error::Channel { code: 404, .. } => {
            "; is the business right, and has the operator (or wirepost dev) made its queues?"
        }
        Error::Channel { code: 403, .. } => "; use the business's own user (the access Secret)",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{object}{remedy}"))
}
