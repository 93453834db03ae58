//! What a client sends as a WebSocket: the same in any pieces, bounded, and the messages that another implementation reads.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use axum::http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{
    Error, Message, WebSocket,
    protocol::{Role, WebSocketConfig},
};
use wirepost_edge::{
    compression::{self, Compression},
    socket::wire::{self, Event, Wire},
};

use crate::{
    input::Input,
    memory::{Bound, bounded},
};

/// Of a message.
const LIMIT: usize = 2048;

pub(crate) fn run(input: &[u8]) {
    let mut rest = Input(input);
    let (options, piece) = (rest.byte(), usize::from(rest.byte()) + 1);
    let compression = if options & 1 == 0 { Compression::default() } else { negotiated() };
    let bytes = rest.0;
    let _warm = compression::inflate(b"warm", 64);
    let bound = Bound { peak: 30, sum: 300, base: (64 << 10) + 4 * LIMIT };
    let (whole, ended) = bounded(bound, input, || messages(bytes, usize::MAX, compression));
    let (pieces, ended_too) = messages(bytes, piece, compression);
    assert_eq!((&whole, ended), (&pieces, ended_too), "in any pieces");
    if !compression.is_on() {
        let (theirs, theirs_ended) = by_another(bytes);
        let common = whole.len().min(theirs.len());
        assert_eq!(whole[..common], theirs[..common], "two readers of one connection");
        assert!(whole.len() == theirs.len() || ended || theirs_ended, "{whole:?} {theirs:?}");
    }
}

fn negotiated() -> Compression {
    let mut headers = HeaderMap::new();
    headers.insert("sec-websocket-extensions", HeaderValue::from_static("permessage-deflate"));
    compression::accept(&headers).expect("the usual offer").0
}

/// Text and binary messages, and whether the peer broke a rule or closed.
fn messages(bytes: &[u8], piece: usize, compression: Compression) -> (Vec<Vec<u8>>, bool) {
    let mut wire = Wire::new(Peer { bytes: bytes.to_vec(), at: 0, piece }, LIMIT, compression);
    let mut cx = Context::from_waker(Waker::noop());
    let mut messages = Vec::new();
    loop {
        let read = match wire.poll_read(&mut cx) {
            Poll::Ready(read) => read,
            Poll::Pending => panic!("the peer always has something, or its end"),
        };
        match read {
            wire::Read::Event(Event::Text(text)) => messages.push(text.as_bytes().to_vec()),
            wire::Read::Event(Event::Binary(bytes)) => messages.push(bytes.to_vec()),
            wire::Read::Event(Event::Large(_)) => wire.admit(),
            wire::Read::Event(Event::Close(..)) | wire::Read::ProtocolError(_) => return (messages, true),
            wire::Read::Event(_) | wire::Read::Progress(_) => {}
            wire::Read::Gone => return (messages, false),
        }
        assert!(messages.last().is_none_or(|last| last.len() <= LIMIT));
    }
}

/// The same by tungstenite.
fn by_another(bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let config = WebSocketConfig::default().max_message_size(Some(LIMIT)).max_frame_size(Some(LIMIT));
    let peer = Peer { bytes: bytes.to_vec(), at: 0, piece: usize::MAX };
    let mut socket = WebSocket::from_raw_socket(peer, Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => messages.push(text.as_bytes().to_vec()),
            Ok(Message::Binary(bytes)) => messages.push(bytes.to_vec()),
            Ok(Message::Close(_)) => return (messages, true),
            Ok(_) => {}
            Err(Error::Io(_)) => return (messages, false),
            Err(Error::Protocol(error)) => {
                use tokio_tungstenite::tungstenite::error::ProtocolError;
                // The end of the input, in the middle of anything.
                return (messages, error != ProtocolError::ResetWithoutClosingHandshake);
            }
            Err(_) => return (messages, true),
        }
    }
}

/// A connection on which the input comes in pieces, and then the end.
struct Peer {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
}

impl Peer {
    fn next(&mut self, most: usize) -> &[u8] {
        let begin = self.at;
        self.at += (self.bytes.len() - begin).min(most).min(self.piece);
        &self.bytes[begin..self.at]
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = buffer.remaining();
        buffer.put_slice(self.next(most));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.next(buffer.len());
        buffer[..taken.len()].copy_from_slice(taken);
        Ok(taken.len())
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
