//! What compression saves and costs: pushes of JSON to everyone, with all clients compressing and with none.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wirepost_bench::tickets;
use wirepost_testing::{
    frames::{BROWSERS_OFFER, Frames},
    service::Service,
    setup::Setup,
    usage,
};

const SOCKETS: usize = 1_000;
const PUSHES: usize = 200;
const PAUSE: Duration = Duration::from_millis(50);

/// A list of orders, of about this many bytes as JSON.
fn content(bytes: usize, seed: usize) -> Value {
    let mut orders = Vec::new();
    let mut length = 0;
    while length < bytes {
        let n = (seed + orders.len()).wrapping_mul(2_654_435_761) % 1_000_003;
        let status = ["paid", "open", "refused"][n % 3];
        let amount = format!("{}.{:02}", n % 997, n % 100);
        let order = json!({"orderId": format!("o-{n}"), "amount": amount, "currency": "EUR", "status": status});
        length += order.to_string().len() + 1;
        orders.push(order);
    }
    Value::Array(orders)
}

/// Reads `count` pushes; how many bytes they took on the wire without their headers.
async fn read(mut frames: Frames, count: usize) -> Result<(Frames, usize)> {
    let (mut seen, mut bytes) = (0, 0);
    while seen < count {
        let frame = frames.next().await?;
        // `welcome` and `position` are shorter than any push here, but for a compressed one.
        if frame.is_compressed() || frame.payload.windows(12).any(|part| part == b"\"toUniqueId\"") {
            seen += 1;
            bytes += frame.payload.len();
        }
    }
    Ok((frames, bytes))
}

async fn measure(setup: &Setup, bytes: usize, compressing: bool) -> Result<()> {
    let flag = if compressing { "*" } else { "" };
    let edge = setup.edge("compression").quiet().flag("compression", flag).start().await?;
    let service = Service::connect(setup).await?;
    let mut readers = JoinSet::new();
    for ticket in tickets::make(setup, SOCKETS).await? {
        let frames = Frames::connect(edge.public, &format!("/socket/{ticket}"), Some(BROWSERS_OFFER)).await?;
        readers.spawn(read(frames, PUSHES));
    }
    // Each is live when it has its `welcome`; the last one has it within this time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = usage::of(edge.pid)?;
    let mut tick = tokio::time::interval(PAUSE);
    for n in 0..PUSHES {
        tick.tick().await;
        let push = json!({"messageType": "down", "toUniqueId": "*", "content": content(bytes, n * 1000)});
        service.push(&push).await?;
    }
    let (mut open, mut all) = (Vec::new(), 0);
    while let Some(reader) = readers.join_next().await {
        let (frames, of_one) = reader??;
        open.push(frames);
        all += of_one;
    }
    let after = usage::of(edge.pid)?;
    println!(
        "compression, {bytes} B of JSON, {}: {} B and {:.1} us of CPU in the edge a delivery ({SOCKETS} sockets, 20 pushes a second)",
        if compressing { "on" } else { "off" },
        all / (SOCKETS * PUSHES),
        usage::each(before, after, SOCKETS * PUSHES),
    );
    Ok(())
}

/// Each size without and with.
pub(crate) async fn run(declaration: &str) -> Result<()> {
    for bytes in [200, 1024, 8192] {
        for compressing in [false, true] {
            measure(&Setup::new(&[declaration]).await?, bytes, compressing).await?;
        }
    }
    Ok(())
}
