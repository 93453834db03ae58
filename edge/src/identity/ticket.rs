//! The ticket in `/socket/{token}` and in `resumeToken`: everything that an edge must know about a connection, signed,
//! so that any edge accepts it and none stores it.
//!
//! *Form*: URL-safe base64 without padding of: version (1 byte), purpose (1), id (16), session end and expiry (i64 ms
//! each), then key id, business, unique id, client type (each with a 2-byte length), number of tags (1) and the tags,
//! then the HMAC-SHA256 of all that. Numbers are big-endian. Opaque to clients. The first tag is no tag of the client
//! but the [`Grant`]: an edge of a version before it takes it for one, and passes it on.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use wirepost_core::contract::key_file;

use super::{
    grant::Grant,
    keys::{KeyRing, TAG},
};

/// Longest ticket as text: with host, path and cursor it stays under the 4 KiB that the strictest proxies accept for a
/// request line.
pub const MAX_TEXT: usize = MAX_NAMED + Grant::MAX_TEXT;
/// The part of it for identity, client type and tags.
const MAX_NAMED: usize = 2048;
/// Most tags of a connection.
pub const MAX_TAGS: usize = 64;

const VERSION: u8 = 1;
/// Version, purpose, id, two times.
const FIXED: usize = 1 + 1 + 16 + 8 + 8;
/// Separates tickets from anything else that is signed with the same keys.
const CONTEXT: &[u8] = b"wirepost ticket";

/// The purpose of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Issued by the token call: opens a socket or refreshes a session.
    Connect,
    /// Issued by an edge for its own client: opens a socket within the session.
    Resume,
}

/// A ticket's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its purpose.
    pub purpose: Purpose,
    /// Whose clients.
    pub business: String,
    /// The identity.
    pub unique_id: String,
    /// The kind of client.
    pub client_type: String,
    /// What addresses the connection, beside its identity.
    pub tags: Vec<String>,
    /// End of the session, ms since the epoch.
    pub session_ends_at: i64,
    /// Until when the ticket can be used, ms since the epoch.
    pub expires_at: i64,
    /// Random; distinguishes tickets.
    pub id: [u8; 16],
    /// What its session rests on.
    pub grant: Grant,
}

/// Why a text is not a valid ticket. Always the caller's fault; a new token call helps, except for a forged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Malformed.
    #[error("token is not one of ours; it may have been cut or altered")]
    Malformed,
    /// Signed by a key that this edge does not have (any more).
    #[error("token was signed by a key that is not in use any more")]
    UnknownKey,
    /// Not signed by us.
    #[error("token's signature is wrong")]
    BadSignature,
    /// Expired.
    #[error("token expired")]
    Expired,
}

/// The content is too large for a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketTooLarge {
    /// Too many tags.
    #[error("{0} tags, at most {MAX_TAGS} are allowed")]
    Tags(usize),
    /// Too long as a whole.
    #[error("identity and tags make a token of {0} bytes, at most {MAX_NAMED} are allowed; use fewer or shorter tags")]
    Bytes(usize),
}

impl Ticket {
    /// The next resume ticket of this client, until the end of its session.
    #[must_use]
    pub fn to_resume(&self) -> Self {
        let (expires_at, id, grant) = (self.session_ends_at, rand::random(), self.grant.next());
        Self { purpose: Purpose::Resume, expires_at, id, grant, ..self.clone() }
    }

    /// Whether [`open`] will accept the text of [`seal`], whatever the key.
    ///
    /// # Errors
    /// See [`TicketTooLarge`]; fewer or shorter tags help.
    pub fn check_size(&self) -> Result<(), TicketTooLarge> {
        if self.tags.len() > MAX_TAGS {
            return Err(TicketTooLarge::Tags(self.tags.len()));
        }
        let lengths = [&self.business, &self.unique_id, &self.client_type].into_iter().chain(&self.tags);
        let bytes = FIXED + 2 + key_file::MAX_ID + 1 + lengths.map(|text| 2 + text.len()).sum::<usize>() + TAG;
        let text = bytes.div_ceil(3) * 4;
        if text > MAX_NAMED { Err(TicketTooLarge::Bytes(text)) } else { Ok(()) }
    }
}

