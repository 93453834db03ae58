//! Manual changes on the broker, behind the operator's back, and what the broker contains then.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use serde_json::{Value, json};
use wirepost_core::names;

use crate::broker::{Vhost, next_body, publish, publish_for};
use crate::setup::Setup;

/// What a vhost has and who may use it: `queue wirepost.…` → its settings. Of the passwords of our users and of the broker's own
/// nothing: a hash has a new salt each time.
pub type Picture = BTreeMap<String, Value>;

impl Setup {
    /// What the management API answers; names need no escaping here.
    pub async fn ask(&self, path: &[&str]) -> Result<Value> {
        let text = self.vhost().broker.call("GET", &format!("/api/{}", path.join("/")), "").await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Everything of the vhost, ours and others'.
    pub async fn picture(&self) -> Result<Picture> {
        let vhost = &self.vhost().name;
        let mut picture = Picture::new();
        let definitions = self.ask(&["definitions", vhost]).await?;
        for (kind, plural) in [("exchange", "exchanges"), ("queue", "queues"), ("policy", "policies")] {
            for object in definitions[plural].as_array().into_iter().flatten() {
                picture.insert(format!("{kind} {}", text(&object["name"])), object.clone());
            }
        }
        for binding in definitions["bindings"].as_array().into_iter().flatten() {
            let [from, to, key] = ["source", "destination", "routing_key"].map(|end| text(&binding[end]));
            picture.insert(format!("binding {from} -> {to} with '{key}'"), binding.clone());
        }
        let users = self.ask(&["users"]).await?;
        for permission in self.ask(&["vhosts", vhost, "permissions"]).await?.as_array().into_iter().flatten() {
            let name = text(&permission["user"]);
            // The operator makes it at a time of its own: it belongs to no business.
            if names::is_edge_user(&name) {
                continue;
            }
            picture.insert(format!("permission {name}"), permission.clone());
            let user = users.as_array().into_iter().flatten().find(|user| user["name"] == permission["user"]);
            let mut user = user.cloned().unwrap_or_default();
            if names::owner(&name).is_some() || name == "guest" {
                user["password_hash"].take();
            }
            picture.insert(format!("user {name}"), user);
        }
        Ok(picture)
    }

    /// The policy that is in force on a queue or stream, with what it sets.
    pub async fn policy_in_force(&self, queue: &str) -> Result<(String, Value)> {
        // Statistics would be seconds old.
        let queue = self.ask(&["queues", &self.vhost().name, &format!("{queue}?disable_stats=true")]).await?;
        Ok((text(&queue["policy"]), queue["effective_policy_definition"].clone()))
    }

    /// Objects of other people in the vhost, with names that come as near to ours as a name can, and a message in a queue.
    pub async fn neighbours(&self) -> Result<()> {
        let vhost = &self.vhost().name;
        for name in
            ["shop", "wirepost", "wirepostx.payments.receive", "my.wirepost.payments.push", "Wirepost.payments.dlx"]
        {
            self.call("PUT", &["exchanges", vhost, name], &json!({"type": "topic", "durable": true})).await?;
        }
        for name in ["shop.orders", "wirepost", "wirepostx.payments.q.orders", "my.wirepost.payments.q.orders"] {
            self.call("PUT", &["queues", vhost, name], &json!({"durable": true})).await?;
        }
        for (from, to) in [("shop", "shop.orders"), ("amq.topic", "wirepostx.payments.q.orders")] {
            self.call("POST", &["bindings", vhost, "e", from, "q", to], &json!({"routing_key": "order.#"})).await?;
        }
        for name in ["shop", "wirepost", "my.wirepost.payments.q.orders"] {
            let policy = json!({"pattern": "^shop", "apply-to": "queues", "definition": {"max-length": 7}});
            self.call("PUT", &["policies", vhost, name], &policy).await?;
        }
        // One has a name of ours, but not our tag.
        for (name, tags) in
            [("shop", "monitoring"), ("wirepost.payments.person", "management"), ("wirepost.person", "")]
        {
            // Users are the whole broker's.
            let name = format!("{name}-{vhost}");
            self.call("PUT", &["users", &name], &json!({"password": "secret", "tags": tags})).await?;
            let rights = json!({"configure": "^$", "write": "^shop$", "read": ".*"});
            self.call("PUT", &["permissions", vhost, &name], &rights).await?;
        }
        let (_connection, channel) = self.vhost().channel().await?;
        publish(&channel, "shop", "order.new", b"theirs").await
    }
}

/// Of these people: what is not called like an object of ours, or is a user of theirs.
pub fn of_others(picture: &Picture) -> Picture {
    let theirs = |key: &str| {
        let name = key.split(' ').nth(1).unwrap_or_default();
        names::owner(name).is_none() || name.contains(".person-")
    };
    // Shared policies, the marker of the vhost's installation and its control stream have no business in their names.
    let of_all = [names::INSTALLATION, names::CONTROL];
    let shared = |key: &str| key.starts_with("policy wirepost.") || key.split(' ').any(|word| of_all.contains(&word));
    picture
        .iter()
        .filter(|(key, _)| theirs(key) && !shared(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What is called like an object or user of this business.
pub fn of_business(picture: &Picture, business: &str) -> Picture {
    let its = |key: &str| key.split(' ').nth(1).and_then(names::owner) == Some(business) && !key.contains(".person-");
    picture.iter().filter(|(key, _)| its(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What two pictures differ in, for people.
pub fn differences(before: &Picture, after: &Picture) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| format!("{key}: was {:?}, is {:?}", before.get(key), after.get(key)))
        .collect()
}

/// Publishes these numbers one by one, each after the confirm of the one before; returns those that were confirmed. Like a careful
/// service: persistent, mandatory, with a new channel after a refusal.
pub async fn publish_numbers(vhost: &Vhost, exchange: &str, key: &str, numbers: Range<u64>) -> Result<Vec<u64>> {
    publish_each(vhost, numbers, async |channel, body| publish(channel, exchange, key, body).await).await
}

/// The same as an edge does with what clients of business `payments` have sent as `order.new` for this queue.
pub async fn publish_orders(vhost: &Vhost, queue: &str, numbers: Range<u64>) -> Result<Vec<u64>> {
    let receive = "wirepost.payments.receive";
    publish_each(vhost, numbers, async |channel, body| publish_for(channel, receive, "order.new", queue, body).await)
        .await
}

async fn publish_each(
    vhost: &Vhost,
    numbers: Range<u64>,
    publish: impl AsyncFn(&Channel, &[u8]) -> Result<()>,
) -> Result<Vec<u64>> {
    let (connection, mut channel) = vhost.channel().await?;
    let mut confirmed = Vec::new();
    for number in numbers {
        if !channel.status().connected() {
            channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
        }
        if publish(&channel, number.to_string().as_bytes()).await.is_ok() {
            confirmed.push(number);
        }
    }
    Ok(confirmed)
}

/// The first `count` messages of a queue as numbers, consumed; of a stream from its beginning on, where they stay.
pub async fn read_numbers(vhost: &Vhost, queue: &str, count: usize) -> Result<Vec<u64>> {
    read_numbers_over(&vhost.connect().await?, queue, count).await
}

/// The same over any connection.
pub async fn read_numbers_over(connection: &Connection, queue: &str, count: usize) -> Result<Vec<u64>> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let mut from = FieldTable::default();
    if queue.ends_with(".stream") {
        from.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    }
    let consume = channel.basic_consume(queue.into(), "numbers".into(), BasicConsumeOptions::default(), from);
    let mut consumer = consume.await?;
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let body = next_body(&mut consumer).await.with_context(|| format!("after {numbers:?} of {queue}"))?;
        numbers.push(std::str::from_utf8(&body)?.parse()?);
    }
    Ok(numbers)
}

/// Errors unless `read` has every number of `sent` once, and could be two rows in order, one mixed into the other: what came straight,
/// and what was moved back later.
pub fn all_there_in_two_rows(sent: &[u64], read: &[u64]) -> Result<()> {
    let mut sorted = read.to_vec();
    sorted.sort_unstable();
    ensure!(sorted == sent, "sent {sent:?}, read {read:?}");
    // The last number of either row so far.
    let (mut ahead, mut behind) = (0, 0);
    for &number in read {
        if number > ahead {
            ahead = number;
        } else {
            ensure!(number > behind, "{number} comes after {behind} and {ahead} in {read:?}");
            behind = number;
        }
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
