//! How the broker is, from the state of the publishing connections and from its alarms.

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{CONFIRM_TIMEOUT, Health, PublishError};

/// The state of a publishing connection.
#[derive(Clone, Debug)]
pub(super) enum Status {
    /// There is none, and why.
    Down(String),
    /// Connected.
    Up,
    /// Connected; the broker takes no publishes on it, and why.
    Blocked(String),
}

/// Sums up the publishing connections. Publishes are refused immediately while the broker is blocked, and when it has been away for so long
/// that waiting is pointless.
pub(super) async fn watch(
    mut statuses: Vec<watch::Receiver<Status>>,
    mut alarm: watch::Receiver<Option<String>>,
    health: watch::Sender<Health>,
    refusal: watch::Sender<Option<PublishError>>,
) {
    // Since when there has been no connection; an outage goes on through its attempts.
    let mut away_since: Option<Instant> = None;
    loop {
        let now = sum_up(&mut statuses, alarm.borrow_and_update().as_deref());
        let mut vain_from = None;
        let refuse = match &now {
            Health::Up => None,
            Health::Blocked(reason) => Some(format!("the broker accepts no messages: {reason}")),
            Health::Away(reason) => {
                let vain = *away_since.get_or_insert_with(Instant::now) + CONFIRM_TIMEOUT;
                vain_from = (vain > Instant::now()).then_some(vain);
                vain_from.is_none().then(|| reason.clone())
            }
        };
        if !matches!(now, Health::Away(_)) {
            away_since = None;
        }
        refusal.send_replace(refuse.map(PublishError::Unavailable));
        health.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        let changed = {
            let changes = statuses.iter_mut().map(|status| Box::pin(status.changed()));
            let any = futures_util::future::select_all(changes);
            tokio::select! {
                (result, ..) = any => result.is_ok(),
                Ok(()) = alarm.changed() => true,
                () = sleep_until(vain_from.unwrap_or_else(Instant::now)), if vain_from.is_some() => true,
            }
        };
        if !changed {
            return;
        }
    }
}

fn sum_up(statuses: &mut [watch::Receiver<Status>], alarm: Option<&str>) -> Health {
    let statuses: Vec<Status> = statuses.iter_mut().map(|status| status.borrow_and_update().clone()).collect();
    let blocked = statuses.iter().find_map(|status| match status {
        Status::Blocked(reason) => Some(reason.clone()),
        Status::Up | Status::Down(_) => None,
    });
    let up = statuses.iter().any(|status| matches!(status, Status::Up | Status::Blocked(_)));
    match (blocked, alarm, up) {
        // An alarm is in force for the whole cluster, whichever connection reported it.
        (Some(reason), _, _) => Health::Blocked(reason),
        (None, Some(reason), true) => Health::Blocked(reason.to_owned()),
        (None, _, true) => Health::Up,
        (None, _, false) => Health::Away(
            statuses
                .iter()
                .find_map(|status| match status {
                    Status::Down(reason) => Some(reason.clone()),
                    Status::Up | Status::Blocked(_) => None,
                })
                .unwrap_or_default(),
        ),
    }
}
