//! A broker made of a script: for what a real one does not do on demand.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::raw::{data_message, entry};

pub(crate) struct FakeBroker {
    listener: TcpListener,
    pub(crate) address: (String, u16),
    /// What it says about itself.
    pub(crate) version: &'static str,
    /// What it tells clients to connect to.
    pub(crate) advertised: Option<(String, u16)>,
}

/// A connection after its handshake.
pub(crate) struct Peer {
    socket: TcpStream,
}

/// A request or another frame of the client: key and what follows the version.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) key: u16,
    pub(crate) body: Vec<u8>,
}

/// What a Subscribe request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subscribe {
    pub(crate) id: u8,
    pub(crate) stream: String,
    /// 1 first, 2 last, 4 an offset.
    pub(crate) kind: u16,
    pub(crate) offset: Option<u64>,
}

pub(crate) const OK: u16 = 1;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn map(pairs: &[(&str, String)]) -> Vec<u8> {
    let mut out = (pairs.len() as u32).to_be_bytes().to_vec();
    for (name, value) in pairs {
        out.extend(string(name));
        out.extend(string(value));
    }
    out
}

fn text(bytes: &[u8], at: usize) -> (String, usize) {
    let end = at + 2 + usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    (String::from_utf8_lossy(&bytes[at + 2..end]).into_owned(), end)
}

impl FakeBroker {
    pub(crate) async fn bind(version: &'static str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = ("127.0.0.1".to_owned(), listener.local_addr()?.port());
        Ok(Self { listener, address, version, advertised: None })
    }

    /// The next connection, before the handshake.
    pub(crate) async fn accept_raw(&self) -> Result<TcpStream> {
        let (socket, _) = self.listener.accept().await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    /// The next connection, after the handshake.
    pub(crate) async fn accept(&self) -> Result<Peer> {
        let mut peer = Peer { socket: self.accept_raw().await? };
        let mut tuned = false;
        loop {
            let request = peer.request().await?;
            match request.key {
                0x11 => peer.answer(&request, OK, &map(&[("version", self.version.to_owned())])).await?,
                0x12 => peer.answer(&request, OK, &[&[0, 0, 0, 1][..], &string("PLAIN")].concat()).await?,
                0x13 => {
                    peer.answer(&request, OK, &[]).await?;
                    peer.send(0x14, 1, &[0, 0x10, 0, 0, 0, 0, 0, 1]).await?;
                }
                0x14 => tuned = true,
                0x15 => {
                    let address = self.advertised.as_ref().unwrap_or(&self.address);
                    let facts = [("advertised_host", address.0.clone()), ("advertised_port", address.1.to_string())];
                    peer.answer(&request, OK, &map(&facts)).await?;
                }
                0x1b => {
                    peer.answer(&request, OK, &[0, 0, 0, 0]).await?;
                    anyhow::ensure!(tuned, "the client did not answer Tune");
                    return Ok(peer);
                }
                other => bail!("unexpected {other:#x} in the handshake"),
            }
        }
    }
}

impl Peer {
    /// The next frame but heartbeats. Cancel safe only between frames.
    pub(crate) async fn request(&mut self) -> Result<Request> {
        loop {
            let mut frame = vec![0; self.socket.read_u32().await? as usize];
            self.socket.read_exact(&mut frame).await?;
            let key = u16::from_be_bytes([frame[0], frame[1]]);
            if key != 0x17 {
                return Ok(Request { key, body: frame.split_off(4) });
            }
        }
    }

    /// The next frame with this key; others are passed over.
    pub(crate) async fn expect(&mut self, key: u16) -> Result<Request> {
        loop {
            let request = self.request().await.with_context(|| format!("waiting for {key:#x}"))?;
            if request.key == key {
                return Ok(request);
            }
        }
    }

    pub(crate) async fn send(&mut self, key: u16, version: u16, body: &[u8]) -> Result<()> {
        let frame = [&key.to_be_bytes(), &version.to_be_bytes(), body].concat();
        Ok(self.socket.write_all(&entry(&frame)).await?)
    }

    /// The answer to a request that begins with a correlation id.
    pub(crate) async fn answer(&mut self, request: &Request, code: u16, rest: &[u8]) -> Result<()> {
        let body = [&request.body[..4], &code.to_be_bytes(), rest].concat();
        self.send(0x8000 | request.key, 1, &body).await
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.write_all(bytes).await?)
    }

    /// Answers Subscribe requests with OK, StreamStats from `stats` (stream -> first, committed), Unsubscribe with OK,
    /// until a Subscribe comes; returns it.
    pub(crate) async fn subscribed(&mut self, stats: &HashMap<&str, (i64, i64)>) -> Result<Subscribe> {
        self.subscribed_as(stats, &[]).await
    }