/// The ticket as signed text. If it does not pass [`Ticket::check_size`], [`open`] refuses the text.
pub fn seal(keys: &KeyRing, ticket: &Ticket) -> String {
    let mut sealed = keys.sign(|key_id| {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(CONTEXT);
        out.push(VERSION);
        out.push(match ticket.purpose {
            Purpose::Connect => 0,
            Purpose::Resume => 1,
        });
        out.extend_from_slice(&ticket.id);
        out.extend_from_slice(&ticket.session_ends_at.to_be_bytes());
        out.extend_from_slice(&ticket.expires_at.to_be_bytes());
        for text in [key_id, &ticket.business, &ticket.unique_id, &ticket.client_type] {
            put(&mut out, text);
        }
        out.push(u8::try_from(ticket.tags.len() + 1).unwrap_or(u8::MAX));
        put(&mut out, &ticket.grant.to_text());
        for tag in &ticket.tags {
            put(&mut out, tag);
        }
        out
    });
    URL_SAFE_NO_PAD.encode(sealed.split_off(CONTEXT.len()))
}

/// The ticket in a text, if we signed it and it has not expired. The signature is checked before anything else is
/// trusted.
///
/// # Errors
/// See [`TicketError`].
pub fn open(keys: &KeyRing, text: &str, now: i64) -> Result<Ticket, TicketError> {
    if text.len() > MAX_TEXT {
        return Err(TicketError::Malformed);
    }
    let mut signed = Vec::with_capacity(CONTEXT.len() + text.len());
    signed.extend_from_slice(CONTEXT);
    URL_SAFE_NO_PAD.decode_vec(text, &mut signed).map_err(|_| TicketError::Malformed)?;
    let (message, tag) = signed.split_last_chunk::<TAG>().ok_or(TicketError::Malformed)?;
    let (key_id, ticket) = message.get(CONTEXT.len()..).and_then(read).ok_or(TicketError::Malformed)?;
    match keys.verify(&key_id, message, tag) {
        None => Err(TicketError::UnknownKey),
        Some(false) => Err(TicketError::BadSignature),
        Some(true) if now >= ticket.expires_at => Err(TicketError::Expired),
        Some(true) => Ok(ticket),
    }
}

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Key id and content; `None` if the bytes are malformed.
fn read(mut bytes: &[u8]) -> Option<(String, Ticket)> {
    let rest = &mut bytes;
    let [VERSION, purpose] = take(rest)? else {
        return None;
    };
    let purpose = match purpose {
        0 => Purpose::Connect,
        1 => Purpose::Resume,
        _ => return None,
    };
    let id = take(rest)?;
    let session_ends_at = i64::from_be_bytes(take(rest)?);
    let expires_at = i64::from_be_bytes(take(rest)?);
    let (key_id, business, unique_id, client_type) =
        (take_text(rest)?, take_text(rest)?, take_text(rest)?, take_text(rest)?);
    let [tags] = take(rest)?;
    let mut tags = (0..tags).map(|_| take_text(rest)).collect::<Option<Vec<_>>>()?;
    if !rest.is_empty() {
        return None;
    }
    let grant = match tags.first().filter(|first| Grant::is_text(first)) {
        Some(text) => {
            let grant = Grant::of_text(text)?;
            tags.remove(0);
            grant
        }
        None => Grant::unknown(purpose, expires_at, id),
    };
    Some((key_id, Ticket { purpose, business, unique_id, client_type, tags, session_ends_at, expires_at, id, grant }))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes(take(bytes)?));
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(taken.to_vec()).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::identity) fn sample() -> Ticket {
        Ticket {
            purpose: Purpose::Connect,
            business: "payments".into(),
            unique_id: "alice/🦀%2F".into(),
            client_type: "app".into(),
            tags: vec!["vip".into(), "eu".into()],
            session_ends_at: 2_000,
            expires_at: 1_000,
            id: [9; 16],
            grant: Grant { session: 5, issued_at: 970, generation: 0, credential: 7, origin: 3 },
        }
    }

    #[test]
    fn a_ticket_survives_its_text() {
        let keys = KeyRing::random();
        let text = seal(&keys, &sample());
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert_eq!(open(&keys, &text, 999), Ok(sample()));
    }

    #[test]
    fn a_resume_ticket_lasts_as_long_as_the_session() {
        let keys = KeyRing::random();
        let text = seal(&keys, &sample().to_resume());
        let resumed = open(&keys, &text, 1_999).unwrap();
        assert_eq!((resumed.purpose, resumed.unique_id), (Purpose::Resume, sample().unique_id));
        assert_eq!(open(&keys, &text, 2_000), Err(TicketError::Expired));
    }

    #[test]
    fn a_ticket_of_a_version_before_grants_is_read() {
        let keys = KeyRing::random();
        let id = [0xff; 16];
        let of = |purpose: u8| {
            let mut sealed = keys.sign(|key_id| {
                let mut out =
                    [CONTEXT, &[VERSION, purpose], &id, &2_000_i64.to_be_bytes(), &60_000_i64.to_be_bytes()].concat();
                for text in [key_id, "payments", "alice", "app"] {
                    put(&mut out, text);
                }
                out.push(1);
                put(&mut out, "vip");
                out
            });
            open(&keys, &URL_SAFE_NO_PAD.encode(sealed.split_off(CONTEXT.len())), 0).unwrap()
        };
        let (connect, resume) = (of(0), of(1));
        assert_eq!((connect.tags.as_slice(), connect.grant.issued_at), (["vip".to_owned()].as_slice(), 30_000));
        assert_eq!(resume.grant.issued_at, 0, "every revocation of its identity ends it");
        assert_eq!((resume.grant.credential, resume.grant.origin, resume.grant.generation), (0, 0, 0));
    }

    #[test]
    fn errors_are_distinguished() {
        let keys = KeyRing::random();
        let good = seal(&keys, &sample());
        let other = seal(&KeyRing::random(), &sample());
        let mut elsewhere = URL_SAFE_NO_PAD.decode(&good).unwrap();
        // The key id follows the fixed part and its own length.
        elsewhere[FIXED + 2] ^= 1;
        for (name, text, now, expected) in [
            ("expired", good.clone(), 1_000, TicketError::Expired),
            ("forged and expired", other.clone(), 1_000, TicketError::BadSignature),
            ("signed elsewhere", other, 0, TicketError::BadSignature),
            ("unknown key", URL_SAFE_NO_PAD.encode(elsewhere), 0, TicketError::UnknownKey),
            ("cut", good[..good.len() - 4].to_owned(), 0, TicketError::Malformed),
            ("longer", format!("{good}AAAA"), 0, TicketError::Malformed),
            ("empty", String::new(), 0, TicketError::Malformed),
            ("not base64", "a.b".to_owned(), 0, TicketError::Malformed),
            ("huge", "A".repeat(MAX_TEXT + 1), 0, TicketError::Malformed),
        ] {
            assert_eq!(open(&keys, &text, now), Err(expected), "{name}");
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let keys = KeyRing::random();
        let bytes = URL_SAFE_NO_PAD.decode(seal(&keys, &sample())).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&keys, &URL_SAFE_NO_PAD.encode(changed), 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn too_many_or_too_long_tags_are_refused_with_advice() {
        let tags = |count: usize, length: usize| Ticket { tags: vec!["t".repeat(length); count], ..sample() };
        assert_eq!(tags(64, 10).check_size(), Ok(()));
        assert_eq!(tags(65, 1).check_size(), Err(TicketTooLarge::Tags(65)));
        let error = tags(64, 30).check_size().unwrap_err();
        assert!(error.to_string().contains("use fewer or shorter tags"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_ticket_or_an_error(text in "[A-Za-z0-9_-]{0,400}", any: String) {
            let keys = KeyRing::random();
            prop_assert!(open(&keys, &text, 0).is_err());
            prop_assert!(open(&keys, &any, 0).is_err());
        }

        #[test]
        fn any_bytes_in_a_ticket_of_ours_are_an_error_not_a_panic(bytes: Vec<u8>) {
            let keys = KeyRing::random();
            let mut sealed = keys.sign(|_| [CONTEXT, &bytes].concat());
            let _ = open(&keys, &URL_SAFE_NO_PAD.encode(sealed.split_off(CONTEXT.len())), 0);
        }

        #[test]
        fn whatever_passes_the_size_check_opens(id in "\\PC{1,200}", tags in prop::collection::vec("\\PC{1,60}", 0..70)) {
            let ticket = Ticket { unique_id: id, tags, ..sample() };
            let keys = KeyRing::random();
            if ticket.check_size().is_ok() {
                let opened = open(&keys, &seal(&keys, &ticket), 0).unwrap();
                prop_assert_eq!(opened, ticket);
            }
        }
    }
}
