//! Memory and disk alarms, polled at the management API: an idle AMQP connection learns of an alarm only when its first publish is stuck.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use wirepost_rabbitmq::ManagementClient;

use super::counters::Counters;

/// Between two polls.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// Polls forever; what is known goes into `alarm`.
pub(super) async fn poll(management: ManagementClient, alarm: watch::Sender<Option<String>>, counters: Arc<Counters>) {
    // Before the first answer nothing is known either.
    counters.alarms_unknown.set(1);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        match management.alarm().await {
            Ok(found) => {
                failing = false;
                counters.alarms_unknown.set(0);
                alarm.send_if_modified(|known| {
                    let changed = *known != found;
                    *known = found;
                    changed
                });
            }
            Err(error) => {
                counters.alarms_unknown.set(1);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        %error,
                        "can't ask the management API for alarms; they are learned from publishes"
                    );
                }
                alarm.send_if_modified(|known| known.take().is_some());
            }
        }
    }
}
