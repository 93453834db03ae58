//! What a session rests on: when and by which credential it was let in, for which page, and how often it was resumed.
//! Its tickets carry it, so that every edge can end what a revocation or a changed declaration ends.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use wirepost_core::hex;

use super::ticket::Purpose;

/// No tag begins with it: control characters are refused.
const MARK: char = '\u{1}';
/// Session, time, generation, credential, origin.
const BYTES: usize = 8 + 8 + 4 + 8 + 8;
/// The digits of a [`Grant::session`] in a connection's id: all of UUIDv7's second random part.
const SESSION_BITS: u64 = (1 << 62) - 1;
/// Lifetime of a ticket of a version before grants, unless its platform team chose another one.
const FORMER_LIFETIME_MS: i64 = 30_000;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Random, 62 bits: the same for all connections of a session, and a part of their ids.
    pub session: u64,
    /// When its token call was answered, ms since the epoch; 0 = unknown, before everything.
    pub issued_at: i64,
    /// How often the session was resumed or refreshed.
    pub generation: u32,
    /// What [`credential`] makes of the API key or issuer that let it in; 0 = unknown.
    pub credential: u64,
    /// What [`origin`] makes of the page that it is for; 0 = any.
    pub origin: u64,
}

impl Grant {
    /// Longest text, as it lengthens a ticket's: with its length, in base64, rounded up.
    pub const MAX_TEXT: usize = (2 + 1 + BYTES.div_ceil(3) * 4).div_ceil(3) * 4 + 4;

    /// Of a new session.
    pub fn new(issued_at: i64, credential: u64, origin: u64) -> Self {
        Self { session: rand::random::<u64>() & SESSION_BITS, issued_at, generation: 0, credential, origin }
    }

    /// Of a ticket that says nothing: by a version before grants.
    pub(super) fn unknown(purpose: Purpose, expires_at: i64, id: [u8; 16]) -> Self {
        let issued_at = match purpose {
            Purpose::Connect => expires_at.saturating_sub(FORMER_LIFETIME_MS),
            Purpose::Resume => 0,
        };
        let session = number(&id[8..]) & SESSION_BITS;
        Self { session, issued_at, ..Self::default() }
    }

    /// Of the tickets that follow this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self { generation: self.generation.saturating_add(1), ..self }
    }

    pub(super) fn is_text(text: &str) -> bool {
        text.starts_with(MARK)
    }

    pub(super) fn to_text(self) -> String {
        let Self { session, issued_at, generation, credential, origin } = self;
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(&session.to_be_bytes());
        bytes.extend_from_slice(&issued_at.to_be_bytes());
        bytes.extend_from_slice(&generation.to_be_bytes());
        bytes.extend_from_slice(&credential.to_be_bytes());
        bytes.extend_from_slice(&origin.to_be_bytes());
        let mut text = String::from(MARK);
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// Later versions may add to it.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(MARK)?).ok()?;
        let (session, rest) = bytes.split_first_chunk()?;
        let (issued_at, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (credential, rest) = rest.split_first_chunk()?;
        let (origin, _) = rest.split_first_chunk()?;
        Some(Self {
            session: u64::from_be_bytes(*session),
            issued_at: i64::from_be_bytes(*issued_at),
            generation: u32::from_be_bytes(*generation),
            credential: u64::from_be_bytes(*credential),
            origin: u64::from_be_bytes(*origin),
        })
    }
}

/// A session as its connections' ids and the control stream name it.
pub fn session_text(session: u64) -> String {
    hex(session.to_be_bytes())
}

/// The reverse of [`session_text`].
pub fn parse_session(text: &str) -> Option<u64> {
    if text.len() == 16 { u64::from_str_radix(text, 16).ok() } else { None }
}

/// The session of a connection with this id; `None`: no id of ours.
pub fn session_of(connection_id: &str) -> Option<u64> {
    let id = uuid::Uuid::try_parse(connection_id).ok()?;
    Some(id.as_u64_pair().1 & SESSION_BITS)
}

/// A credential as grants name it, by its SHA-256. Never 0.
pub fn credential(digest: [u8; 32]) -> u64 {
    number(&digest[..8]).max(1)
}

/// Of bytes, the highest first.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The issuer of tokens as a [`credential`].
pub fn issuer(issuer: &str) -> u64 {
    credential(Sha256::digest(format!("issuer {issuer}")).into())
}

/// A page's origin as grants name it. Never 0.
pub fn origin(origin: &[u8]) -> u64 {
    credential(Sha256::digest(origin.to_ascii_lowercase()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids;

    #[test]
    fn the_connections_of_a_session_are_known_by_their_ids() {
        let grant = Grant::new(1, 2, 3);
        let ids = [ids::of_session(grant.session), ids::of_session(grant.next().session)];
        assert_ne!(ids[0], ids[1]);
        assert_eq!(ids.map(|id| session_of(&id)), [Some(grant.session); 2]);
        assert_ne!(session_of(&ids::new()), Some(grant.session));
        assert_eq!(parse_session(&session_text(grant.session)), Some(grant.session));
        assert_eq!((session_of("alice"), parse_session("+1"), parse_session("")), (None, None, None));
    }

    #[test]
    fn a_grant_survives_its_text_and_a_later_version_may_add_to_it() {
        let grant = Grant { session: 1, issued_at: -2, generation: 3, credential: 4, origin: 5 };
        let text = grant.to_text();
        assert!(Grant::is_text(&text) && (2 + text.len()).div_ceil(3) * 4 + 4 <= Grant::MAX_TEXT);
        assert_eq!(Grant::of_text(&text), Some(grant));
        assert_eq!(Grant::of_text(&format!("{text}AAAA")), Some(grant));
        assert_eq!((Grant::of_text(&text[..20]), Grant::of_text("\u{1}!")), (None, None));
    }
}
