//! A walk over the dead letters, oldest first. What was passed stays unacknowledged until it is put back, so that the next one comes; if the
//! walk breaks off, the broker puts all of it back itself.
//!
//! **Guarantees.** A message is removed only after the broker has confirmed it elsewhere, or because that was asked for. One at a time, so
//! order is kept, and after an interruption one message at most is there twice.
//! **Caveats.** RabbitMQ delivers returned messages before all others, in the order in which they were returned (measured on 4.3.6). A
//! single one that is returned so goes behind those that were returned before; that is why a walk goes to the end, and then puts all back
//! in their order. Two walks at once each see a part.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, bail};
use tokio::time::{sleep, timeout};
use wirepost_amqp::{
    Error,
    v10::{self, Settle},
    v091::{Connection, Published},
};
use wirepost_core::names;

use super::{access::Account, letter::Letter};

/// A broker that is silent for longer is away.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Messages that may be held at once. The broker keeps each in mind, and nobody else sees them meanwhile.
const MAX_HELD: usize = 10_000;
/// Longest wait for a message that is there.
const ASIDE_TIMEOUT: Duration = Duration::from_secs(5);
/// The broker does not answer a `nack`, and takes a few milliseconds to act on it.
const PUT_BACK_LOOKS: u32 = 50;
const PUT_BACK_PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Walk<'a> {
    account: &'a Account,
    queue: String,
    connection: Connection,
    /// What is in the queue, as far as it was there at the beginning: those that come back meanwhile, because a service fails on them
    /// again, are for another walk.
    ahead: VecDeque<Ahead>,
    /// Messages that were seen and are unacknowledged: their number from the beginning, and their tags.
    held: Vec<(usize, u64)>,
    /// Messages that were handed out so far.
    seen: usize,
    /// Where messages go that the broker can't translate into AMQP 0-9-1: by AMQP 1.0 it hands them over, and those behind them come.
    aside: Option<v10::Connection>,
    /// Deliveries of it that are not settled.
    unreadable: Vec<u32>,
}

/// A message in the queue.
enum Ahead {
    New,
    /// It was handed out, with this number, and is back since a connection broke.
    Seen(usize),
    /// The broker can't hand it over by AMQP 0-9-1.
    Unreadable,
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
        let ahead = (0..count).map(|_| Ahead::New).collect();
        Ok(Self { account, queue, connection, ahead, held: Vec::new(), seen: 0, aside: None, unreadable: Vec::new() })
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Step> {
        loop {
            if self.held.len() == MAX_HELD {
                bail!(
                    "{} begins with {MAX_HELD} messages that were not asked for; replay or drop those first",
                    self.queue
                );
            }
            let Some(ahead) = self.ahead.pop_front() else { return Ok(Step::End) };
            if matches!(ahead, Ahead::Unreadable) {
                self.put_aside().await.with_context(|| format!("{} has a message that can't be read", self.queue))?;
                continue;
            }
            match (self.connection.get(&self.queue).await, ahead) {
                (Ok(Some(message)), Ahead::Seen(number)) => self.held.push((number, message.delivery_tag)),
                (Ok(Some(message)), _) => {
                    self.held.push((self.seen, message.delivery_tag));
                    self.seen += 1;
                    return Ok(Step::Letter(Box::new(Letter::of(message))));
                }
                (Ok(None), _) => return Ok(Step::End),
                (Err(error), _) if error.is_internal() => {
                    self.again().await?;
                    return Ok(Step::Unreadable(error.to_string()));
                }
                (Err(error), _) => return Err(explain(error, &self.queue)),
            }
        }
    }

    /// A new connection, since the broker ended the old one over a message. That message, and those that were held before it, are in
    /// front again then (measured on 4.3.6: not as where we put them back).
    async fn again(&mut self) -> anyhow::Result<()> {
        let mut ahead: VecDeque<Ahead> = self.held.drain(..).map(|(number, _)| Ahead::Seen(number)).collect();
        ahead.push_back(Ahead::Unreadable);
        ahead.append(&mut self.ahead);
        self.ahead = ahead;
        self.connection = connect(self.account).await?;
        for _ in 0..PUT_BACK_LOOKS {
            let counts = self.connection.counts(&self.queue).await.map_err(|error| explain(error, &self.queue))?;
            if counts.messages as usize >= self.ahead.len() {
                break;
            }
            sleep(PUT_BACK_PAUSE).await;
        }
        Ok(())
    }

    /// Holds what comes next by AMQP 1.0.
    async fn put_aside(&mut self) -> Result<(), Error> {
        let aside = match &mut self.aside {
            Some(aside) => {
                aside.more(1).await?;
                aside
            }
            none => {
                let aside = none.insert(v10::Connection::open(&self.account.address, HEARTBEAT).await?);
                aside.receive(&self.queue, 1).await?;
                aside
            }
        };
        let message = timeout(ASIDE_TIMEOUT, aside.recv()).await;
        let message =
            message.unwrap_or(Err(Error::Timeout { what: "the message by AMQP 1.0", after: ASIDE_TIMEOUT }))?;
        self.unreadable.push(message.delivery_id);
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
        self.held.pop();
        Ok(())
    }

    /// Removes the messages that could not be read, once the walk is at the end.
    pub(super) async fn drop_unreadable(&mut self) -> anyhow::Result<()> {
        if let Some(aside) = &mut self.aside {
            for delivery in self.unreadable.drain(..) {
                aside.settle(delivery, delivery, Settle::Accept).await.map_err(|error| explain(error, &self.queue))?;
            }
        }
        Ok(())
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
            let held = if *queue == self.queue { self.held.len() + self.unreadable.len() } else { 0 };
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
        let held = self.held.len() + self.unreadable.len();
        if held == 0 {
            return Ok(());
        }
        let failed = |error| explain(error, &self.queue);
        let without = self.connection.counts(&self.queue).await.map_err(failed)?.messages as usize;
        self.held.sort_unstable();
        for (_, tag) in self.held.drain(..) {
            self.connection.requeue(tag, false).await.map_err(failed)?;
        }
        if let Some(aside) = &mut self.aside {
            for delivery in self.unreadable.drain(..) {
                aside.settle(delivery, delivery, Settle::Release).await.map_err(failed)?;
            }
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

async fn connect(account: &Account) -> anyhow::Result<Connection> {
    let mut connection = Connection::open(&account.address, HEARTBEAT).await?;
    connection.confirm().await?;
    Ok(connection)
}

fn explain(error: Error, object: &str) -> anyhow::Error {
    let remedy = match &error {
        Error::Channel { code: 404, .. } => {
            "; is the business right, and has the operator (or wirepost dev) made its queues?"
        }
        Error::Channel { code: 403, .. } => "; use the business's own user (the access Secret)",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{object}{remedy}"))
}
