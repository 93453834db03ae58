//! Consumes the messages in businesses' queues on a real broker and shows them, in place of their services.

use std::time::Duration;

use futures_util::{StreamExt, future::select_all};
use lapin::{
    Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions},
    types::FieldTable,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use wirepost_rabbitmq::{Address, Connection};

use super::{
    super::{
        card::shown_queues,
        playground::{Desk, Verdict},
    },
    Desired, connect,
};
use crate::output::{Console, one_line};

/// Unacknowledged messages of one queue.
const PREFETCH: u16 = 10;
/// Retry interval: queues may not exist yet, the broker may be unreachable.
const RETRY: Duration = Duration::from_secs(1);
/// Timeout of starting the consumers.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Where they are shown.
pub(super) struct Show {
    pub console: Console,
    pub desk: Desk,
}

/// A queue, and a business that fills it.
struct Source<'a> {
    business: &'a str,
    queue: &'a str,
}

impl Show {
    /// Runs until dropped.
    pub(super) async fn run(self, address: Address, mut desired: watch::Receiver<Desired>) {
        loop {
            let current = desired.borrow_and_update().clone();
            let of = |compiled| shown_queues(compiled).map(|queue| Source { business: &compiled.business, queue });
            let sources: Vec<Source<'_>> = current.businesses.iter().flat_map(of).collect();
            if !sources.is_empty()
                && let Ok(connection) = connect(&address, "queues").await
                && let Ok(Ok(consumers)) = timeout(BEGIN_TIMEOUT, consume(&connection, sources)).await
            {
                let consumers = consumers.into_iter().map(|(source, consumer)| Box::pin(self.show(source, consumer)));
                tokio::select! {
                    // All are started again.
                    _ = select_all(consumers) => {}
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

    /// Runs until the consumer fails.
    async fn show(&self, Source { business, queue }: Source<'_>, mut consumer: Consumer) {
        while let Some(Ok(delivery)) = consumer.next().await {
            self.console.say(format!("queue {queue} ← {}", one_line(&delivery.data))).await;
            let verdict = self.desk.decide(business, queue, &delivery.data, delivery.redelivered).await;
            if settle(&delivery, verdict).await.is_err() {
                return;
            }
        }
    }
}

async fn settle(delivery: &Delivery, verdict: Verdict) -> lapin::Result<bool> {
    match verdict {
        Verdict::Ack => delivery.ack(BasicAckOptions::default()).await,
        Verdict::Requeue => delivery.reject(BasicRejectOptions { requeue: true }).await,
        Verdict::Reject => delivery.reject(BasicRejectOptions { requeue: false }).await,
    }
}

async fn consume<'a>(connection: &Connection, sources: Vec<Source<'a>>) -> lapin::Result<Vec<(Source<'a>, Consumer)>> {
    let mut consumers = Vec::new();
    for source in sources {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let queue = source.queue;
        let consumer = channel
            .basic_consume(queue.into(), queue.into(), BasicConsumeOptions::default(), FieldTable::default())
            .await?;
        consumers.push((source, consumer));
    }
    Ok(consumers)
}
