//! Who pushes what nobody can get hears of it, within a limit: one business's nonsense must not be multiplied by every edge.

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_testing::broker::next;
use wirepost_testing::service::{Service, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

const FLOOD: u64 = 3_000;

#[tokio::test]
async fn a_flood_of_rejected_pushes_makes_few_events_and_each_one_is_counted() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut rejected = service.events("rejected").await?;
    service.push_all((0..FLOOD).map(|n| json!({"id": n.to_string(), "messageType": "no.such"}))).await?;
    service.push(&payment("alice", 1)).await?;
    assert_eq!(alice.content().await?["n"], 1, "who is read behind them");

    let (mut events, mut suppressed) = (0, 0);
    while events + suppressed < FLOOD {
        let delivery = next(&mut rejected).await?;
        let event: Value = serde_json::from_slice(&delivery.data)?;
        events += 1;
        suppressed += event["suppressed"].as_u64().unwrap_or_default();
        delivery.ack(lapin::options::BasicAckOptions::default()).await?;
    }
    assert_eq!(events + suppressed, FLOOD, "each is reported or counted");
    assert!(suppressed > FLOOD / 2, "{events} events");
    let rejected = edge.metric("wirepost_edge_rejected_pushes_total{kind=\"unknown_route\"}").await?;
    assert_eq!(rejected as usize, FLOOD as usize);
    assert!(edge.metric("wirepost_edge_suppressed_events_total").await? >= suppressed as f64);
    Ok(())
}
