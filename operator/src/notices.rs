//! Events, on change only: what a person sees in `kubectl describe`. One that can't be written is logged; nothing waits for it.

use std::time::Duration;

use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::timeout;
use wirepost_core::business::WsBusinessStatus;

use crate::{status, stored::Stored, writer::MANAGER};

const TIMEOUT: Duration = Duration::from_secs(2);
/// The API server's bound of a note, in bytes.
const MAX_NOTE: usize = 1024;
/// What passes by itself with every change.
const QUIET: [&str; 4] = ["EdgesBehind", "Pending", "NotAccepted", "Deleting"];

/// See the module.
#[derive(Clone)]
pub struct Notices(Recorder);

impl Notices {
    /// `instance` is this replica.
    pub fn new(client: Client, instance: String) -> Self {
        Self(Recorder::new(client, Reporter { controller: MANAGER.to_owned(), instance: Some(instance) }))
    }

    /// Events for conditions whose status or reason is another than before; how many.
    pub async fn changed(&self, stored: &Stored, old: &WsBusinessStatus, new: &WsBusinessStatus) -> usize {
        let mut count = 0;
        for condition in &new.conditions {
            let before = old.conditions.iter().find(|c| c.type_ == condition.type_);
            if before.is_some_and(|b| b.status == condition.status && b.reason == condition.reason) {
                continue;
            }
            let kind = match (condition.type_.as_str(), condition.status.as_str()) {
                (status::READY, "True") => EventType::Normal,
                // Ready repeats the reason of another condition.
                (status::READY, _) | (_, "True" | "Unknown") => continue,
                _ if QUIET.contains(&condition.reason.as_str()) => continue,
                _ => EventType::Warning,
            };
            self.publish(stored, kind, &condition.reason, "Reconciling", &condition.message).await;
            count += 1;
        }
        count
    }

    /// Something that others had changed is as declared again.
    pub async fn repaired(&self, stored: &Stored, what: &str) {
        self.publish(stored, EventType::Normal, "Repaired", "Repairing", &format!("repaired on the broker: {what}"))
            .await;
    }

    /// The resource goes though the broker was not cleaned.
    pub async fn not_cleaned(&self, stored: &Stored, why: &str) {
        let note = format!("the resource goes, though objects of it stay on the broker: {why}");
        self.publish(stored, EventType::Warning, "BrokerNotCleaned", "Deleting", &note).await;
    }

    async fn publish(&self, stored: &Stored, kind: EventType, reason: &str, action: &str, note: &str) {
        let end = (0..=MAX_NOTE.min(note.len())).rev().find(|i| note.is_char_boundary(*i)).unwrap_or_default();
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note[..end].to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        match timeout(TIMEOUT, self.0.publish(&event, &stored.reference())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(business = stored.owner(), reason, note, %error, "event not written"),
            Err(_) => tracing::warn!(business = stored.owner(), reason, note, "event not written in time"),
        }
    }
}
