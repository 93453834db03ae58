//! One connection of AMQP 0-9-1, as a node serves it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{Cluster, Mood};
use crate::network::End;

mod consuming;
mod publishing;

use consuming::Consumer;
use publishing::{Outcome, Partial};

const HEARTBEAT: Duration = Duration::from_secs(2);
/// A client that sends nothing for so long is gone, unless it is blocked.
const SILENCE: Duration = Duration::from_secs(10);
type Method = (u16, u16);

/// A channel.
#[derive(Default)]
struct Channel {
    confirms: bool,
    tag: u64,
    /// Messages that are not answered.
    open: BTreeSet<u64>,
    /// The message that is being read.
    partial: Option<Partial>,
    prefetch: usize,
    consumer: Option<Consumer>,
}

struct Peer {
    cluster: Cluster,
    socket: End,
    input: BytesMut,
    output: BytesMut,
    channels: BTreeMap<u16, (u64, Channel)>,
    generations: u64,
    outcomes: mpsc::UnboundedSender<Outcome>,
    blocked: bool,
    /// It was published to: RabbitMQ blocks no other connection.
    published: bool,
    node: usize,
    number: u64,
}

/// Serves a connection to its end.
pub(super) async fn serve(cluster: Cluster, node: usize, socket: End) {
    let mut changed = cluster.changed.subscribe();
    let (outcomes, mut settled) = mpsc::unbounded_channel();
    let mut peer = Peer {
        cluster,
        socket,
        input: BytesMut::new(),
        output: BytesMut::new(),
        channels: BTreeMap::new(),
        generations: 0,
        outcomes,
        blocked: false,
        published: false,
        node,
        number: rand::random(),
    };
    let mut head = [0; 8];
    if peer.socket.read_exact(&mut head).await.is_err() {
        return;
    }
    let mut start = BytesMut::from(&[0, 9][..]);
    start.put_u32(0);
    for text in ["PLAIN", "en_US"] {
        start.put_u32(text.len() as u32);
        start.put_slice(text.as_bytes());
    }
    peer.send(0, (10, 10), &start);
    let mut beat = Instant::now() + HEARTBEAT;
    let mut last_byte = Instant::now();
    while peer.cluster.is_up(node) {
        changed.mark_unchanged();
        let mood = peer.cluster.mood();
        if peer.published && mood.blocked != peer.blocked {
            peer.blocked = mood.blocked;
            let args = [&[6][..], b"memory"].concat();
            peer.send(0, if mood.blocked { (10, 60) } else { (10, 61) }, if mood.blocked { &args } else { &[] });
        }
        // A blocked broker reads nothing more.
        while !peer.blocked
            && let Some(frame) = peer.frame()
        {
            if peer.handle(frame, &mood).is_none() {
                let _ = peer.flush().await;
                return;
            }
        }
        peer.deliver();
        if peer.flush().await.is_err() {
            return;
        }
        tokio::select! {
            read = peer.socket.read_buf(&mut peer.input) => {
                if !matches!(read, Ok(1..)) {
                    return;
                }
                last_byte = Instant::now();
            }
            Some(outcome) = settled.recv() => {
                // Several go together at times.
                let mut all = vec![outcome];
                while let Ok(next) = settled.try_recv() {
                    all.push(next);
                }
                peer.settle(all);
            }
            _ = changed.changed() => {}
            () = sleep_until(beat) => {
                beat = Instant::now() + HEARTBEAT;
                if last_byte.elapsed() >= SILENCE && !peer.blocked {
                    return;
                }
                peer.output.put_slice(&[8, 0, 0, 0, 0, 0, 0, 0xce]);
            }
        }
    }
}

fn shortstr(args: &mut Bytes) -> Option<String> {
    let length = usize::from(args.try_get_u8().ok()?);
    (args.len() >= length).then(|| String::from_utf8_lossy(&args.split_to(length)).into_owned())
}

