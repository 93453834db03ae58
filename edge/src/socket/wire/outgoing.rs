//! Frames that are being written to one socket. Each has its own header; the payload is not copied.

use std::{collections::VecDeque, io::IoSlice};

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use crate::push::mailbox::outbound::Item;

/// Longest header of a frame from a server: two bytes and a length of eight.
const HEADER: usize = 10;
/// Frames of one write at most, each with its header and its payload.
const FRAMES: usize = 32;
/// Frames are taken up to this many bytes, or one that is larger: a frame that was taken can't be dropped.
const BYTES: usize = 16 << 10;

/// One frame.
#[derive(Debug)]
pub struct Frame {
    header: [u8; HEADER],
    header_len: u8,
    payload: Item,
}

impl Frame {
    /// A frame of any kind.
    pub fn new(code: OpCode, payload: Bytes) -> Self {
        Item::Frame(code, payload).into()
    }

    /// Bytes as they are.
    fn raw(bytes: Bytes) -> Self {
        let payload = Item::Frame(OpCode::Data(Data::Binary), bytes);
        Self { header: [0; HEADER], header_len: 0, payload }
    }

    fn is_raw(&self) -> bool {
        self.header_len == 0
    }

    fn len(&self) -> usize {
        usize::from(self.header_len) + self.payload.payload().len()
    }
}

impl From<Item> for Frame {
    fn from(payload: Item) -> Self {
        let mut header = [0; HEADER];
        let mut left = &mut header[..];
        let rsv1 = matches!(payload, Item::Compressed(_));
        let head = FrameHeader { opcode: payload.code(), rsv1, ..FrameHeader::default() };
        #[expect(clippy::expect_used)]
        head.format(payload.payload().len() as u64, &mut left).expect("an unmasked header has at most ten bytes");
        let header_len = (HEADER - left.len()) as u8;
        Self { header, header_len, payload }
    }
}

/// Frames that are being written.
#[derive(Debug, Default)]
pub struct Outgoing {
    // Allocates nothing until its first frame.
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Bytes of the first frame that are written.
    written: usize,
    pong: Option<Bytes>,
}

