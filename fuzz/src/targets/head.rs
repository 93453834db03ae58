//! The header of a client's first request: what the edge reads itself, the HTTP library reads the same way, and what the library refuses is
//! never accepted.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, Response, Uri},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wirepost_edge::http::socket::direct::Head;

use crate::memory::{Bound, bounded};

pub(crate) fn run(input: &[u8]) {
    let head = bounded(Bound { peak: 40, sum: 80, base: 64 << 10 }, input, || Head::parse(input));
    let Head::Socket(request) = head else { return };
    let (method, uri, headers) = by_library(input).expect("the edge accepts what the library refuses");
    assert_eq!(method, Method::GET);
    if ["/socket", "/socket/"].contains(&uri.path()) {
        let offered = headers.get_all("sec-websocket-protocol").iter().filter_map(|line| line.to_str().ok());
        let offer = format!("wirepost.token.{}", request.token());
        assert!(offered.flat_map(|line| line.split(',')).any(|protocol| protocol.trim() == offer));
    } else {
        assert_eq!(uri.path(), format!("/socket/{}", request.token()));
    }
    assert_eq!(&headers, request.headers(), "two readers of one header");
    assert!(request.length() <= input.len() && input[..request.length()].ends_with(b"\n"));
    assert!(request.cursor().is_none() || uri.query().is_some());
    // Nothing of it is a body: what follows the header is the client's first frames.
    assert!(!headers.contains_key("content-length") && !headers.contains_key("transfer-encoding"));
}

/// The first request as hyper sees it.
fn by_library(input: &[u8]) -> Option<(Method, Uri, HeaderMap)> {
    let seen = Arc::new(Mutex::new(None));
    let service = service_fn(|request: Request<Incoming>| {
        let (parts, _) = request.into_parts();
        seen.lock().expect("no panic").get_or_insert((parts.method, parts.uri, parts.headers));
        async { Ok::<_, Infallible>(Response::new(Body::empty())) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(Peer(input.to_vec(), 0)), service);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    // The end of the input ends it, with or without an error.
    let _ = runtime.block_on(connection);
    seen.lock().expect("no panic").take()
}

/// A connection on which the input comes, and then the end.
struct Peer(Vec<u8>, usize);

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let rest = &self.0[self.1..];
        let bytes = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..bytes]);
        self.1 += bytes;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
