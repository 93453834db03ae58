//! Reports when the broker becomes unreachable and reachable again.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use wirepost_broker::Health;

use crate::output::Console;

/// Shorter interruptions are not reported: connections are being opened or reopened.
const REPORT_AFTER: Duration = Duration::from_millis(1500);

/// Runs until the broker client ends.
pub(super) async fn run(mut health: watch::Receiver<Health>, console: Console) {
    let mut reported = false;
    loop {
        let now = health.borrow_and_update().clone();
        let report_at = Instant::now() + REPORT_AFTER;
        match now {
            Health::Up if reported => {
                reported = false;
                console.say("broker: reachable again").await;
            }
            Health::Up => {}
            Health::Blocked(_) | Health::Away(_) if reported => {}
            Health::Blocked(reason) | Health::Away(reason) => {
                match timeout_at(report_at, health.wait_for(|health| *health == Health::Up)).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(_)) => return,
                    Err(_) => {}
                }
                reported = true;
                console
                    .say(format!("broker: {reason}; messages of clients are refused with broker_unavailable; retrying"))
                    .await;
            }
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}
