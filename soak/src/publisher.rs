//! Services that push: by AMQP, and by HTTP. Each repeats what is not confirmed, with the same id, as every service must.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use wirepost_testing::service::Service;

use crate::chance::Chance;
use crate::member::IDENTITIES;
use crate::plan::{CHANGED_KIND, PLANS, Plan, TAGS};
use crate::record::{Message, MessageNo, Outcome, To, What};
use crate::world::{STEP, Stage, World};

const RETRY: Duration = Duration::from_millis(300);
/// One push in this many begins a burst.
const BURST: usize = 60;
const BURST_LENGTH: usize = 40;
/// One push in this many expires soon.
const EXPIRING: usize = 20;
const EXPIRES_MS: u64 = 4000;
/// The result of a push that had expired when it was sent.
const EXPIRED: u64 = 40_007;
/// The result of a call whose body came too late.
const TOO_LATE: u64 = 40_801;
/// The result for a business that does not accept a push.
const NOT_ACCEPTED: u64 = 40_302;
/// One push in this many that could be for several businesses is.
const SHARED: usize = 3;
/// One of these in this many names a business that never accepts it.
const STRANGER: usize = 6;
/// Messages of one HTTP call at most.
const BATCH: usize = 3;

/// How a service reaches the business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Amqp,
    Http,
}

/// A message, and what is sent for it.
struct Push {
    message: MessageNo,
    envelope: Value,
    /// The businesses that it names.
    shared: Vec<&'static str>,
}

/// An answer, and the businesses that got nothing of the push, whatever the others did: those that do not accept it, and those
/// of which the edge could not say.
#[derive(Default)]
struct Answer {
    outcome: Option<Outcome>,
    refused: Vec<usize>,
    unknown: Vec<usize>,
    /// What an answer can't say.
    wrong: Option<String>,
}

/// A service of one business.
pub struct Publisher {
    world: Arc<World>,
    business: usize,
    plan: Plan,
    by: By,
    name: String,
    seq: u64,
    /// The mean of the pause between two messages.
    pace: Duration,
    service: Option<Service>,
    /// To whom.
    identities: Vec<String>,
    chance: Chance,
}

impl Publisher {
    pub fn new(world: &Arc<World>, business: usize, by: By, pace: Duration, seed: u64) -> Self {
        let plan = PLANS[business];
        let name = format!("{}-{by:?}", plan.name).to_lowercase();
        let chance = Chance::new(seed, &name);
        let identities = IDENTITIES.map(str::to_owned).to_vec();
        Self { world: Arc::clone(world), business, plan, by, name, seq: 0, pace, service: None, identities, chance }
    }

    /// To these identities as well.
    #[must_use]
    pub fn also_to(mut self, identities: Vec<String>) -> Self {
        self.identities.extend(identities);
        self
    }

    /// Pushes until nothing new is to be sent, and then until all of it is confirmed.
    pub async fn publish(mut self) {
        let mut burst = 0_usize;
        while self.world.stage() == Stage::Talking {
            let batch = if self.by == By::Http { 1 + self.chance.below(BATCH) } else { 1 };
            let pushes: Vec<Push> = (0..batch).map(|_| self.push(batch == 1)).collect();
            self.confirm(pushes).await;
            burst = if burst == 0 && self.chance.once_in(BURST) { BURST_LENGTH } else { burst.saturating_sub(1) };
            if burst == 0 {
                let pace = self.pace.as_secs_f64();
                sleep(self.chance.seconds(pace * 0.2, pace * 1.8)).await;
            }
        }
    }

