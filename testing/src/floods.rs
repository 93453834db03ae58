//! What one business's client, or a stranger, can flood an edge with; while it does, the neighbours are tried. For tests and benchmarks.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::client::Client;
use crate::edge::Edge;
use crate::raw::{Raw, upgrade};
use crate::service::Service;

/// The business whose clients flood.
pub const FLOODED: &str = "flooded";
/// Answers that a flood does not wait for longer than this.
const LIMIT: Duration = Duration::from_secs(5);
/// Messages in the stream that clients with old cursors read again.
const OLD: u64 = 3_000;

/// Its declaration: a schema of two kilobytes that makes 8,100 comparisons a value.
pub fn declaration() -> String {
    let constants: Vec<_> = (0..90).map(|n| json!({"const": n})).collect();
    let references: Vec<_> = (0..90).map(|_| json!({"$ref": "#/$defs/one"})).collect();
    let costly = json!({"type": "array", "items": {"anyOf": references}, "$defs": {"one": {"anyOf": constants}}});
    let large = json!({"type": "object", "description": "x".repeat(60_000)});
    json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
        "metadata": {"name": FLOODED, "namespace": "shop"},
        "spec": {
            "clientTypes": ["app"],
            "routes": [
                {"messageType": "costly", "sendType": "ClientToServer", "queue": {"name": "costly"}, "schema": costly},
                {"messageType": "order", "sendType": "ClientToServer", "queue": {"name": "orders"}},
                {"messageType": "down", "sendType": "ServerToClient", "to": ["app"], "audience": "Everyone"},
                {"messageType": "large.1", "sendType": "ClientToServer", "queue": {"name": "orders"}, "schema": large},
                {"messageType": "large.2", "sendType": "ClientToServer", "queue": {"name": "orders"}, "schema": large},
                {"messageType": "large.3", "sendType": "ClientToServer", "queue": {"name": "orders"}, "schema": large},
            ],
            "auth": {"publicDescription": true},
            "limits": {"messagesPerSecond": 10_000, "burst": 20_000},
        },
    })
    .to_string()
}

/// A kind of flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Content that is as expensive to check as any that is checked.
    Content,
    /// Small content that costs much for its size, in many messages.
    Light,
    /// Envelopes of the largest size, nested as deeply as they may be.
    Envelopes,
    /// What is refused for its size, depth or form.
    Refused,
    /// Requests with the largest header.
    Headers,
    /// Requests that are none.
    Malformed,
    /// Tokens that nobody has signed.
    Tokens,
    /// Clients that return with an old cursor, and leave.
    Cursors,
    /// Sets of as many tags as there may be, changed again and again.
    Tags,
    /// Receipts of as many messages as one frame may name, of which none was sent.
    Receipts,
    /// Questions of the business's service who of thousands is here.
    Presence,
    /// Calls of the business's service with as many messages as there may be, for a client that does not exist.
    Batches,
    /// The description of the business, for strangers that call the edge by another name each time and read nothing.
    Descriptions,
}

impl Flood {
    /// Each of them.
    pub const ALL: [Self; 13] = [
        Self::Content,
        Self::Light,
        Self::Envelopes,
        Self::Refused,
        Self::Headers,
        Self::Malformed,
        Self::Tokens,
        Self::Cursors,
        Self::Tags,
        Self::Receipts,
        Self::Presence,
        Self::Batches,
        Self::Descriptions,
    ];

    /// Prepares what it needs, once.
    pub async fn prepare(self, edge: &Edge) -> Result<Prepared> {
        let mut cursor = None;
        if self == Self::Cursors {
            let mut client = edge.client("before", "app").business(FLOODED).connect().await?;
            cursor = Some(client.cursor());
            let service = Service::of(&edge.setup, FLOODED).await?;
            let push = |n| json!({"messageType": "down", "toUniqueId": "somebody", "content": {"n": n, "x": "x".repeat(1000)}});
            service.push_all((0..OLD).map(push)).await?;
        }
        Ok(Prepared { flood: self, cursor })
    }
}

/// A flood that can begin.
#[derive(Clone, Debug)]
pub struct Prepared {
    flood: Flood,
    cursor: Option<String>,
}

