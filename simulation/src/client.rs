//! Clients: they connect, read at their own pace, send, refresh, vanish, and come back with their cursor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use futures_util::{SinkExt, StreamExt};
use rand::{random_bool, random_range};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{Role, WebSocketConfig},
    },
};
use wirepost_edge::identity::{
    grant::Grant,
    keys::KeyRing,
    ticket::{self, Purpose, Ticket},
};
use wirepost_runtime::clock;

use crate::{
    broker::Cluster,
    edge::PORT,
    network::{End, Host, World},
    oracle::{Oracle, Sends, View},
    several,
};

/// In the calm, clients send for this long.
const SENDS: Duration = Duration::from_secs(15);
/// From then on a client stays.
const STAYS: Duration = Duration::from_secs(20);

/// Where the simulation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Anything may happen.
    Trouble,
    /// Nothing more goes wrong: clients stay and read.
    Calm,
    /// Clients go.
    End,
}

/// What clients share.
pub(crate) struct Clients {
    pub(crate) world: World,
    pub(crate) oracle: Oracle,
    pub(crate) cluster: Cluster,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) edges: Vec<String>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) numbers: AtomicU64,
    pub(crate) tags: Vec<String>,
    pub(crate) others: Vec<String>,
    /// Businesses whose messages are for clients of the other one too, at times.
    pub(crate) sharing: Vec<String>,
}

/// One client.
pub(crate) struct Client {
    shared: Arc<Clients>,
    view: View,
    resume: Option<Resume>,
}

/// The newest resume token.
struct Resume {
    token: String,
    tags: Vec<String>,
    ends_at: i64,
}

impl Client {
    pub(crate) fn new(shared: Arc<Clients>, view: View) -> Self {
        Self { shared, view, resume: None }
    }

    /// Lives until the end.
    pub(crate) async fn live(mut self) {
        let mut host = self.shared.world.host(&format!("of {}", self.view.name));
        loop {
            let phase = *self.shared.phase.borrow();
            if phase == Phase::End {
                return;
            }
            if phase == Phase::Trouble {
                sleep(Duration::from_millis(random_range(0..6000))).await;
            } else {
                sleep(Duration::from_millis(random_range(0..1000))).await;
            }
            if random_bool(0.05) && phase == Phase::Trouble {
                self.view.forget();
            }
            let spared = self.shared.oracle.is_spared(&self.view.business);
            host.room = if random_bool(0.3) && !spared { random_range(300..3000) } else { 64 << 10 };
            host.delay = Duration::from_millis(random_range(1..40));
            if let Err(error) = self.connection(&host).await {
                tracing::info!(client = self.view.name, %error, "connection over");
            }
        }
    }

    fn some_tags(&self) -> Vec<String> {
        self.shared.tags.iter().filter(|_| random_bool(0.5)).cloned().collect()
    }

    fn token(&self, tags: &[String]) -> String {
        let now = clock::now_ms();
        let short = *self.shared.phase.borrow() == Phase::Trouble && random_bool(0.4);
        let session = if short { random_range(15_000..40_000) } else { 3_600_000 };
        let ticket = Ticket {
            purpose: Purpose::Connect,
            business: self.view.business.clone(),
            unique_id: self.view.unique_id.clone(),
            client_type: self.view.client_type.clone(),
            tags: tags.to_vec(),
            session_ends_at: now + session,
            expires_at: now + 30_000,
            id: rand::random(),
            grant: Grant::new(now, 0, 0),
        };
        ticket::seal(&self.shared.keys, &ticket)
    }

    async fn connection(&mut self, host: &Host) -> Result<()> {
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let edge = self.shared.edges[random_range(0..self.shared.edges.len())].clone();
        let deadline = Instant::now() + Duration::from_secs(10);
        // A token that is refused is not tried again: a refresh whose answer was lost may have replaced it.
        let resume = self.resume.take().filter(|resume| resume.ends_at > clock::now_ms() && random_bool(0.6));
        let (token, tags) = if let Some(resume) = resume {
            (resume.token, resume.tags)
        } else {
            let tags = self.some_tags();
            (self.token(&tags), tags)
        };
        self.view.begins(number, tags);
        let opening = async {
            let socket = host.connect_to(&edge, PORT).await?;
            let life = self.shared.oracle.edge(&edge);
            anyhow::Ok((life, self.open(socket, &edge, &token).await?))
        };
        let Ok(opened) = timeout_at(deadline, opening).await else { bail!("no answer") };
        let (life, socket) = opened?;
        self.view.edge = life;
        tracing::info!(client = self.view.name, connection = number, edge, "connected");
        self.converse(socket, number).await
    }

