//! Who gave no receipt in time: on routes with `receiptsWithinSeconds` a business hears of each identity that a push names
//! and that has not reported it by then. ([decision](../../../docs/decisions/0072-one-edge-judges-receipts.md))
//!
//! One edge judges for a business, whichever has clients. It reads the pushes where all edges read them, and the receipts
//! in a stream of their own, which the broker fills with `delivered` events. What it knows of itself, who judges and how
//! far it is, it writes into that stream too ([`checkpoint`]): so another edge continues where it stopped ([`standby`]),
//! and the place of a checkpoint between the receipts shows which of them came before ([`judge`]).

mod checkpoint;
mod judge;
mod ledger;
mod publish;
mod pushes;
mod receipts;
mod standby;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::push::hub::Hub;
use checkpoint::Terms;

/// How long an edge stands back that could not read, so that another one begins.
const REST: Duration = Duration::from_secs(30);

/// Judges for a business, or waits until it is this edge's turn; never ends.
pub async fn run(hub: Arc<Hub>) {
    let mut follows = hub.follows();
    loop {
        if follows.wait_for(|follows| *follows).await.is_err() {
            return std::future::pending().await;
        }
        tokio::select! {
            () = take_turns(&hub) => {}
            _ = follows.wait_for(|follows| !follows) => {}
        }
    }
}

async fn take_turns(hub: &Hub) {
    let late = hub.context.metrics.judge_late.begin();
    let mut terms = Terms::default();
    loop {
        let Some(begin) = standby::until_turn(hub, &mut terms, &late).await else {
            tracing::warn!(business = %hub.name, "without a stream address this edge judges no receipts");
            // It can't know how others are.
            drop(late);
            return std::future::pending().await;
        };
        let judging = Judging::begin(hub);
        let why = judge::run(hub, &mut terms, begin, &late).await;
        drop(judging);
        if matches!(why, judge::End::CantRead) {
            sleep(REST).await;
        }
        tracing::info!(business = %hub.name, %why, "this edge judges no longer who gave no receipt");
    }
}

/// The time in which this edge judges, also if that ends by a panic.
struct Judging<'h>(&'h Hub);

impl<'h> Judging<'h> {
    fn begin(hub: &'h Hub) -> Self {
        tracing::info!(business = %hub.name, "this edge judges who gave no receipt in time");
        hub.context.metrics.judging.inc();
        Self(hub)
    }
}

impl Drop for Judging<'_> {
    fn drop(&mut self) {
        self.0.context.metrics.judging.dec();
    }
}
