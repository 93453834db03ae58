//! A WebSocket proxy between clients and an edge, that sees every frame, records it, and causes faults by frame.
//!
//! The upgrade passes as it is, but for its `Origin`, which is the same for a browser and for a client that has none. Pings are answered by the proxy itself, on both sides.

mod carry;
mod upgrade;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::broker::PATIENCE;

/// Orders for open connections that wait for a busy one.
const ORDERS: usize = 64;
/// Records that a failure shows.
const SHOWN: usize = 60;
/// Characters of a frame that are shown.
const SHOWN_OF_FRAME: usize = 160;

/// What new connections meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// They pass.
    Open,
    /// They are reset.
    Refused,
    /// They are accepted, and nothing is ever answered.
    Silent,
    /// This HTTP status instead of an upgrade.
    Status(u16),
}

/// What becomes of a frame.
#[derive(Debug)]
pub enum Fate {
    /// It passes.
    Pass,
    /// It is lost.
    Lost,
    /// Another one passes instead.
    Replaced(Value),
    /// It is lost, and its sender gets this one.
    Answered(Value),
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Client,
    Edge,
}

/// Something that the proxy saw. Connections are numbered from 0.
#[derive(Clone, Debug)]
pub struct Record {
    pub at: Instant,
    pub connection: usize,
    pub what: What,
}

/// See [`Record`].
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A client has made a TCP connection.
    Attempt,
    /// It asks for an upgrade.
    Asked {
        /// A subprotocol, or the last part of the path.
        token: String,
        /// It stands in the path.
        by_path: bool,
        cursor: Option<String>,
        /// But for the token.
        protocol: Option<String>,
    },
    /// The edge upgraded it.
    Open,
    /// A text frame, before its fate is decided. What is no JSON is a string.
    Frame(From, Value),
    /// A WebSocket ping of the client.
    Ping,
    /// A close frame; 1005 where it has no code.
    Close(From, u16),
    /// The connection is over, for both sides.
    Over,
}

type Judge = Box<dyn FnMut(From, usize, &Value) -> Fate + Send>;

/// A proxy; ends with its connections when dropped.
pub struct WsProxy {
    /// Where clients connect.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    door: Mutex<Door>,
    origin: Mutex<String>,
    judge: Mutex<Judge>,
    orders: broadcast::Sender<(Option<usize>, Order)>,
    /// While it is true, nothing is read from the edge.
    jammed: watch::Sender<bool>,
    log: watch::Sender<Vec<Record>>,
}

/// What open connections are told.
#[derive(Clone, Debug)]
enum Order {
    /// Send this to the client.
    Say(Value),
    /// The same with any text.
    SayText(String),
    /// Close the client's side with this code, and leave the edge.
    Close(u16),
    /// Reset both sides.
    Cut,
    /// Carry nothing any more, without an error.
    Freeze,
}

impl fmt::Debug for WsProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WsProxy({})", self.address)
    }
}

