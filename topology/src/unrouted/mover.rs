//! One run of [`move_back`](super::move_back).

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};
use wirepost_amqp::Error;
use wirepost_amqp::v10::{self, Sent, Settle};
use wirepost_amqp::v091::{self, Message, Properties, Property, Published};
use wirepost_core::{
    contract::headers,
    names,
    topology::{Destinations, Topology, UnroutedMessage},
};
use wirepost_rabbitmq::Endpoint;
use wirepost_stream::{Sections, Value};

use super::{Moved, STRAYS, Stopped, aside};

const HEARTBEAT: Duration = Duration::from_secs(10);
/// The broker does not answer a `nack`, and takes a few milliseconds to act on it.
const PUT_BACK_LOOKS: u32 = 50;
const PUT_BACK_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for a message that is there.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the broker may fail at a message before the message is to blame and not the broker.
const PATIENCE: u32 = 2;

pub(super) struct Walk<'a> {
    endpoint: &'a Endpoint,
    business: &'a str,
    destinations: Destinations<'a>,
    queue: String,
    connection: v091::Connection,
    /// By AMQP 1.0, once it is needed.
    native: Option<v10::Connection>,
    /// Strays that are held until the end: tags of `connection`, delivery ids of `native`.
    held: Vec<u64>,
    held_natively: Vec<u32>,
    /// The last of `held` is no stray, but was not taken.
    kept: bool,
    trouble: Option<Trouble>,
    moved: Moved,
}

/// A message that the broker failed at. It is back in its place.
struct Trouble {
    /// Messages before it, all of them strays.
    behind: usize,
    at: Failed,
    /// In the broker's words.
    reason: String,
    times: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// The broker can't give it by AMQP 0-9-1.
    Get,
    /// Its exchange can't take it.
    Publish,
    /// Its exchange can't take it by AMQP 1.0 either.
    Send,
}

/// How a message fared.
enum Step {
    Next,
    Stop(Stopped),
    /// The connection is lost, and what was held is back.
    Again(Failed, Error),
}

