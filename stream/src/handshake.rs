//! Opening a connection: TCP, TLS, and the protocol's handshake, step by step on the bare socket.

use std::fmt;

use bytes::{BufMut, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use wirepost_runtime::network::Stream;

use crate::{
    codec::{Cut, Fields, Frame, FrameCutter, Malformed, ResponseCode, key, put_frame, put_string, put_string_map},
    config::Config,
    error::Error,
};

/// Host and port of a stream listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A plain or TLS socket.
pub(crate) type Socket = Box<dyn Stream>;

/// The results of the handshake.
pub(crate) struct Handshake {
    pub(crate) socket: Socket,
    /// Bytes read but not consumed.
    pub(crate) buffer: BytesMut,
    /// Seconds, at least 1.
    pub(crate) heartbeat: u32,
    /// The broker's version; empty if unknown.
    pub(crate) version: String,
    /// The address that the node advertises.
    pub(crate) advertised: Option<Address>,
}

/// Frames of the handshake are small; a larger one means that this is no stream listener.
const MAX_FRAME_BYTES: usize = 1 << 20;

impl Handshake {
    /// Has no timeout: the caller sets one.
    pub(crate) async fn run(config: &Config, address: &Address) -> Result<Self, Error> {
        let socket = connect(config, address).await?;
        let mut exchange = Exchange {
            address,
            socket,
            buffer: BytesMut::with_capacity(4096),
            cutter: FrameCutter::new(MAX_FRAME_BYTES),
            correlation: 0,
        };
        let properties = [
            ("product", "wirepost-stream"),
            ("version", env!("CARGO_PKG_VERSION")),
            ("platform", "Rust"),
            ("connection_name", config.connection_name.as_str()),
        ];
        let mut answer =
            exchange.call(key::PEER_PROPERTIES, "peer properties", |b| put_string_map(b, &properties)).await?;
        let version = value_of(&answer.string_map("peer properties")?, "version").unwrap_or_default();

        exchange.call(key::SASL_HANDSHAKE, "sasl handshake", |_| ()).await?;
        let credentials = (config.credentials)();
        let plain = format!("\0{}\0{}", credentials.username, credentials.password);
        let request = |b: &mut BytesMut| {
            put_string(b, "PLAIN");
            b.put_u32(plain.len() as u32);
            b.put_slice(plain.as_bytes());
        };
        exchange.call(key::SASL_AUTHENTICATE, "authentication", request).await?;

        // After the authentication the broker sends Tune on its own.
        let mut tune = exchange.receive(key::TUNE).await?;
        let frame_max = tune.u32("tune")?;
        let theirs = tune.u32("tune")?;
        let ours = config.heartbeat_seconds();
        // The client decides, so heartbeats are on even if the broker has none configured: we need them to detect a
        // dead connection.
        let heartbeat = if theirs == 0 { ours } else { ours.min(theirs) };
        let request = |b: &mut BytesMut| {
            b.put_u32(frame_max);
            b.put_u32(heartbeat);
        };
        exchange.send(key::TUNE, request).await?;

        let mut answer = exchange.call(key::OPEN, "open virtual host", |b| put_string(b, &config.vhost)).await?;
        let advertised = advertised(&answer.string_map("open").unwrap_or_default());

        // A broker that knows Deliver version 2 sends it if we name it.
        let commands = |b: &mut BytesMut| {
            b.put_u32(1);
            b.put_u16(key::DELIVER);
            b.put_u16(1);
            b.put_u16(2);
        };
        exchange.call(key::EXCHANGE_COMMAND_VERSIONS, "exchange command versions", commands).await?;
        Ok(Self { socket: exchange.socket, buffer: exchange.buffer, heartbeat, version, advertised })
    }
}

async fn connect(config: &Config, address: &Address) -> Result<Socket, Error> {
    let fail = |reason: String| Error::Connect { address: address.to_string(), reason };
    let socket = config.network.connect(&address.host, address.port).await.map_err(|e| fail(e.to_string()))?;
    let Some(tls) = &config.tls else {
        return Ok(socket);
    };
    let tls = tls().map_err(|reason| fail(format!("tls: {reason}")))?;
    let name = ServerName::try_from(address.host.clone()).map_err(|e| fail(format!("host name for tls: {e}")))?;
    let socket = TlsConnector::from(tls).connect(name, socket).await;
    Ok(Box::new(socket.map_err(|e| fail(format!("tls: {e}")))?))
}

fn value_of(map: &[(String, String)], name: &str) -> Option<String> {
    map.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}

fn advertised(properties: &[(String, String)]) -> Option<Address> {
    let host = value_of(properties, "advertised_host")?;
    let port = value_of(properties, "advertised_port")?.parse().ok()?;
    Some(Address { host, port })
}

/// Requests and answers on a socket that carries nothing else yet.
struct Exchange<'a> {
    address: &'a Address,
    socket: Socket,
    buffer: BytesMut,
    cutter: FrameCutter,
    correlation: u32,
}

impl Exchange<'_> {
    fn fail(&self, reason: impl fmt::Display) -> Error {
        Error::Connect { address: self.address.to_string(), reason: format!("handshake: {reason}") }
    }

    async fn call(&mut self, key: u16, what: &'static str, body: impl FnOnce(&mut BytesMut)) -> Result<Fields, Error> {
        self.correlation += 1;
        let correlation = self.correlation;
        let request = |b: &mut BytesMut| {
            b.put_u32(correlation);
            body(b);
        };
        self.send(key, request).await?;
        let mut answer = self.receive(key | key::RESPONSE).await?;
        if answer.u32(what)? != correlation {
            return Err(Malformed("handshake: answer to another request").into());
        }
        match ResponseCode(answer.u16(what)?) {
            ResponseCode::OK => Ok(answer),
            code => Err(Error::Refused { what, code }),
        }
    }

    async fn send(&mut self, key: u16, body: impl FnOnce(&mut BytesMut)) -> Result<(), Error> {
        let mut out = BytesMut::new();
        put_frame(&mut out, key, body);
        self.socket.write_all(&out).await.map_err(|e| self.fail(e))?;
        self.socket.flush().await.map_err(|e| self.fail(e))
    }

    /// The next frame with this key; skips heartbeats.
    async fn receive(&mut self, wanted: u16) -> Result<Fields, Error> {
        loop {
            let frame = self.frame().await?;
            match frame.key {
                key if key == wanted => return Ok(Fields(frame.payload)),
                key::HEARTBEAT => {}
                key::CLOSE => {
                    let mut fields = Fields(frame.payload);
                    fields.u32("close")?;
                    let code = fields.u16("close")?;
                    return Err(self.fail(format!("closed by the broker: {} (code {code})", fields.string("close")?)));
                }
                _ => return Err(Malformed("handshake: unexpected frame").into()),
            }
        }
    }

    async fn frame(&mut self) -> Result<Frame, Error> {
        loop {
            match self.cutter.next(&mut self.buffer)? {
                Cut::Frame(frame) => return Ok(frame),
                Cut::Oversized(_) => return Err(Malformed("handshake: this is no stream listener").into()),
                Cut::Incomplete(_) => {}
            }
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(self.fail("closed by the broker without a reason; is this a stream listener?")),
                Ok(_) => {}
                Err(error) => return Err(self.fail(error)),
            }
        }
    }
}
