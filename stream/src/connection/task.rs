//! The task of a connection: reads and writes its socket until one of them ends.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use tracing::{debug, warn};

use super::{Delivery, Id, Shared};
use crate::{
    chunk::Chunk,
    codec::{Cut, Fields, Frame, FrameCutter, Malformed, ResponseCode, key, put_frame, put_string},
    error::Error,
    flow::{ChunkPermit, lock},
    handshake::Socket,
};

/// Size of the read buffer; chunks share its memory.
const READ_BYTES: usize = 64 << 10;
const CREDIT_ANSWER: u16 = key::CREDIT | key::RESPONSE;
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) heartbeat: Duration,
    pub(super) max_frame_bytes: usize,
    pub(super) idle_timeout: Duration,
}

impl Shared {
    pub(super) async fn run(self: Arc<Self>, socket: Socket, buffer: BytesMut, limits: Limits) {
        let (reader, writer) = tokio::io::split(socket);
        let work = async {
            // The half that ends first ends the connection: both are dropped here and the socket closes.
            tokio::select! {
                reason = self.read(reader, buffer, limits) => reason,
                reason = self.write(writer, limits) => reason,
            }
        };
        // A panic ends this connection like any other failure: its subscriptions attach again on another one.
        let reason = self.supervisor.attempt("stream frames", work).await;
        self.end(reason.unwrap_or_else(|cause| Error::ConnectionLost(cause.to_string())));
        self.counters.connections.sub(1);
        match self.reason() {
            Error::Closed => debug!(address = %self.address, "stream connection closed"),
            error => {
                self.counters.connections_lost.increment();
                warn!(address = %self.address, %error, "stream connection lost");
            }
        }
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, mut buffer: BytesMut, limits: Limits) -> Error {
        let mut cutter = FrameCutter::new(limits.max_frame_bytes);
        let silence = limits.heartbeat * 2;
        loop {
            match cutter.next(&mut buffer) {
                Ok(Cut::Frame(frame)) => {
                    if let Err(error) = self.handle(frame) {
                        return error;
                    }
                    continue;
                }
                Ok(Cut::Oversized(frame)) => {
                    if let Err(error) = self.handle_oversized(frame) {
                        return error;
                    }
                    continue;
                }
                // Chunks share this block: a new one is allocated when little is left; the old one lives as long as its
                // chunks.
                Ok(Cut::Incomplete(missing)) if missing > READ_BYTES => buffer.reserve(missing),
                Ok(Cut::Incomplete(_)) if buffer.capacity() - buffer.len() < READ_BYTES / 4 => {
                    buffer.reserve(READ_BYTES);
                }
                Ok(Cut::Incomplete(_)) => {}
                Err(malformed) => return malformed.into(),
            }
            match timeout(silence, reader.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => return Error::ConnectionLost("closed by the broker without a reason".to_owned()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Error::ConnectionLost(format!("read: {error}")),
                Err(_) => return Error::ConnectionLost(format!("nothing read for {silence:?}, two heartbeats")),
            }
        }
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin, limits: Limits) -> Error {
        loop {
            let bytes = std::mem::take(&mut *lock(&self.outbox));
            let result = if bytes.is_empty() {
                if let Some(reason) = self.ended() {
                    if matches!(reason, Error::Closed) {
                        let mut close = BytesMut::new();
                        put_frame(&mut close, key::CLOSE, |b| {
                            b.put_u32(0);
                            b.put_u16(ResponseCode::OK.0);
                            put_string(b, "done");
                        });
                        let _ = timeout(GOODBYE_TIMEOUT, write_all(&mut writer, &close)).await;
                        let _ = timeout(GOODBYE_TIMEOUT, writer.shutdown()).await;
                    }
                    return reason;
                }
                if timeout(limits.heartbeat / 2, self.wake.notified()).await.is_ok() {
                    continue;
                }
                if self.end_if_idle(limits.idle_timeout) {
                    continue;
                }
                let mut heartbeat = BytesMut::new();
                put_frame(&mut heartbeat, key::HEARTBEAT, |_| ());
                timeout(self.call_timeout, write_all(&mut writer, &heartbeat)).await
            } else {
                timeout(self.call_timeout, write_all(&mut writer, &bytes)).await
            };
            match result {
                Ok(Ok(())) if self.overflow.load(Ordering::Relaxed) => {
                    return Error::ConnectionLost("the broker reads too slowly".to_owned());
                }
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Error::ConnectionLost(format!("write: {error}")),
                Err(_) => {
                    let text = format!("the socket accepted nothing for {:?}", self.call_timeout);
                    return Error::ConnectionLost(text);
                }
            }
        }
    }

    fn handle(&self, frame: Frame) -> Result<(), Error> {
        if frame.key != key::HEARTBEAT {
            lock(&self.state).mute_since = None;
        }
        let mut fields = Fields(frame.payload);
        match frame.key {
            key::DELIVER => {
                let id = fields.u8("deliver")?;
                let bytes = fields.0.len();
                let chunk = Chunk::parse(frame.version, fields.0)?;
                self.counters.chunks.increment();
                self.counters.messages.add(u64::from(chunk.records));
                self.counters.bytes.add(bytes as u64);
                self.deliver(id, bytes, |permit| Delivery::Chunk(chunk, permit));
            }
            key::METADATA_UPDATE => {
                let code = ResponseCode(fields.u16("metadata update")?);
                let name = fields.string("metadata update")?;
                self.end_subscriptions(code, |_, stream| stream == name);
            }
            CREDIT_ANSWER => {
                let code = ResponseCode(fields.u16("credit answer")?);
                let refused = fields.u8("credit answer")?;
                self.end_subscriptions(code, |id, _| id == refused);
            }
            key::CLOSE => {
                let correlation = fields.u32("close")?;
                let code = fields.u16("close")?;
                let text = fields.string("close")?;
                self.put(|out| {
                    put_frame(out, key::CLOSE | key::RESPONSE, |b| {
                        b.put_u32(correlation);
                        b.put_u16(ResponseCode::OK.0);
                    });
                });
                // The writer sends the answer before it sees the end.
                self.end(Error::ConnectionLost(format!("closed by the broker: {text} (code {code})")));
            }
            key if key & key::RESPONSE != 0 => {
                let correlation = fields.u32("response")?;
                let mut state = lock(&self.state);
                if let Some(id) = state.unsubscribing.remove(&correlation) {
                    state.ids.remove(&id);
                } else if let Some(call) = state.calls.remove(&correlation) {
                    drop(state);
                    // The caller may have timed out.
                    let _ = call.send(fields.0);
                }
            }
            // Heartbeats, and requests of newer brokers: none needs an answer from a consumer.
            _ => {}
        }
        Ok(())
    }

    fn handle_oversized(&self, frame: Frame) -> Result<(), Error> {
        if frame.key != key::DELIVER {
            return Err(Malformed("frame: above the size limit").into());
        }
        lock(&self.state).mute_since = None;
        let id = Fields(frame.payload).u8("deliver")?;
        self.counters.oversized_chunks.increment();
        self.deliver(id, 0, Delivery::Oversized);
        Ok(())
    }

    fn deliver(&self, id: u8, bytes: usize, delivery: impl FnOnce(ChunkPermit) -> Delivery) {
        let mut state = lock(&self.state);
        let Some(Id::Subscribed { queue, flow, .. }) = state.ids.get(&id) else {
            return; // in flight when we unsubscribed
        };
        let delivery = delivery(flow.arrived(bytes));
        let rejected = queue.try_send(delivery).err();
        if matches!(rejected, Some(mpsc::error::TrySendError::Full(_))) {
            // More than the credit: end this subscription; its supervisor subscribes again.
            state.ids.insert(id, Id::Retiring);
        }
        drop(state);
        drop(rejected); // returns the credit, which takes locks
    }

    /// Ends subscriptions that the broker has ended: their ids are free.
    fn end_subscriptions(&self, code: ResponseCode, is_meant: impl Fn(u8, &str) -> bool) {
        let mut state = lock(&self.state);
        for (id, entry) in &mut state.ids {
            if let Id::Subscribed { stream, queue, .. } = entry
                && is_meant(*id, stream)
            {
                let _ = queue.try_send(Delivery::Ended(code));
                // The reservation remains; freeing an id that the broker has dropped needs no request, but after a
                // refused credit it may still know the id, so ask in any case.
                *entry = Id::Retiring;
            }
        }
    }

    fn end_if_idle(&self, idle_timeout: Duration) -> bool {
        let mut state = lock(&self.state);
        let idle = state.ids.is_empty() && state.calls.is_empty() && state.last_used.elapsed() >= idle_timeout;
        if idle {
            state.closed.get_or_insert(Error::Closed);
        }
        idle
    }
}

async fn write_all(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await // TLS buffers
}
