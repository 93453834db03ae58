//! A WebSocket client that speaks frames and may negotiate compression, for what no library would send or tell.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::broker::PATIENCE;
use crate::raw::upgrade;

/// What a browser offers.
pub const BROWSERS_OFFER: &str = "permessage-deflate; client_max_window_bits";
/// The last frame of a message: FIN.
pub const LAST: u8 = 0x80;
/// A compressed message: RSV1.
pub const COMPRESSED: u8 = 0x40;
/// A text message's op code.
pub const TEXT: u8 = 0x1;
/// Continues a message.
pub const CONTINUE: u8 = 0x0;
/// A close frame.
pub const CLOSE: u8 = 0x8;
/// A ping.
pub const PING: u8 = 0x9;
/// The answer to a ping.
pub const PONG: u8 = 0xa;
/// What ends each compressed message, and is not sent (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// A frame as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV1 to RSV3 and op code.
    pub first: u8,
    /// The payload, perhaps compressed.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether it is compressed.
    pub fn is_compressed(&self) -> bool {
        self.first & COMPRESSED > 0
    }

    /// The text, decompressed where needed.
    pub fn text(&self) -> Result<String> {
        let plain = if self.is_compressed() { inflate(&self.payload)? } else { self.payload.clone() };
        Ok(String::from_utf8(plain)?)
    }

    /// The code of a close frame.
    pub fn close_code(&self) -> Option<u16> {
        let code = self.payload.first_chunk().filter(|_| self.first == LAST | CLOSE)?;
        Some(u16::from_be_bytes(*code))
    }
}

/// A connection after its upgrade.
#[derive(Debug)]
pub struct Frames {
    stream: BufReader<TcpStream>,
    /// The answer's `Sec-WebSocket-Extensions`.
    pub extensions: Option<String>,
}

impl Frames {
    /// Connects to the path of a URL from a token call, under `wirepost.v1`, with this offer of extensions.
    pub async fn connect(edge: SocketAddr, path: &str, offer: Option<&str>) -> Result<Self> {
        let mut stream = BufReader::new(TcpStream::connect(edge).await?);
        stream.get_ref().set_nodelay(true)?;
        let offer = offer.map(|offer| format!("sec-websocket-extensions: {offer}\r\n")).unwrap_or_default();
        let request = upgrade(path, &format!("sec-websocket-protocol: wirepost.v1\r\n{offer}"));
        stream.get_mut().write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout_at(Instant::now() + PATIENCE, stream.read_u8()).await??);
        }
        let head = String::from_utf8(head)?.to_lowercase();
        ensure!(head.starts_with("http/1.1 101"), "not upgraded: {head}");
        let extensions = head.lines().find_map(|line| line.strip_prefix("sec-websocket-extensions: "));
        Ok(Self { stream, extensions: extensions.map(str::to_owned) })
    }

    /// Sends a frame with these first bits. Masked, with a mask of zeros.
    pub async fn send(&mut self, first: u8, payload: &[u8]) -> Result<()> {
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..126 => bytes.push(0x80 | len as u8),
            len @ 126..0x1_0000 => {
                bytes.push(0x80 | 0x7e);
                bytes.extend((len as u16).to_be_bytes());
            }
            len => {
                bytes.push(0x80 | 0x7f);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(payload);
        Ok(timeout_at(Instant::now() + PATIENCE, self.stream.get_mut().write_all(&bytes)).await??)
    }

    /// The next frame.
    pub async fn next(&mut self) -> Result<Frame> {
        timeout_at(Instant::now() + PATIENCE, self.read()).await.context("no frame in time")?
    }

    /// The next text frame of which `is` is true.
    pub async fn find(&mut self, is: impl Fn(&str) -> bool) -> Result<Frame> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = timeout_at(deadline, self.read()).await.context("no such frame in time")??;
            ensure!(frame.close_code().is_none(), "closed instead: {:?}", frame.close_code());
            if frame.first & 0xf == TEXT && is(&frame.text()?) {
                return Ok(frame);
            }
        }
    }

    /// The code of the close frame that comes.
    pub async fn close_code(&mut self) -> Result<u16> {
        loop {
            if let Some(code) = self.next().await?.close_code() {
                return Ok(code);
            }
        }
    }

    async fn read(&mut self) -> Result<Frame> {
        let first = self.stream.read_u8().await?;
        let len = match self.stream.read_u8().await? {
            126 => usize::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await? as usize,
            len => usize::from(len),
        };
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload).await?;
        Ok(Frame { first, payload })
    }
}

/// The payload of a compressed message.
pub fn deflate(plain: &[u8]) -> Result<Vec<u8>> {
    let mut compressed = Vec::with_capacity(plain.len() + 1024);
    Compress::new(Compression::best(), false).compress_vec(plain, &mut compressed, FlushCompress::Sync)?;
    compressed.strip_suffix(&TAIL).map(<[u8]>::to_vec).context("a flush ends with its mark")
}

/// What it was made of, up to 16 MiB.
pub fn inflate(payload: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(16 << 20);
    let input = [payload, &TAIL].concat();
    let mut decompress = Decompress::new(false);
    decompress.decompress_vec(&input, &mut plain, FlushDecompress::Sync)?;
    ensure!(decompress.total_in() == input.len() as u64, "rest after the message");
    Ok(plain)
}
