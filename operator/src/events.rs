//! Kubernetes events, on change only: what people see in `kubectl describe`. One that can't be written is logged; nothing waits for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::timeout;
use wirepost_core::{
    business::WsBusinessStatus,
    contract::condition::{ConditionType, Reason},
};

use crate::{
    api_client::MANAGER,
    stored::{REVOKE, ROTATE, StoredBusiness},
};

const TIMEOUT: Duration = Duration::from_secs(2);
/// The API server's bound of a note, in bytes.
const MAX_NOTE: usize = 1024;
/// Reasons that come and go with every change, and one with a single event for all businesses.
const WITHOUT_EVENT: [Reason; 5] =
    [Reason::EdgesBehind, Reason::Pending, Reason::NotAccepted, Reason::Deleting, Reason::MassDeletion];

/// Texts that are remembered; when there are more, the worst that follows is a separate event instead of a higher count.
const MAX_RECORDERS: usize = 256;

/// See the module.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    /// By text: a recorder counts every event with the same object and reason as a repeat, whatever its text, and keeps the first text.
    recorders: Arc<Mutex<HashMap<String, Recorder>>>,
}

impl Events {
    /// `instance` is this replica.
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(instance) };
        Self { client, reporter, recorders: Arc::default() }
    }

    /// Writes events for conditions whose status or reason has changed; returns how many.
    pub async fn changed(&self, stored: &StoredBusiness, old: &WsBusinessStatus, new: &WsBusinessStatus) -> usize {
        let mut count = 0;
        for condition in &new.conditions {
            let before = old.conditions.iter().find(|c| c.type_ == condition.type_);
            if before.is_some_and(|b| b.status == condition.status && b.reason == condition.reason) {
                continue;
            }
            // What is not accepted is reported once.
            let rejected = |c: &Condition| c.type_ == ConditionType::Accepted.as_str() && c.status == "False";
            if condition.type_ == ConditionType::Permitted.as_str() && new.conditions.iter().any(rejected) {
                continue;
            }
            let kind = match (condition.type_ == ConditionType::Ready.as_str(), condition.status.as_str()) {
                (true, "True") => EventType::Normal,
                // Ready repeats the reason of another condition.
                (true, _) | (_, "True") => continue,
                (_, "Unknown") if !Reason::parse(&condition.reason).is_some_and(Reason::may_pass) => continue,
                _ if Reason::parse(&condition.reason).is_some_and(|reason| WITHOUT_EVENT.contains(&reason)) => continue,
                _ => EventType::Warning,
            };
            self.publish(stored, kind, &condition.reason, "Reconciling", &condition.message).await;
            count += 1;
        }
        count
    }

    /// What others had changed is as declared again.
    pub async fn repaired(&self, stored: &StoredBusiness, what: &str) {
        self.publish(stored, EventType::Normal, "Repaired", "Repairing", &format!("repaired on the broker: {what}"))
            .await;
    }

    /// The installed CustomResourceDefinition blocks a change. No condition can report it: a write to the resource would lose fields.
    pub async fn held_back(&self, stored: &StoredBusiness, why: &str) {
        let reason = Reason::CustomResourceDefinitionOutdated.as_str();
        self.publish(stored, EventType::Warning, reason, "Reconciling", why).await;
    }

    /// The former credentials end before their hour is over.
    pub async fn revoked(&self, stored: &StoredBusiness) {
        let note =
            "the former credentials of its services are revoked: their broker users and API keys are invalid now";
        self.publish(stored, EventType::Normal, "CredentialsRevoked", "Revoking", note).await;
    }

    /// A revocation was requested with a value that revokes nothing.
    pub async fn not_revoked(&self, stored: &StoredBusiness, revoke: &str, rotate: &str) {
        let note = format!(
            "nothing is revoked: {REVOKE} is '{revoke}' and {ROTATE} is '{rotate}'. Set both to the same new value to replace the credentials and end the former ones now; set {REVOKE} to '{rotate}' to end only the former ones"
        );
        self.publish(stored, EventType::Warning, "NothingRevoked", "Revoking", &note).await;
    }

    /// The resource is deleted though the broker was not cleaned.
    pub async fn not_cleaned(&self, stored: &StoredBusiness, why: &str) {
        let note = format!("the resource is deleted, though objects of it stay on the broker: {why}");
        self.publish(stored, EventType::Warning, "BrokerNotCleaned", "Deleting", &note).await;
    }

    /// The label that this installation selects by is gone from the resource.
    pub async fn unselected(&self, stored: &StoredBusiness, config_map: &str) {
        let note = format!(
            "this installation's selector does not match the resource any more: nothing of it is changed or removed. Put the label back, or delete the resource; to end it here alone, as after a move to another installation, delete ConfigMap {config_map}"
        );
        self.publish(stored, EventType::Warning, "NotSelected", "Watching", &note).await;
    }

    /// Most businesses would end at the same time; an event of the Lease.
    pub async fn held(&self, lease: ObjectReference, note: &str) {
        self.publish_about(&lease, EventType::Warning, "MassDeletion", "Deleting", note).await;
    }

    /// Several classes are marked as the default.
    pub async fn several_defaults(&self, class: &ObjectReference, note: &str) {
        self.publish_about(class, EventType::Warning, "SeveralDefaults", "Watching", note).await;
    }

    /// A class can't be read.
    pub async fn unreadable_class(&self, class: &ObjectReference, note: &str) {
        self.publish_about(class, EventType::Warning, "UnreadableClass", "Watching", note).await;
    }

    async fn publish(&self, stored: &StoredBusiness, kind: EventType, reason: &str, action: &str, note: &str) {
        self.publish_about(&stored.reference(), kind, reason, action, note).await;
    }

    async fn publish_about(&self, about: &ObjectReference, kind: EventType, reason: &str, action: &str, note: &str) {
        let end = (0..=MAX_NOTE.min(note.len())).rev().find(|i| note.is_char_boundary(*i)).unwrap_or_default();
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note[..end].to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        match timeout(TIMEOUT, self.recorder(note).publish(&event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(about = about.name, reason, note, %error, "cannot write an event"),
            Err(_) => tracing::warn!(
                about = about.name,
                reason,
                note,
                "cannot write an event: the API server did not answer in time"
            ),
        }
    }

    fn recorder(&self, note: &str) -> Recorder {
        let mut recorders = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        if recorders.len() >= MAX_RECORDERS && !recorders.contains_key(note) {
            recorders.clear();
        }
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        recorders.entry(note.to_owned()).or_insert_with(new).clone()
    }
}
