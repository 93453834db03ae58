//! One connection of the stream protocol, as a node serves it.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until},
};

use super::{
    Cluster, STREAM_PORT, node_name,
    storage::{Chunk, Flow, Found, Stats},
};
use crate::network::End;

mod wire;

use wire::{put_chunk, put_map, put_text, text};

const OK: u16 = 1;
const NO_STREAM: u16 = 2;
const ELSEWHERE: u16 = 6;
const HEARTBEAT: Duration = Duration::from_secs(2);

struct Subscription {
    stream: String,
    life: u64,
    /// The next offset.
    at: u64,
    credit: u16,
    /// It sends nothing unless it has more credit than this.
    limit: u16,
}

struct Peer {
    cluster: Cluster,
    node: usize,
    socket: End,
    input: BytesMut,
    output: BytesMut,
    subscriptions: BTreeMap<u8, Subscription>,
    version: u16,
}

/// Serves a connection to its end.
pub(super) async fn serve(cluster: Cluster, node: usize, socket: End) {
    let mut changed = cluster.changed.subscribe();
    let mut peer = Peer {
        cluster,
        node,
        socket,
        input: BytesMut::new(),
        output: BytesMut::new(),
        subscriptions: BTreeMap::new(),
        version: 1,
    };
    let mut beat = Instant::now() + HEARTBEAT;
    while peer.cluster.is_up(node) {
        while let Some(frame) = peer.frame() {
            if !peer.handle(frame) {
                return;
            }
        }
        changed.mark_unchanged();
        peer.deliver();
        if peer.flush().await.is_err() {
            return;
        }
        tokio::select! {
            read = peer.socket.read_buf(&mut peer.input) => if !matches!(read, Ok(1..)) { return },
            _ = changed.changed() => {}
            () = sleep_until(beat) => {
                beat = Instant::now() + HEARTBEAT;
                peer.send(0x17, 1, &[]);
            }
        }
    }
}

impl Peer {
    fn frame(&mut self) -> Option<(u16, Bytes)> {
        let size = u32::from_be_bytes(*self.input.first_chunk::<4>()?) as usize;
        if self.input.len() < 4 + size {
            return None;
        }
        let mut frame = self.input.split_to(4 + size).freeze();
        frame.advance(4);
        let key = frame.get_u16();
        frame.advance(2);
        Some((key, frame))
    }

    fn send(&mut self, key: u16, version: u16, body: &[u8]) {
        self.output.put_u32(body.len() as u32 + 4);
        self.output.put_u16(key);
        self.output.put_u16(version);
        self.output.put_slice(body);
    }

    fn answer(&mut self, key: u16, correlation: u32, code: u16, rest: &[u8]) {
        let mut body = BytesMut::new();
        body.put_u32(correlation);
        body.put_u16(code);
        body.put_slice(rest);
        self.send(0x8000 | key, 1, &body);
    }

    async fn flush(&mut self) -> io::Result<()> {
        let out = self.output.split();
        self.socket.write_all(&out).await
    }

    /// False: the connection ends.
    fn handle(&mut self, (key, body): (u16, Bytes)) -> bool {
        self.handled(key, body).is_some()
    }

    fn handled(&mut self, key: u16, mut body: Bytes) -> Option<()> {
        let mut rest = BytesMut::new();
        match key {
            0x17 | 0x14 => {}
            0x09 => {
                let (id, credit) = (body.try_get_u8().ok()?, body.try_get_u16().ok()?);
                match self.subscriptions.get_mut(&id) {
                    Some(subscription) => subscription.credit += credit,
                    None => self.send(0x8009, 1, &[0, 4, id]),
                }
            }
            key => {
                let correlation = body.try_get_u32().ok()?;
                match key {
                    0x11 => {
                        put_map(&mut rest, &[("version", if self.cluster.new { "4.3.6" } else { "4.0.9" })]);
                        self.answer(key, correlation, OK, &rest);
                    }
                    0x12 => {
                        rest.put_u32(1);
                        put_text(&mut rest, "PLAIN");
                        self.answer(key, correlation, OK, &rest);
                    }
                    0x13 => {
                        self.answer(key, correlation, OK, &[]);
                        self.send(0x14, 1, &[0, 0x10, 0, 0, 0, 0, 0, 60]);
                    }
                    0x15 => {
                        let (host, port) = (node_name(self.node), STREAM_PORT.to_string());
                        put_map(&mut rest, &[("advertised_host", &host), ("advertised_port", &port)]);
                        self.answer(key, correlation, OK, &rest);
                    }
                    0x1b => {
                        self.version = 2;
                        self.answer(key, correlation, OK, &[0, 0, 0, 0]);
                    }
                    0x1c => self.stats(correlation, &text(&mut body)?),
                    0x0f => {
                        body.try_get_u32().ok()?;
                        self.members(correlation, &text(&mut body)?);
                    }
                    0x07 => self.subscribe(correlation, body)?,
                    0x0c => {
                        let id = body.try_get_u8().ok()?;
                        let code = if self.subscriptions.remove(&id).is_some() { OK } else { 4 };
                        self.answer(key, correlation, code, &[]);
                    }
                    // Close.
                    _ => return None,
                }
            }
        }
        Some(())
    }

