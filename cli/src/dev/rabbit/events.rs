//! Follows the events of the businesses on a real broker, for the playground: by a queue of its own, which ends with its
//! connection.

use std::time::Duration;

use futures_util::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use lapin::{
    message::Delivery,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use wirepost_core::names;
use wirepost_rabbitmq::{Address, Connection};

use super::{super::playground::Desk, Desired, connect};

/// Events that wait; older ones are dropped.
const WAITING: i32 = 1000;
/// Retry interval: the exchange may not exist yet, the broker may be unreachable.
const RETRY: Duration = Duration::from_secs(1);
/// Timeout of starting the consumers.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until dropped.
pub(super) async fn run(address: Address, edge: String, mut desired: watch::Receiver<Desired>, desk: Desk) {
    loop {
        let current = desired.borrow_and_update().clone();
        let businesses: Vec<&str> = current.businesses.iter().map(|compiled| compiled.business.as_str()).collect();
        if !businesses.is_empty()
            && let Ok(connection) = connect(&address, "events").await
        {
            if let Ok(Ok(events)) = timeout(BEGIN_TIMEOUT, consume(&connection, &businesses, &edge)).await {
                tokio::select! {
                    () = show(events, &desk) => {}
                    changed = desired.changed() => if changed.is_err() { return },
                }
            }
            let _ = connection.close(200, "done".into()).await;
        }
        tokio::select! {
            () = sleep(RETRY) => {}
            changed = desired.changed() => if changed.is_err() { return },
        }
    }
}

/// Events of all businesses, each with its business.
type Events = SelectAll<BoxStream<'static, (String, lapin::Result<Delivery>)>>;

async fn consume(connection: &Connection, businesses: &[&str], edge: &str) -> lapin::Result<Events> {
    let mut all = SelectAll::new();
    for business in businesses {
        let channel = connection.create_channel().await?;
        let queue = names::events_queue(business, edge);
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(WAITING));
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        let exchange = names::events_exchange(business);
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.as_str().into(), exchange.as_str().into(), "#".into(), bind, none).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer =
            channel.basic_consume(queue.as_str().into(), queue.as_str().into(), options, FieldTable::default()).await?;
        let business = (*business).to_owned();
        all.push(consumer.map(move |delivery| (business.clone(), delivery)).boxed());
    }
    Ok(all)
}

/// Runs until a consumer fails; then all are started again.
async fn show(mut events: Events, desk: &Desk) {
    while let Some((business, Ok(delivery))) = events.next().await {
        desk.event(&business, &delivery.data);
    }
}
