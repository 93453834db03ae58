//! One step as calls of the management API, object by object: `POST definitions` answers success where an object differs and changes
//! nothing.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wirepost_core::names;
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::actual;
use crate::plan::{exchange_arguments, exchange_kind, link_arguments, queue_arguments};
use crate::reserved;
use crate::step::Step;
use crate::users::HASHING;

/// Why a step was not carried out.
pub(crate) enum WriteError {
    /// The gate said no.
    Stopped,
    /// The call failed.
    Call(CallError),
}

impl From<CallError> for WriteError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// Writes as long as the gate is open.
#[derive(Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) management: &'a ManagementClient,
    /// Asked right before every write.
    pub(crate) gate: Option<&'a (dyn Fn() -> bool + Send + Sync)>,
    /// The broker deletes a queue only if it is empty and unused. It supports this for classic queues only.
    pub(crate) guard: bool,
}

impl Writer<'_> {
    pub(crate) async fn carry_out(self, doing: &str, step: &Step) -> Result<(), WriteError> {
        let vhost = self.management.vhost();
        match step {
            Step::MarkBusiness { business, namespace, instead } => {
                let path = ["exchanges", vhost, &names::owner_mark(business)];
                if *instead {
                    // Its arguments can't be changed.
                    self.delete(doing, &path).await?;
                }
                self.put(doing, &path, &reserved::body(namespace)).await
            }
            Step::UnmarkBusiness(business) => {
                self.delete(doing, &["exchanges", vhost, &names::owner_mark(business)]).await
            }
            Step::PutPolicy(policy) => {
                let body = json!({
                    "pattern": policy.pattern, "apply-to": policy.apply_to, "priority": policy.priority,
                    "definition": policy.definition,
                });
                let _one_at_a_time = self.management.one_policy_at_a_time().await;
                self.put(doing, &["policies", vhost, &policy.name], &body).await
            }
            Step::PutQueue(queue) => {
                let body = json!({ "durable": true, "auto_delete": false, "arguments": queue_arguments(queue) });
                self.put(doing, &["queues", vhost, &queue.name], &body).await
            }
            Step::PutExchange(exchange) => {
                let body = json!({
                    "type": exchange_kind(exchange.kind), "durable": true, "auto_delete": false,
                    "arguments": exchange_arguments(exchange),
                });
                self.put(doing, &["exchanges", vhost, &exchange.name], &body).await
            }
            Step::Bind(b) => {
                let body = json!({ "routing_key": b.routing_key, "arguments": {} });
                self.check_gate()?;
                Ok(self.management.post(doing, &["bindings", vhost, "e", &b.exchange, "q", &b.queue], &body).await?)
            }
            Step::Link(link) => {
                let body = json!({ "routing_key": "", "arguments": link_arguments(link) });
                self.check_gate()?;
                Ok(self.management.post(doing, &["bindings", vhost, "e", &link.from, "e", &link.to], &body).await?)
            }
            Step::PutUser(user) => {
                // A hash computed here: the broker might use another algorithm, and the user would look changed forever.
                let body = json!({
                    "password_hash": user.password_hash(), "hashing_algorithm": HASHING, "tags": user.tags.join(","),
                });
                self.put(doing, &["users", &user.name], &body).await
            }
            Step::PutPermissions(user) => {
                let body = json!({ "configure": user.configure, "write": user.write, "read": user.read });
                self.put(doing, &["permissions", vhost, &user.name], &body).await
            }
            Step::PutUserLimits(user) => {
                for (limit, value) in user.limits.named() {
                    let path = ["user-limits", &user.name, limit];
                    match value {
                        Some(value) => self.put(doing, &path, &json!({ "value": value })).await?,
                        None => self.delete(doing, &path).await?,
                    }
                }
                Ok(())
            }
            Step::Unbind(binding) => self.unbind(doing, binding).await,
            Step::DeleteQueue(name) if self.guard => {
                self.check_gate()?;
                let path = ["queues", vhost, name];
                Ok(self.management.delete_if(doing, &path, "if-empty=true&if-unused=true").await?)
            }
            Step::DeleteQueue(name) | Step::DeleteStream(name) => self.delete(doing, &["queues", vhost, name]).await,
            Step::DeleteExchange(name) => self.delete(doing, &["exchanges", vhost, name]).await,
            Step::DeletePolicy(name) => {
                let _one_at_a_time = self.management.one_policy_at_a_time().await;
                self.delete(doing, &["policies", vhost, name]).await
            }
            Step::DeleteUser { name, .. } => self.delete(doing, &["users", name]).await,
        }
    }

    /// A binding is deleted by a key that the broker derives from its routing key and arguments: read, not computed.
    async fn unbind(self, doing: &str, binding: &actual::Binding) -> Result<(), WriteError> {
        let kind = if binding.destination_type == "queue" { "q" } else { "e" };
        let path = ["bindings", self.management.vhost(), "e", &binding.source, kind, &binding.destination];
        let listed: Vec<Listed> = match self.management.get(doing, &path, "").await {
            Ok(listed) => listed,
            // An end of it does not exist any more, so neither does the binding.
            Err(CallError::Object(_) | CallError::NotFound(_)) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        for one in listed {
            if one.routing_key == binding.routing_key && one.arguments == binding.arguments {
                let path: Vec<&str> = path.iter().copied().chain([one.properties_key.as_str()]).collect();
                self.delete(doing, &path).await?;
            }
        }
        Ok(())
    }

    async fn put(self, doing: &str, path: &[&str], body: &Value) -> Result<(), WriteError> {
        self.check_gate()?;
        Ok(self.management.put(doing, path, body).await?)
    }

    async fn delete(self, doing: &str, path: &[&str]) -> Result<(), WriteError> {
        self.check_gate()?;
        Ok(self.management.delete(doing, path).await?)
    }

    fn check_gate(self) -> Result<(), WriteError> {
        if self.gate.is_none_or(|gate| gate()) {
            return Ok(());
        }
        Err(WriteError::Stopped)
    }
}

#[derive(Deserialize)]
struct Listed {
    routing_key: String,
    properties_key: String,
    #[serde(default)]
    arguments: Map<String, Value>,
}
