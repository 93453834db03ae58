//! A business's service: consumes a queue with manual acknowledgements, and crashes now and then with messages in its hands.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::options::BasicAckOptions;
use tokio::time::{sleep, timeout};
use wirepost_testing::service::{Service, body};

use crate::chance::Chance;
use crate::plan::PLANS;
use crate::record::What;
use crate::world::{STEP, Stage, World};

/// Unacknowledged messages.
const PREFETCH: u16 = 20;
/// One delivery in this many is the last of its connection.
const CRASH: usize = 150;
const SILENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(300);

/// Consumes a queue of one business, by its short name, until all leave.
pub async fn serve(world: Arc<World>, business: usize, queue: &'static str, mut chance: Chance) {
    while world.stage() < Stage::Leaving {
        // An error: the broker is away, or it "crashed".
        let _ = consume(&world, business, queue, &mut chance).await;
        sleep(RETRY).await;
    }
}

async fn consume(world: &World, business: usize, queue: &str, chance: &mut Chance) -> Result<()> {
    let service = timeout(STEP, Service::of(&world.setup, PLANS[business].name)).await??;
    let mut consumer = timeout(STEP, service.consume(queue, PREFETCH)).await??;
    while world.stage() < Stage::Leaving {
        let Ok(delivery) = timeout(SILENCE, consumer.next()).await else {
            // A consumer that the broker has forgotten gets nothing, and hears nothing of it.
            ensure!(timeout(STEP, service.depth(queue)).await?? == 0, "messages wait, and none comes");
            continue;
        };
        let delivery = delivery.context("the consumer ended")??;
        let envelope = body(&delivery).unwrap_or_default();
        match envelope["id"].as_str().and_then(|id| world.journal.find(id)) {
            Some(message) => world.journal.note(What::Consumed {
                queue: queue.to_owned(),
                message,
                redelivered: delivery.redelivered,
            }),
            None => world.journal.broken(format!("a message in queue {queue} that nobody sent: {envelope}")),
        }
        if world.stage() == Stage::Talking && chance.once_in(CRASH) {
            return Ok(());
        }
        timeout(STEP, delivery.ack(BasicAckOptions::default())).await??;
    }
    let _ = timeout(STEP, service.connection.close(200, "done".into())).await;
    Ok(())
}
