//! The streams of the cluster: what is committed, and how much of it each node knows.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use rand::{random_bool, random_range};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use wirepost_core::names;

use super::{Cluster, Message, State};

/// A stream.
pub(super) struct StreamState {
    pub(super) life: u64,
    pub(super) chunks: VecDeque<Chunk>,
    pub(super) next: u64,
    /// Where the segment that is being written began.
    pub(super) segment: u64,
    pub(super) left_in_segment: u32,
    pub(super) leader: Option<usize>,
    /// By node, the end of what it knows; `None`: it has no replica.
    pub(super) known: Vec<Option<u64>>,
    pub(super) pending: Vec<Pending>,
    /// What its readers are sent.
    pub(super) flow: Flow,
}

/// A message that is not committed yet.
pub(super) struct Pending {
    pub(super) message: Message,
    /// As it is stored.
    stored: Bytes,
    committed: oneshot::Sender<bool>,
}

/// How much of a stream its readers are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Free,
    /// A chunk whenever anything changes.
    Trickle,
    Nothing,
}

/// A stored chunk.
#[derive(Clone)]
pub(super) struct Chunk {
    pub(super) segment: u64,
    pub(super) first: u64,
    pub(super) timestamp: i64,
    /// As stored: AMQP 1.0.
    pub(super) messages: Vec<Bytes>,
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }
}

/// What a node says about a stream.
pub(super) struct Stats {
    pub(super) first: i64,
    pub(super) newest: i64,
    pub(super) end: i64,
}

/// The answer to a question about a stream.
pub(super) enum Found<T> {
    Yes(T),
    /// There is no such stream.
    No,
    /// This node has no replica.
    Elsewhere,
}

impl Cluster {
    /// Declares the stream of a business; a new life.
    pub(crate) fn declare(&self, business: &str) {
        let mut state = self.lock();
        let nodes = state.nodes.len();
        let mut known = vec![Some(0); nodes];
        if nodes > 2 && random_bool(0.3) {
            known[random_range(0..nodes)] = None;
        }
        let holders: Vec<usize> = (0..nodes).filter(|node| known[*node].is_some()).collect();
        let leader = Some(holders[random_range(0..holders.len())]);
        let life = self.oracle.new_life(business);
        let stream = StreamState {
            life,
            chunks: VecDeque::new(),
            next: 0,
            segment: 0,
            left_in_segment: random_range(2..12),
            leader,
            known,
            pending: Vec::new(),
            flow: Flow::Free,
        };
        state.streams.insert(names::stream(business), stream);
        drop(state);
        self.move_back();
        self.change();
    }

    /// Deletes the stream of a business with everything in it.
    pub(crate) fn delete(&self, business: &str) {
        let stream = self.lock().streams.remove(&names::stream(business));
        for pending in stream.into_iter().flat_map(|stream| stream.pending) {
            self.oracle.lost(business, &pending.message.body);
        }
        self.oracle.life_ended(business);
        self.change();
    }

    /// Readers of a stream are sent so much.
    pub(crate) fn set_flow(&self, business: &str, flow: Flow) {
        if let Some(stream) = self.lock().streams.get_mut(&names::stream(business)) {
            stream.flow = flow;
        }
        self.change();
    }

    /// Retention deletes the oldest segments, but never the newest.
    pub(crate) fn truncate(&self, business: &str) {
        self.keep_segments(business, |segments| random_range(0..segments));
    }

    /// Retention deletes all segments but the newest.
    pub(crate) fn truncate_all(&self, business: &str) {
        self.keep_segments(business, |segments| segments - 1);
    }

    /// Deletes what is before one of the segments.
    fn keep_segments(&self, business: &str, first: impl FnOnce(usize) -> usize) {
        let mut state = self.lock();
        // A replica deletes its own segments, and keeps its last one.
        if state.nodes.iter().any(|node| node.lags) {
            return;
        }
        let Some(stream) = state.streams.get_mut(&names::stream(business)) else { return };
        let next = stream.next;
        stream.known.iter_mut().flatten().for_each(|known| *known = next);
        let Some(newest) = stream.chunks.back().map(|chunk| chunk.segment) else { return };
        let mut segments: Vec<u64> = stream.chunks.iter().map(|chunk| chunk.segment).collect();
        segments.dedup();
        let keep = segments[first(segments.len())].min(newest);
        stream.chunks.retain(|chunk| chunk.segment >= keep);
        let first = stream.chunks.front().map_or(stream.next, |chunk| chunk.first);
        let life = stream.life;
        drop(state);
        self.oracle.deleted_below(business, life, first);
        self.change();
    }

    /// Another leader: it has everything that is committed.
    pub(crate) fn elect(&self, business: &str, leader: bool) {
        let mut state = self.lock();
        let State { nodes, streams, .. } = &mut *state;
        let Some(stream) = streams.get_mut(&names::stream(business)) else { return };
        let able: Vec<usize> =
            (0..nodes.len()).filter(|node| nodes[*node].up && stream.known[*node].is_some()).collect();
        stream.leader = (leader && !able.is_empty()).then(|| able[random_range(0..able.len())]);
        if let Some(leader) = stream.leader {
            stream.known[leader] = Some(stream.next);
        }
        drop(state);
        self.change();
        self.commit_later(names::stream(business));
    }

