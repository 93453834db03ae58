//! HTTP/1.1 on one connection, bounded in time and in bytes.

use std::{error::Error, pin::pin, time::Duration};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// How much a caller may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time for a request's header, and between two requests of a connection.
    pub header_timeout: Duration,
    /// Largest header, in bytes. hyper counts what it has buffered, so a header that arrives in one piece may be larger.
    pub max_header: usize,
}

/// How a connection is ended from our side.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Between two requests: those in progress are answered.
    pub closing: CancellationToken,
    /// Anywhere.
    pub cut: CancellationToken,
}

/// Serves a connection until one side ends it or it becomes something else (a WebSocket).
pub async fn serve<IO, S, B>(io: IO, service: S, limits: Limits, ends: &Ends)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.max_header)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        // What has been read is a request in progress.
        biased;
        result = connection.as_mut() => result,
        () = ends.cut.cancelled() => return,
        () = ends.closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => result,
                () = ends.cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
