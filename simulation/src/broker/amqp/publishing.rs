//! Messages that are published, and their confirms.

use std::{collections::BTreeMap, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use rand::{random_bool, random_range};
use tokio::{sync::oneshot, time::sleep};
use wirepost_amqp::v091::Properties;
use wirepost_core::{contract::headers, names};

use super::{Mood, Peer, put_shortstr};
use crate::broker::{Message, queues::Answer};

/// A message that is being read.
pub(super) struct Partial {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: Bytes,
    pub(super) size: usize,
    pub(super) body: BytesMut,
}

impl Partial {
    /// One of which nothing has come yet.
    pub(super) fn of(exchange: String, routing_key: String) -> Self {
        Self { exchange, routing_key, properties: Bytes::new(), size: usize::MAX, body: BytesMut::new() }
    }
}

/// What became of a message.
pub(super) struct Outcome {
    channel: u16,
    /// Which channel of this number.
    generation: u64,
    tag: u64,
    taken: bool,
}

impl Peer {
    /// The message on this channel, once it is complete.
    pub(super) fn complete(&mut self, number: u16, mood: &Mood) {
        let Some((generation, channel)) = self.channels.get_mut(&number) else { return };
        let Some(message) = channel.partial.take_if(|partial| partial.body.len() >= partial.size) else { return };
        channel.tag += 1;
        let (generation, tag, confirms) = (*generation, channel.tag, channel.confirms);
        let outcome = move |taken| Outcome { channel: number, generation, tag, taken };
        let business =
            names::owner(&message.exchange).or_else(|| names::owner(&message.routing_key)).map(str::to_owned);
        let mood = business.as_deref().map_or_else(Mood::default, |business| mood.of(business));
        if mood.missing && !message.exchange.is_empty() {
            return self.refuse(number, 404, "NOT_FOUND - no exchange");
        }
        if !confirms {
            return;
        }
        channel.open.insert(tag);
        let Some(business) = business else { return };
        let body = message.body.clone().freeze();
        if names::is_share_exchange(&message.exchange) {
            return self.share(number, &business, &message, &body, outcome, mood.silent);
        }
        let unroutable = mood.unbound && !message.exchange.is_empty();
        if unroutable {
            self.give_back(number, &message);
        }
        // Stored here, in the order of the channel; confirmed later.
        let is_push = message.exchange.is_empty() || message.exchange == names::push_exchange(&business);
        let full = mood.full && random_bool(0.5);
        let mut taken = !full;
        let committed = match (unroutable || full, is_push) {
            (true, _) => None,
            (false, true) if message.exchange.is_empty() && message.routing_key != names::stream(&business) => {
                match self.cluster.queues(|queues, up| queues.put(&message.routing_key, Message::own(body), up)) {
                    Answer::Done(()) => {}
                    Answer::None => taken = false,
                    Answer::Missing | Answer::Taken => self.give_back(number, &message),
                }
                None
            }
            (false, true) if self.cluster.is_transient(&business) => {
                match self.cluster.push(&business, &Message::own(body)) {
                    Some(true) => {}
                    Some(false) => self.give_back(number, &message),
                    None => taken = false,
                }
                None
            }
            (false, true) => {
                let stream = names::stream(&business);
                let committed = self.cluster.append(&stream, &Message::own(body));
                if committed.is_none() {
                    self.give_back(number, &message);
                }
                committed
            }
            (false, false) => {
                // What else there is are events, which are not followed here.
                if message.exchange == names::receive_exchange(&business) {
                    self.cluster.oracle.queued(&business, &message.body);
                }
                None
            }
        };
        self.answer_later(committed.into_iter().collect(), mood.silent, taken, outcome);
    }

    /// A message to the clients of several businesses.
    fn share(
        &mut self,
        number: u16,
        business: &str,
        message: &Partial,
        body: &Bytes,
        outcome: impl Fn(bool) -> Outcome + Send + 'static,
        silent: bool,
    ) {
        let headers = Properties::from_bytes(message.properties.clone()).headers_from(headers::TO_BUSINESS);
        let named = |(name, value): (String, String)| {
            let to = name.strip_prefix(headers::TO_BUSINESS).filter(|_| value == headers::TO_BUSINESS_VALUE);
            to.map(str::to_owned)
        };
        let Some(copies) = self.cluster.share(business, headers.into_iter().filter_map(named).collect(), body) else {
            return self.refuse(number, 404, "NOT_FOUND - no exchange");
        };
        if !copies.routed {
            self.give_back(number, message);
        }
        self.answer_later(copies.committed, silent, copies.taken, outcome);
    }

    /// Once all streams have it, or at another time.
    fn answer_later(
        &self,
        committed: Vec<oneshot::Receiver<bool>>,
        silent: bool,
        taken: bool,
        outcome: impl Fn(bool) -> Outcome + Send + 'static,
    ) {
        let silent = silent && random_bool(0.8);
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            for committed in committed {
                if committed.await.is_err() {
                    // Lost before it was committed: never answered, or refused.
                    if random_bool(0.5) {
                        let _ = outcomes.send(outcome(false));
                    }
                    return;
                }
            }
            sleep(Duration::from_millis(if silent { random_range(1000..9000) } else { random_range(0..25) })).await;
            let _ = outcomes.send(outcome(taken));
        });
    }

    fn give_back(&mut self, channel: u16, message: &Partial) {
        let mut args = BytesMut::new();
        args.put_u16(312);
        put_shortstr(&mut args, "NO_ROUTE");
        put_shortstr(&mut args, &message.exchange);
        put_shortstr(&mut args, &message.routing_key);
        self.send(channel, (60, 50), &args);
        let size = (message.body.len() as u64).to_be_bytes();
        self.put(2, channel, &[&[0, 60, 0, 0], &size, &message.properties]);
        self.put(3, channel, &[&message.body]);
    }

    /// Answers messages; several that were taken by one confirm at times.
    pub(super) fn settle(&mut self, outcomes: Vec<Outcome>) {
        let mut taken: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
        for Outcome { channel: number, generation, tag, taken: ok } in outcomes {
            let Some((known, channel)) = self.channels.get_mut(&number) else { continue };
            if *known != generation || !channel.open.remove(&tag) {
                continue;
            }
            if ok {
                taken.entry(number).or_default().push(tag);
            } else {
                self.send(number, (60, 120), &confirm(tag, false));
            }
        }
        for (number, tags) in taken {
            let first_open = self.channels.get(&number).and_then(|(_, channel)| channel.open.first().copied());
            let together = tags.iter().copied().filter(|tag| first_open.is_none_or(|first| *tag < first)).max();
            let together = together.filter(|_| random_bool(0.7));
            for tag in tags.iter().filter(|tag| together.is_none_or(|last| **tag > last)) {
                self.send(number, (60, 80), &confirm(*tag, false));
            }
            if let Some(last) = together {
                self.send(number, (60, 80), &confirm(last, true));
            }
        }
    }
}

fn confirm(tag: u64, multiple: bool) -> BytesMut {
    let mut args = BytesMut::new();
    args.put_u64(tag);
    args.put_u8(multiple.into());
    args
}
