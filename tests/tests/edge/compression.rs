//! `permessage-deflate` (RFC 7692), each message compressed on its own.

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_testing::edge::Edge;
use wirepost_testing::frames::{BROWSERS_OFFER, COMPRESSED, CONTINUE, Frames, LAST, PING, PONG, TEXT, deflate};
use wirepost_testing::service::Service;
use wirepost_testing::setup::{PAYMENTS, Setup};

const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// Connects and waits until it is live.
async fn connect(edge: &Edge, unique_id: &str, offer: Option<&str>) -> Result<Frames> {
    let url = edge.token(&edge.setup.business(), unique_id, "app", &[]).await?;
    let path = format!("/socket/{}", url.rsplit('/').next().unwrap_or_default());
    let mut frames = Frames::connect(edge.public, &path, offer).await?;
    frames.find(|text| text.contains("\"cursor\"")).await?;
    Ok(frames)
}

/// A push to alice with a content that compresses well.
fn push(id: &str) -> Value {
    let orders: Vec<_> = (0..50).map(|n| json!({"orderId": format!("o-{n}"), "currency": "EUR"})).collect();
    json!({"id": id, "messageType": "payment.completed", "toUniqueId": "alice", "content": orders})
}

#[tokio::test]
async fn clients_with_and_without_compression_get_the_same_push_compressed_once() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("compression", "other,payments").start().await?;
    let service = Service::connect(&setup).await?;
    let mut browser = connect(&edge, "alice", Some(BROWSERS_OFFER)).await?;
    let mut second = connect(&edge, "alice", Some("permessage-deflate; server_max_window_bits=15")).await?;
    let mut small = connect(&edge, "alice", Some("permessage-deflate; server_max_window_bits=8")).await?;
    let mut plain = connect(&edge, "alice", None).await?;
    assert_eq!(browser.extensions.as_deref(), Some(ANSWER));
    assert_eq!(second.extensions, Some(format!("{ANSWER}; server_max_window_bits=15")));
    assert_eq!(small.extensions, Some(format!("{ANSWER}; server_max_window_bits=8")));
    assert_eq!(plain.extensions, None);
    service.push(&push("p-1")).await?;
    let is_push = |text: &str| text.contains("\"p-1\"");
    let uncompressed = plain.find(is_push).await?;
    for client in [&mut browser, &mut second] {
        let frame = client.find(is_push).await?;
        assert!(frame.is_compressed() && frame.payload.len() < uncompressed.payload.len() / 3);
        assert_eq!(frame.text()?, uncompressed.text()?);
    }
    // It does not fit into that client's window.
    assert_eq!(small.find(is_push).await?, uncompressed);
    assert_eq!(edge.count("wirepost_edge_compressed_pushes_total").await?, 1);
    assert_eq!(edge.count("wirepost_edge_compressing_connections").await?, 3);
    let bytes =
        async |kind: &str| edge.count(&format!("wirepost_edge_compression_bytes_total{{kind=\"{kind}\"}}")).await;
    assert_eq!(bytes("before").await?, 2 * uncompressed.payload.len() as u64);
    assert!(bytes("after").await? < bytes("before").await? / 3);
    Ok(())
}

#[tokio::test]
async fn clients_may_compress_whole_messages_and_fragmented_ones() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("compression", "*").start().await?;
    let mut client = connect(&edge, "alice", Some(BROWSERS_OFFER)).await?;
    let order = |id: &str| json!({"id": id, "messageType": "order.placed", "content": "x".repeat(500)}).to_string();
    client.send(LAST | COMPRESSED | TEXT, &deflate(order("whole").as_bytes())?).await?;
    client.find(|text| text == r#"{"op":"ack","id":"whole"}"#).await?;
    let parts = deflate(order("parts").as_bytes())?;
    client.send(COMPRESSED | TEXT, &parts[..10]).await?;
    client.send(LAST | PING, b"between").await?;
    client.send(LAST | CONTINUE, &parts[10..]).await?;
    assert_eq!(client.next().await?.first, LAST | PONG);
    client.find(|text| text == r#"{"op":"ack","id":"parts"}"#).await?;
    // The same client may leave one as it is.
    client.send(LAST | TEXT, order("plain").as_bytes()).await?;
    client.find(|text| text == r#"{"op":"ack","id":"plain"}"#).await?;
    Ok(())
}

#[tokio::test]
async fn a_compressed_bomb_ends_its_connection_at_the_limit_of_messages() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("compression", "*").start().await?;
    let mut client = connect(&edge, "alice", Some(BROWSERS_OFFER)).await?;
    // A bit above messageBytes, after decompression: an answer as for any message.
    let large = json!({"id": "large", "messageType": "order.placed", "content": "x".repeat(70_000)}).to_string();
    client.send(LAST | COMPRESSED | TEXT, &deflate(large.as_bytes())?).await?;
    client.find(|text| text.contains("too_large")).await?;
    let bomb = deflate(&vec![b' '; 8 << 20])?;
    assert!(bomb.len() < 10_000);
    client.send(LAST | COMPRESSED | TEXT, &bomb).await?;
    assert_eq!(client.close_code().await?, 1009);
    Ok(())
}

#[tokio::test]
async fn compression_is_off_unless_a_business_is_named() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").flag("compression", "other").start().await?;
    let mut client = connect(&edge, "alice", Some(BROWSERS_OFFER)).await?;
    assert_eq!(client.extensions, None);
    client.send(LAST | COMPRESSED | TEXT, &deflate(b"{}")?).await?;
    assert_eq!(client.close_code().await?, 1002);
    Ok(())
}
