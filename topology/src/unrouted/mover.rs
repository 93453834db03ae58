//! One run of [`move_back`](super::move_back).

use std::time::Duration;

use tokio::time::{sleep, timeout};
use wirepost_amqp::Error;
use wirepost_amqp::v10::{self, Sent, Settle};
use wirepost_amqp::v091::{self, Message, Properties, Property, Published};
use wirepost_core::{
    names,
    topology::{Destinations, Topology},
};
use wirepost_rabbitmq::Endpoint;

use super::{
    Links, MAX_STRAYS, Moved, Stopped,
    message::{PublishedTo, Way, for_queue, readable},
    set_aside::{self, Why},
};

const HEARTBEAT: Duration = Duration::from_secs(10);
/// The broker does not answer a `nack`, and takes a few milliseconds to apply it.
const REQUEUE_CHECKS: u32 = 50;
const REQUEUE_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait for a message that is in the queue.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// After this many failures at a message, the message is to blame and not the broker.
const MAX_ATTEMPTS: u32 = 2;

pub(super) struct Mover<'a> {
    endpoint: &'a Endpoint,
    business: &'a str,
    destinations: Destinations<'a>,
    links: &'a Links,
    queue: String,
    connection: v091::Connection,
    /// The AMQP 1.0 connection, once it is needed.
    amqp10: Option<v10::Connection>,
    /// Strays, until the end: tags of `connection`, delivery ids of `amqp10`.
    unacked: Vec<u64>,
    unsettled: Vec<u32>,
    /// The last of `unacked` is no stray, but was not accepted.
    kept: bool,
    failed: Option<FailedMessage>,
    moved: Moved,
}

/// A message that the broker failed at. It is back in its position.
struct FailedMessage {
    /// Messages before it, all of them strays.
    behind: usize,
    at: FailedStage,
    /// In the broker's words.
    reason: String,
    times: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FailedStage {
    /// The broker can't deliver it by AMQP 0-9-1.
    Get,
    /// Its exchange can't take it.
    Publish,
    /// Its exchange can't take it by AMQP 1.0 either.
    Send,
}

/// How a message was processed.
enum Step {
    Next,
    Stop(Stopped),
    /// The connection is lost, and what was unacknowledged is back in the queue.
    Reconnect(FailedStage, Error),
}

impl<'a> Mover<'a> {
    pub(super) async fn begin(
        endpoint: &'a Endpoint,
        business: &'a str,
        topology: &'a Topology,
        links: &'a Links,
    ) -> Result<Self, Error> {
        Ok(Self {
            endpoint,
            business,
            destinations: Destinations::new(topology),
            links,
            queue: names::unrouted(business),
            connection: connect(endpoint).await?,
            amqp10: None,
            unacked: Vec::new(),
            unsettled: Vec::new(),
            kept: false,
            failed: None,
            moved: Moved::default(),
        })
    }

    pub(super) async fn run(mut self, gate: &(dyn Fn() -> bool + Sync)) -> Result<Moved, Error> {
        let mut left = match self.ready().await {
            Ok(count) => count as usize,
            Err(e) if e.is_not_found() => return Ok(self.moved),
            Err(e) => return Err(e),
        };
        while left > 0 {
            if !gate() {
                self.moved.stopped = Some(Stopped::Gate);
                break;
            }
            if self.strays() == MAX_STRAYS {
                let (queue, waiting) = (self.queue.clone(), self.moved.waiting);
                self.moved.stopped =
                    Some(if waiting == 0 { Stopped::Strays { queue } } else { Stopped::Waits { queue, waiting } });
                break;
            }
            let failed = self.failed.take_if(|failed| failed.behind == self.unacked.len() + self.unsettled.len());
            let known = failed.as_ref().map(|failed| (failed.at, failed.times));
            match self.step(failed).await? {
                Step::Next => left -= 1,
                Step::Stop(stopped) => {
                    self.moved.stopped = Some(stopped);
                    break;
                }
                Step::Reconnect(at, error) => {
                    let times = known.filter(|known| known.0 == at).map_or(1, |known| known.1 + 1);
                    let behind = self.strays();
                    self.moved.waiting = 0;
                    tracing::debug!(business = self.business, behind, %error, "a message ended the connection");
                    self.failed = Some(FailedMessage { behind, at, reason: error.to_string(), times });
                    // The strays are passed over once more.
                    left += behind;
                    (self.unacked, self.unsettled, self.amqp10) = (Vec::new(), Vec::new(), None);
                    self.connection = connect(self.endpoint).await?;
                    self.wait_for(left).await?;
                }
            }
        }
        self.moved.strays += (self.strays() - usize::from(self.kept)) as u32;
        self.requeue_strays().await?;
        Ok(self.moved)
    }

