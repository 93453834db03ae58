//! A TCP connection without a library in between, for what no library would send.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::broker::PATIENCE;

/// Largest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// A connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Raw {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(to).await?, answer: Vec::new() })
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(timeout_at(Instant::now() + PATIENCE, self.stream.write_all(bytes.as_ref())).await??)
    }

    /// The head of an HTTP answer, in lower case.
    pub async fn head(&mut self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = String::from_utf8_lossy(&self.answer).to_lowercase();
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                return Ok(head.to_owned());
            }
            anyhow::ensure!(self.read(deadline).await?, "the connection ended before the answer: {text}");
        }
    }

    /// Reads until one of two sequences of bytes has come; whether it is the first one.
    pub async fn either(&mut self, one: &[u8], other: &[u8]) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        let has = |answer: &[u8], part: &[u8]| answer.windows(part.len()).any(|bytes| bytes == part);
        loop {
            if has(&self.answer, one) || has(&self.answer, other) {
                return Ok(has(&self.answer, one));
            }
            anyhow::ensure!(self.read(deadline).await?, "the connection ended before either came");
        }
    }

    /// Everything until the peer ends the connection, which it must within `limit`.
    pub async fn end(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        while self.read(deadline).await? {}
        Ok(String::from_utf8_lossy(&self.answer).into_owned())
    }

    async fn read(&mut self, deadline: Instant) -> Result<bool> {
        anyhow::ensure!(self.answer.len() < MAX_ANSWER, "an answer without end");
        let read = timeout_at(deadline, self.stream.read_buf(&mut self.answer)).await;
        // A reset is an end as well.
        Ok(read.context("nothing came in time")?.unwrap_or(0) > 0)
    }
}

/// The request that asks for a WebSocket, with further header lines that end in CRLF.
pub fn upgrade(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}
