//! A client as the oracle sees it.

use tokio::time::Instant;
use wirepost_runtime::clock;

/// What a client knows, and what it may expect.
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) business: String,
    pub(crate) unique_id: String,
    pub(crate) client_type: String,
    /// Its tags now.
    pub(crate) tags: Vec<String>,
    /// Those that it has asked for.
    pub(crate) asks: Option<Vec<String>>,
    /// All that it had, or may have had, since its newest cursor.
    pub(super) held: Vec<Vec<String>>,
    /// Its newest cursor, as text.
    pub(crate) cursor: Option<String>,
    pub(super) at: Option<(u64, u64)>,
    /// There was a gap since.
    pub(super) gap: bool,
    /// A gap was implied, and its reason is to follow.
    pub(super) owed: bool,
    pub(super) asked: bool,
    pub(super) connected: Instant,
    /// When its welcome came.
    pub(super) greeted: Option<Instant>,
    pub(super) connected_ms: i64,
    /// Since when nothing is wrong any more.
    pub(crate) calm: Option<Instant>,
    /// The life of the edge that it is connected to.
    pub(crate) edge: String,
    pub(crate) connection: u64,
}

impl View {
    pub(crate) fn new(name: &str, business: &str, unique_id: &str, client_type: &str) -> Self {
        Self {
            name: name.to_owned(),
            business: business.to_owned(),
            unique_id: unique_id.to_owned(),
            client_type: client_type.to_owned(),
            tags: Vec::new(),
            asks: None,
            held: Vec::new(),
            cursor: None,
            at: None,
            gap: false,
            owed: false,
            asked: false,
            connected: Instant::now(),
            greeted: None,
            connected_ms: 0,
            calm: None,
            edge: String::new(),
            connection: 0,
        }
    }

    /// A connection begins, with these tags, and with its cursor, if it has one.
    pub(crate) fn begins(&mut self, connection: u64, tags: Vec<String>) {
        self.greeted = None;
        self.held.push(tags.clone());
        (self.tags, self.asks) = (tags, None);
        (self.asked, self.owed, self.gap) = (self.cursor.is_some(), false, false);
        if self.cursor.is_none() {
            self.at = None;
        }
        (self.connected, self.connected_ms) = (Instant::now(), clock::now_ms());
        self.connection = connection;
    }

    /// It forgets its cursor.
    pub(crate) fn forget(&mut self) {
        (self.cursor, self.at, self.gap) = (None, None, false);
    }

    /// It asks for other tags: from now on it may have them, and knows it later.
    pub(crate) fn asks(&mut self, tags: Vec<String>) {
        self.held.push(tags.clone());
        self.asks = Some(tags);
    }

    pub(super) fn is_now_at(&mut self, life: u64, offset: u64) {
        self.at = Some((life, offset));
        self.gap = false;
        self.held = [Some(self.tags.clone()), self.asks.clone()].into_iter().flatten().collect();
    }
}
