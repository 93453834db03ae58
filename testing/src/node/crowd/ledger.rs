//! What a crowd knows: written by its members, read by the test.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

/// What a client saw that is not a part of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// No connection, or one that ended before `welcome`.
    Refused,
    /// Its connection ended without a close frame.
    Broken,
    /// Its connection was closed with a code other than a drain's.
    Closed,
    /// It received a `gap`.
    Gap,
    /// A message of its was not taken.
    Nack,
    /// A draining edge closed before it had answered a message.
    Unanswered,
    /// Anything else.
    Strange,
}

/// Something that went wrong for a client.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Its number.
    pub client: usize,
    pub kind: Kind,
    pub what: String,
}

/// A client that a `drain` sent away.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Its number.
    pub client: usize,
    /// When the frame came.
    pub told: Instant,
    /// The time that it was given.
    pub within: Duration,
    /// When it had its `welcome`.
    pub back: Instant,
}

#[derive(Debug)]
pub(super) struct Ledger {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// Ids that came to each client, in their order, without repeats.
    came: Vec<Vec<String>>,
    known: Vec<HashSet<String>>,
    repeated: u64,
    reports: BTreeSet<String>,
    /// Acknowledged messages to other clients, and to whom.
    hellos: BTreeMap<String, usize>,
    waiting: usize,
    moves: Vec<Move>,
    troubles: Vec<Trouble>,
}

impl Ledger {
    pub(super) fn new(size: usize) -> Self {
        let book = Book { came: vec![Vec::new(); size], known: vec![HashSet::new(); size], ..Book::default() };
        Self { book: Mutex::new(book) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many clients there are.
    pub(super) fn size(&self) -> usize {
        self.book().came.len()
    }

    // --- members write

    pub(super) fn came(&self, client: usize, id: &str) {
        let mut book = self.book();
        if book.known[client].insert(id.to_owned()) {
            book.came[client].push(id.to_owned());
        } else if id.starts_with("push-") {
            // Those of clients are repeated by a sender whose connection broke before the answer.
            book.repeated += 1;
        }
    }

    pub(super) fn sends(&self) {
        self.book().waiting += 1;
    }

    /// A message has its `ack`; `to` is another client, or the service.
    pub(super) fn acked(&self, id: String, to: Option<usize>) {
        let mut book = self.book();
        book.waiting -= 1;
        match to {
            Some(client) => drop(book.hellos.insert(id, client)),
            None => drop(book.reports.insert(id)),
        }
    }

    /// A message was given up.
    pub(super) fn refused(&self) {
        self.book().waiting -= 1;
    }

    pub(super) fn moved(&self, moved: Move) {
        self.book().moves.push(moved);
    }

    pub(super) fn trouble(&self, client: usize, kind: Kind, what: String) {
        self.book().troubles.push(Trouble { client, kind, what });
    }

    // --- tests read

    /// Acknowledged messages to the service, to clients, and what came to clients.
    pub(super) fn counts(&self) -> [u64; 3] {
        let book = self.book();
        let came: usize = book.came.iter().map(Vec::len).sum();
        [book.reports.len() as u64, book.hellos.len() as u64, came as u64]
    }

    pub(super) fn waiting(&self) -> usize {
        self.book().waiting
    }

    pub(super) fn repeated(&self) -> u64 {
        self.book().repeated
    }

    pub(super) fn acked_reports(&self) -> BTreeSet<String> {
        self.book().reports.clone()
    }

    pub(super) fn moves(&self) -> Vec<Move> {
        self.book().moves.clone()
    }

    pub(super) fn troubles(&self) -> Vec<Trouble> {
        self.book().troubles.clone()
    }

    /// Ids that did not arrive, of the pushes to each client.
    pub(super) fn missing(&self, pushed: &[u64]) -> Vec<String> {
        let book = self.book();
        let due = pushed.iter().enumerate().flat_map(|(client, &count)| (0..count).map(move |n| (client, n)));
        let due = due.map(|(client, n)| (client, push_id(client, n)));
        let hellos = book.hellos.iter().map(|(id, &client)| (client, id.clone()));
        due.chain(hellos).filter(|(client, id)| !book.known[*client].contains(id)).map(|(_, id)| id).collect()
    }

    /// Checks that the service's pushes came to each client in the order in which they were confirmed.
    pub(super) fn in_order(&self) -> Result<()> {
        for (client, came) in self.book().came.iter().enumerate() {
            let pushes = came.iter().filter(|id| id.starts_with("push-"));
            for (n, id) in pushes.enumerate() {
                ensure!(*id == push_id(client, n as u64), "{id} came to client {client} as the {n}th");
            }
        }
        Ok(())
    }
}

/// Names the `n`th push of the service to a client.
pub(super) fn push_id(client: usize, n: u64) -> String {
    format!("push-{client}-{n}")
}
