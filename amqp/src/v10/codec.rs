//! Performatives of AMQP 1.0: lists behind a descriptor.

use bytes::{BufMut, BytesMut};

/// Descriptors.
pub(super) mod performative {
    pub(in super::super) const OPEN: u64 = 0x10;
    pub(in super::super) const BEGIN: u64 = 0x11;
    pub(in super::super) const ATTACH: u64 = 0x12;
    pub(in super::super) const FLOW: u64 = 0x13;
    pub(in super::super) const TRANSFER: u64 = 0x14;
    pub(in super::super) const DISPOSITION: u64 = 0x15;
    pub(in super::super) const DETACH: u64 = 0x16;
    pub(in super::super) const END: u64 = 0x17;
    pub(in super::super) const CLOSE: u64 = 0x18;
    pub(in super::super) const ERROR: u64 = 0x1d;
    pub(in super::super) const ACCEPTED: u64 = 0x24;
    pub(in super::super) const RELEASED: u64 = 0x26;
    pub(in super::super) const SOURCE: u64 = 0x28;
    pub(in super::super) const TARGET: u64 = 0x29;
    pub(in super::super) const SASL_MECHANISMS: u64 = 0x40;
    pub(in super::super) const SASL_INIT: u64 = 0x41;
    pub(in super::super) const SASL_OUTCOME: u64 = 0x44;
}

/// A list that is being written. Fields at its end may be left out.
#[derive(Default)]
pub(super) struct List {
    count: u32,
    content: BytesMut,
}

impl List {
    fn put(&mut self, constructor: u8, parts: &[&[u8]]) -> &mut Self {
        self.count += 1;
        self.content.put_u8(constructor);
        for part in parts {
            self.content.put_slice(part);
        }
        self
    }

    fn sized(&mut self, constructor: u8, bytes: &[u8]) -> &mut Self {
        self.put(constructor, &[&(bytes.len() as u32).to_be_bytes(), bytes])
    }

    pub(super) fn null(&mut self) -> &mut Self {
        self.put(0x40, &[])
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.put(if value { 0x41 } else { 0x42 }, &[])
    }

    pub(super) fn ubyte(&mut self, value: u8) -> &mut Self {
        self.put(0x50, &[&[value]])
    }

    pub(super) fn ushort(&mut self, value: u16) -> &mut Self {
        self.put(0x60, &[&value.to_be_bytes()])
    }

    pub(super) fn uint(&mut self, value: u32) -> &mut Self {
        self.put(0x70, &[&value.to_be_bytes()])
    }

    pub(super) fn string(&mut self, text: &str) -> &mut Self {
        self.sized(0xb1, text.as_bytes())
    }

    pub(super) fn symbol(&mut self, text: &str) -> &mut Self {
        self.sized(0xb3, text.as_bytes())
    }

    pub(super) fn binary(&mut self, bytes: &[u8]) -> &mut Self {
        self.sized(0xb0, bytes)
    }

    pub(super) fn described(&mut self, descriptor: u64, list: &Self) -> &mut Self {
        self.put(0x00, &[&list.encoded(descriptor)[1..]])
    }

    /// The list behind its descriptor.
    pub(super) fn encoded(&self, descriptor: u64) -> BytesMut {
        let mut out = BytesMut::with_capacity(self.content.len() + 12);
        // All descriptors of the protocol are below 256.
        out.put_slice(&[0x00, 0x53, descriptor as u8, 0xd0]);
        out.put_u32(self.content.len() as u32 + 4);
        out.put_u32(self.count);
        out.put_slice(&self.content);
        out
    }
}