    /// The same for a stream with these members, its leader first; without any it is this node's alone.
    pub(crate) async fn subscribed_as(
        &mut self,
        stats: &HashMap<&str, (i64, i64)>,
        members: &[&(String, u16)],
    ) -> Result<Subscribe> {
        loop {
            let request = self.request().await?;
            match request.key {
                0x1c => {
                    let (stream, _) = text(&request.body, 4);
                    let (first, end) = stats.get(stream.as_str()).copied().unwrap_or((-1, -1));
                    self.answer_stats(&request, first, end).await?;
                }
                0x07 => {
                    self.answer(&request, OK, &[]).await?;
                    let (stream, at) = text(&request.body, 5);
                    let kind = u16::from_be_bytes([request.body[at], request.body[at + 1]]);
                    let offset = (kind == 4)
                        .then(|| request.body[at + 2..at + 10].try_into().map(u64::from_be_bytes))
                        .transpose()?;
                    return Ok(Subscribe { id: request.body[4], stream, kind, offset });
                }
                0x0c => self.answer(&request, OK, &[]).await?,
                0x0f if members.is_empty() => {
                    let here = ("127.0.0.1".to_owned(), self.socket.local_addr()?.port());
                    self.answer_members(&request, &[&here]).await?;
                }
                0x0f => self.answer_members(&request, members).await?,
                0x09 => {}
                other => bail!("unexpected {other:#x}"),
            }
        }
    }

    /// Answers a Metadata request: the members of a stream, its leader first.
    pub(crate) async fn answer_members(&mut self, request: &Request, members: &[&(String, u16)]) -> Result<()> {
        let (stream, _) = text(&request.body, 8);
        let mut answer = request.body[..4].to_vec();
        answer.extend((members.len() as u32).to_be_bytes());
        for (reference, (host, port)) in (0u16..).zip(members.iter().copied()) {
            answer.extend(reference.to_be_bytes());
            answer.extend(string(host));
            answer.extend(u32::from(*port).to_be_bytes());
        }
        answer.extend(1u32.to_be_bytes());
        answer.extend(string(&stream));
        answer.extend(OK.to_be_bytes());
        answer.extend(0u16.to_be_bytes());
        answer.extend((members.len() as u32 - 1).to_be_bytes());
        for reference in 1..members.len() as u16 {
            answer.extend(reference.to_be_bytes());
        }
        self.send(0x800f, 1, &answer).await
    }

    pub(crate) async fn answer_stats(&mut self, request: &Request, first: i64, end: i64) -> Result<()> {
        let mut body = 3u32.to_be_bytes().to_vec();
        for (name, value) in [("first_chunk_id", first), ("committed_chunk_id", end), ("committed_offset", end)] {
            body.extend(string(name));
            body.extend(value.to_be_bytes());
        }
        self.answer(request, OK, &body).await
    }

    /// Delivers one chunk of messages with these bodies; Deliver version 1.
    pub(crate) async fn deliver(&mut self, id: u8, first_offset: u64, bodies: &[&str]) -> Result<()> {
        let messages: Vec<_> = bodies.iter().map(|body| data_message(body.as_bytes())).collect();
        self.deliver_raw(id, first_offset, &messages).await
    }

    /// The same with messages as they are.
    pub(crate) async fn deliver_raw(&mut self, id: u8, first_offset: u64, messages: &[Vec<u8>]) -> Result<()> {
        let data: Vec<u8> = messages.iter().flat_map(|message| entry(message)).collect();
        self.deliver_data(id, first_offset, (messages.len() as u16, messages.len() as u32), data).await
    }

    /// Delivers one chunk with a compressed sub-batch of so many messages and bytes.
    pub(crate) async fn deliver_compressed(&mut self, id: u8, first: u64, messages: u16, bytes: u32) -> Result<()> {
        let mut data = vec![0x90];
        data.extend(messages.to_be_bytes());
        data.extend([bytes.to_be_bytes(), bytes.to_be_bytes()].concat());
        data.extend(vec![0; bytes as usize]);
        self.deliver_data(id, first, (1, messages.into()), data).await
    }

    async fn deliver_data(&mut self, id: u8, first: u64, (entries, records): (u16, u32), data: Vec<u8>) -> Result<()> {
        let mut chunk = vec![id, 0x50, 0];
        chunk.extend(entries.to_be_bytes());
        chunk.extend(records.to_be_bytes());
        chunk.extend(1_700_000_000_000i64.to_be_bytes());
        chunk.extend(1u64.to_be_bytes());
        chunk.extend(first.to_be_bytes());
        chunk.extend([0; 4]);
        chunk.extend((data.len() as u32).to_be_bytes());
        chunk.extend([0; 8]);
        chunk.extend(data);
        self.send(0x08, 1, &chunk).await
    }
}
