//! How a peer is reached by host and port: over TCP, or over what a simulation has in its place.

use std::{fmt, io};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// An open connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// Opens connections.
pub trait Network: fmt::Debug + Send + Sync {
    /// Connects; the caller limits the time. Cancel safe.
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Box<dyn Stream>>>;
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Network for Tcp {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let socket = TcpStream::connect((host, port)).await?;
            // Otherwise each small frame waits for the TCP acknowledgement of the previous one: 40 ms and more per call.
            socket.set_nodelay(true)?;
            Ok(Box::new(socket) as Box<dyn Stream>)
        })
    }
}
