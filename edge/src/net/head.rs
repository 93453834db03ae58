//! Reads the header of a connection's first request, as bytes.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::http::socket::direct::Head;

/// The most that one read takes. It is on the stack: a connection that sends nothing has no buffer.
const PIECE: usize = 4 << 10;
/// Pieces after each of which the header is parsed, so that a malformed one is refused when it comes. In more pieces it
/// is parsed at empty lines only: a header of single bytes must not be parsed for each of them.
const EAGER_PIECES: usize = 16;
/// How long a connection may still be silent when the edge begins to close: its request may be on its way, and is told
/// to go elsewhere. Twice the longest usual round trip, which TLS needs.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// Reads until the header is complete, or has a form or a size that the HTTP library is to refuse: what it is, and all
/// bytes that were read. `None`: the connection ended before it began, or nothing came for a while after `closing`.
/// `holds` is told how many bytes of an unfinished header are in memory.
pub(super) async fn read(
    io: &mut (impl AsyncRead + Unpin),
    max: usize,
    closing: &CancellationToken,
    mut holds: impl FnMut(usize),
) -> Option<(Head, BytesMut)> {
    let mut read = BytesMut::new();
    let first = tokio::select! {
        biased;
        first = piece(io, &mut read) => first,
        () = last_call(closing) => return None,
    };
    // An end in the middle is for the HTTP library too.
    let mut more = first.ok()? > 0;
    if !more {
        return None;
    }
    let mut head = Head::parse(&read);
    let mut pieces = 1;
    while more && read.len() <= max && matches!(head, Head::Partial) {
        holds(read.capacity());
        let seen = read.len();
        more = piece(io, &mut read).await.ok()? > 0;
        pieces += 1;
        if pieces <= EAGER_PIECES || ends(&read[seen.saturating_sub(2)..]) {
            head = Head::parse(&read);
        }
    }
    Some((if read.len() > max { Head::Other } else { head }, read))
}

/// Ready when nothing that is still silent can be waited for.
pub(super) async fn last_call(closing: &CancellationToken) {
    closing.cancelled().await;
    sleep(LAST_REQUEST).await;
}

async fn piece(io: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut stack = [MaybeUninit::uninit(); PIECE];
        let mut buffer = ReadBuf::uninit(&mut stack);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
        read.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

/// Whether an empty line is in it, which ends a header.
fn ends(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const MAX: usize = 8 << 10;

    /// Pieces as they arrive, then the end.
    async fn of(pieces: &[&[u8]]) -> Option<(Head, Vec<u8>)> {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        let closing = CancellationToken::new();
        let mut reading = Box::pin(read(&mut server, MAX, &closing, |_| {}));
        for piece in pieces {
            client.write_all(piece).await.unwrap();
            if let Some(done) = reading.as_mut().now_or_never() {
                return done.map(|(head, read)| (head, read.to_vec()));
            }
        }
        drop(client);
        reading.await.map(|(head, read)| (head, read.to_vec()))
    }

    fn name(head: &Head) -> &'static str {
        match head {
            Head::Partial => "partial",
            Head::Other => "other",
            Head::Socket(_) => "socket",
        }
    }

    fn requests() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("GET /socket/abc HTTP/1.1\r\nhost: edge\r\nconnection: upgrade\r\n\r\n".to_owned()),
            Just("GET /socket/abc?cursor=a HTTP/1.1\nhost: edge\n\n".to_owned()),
            Just("GET /socket/abc HTTP/1.0\r\n\r\n".to_owned()),
            Just("\r\n\r\nPOST /a/websocket/messages HTTP/1.1\r\ncontent-length: 3\r\n\r\n".to_owned()),
            Just("GET /socket/abc HTTP/1.1\r\nno colon\r\n\r\n".to_owned()),
            Just(format!("GET /socket/abc HTTP/1.1\r\ncookie: {}\r\n\r\n", "c".repeat(MAX - 100))),
        ]
    }

    proptest! {
        #[test]
        fn a_header_is_the_same_in_any_pieces(
            request in requests(),
            mut cuts in prop::collection::vec(0..8192_usize, 0..20),
        ) {
            let bytes = request.as_bytes();
            for cut in &mut cuts {
                *cut %= bytes.len();
            }
            cuts.sort_unstable();
            cuts.dedup();
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut begin = 0;
            for cut in cuts.into_iter().chain([bytes.len()]).filter(|cut| *cut > 0) {
                pieces.push(&bytes[begin..cut]);
                begin = cut;
            }
            let judged = |pieces: &[&[u8]]| of(pieces).now_or_never().unwrap().unwrap();
            let (whole, cut) = (judged(&[bytes]), judged(&pieces));
            // A form that is refused may be noticed before the end.
            prop_assert_eq!(name(&whole.0), name(&cut.0));
            prop_assert!(bytes.starts_with(&cut.1));
            prop_assert!(name(&cut.0) == "other" || cut.1 == bytes);
        }
    }

    #[tokio::test]
    async fn what_comes_behind_the_header_is_kept() {
        let (head, read) = of(&[b"GET /socket/abc HTTP/1.1\r\n", b"\r\nframes"]).await.unwrap();
        assert_eq!((name(&head), &read[..]), ("socket", &b"GET /socket/abc HTTP/1.1\r\n\r\nframes"[..]));
    }

    #[tokio::test]
    async fn a_header_without_end_is_read_no_further_than_its_bound() {
        let piece = [b'c'; 1000];
        let mut pieces: Vec<&[u8]> = vec![b"GET /socket/abc HTTP/1.1\r\ncookie: "];
        pieces.extend(std::iter::repeat_n(&piece[..], 100));
        let (head, read) = of(&pieces).await.unwrap();
        assert!(name(&head) == "other" && read.len() > MAX && read.len() <= MAX + PIECE, "{}", read.len());
    }

    #[tokio::test]
    async fn an_end_in_the_middle_is_an_end() {
        assert!(of(&[]).await.is_none());
        assert_eq!(name(&of(&[b"GET /socket/abc"]).await.unwrap().0), "partial");
    }

    #[tokio::test]
    async fn a_later_piece_that_is_no_header_is_noticed_when_it_comes() {
        let (mut client, mut server) = tokio::io::duplex(1 << 10);
        let closing = CancellationToken::new();
        let mut reading = Box::pin(read(&mut server, MAX, &closing, |_| {}));
        client.write_all(b"GET /socket/abc HTTP/1.1\r\nhost: edge\r\n").await.unwrap();
        assert!(reading.as_mut().now_or_never().is_none());
        client.write_all(b"\0").await.unwrap();
        assert_eq!(name(&reading.now_or_never().unwrap().unwrap().0), "other");
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_of_the_edge_a_request_may_still_come() {
        let (mut client, mut server) = tokio::io::duplex(1 << 10);
        let closing = CancellationToken::new();
        closing.cancel();
        assert!(read(&mut server, MAX, &closing, |_| {}).await.is_none(), "not for ever");
        let mut reading = Box::pin(read(&mut server, MAX, &closing, |_| {}));
        assert!(reading.as_mut().now_or_never().is_none());
        client.write_all(b"GET /socket/abc HTTP/1.1\r\n").await.unwrap();
        tokio::time::advance(LAST_REQUEST * 2).await;
        assert!(reading.as_mut().now_or_never().is_none());
        client.write_all(b"\r\n").await.unwrap();
        assert_eq!(name(&reading.await.unwrap().0), "socket");
    }
}
