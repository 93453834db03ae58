//! Fills a control stream that has replaced another one, deleted by hand or lost with its broker, with what is still in
//! force: an edge that starts later reads it there.
//!
//! *No storm*: each edge begins at a time of its own within [`SPREAD`] and publishes only what it has not read from the
//! new stream until then. So usually one edge publishes all of it, and the others little or nothing. *Bound*: what an
//! edge knows, [`AT_ONCE`] unconfirmed. *Repeats* do no harm.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use super::{
    gate::Gate,
    publish::{PAUSE, publish},
};
use crate::{broker::Broker, clock, metrics::Metrics};

/// In which edges begin. Until then an edge that starts may not know of what was revoked before.
const SPREAD: Duration = Duration::from_secs(5);
/// Revocations that are taken from memory at a time.
const PART: usize = 1000;
/// Those of them that wait for their confirm.
const AT_ONCE: usize = 64;

/// Never ends.
pub async fn run(gate: Arc<Gate>, broker: Arc<dyn Broker>, metrics: Arc<Metrics>) {
    loop {
        gate.stream_is_new().await;
        sleep(SPREAD.mul_f64(rand::random_range(0.0..1.0))).await;
        let mut restored = 0;
        loop {
            let part = gate.revocations.to_publish(PART, clock::now_ms());
            if part.is_empty() {
                break;
            }
            restored += part.len();
            let (broker, metrics) = (&*broker, &*metrics);
            let confirmed = |revocation| async move {
                while !matches!(publish(broker, &revocation).await, Ok(Ok(()))) {
                    sleep(PAUSE).await;
                }
                metrics.revocations_restored.inc();
            };
            stream::iter(part).map(confirmed).buffer_unordered(AT_ONCE).collect::<()>().await;
        }
        tracing::info!(restored, "the control stream was replaced, and has again what is in force");
    }
}