impl<'a> Walk<'a> {
    pub(super) async fn begin(
        endpoint: &'a Endpoint,
        business: &'a str,
        topology: &'a Topology,
    ) -> Result<Self, Error> {
        Ok(Self {
            endpoint,
            business,
            destinations: Destinations::new(topology),
            queue: names::unrouted(business),
            connection: connect(endpoint).await?,
            native: None,
            held: Vec::new(),
            held_natively: Vec::new(),
            kept: false,
            trouble: None,
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
            if self.strays() == STRAYS {
                self.moved.stopped = Some(Stopped::Strays { queue: self.queue.clone() });
                break;
            }
            let trouble = self.trouble.take_if(|trouble| trouble.behind == self.held.len() + self.held_natively.len());
            let known = trouble.as_ref().map(|trouble| (trouble.at, trouble.times));
            match self.step(trouble).await? {
                Step::Next => left -= 1,
                Step::Stop(stopped) => {
                    self.moved.stopped = Some(stopped);
                    break;
                }
                Step::Again(at, error) => {
                    let times = known.filter(|known| known.0 == at).map_or(1, |known| known.1 + 1);
                    let behind = self.strays();
                    tracing::debug!(business = self.business, behind, %error, "a message ended the connection");
                    self.trouble = Some(Trouble { behind, at, reason: error.to_string(), times });
                    // Those are passed over once more.
                    left += behind;
                    (self.held, self.held_natively, self.native) = (Vec::new(), Vec::new(), None);
                    self.connection = connect(self.endpoint).await?;
                    self.wait_for(left).await?;
                }
            }
        }
        self.moved.strays += (self.strays() - usize::from(self.kept)) as u32;
        self.put_back().await?;
        Ok(self.moved)
    }

    fn strays(&self) -> usize {
        self.held.len() + self.held_natively.len()
    }

    async fn step(&mut self, trouble: Option<Trouble>) -> Result<Step, Error> {
        if let Some(trouble) = trouble.as_ref().filter(|trouble| trouble.at != Failed::Publish) {
            let hopeless = trouble.at == Failed::Send && trouble.times >= PATIENCE;
            return self.natively(hopeless.then_some(&trouble.reason)).await;
        }
        let message = match self.connection.get(&self.queue).await {
            Ok(Some(message)) => message,
            // Somebody else took it.
            Ok(None) => return Ok(Step::Next),
            Err(e) if e.is_internal() => return Ok(Step::Again(Failed::Get, e)),
            Err(e) => return Err(e),
        };
        let place = Place::new(&message.exchange, &message.routing_key);
        let ways = place.destinations(&message, &self.destinations);
        if ways.is_empty() {
            self.held.push(message.delivery_tag);
            return Ok(Step::Next);
        }
        if let Some(trouble) = trouble.filter(|trouble| trouble.times >= PATIENCE) {
            return match self.set_aside(&message, &trouble.reason).await? {
                None => {
                    self.connection.ack(message.delivery_tag, false).await?;
                    Ok(Step::Next)
                }
                Some(reason) => Ok(self.keep(message.delivery_tag, place.not_taken(reason))),
            };
        }
        let left = self.ready().await?;
        // The broker takes a `user-id` only from that very user (rabbitmq.com/docs/validated-user-id), and we are another.
        let properties = message.properties.without(Property::UserId);
        match self.publish(&message, &properties, &ways).await {
            Ok(Published::Taken) => {
                self.connection.ack(message.delivery_tag, false).await?;
                self.is_gone(left, place).await
            }
            Ok(Published::Returned(reason)) => Ok(self.keep(message.delivery_tag, place.not_taken(reason))),
            Ok(Published::Refused) => Ok(self.keep(message.delivery_tag, place.not_taken("refused".to_owned()))),
            // 406: something about this message, such as its size.
            Err(e) if e.is_internal() || matches!(e, Error::Channel { code: 406, .. }) => {
                Ok(Step::Again(Failed::Publish, e))
            }
            // No such exchange, for instance. The channel is closed, and with it all is put back.
            Err(e @ Error::Channel { .. }) => {
                self.connection = connect(self.endpoint).await?;
                self.moved.strays = std::mem::take(&mut self.held).len() as u32;
                Ok(Step::Stop(place.not_taken(e.to_string())))
            }
            Err(e) => Err(e),
        }
    }

    /// Once for each way; a repeat after a failure may send it some ways twice.
    async fn publish(
        &mut self,
        message: &Message,
        properties: &Properties,
        ways: &[Option<String>],
    ) -> Result<Published, Error> {
        for way in ways {
            let properties = way.as_ref().map_or_else(|| properties.clone(), |queue| for_queue(properties, queue));
            let sent = self.connection.publish(&message.exchange, &message.routing_key, &properties, &message.body);
            match sent.await? {
                Published::Taken => {}
                other => return Ok(other),
            }
        }
        Ok(Published::Taken)
    }

    fn keep(&mut self, tag: u64, stopped: Stopped) -> Step {
        self.held.push(tag);
        self.kept = true;
        Step::Stop(stopped)
    }

    /// By AMQP 1.0: the broker has the message as it was published, so nothing needs to be translated. `hopeless`: it can't be sent on.
    async fn natively(&mut self, hopeless: Option<&String>) -> Result<Step, Error> {
        let mut native = if let Some(mut native) = self.native.take() {
            native.more(1).await?;
            native
        } else {
            let mut native = v10::Connection::open(self.endpoint, HEARTBEAT).await?;
            native.receive(&self.queue, 1).await?;
            native
        };
        // Somebody else may have taken it.
        let Ok(received) = timeout(RECEIVE_TIMEOUT, native.recv()).await else { return Ok(Step::Next) };
        let received = received?;
        let id = received.delivery_id;
        let message = readable(&received.payload);
        let place = Place::new(&message.exchange, &message.routing_key);
        if place.destinations(&message, &self.destinations).is_empty() {
            self.held_natively.push(id);
            self.native = Some(native);
            return Ok(Step::Next);
        }
        if let Some(reason) = hopeless {
            if let Some(reason) = self.set_aside(&message, reason).await? {
                return Ok(Step::Stop(place.not_taken(reason)));
            }
            native.settle(id, id, Settle::Accept).await?;
            self.native = Some(native);
            return Ok(Step::Next);
        }
        let left = self.ready().await?;
        let sent = native.send(&message.exchange, &message.routing_key, &received.payload).await;
        let reason = match sent {
            Ok(Sent::Taken) => {
                native.settle(id, id, Settle::Accept).await?;
                self.native = Some(native);
                return self.is_gone(left, place).await;
            }
            Ok(Sent::Returned) => "no queue takes it",
            Ok(Sent::Refused) => "refused",
            Err(e) if e.is_internal() => return Ok(Step::Again(Failed::Send, e)),
            // It may have been taken: that is no fault of the message.
            Err(e) => return Err(e),
        };
        // Dropping the link puts the message back.
        Ok(Step::Stop(place.not_taken(reason.to_owned())))
    }

    /// Whether a message that was published again is really gone: one whose binding is missing comes back by the alternate exchange.
    async fn is_gone(&mut self, left: u32, place: Place) -> Result<Step, Error> {
        if self.ready().await? > left {
            let Place { exchange, routing_key } = place;
            return Ok(Step::Stop(Stopped::CameBack { queue: self.queue.clone(), exchange, routing_key }));
        }
        self.moved.moved += 1;
        Ok(Step::Next)
    }

    /// Puts it into `dead` and says so. Why that failed, if it did.
    async fn set_aside(&mut self, message: &Message, reason: &str) -> Result<Option<String>, Error> {
        let not_taken = aside::park(&mut self.connection, self.business, message, reason).await?;
        if not_taken.is_none() {
            self.moved.set_aside += 1;
            tracing::warn!(
                business = self.business,
                reason,
                "an unrouted message can't be moved back; it is in dead now"
            );
            // By a connection of its own: what goes wrong with an event must not cost what is held here.
            if let Err(error) =
                aside::report(connect(self.endpoint).await?, self.business, self.endpoint, message, reason).await
            {
                tracing::warn!(business = self.business, %error, "the event about it was not published");
            }
        }
        Ok(not_taken)
    }

    async fn ready(&mut self) -> Result<u32, Error> {
        Ok(self.connection.counts(&self.queue).await?.messages)
    }

    /// Returns when these messages are really back (bounded): whoever calls again at once must not find the queue empty.
    async fn put_back(&mut self) -> Result<(), Error> {
        let held = self.strays();
        if held == 0 {
            return Ok(());
        }
        let without = self.ready().await? as usize;
        for tag in std::mem::take(&mut self.held) {
            self.connection.requeue(tag, false).await?;
        }
        if let Some(native) = &mut self.native {
            for id in std::mem::take(&mut self.held_natively) {
                native.settle(id, id, Settle::Release).await?;
            }
        }
        self.wait_for(without + held).await
    }

    /// Until so many messages are ready: the broker puts back what a connection held some milliseconds after its end.
    async fn wait_for(&mut self, count: usize) -> Result<(), Error> {
        for _ in 0..PUT_BACK_LOOKS {
            if self.ready().await? as usize >= count {
                break;
            }
            sleep(PUT_BACK_PAUSE).await;
        }
        Ok(())
    }
}

/// Where a message was published, as text.
struct Place {
    exchange: String,
    routing_key: String,
}

impl Place {
    fn new(exchange: &[u8], routing_key: &[u8]) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self { exchange: text(exchange), routing_key: text(routing_key) }
    }

