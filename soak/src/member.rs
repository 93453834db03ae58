//! The clients: each keeps to docs/protocol.md in its own manner, and writes down everything that it sees.

mod connection;
mod sends;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use wirepost_core::cursor::Cursor;
use wirepost_testing::client::{Client, Refused};

use crate::chance::Chance;
use crate::plan::{PLANS, Plan, TAGS};
use crate::record::{self, ClientNo, ConnectionNo, Tags, What};
use crate::world::{Place, STEP, Stage, World};
use connection::{Left, leave};
use sends::Sends;

/// Identities of each business; the first has two connections.
pub const IDENTITIES: [&str; 7] = ["ada", "bea", "cid", "dan", "eve", "fay", "gus"];

/// The business of the clients that proxies lie to.
pub const VICTIMS: usize = 0;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Comes back with its resume token and its cursor.
    Steady,
    /// With a new ticket each time, and its cursor; in a business with tags, with other tags.
    ByTicket,
    /// Without a cursor: it wants what comes from now on.
    Fresh,
    /// Without the subprotocol.
    Plain,
    /// Does not read for seconds.
    Slow,
    /// Is away longer than it is there.
    Sleeper,
    /// Sends far more than it may.
    Flooding,
}

/// The clients of each business: manner, identity and client type.
pub const CREW: [(Manner, &str, &str); 8] = [
    (Manner::Steady, "ada", "app"),
    (Manner::ByTicket, "ada", "web"),
    (Manner::Steady, "bea", "web"),
    (Manner::Fresh, "cid", "app"),
    (Manner::Sleeper, "dan", "app"),
    (Manner::Slow, "eve", "web"),
    (Manner::Plain, "fay", "app"),
    (Manner::Flooding, "gus", "app"),
];

/// One client.
pub struct Member {
    world: Arc<World>,
    number: ClientNo,
    business: usize,
    plan: Plan,
    manner: Manner,
    unique_id: String,
    client_type: String,
    token: Option<String>,
    /// Whether it connects by its resume token, until it is welcomed.
    resuming: bool,
    /// Whether this connection began by its resume token.
    by_token: bool,
    cursor: Option<String>,
    tags: Tags,
    sends: Sends,
    chance: Chance,
    stage: watch::Receiver<Stage>,
    /// Its only way, where it has one.
    by: Option<(Place, SocketAddr)>,
}

impl Member {
    /// A client of a business's crew.
    pub fn new(
        world: &Arc<World>,
        business: usize,
        (manner, unique_id, client_type): (Manner, &str, &str),
        seed: u64,
    ) -> Self {
        let plan = PLANS[business];
        let name = format!("{}-{unique_id}-{client_type}-{manner:?}", plan.name).to_lowercase();
        Self::named(world, business, manner, unique_id, client_type, &name, seed)
    }

    /// The same with a name of its own, by way of a proxy in front of one edge.
    pub fn by_way_of(
        world: &Arc<World>,
        (unique_id, client_type): (&str, &str),
        name: &str,
        place: Place,
        proxy: SocketAddr,
        seed: u64,
    ) -> Self {
        let mut member = Self::named(world, VICTIMS, Manner::Steady, unique_id, client_type, name, seed);
        member.by = Some((place, proxy));
        member
    }

    fn named(
        world: &Arc<World>,
        business: usize,
        manner: Manner,
        unique_id: &str,
        client_type: &str,
        name: &str,
        seed: u64,
    ) -> Self {
        let plain = manner == Manner::Plain;
        let number = world.journal.client(record::Client {
            name: name.to_owned(),
            business,
            unique_id: unique_id.to_owned(),
            client_type: client_type.to_owned(),
            plain,
        });
        Self {
            world: Arc::clone(world),
            number,
            business,
            plan: PLANS[business],
            manner,
            unique_id: unique_id.to_owned(),
            client_type: client_type.to_owned(),
            token: None,
            resuming: false,
            by_token: false,
            cursor: None,
            tags: Tags::new(),
            sends: Sends::new(world, business, name),
            chance: Chance::new(seed, name),
            stage: world.stage.subscribe(),
            by: None,
        }
    }

    /// Its number in the record.
    pub fn number(&self) -> ClientNo {
        self.number
    }

