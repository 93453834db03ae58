//! Services: they push by AMQP, and by HTTP calls to an edge, alone or in batches.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rand::{random_bool, random_range};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};
use wirepost_runtime::clock;

use crate::{
    client::{Clients, Phase},
    declaration::API_KEY,
    edge::PORT,
    network::Host,
    oracle::{Answer, RECOVERY, Sender, Sends},
    several,
};

/// How long services push in the calm: only for a while, so that everybody can reach the end.
const PUSHES: Duration = Duration::from_secs(15);
/// A service gives a publish up after this time.
const PATIENCE: Duration = Duration::from_secs(20);

/// One service of a business.
pub(crate) struct Service {
    pub(crate) shared: Arc<Clients>,
    pub(crate) business: String,
    pub(crate) number: u32,
}

impl Service {
    /// Pushes until the end.
    pub(crate) async fn live(self) {
        let Self { shared, business, number } = &self;
        let mut host = shared.world.host(&format!("service of {business}"));
        let (mut count, mut calm_since) = (0, None);
        loop {
            let pause = if random_bool(0.1) { 9000 } else { 2000 };
            sleep(Duration::from_millis(random_range(0..pause))).await;
            if *shared.phase.borrow() != Phase::Trouble {
                let since: &mut Instant = calm_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PUSHES {
                    return;
                }
            }
            let (call, several) = (random_bool(0.3), self.several());
            if call {
                host.delay = Duration::from_millis(random_range(1..20));
                self.call(&host, several, calm_since).await;
                continue;
            }
            for _ in 0..several {
                count += 1;
                let (push, named) = self.push(&format!("{business}{number}-{count}"));
                let headers = (!named.is_empty()).then(|| several::headers(&named));
                let publishing = shared.cluster.publish(business, push.to_string(), headers);
                let _ = timeout(PATIENCE, publishing).await;
            }
        }
    }

    /// How many messages at once: at times more than a client's queue has room for; of the business in trouble, while another
    /// one is to have none, more than a lane sends before it waits for confirms.
    fn several(&self) -> u64 {
        let oracle = &self.shared.oracle;
        let (often, many) = if oracle.spares() && !oracle.is_spared(&self.business) { (0.08, 250) } else { (0.02, 40) };
        random_range(1..if random_bool(often) { many } else { random_range(2..9) })
    }

    /// Pushes by one call.
    async fn call(&self, host: &Host, several: u64, calm_since: Option<Instant>) {
        let call = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let edge = &self.shared.edges[random_range(0..self.shared.edges.len())];
        let (name, began) = (format!("{} of {}", self.number, self.business), Instant::now());
        let pushes: Vec<_> = (0..several).map(|number| self.push(&format!("h{call}:push:{number}"))).collect();
        tracing::info!(name, call, several, edge, "calls");
        let sender =
            Sender { name: &name, business: &self.business, connection: call, calm: calm_since, greeted: None };
        match timeout(PATIENCE, self.answers(host, edge, call, &pushes)).await {
            Ok(Ok(answers)) => {
                for ((push, _), (answer, refused)) in pushes.iter().zip(answers) {
                    // There may be no route for it, or it may have expired.
                    let excused = push["messageType"] != "note" || push["expiresAt"].is_i64();
                    let id = push["id"].as_str().unwrap_or_default();
                    self.shared.oracle.answered(&sender, id, answer, &refused, excused);
                }
            }
            failed => {
                tracing::info!(name, call, ?failed, "no answer to a call");
                if calm_since.is_some_and(|calm| began >= calm + RECOVERY) {
                    self.shared.oracle.violation(format!("{name}: no answer to call {call} though nothing is wrong"));
                }
            }
        }
    }

    async fn answers(
        &self,
        host: &Host,
        edge: &str,
        call: u64,
        pushes: &[(Value, Vec<String>)],
    ) -> Result<Vec<(Answer, Vec<String>)>> {
        let alone = pushes.len() == 1 && random_bool(0.5);
        let all: Vec<&Value> = pushes.iter().map(|(push, _)| push).collect();
        let body = if alone { all[0].to_string() } else { json!(all).to_string() };
        let mut socket = host.connect_to(edge, PORT).await?;
        let (life, since) = (self.shared.oracle.edge(edge), Instant::now());
        for (number, (push, to)) in (0..).zip(pushes) {
            let [id, kind] = ["id", "messageType"].map(|field| push[field].as_str().unwrap_or_default());
            let sends = Sends { business: &self.business, edge: &life, connection: call, number, kind, to, since };
            self.shared.oracle.sends(id, &sends);
        }
        let head = format!(
            "POST /{}/websocket/messages HTTP/1.1\r\nhost: {edge}\r\nx-api-key: {API_KEY}\r\n\
             content-length: {}\r\n\r\n",
            self.business,
            body.len()
        );
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(body.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("it broke off")?;
        ensure!(head.contains(&format!("content-length: {}", body.len())), "it broke off");
        tracing::info!(edge, body, "answered");
        let body: Value = serde_json::from_str(body)?;
        let results = match &body["data"] {
            Value::Array(results) => results.clone(),
            Value::Null => vec![body.clone(); pushes.len()],
            result => vec![result.clone()],
        };
        ensure!(results.len() == pushes.len(), "{} results of {} pushes", results.len(), pushes.len());
        let mut answers = Vec::new();
        for (result, (_, named)) in results.iter().zip(pushes) {
            match several::answer(result, named) {
                Ok(answer) => answers.push(answer),
                Err(wrong) => {
                    self.shared.oracle.violation(wrong.clone());
                    bail!(wrong);
                }
            }
        }
        Ok(answers)
    }

    /// Any push, and the businesses that it names.
    fn push(&self, id: &str) -> (Value, Vec<String>) {
        let (mut push, named) = (push(id), several::businesses(&self.shared.sharing, &self.business));
        if !named.is_empty() {
            push["businesses"] = json!(named);
        }
        (push, named)
    }
}

/// Any push.
fn push(id: &str) -> Value {
    let mut body = json!({
        "id": id,
        "messageType": if random_bool(0.3) { "news" } else { "note" },
        "content": "x".repeat(random_range(0..random_range(1..2000))),
    });
    match random_range(0..4) {
        0 => body["toUniqueId"] = "*".into(),
        1 => body["toUniqueId"] = ["alice", "bob", "carol"][random_range(0..3)].into(),
        2 => body["tags"] = vec![["red", "blue", "green"][random_range(0..3)]].into(),
        _ => {
            body["toUniqueId"] = ["*", "alice", "bob"][random_range(0..3)].into();
            body["tags"] = json!(["red"]);
        }
    }
    if random_bool(0.1) {
        body["expiresAt"] = (clock::now_ms() + random_range(50..15_000)).into();
    }
    body
}