    /// See [`Destinations::of`].
    fn destinations(&self, message: &Message, destinations: &Destinations<'_>) -> Vec<Option<String>> {
        let (queue, from) =
            (message.properties.header(headers::QUEUE), message.properties.header(headers::FROM_CLIENT_TYPE));
        let text = |bytes: &Option<Bytes>| bytes.as_ref().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        let (queue, from) = (text(&queue), text(&from));
        let unrouted = UnroutedMessage {
            exchange: &self.exchange,
            routing_key: &self.routing_key,
            queue: queue.as_deref(),
            from_client_type: from.as_deref(),
            body: &message.body,
        };
        destinations.of(unrouted).into_iter().map(|way| way.map(str::to_owned)).collect()
    }

    fn not_taken(self, reason: String) -> Stopped {
        let Self { exchange, routing_key } = self;
        Stopped::NotTaken { exchange, routing_key, reason }
    }
}

/// As an edge sends what is for one queue. The broker has taken the first header off.
fn for_queue(properties: &Properties, queue: &str) -> Properties {
    let key = names::queue_key(queue);
    let properties = if properties.header(headers::QUEUE).is_some_and(|named| named == queue.as_bytes()) {
        properties.clone()
    } else {
        properties.without_header(headers::QUEUE).with_more_headers([(headers::QUEUE, queue.as_bytes())])
    };
    properties.with_list(headers::BLIND_COPY, key.as_bytes())
}

async fn connect(endpoint: &Endpoint) -> Result<v091::Connection, Error> {
    let mut connection = v091::Connection::open(endpoint, HEARTBEAT).await?;
    connection.confirm().await?;
    Ok(connection)
}

/// What of an AMQP 1.0 message everybody can read.
fn readable(payload: &Bytes) -> Message {
    let sections = Sections::parse(payload).unwrap_or_default();
    let annotation = |name| match sections.annotation(name) {
        Some(Value::String(text) | Value::Symbol(text)) => Bytes::copy_from_slice(text.as_bytes()),
        _ => Bytes::new(),
    };
    let mut properties = Properties::default();
    if let Some(Value::String(id)) = sections.message_id() {
        properties = properties.with_text(Property::MessageId, id.as_bytes());
    }
    if let Some(content_type) = sections.content_type() {
        properties = properties.with_text(Property::ContentType, content_type.as_bytes());
    }
    Message {
        delivery_tag: 0,
        exchange: annotation("x-exchange"),
        routing_key: annotation("x-routing-key"),
        properties,
        body: sections.body().clone(),
    }
}