    /// Until all leave.
    pub async fn live(mut self) {
        let mut failures = 0_u32;
        // The connection that a draining edge asked it to leave: the new one first, then that one's end.
        let mut former: Option<(Client, ConnectionNo)> = None;
        while self.stage() < Stage::Leaving {
            let Ok((mut client, connection)) = self.connect().await else {
                failures = (failures + 1).min(4);
                let longest = 0.25 * f64::from(1 << failures);
                self.wait(longest * 0.1, longest).await;
                continue;
            };
            if let Some((former, connection)) = former.take() {
                tokio::spawn(leave(self.world.journal.clone(), former, connection));
            }
            failures = 0;
            match self.talk(&mut client, connection).await {
                Left::Goodbye => {
                    self.sends.lost();
                    leave(self.world.journal.clone(), client, connection).await;
                    self.away(5.0).await;
                }
                Left::Moving => {
                    self.sends.lost();
                    former = Some((client, connection));
                }
                Left::Reset => {
                    self.ended(connection, "reset by the client");
                    client.reset();
                    self.away(1.0).await;
                }
                Left::Lost(how) => {
                    self.ended(connection, &how);
                    self.away(1.0).await;
                }
            }
        }
        if let Some((former, connection)) = former.take() {
            leave(self.world.journal.clone(), former, connection).await;
        }
    }

    fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    fn ended(&mut self, connection: ConnectionNo, how: &str) {
        self.sends.lost();
        self.world.journal.note(What::Ended { connection, how: how.to_owned() });
    }

    /// Between two connections.
    async fn away(&mut self, longest: f64) {
        if self.manner == Manner::Sleeper {
            self.wait(5.0, 15.0).await;
        } else {
            self.wait(0.01, longest).await;
        }
    }

    /// For a time between these, but not longer than everybody talks.
    async fn wait(&mut self, from: f64, to: f64) {
        let pause = self.chance.seconds(from, to);
        if self.stage() == Stage::Talking {
            tokio::select! {
                () = sleep(pause) => {}
                _ = self.stage.changed() => {}
            }
        } else {
            sleep(pause.min(Duration::from_millis(500))).await;
        }
    }

    async fn connect(&mut self) -> Result<(Client, ConnectionNo)> {
        let (place, address) = if let Some((place, proxy)) = &self.by {
            (place.clone(), *proxy)
        } else {
            let place = self.world.fleet.pick(&mut self.chance)?;
            let address = place.address();
            (place, address)
        };
        if matches!(self.manner, Manner::ByTicket | Manner::Plain) {
            self.token = None;
        }
        if self.manner == Manner::Fresh {
            self.cursor = None;
        }
        if self.token.is_none() && self.plan.tags {
            self.tags = self.some_tags();
        }
        self.by_token = self.token.is_some();
        self.resuming = self.by_token;
        let token = match &self.token {
            Some(token) => token.clone(),
            None => self.ticket(&place, &self.tags).await?,
        };
        let mut builder = place.edge.client(&self.unique_id, &self.client_type).token(token).via(address);
        if let Some(cursor) = &self.cursor {
            builder = builder.cursor(cursor.clone());
        }
        if self.manner == Manner::Plain {
            builder = builder.plain();
        }
        if self.manner == Manner::Slow {
            builder = builder.receive_buffer(8 << 10);
        }
        let journal = &self.world.journal;
        let connection = journal.connection(self.number);
        let cursor = self.cursor.as_deref().and_then(offset);
        journal.note(What::Asked { connection, cursor, tags: self.tags.clone() });
        match timeout(STEP, builder.upgrade()).await.context("no upgrade in time")? {
            Ok(client) => {
                journal.note(What::Opened { connection });
                Ok((client, connection))
            }
            Err(error) => {
                // At a limit, draining, or on its way out; anything else it must not be told.
                if let Some(Refused { status, body }) = error.downcast_ref::<Refused>()
                    && *status != 503
                {
                    journal.broken(format!("the upgrade was refused: {status}: {body}"));
                }
                Err(error)
            }
        }
    }

    /// At least one.
    fn some_tags(&mut self) -> Tags {
        let mut tags: Tags = TAGS.iter().filter(|_| self.chance.once_in(2)).map(|tag| (*tag).to_owned()).collect();
        if tags.is_empty() {
            tags.insert(TAGS[self.chance.below(TAGS.len())].to_owned());
        }
        tags
    }

    async fn ticket(&self, place: &Place, tags: &Tags) -> Result<String> {
        self.world.ticket(place, self.business, &self.unique_id, &self.client_type, tags).await
    }
}

/// The offset in a cursor. Clients do not look into theirs; the auditor does.
fn offset(cursor: &str) -> Option<u64> {
    cursor.parse::<Cursor>().ok().map(|cursor| cursor.offset)
}

/// The same of a frame.
fn offset_in(frame: &Value) -> Option<u64> {
    offset(frame["cursor"].as_str()?)
}
