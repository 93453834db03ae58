//! Any text as a ticket: only what this edge would write itself is accepted. The input is a text, or a change of a good ticket.

use std::sync::LazyLock;

use wirepost_edge::identity::{
    grant::Grant,
    keys::KeyRing,
    ticket::{Purpose, Ticket, TicketError, open, seal},
};

use crate::input::Input;

const NOW: i64 = 1_790_000_000_000;
static KEYS: LazyLock<KeyRing> = LazyLock::new(KeyRing::random);

pub(crate) fn run(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        judged(text, None);
    }
    let mut input = Input(input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (at, change) = (usize::from(input.number()), input.byte());
    let ticket = Ticket {
        purpose: if input.byte() & 1 == 0 { Purpose::Connect } else { Purpose::Resume },
        business: text(input.text()),
        unique_id: text(input.text()),
        client_type: text(input.text()),
        // Tags have no control characters: one stands before what the session rests on.
        tags: (0..input.byte() % 80).map(|_| text(input.text())).filter(|tag| !tag.starts_with('\u{1}')).collect(),
        session_ends_at: NOW + 1000,
        expires_at: NOW + i64::from(input.number()) - 100,
        id: [input.byte(); 16],
        grant: Grant {
            session: u64::from(input.number()),
            issued_at: NOW - i64::from(input.number()),
            generation: u32::from(input.number()),
            credential: u64::from(input.number()),
            origin: u64::from(input.number()),
        },
    };
    let sealed = seal(&KEYS, &ticket);
    match open(&KEYS, &sealed, NOW) {
        Ok(opened) => assert_eq!(opened, ticket),
        Err(TicketError::Expired) => assert!(ticket.expires_at <= NOW),
        Err(error) => assert!(ticket.check_size().is_err(), "{error}"),
    }
    let mut changed = sealed.clone().into_bytes();
    if let Some(byte) = changed.get_mut(at % sealed.len().max(1)) {
        *byte = byte.wrapping_add(change);
        if let Ok(changed) = String::from_utf8(changed) {
            judged(&changed, Some(&sealed));
        }
    }
}

fn judged(text: &str, good: Option<&str>) {
    if let Ok(ticket) = open(&KEYS, text, NOW) {
        assert_eq!(seal(&KEYS, &ticket), text, "accepted, and not ours");
        assert!(good.is_none_or(|good| good == text), "accepted, and altered");
    }
}