fn put_shortstr(out: &mut BytesMut, text: &str) {
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

impl Peer {
    fn frame(&mut self) -> Option<(u8, u16, Bytes)> {
        let head = self.input.first_chunk::<7>()?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if self.input.len() < size + 8 {
            return None;
        }
        let mut frame = self.input.split_to(size + 8).freeze();
        let (kind, channel) = (frame.get_u8(), frame.get_u16());
        frame.advance(4);
        frame.truncate(size);
        Some((kind, channel, frame))
    }

    fn put(&mut self, kind: u8, channel: u16, parts: &[&[u8]]) {
        self.output.put_u8(kind);
        self.output.put_u16(channel);
        self.output.put_u32(parts.iter().map(|part| part.len() as u32).sum());
        for part in parts {
            self.output.put_slice(part);
        }
        self.output.put_u8(0xce);
    }

    fn send(&mut self, channel: u16, (class, method): Method, args: &[u8]) {
        self.put(1, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), args]);
    }

    async fn flush(&mut self) -> io::Result<()> {
        let out = self.output.split();
        self.socket.write_all(&out).await
    }

    /// `None`: the connection ends.
    fn handle(&mut self, (kind, channel, mut payload): (u8, u16, Bytes), mood: &Mood) -> Option<()> {
        match kind {
            1 => {
                let method = (payload.try_get_u16().ok()?, payload.try_get_u16().ok()?);
                self.method(channel, method, payload)?;
            }
            2 => {
                payload.advance(4);
                let size = payload.try_get_u64().ok()? as usize;
                if let Some(partial) = self.partial(channel) {
                    (partial.size, partial.properties) = (size, payload);
                }
                self.complete(channel, mood);
            }
            3 => {
                if let Some(partial) = self.partial(channel) {
                    partial.body.put_slice(&payload);
                }
                self.complete(channel, mood);
            }
            _ => {}
        }
        Some(())
    }

    fn partial(&mut self, channel: u16) -> Option<&mut Partial> {
        self.channels.get_mut(&channel)?.1.partial.as_mut()
    }

    fn method(&mut self, channel: u16, method: Method, mut args: Bytes) -> Option<()> {
        match method {
            // start-ok
            (10, 11) => self.send(0, (10, 30), &[0x07, 0xff, 0, 2, 0, 0, 0, 4]),
            (10, 40) => {
                self.send(0, (10, 41), &[0]);
            }
            (10, 50) => {
                self.send(0, (10, 51), &[]);
                return None;
            }
            (20, 10) => {
                self.generations += 1;
                self.channels.insert(channel, (self.generations, Channel::default()));
                self.send(channel, (20, 11), &[0; 4]);
            }
            (20, 40) => {
                self.channels.remove(&channel);
                self.send(channel, (20, 41), &[]);
            }
            (85, 10) => {
                if let Some((_, channel)) = self.channels.get_mut(&channel) {
                    channel.confirms = true;
                }
                self.send(channel, (85, 11), &[]);
            }
            (50 | 60, 10..=30) | (60, 80 | 120) => self.consuming(channel, method, args)?,
            (50, 40) => {
                args.try_get_u16().ok()?;
                let name = shortstr(&mut args)?;
                self.cluster.queues(|queues, _| queues.delete(&name));
                self.send(channel, (50, 41), &[0; 4]);
            }
            (60, 40) => {
                self.published = true;
                args.try_get_u16().ok()?;
                let (exchange, routing_key) = (shortstr(&mut args)?, shortstr(&mut args)?);
                if let Some((_, channel)) = self.channels.get_mut(&channel) {
                    channel.partial = Some(Partial::of(exchange, routing_key));
                }
            }
            _ => {}
        }
        Some(())
    }

    fn refuse(&mut self, number: u16, code: u16, text: &str) {
        self.channels.remove(&number);
        let mut args = BytesMut::new();
        args.put_u16(code);
        put_shortstr(&mut args, text);
        args.put_u32(0);
        self.send(number, (20, 40), &args);
    }
}