    /// Puts a message into a stream; `true` once it is committed. Dropped: nobody knows.
    pub(super) fn append(&self, stream: &str, message: &Message) -> Option<oneshot::Receiver<bool>> {
        let mut state = self.lock();
        let pending = &mut state.streams.get_mut(stream)?.pending;
        let (sender, committed) = oneshot::channel();
        let (message, stored) = (message.clone(), message.encode());
        pending.push(Pending { message, stored, committed: sender });
        let first = pending.len() == 1;
        drop(state);
        if first {
            self.commit_later(stream.to_owned());
        }
        Some(committed)
    }

    pub(super) fn commit_later(&self, stream: String) {
        let cluster = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(random_range(0..15))).await;
            cluster.commit(&stream);
        });
    }

    fn commit(&self, name: &str) {
        let mut state = self.lock();
        let State { nodes, streams, .. } = &mut *state;
        let Some(stream) = streams.get_mut(name) else { return };
        let Some(leader) = stream.leader else { return };
        if stream.pending.is_empty() || !nodes[leader].up {
            return;
        }
        if stream.left_in_segment == 0 {
            // The first offset of a segment holds no message.
            stream.segment = stream.next;
            stream.next += 1;
            stream.left_in_segment = random_range(2..12);
        }
        stream.left_in_segment -= 1;
        let most = stream.pending.len().min(random_range(1..=6));
        let committed: Vec<Pending> = stream.pending.drain(..most).collect();
        let rest = !stream.pending.is_empty();
        let timestamp = wirepost_runtime::clock::now_ms();
        let messages = committed.iter().map(|pending| pending.stored.clone()).collect();
        let chunk = Chunk { segment: stream.segment, first: stream.next, timestamp, messages };
        if let Some(business) = names::owner(name) {
            for (offset, Pending { message, stored, .. }) in (chunk.first..).zip(&committed) {
                self.oracle.stored(business, (stream.life, offset, timestamp), stored, message);
            }
        }
        stream.next = chunk.end();
        stream.chunks.push_back(chunk);
        stream.known[leader] = Some(stream.next);
        let (life, end) = (stream.life, stream.next);
        drop(state);
        for pending in committed {
            let _ = pending.committed.send(true);
        }
        self.change();
        if rest {
            self.commit_later(name.to_owned());
        }
        for node in (0..self.nodes()).filter(|node| *node != leader) {
            let (cluster, name) = (self.clone(), name.to_owned());
            tokio::spawn(async move {
                sleep(Duration::from_millis(random_range(0..60))).await;
                cluster.replicate(&name, life, node, end);
            });
        }
    }

    fn replicate(&self, name: &str, life: u64, node: usize, end: u64) {
        let mut state = self.lock();
        let State { nodes, streams, .. } = &mut *state;
        if let Some(stream) = streams.get_mut(name).filter(|stream| stream.life == life)
            && !nodes[node].lags
            && let Some(known) = &mut stream.known[node]
        {
            *known = end.max(*known);
        }
        drop(state);
        self.change();
    }

    /// A stream as this node knows it.
    pub(super) fn at<T>(&self, name: &str, node: usize, look: impl FnOnce(&StreamState, u64, bool) -> T) -> Found<T> {
        let state = self.lock();
        let Some(stream) = state.streams.get(name) else { return Found::No };
        let Some(known) = stream.known[node] else { return Found::Elsewhere };
        Found::Yes(look(stream, known, state.nodes[node].ready_at <= Instant::now()))
    }

    pub(super) fn stats(&self, name: &str, node: usize) -> Found<Stats> {
        let new = self.new;
        self.at(name, node, |stream, known, ready| {
            let mut visible = stream.chunks.iter().filter(|chunk| chunk.end() <= known);
            let first = visible.next();
            let last = visible.next_back().or(first);
            let (Some(first), Some(last)) = (first, last) else { return Stats { first: -1, newest: -1, end: -1 } };
            let end = |end: u64| if ready { end as i64 } else { -1 };
            Stats {
                first: first.segment as i64,
                newest: end(last.first),
                end: if new { end(last.end() - 1) } else { -1 },
            }
        })
    }

    /// Nodes with a replica, and the leader among them.
    pub(super) fn members(&self, name: &str) -> Option<(Option<usize>, Vec<usize>)> {
        let state = self.lock();
        let stream = state.streams.get(name)?;
        let nodes = (0..state.nodes.len()).filter(|node| state.nodes[*node].up && stream.known[*node].is_some());
        Some((stream.leader, nodes.collect()))
    }

    /// The end of a business's stream: its last message.
    pub(crate) fn newest(&self, business: &str) -> Option<(u64, u64)> {
        let state = self.lock();
        let stream = state.streams.get(&names::stream(business))?;
        stream.chunks.back().map(|chunk| (stream.life, chunk.end() - 1))
    }
}
