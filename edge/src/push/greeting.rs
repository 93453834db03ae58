//! The first frame, and the frames that follow later if the position was not known yet.

use std::sync::Arc;

use wirepost_core::frames::{ClientLimits, ServerFrame};

use super::{
    entry,
    gap::Gap,
    hub::{Hub, position_frame},
    mailbox::Mailbox,
};
use crate::broker::Position;

/// Sends one connection its position: in its `welcome`, or later.
pub struct Greeting<'h> {
    mailbox: Arc<Mailbox>,
    resume_token: String,
    ends_at: i64,
    hub: &'h Hub,
    /// `welcome` is queued.
    sent: bool,
    /// The client knows its position.
    placed: bool,
}

impl<'h> Greeting<'h> {
    /// Nothing is sent yet.
    pub fn new(hub: &'h Hub, mailbox: Arc<Mailbox>, resume_token: String, ends_at: i64) -> Self {
        Self { mailbox, resume_token, ends_at, hub, sent: false, placed: false }
    }

    /// Whether `welcome` is queued.
    pub fn is_sent(&self) -> bool {
        self.sent
    }

    /// It starts from now and had no cursor. If it was greeted before, it may have missed what was pushed since then.
    pub fn fresh(&mut self, position: Option<Position>) {
        if self.sent { self.gap(position, Gap::Unread) } else { self.place(position, false) }
    }

    /// Nothing is missing since its cursor.
    pub fn resumed(&mut self, at: Position) {
        if !self.placed {
            self.place(Some(at), true);
        }
    }

    /// Messages may be missing; it continues from now.
    pub fn gap(&mut self, position: Option<Position>, gap: Gap) {
        self.hub.count_gap(gap);
        let reason = gap.reason();
        if self.sent {
            self.mailbox.control(ServerFrame::Gap { business: &self.hub.name, reason }.to_text());
            self.placed = false;
        }
        let greeted = self.sent;
        self.place(position, false);
        if !greeted {
            self.mailbox.control(ServerFrame::Gap { business: &self.hub.name, reason }.to_text());
        }
    }

    /// The broker is unreachable: the position follows later.
    pub fn unknown(&mut self) {
        if !self.sent {
            self.welcome(None, None);
        }
    }

    fn place(&mut self, position: Option<Position>, resumed: bool) {
        self.placed = true;
        if let Some(position) = position {
            self.mailbox.tell(position.offset);
        }
        if !self.sent {
            let cursor = position.map(|position| entry::cursor(&self.hub.name, position));
            self.welcome(cursor.as_deref(), Some(resumed));
        } else if let Some(position) = position {
            self.mailbox.control(position_frame(&self.hub.name, position));
        }
    }

    fn welcome(&mut self, cursor: Option<&str>, resumed: Option<bool>) {
        self.sent = true;
        self.mailbox.set_greeted();
        let limits = &self.hub.business().config.limits;
        let frame = ServerFrame::Welcome {
            connection_id: &self.mailbox.id,
            cursor,
            resumed,
            resume_token: &self.resume_token,
            session_ends_at: self.ends_at,
            limits: ClientLimits {
                message_bytes: limits.message_bytes,
                messages_per_second: limits.messages_per_second,
                burst: limits.burst,
            },
        };
        self.mailbox.control(frame.to_text());
    }
}