impl WsProxy {
    /// In front of an edge. Upgrades get this `Origin`.
    pub async fn start(target: SocketAddr, origin: &str) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            door: Mutex::new(Door::Open),
            origin: Mutex::new(origin.to_owned()),
            judge: Mutex::new(Box::new(|_, _, _| Fate::Pass)),
            orders: broadcast::channel(ORDERS).0,
            jammed: watch::Sender::new(false),
            log: watch::Sender::new(Vec::new()),
        });
        let accepting = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connection = 0;
            while let Ok((client, _)) = listener.accept().await {
                accepting.note(connection, What::Attempt);
                tokio::spawn(serve(Arc::clone(&accepting), client, connection));
                connection += 1;
            }
        });
        Ok(Self { address, shared, task })
    }

    /// New connections go there.
    pub fn lead_to(&self, target: SocketAddr) {
        *lock(&self.shared.target) = target;
    }

    /// What new connections meet from now on.
    pub fn door(&self, door: Door) {
        *lock(&self.shared.door) = door;
    }

    /// The `Origin` of new connections.
    pub fn origin(&self, origin: &str) {
        origin.clone_into(&mut lock(&self.shared.origin));
    }

    /// Decides what becomes of each text frame from now on: by its sender, its connection and itself.
    pub fn judge(&self, judge: impl FnMut(From, usize, &Value) -> Fate + Send + 'static) {
        *lock(&self.shared.judge) = Box::new(judge);
    }

    /// All frames pass again.
    pub fn judge_nothing(&self) {
        self.judge(|_, _, _| Fate::Pass);
    }

    /// Sends a frame to all clients, in the edge's name.
    pub fn say(&self, frame: Value) {
        self.order(None, Order::Say(frame));
    }

    /// The same with any text.
    pub fn say_text(&self, text: &str) {
        self.order(None, Order::SayText(text.to_owned()));
    }

    /// Closes all clients' connections with this code, in the edge's name.
    pub fn close(&self, code: u16) {
        self.order(None, Order::Close(code));
    }

    /// The same for one connection.
    pub fn close_one(&self, connection: usize, code: u16) {
        self.order(Some(connection), Order::Close(code));
    }

    /// Resets all connections.
    pub fn cut(&self) {
        self.order(None, Order::Cut);
    }

    /// Carries nothing on the open connections any more, without an error; new ones work.
    pub fn freeze(&self) {
        self.order(None, Order::Freeze);
    }

    /// Whether what the edge sends is left unread, on all connections.
    pub fn jam(&self, jammed: bool) {
        self.shared.jammed.send_replace(jammed);
    }

    fn order(&self, connection: Option<usize>, order: Order) {
        // An error: there is no connection.
        let _ = self.shared.orders.send((connection, order));
    }

    /// Everything so far.
    pub fn log(&self) -> Vec<Record> {
        self.shared.log.borrow().clone()
    }

    /// Waits until the log shows something. Errors after [`PATIENCE`], naming `what`.
    pub async fn until<T>(&self, what: &str, find: impl Fn(&[Record]) -> Option<T>) -> Result<T> {
        let mut log = self.shared.log.subscribe();
        let wait = async {
            loop {
                if let Some(found) = find(&log.borrow_and_update()) {
                    return Ok(found);
                }
                if log.changed().await.is_err() {
                    bail!("the proxy has ended");
                }
            }
        };
        match timeout(PATIENCE, wait).await {
            Ok(found) => found,
            Err(_) => bail!("not seen on the wire within {PATIENCE:?}: {what}"),
        }
    }

    /// The end of the log, for people.
    pub fn tail(&self) -> String {
        let log = self.shared.log.borrow();
        let begin = log.first().map(|record| record.at);
        let lines = log.iter().skip(log.len().saturating_sub(SHOWN)).map(|record| {
            let at = begin.map_or(0.0, |begin| (record.at - begin).as_secs_f64());
            let what = match &record.what {
                What::Frame(from, frame) => format!("{from:?}: {frame}"),
                What::Asked { token, cursor, protocol, .. } => {
                    format!("asked: …{} cursor {cursor:?} {protocol:?}", &token[..token.len().min(8)])
                }
                other => format!("{other:?}"),
            };
            format!("{at:8.3} #{} {}\n", record.connection, what.chars().take(SHOWN_OF_FRAME).collect::<String>())
        });
        lines.collect()
    }
}

impl Drop for WsProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

impl Shared {
    fn note(&self, connection: usize, what: What) {
        self.log.send_modify(|log| log.push(Record { at: Instant::now(), connection, what }));
    }

    fn fate(&self, from: From, connection: usize, frame: &Value) -> Fate {
        lock(&self.judge)(from, connection, frame)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(shared: Arc<Shared>, client: TcpStream, connection: usize) {
    // A closed socket sends a reset, not a polite end.
    let _ = client.set_zero_linger();
    let _ = client.set_nodelay(true);
    let mut orders = shared.orders.subscribe();
    let door = *lock(&shared.door);
    let result = match door {
        Door::Open => match upgrade::pass(&shared, client, connection).await {
            Ok(Some(sides)) => {
                shared.note(connection, What::Open);
                carry::carry(&shared, sides, connection, orders).await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        },
        Door::Refused => Ok(()),
        Door::Silent => {
            // Until all are cut, or the proxy is dropped.
            while !matches!(orders.recv().await, Ok((_, Order::Cut)) | Err(broadcast::error::RecvError::Closed)) {}
            Ok(())
        }
        Door::Status(status) => upgrade::refuse(client, status).await,
    };
    drop(result);
    shared.note(connection, What::Over);
}
