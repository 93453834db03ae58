//! Parts of frames of the stream protocol.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::broker::storage::Chunk;

pub(super) fn text(body: &mut Bytes) -> Option<String> {
    let length = usize::from(body.try_get_u16().ok()?);
    (body.len() >= length).then(|| String::from_utf8_lossy(&body.split_to(length)).into_owned())
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

pub(super) fn put_map(out: &mut BytesMut, map: &[(&str, &str)]) {
    out.put_u32(map.len() as u32);
    for (name, value) in map {
        put_text(out, name);
        put_text(out, value);
    }
}

pub(super) fn put_chunk(out: &mut BytesMut, id: u8, version: u16, chunk: &Chunk) {
    let data: usize = chunk.messages.iter().map(|message| message.len() + 4).sum();
    let head = if version >= 2 { 8 } else { 0 } + 48;
    out.put_u32((4 + 1 + head + data) as u32);
    out.put_u16(0x08);
    out.put_u16(version);
    out.put_u8(id);
    if version >= 2 {
        out.put_u64(chunk.first);
    }
    out.put_slice(&[0x50, 0]);
    out.put_u16(chunk.messages.len() as u16);
    out.put_u32(chunk.messages.len() as u32);
    out.put_i64(chunk.timestamp);
    out.put_u64(1);
    out.put_u64(chunk.first);
    out.put_u32(0);
    out.put_u32(data as u32);
    out.put_u64(0);
    for message in &chunk.messages {
        out.put_u32(message.len() as u32);
        out.put_slice(message);
    }
}
