//! Reads the streams as they are on the broker, by AMQP and a general client library: none of our code is on this way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::{sleep, timeout};
use wirepost_core::names;

use crate::plan::PLANS;
use crate::record::What;
use crate::world::{STEP, Stage, World};

/// Without a message for so long it connects again: a broker that was frozen may have forgotten the consumer.
const SILENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(200);
const UNACKNOWLEDGED: u16 = 200;

/// Reads the stream of one business, until all leave.
pub async fn watch(world: Arc<World>, business: usize) {
    let mut next = None;
    while world.stage() < Stage::Leaving {
        // An error: the broker is away, or was.
        let _ = read(&world, business, &mut next).await;
        sleep(RETRY).await;
    }
}

async fn read(world: &World, business: usize, next: &mut Option<u64>) -> Result<()> {
    let connection = timeout(STEP, world.setup.vhost().connect()).await??;
    let channel = timeout(STEP, connection.create_channel()).await??;
    timeout(STEP, channel.basic_qos(UNACKNOWLEDGED, BasicQosOptions::default())).await??;
    let from = match *next {
        None => AMQPValue::LongString("first".into()),
        Some(offset) => AMQPValue::LongLongInt(offset as i64),
    };
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), from);
    let stream = names::stream(PLANS[business].name);
    let consuming =
        channel.basic_consume(stream.as_str().into(), "witness".into(), BasicConsumeOptions::default(), arguments);
    let mut consumer = timeout(STEP, consuming).await??;
    while world.stage() < Stage::Leaving {
        let delivery = timeout(SILENCE, consumer.next()).await?.context("the consumer ended")??;
        let headers = delivery.properties.headers().as_ref().context("no headers")?;
        let Some(AMQPValue::LongLongInt(offset)) = headers.inner().get("x-stream-offset") else {
            world.journal.broken("the broker delivered from a stream without an offset");
            return Ok(());
        };
        let offset = *offset as u64;
        if let Some(next) = *next
            && next < offset
        {
            world.journal.note(What::Unwitnessed { business, until: offset });
        }
        if next.is_none_or(|next| next <= offset) {
            let envelope: serde_json::Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
            let message = envelope["id"].as_str().and_then(|id| world.journal.find(id));
            world.journal.note(What::Stored { business, offset, message });
            *next = Some(offset + 1);
        }
        timeout(STEP, delivery.ack(BasicAckOptions::default())).await??;
    }
    let _ = timeout(STEP, connection.close(200, "done".into())).await;
    Ok(())
}
