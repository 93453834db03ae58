//! An even load: an edge that holds clearly more than its share asks some of its clients, those that have been here
//! longest, to connect elsewhere, in the way in which a drain asks all of them. [`decide`] says when and how many.

pub mod decide;

use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{catalog::Catalog, config::settings::Settings, http::state::State, metrics::label, push::hub::Hub};
use decide::{Balancer, Hold, Step};

/// Between two decisions.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether these settings ask for it.
pub fn is_on(settings: &Settings) -> bool {
    settings.balance.per_second > 0 && !settings.peers.is_empty()
}

/// Balances forever.
pub async fn run(state: Arc<State>) {
    for hold in Hold::ALL {
        state.metrics.balance_holds.get_or_create_owned(&label(hold.label()));
    }
    let mut balancer = Balancer::new(state.settings.balance);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let others = state.peers.loads().ok();
        match balancer.step(Instant::now(), &state.load(), others.as_deref()) {
            Step::Even | Step::Wait => {}
            Step::Hold(hold) => drop(state.metrics.balance_holds.get_or_create(&label(hold.label())).inc()),
            Step::LetGo(count) => {
                let gone = let_go(&state.catalog, count);
                state.metrics.let_go.inc_by(gone as u64);
                tracing::debug!(gone, "clients are asked to connect elsewhere, for an even load");
            }
        }
    }
}

/// Lets some go, of each business in proportion to its connections. How many.
fn let_go(catalog: &Catalog, count: usize) -> usize {
    let hubs: Vec<(Arc<Hub>, usize)> = catalog
        .all()
        .into_iter()
        .map(|hub| {
            let clients = *hub.clients().borrow();
            (hub, clients)
        })
        .collect();
    let all: usize = hubs.iter().map(|(_, clients)| clients).sum();
    if all == 0 {
        return 0;
    }
    let mut of_each: HashMap<usize, usize> = HashMap::new();
    for _ in 0..count.min(all) {
        let mut at = rand::rng().random_range(0..all);
        let hit = hubs.iter().position(|(_, clients)| {
            let hit = at < *clients;
            at = at.saturating_sub(*clients);
            hit
        });
        *of_each.entry(hit.unwrap_or_default()).or_default() += 1;
    }
    of_each.into_iter().map(|(hub, count)| hubs[hub].0.let_go(count)).sum()
}