    fn strays(&self) -> usize {
        self.unacked.len() + self.unsettled.len()
    }

    async fn step(&mut self, failed: Option<FailedMessage>) -> Result<Step, Error> {
        if let Some(failed) = failed.as_ref().filter(|failed| failed.at != FailedStage::Publish) {
            let hopeless = failed.at == FailedStage::Send && failed.times >= MAX_ATTEMPTS;
            return self.by_amqp10(hopeless.then(|| Why::Broker(failed.reason.clone()))).await;
        }
        let message = match self.connection.get(&self.queue).await {
            Ok(Some(message)) => message,
            // Another consumer took it.
            Ok(None) => return Ok(Step::Next),
            Err(e) if e.is_internal() => return Ok(Step::Reconnect(FailedStage::Get, e)),
            Err(e) => return Err(e),
        };
        let mut published_to = PublishedTo::new(&message.exchange, &message.routing_key);
        let way = published_to.way(self.business, self.links);
        let destinations = published_to.destinations(&message, &self.destinations);
        if way == Way::Waits || destinations.is_empty() {
            self.moved.waiting += u32::from(way == Way::Waits);
            self.unacked.push(message.delivery_tag);
            return Ok(Step::Next);
        }
        let gone = (way == Way::Gone).then_some(Why::NotAccepted);
        let failed = failed.filter(|failed| failed.times >= MAX_ATTEMPTS).map(|failed| Why::Broker(failed.reason));
        if let Some(why) = gone.or(failed) {
            return match self.set_aside(&message, &why).await? {
                None => {
                    self.connection.ack(message.delivery_tag, false).await?;
                    Ok(Step::Next)
                }
                Some(reason) => Ok(self.keep(message.delivery_tag, published_to.not_taken(reason))),
            };
        }
        let left = self.ready().await?;
        // The broker takes a `user-id` only from that very user (rabbitmq.com/docs/validated-user-id), and we are another.
        let properties = message.properties.without(Property::UserId);
        let properties = published_to.for_business(&properties, self.business);
        match self.publish(&message, &published_to, &properties, &destinations).await {
            Ok(Published::Taken) => {
                self.connection.ack(message.delivery_tag, false).await?;
                self.is_gone(left, published_to).await
            }
            Ok(Published::Returned(reason)) => Ok(self.keep(message.delivery_tag, published_to.not_taken(reason))),
            Ok(Published::Refused) => Ok(self.keep(message.delivery_tag, published_to.not_taken("refused".to_owned()))),
            // 406: something about this message, such as its size.
            Err(e) if e.is_internal() || matches!(e, Error::Channel { code: 406, .. }) => {
                Ok(Step::Reconnect(FailedStage::Publish, e))
            }
            // No such exchange, for instance. The channel is closed, and everything is requeued.
            Err(e @ Error::Channel { .. }) => {
                self.connection = connect(self.endpoint).await?;
                self.moved.strays = std::mem::take(&mut self.unacked).len() as u32;
                Ok(Step::Stop(published_to.not_taken(e.to_string())))
            }
            Err(e) => Err(e),
        }
    }

    /// Once for each destination; a repeat after a failure may send it to some of them twice.
    async fn publish(
        &mut self,
        message: &Message,
        published_to: &PublishedTo,
        properties: &Properties,
        destinations: &[Option<String>],
    ) -> Result<Published, Error> {
        for destination in destinations {
            let properties =
                destination.as_ref().map_or_else(|| properties.clone(), |queue| for_queue(properties, queue));
            let exchange = published_to.exchange.as_bytes();
            let sent = self.connection.publish(exchange, &message.routing_key, &properties, &message.body);
            match sent.await? {
                Published::Taken => {}
                other => return Ok(other),
            }
        }
        Ok(Published::Taken)
    }

    fn keep(&mut self, tag: u64, stopped: Stopped) -> Step {
        self.unacked.push(tag);
        self.kept = true;
        Step::Stop(stopped)
    }

