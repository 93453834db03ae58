//! What readers of queues ask, and what they are sent.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use wirepost_core::names;

use super::{Method, Peer, put_shortstr, shortstr};
use crate::broker::queues::{Answer, Waiting};

/// A consumer of a queue.
pub(super) struct Consumer {
    queue: String,
    tag: String,
    /// Deliveries so far.
    delivered: u64,
    unacknowledged: BTreeMap<u64, Waiting>,
}

impl Peer {
    /// What a reader of a queue asks.
    pub(super) fn consuming(&mut self, channel: u16, method: Method, mut args: Bytes) -> Option<()> {
        let number = self.number;
        let (answer, ok, body): (Answer<usize>, Method, Vec<u8>) = match method {
            (50, 10) => {
                args.try_get_u16().ok()?;
                let (name, passive) = (shortstr(&mut args)?, args.try_get_u8().ok()? & 1 != 0);
                let node = self.node;
                let answer = self.cluster.queues(|queues, up| {
                    if !passive {
                        queues.declare(&name, node);
                    }
                    queues.count(&name, up)
                });
                let mut body = BytesMut::new();
                put_shortstr(&mut body, &name);
                body.put_slice(&[0; 8]);
                (answer, (50, 11), body.to_vec())
            }
            (50, 20) => {
                args.try_get_u16().ok()?;
                let (name, exchange) = (shortstr(&mut args)?, shortstr(&mut args)?);
                let business = names::owner(&exchange)?.to_owned();
                (self.cluster.queues(|queues, up| queues.bind(&name, &business, up)).counted(), (50, 21), vec![])
            }
            (50, 30) => {
                args.try_get_u16().ok()?;
                let name = shortstr(&mut args)?;
                (self.cluster.queues(|queues, up| queues.purge(&name, up)).counted(), (50, 31), vec![0; 4])
            }
            (60, 10) => {
                args.try_get_u32().ok()?;
                self.channels.get_mut(&channel)?.1.prefetch = args.try_get_u16().ok()?.into();
                (Answer::Done(0), (60, 11), vec![])
            }
            (60, 20) => {
                args.try_get_u16().ok()?;
                let (queue, tag) = (shortstr(&mut args)?, shortstr(&mut args)?);
                let answer = self.cluster.queues(|queues, up| queues.consume(&queue, number, up)).counted();
                let mut body = BytesMut::new();
                put_shortstr(&mut body, &tag);
                if let Answer::Done(_) = answer {
                    let unacknowledged = BTreeMap::new();
                    let consumer = Consumer { queue, tag, delivered: 0, unacknowledged };
                    self.channels.get_mut(&channel)?.1.consumer = Some(consumer);
                }
                (answer, (60, 21), body.to_vec())
            }
            (60, 80 | 120) => {
                let (tag, bits) = (args.try_get_u64().ok()?, args.try_get_u8().ok()?);
                let consumer = self.channels.get_mut(&channel)?.1.consumer.as_mut()?;
                let rest = consumer.unacknowledged.split_off(&(tag + 1));
                // Always several, always to the last.
                let settled = std::mem::replace(&mut consumer.unacknowledged, rest);
                let queue = consumer.queue.clone();
                if method == (60, 120) && bits & 2 != 0 {
                    let back = settled.into_values().collect();
                    self.cluster.queues(|queues, _| queues.give_back(&queue, number, back, false));
                } else {
                    self.cluster.lock().queues.settled(&queue, number, settled.len());
                }
                return Some(());
            }
            _ => return Some(()),
        };
        match answer {
            Answer::Done(_) => self.send(channel, ok, &body),
            Answer::Missing => self.refuse(channel, 404, "NOT_FOUND - no queue"),
            Answer::Taken => self.refuse(channel, 403, "ACCESS_REFUSED - in exclusive use"),
            Answer::None => {}
        }
        Some(())
    }

    /// Sends consumers what waits for them.
    pub(super) fn deliver(&mut self) {
        let mut channels = std::mem::take(&mut self.channels);
        for (number, (_, channel)) in &mut channels {
            let Some(consumer) = &mut channel.consumer else { continue };
            if !self.cluster.lock().queues.is_consumed(&consumer.queue, self.number) {
                let mut args = BytesMut::new();
                put_shortstr(&mut args, &consumer.tag);
                args.put_u8(1);
                self.send(*number, (60, 30), &args);
                channel.consumer = None;
                continue;
            }
            while consumer.unacknowledged.len() < channel.prefetch.max(1) {
                let next = {
                    let mut state = self.cluster.lock();
                    let up: Vec<bool> = state.nodes.iter().map(|node| node.up).collect();
                    state.queues.next(&consumer.queue, &up)
                };
                let Some(waiting) = next else { break };
                consumer.delivered += 1;
                let mut args = BytesMut::new();
                put_shortstr(&mut args, &consumer.tag);
                args.put_u64(consumer.delivered);
                args.put_u8(waiting.redelivered.into());
                let (exchange, properties) = waiting.message.delivered();
                put_shortstr(&mut args, &exchange);
                put_shortstr(&mut args, "");
                self.send(*number, (60, 60), &args);
                let body = &waiting.message.body;
                let size = (body.len() as u64).to_be_bytes();
                self.put(2, *number, &[&[0, 60, 0, 0], &size, &properties]);
                self.put(3, *number, &[body]);
                consumer.unacknowledged.insert(consumer.delivered, waiting);
            }
        }
        self.channels = channels;
    }
}

impl Drop for Peer {
    /// What its consumers have not acknowledged goes back.
    fn drop(&mut self) {
        for (_, channel) in std::mem::take(&mut self.channels).into_values() {
            if let Some(Consumer { queue, unacknowledged, .. }) = channel.consumer {
                let (number, back) = (self.number, unacknowledged.into_values().collect());
                self.cluster.queues(|queues, _| queues.give_back(&queue, number, back, true));
            }
        }
    }
}
