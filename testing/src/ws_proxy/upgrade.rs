//! The upgrade: its head passes, and what follows is taken as frames.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use wirepost_core::frames::TOKEN_PROTOCOL;

use super::{Shared, What, lock};

const HEAD_LIMIT: usize = 64 << 10;
const EDGE_BUFFER: u32 = 64 << 10;

pub(super) struct Sides {
    pub(super) client: WebSocketStream<TcpStream>,
    pub(super) edge: WebSocketStream<TcpStream>,
}

/// `None` if the edge refused, which the client was told.
pub(super) async fn pass(shared: &Shared, mut client: TcpStream, connection: usize) -> Result<Option<Sides>> {
    let (head, early) = read_head(&mut client).await?;
    shared.note(connection, asked(&head));
    let target = *lock(&shared.target);
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Small, so that an edge feels soon that nothing is read.
    socket.set_recv_buffer_size(EDGE_BUFFER)?;
    let mut edge = socket.connect(target).await?;
    edge.set_zero_linger()?;
    edge.set_nodelay(true)?;
    let origin = lock(&shared.origin).clone();
    edge.write_all(with_origin(&head, &origin).as_bytes()).await?;
    let (answer, first) = read_head(&mut edge).await?;
    client.write_all(answer.as_bytes()).await?;
    if !answer.starts_with("HTTP/1.1 101") {
        client.write_all(&first).await?;
        // A refusal of an edge is short; its connection may stay open.
        let mut rest = vec![0; HEAD_LIMIT];
        if let Some(length) = header(&answer, "content-length").and_then(|length| length.parse::<usize>().ok()) {
            let mut missing = length.saturating_sub(first.len());
            while missing > 0 {
                let read = edge.read(&mut rest).await?;
                if read == 0 {
                    break;
                }
                client.write_all(&rest[..read]).await?;
                missing = missing.saturating_sub(read);
            }
        }
        client.shutdown().await?;
        return Ok(None);
    }
    let config = Some(WebSocketConfig::default().max_message_size(None).max_frame_size(None));
    Ok(Some(Sides {
        client: WebSocketStream::from_partially_read(client, early, Role::Server, config).await,
        edge: WebSocketStream::from_partially_read(edge, first, Role::Client, config).await,
    }))
}

pub(super) async fn refuse(mut client: TcpStream, status: u16) -> Result<()> {
    read_head(&mut client).await?;
    let answer = format!("HTTP/1.1 {status} refused\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await?;
    // The client closes; a reset could overtake the answer.
    let _ = client.read(&mut [0; 1]).await;
    Ok(())
}

/// A head with its empty line, and what came behind it.
async fn read_head(from: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes).context("a head that is no text")?, rest));
        }
        if bytes.len() > HEAD_LIMIT || from.read_buf(&mut bytes).await? == 0 {
            bail!("a head without an end");
        }
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

fn asked(head: &str) -> What {
    let target = head.split_whitespace().nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let cursor = query.split('&').find_map(|pair| pair.strip_prefix("cursor=")).filter(|cursor| !cursor.is_empty());
    let offered: Option<Vec<&str>> =
        header(head, "sec-websocket-protocol").map(|list| list.split(',').map(str::trim).collect());
    let by_path = path.rsplit('/').next().unwrap_or_default();
    let by_protocol = offered.iter().flatten().find_map(|protocol| protocol.strip_prefix(TOKEN_PROTOCOL));
    let others = |offered: &Vec<&str>| {
        let others = offered.iter().filter(|protocol| !protocol.starts_with(TOKEN_PROTOCOL));
        others.copied().collect::<Vec<_>>().join(", ")
    };
    What::Asked {
        token: by_protocol.unwrap_or(by_path).to_owned(),
        by_path: by_protocol.is_none(),
        cursor: cursor.map(str::to_owned),
        protocol: offered.as_ref().map(others),
    }
}

/// With this `Origin`, and no other.
fn with_origin(head: &str, origin: &str) -> String {
    let is_origin = |line: &str| line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case("origin"));
    let mut lines: Vec<_> = head.split_inclusive("\r\n").filter(|line| !is_origin(line)).map(str::to_owned).collect();
    lines.insert(1.min(lines.len()), format!("origin: {origin}\r\n"));
    lines.concat()
}
