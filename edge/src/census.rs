//! Tells each business every few seconds how many connections its events have told of, see
//! [`Tally`](crate::business::census::Tally). Not all businesses at once: events have a queue of their own to the broker,
//! which is bounded.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    business::events::{self, Event},
    catalog::Catalog,
    peers::Peers,
    push::hub::Hub,
};

/// Shortest interval.
const SHORTEST: Duration = Duration::from_millis(100);

/// Tells forever.
pub async fn run(catalog: Arc<Catalog>, peers: Arc<Peers>, every: Duration) {
    let every = every.max(SHORTEST);
    let mut others = HashSet::new();
    loop {
        let hubs = catalog.all();
        let before = std::mem::replace(&mut others, peers.instances());
        if before.iter().any(|instance| !others.contains(instance)) {
            for hub in &hubs {
                hub.tally.speak_up();
            }
        }
        let pause = every / u32::try_from(hubs.len()).unwrap_or(u32::MAX).max(1);
        for hub in &hubs {
            sleep(pause).await;
            tell(hub, every);
        }
        if hubs.is_empty() {
            sleep(every).await;
        }
    }
}

fn tell(hub: &Hub, every: Duration) {
    let context = &*hub.context;
    let told = hub.tally.census(|census| {
        let event = Event::Census {
            connections: census.connections,
            digest: &census.digest,
            every_seconds: every.as_secs_f64(),
        };
        events::emit(context.broker.as_ref(), &hub.business(), context.teller(), &event);
    });
    if told {
        context.metrics.censuses.inc();
    }
}