    /// By AMQP 1.0: the broker has the message as it was published, so nothing needs to be translated. `hopeless`: it can't be sent on.
    async fn by_amqp10(&mut self, hopeless: Option<Why>) -> Result<Step, Error> {
        let mut amqp10 = if let Some(mut amqp10) = self.amqp10.take() {
            amqp10.more(1).await?;
            amqp10
        } else {
            let mut amqp10 = v10::Connection::open(self.endpoint, HEARTBEAT).await?;
            amqp10.receive(&self.queue, 1).await?;
            amqp10
        };
        // Another consumer may have taken it.
        let Ok(received) = timeout(RECEIVE_TIMEOUT, amqp10.recv()).await else { return Ok(Step::Next) };
        let received = received?;
        let id = received.delivery_id;
        let message = readable(&received.payload);
        let mut published_to = PublishedTo::new(&message.exchange, &message.routing_key);
        let way = published_to.way(self.business, self.links);
        if way == Way::Waits || published_to.destinations(&message, &self.destinations).is_empty() {
            self.moved.waiting += u32::from(way == Way::Waits);
            self.unsettled.push(id);
            self.amqp10 = Some(amqp10);
            return Ok(Step::Next);
        }
        let gone = (way == Way::Gone).then_some(Why::NotAccepted);
        // As it is, it would be copied to the other businesses again.
        let copied = names::is_share_exchange(&published_to.exchange).then_some(Why::Copied);
        if let Some(why) = gone.or(hopeless).or(copied) {
            if let Some(reason) = self.set_aside(&message, &why).await? {
                return Ok(Step::Stop(published_to.not_taken(reason)));
            }
            amqp10.settle(id, id, Settle::Accept).await?;
            self.amqp10 = Some(amqp10);
            return Ok(Step::Next);
        }
        let left = self.ready().await?;
        let sent = amqp10.send(published_to.exchange.as_bytes(), &message.routing_key, &received.payload).await;
        let reason = match sent {
            Ok(Sent::Taken) => {
                amqp10.settle(id, id, Settle::Accept).await?;
                self.amqp10 = Some(amqp10);
                return self.is_gone(left, published_to).await;
            }
            Ok(Sent::Returned) => "no queue takes it",
            Ok(Sent::Refused) => "refused",
            Err(e) if e.is_internal() => return Ok(Step::Reconnect(FailedStage::Send, e)),
            // It may have been accepted: the message is not to blame.
            Err(e) => return Err(e),
        };
        // Dropping the AMQP 1.0 link requeues the message.
        Ok(Step::Stop(published_to.not_taken(reason.to_owned())))
    }

    /// Whether a message that was published again is really gone: without its binding it comes back through the alternate exchange.
    async fn is_gone(&mut self, left: u32, published_to: PublishedTo) -> Result<Step, Error> {
        if self.ready().await? > left {
            let PublishedTo { exchange, routing_key } = published_to;
            return Ok(Step::Stop(Stopped::CameBack { queue: self.queue.clone(), exchange, routing_key }));
        }
        self.moved.moved += 1;
        Ok(Step::Next)
    }

    /// Publishes it to `dead` and reports that. Returns why `dead` did not accept it, if so.
    async fn set_aside(&mut self, message: &Message, why: &Why) -> Result<Option<String>, Error> {
        let reason = why.to_string();
        let not_taken = set_aside::publish_to_dead(&mut self.connection, self.business, message, &reason).await?;
        if not_taken.is_none() {
            self.moved.set_aside += 1;
            tracing::warn!(
                business = self.business,
                reason,
                "an unrouted message can't be moved back; it is in dead now"
            );
            // Over a connection of its own: a failing event must not end the connection that is at work here.
            if let Err(error) =
                set_aside::report(connect(self.endpoint).await?, self.business, self.endpoint, message, why).await
            {
                tracing::warn!(business = self.business, %error, "the event about it was not published");
            }
        }
        Ok(not_taken)
    }

    async fn ready(&mut self) -> Result<u32, Error> {
        Ok(self.connection.counts(&self.queue).await?.messages)
    }

    /// Returns when these messages are really back (bounded): a caller that starts again immediately must not find the queue empty.
    async fn requeue_strays(&mut self) -> Result<(), Error> {
        let unacked = self.strays();
        if unacked == 0 {
            return Ok(());
        }
        let without = self.ready().await? as usize;
        for tag in std::mem::take(&mut self.unacked) {
            self.connection.requeue(tag, false).await?;
        }
        if let Some(amqp10) = &mut self.amqp10 {
            for id in std::mem::take(&mut self.unsettled) {
                amqp10.settle(id, id, Settle::Release).await?;
            }
        }
        self.wait_for(without + unacked).await
    }

    /// Until this many messages are ready: the broker requeues a connection's messages some milliseconds after it ended.
    async fn wait_for(&mut self, count: usize) -> Result<(), Error> {
        for _ in 0..REQUEUE_CHECKS {
            if self.ready().await? as usize >= count {
                break;
            }
            sleep(REQUEUE_CHECK_INTERVAL).await;
        }
        Ok(())
    }
}

async fn connect(endpoint: &Endpoint) -> Result<v091::Connection, Error> {
    let mut connection = v091::Connection::open(endpoint, HEARTBEAT).await?;
    connection.confirm().await?;
    Ok(connection)
}