impl Prepared {
    /// Floods without end, as one of several; whatever the edge does about it.
    pub async fn run(&self, edge: &Edge, number: usize) {
        for round in 0_u64.. {
            if self.once(edge, &format!("{number}-{round}"), number).await.is_err() {
                // It is refused or closed: at once again would measure this machine's TCP.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    async fn once(&self, edge: &Edge, name: &str, number: usize) -> Result<()> {
        let client = || edge.client(name, "app").business(FLOODED);
        match self.flood {
            Flood::Content => {
                let message = json!({"id": "c", "messageType": "costly", "content": vec![-1; 480]}).to_string();
                send(client().connect().await?, |_| message.clone()).await
            }
            Flood::Light => {
                let message = json!({"id": "c", "messageType": "costly", "content": vec![-1; 4]}).to_string();
                send(client().connect().await?, |_| message.clone()).await
            }
            Flood::Envelopes => {
                let deep = format!("{}1{}", "[".repeat(58), "]".repeat(58));
                let many = vec![deep; 500].join(",");
                let message = |n| format!(r#"{{"id":"{n}","messageType":"order","content":[{many}]}}"#);
                send(client().connect().await?, message).await
            }
            Flood::Refused => {
                let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
                send(client().connect().await?, |n| match n % 3 {
                    0 => format!(r#"{{"id":"{n}","messageType":"order","content":{deep}}}"#),
                    1 => format!(r#"{{"id":"{n}","messageType":"order","content":"{}"}}"#, "x".repeat(66_000)),
                    _ => format!(r#"{{"id":"{n}","messageType":"none"#),
                })
                .await
            }
            Flood::Headers => {
                let fields: String =
                    (0..60).fold(String::new(), |fields, n| fields + &format!("x-{n}: {}\r\n", "x".repeat(490)));
                request(edge, &format!("GET /{FLOODED}/websocket/token HTTP/1.1\r\nhost: e\r\n{fields}\r\n")).await
            }
            Flood::Malformed => request(edge, "GET nonsense HTTP/9.9\r\n: \r\n\r\n").await,
            Flood::Tokens => {
                request(edge, &upgrade(&format!("/socket/forged-{number}"), "sec-websocket-protocol: wirepost.v1\r\n"))
                    .await
            }
            Flood::Cursors => {
                let cursor = self.cursor.clone().context("not prepared")?;
                client().cursor(cursor).greeted().await?.leave().await
            }
            Flood::Tags => {
                let tags = |of: u64| (0..60).map(|n| format!("tag-{of}-{n}")).collect::<Vec<_>>();
                let mut client = client().connect().await?;
                for round in 0_u64.. {
                    let tags = tags(round);
                    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
                    let url = edge.token(FLOODED, name, "app", &tags).await?;
                    let token = url.rsplit('/').next().unwrap_or_default();
                    client.send(&json!({"op": "refresh", "token": token})).await?;
                    client.control_within("refreshed", LIMIT).await?;
                }
                Ok(())
            }
            Flood::Receipts => {
                let ids: Vec<_> = (0..256).map(|n| format!("{number}-{n}")).collect();
                let frame = json!({"op": "received", "ids": ids}).to_string();
                let mut client = client().connect().await?;
                loop {
                    client.send_text(frame.clone()).await?;
                    client.control_within("error", LIMIT).await?;
                }
            }
            Flood::Presence => {
                let ids: Vec<_> = (0..10_000).map(|n| format!("client-{number}-{n}")).collect();
                call(edge, "presence", &json!({"uniqueIds": ids})).await
            }
            Flood::Batches => {
                let message = json!({"messageType": "down", "toUniqueId": "nobody", "content": "x".repeat(1000)});
                call(edge, "messages", &json!(vec![message; 256])).await
            }
            Flood::Descriptions => {
                let mut raw = Raw::connect(edge.public).await?;
                raw.send(format!("GET /{FLOODED}/asyncapi.json HTTP/1.1\r\nhost: {name}.example\r\n\r\n")).await?;
                raw.end(Duration::from_secs(1)).await.map(drop)
            }
        }
    }
}

/// One call of the business's service, whatever is answered.
async fn call(edge: &Edge, path: &str, body: &Value) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
    let call = http.post(format!("http://{}/{FLOODED}/websocket/{path}", edge.public));
    let status = call.header("x-api-key", edge.setup.api_key()).body(body.to_string()).send().await?.status();
    anyhow::ensure!(status.is_success(), "{status}");
    Ok(())
}

/// Sends messages until the connection ends; up to 32 wait for their answers.
async fn send(mut client: Client, message: impl Fn(u64) -> String) -> Result<()> {
    const AHEAD: u64 = 32;
    for n in 0_u64.. {
        client.send_text(message(n)).await?;
        if n >= AHEAD {
            timeout(LIMIT, client.answer()).await??;
        }
    }
    Ok(())
}

async fn request(edge: &Edge, text: &str) -> Result<()> {
    let mut raw = Raw::connect(edge.public).await?;
    raw.send(text).await?;
    timeout(LIMIT, raw.head()).await??;
    Ok(())
}

/// What a neighbour of another business got, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// From a client's message to its ack.
    pub ack: Duration,
    /// From a service's push to its receipt.
    pub push: Duration,
}

/// A client of the first declared business, and its service.
#[derive(Debug)]
pub struct Neighbour {
    client: Client,
    service: Service,
    name: &'static str,
    message: &'static str,
    rounds: u64,
}

impl Neighbour {
    /// Connects; it sends messages of this type, and is pushed those of type `down` or `till.notice`.
    pub async fn connect(edge: &Edge, message: &'static str) -> Result<Self> {
        Self::named("neighbour", edge, message).await
    }

    /// One of several.
    pub async fn named(name: &'static str, edge: &Edge, message: &'static str) -> Result<Self> {
        let (client, service) = (edge.client(name, "app").connect().await?, Service::connect(&edge.setup).await?);
        Ok(Self { client, service, name, message, rounds: 0 })
    }

    /// Is served once; every probe answers.
    pub async fn served(&mut self, edge: &Edge, pushed: &str) -> Result<Served> {
        self.rounds += 1;
        let begun = Instant::now();
        let id = self.rounds.to_string();
        self.client.send_acked(&json!({"id": id, "messageType": self.message})).await?;
        let ack = begun.elapsed();
        let begun = Instant::now();
        let push: Value = json!({"messageType": pushed, "toUniqueId": self.name, "content": {"n": self.rounds}});
        self.service.push(&push).await?;
        anyhow::ensure!(self.client.numbers(1).await? == [self.rounds]);
        let push = begun.elapsed();
        for probe in ["/livez", "/readyz"] {
            anyhow::ensure!(edge.admin(probe).await?.0 == 200, "{probe}");
        }
        Ok(Served { ack, push })
    }
}
