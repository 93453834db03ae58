//! Tells when the broker goes and comes back.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use wirepost_broker::Health;

use crate::output::Console;

/// What passes sooner is not told: connections are being made, or made anew.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Until the broker is gone for good.
pub(super) async fn run(mut health: watch::Receiver<Health>, console: Console) {
    let mut told = false;
    loop {
        let now = health.borrow_and_update().clone();
        let patience = Instant::now() + PATIENCE;
        match now {
            Health::Up if told => {
                told = false;
                console.say("broker: up again").await;
            }
            Health::Up => {}
            Health::Blocked(_) | Health::Away(_) if told => {}
            Health::Blocked(reason) | Health::Away(reason) => {
                match timeout_at(patience, health.wait_for(|health| *health == Health::Up)).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(_)) => return,
                    Err(_) => {}
                }
                told = true;
                console
                    .say(format!("broker: {reason}; clients that send are told broker_unavailable, trying again"))
                    .await;
            }
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}
