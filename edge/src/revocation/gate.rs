//! Whether a ticket is still good: everything about it that its text alone does not say.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use wirepost_core::contract::control::Revocation;

use super::{
    known::Revocations,
    publish::{By, Outbox},
};
use crate::{
    identity::{
        grant::{self, Grant},
        keys::KeyRing,
        succession::Successions,
        ticket::{Purpose, Ticket},
        used::UsedTickets,
    },
    metrics::{Metrics, label},
};

/// One for all connections of a process.
#[derive(Debug)]
pub struct Gate {
    /// Signs and verifies tickets.
    pub keys: Arc<KeyRing>,
    /// Sessions that were ended.
    pub revocations: Revocations,
    /// What other edges are to hear of.
    pub outbox: Outbox,
    /// Nothing tells this edge of revocations: it reads no streams.
    deaf: AtomicBool,
    /// The control stream was replaced.
    replaced: Notify,
    tickets: UsedTickets,
    sessions: Successions,
}

/// Why a ticket is not good any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Spent {
    /// See [`Revocations`].
    #[error("this session was ended by its business")]
    Revoked,
    /// See [`UsedTickets`].
    #[error("this token was used before; each is good once")]
    Used,
    /// See [`Successions`].
    #[error("this token was replaced by a newer one of the same session")]
    Replaced,
}

impl Gate {
    /// Nothing is spent yet. Tickets are good for `ticket_ttl`.
    pub fn new(keys: Arc<KeyRing>, ticket_ttl: Duration, metrics: &Metrics) -> Self {
        let forgotten = |kind| metrics.spent_forgotten.get_or_create_owned(&label(kind));
        Self {
            keys,
            revocations: Revocations::new(metrics.revocations.clone(), metrics.revocations_widened.clone()),
            outbox: Outbox::default(),
            deaf: AtomicBool::new(false),
            replaced: Notify::new(),
            tickets: UsedTickets::new(ticket_ttl, &forgotten("tickets")),
            sessions: Successions::new(&forgotten("sessions")),
        }
    }

    /// From now on nothing tells this edge of revocations.
    pub fn is_told_nothing(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    /// Whether revocations come here, and to edges with the same settings.
    pub fn hears(&self) -> bool {
        !self.deaf.load(Ordering::Relaxed)
    }

    /// The control stream has replaced another one, and is empty.
    pub fn lose_stream(&self) {
        self.revocations.stream_is_new();
        self.replaced.notify_one();
    }

    /// Waits for [`Self::lose_stream`].
    pub async fn stream_is_new(&self) {
        self.replaced.notified().await;
    }

    /// Judges a ticket. Changes nothing.
    ///
    /// # Errors
    /// See [`Spent`]; a new token call helps.
    pub fn judge(&self, ticket: &Ticket) -> Result<(), Spent> {
        if self.revocations.end(&ticket.business, &ticket.unique_id, &ticket.grant) {
            return Err(Spent::Revoked);
        }
        match ticket.purpose {
            Purpose::Connect if self.tickets.contains(&ticket.business, &ticket.id) => Err(Spent::Used),
            Purpose::Resume if self.sessions.replaced(&ticket.business, &ticket.grant) => Err(Spent::Replaced),
            Purpose::Connect | Purpose::Resume => Ok(()),
        }
    }

    /// Uses a ticket that was judged to be good.
    ///
    /// # Errors
    /// Another has just used it.
    pub fn spend(&self, ticket: &Ticket, now: i64) -> Result<(), Spent> {
        let first = ticket.purpose != Purpose::Connect
            || self.tickets.insert(&ticket.business, ticket.id, ticket.expires_at, now);
        if first { Ok(()) } else { Err(Spent::Used) }
    }

    /// A session's tokens before this generation are good no more.
    pub fn replace(&self, business: &str, grant: &Grant, ends_at: i64, now: i64) {
        self.sessions.begin(business, grant.session, grant.generation, ends_at, now);
    }

    /// Lets every edge know that a session's tokens before this generation are good no more: they hold tags that were
    /// taken away. False: too many wait for the broker. Where no edge reads streams, there is nobody to tell.
    pub fn outdate(&self, business: &str, unique_id: &str, grant: &Grant, ends_at: i64, now: Instant) -> bool {
        let revocation = Revocation {
            business: business.to_owned(),
            // The session says whose it is; with the identity other edges look at its connections alone.
            unique_id: Some(unique_id.to_owned()),
            session: Some(grant::session_text(grant.session)),
            generation: Some(grant.generation),
            issued_before: grant.issued_at,
            until: ends_at,
        };
        !self.hears() || (self.outbox.may_send(business, By::Refresh, now) && self.outbox.send(revocation))
    }
}