    /// The next message.
    fn push(&mut self, in_order: bool) -> Push {
        let identity = || To::Identity(IDENTITIES[0].to_owned());
        let (kind, to) = match self.chance.below(10) {
            0..=3 if self.plan.tags => {
                ("note", self.chance.pick(&TAGS).map_or_else(identity, |tag| To::Tag((*tag).into())))
            }
            0 | 1 => ("note", To::Everyone),
            2 => ("bill", self.identity()),
            3 => (CHANGED_KIND, To::Everyone),
            _ => ("note", self.identity()),
        };
        let shared = if kind == "bill" { Vec::new() } else { self.shared() };
        let expires_at = self.chance.once_in(EXPIRING).then(|| now_ms() + EXPIRES_MS);
        let id = format!("{}-{}", self.name, self.seq);
        let mut envelope = json!({"id": id, "messageType": kind, "content": {"pad": "x".repeat(self.plan.content)}});
        match &to {
            To::Identity(identity) => envelope["toUniqueId"] = json!(identity),
            To::Tag(tag) => envelope["tags"] = json!([tag]),
            To::Everyone => envelope["toUniqueId"] = json!("*"),
            To::Queues(_) => {}
        }
        let named: Vec<&str> = shared.iter().map(|business| PLANS[*business].name).collect();
        if !named.is_empty() {
            envelope["businesses"] = json!(named);
        }
        if let Some(expires_at) = expires_at {
            envelope["expiresAt"] = json!(expires_at);
        }
        let message = Message {
            id,
            business: self.business,
            shared,
            sender: self.name.clone(),
            seq: self.seq,
            in_order,
            kind: kind.to_owned(),
            to,
            expires_at,
        };
        self.seq += 1;
        self.world.opens();
        Push { message: self.world.journal.message(message), envelope, shared: named }
    }

    /// The businesses that a push names; none: for its own clients alone. At least one of them accepts it at any time.
    fn shared(&mut self) -> Vec<usize> {
        let others = self.plan.accepted_by();
        if others.is_empty() || !self.chance.once_in(SHARED) {
            return Vec::new();
        }
        let mut named: Vec<usize> = others.into_iter().filter(|_| !self.chance.once_in(3)).collect();
        if named.iter().all(|other| PLANS[*other].changes) || !self.chance.once_in(4) {
            named.push(self.business);
        }
        let is_stranger = |other: &usize| *other != self.business && !PLANS[*other].accepts(&self.plan);
        let strangers: Vec<usize> = (0..PLANS.len()).filter(is_stranger).collect();
        if self.chance.once_in(STRANGER)
            && let Some(stranger) = self.chance.pick(&strangers).filter(|stranger| !named.contains(stranger))
        {
            named.push(*stranger);
        }
        named
    }

    fn identity(&mut self) -> To {
        To::Identity(self.chance.pick(&self.identities).cloned().unwrap_or_default())
    }

    /// Until each is confirmed, or the run is over.
    async fn confirm(&mut self, mut pushes: Vec<Push>) {
        while !pushes.is_empty() && self.world.stage() < Stage::Leaving {
            for push in &pushes {
                self.world.journal.note(What::Offered { message: push.message });
            }
            let outcomes = match self.by {
                By::Amqp => vec![Answer { outcome: self.by_amqp(&pushes[0]).await, ..Answer::default() }],
                By::Http => self.by_http(&pushes).await,
            };
            let mut rest = Vec::new();
            for (push, answer) in pushes.into_iter().zip(outcomes) {
                let outcome = answer.outcome.unwrap_or(Outcome::Unknown);
                let alone = outcome != Outcome::NotArrived;
                for (businesses, refused) in [(answer.refused, true), (answer.unknown, false)] {
                    for business in businesses {
                        self.world.journal.note(What::Declined { message: push.message, business, refused, alone });
                    }
                }
                if let Some(wrong) = answer.wrong {
                    self.world.journal.broken(format!("{}: {wrong}", push.envelope["id"]));
                }
                self.world.answered(push.message, outcome);
                // What has expired is refused for good.
                let over = push.envelope["expiresAt"].as_u64().is_some_and(|at| at < now_ms());
                if outcome == Outcome::Confirmed || over {
                    self.world.closes();
                } else {
                    rest.push(push);
                }
            }
            pushes = rest;
            if !pushes.is_empty() {
                sleep(RETRY).await;
            }
        }
    }

