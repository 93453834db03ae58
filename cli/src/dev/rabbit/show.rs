//! Consumes the messages in businesses' queues on a real broker and prints them, in place of their services.

use std::time::Duration;

use futures_util::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use lapin::{
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use wirepost_rabbitmq::{Address, Connection};

use super::{super::card::shown_queues, Desired, connect};
use crate::output::{Console, one_line};

/// Unacknowledged messages of one queue.
const PREFETCH: u16 = 10;
/// Retry interval: queues may not exist yet, the broker may be unreachable.
const RETRY: Duration = Duration::from_secs(1);
/// Timeout of starting the consumers.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until dropped.
pub(super) async fn run(address: Address, mut desired: watch::Receiver<Desired>, console: Console) {
    loop {
        let current = desired.borrow_and_update().clone();
        let queues: Vec<&str> = current.businesses.iter().flat_map(shown_queues).collect();
        if !queues.is_empty()
            && let Ok(connection) = connect(&address, "queues").await
            && let Ok(Ok(consumers)) = timeout(BEGIN_TIMEOUT, consume(&connection, &queues)).await
        {
            tokio::select! {
                () = print(consumers, &console) => {}
                changed = desired.changed() => if changed.is_err() { return },
            }
            let _ = connection.close(200, "done".into()).await;
            continue;
        }
        tokio::select! {
            () = sleep(RETRY) => {}
            changed = desired.changed() => if changed.is_err() { return },
        }
    }
}

/// Deliveries of all queues, each with its queue.
type Deliveries = SelectAll<BoxStream<'static, (String, lapin::Result<Delivery>)>>;

async fn consume(connection: &Connection, queues: &[&str]) -> lapin::Result<Deliveries> {
    let mut consumers = SelectAll::new();
    for queue in queues {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume((*queue).into(), (*queue).into(), BasicConsumeOptions::default(), FieldTable::default())
            .await?;
        let queue = (*queue).to_owned();
        consumers.push(consumer.map(move |delivery| (queue.clone(), delivery)).boxed());
    }
    Ok(consumers)
}

/// Runs until a consumer fails; then all are started again.
async fn print(mut consumers: Deliveries, console: &Console) {
    while let Some((queue, Ok(delivery))) = consumers.next().await {
        console.say(format!("queue {queue} ← {}", one_line(&delivery.data))).await;
        if delivery.ack(BasicAckOptions::default()).await.is_err() {
            return;
        }
    }
}
