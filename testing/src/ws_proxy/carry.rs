//! An open connection: frames in both directions, and the orders for it.

use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::upgrade::Sides;
use super::{Fate, From, Order, Shared, What};

type Orders = broadcast::Receiver<(Option<usize>, Order)>;

pub(super) async fn carry(shared: &Shared, sides: Sides, connection: usize, mut orders: Orders) -> Result<()> {
    let Sides { mut client, mut edge } = sides;
    let mut jammed = shared.jammed.subscribe();
    loop {
        let jam = *jammed.borrow_and_update();
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Ok((meant, _)) if meant.is_some_and(|meant| meant != connection) => {}
                Ok((_, Order::Say(frame))) => client.send(Message::text(frame.to_string())).await?,
                Ok((_, Order::SayText(text))) => client.send(Message::text(text)).await?,
                Ok((_, Order::Close(code))) => {
                    shared.note(connection, What::Close(From::Edge, code));
                    return close(client, code).await;
                }
                Ok((_, Order::Cut)) | Err(RecvError::Closed | RecvError::Lagged(_)) => return Ok(()),
                Ok((_, Order::Freeze)) => {
                    while !matches!(orders.recv().await, Ok((None, Order::Cut)) | Err(RecvError::Closed)) {}
                    return Ok(());
                }
            },
            message = client.next() => {
                if pass(shared, connection, From::Client, message, &mut client, &mut edge).await? {
                    return finish(client, edge).await;
                }
            }
            message = edge.next(), if !jam => {
                if pass(shared, connection, From::Edge, message, &mut edge, &mut client).await? {
                    return finish(client, edge).await;
                }
            }
            changed = jammed.changed() => changed?,
        }
    }
}

/// Whether the connection is over.
async fn pass(
    shared: &Shared,
    connection: usize,
    from: From,
    message: Option<Result<Message, Error>>,
    sender: &mut WebSocketStream<TcpStream>,
    receiver: &mut WebSocketStream<TcpStream>,
) -> Result<bool> {
    match message {
        Some(Ok(Message::Text(text))) => {
            let frame = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.as_str().to_owned()));
            // Decided before the log shows it: who waits for a frame may then change what is decided.
            let fate = shared.fate(from, connection, &frame);
            shared.note(connection, What::Frame(from, frame));
            match fate {
                Fate::Pass => receiver.send(Message::Text(text)).await?,
                Fate::Lost => {}
                Fate::Replaced(other) => receiver.send(Message::text(other.to_string())).await?,
                Fate::Answered(answer) => sender.send(Message::text(answer.to_string())).await?,
            }
        }
        Some(Ok(Message::Binary(bytes))) => receiver.send(Message::Binary(bytes)).await?,
        Some(Ok(Message::Ping(_))) => {
            if from == From::Client {
                shared.note(connection, What::Ping);
            }
            // The answer is queued already.
            sender.flush().await?;
        }
        Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
        Some(Ok(Message::Close(frame))) => {
            let code = frame.as_ref().map_or(1005, |frame| frame.code.into());
            shared.note(connection, What::Close(from, code));
            let _ = receiver.close(frame).await;
            return Ok(true);
        }
        Some(Err(_)) | None => return Ok(true),
    }
    Ok(false)
}

/// Both sides end as they would without the proxy.
async fn finish(mut client: WebSocketStream<TcpStream>, mut edge: WebSocketStream<TcpStream>) -> Result<()> {
    let wait = async {
        tokio::join!(async { while let Some(Ok(_)) = client.next().await {} }, async {
            while let Some(Ok(_)) = edge.next().await {}
        })
    };
    let _ = tokio::time::timeout(std::time::Duration::from_millis(500), wait).await;
    Ok(())
}

async fn close(mut client: WebSocketStream<TcpStream>, code: u16) -> Result<()> {
    client.close(Some(CloseFrame { code: code.into(), reason: "by the suite".into() })).await?;
    let wait = async { while let Some(Ok(_)) = client.next().await {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), wait).await;
    Ok(())
}