    async fn by_amqp(&mut self, push: &Push) -> Option<Outcome> {
        let service = match self.service.take() {
            Some(service) => service,
            None => match timeout(STEP, Service::of(&self.world.setup, self.plan.name)).await {
                Ok(Ok(service)) => service,
                // Nothing was sent.
                _ => return Some(Outcome::NotArrived),
            },
        };
        let publish = async {
            let Push { envelope, shared, .. } = push;
            if shared.is_empty() { service.push(envelope).await } else { service.share(envelope, shared).await }
        };
        match timeout(STEP, publish).await {
            Ok(Ok(())) => {
                self.service = Some(service);
                Some(Outcome::Confirmed)
            }
            // Returned, refused, or no answer. A channel that had no answer is thrown away: what it still holds may arrive.
            _ => None,
        }
    }

    /// An answer for each, `None` where there was none.
    async fn by_http(&mut self, pushes: &[Push]) -> Vec<Answer> {
        let envelopes: Vec<&Value> = pushes.iter().map(|push| &push.envelope).collect();
        let Ok(place) = self.world.fleet.pick(&mut self.chance) else {
            let none = |_| Answer { outcome: Some(Outcome::NotArrived), ..Answer::default() };
            return pushes.iter().map(none).collect();
        };
        match self.call(place.address(), &json!(envelopes)).await {
            Ok(results) => {
                let find = |push: &Push| results.iter().find(|result| result["id"] == push.envelope["id"]);
                let answer = |push| find(push).or(results.first()).map(|result| answer(result, &push.shared));
                pushes.iter().map(|push| answer(push).unwrap_or_default()).collect()
            }
            Err(_) => pushes.iter().map(|_| Answer::default()).collect(),
        }
    }

    async fn call(&self, edge: std::net::SocketAddr, envelopes: &Value) -> Result<Vec<Value>> {
        let url = format!("http://{edge}/{}/websocket/messages", self.plan.name);
        let key = self.world.control.key(&self.world.setup, self.business);
        let request = self.world.http.post(url).header("x-api-key", key);
        let answer = request.body(envelopes.to_string()).send().await?;
        let body: Value = serde_json::from_slice(&answer.bytes().await?)?;
        let results = match &body["data"] {
            Value::Array(results) => results.clone(),
            // The whole call was refused: the result is that of each.
            _ => vec![json!({"result": body["result"].as_u64().context("an answer without a result")?})],
        };
        let wrong = |result: &Value, right: &[u64]| {
            let number = result["result"].as_u64().unwrap_or_default();
            (40_000..50_000).contains(&number) && !right.contains(&number)
        };
        let wrong = |result: &&Value| match result["businesses"].as_array() {
            Some(each) => each.iter().any(|one| wrong(one, &[EXPIRED, TOO_LATE, NOT_ACCEPTED])),
            None => wrong(result, &[EXPIRED, TOO_LATE]),
        };
        if let Some(result) = results.iter().find(wrong) {
            self.world.journal.broken(format!("a push by HTTP was refused: {result}"));
        }
        Ok(results)
    }
}

fn outcome(result: &Value) -> Outcome {
    match (result["result"].as_u64(), result["mayHaveArrived"].as_bool()) {
        (Some(0), _) => Outcome::Confirmed,
        (Some(50_401), _) | (_, Some(true)) => Outcome::Unknown,
        _ => Outcome::NotArrived,
    }
}

/// Those that take a push have one answer; each that it names has one.
fn answer(result: &Value, named: &[&str]) -> Answer {
    let Some(each) = result["businesses"].as_array() else {
        return Answer { outcome: Some(outcome(result)), ..Answer::default() };
    };
    let mut taking = each.iter().map(outcome).filter(|outcome| *outcome != Outcome::NotArrived);
    let first = taking.next();
    let whole = each.iter().map(|one| one["business"].as_str().unwrap_or_default()).eq(named.iter().copied());
    let wrong =
        (!whole || taking.any(|outcome| Some(outcome) != first)).then(|| format!("answers for {named:?}: {result}"));
    let taken = first;
    let mut answer = Answer { outcome: Some(taken.unwrap_or(Outcome::NotArrived)), wrong, ..Answer::default() };
    for one in each.iter().filter(|one| outcome(one) == Outcome::NotArrived) {
        let business = PLANS.iter().position(|plan| one["business"] == plan.name);
        if one["result"] == NOT_ACCEPTED {
            answer.refused.extend(business);
        } else if taken.is_some() {
            answer.unknown.extend(business);
        }
    }
    answer
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
