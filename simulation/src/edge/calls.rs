//! HTTP calls, one for each connection: read and written here, answered by the edge's router.

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use crate::network::End;

const LARGEST: usize = 1 << 20;

/// Answers the call that begins with `read`, and closes.
pub(super) async fn answer(router: Router, mut socket: End, mut read: BytesMut) -> Result<()> {
    let head = loop {
        if let Some(end) = read.windows(4).position(|part| part == b"\r\n\r\n") {
            break read.split_to(end + 4);
        }
        more(&mut socket, &mut read).await?;
    };
    let head = std::str::from_utf8(&head)?;
    let (first, fields) = head.split_once("\r\n").context("no request line")?;
    let mut first = first.split(' ');
    let (method, target) = (first.next().context("no method")?, first.next().context("no target")?);
    let mut request = Request::builder().method(method).uri(target);
    let mut length = 0;
    for (name, value) in fields.lines().filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
        if name == "content-length" {
            length = value.parse()?;
        }
    }
    while read.len() < length {
        more(&mut socket, &mut read).await?;
    }
    let answer = router.oneshot(request.body(Body::from(read.split_to(length).freeze()))?).await?;
    let status = answer.status();
    let body = to_bytes(answer.into_body(), LARGEST).await?;
    socket.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes()).await?;
    socket.write_all(&body).await?;
    Ok(())
}

async fn more(socket: &mut End, read: &mut BytesMut) -> Result<()> {
    if socket.read_buf(read).await? == 0 {
        bail!("the call broke off");
    }
    Ok(())
}