    fn stats(&mut self, correlation: u32, stream: &str) {
        let Stats { first, newest, end } = match self.cluster.stats(stream, self.node) {
            Found::Yes(stats) => stats,
            Found::No => return self.answer(0x1c, correlation, NO_STREAM, &[]),
            Found::Elsewhere => return self.answer(0x1c, correlation, ELSEWHERE, &[]),
        };
        let mut facts = vec![("first_chunk_id", first), ("committed_chunk_id", newest)];
        if self.cluster.new {
            facts.push(("committed_offset", end));
        }
        let mut rest = BytesMut::new();
        rest.put_u32(facts.len() as u32);
        for (name, value) in facts {
            put_text(&mut rest, name);
            rest.put_i64(value);
        }
        self.answer(0x1c, correlation, OK, &rest);
    }

    fn members(&mut self, correlation: u32, stream: &str) {
        let members = self.cluster.members(stream);
        let (leader, nodes) = members.clone().unwrap_or_default();
        let mut body = BytesMut::new();
        body.put_u32(correlation);
        body.put_u32(nodes.len() as u32);
        for node in &nodes {
            body.put_u16(*node as u16);
            put_text(&mut body, &node_name(*node));
            body.put_u32(STREAM_PORT.into());
        }
        body.put_u32(1);
        put_text(&mut body, stream);
        body.put_u16(if members.is_some() { OK } else { NO_STREAM });
        body.put_u16(leader.map_or(u16::MAX, |leader| leader as u16));
        let replicas: Vec<_> = nodes.iter().filter(|node| Some(**node) != leader).collect();
        body.put_u32(replicas.len() as u32);
        for node in replicas {
            body.put_u16(*node as u16);
        }
        self.send(0x800f, 1, &body);
    }

    fn subscribe(&mut self, correlation: u32, mut body: Bytes) -> Option<()> {
        let (id, stream, kind) = (body.try_get_u8().ok()?, text(&mut body)?, body.try_get_u16().ok()?);
        let offset = if kind == 4 { body.try_get_u64().ok()? } else { 0 };
        let credit = body.try_get_u16().ok()?;
        let found = self.cluster.at(&stream, self.node, |state, known, _| {
            let mut visible = state.chunks.iter().filter(|chunk| chunk.end() <= known);
            let at = match kind {
                1 => 0,
                2 => visible.next_back().map_or(0, |chunk| chunk.first),
                // Beyond the end: from the next chunk on.
                _ => offset.min(visible.next_back().map_or(0, Chunk::end)),
            };
            (state.life, at)
        });
        let code = match found {
            Found::Yes((life, at)) => {
                self.subscriptions.insert(id, Subscription { stream, life, at, credit, limit: credit / 2 });
                OK
            }
            Found::No => NO_STREAM,
            Found::Elsewhere => ELSEWHERE,
        };
        self.answer(0x07, correlation, code, &[]);
        Some(())
    }

    /// Sends what is new, as far as credit goes; ends subscriptions of streams that are gone.
    fn deliver(&mut self) {
        let mut out = BytesMut::new();
        let (mut ended, version) = (Vec::new(), self.version);
        for (id, subscription) in &mut self.subscriptions {
            let Subscription { stream, life, at, credit, limit } = subscription;
            let found = self.cluster.at(stream, self.node, |state, known, _| {
                if state.life != *life {
                    return false;
                }
                if state.flow == Flow::Nothing || *credit <= *limit {
                    return true;
                }
                let from = *at;
                let new = state.chunks.iter().filter(|chunk| chunk.end() <= known && chunk.end() > from);
                let most = if state.flow == Flow::Trickle { 1 } else { *credit };
                for chunk in new.take(most.into()) {
                    *credit -= 1;
                    *at = chunk.end();
                    put_chunk(&mut out, *id, version, chunk);
                }
                true
            });
            if !matches!(found, Found::Yes(true)) {
                ended.push((*id, stream.clone()));
            }
        }
        self.output.put_slice(&out);
        for (id, stream) in ended {
            self.subscriptions.remove(&id);
            let mut body = BytesMut::new();
            body.put_u16(ELSEWHERE);
            put_text(&mut body, &stream);
            self.send(0x10, 1, &body);
        }
    }
}