impl Outgoing {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.pong.is_none()
    }

    /// Unwritten bytes, and the written part of the first frame.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether another frame may be taken.
    pub fn has_room(&self) -> bool {
        self.frames.len() < FRAMES && self.bytes < BYTES
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: impl Into<Frame>) {
        let frame = frame.into();
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Sets the answer to the newest ping; an older one that is not written yet is replaced.
    pub fn set_pong(&mut self, payload: Bytes) {
        self.pong = Some(payload);
    }

    /// Begins with these bytes, which are no frame: the answer to the upgrade.
    pub fn begin_with(&mut self, bytes: Bytes) {
        self.push(Frame::raw(bytes));
    }

    /// Drops the frames that have not begun, and ends with this one.
    pub fn end_with(&mut self, last: Frame) {
        let begun = self.written > 0 || self.frames.front().is_some_and(Frame::is_raw);
        self.frames.truncate(usize::from(begun));
        self.bytes = self.frames.iter().map(Frame::len).sum();
        self.pong = None;
        self.push(last);
    }

    /// Passes the slices for one write.
    pub fn with_slices<T>(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        // While there is no room, a newer ping replaces it: a peer that does not read accumulates no answers.
        if self.has_room()
            && let Some(payload) = self.pong.take()
        {
            self.push(Item::Frame(OpCode::Control(Control::Pong), payload));
        }
        let mut slices = [IoSlice::new(&[]); FRAMES * 2];
        let mut count = 0;
        let mut skip = self.written;
        for frame in self.frames.iter().take(FRAMES) {
            for part in [&frame.header[..usize::from(frame.header_len)], frame.payload.payload()] {
                let done = skip.min(part.len());
                skip -= done;
                if done < part.len() {
                    slices[count] = IoSlice::new(&part[done..]);
                    count += 1;
                }
            }
        }
        write(&slices[..count])
    }

    /// This many bytes were written.
    pub fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        while let Some(first) = self.frames.front().map(Frame::len)
            && self.written >= first
        {
            self.written -= first;
            self.bytes -= first;
            self.frames.pop_front();
        }
        if self.frames.is_empty() && self.frames.capacity() > 4 {
            // Free the memory of a burst.
            self.frames = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        broker::Position,
        metrics::Metrics,
        push::{
            audience::{Audience, Recipients},
            backlog::{Backlog, BacklogShare},
            entry::{Entry, Push},
        },
    };

    fn text(text: &str) -> Item {
        Item::Control(text.to_owned().into())
    }

    /// Takes at most `most` bytes of each write.
    fn written(outgoing: &mut Outgoing, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !outgoing.is_empty() {
            let taken: Vec<u8> = outgoing
                .with_slices(|slices| slices.iter().flat_map(|slice| slice.iter().copied()).take(most).collect());
            outgoing.advance(taken.len());
            all.extend(taken);
        }
        all
    }

    #[test]
    fn frames_are_written_whole_and_in_order_however_small_the_writes() {
        let long = "x".repeat(70_000);
        let mut frames = Vec::new();
        for most in [1, 3, 1000, usize::MAX] {
            let mut outgoing = Outgoing::default();
            for payload in ["", "a", &"b".repeat(200), &long] {
                outgoing.push(text(payload));
            }
            frames.push(written(&mut outgoing, most));
            assert_eq!((outgoing.bytes, outgoing.written), (0, 0));
        }
        assert!(frames.iter().all(|each| *each == frames[0]));
        assert!(frames[0].starts_with(b"\x81\0\x81\x01a\x81\x7e\0\xc8b"));
        assert_eq!(frames[0].len(), 2 + 3 + 204 + 70_010);
    }

    #[test]
    fn a_compressed_push_is_marked_in_its_header() {
        let backlog = Backlog::new(1 << 20, &Metrics::default());
        let frame = "x".repeat(1000);
        let mut push = Push {
            audience: Audience { recipients: Recipients::Everyone, client_types: vec!["app".into()] },
            share: BacklogShare::new(frame.len(), &backlog),
            frame: frame.into(),
            compressed: None,
            expires_at: None,
            judge: None,
            receipt: None,
        };
        assert!(push.compress());
        let compressed = push.compressed.clone().unwrap();
        let entry = Arc::new(Entry { position: Position { offset: 1, fingerprint: 1 }, push: Some(push) });
        let mut outgoing = Outgoing::default();
        outgoing.push(Item::Compressed(Arc::clone(&entry)));
        outgoing.push(Item::Push(entry));
        let both = 2 + compressed.len() + 4 + 1000;
        assert_eq!(outgoing.bytes(), both);
        let written = written(&mut outgoing, 100);
        assert_eq!(written.len(), both);
        assert_eq!(written[..2], [0xc1, compressed.len() as u8]);
        assert_eq!(written[2..2 + compressed.len()], *compressed);
        assert_eq!(written[2 + compressed.len()], 0x81);
    }

    #[test]
    fn a_peer_that_pings_without_reading_accumulates_little() {
        let mut outgoing = Outgoing::default();
        for n in 0..1000_u16 {
            outgoing.set_pong(Bytes::copy_from_slice(&n.to_be_bytes()));
            outgoing.with_slices(|_| ());
        }
        assert!(outgoing.frames.len() <= FRAMES);
        assert!(written(&mut outgoing, usize::MAX).ends_with(&999_u16.to_be_bytes()), "the newest is answered");
    }

    #[test]
    fn a_close_frame_follows_the_frame_that_has_begun() {
        let mut outgoing = Outgoing::default();
        outgoing.push(text("begun"));
        outgoing.push(text("waits"));
        outgoing.advance(3);
        outgoing.end_with(Frame::new(OpCode::Control(Control::Close), Bytes::new()));
        assert_eq!(outgoing.bytes(), 7 + 2);
        assert_eq!(written(&mut outgoing, usize::MAX), b"egun\x88\0");
    }

    #[test]
    fn the_answer_to_the_upgrade_precedes_every_frame_also_the_last_one() {
        let answered = || {
            let mut outgoing = Outgoing::default();
            outgoing.begin_with("HTTP/1.1 101\r\n\r\n".into());
            outgoing.push(text("a"));
            outgoing
        };
        assert_eq!(written(&mut answered(), 5), b"HTTP/1.1 101\r\n\r\n\x81\x01a");
        let mut closed = answered();
        closed.end_with(Frame::new(OpCode::Control(Control::Close), Bytes::new()));
        assert_eq!(written(&mut closed, usize::MAX), b"HTTP/1.1 101\r\n\r\n\x88\0");
    }
}