    async fn open(&self, mut socket: End, edge: &str, token: &str) -> Result<WebSocketStream<End>> {
        let query = self.view.cursor.as_ref().map(|cursor| format!("?cursor={cursor}")).unwrap_or_default();
        let request = format!(
            "GET /socket/{token}{query} HTTP/1.1\r\nhost: {edge}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: wirepost.v1\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = answer.windows(4).position(|part| part == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut answer).await? == 0 {
                bail!("refused");
            }
        };
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            bail!("{}", String::from_utf8_lossy(&answer[..end]));
        }
        // Each read would fill 128 KiB with zeros.
        let config = Some(WebSocketConfig::default().read_buffer_size(2048));
        Ok(WebSocketStream::from_partially_read(socket, answer.split_off(end), Role::Client, config).await)
    }

    /// Reads and sends until one of the two has had enough.
    async fn converse(&mut self, mut socket: WebSocketStream<End>, number: u64) -> Result<()> {
        let mut phase = self.shared.phase.clone();
        let trouble = *phase.borrow() == Phase::Trouble;
        let stays =
            Duration::from_millis(if random_bool(0.3) { random_range(0..500) } else { random_range(0..40_000) });
        let leaves = Instant::now() + stays;
        let spared = self.shared.oracle.is_spared(&self.view.business);
        let slow = if trouble && !spared && random_bool(0.3) { random_range(1..3000) } else { 0 };
        // Who is slow has much before it that was chosen for its tags.
        let refreshes = if slow > 0 { 0.6 } else { 0.2 };
        let (mut next_send, mut count) = (Instant::now() + Duration::from_millis(random_range(50..3000)), 0);
        let mut calm_since = None;
        loop {
            let now = *phase.borrow_and_update();
            match now {
                Phase::End => {
                    self.at_the_end(number, calm_since);
                    let _ = socket.close(None).await;
                    return Ok(());
                }
                Phase::Calm => {
                    calm_since.get_or_insert_with(Instant::now);
                    self.view.calm.get_or_insert_with(Instant::now);
                }
                Phase::Trouble if Instant::now() >= leaves => {
                    if random_bool(0.5) {
                        socket.get_ref().cut();
                    } else if random_bool(0.7) {
                        let _ = socket.close(None).await;
                    }
                    return Ok(());
                }
                Phase::Trouble => {}
            }
            let wake = if now == Phase::Trouble { leaves.min(next_send) } else { next_send };
            tokio::select! {
                biased;
                _ = phase.changed() => {}
                frame = socket.next() => {
                    match frame {
                        Some(Ok(Message::Text(text))) => {
                            let frame: Value = serde_json::from_str(&text)?;
                            self.shared.oracle.sees(&mut self.view, &text, &frame);
                            self.keep_token(&frame);
                        }
                        Some(Ok(Message::Close(close))) => {
                            tracing::info!(client = self.view.name, ?close, "closed by the edge");
                            return Ok(());
                        }
                        Some(Ok(_)) => {}
                        Some(Err(error)) => bail!(error),
                        None => bail!("ended"),
                    }
                    if slow > 0 && now == Phase::Trouble {
                        sleep(Duration::from_millis(random_range(0..slow))).await;
                    }
                }
                () = tokio::time::sleep_until(wake) => {
                    let late = calm_since.is_some_and(|since| since.elapsed() > SENDS);
                    if late {
                        next_send = Instant::now() + Duration::from_mins(10);
                    } else if Instant::now() >= next_send {
                        let pause = if slow > 0 { 2000 } else { 6000 };
                        next_send = Instant::now() + Duration::from_millis(random_range(100..pause));
                        if self.view.asks.is_none() && random_bool(refreshes) {
                            let tags = self.some_tags();
                            let token = self.token(&tags);
                            self.view.asks(tags);
                            socket.send(Message::text(json!({"op": "refresh", "token": token}).to_string())).await?;
                        }
                        for _ in 0..random_range(1..6) {
                            count += 1;
                            let text = self.message(number, count);
                            socket.send(Message::text(text)).await?;
                        }
                    }
                }
            }
        }
    }

    fn keep_token(&mut self, frame: &Value) {
        let (token, ends_at) = (frame["resumeToken"].as_str(), frame["sessionEndsAt"].as_i64());
        if let (Some(token), Some(ends_at)) = (token, ends_at) {
            self.resume = Some(Resume { token: token.to_owned(), tags: self.view.tags.clone(), ends_at });
        }
    }

    fn message(&self, connection: u64, count: u64) -> String {
        let push = random_bool(0.5);
        let id = format!("c{connection}:{}:{count}", if push { "push" } else { "order" });
        let to = if push { several::businesses(&self.shared.sharing, &self.view.business) } else { Vec::new() };
        let View { business, edge, .. } = &self.view;
        let kind = if push { "chat" } else { "order" };
        let sends = Sends { business, edge, connection, number: count, kind, to: &to, since: Instant::now() };
        self.shared.oracle.sends(&id, &sends);
        let mut message = json!({"id": id, "messageType": kind, "content": count});
        if push {
            message["toUniqueId"] = json!(self.shared.others[random_range(0..self.shared.others.len())]);
        }
        if !to.is_empty() {
            message["businesses"] = json!(to);
        }
        message.to_string()
    }

    fn at_the_end(&self, number: u64, calm_since: Option<Instant>) {
        let calm = calm_since.map_or(Duration::ZERO, |since| since.elapsed());
        if calm < STAYS {
            return self.shared.oracle.violation(format!("{}: not connected for long, {calm:?}", self.view.name));
        }
        self.shared.oracle.is_at_end(&self.view, self.shared.cluster.newest(&self.view.business));
        for id in self.shared.oracle.unanswered(number) {
            self.shared.oracle.violation(format!("{}: no answer to {id}", self.view.name));
        }
    }
}
